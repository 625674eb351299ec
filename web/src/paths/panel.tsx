import { counted, percent, shown } from "../numbers";
import type { PathsPayload, Trace } from "../payload";
import { Swatch } from "./beams";
import { at, attentionOf, beamsThrough, layerOf, letter, linksOf, nodeName, type Pick, tokenOf } from "./model";

interface Props {
  payload: PathsPayload;
  trace: Trace;
  pick: Pick | null;
  onPick: (pick: Pick | null) => void;
  show: (beams: Iterable<number>) => void;
  /** Whether the beams are the best there are; or empty. */
  certificate: string;
  onward?: Onward | undefined;
}

/** The ways on to other screens, of a page that has them; `head` is null where heads were combined. */
export type Onward = (place: { layer: number; head: number | null; query: number; key: number | null; cross: boolean }) => {
  text: string;
  address: string;
} | null;

/** What is known of the thing that is selected, and how each number came about. */
export function Panel(props: Props) {
  const { trace, pick, onPick, show } = props;
  return (
    <section class="panel" aria-label="Details" aria-live="polite">
      {pick === null && <AboutTrace {...props} />}
      {pick?.kind === "node" && <AboutNode {...props} node={pick.index} />}
      {pick?.kind === "link" && <AboutLink {...props} link={pick.index} />}
      {pick?.kind === "beam" && <AboutBeam {...props} beam={pick.index} />}
      {pick && (
        <footer>
          <button type="button" onClick={() => show(beamsThrough(trace, pick))}>
            Draw only these
          </button>
          <button type="button" onClick={() => onPick(null)}>
            Clear selection
          </button>
        </footer>
      )}
    </section>
  );
}

