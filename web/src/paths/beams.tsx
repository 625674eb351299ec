import { percent, shown } from "../numbers";
import type { PathsPayload, Trace } from "../payload";
import { at, letter, type Pick, placesOf, tokenOf } from "./model";
import { colour, dashes } from "./palette";

interface Props {
  payload: PathsPayload;
  trace: Trace;
  visible: ReadonlySet<number>;
  lit: ReadonlySet<number> | null;
  pick: Pick | null;
  show: (beams: Iterable<number>) => void;
  onPick: (pick: Pick | null) => void;
  onHover: (pick: Pick | null) => void;
}

/** All beams, best first: what is ticked is drawn. */
export function Beams({ payload, trace, visible, lit, pick, show, onPick, onHover }: Props) {
  const toggled = (beam: number) => [...trace.beams.keys()].filter((b) => visible.has(b) !== (b === beam));
  return (
    <section class="beams" aria-label="Paths">
      <header>
        <h2>Paths</h2>
        <BeamFilter count={trace.beams.length} visible={visible} show={show} />
      </header>
      <ol>
        {trace.beams.map((beam, index) => {
          const picked = pick?.kind === "beam" && pick.index === index;
          const state = [picked && "picked", lit && !lit.has(index) && "dim"].filter(Boolean).join(" ");
          return (
            <li
              key={index}
              class={state}
              onPointerEnter={() => onHover({ kind: "beam", index })}
              onPointerLeave={() => onHover(null)}
            >
              <input
                type="checkbox"
                checked={visible.has(index)}
                aria-label={`Draw path ${letter(index)}`}
                onChange={() => show(toggled(index))}
              />
              <button
                type="button"
                aria-pressed={picked}
                onClick={() => onPick(picked ? null : { kind: "beam", index })}
              >
                <Swatch beam={index} />
                <Stops {...{ payload, trace, beam: index, whole: picked }} />
                <span class="score" title="Score, and the path's share among these">
                  {shown(beam.score_norm)}
                  <small>{percent(beam.share)}</small>
                </span>
              </button>
            </li>
          );
        })}
      </ol>
    </section>
  );
}

const MOST_STOPS = 10;

/** A path in words; of a long one that is not selected, its two ends. */
function Stops({ payload, trace, beam, whole }: { payload: PathsPayload; trace: Trace; beam: number; whole: boolean }) {
  const stops = placesOf(trace, beam);
  const half = MOST_STOPS / 2;
  const left = whole || stops.length <= MOST_STOPS ? 0 : stops.length - MOST_STOPS;
  return (
    <span class="path">
      {stops.map(({ node, layer }, step) => {
        if (left > 0 && step === half) return <i key="left"> → … {left} more …</i>;
        if (left > 0 && step > half && step < half + left) return null;
        return (
          <span key={node}>
            {layer !== null && <i> {layer && `─${layer}`}→ </i>}
            {tokenOf(payload, trace, node).text}
            <sub>{at(trace.nodes, node).position}</sub>
          </span>
        );
      })}
    </span>
  );
}

function BeamFilter({ count, visible, show }: { count: number; visible: ReadonlySet<number>; show: Props["show"] }) {
  const [only] = visible.size === 1 ? visible : [];
  const value = visible.size === count ? "all" : (only?.toString() ?? "some");
  return (
    <select
      aria-label="Paths that are drawn"
      value={value}
      onChange={({ currentTarget }) =>
        show(currentTarget.value === "all" ? Array.from({ length: count }, (_, i) => i) : [Number(currentTarget.value)])
      }
    >
      <option value="all">all paths</option>
      {value === "some" && (
        <option value="some">
          {visible.size} of {count} paths
        </option>
      )}
      {Array.from({ length: count }, (_, beam) => (
        <option key={beam} value={beam}>
          only {letter(beam)}
        </option>
      ))}
    </select>
  );
}

/** A beam's colour, dash pattern and letter. */
export function Swatch({ beam }: { beam: number }) {
  return (
    <svg class="swatch" width="34" height="16" aria-label={`path ${letter(beam)}`} style={{ "--beam": colour(beam) }}>
      <rect width="34" height="16" rx="3" />
      <line x1="0" y1="8" x2="34" y2="8" stroke-dasharray={dashes(beam)} />
      <circle cx="17" cy="8" r="7" />
      <text x="17" y="8.5">
        {letter(beam)}
      </text>
    </svg>
  );
}
