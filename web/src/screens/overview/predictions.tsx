import { useState } from "preact/hooks";
import { percent, shown } from "../../numbers";
import { floats, type Packet } from "../../packet";
import type { ExampleAbout, PredictionsAbout, RunAbout, Stack, Token } from "../../payload";
import { Axis, scaleOf, useWidth } from "../../ui/axes";
import { Chart } from "../../ui/chart";
import { useView } from "../../view";

interface Props {
  run: RunAbout;
  example: ExampleAbout;
  packet: Packet;
  /** The stack whose positions `q` counts in the address. */
  queries: Stack;
}

/** What was expected at one position. */
interface Expected {
  position: number;
  token: Token;
  entropy: number;
  /** The likeliest tokens. */
  top: { token: string; probability: number }[];
  /** What the prediction is about, if it is known. */
  target: string | null;
  probability: number;
  rank: number;
}

const MEASURES = { entropy: "Entropy", top: "Probability of the likeliest token", target: "Probability of the token itself" } as const;
type Measure = keyof typeof MEASURES;

const WHEN = { next: "After", own: "At", label: "At" } as const;
const WHAT = { next: "then came", own: "there stands", label: "its label is" } as const;
const TALL = 96; // pixels of the highest bar
const MARGIN = { left: 44, right: 8, top: 8, bottom: 22 };

/** A bar for each position: how open it was what comes, and which token was the likeliest. */
export function Predictions({ run, example, packet, queries }: Props) {
  const [view, change] = useView();
  const [hovered, setHovered] = useState<number | null>(null);
  const [outer, room] = useWidth<HTMLDivElement>();
  const about = packet.about as unknown as PredictionsAbout;
  const stack = about.stack ?? "dec";
  const tokens = example.tokens[stack] ?? [];
  const field = stack === queries ? "q" : "overview.at";
  if (!about.source) return <p class="missing">{about.missing}</p>;

  const rows = expectations(packet, about, tokens);
  const measures = (Object.keys(MEASURES) as Measure[]).filter((name) => rows.some((row) => !Number.isNaN(valueOf(row, name))));
  const measure = measures.find((name) => name === view["overview.bar"]) ?? measures[0] ?? "top";
  const unit = measure === "entropy" ? "nats" : "";
  const highest = measure === "entropy" ? Math.max(...rows.map(({ entropy }) => entropy || 0), 1e-9) : 1;
  const at = hovered ?? (view[field] === undefined ? null : Number(view[field]));
  const chosen = at === null ? undefined : rows[at];
  const speaks = about.speaks_of ?? "next";
  const move = (event: KeyboardEvent) => {
    const now = Number(view[field] ?? -1);
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: rows.length - 1 }[event.key];
    if (next === undefined || !rows[next]) return;
    event.preventDefault();
    change({ [field]: next });
  };
  const width = Math.max(4, Math.min(24, Math.floor((room - MARGIN.left - MARGIN.right) / rows.length)));
  const full = MARGIN.left + rows.length * width + MARGIN.right;
  const height = MARGIN.top + TALL + MARGIN.bottom;
  const positionOf = (event: PointerEvent | MouseEvent) => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    const position = Math.floor((event.clientX - box.left - MARGIN.left) / width);
    return rows[position] ? position : null;
  };
  const upward = scaleOf([0, highest], [MARGIN.top + TALL, MARGIN.top]);
  const across = scaleOf([0, Math.max(1, rows.length - 1)], [MARGIN.left + width / 2, full - MARGIN.right - width / 2]);
  return (
    <Chart
      title="What the model expected"
      field="overview.expected"
      notice={about.missing || null}
      sheet={() => ({
        caption: `${WHEN[speaks]} each token: the likeliest ones, and the one that ${speaks === "next" ? "came" : "is meant"}`,
        columns: ["position", "token", "entropy (nats)", ...[1, 2, 3].flatMap((rank) => [`likeliest ${rank}`, `probability ${rank}`]), WHAT[speaks], "its probability", "its rank"],
        rows: rows.map((row) => [
          row.position,
          row.token.text,
          number(row.entropy),
          ...[0, 1, 2].flatMap((rank) => [row.top[rank]?.token ?? "", number(row.top[rank]?.probability)]),
          row.target ?? "",
          number(row.probability),
          row.rank || "",
        ]),
      })}
      code={{
        python: `import traceformer as tf\n\nrun = tf.open_run(${JSON.stringify(run.name)})\n${
          about.source === "logits"
            ? `tf.statistics(run, examples=[${example.number}], top=3, each=lambda found: print(found.statistics))`
            : `tf.lens(run, ${example.number}, layers=[${about.layer}]).to_frame()`
        }`,
      }}
      tools={
        <label class="choice">
          Bars{" "}
          <select value={measure} onChange={({ currentTarget }) => change({ "overview.bar": currentTarget.value })}>
            {measures.map((name) => (
              <option key={name} value={name}>
                {MEASURES[name]}
              </option>
            ))}
          </select>
        </label>
      }
    >
      <p class="readout" role="status">
        {chosen ? told(chosen, speaks) : `${WHEN[speaks]} each token, ${MEASURES[measure].toLowerCase()}${unit && ` in ${unit}`}; point at a bar, or press ← and →.`}
      </p>
      <div class="bars" ref={outer} tabIndex={0} role="group" aria-label="Positions: arrow keys go from one to the next" onKeyDown={move}>
        <svg
          width={full}
          height={height}
          role="img"
          aria-label={`${MEASURES[measure]} at ${rows.length} positions`}
          onPointerMove={(event) => setHovered(positionOf(event))}
          onPointerLeave={() => setHovered(null)}
          onClick={(event) => change({ [field]: positionOf(event) })}
        >
          <Axis scale={upward} at={MARGIN.left} upward rules={full - MARGIN.left - MARGIN.right} count={3} />
          <Axis scale={across} at={MARGIN.top + TALL} whole count={Math.min(rows.length, (rows.length * width) / 40)} />
          {chosen && <rect class="column" x={MARGIN.left + chosen.position * width} y={MARGIN.top} width={width} height={TALL} />}
          {[false, true].map((right) => (
            <path key={`${right}`} class={right ? "bar right" : "bar"} d={barsOf(rows.filter(({ rank }) => (rank === 1) === right), measure, highest, width)} />
          ))}
        </svg>
      </div>
      <p class="meanings">
        <span class="key right" /> the likeliest token {speaks === "next" ? "came" : "is the one"} <span class="key" /> another one
      </p>
    </Chart>
  );
}