function AboutTrace({ payload, trace, certificate }: Props) {
  return (
    <>
      <h2>About this trace</h2>
      <p>
        A ribbon joins a token (right) to one that it looked at (left). Each path is a lane of its own; its thickness
        is <b>share × {trace.edge.name}</b>: the path's share among those found, times the edge's own weight.{" "}
        {trace.edge.made}
      </p>
      {certificate && <p class="certificate">{certificate}</p>}
      <dl>
        {trace.settings.map(({ name, value }) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {trace.attributions.map(({ name, shares }) => (
        <Attribution key={name} {...{ payload, name, shares }} />
      ))}
    </>
  );
}

const MOST_ATTRIBUTED = 10;

function Attribution({ payload, name, shares }: { payload: PathsPayload; name: string; shares: number[] }) {
  const first = [...shares.keys()].toSorted((a, b) => at(shares, b) - at(shares, a)).slice(0, MOST_ATTRIBUTED);
  const largest = Math.max(...shares);
  return (
    <>
      <h3>
        {name}: the {counted(first.length, "token")} with most
      </h3>
      <ol class="bars">
        {first.map((position) => (
          <li key={position} style={{ "--part": `${(100 * at(shares, position)) / largest}%` }}>
            <span>
              {at(payload.tokens, position).text} <sub>{position}</sub>
            </span>
            <b>{shown(at(shares, position))}</b>
          </li>
        ))}
      </ol>
    </>
  );
}

function AboutNode(props: Props & { node: number }) {
  const { payload, trace, node } = props;
  const { text, note } = tokenOf(payload, trace, node);
  const { position, column } = at(trace.nodes, node);
  const beams = [...beamsThrough(trace, { kind: "node", index: node })];
  return (
    <>
      <h2>
        <q>{text}</q>
      </h2>
      <p>
        {node === trace.target && "The target: "}position {position}
        {column !== null && `, ${at(trace.columns, column)}`}
        {note && `; ${note}`}. In {counted(beams.length, "path")}: <Swatches beams={beams} />
      </p>
      <WayOn {...props} node={node} />
      <Neighbours {...props} title="Looks at" links={linksOf(trace, node, "target")} end="source" />
      <Neighbours {...props} title="Is looked at by" links={linksOf(trace, node, "source")} end="target" />
    </>
  );
}

interface NeighboursProps extends Props {
  title: string;
  links: number[];
  end: "source" | "target";
}

function Neighbours({ payload, trace, onPick, title, links, end }: NeighboursProps) {
  if (links.length === 0) return null;
  return (
    <>
      <h3>{title}</h3>
      <ul class="links">
        {links.map((link) => (
          <li key={link}>
            <button type="button" onClick={() => onPick({ kind: "link", index: link })}>
              <span>{nodeName(payload, trace, at(trace.links, link)[end])}</span>
              <b>{shown(attentionOf(trace, link))}</b>
            </button>
          </li>
        ))}
      </ul>
    </>
  );
}

/** A link to the head, and there to the cell, that a node or an edge is of. */
function WayOn({ trace, onward, node, cell = null, head = trace.head }: Props & { node: number; cell?: number | null; head?: number | null }) {
  const layer = layerOf(trace, node);
  const { position: query, source } = at(trace.nodes, node);
  const other = cell === null ? null : at(trace.nodes, cell);
  if (!onward || source || layer < 0) return null;
  const way = onward({ layer, head, query, key: other?.position ?? null, cross: other?.source === true });
  return (
    way && (
      <p class="onward">
        <a href={way.address}>{way.text}</a>
      </p>
    )
  );
}

function AboutLink(props: Props & { link: number }) {
  const { payload, trace, onPick, link } = props;
  const { source, target, value, lanes } = at(trace.links, link);
  const ofHeads = lanes.some(({ head }) => head !== null);
  const ends = [target, source].map((node) => (
    <button type="button" class="inline" onClick={() => onPick({ kind: "node", index: node })}>
      {nodeName(payload, trace, node)}
    </button>
  ));
  return (
    <>
      <h2>
        {ends[0]} looks at {ends[1]}
      </h2>
      <p class="figures">
        <b>{shown(attentionOf(trace, link))}</b> {ofHeads ? `the largest ${trace.edge.name} of its paths` : trace.edge.name}
      </p>
      <p>{trace.edge.made}</p>
      {[...new Set(lanes.map(({ head }) => head ?? trace.head))].map((head) => (
        <WayOn key={head} {...props} node={target} cell={source} head={head} />
      ))}
      <table>
        <caption>
          Thickness of each lane = share × {trace.edge.name}; together <b>{shown(value)}</b>
        </caption>
        <thead>
          <tr>
            <th scope="col">path</th>
            {ofHeads && <th scope="col">head</th>}
            <th scope="col">share</th>
            <th scope="col">{trace.edge.name}</th>
            <th scope="col">thickness</th>
          </tr>
        </thead>
        <tbody>
          {lanes.map(({ beam, attention, head, value: thickness }) => (
            <tr key={beam}>
              <td>
                <button type="button" class="inline" onClick={() => onPick({ kind: "beam", index: beam })}>
                  <Swatch beam={beam} />
                </button>
              </td>
              {ofHeads && <td>{head === null ? "" : `H${head}`}</td>}
              <td>{shown(at(trace.beams, beam).share)}</td>
              <td>{shown(attention)}</td>
              <td>{shown(thickness)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </>
  );
}

function AboutBeam({ payload, trace, onPick, beam }: Props & { beam: number }) {
  const { nodes, attentions, score_raw, score_norm, share } = at(trace.beams, beam);
  const { name, power } = trace.length_norm;
  const divisor = power === 1 ? `${nodes.length - 1}` : `${nodes.length - 1}^${power}`;
  return (
    <>
      <h2>
        Path {letter(beam)} <Swatch beam={beam} />
      </h2>
      <ol class="links">
        {attentions.map((attention, step) => {
          const link = trace.links.findIndex(
            ({ source, target }) => target === nodes[step] && source === nodes[step + 1],
          );
          return (
            <li key={step}>
              <button type="button" onClick={() => onPick({ kind: "link", index: link })}>
                <span>
                  {nodeName(payload, trace, at(nodes, step))} → {nodeName(payload, trace, at(nodes, step + 1))}
                </span>
                <b>{shown(attention)}</b>
              </button>
            </li>
          );
        })}
      </ol>
      {attentions.length === 0 ? (
        <p>The target is itself an end: there is no edge, and the score is 0.</p>
      ) : (
        <dl class="made">
          <div>
            <dt>{attentions.map((attention) => `ln ${shown(attention)}`).join(" + ")}</dt>
            <dd>= {shown(score_raw)}</dd>
          </div>
          {power !== 0 && (
            <div>
              <dt>
                ÷ {divisor} ({name} over {counted(nodes.length - 1, "edge")})
              </dt>
              <dd>= {shown(score_norm)}</dd>
            </div>
          )}
          <div>
            <dt>share: e^score over the sum of all {counted(trace.beams.length, "path")}</dt>
            <dd>= {percent(share)}</dd>
          </div>
        </dl>
      )}
    </>
  );
}

function Swatches({ beams }: { beams: number[] }) {
  return (
    <>
      {beams.map((beam) => (
        <Swatch key={beam} beam={beam} />
      ))}
    </>
  );
}
