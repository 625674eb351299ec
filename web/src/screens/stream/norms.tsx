import { floats, type Packet } from "../../packet";
import type { NormsAbout, Token } from "../../payload";
import { type Loaded, usePacket } from "../../resource";
import { extentOf } from "../../ui/axes";
import { Chart, type Code } from "../../ui/chart";
import { pythonText } from "../../ui/code";
import { ColourBar } from "../../ui/colourbar";
import { Heatmap, tokenLabels } from "../../ui/heatmap";
import { type Line, Lines } from "../../ui/lines";
import { Await } from "../../ui/states";
import { useView } from "../../view";
import type { Place } from "./screen";

/** The stream where it can be recorded, and what is written into it: array -> what the page calls it. */
const STREAM = { resid_pre: "entering a block", resid_mid: "behind attention", resid_post: "leaving a block", hidden: "hidden states" };
const WRITTEN = { "self.attn_out": "attention writes", "cross.attn_out": "cross-attention writes", mlp_out: "MLP writes" };
const SITES = { ...STREAM, ...WRITTEN };
const FIRST = ["resid_post", "hidden", "resid_mid", "resid_pre"];

/** How long the rows of the stream are: all of one array as a heat map, all arrays at the selected token as lines. */
export function Norms({ run, example, stack, q }: Place) {
  const [view, change] = useView();
  // As many hooks each time, whatever is recorded.
  const found = Object.entries(SITES).map(([site, name]) => {
    const recorded = run.arrays.some(({ key }) => key === `${stack}.${site}`);
    const array = `${stack}.${site}`;
    return { site, name, array, recorded, loaded: usePacket("norms", recorded ? { run: run.name, ex: example.number, array } : null) };
  });
  const there = found.filter(({ recorded }) => recorded);
  if (there.length === 0) {
    return (
      <section class="chart" aria-label="Norms">
        <h2>Norms</h2>
        <p class="nothing">
          This run holds no residual stream. Record it with <code>capture="resid"</code>; <code>attn_out mlp_out</code> say how much each
          sublayer writes.
        </p>
      </section>
    );
  }
  const usual = there.find(({ site }) => site === FIRST.find((own) => there.some(({ site }) => site === own))) ?? there[0];
  const chosen = there.find(({ array }) => array === view["stream.array"]) ?? usual;
  if (!chosen) return null;
  const tokens = example.tokens[stack] ?? [];
  const at = q ?? tokens.length - 1;
  const code = codeOf(run.name, example.number, chosen.array);
  return (
    <div class="norms">
      <Await loaded={chosen.loaded}>
        {(packet) => (
          <NormMap
            {...{ packet, tokens, q, code }}
            choose={
              <label class="choice">
                of the stream{" "}
                <select value={chosen.array} onChange={(event) => change({ "stream.array": event.currentTarget.value })}>
                  {there.map(({ name, array }) => (
                    <option key={array} value={array}>
                      {name} ({array})
                    </option>
                  ))}
                </select>
              </label>
            }
          />
        )}
      </Await>
      <AtToken token={tokens[at]} position={at} code={code} arrays={there} />
    </div>
  );
}

interface MapProps {
  packet: Packet;
  tokens: Token[];
  q: number | null;
  code: Code;
  choose: preact.ComponentChildren;
}

function NormMap({ packet, tokens, q, code, choose }: MapProps) {
  const [view, change] = useView();
  const about = packet.about as unknown as NormsAbout;
  const norms = floats(packet, "norms");
  const [low, most] = extentOf([norms], 0) ?? [1, 1];
  const high = most > low ? most : 2 * low;
  const finite = norms.filter(Number.isFinite);
  const row = view.layer === undefined ? -1 : about.layers.indexOf(Number(view.layer));
  const notices = [
    finite.length < norms.length && `${norms.length - finite.length} of ${norms.length} norms are not finite.`,
    about.array.endsWith("hidden") && "Row 0 is the embedding; the last row of the last layer is behind the final norm.",
  ];
  return (
    <Chart
      title="Norms"
      field="stream.norms"
      tools={choose}
      notice={notices.filter(Boolean).join(" ")}
      code={code}
      sheet={() => ({
        caption: `L2 norms of ${about.array}`,
        columns: ["layer", "position", "token", "norm"],
        rows: about.layers.flatMap((layer, index) =>
          tokens.map(({ text }, position) => [layer, position, text, norms[index * tokens.length + position] as number]),
        ),
      })}
    >
      <Heatmap
        label={`L2 norms of ${about.array}, layers by positions`}
        values={norms}
        rows={about.layers.length}
        columns={tokens.length}
        rowLabels={about.layers.map((layer) => `L${layer}`)}
        columnLabels={tokenLabels(tokens)}
        range={[low, high]}
        scale="log"
        palette="sequential"
        selected={row >= 0 && q !== null ? [row, q] : null}
        onSelect={(row, column) => change({ layer: about.layers[row] ?? null, q: column })}
      />
      <ColourBar label="norm, log scale" range={[low, high]} scale="log" />
      <p class="range">The scale is logarithmic: a few tokens, often the first, can be so long that all others would look alike.</p>
    </Chart>
  );
}

interface AtTokenProps {
  token: Token | undefined;
  position: number;
  code: Code;
  arrays: { name: string; array: string; loaded: Loaded<Packet> }[];
}

/** The norms at one token, over layers: what each sublayer makes of it. */
function AtToken({ token, position, code, arrays }: AtTokenProps) {
  const [view, change] = useView();
  const ready = arrays.flatMap(({ name, array, loaded }) => {
    if (loaded.state !== "ready") return [];
    const { layers } = loaded.value.about as unknown as NormsAbout;
    const norms = floats(loaded.value, "norms");
    const length = norms.length / layers.length;
    return [{ name, array, values: new Map(layers.map((layer, index) => [layer, norms[index * length + position] as number])) }];
  });
  const layers = [...new Set(ready.flatMap(({ values }) => [...values.keys()]))].sort((a, b) => a - b);
  const lines: Line[] = ready.map(({ name, values }, style) => ({ name, style, values: layers.map((layer) => values.get(layer) ?? NaN) }));
  const failed = arrays.filter(({ loaded }) => loaded.state === "failed");
  const at = view.layer === undefined ? -1 : layers.indexOf(Number(view.layer));
  const what = `${token?.text ?? ""} ${position}`;
  return (
    <Chart
      title={`Norms over layers at ${what}`}
      field="stream.over"
      notice={failed.length ? `Not read: ${failed.map(({ array }) => array).join(", ")}.` : null}
      code={code}
      sheet={() => ({
        caption: `L2 norms at ${what}`,
        columns: ["layer", ...ready.map(({ array }) => array)],
        rows: layers.map((layer, index) => [layer, ...lines.map(({ values }) => values[index] as number)]),
      })}
    >
      <Lines
        label={`L2 norms at ${what}`}
        across={layers}
        lines={lines}
        acrossName="layer"
        upwardName="norm, log scale"
        log
        place={(index) => `layer ${layers[index]}`}
        selected={at < 0 ? null : at}
        onSelect={(index) => change({ layer: layers[index] ?? null })}
      />
    </Chart>
  );
}

function codeOf(run: string, example: number, array: string): Code {
  return {
    python: [
      "import numpy as np",
      "import traceformer as tf",
      "",
      `run = tf.open_run(${pythonText(run)})`,
      `np.linalg.norm(run.get(${example}, "${array}").astype("float64"), axis=-1)  # (layer, position)`,
    ].join("\n"),
  };
}