function expectations(packet: Packet, about: PredictionsAbout, tokens: Token[]): Expected[] {
  const whole = (name: string) => packet.arrays[name]?.data ?? [];
  const [entropy, probability, chances] = [floats(packet, "entropy"), floats(packet, "target_probability"), floats(packet, "top_probability")];
  const [top, target, rank] = [whole("top"), whole("target"), whole("target_rank")];
  const each = packet.arrays["top"]?.shape[1] ?? 0;
  const text = (number: number | undefined) => (number === undefined || number < 0 ? null : (about.tokens?.[number]?.text ?? null));
  return tokens.map((token, position) => ({
    position,
    token,
    entropy: entropy[position] ?? Number.NaN,
    top: Array.from({ length: each }, (_, index) => position * each + index).flatMap((at) => {
      const name = text(top[at]);
      return name === null ? [] : [{ token: name, probability: chances[at] ?? Number.NaN }];
    }),
    target: text(target[position]),
    probability: probability[position] ?? Number.NaN,
    rank: rank[position] ?? 0,
  }));
}

function valueOf(row: Expected, measure: Measure): number {
  return measure === "entropy" ? row.entropy : measure === "target" ? row.probability : (row.top[0]?.probability ?? Number.NaN);
}

function barsOf(rows: Expected[], measure: Measure, highest: number, width: number): string {
  const gap = width > 6 ? 2 : 1;
  return rows
    .map((row) => ({ x: MARGIN.left + row.position * width + gap / 2, tall: (TALL * valueOf(row, measure)) / highest }))
    .filter(({ tall }) => tall > 0)
    .map(({ x, tall }) => `M${x} ${MARGIN.top + TALL}v${-tall.toFixed(2)}h${width - gap}v${tall.toFixed(2)}z`)
    .join("");
}

function told(row: Expected, speaks: keyof typeof WHEN): string {
  const parts = [
    Number.isNaN(row.entropy) ? "" : `entropy ${shown(row.entropy)} nats`,
    row.top.length ? `likeliest ${row.top.map(({ token, probability }) => `“${token}” ${percent(probability)}`).join(", ")}` : "",
    row.target === null ? "" : `${WHAT[speaks]} “${row.target}”${row.rank ? `, ${percent(row.probability)}, rank ${row.rank}` : ""}`,
  ];
  return `${WHEN[speaks]} “${row.token.text}” ${row.position}: ${parts.filter(Boolean).join("; ")}`;
}

function number(value: number | undefined): number | string {
  return value === undefined || Number.isNaN(value) ? "" : Number(value.toPrecision(7));
}
