import { useEffect, useMemo, useState } from "preact/hooks";
import { shown } from "../../numbers";
import { floats, type Packet } from "../../packet";
import type { AttributionAbout, LogitPart, Token } from "../../payload";
import { useLast, usePacket } from "../../resource";
import { Chart, type Code } from "../../ui/chart";
import { pythonText, shellWord } from "../../ui/code";
import { ColourBar } from "../../ui/colourbar";
import { Heatmap } from "../../ui/heatmap";
import { Lines } from "../../ui/lines";
import { Await } from "../../ui/states";
import { Tokens } from "../../ui/tokens";
import { useView } from "../../view";
import type { ScreenProps } from "..";
import { Sum } from "./sum";

/** What each part of the model adds to the logit of a token, at the selected position of a run. */
export function AttributionSection({ run, example }: ScreenProps) {
  const [view, change] = useView();
  const tokens = example.tokens.dec ?? [];
  const q = view.q !== undefined && tokens[Number(view.q)] ? Number(view.q) : tokens.length - 1;
  const asked = { to: view["effects.to"], against: view["effects.against"] };
  const query = { run: run.name, ex: example.number, q, ...asked };
  const [loaded, busy] = useLast(usePacket("attribution", query));
  return (
    <div class={busy ? "parts busy" : "parts"}>
      {run.arch !== "enc" && (
        <>
          <Tokens tokens={tokens} label="Text" selected={q} onSelect={(q) => change({ q })} />
          <p class="asked">
            <Entry name="Logit of" usual="likeliest" value={asked.to ?? ""} enter={(to) => change({ "effects.to": to })} />
            <Entry name="less that of" usual="none" value={asked.against ?? ""} enter={(against) => change({ "effects.against": against })} />
          </p>
        </>
      )}
      {loaded.state === "ready" ? (
        <Parts packet={loaded.value} {...{ tokens, query }} />
      ) : (
        <section class="chart" aria-label="Attribution">
          <h2>Attribution</h2>
          <Await loaded={loaded}>{() => null}</Await>
        </section>
      )}
    </div>
  );
}

/** Where a token is typed, and entered when it is done. */
function Entry({ name, usual, value, enter }: { name: string; usual: string; value: string; enter: (token: string) => void }) {
  const [text, setText] = useState(value);
  useEffect(() => setText(value), [value]);
  return (
    <label class="choice">
      {name}{" "}
      <input
        type="search"
        size={8}
        placeholder={usual}
        title="a token with its spaces, or its id as #475"
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onChange={(event) => enter(event.currentTarget.value)}
      />
    </label>
  );
}

/** What is asked for. */
interface Asked {
  run: string;
  ex: number;
  q: number;
  to: string | undefined;
  against: string | undefined;
}

interface PartsProps {
  packet: Packet;
  tokens: Token[];
  query: Asked;
}

function Parts({ packet, tokens, query }: PartsProps) {
  const [view, change] = useView();
  const about = packet.about as unknown as AttributionAbout;
  const values = floats(packet, "contributions");
  const { grid, layers, columns } = useMemo(() => gridOf(about.parts, values), [packet]);
  const largest = grid.reduce((most, value) => (Number.isNaN(value) ? most : Math.max(most, Math.abs(value))), 0) || 1;
  const row = view.layer === undefined ? -1 : layers.indexOf(Number(view.layer));
  const column = view.head === undefined ? -1 : columns.indexOf(`H${view.head}`);
  const what = about.against === null ? `the logit of ${about.to}` : `the logit of ${about.to} less that of ${about.against}`;
  const head = row >= 0 && column >= 0 && (view.attn ?? "dec.self") === "dec.self" ? { layer: layers[row] ?? 0, head: Number(view.head) } : null;
  return (
    <>
      <Chart
        title={`What adds to ${what} at ${tokens[about.position]?.text} ${about.position}`}
        field="effects.parts"
        notice={about.softcap === null ? null : `The model caps its logits at ${about.softcap}; what is split is the logit before that.`}
        code={codeOf(query)}
        sheet={() => ({
          caption: `Parts of ${what}, ${shown(about.total)}`,
          columns: ["part", "kind", "layer", "head", "contribution"],
          rows: [
            ...about.parts.map(({ part, kind, layer, head }, index) => [part, kind, layer ?? "", head ?? "", values[index] as number]),
            ["remainder", "", "", "", about.remainder],
          ],
        })}
      >
        <div class="pictures">
          <figure>
            <Heatmap
              label={`What heads and MLPs add to ${what}, layers by heads`}
              values={grid}
              rows={layers.length}
              columns={columns.length}
              rowLabels={layers.map((layer) => `L${layer}`)}
              columnLabels={columns}
              range={[-largest, largest]}
              palette="diverging"
              selected={row >= 0 && column >= 0 ? [row, column] : null}
              onSelect={(row, column) => {
                const head = /^H(\d+)$/.exec(columns[column] ?? "")?.[1] ?? null;
                change({ layer: layers[row] ?? null, head, ...(head === null ? {} : { attn: "dec.self" }) });
              }}
              tall={Math.min(420, 44 * layers.length + 40)}
            />
          </figure>
          <Sum about={about} values={values} />
        </div>
        <ColourBar label="contribution to the logit" range={[-largest, largest]} palette="diverging" />
        <p class="range">
          {about.is_likeliest && `${about.to} is the likeliest next token. `}
          What is in no cell of the map, as the embedding and biases are, is in the sum. The remainder is
          what rounding did, which explains up to {shown(about.explained)}.
        </p>
      </Chart>
      {head && about.has_sources ? (
        <Sources {...{ tokens, query, head, what }} />
      ) : (
        <p class="nothing">
          {about.has_sources
            ? "Choose a head in the map to see by way of which tokens it adds."
            : "By way of which tokens a head adds is known of runs that hold attn_pattern and v."}
        </p>
      )}
    </>
  );
}

