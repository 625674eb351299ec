import { floats, type Packet } from "../../packet";
import type { DirectionRow, ProjectionAbout, Token } from "../../payload";
import { useJson, usePacket } from "../../resource";
import { extentOf } from "../../ui/axes";
import { Chart } from "../../ui/chart";
import { pythonText, shellWord } from "../../ui/code";
import { type Line, Lines } from "../../ui/lines";
import { Await } from "../../ui/states";
import { Tokens } from "../../ui/tokens";
import { shown } from "../../numbers";
import { useView } from "../../view";
import type { Place } from "./screen";

/** How far the tokens lie along a trait's direction. */
export function Traits(place: Place) {
  const found = useJson<{ directions: DirectionRow[] }>("directions", { run: place.run.name });
  return (
    <Await loaded={found}>
      {({ directions }) =>
        directions.some(({ problem }) => !problem) ? (
          <Projected {...place} directions={directions} />
        ) : (
          <section class="chart" aria-label="Traits">
            <h2>Traits</h2>
            {directions.map(({ name, problem }) => (
              <p key={name} class="nothing">
                {name}: {problem}
              </p>
            ))}
            <p class="nothing">
              No direction lies beside this run. <code>traceformer vectors fit --positive … --negative … --output FOLDER</code> in the folder of
              the run makes one; <code>traceformer extract --project FILE</code> records projections.
            </p>
          </section>
        )
      }
    </Await>
  );
}

function Projected({ run, example, stack, q, directions }: Place & { directions: DirectionRow[] }) {
  const [view, change] = useView();
  const usable = directions.filter(({ problem }) => !problem);
  const chosen = usable.find(({ key }) => key === view["stream.trait"]) ?? usable[0];
  const found = usePacket("projection", { run: run.name, ex: example.number, direction: chosen?.key });
  const choose = (
    <label class="choice">
      along{" "}
      <select value={chosen?.key} onChange={(event) => change({ "stream.trait": event.currentTarget.value })}>
        {directions.map(({ key, name, problem }) => (
          <option key={key} value={key} disabled={problem !== ""} title={problem}>
            {name}
            {problem && ` (${problem})`}
          </option>
        ))}
      </select>
    </label>
  );
  if (found.state === "ready") {
    return <Curves packet={found.value} run={run.name} example={example.number} tokens={example.tokens[stack] ?? []} q={q} choose={choose} />;
  }
  return (
    <section class="chart" aria-label="Traits">
      <header>
        <h2>Traits</h2>
        {choose}
      </header>
      <Await loaded={found}>{() => null}</Await>
    </section>
  );
}

interface CurvesProps {
  packet: Packet;
  run: string;
  example: number;
  tokens: Token[];
  q: number | null;
  choose: preact.ComponentChildren;
}

function Curves({ packet, run, example, tokens, q, choose }: CurvesProps) {
  const [view, change] = useView();
  const about = packet.about as unknown as ProjectionAbout;
  const values = floats(packet, "values");
  const length = values.length / about.layers.length;
  const rows = about.layers.map((_, index) => values.subarray(index * length, (index + 1) * length));
  const usual = about.layers.indexOf(about.best_layer);
  const wanted = view.layer === undefined ? -1 : about.layers.indexOf(Number(view.layer));
  const row = wanted >= 0 ? wanted : usual >= 0 ? usual : about.layers.length - 1;
  const name = (index: number) => (about.layers[index] === null ? about.name : `layer ${about.layers[index]}`);
  const lines: Line[] = rows.map((values, index) => ({ name: name(index), values, style: index === row ? 0 : null }));
  // The chosen one in front.
  lines.sort((a, b) => Number(a.style !== null) - Number(b.style !== null));
  const threshold = about.thresholds[row] ?? null;
  const curve = rows[row] ?? new Float32Array();
  const [low, high] = extentOf([curve]) ?? [0, 0];
  const shade = Float32Array.from(curve, (value) => (high > low && Number.isFinite(value) ? (value - low) / (high - low) : 0));
  const layer = about.layers[row];
  const vector = about.file === null ? "" : `, ${pythonText(about.file)}`;
  const fitted = about.position === "mean" ? "means over texts" : "one token of each text";
  return (
    <Chart
      title={`Along ${about.name}`}
      field="stream.traits"
      notice={about.notes.length ? `This direction was ${about.notes.join("; ")}.` : null}
      tools={
        <>
          {choose}
          {layer !== null && (
            <label class="choice">
              layer{" "}
              <select value={layer} onChange={(event) => change({ layer: event.currentTarget.value })}>
                {about.layers.map((own) => (
                  <option key={own} value={own ?? ""}>
                    {own}
                    {own === about.best_layer ? " (tells best apart)" : ""}
                  </option>
                ))}
              </select>
            </label>
          )}
        </>
      }
      code={{
        python: [
          "import traceformer as tf",
          "",
          `run = tf.open_run(${pythonText(run)})`,
          `tf.project(run${vector}${about.file === null ? "" : `, site=${pythonText(about.site)}`}, example=${example}).to_frame()`,
        ].join("\n"),
        shell: `traceformer project ${shellWord(run)}${about.file === null ? "" : ` --vector ${shellWord(about.file)}`} --example ${example}`,
      }}
      sheet={() => ({
        caption: `Projections of ${about.site} onto ${about.name}: (a @ v) / |v|`,
        columns: ["layer", "position", "token", "projection", "threshold"],
        rows: about.layers.flatMap((own, index) =>
          tokens.map(({ text }, position) => [own ?? "", position, text, rows[index]?.[position] as number, about.thresholds[index] ?? ""]),
        ),
      })}
    >
      <Lines
        label={`Projections of ${about.site} onto ${about.name}`}
        across={tokens.map((_, position) => position)}
        lines={lines}
        acrossName="position"
        upwardName={`projection of ${about.site}${lines.length > 1 ? "; other layers in grey" : ""}`}
        place={(position) => `${tokens[position]?.text} ${position}`}
        level={threshold === null ? null : { value: threshold, name: `threshold ${shown(threshold)}` }}
        selected={q}
        onSelect={(q) => change({ q })}
      />
      <Tokens tokens={tokens} label={`Text, shaded by its projection onto ${about.name}`} selected={q} shade={shade} onSelect={(q) => change({ q })} />
      <p class="range">
        Shades: {name(row)}, from {shown(low)} (none) to {shown(high)} (strongest).
        {threshold !== null && ` The threshold was fitted on ${fitted}, not on single tokens.`}
      </p>
    </Chart>
  );
}
