import { shown } from "../../numbers";
import { floats, type Packet } from "../../packet";
import type { LensAbout } from "../../payload";
import { usePacket } from "../../resource";
import { Chart } from "../../ui/chart";
import { pythonText, shellWord } from "../../ui/code";
import { Await } from "../../ui/states";
import { useView } from "../../view";
import { LensGrid } from "./lens_grid";
import type { Place } from "./screen";

/** What colours can say: address -> words. */
export const COLOURS = {
  probability: "probability of the likeliest token",
  entropy: "entropy in nats",
  target: "probability of the token that came next",
} as const;
export type Colour = keyof typeof COLOURS;

/** A lens as the page reads it: cell by cell, (layer, position). */
export interface Cell {
  layer: number;
  position: number;
  token: string;
  /** The likeliest tokens, and their probabilities. */
  top: { text: string; probability: number }[];
  entropy: number;
  /** The token that came next, null where none did; its probability, and its rank (0 for not known). */
  target: string | null;
  targetProbability: number;
  targetRank: number;
}

/** The logit lens of the window that the selected position is in. */
export function LensSection({ run, example, q }: Place) {
  const [view, change] = useView();
  const from = WINDOW * Math.floor((q ?? 0) / WINDOW);
  const loaded = usePacket("lens", { run: run.name, ex: example.number, from });
  const tokens = (example.tokens.dec ?? []).map(({ text }) => text);
  const step = (event: KeyboardEvent) => {
    if (loaded.state !== "ready") return;
    const { layers } = loaded.value.about as unknown as LensAbout;
    const row = layers.indexOf(Number(view.layer));
    const moved: Record<string, [number, number]> = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const by = moved[event.key];
    if (!by) return;
    event.preventDefault();
    const layer = layers[Math.min(layers.length - 1, Math.max(0, (row < 0 ? 0 : row) + by[0]))];
    change({ layer: layer ?? null, q: Math.min(tokens.length - 1, Math.max(0, (q ?? 0) + by[1])) });
  };
  return (
    <div class="lens" role="group" tabIndex={0} aria-label="Logit lens: arrow keys move through layers and positions" onKeyDown={step}>
      {loaded.state === "ready" ? (
        <LensChart packet={loaded.value} run={run.name} example={example.number} q={q} tokens={tokens} />
      ) : (
        <section class="chart" aria-label="Logit lens">
          <h2>Logit lens</h2>
          <Await loaded={loaded}>{() => null}</Await>
        </section>
      )}
    </div>
  );
}

/** As many positions as one answer of `lens` has. */
const WINDOW = 32;

interface ChartProps {
  packet: Packet;
  run: string;
  example: number;
  q: number | null;
  tokens: string[];
}

function LensChart({ packet, run, example, q, tokens }: ChartProps) {
  const [view, change] = useView();
  const about = packet.about as unknown as LensAbout;
  const { positions, layers, length } = about;
  const [first = 0, last = 0] = [positions[0], positions[positions.length - 1]];
  const cells = cellsOf(packet, tokens);
  const known = cells.some(({ targetProbability }) => !Number.isNaN(targetProbability));
  const offered = (["probability", about.has_entropy && "entropy", known && "target"] as const).filter((own) => own !== false);
  const colour = offered.find((own) => own === view["stream.colour"]) ?? "probability";
  const recorded = about.array.endsWith("lens_topk");
  return (
    <Chart
      title="Logit lens"
      field="stream.lens"
      notice={recorded ? "Read out while it was recorded: of other tokens than the likeliest nothing is known." : null}
      tools={
        <>
          <label class="choice">
            colour{" "}
            <select value={colour} onChange={(event) => change({ "stream.colour": event.currentTarget.value })}>
              {offered.map((own) => (
                <option key={own} value={own}>
                  {COLOURS[own]}
                </option>
              ))}
            </select>
          </label>
          {positions.length < length && (
            <span class="stepper" role="group" aria-label="Positions">
              <button type="button" aria-label="Earlier positions" disabled={first === 0} onClick={() => change({ q: first - 1 })}>
                ‹
              </button>
              <span>
                {first}–{last} of {length}
              </span>
              <button type="button" aria-label="Later positions" disabled={last === length - 1} onClick={() => change({ q: last + 1 })}>
                ›
              </button>
            </span>
          )}
        </>
      }
      code={{
        python: [
          "import traceformer as tf",
          "",
          `run = tf.open_run(${pythonText(run)})`,
          `tf.lens(run, ${example}, positions=range(${first}, ${last + 1})).to_frame()`,
        ].join("\n"),
        shell: `traceformer lens ${shellWord(run)} --example ${example} --positions ${first}-${last}`,
      }}
      sheet={() => ({
        caption: `What each layer would say next, from ${about.array}`,
        columns: ["layer", "position", "token", "rank", "top token", "probability", "entropy", "next token", "its probability", "its rank"],
        rows: cells.flatMap((cell) =>
          cell.top.map(({ text, probability }, rank) => [
            ...[cell.layer, cell.position, cell.token, rank + 1, text, probability, told(cell.entropy)],
            ...[cell.target ?? "", told(cell.targetProbability), cell.targetRank || ""],
          ]),
        ),
      })}
    >
      <LensGrid
        {...{ cells, layers, positions, colour }}
        tokens={positions.map((position) => tokens[position] ?? "")}
        selected={{ layer: view.layer === undefined ? null : Number(view.layer), q }}
        onSelect={(layer, position) => change({ layer, q: position })}
      />
    </Chart>
  );
}

function cellsOf(packet: Packet, tokens: string[]): Cell[] {
  const { layers, positions, names, targets } = packet.about as unknown as LensAbout;
  const [probability, entropy, ofTarget] = ["probability", "entropy", "target_probability"].map((name) => floats(packet, name)) as [
    Float32Array,
    Float32Array,
    Float32Array,
  ];
  const [ids, ranks] = [packet.arrays["token"]?.data, packet.arrays["target_rank"]?.data];
  const k = probability.length / (layers.length * positions.length);
  return layers.flatMap((layer, row) =>
    positions.map((position, column) => {
      const place = row * positions.length + column;
      return {
        layer,
        position,
        token: tokens[position] ?? "",
        top: Array.from({ length: k }, (_, rank) => ({
          text: names[ids?.[place * k + rank] ?? -1] ?? "",
          probability: probability[place * k + rank] as number,
        })),
        entropy: entropy[place] as number,
        target: targets[column] ?? null,
        targetProbability: ofTarget[place] as number,
        targetRank: ranks?.[place] ?? 0,
      };
    }),
  );
}

function told(value: number): number | string {
  return Number.isNaN(value) ? "" : value;
}

/** What is known of a cell, as a sentence. */
export function sentence({ layer, position, token, top, entropy, target, targetProbability, targetRank }: Cell): string {
  const likeliest = top.map(({ text, probability }) => `${text} ${shown(probability)}`).join(", ");
  const next =
    target === null
      ? "nothing came next"
      : `${target} came next${targetRank ? `: rank ${targetRank}, ${shown(targetProbability)}` : ", which is not among the likeliest"}`;
  return `L${layer} at ${token} ${position}: ${likeliest}; ${next}${Number.isNaN(entropy) ? "" : `; entropy ${shown(entropy)} nats`}`;
}