interface SourcesProps {
  tokens: Token[];
  query: Asked;
  head: { layer: number; head: number };
  what: string;
}

/** What one head adds by way of each token. */
function Sources({ tokens, query, head, what }: SourcesProps) {
  const [view, change] = useView();
  const [loaded, busy] = useLast(usePacket("attribution", { ...query, ...head }));
  if (loaded.state !== "ready") return <Await loaded={loaded}>{() => null}</Await>;
  const { source, position: q } = loaded.value.about as unknown as AttributionAbout;
  const values = floats(loaded.value, "sources");
  const most = values.reduce((own, value) => Math.max(own, Math.abs(value)), 0) || 1;
  const k = view.k !== undefined && Number(view.k) <= q ? Number(view.k) : null;
  const seen = tokens.slice(0, q + 1); // later ones add nothing
  return (
    <div class={busy ? "busy" : undefined}>
      <Chart
        title={`What ${source} adds to ${what}, by token`}
        field="effects.sources"
        code={codeOf(query, `by_source=[(${head.layer}, ${head.head})]`, ".by_source()")}
        sheet={() => ({
          caption: `What ${source} adds to ${what} by way of each token`,
          columns: ["position", "token", "contribution"],
          rows: tokens.map(({ text }, position) => [position, text, values[position] as number]),
        })}
      >
        <Lines
          label={`What ${source} adds by way of each token`}
          across={seen.map((_, position) => position)}
          lines={[{ name: source ?? "", values: values.subarray(0, q + 1), style: 0 }]}
          acrossName="position"
          upwardName="contribution to the logit"
          place={(position) => `${tokens[position]?.text} ${position}`}
          level={{ value: 0, name: "" }}
          selected={k}
          onSelect={(k) => change({ k })}
          height={190}
        />
        <Tokens
          tokens={tokens}
          label={`Text, shaded by how much ${source} adds by way of it`}
          selected={q}
          second={k}
          shade={values.map((value) => Math.abs(value) / most)}
          onSelect={(k) => change({ k })}
        />
        <p class="range">Shades: the size of what is added, whether more or less, up to {shown(most)}.</p>
      </Chart>
    </div>
  );
}

/** Heads and MLPs as a matrix of layers; NaN where a layer has no such part. */
function gridOf(parts: LogitPart[], values: Float32Array) {
  const name = ({ kind, head, attention }: LogitPart) => {
    const cross = attention === "cross" ? "cross " : "";
    return kind === "head" ? `${cross}H${head}` : kind === "attn" ? `${cross}attn` : kind === "mlp" ? "MLP" : null;
  };
  const layers = [...new Set(parts.flatMap(({ layer, kind }) => (layer === null || kind === "bias" || kind === "norm" ? [] : [layer])))];
  const columns = [...new Set(parts.flatMap((part) => name(part) ?? []))];
  const grid = new Float32Array(layers.length * columns.length).fill(NaN);
  parts.forEach((part, index) => {
    const [row, column] = [layers.indexOf(part.layer ?? -1), columns.indexOf(name(part) ?? "")];
    if (row >= 0 && column >= 0) grid[row * columns.length + column] = values[index] as number;
  });
  return { grid, layers, columns };
}

function codeOf({ run, ex, q, to, against }: Asked, more = "", then = ""): Code {
  const named = Object.entries({ to, against }).flatMap(([name, value]) => (value ? [[name, value] as const] : []));
  const given = [...named.map(([name, value]) => `${name}=${pythonText(value)}`), `position=${q}`, ...(more ? [more] : [])];
  return {
    python: ["import traceformer as tf", "", `run = tf.open_run(${pythonText(run)})`, `tf.attribute(run, ${ex}, ${given.join(", ")})${then}`].join("\n"),
    shell: `traceformer attribute ${shellWord(run)} --example ${ex} --position ${q}${named.map(([name, value]) => ` --${name} ${shellWord(value)}`).join("")}`,
  };
}
