import { useMemo } from "preact/hooks";
import { useKeys } from "../../keyboard";
import { counted, shown } from "../../numbers";
import { floats, type Packet } from "../../packet";
import type { EffectAbout, EffectAxis } from "../../payload";
import { useLast, usePacket } from "../../resource";
import { Chart } from "../../ui/chart";
import { pythonText } from "../../ui/code";
import { ColourBar } from "../../ui/colourbar";
import { Heatmap } from "../../ui/heatmap";
import { Await } from "../../ui/states";
import { useView } from "../../view";

/** One folder of effects: which pair is shown, and its maps. */
export function EffectMaps({ name, choose }: { name: string; choose: preact.ComponentChildren }) {
  const [view] = useView();
  const [loaded, busy] = useLast(usePacket("effect", { name, pair: view["effects.pair"] ?? "mean" }));
  if (loaded.state === "ready") return <Maps {...{ name, choose, busy }} packet={loaded.value} />;
  return (
    <section class="chart" aria-label="Interventions">
      <header>
        <h2>Interventions</h2>
        {choose}
      </header>
      <Await loaded={loaded}>{() => null}</Await>
    </section>
  );
}

interface MapsProps {
  name: string;
  choose: preact.ComponentChildren;
  /** Whether another pair is on its way. */
  busy: boolean;
  packet: Packet;
}

function Maps({ name, choose, busy, packet }: MapsProps) {
  const [view, change] = useView();
  const about = packet.about as unknown as EffectAbout;
  const values = floats(packet, "values");
  const exact = packet.arrays["exact"] ? floats(packet, "exact") : null;
  const spread = packet.arrays["spread"] ? floats(packet, "spread") : null;
  const counts = packet.arrays["pairs"]?.data ?? null;
  const { axes, pair } = about;
  const [rowAxis, columnAxis] = [axes.length > 1 ? axes[axes.length - 2] : undefined, axes[axes.length - 1]];
  const [rows, columns] = [rowAxis?.numbers.length ?? 1, columnAxis?.numbers.length ?? 1];
  const leading = axes.slice(0, -2);
  const asked = (view["effects.at"] ?? "").split(",").map(Number);
  const places = leading.map(({ numbers }, index) => (numbers[asked[index] ?? 0] === undefined ? 0 : (asked[index] ?? 0)));
  const first = places.reduce((sum, place, index) => sum * (leading[index]?.numbers.length ?? 1) + place, 0) * rows * columns;
  const parts = useMemo(() => [values, exact, spread].map((all) => all?.slice(first, first + rows * columns)), [packet, first]);
  const ofSpread = spread !== null && view["effects.map"] === "spread";
  const largest = Math.max(...[values, exact ?? values].map(farthest)) || 1;
  const several = about.pairs.length > 1;
  const noun = about.verb === "ablate" ? "text" : "pair";
  const step = (by: number) => {
    const to = Number(view["effects.pair"] ?? -1) + by; // which may still be on its way
    change({ "effects.pair": to < 0 || to >= about.pairs.length ? null : to });
  };
  useKeys([
    { keys: [","], does: "previous pair of an intervention, or the mean", run: () => several && step(-1) },
    { keys: ["."], does: "next pair of an intervention, or the mean", run: () => several && step(1) },
  ]);
  const selected = (view["effects.cell"] ?? "").split(",").map(Number);
  const [row = NaN, column = NaN] = selected;
  const cell = row < rows && column < columns ? ([row, column] as const) : null;
  const rowLabels = rowAxis ? labelsOf(rowAxis) : [about.kind];
  const columnLabels = columnAxis ? labelsOf(columnAxis) : [""];
  const select = (row: number, column: number) =>
    change({ "effects.cell": `${row},${column}`, ...linked(rowAxis, row), ...linked(columnAxis, column) });
  const describe = (array: Float32Array, what: string) => (row: number, column: number) => {
    const place = first + row * columns + column;
    const value = array[place] ?? NaN;
    const where = `${rowLabels[row]} × ${columnLabels[column]}`;
    if (Number.isNaN(value)) return `${where}: ${what === "exact" ? "not measured" : `no ${noun} has it`}`;
    const around = !several || !spread || !counts || what === "exact" ? "" : ` ± ${number(spread[place])} over ${counted(counts[place] ?? 0, noun)}`;
    return `${where}: ${what} ${shown(value)}${what === "spread" ? "" : around}`;
  };
  const picture = (array: Float32Array, what: string, part: Float32Array | undefined) => (
    <figure>
      {(exact || ofSpread) && <figcaption>{what}</figcaption>}
      <Heatmap
        label={`${what} of ${title(about)}: ${rowAxis?.name ?? "one row"} by ${columnAxis?.name}`}
        values={part ?? null}
        {...{ rows, columns, rowLabels, columnLabels }}
        range={what === "spread" ? [0, farthest(array) || 1] : [-largest, largest]}
        palette={what === "spread" ? "sequential" : "diverging"}
        selected={cell}
        onSelect={select}
        describe={describe(array, what)}
        tall={Math.min(420, 44 * rows + 40)}
      />
    </figure>
  );
  const of = pair === null ? null : about.pairs[pair];
  return (
    <Chart
      title={title(about)}
      field="effects.table"
      tools={
        <>
          {choose}
          {several && (
            <div class="stepper" role="group" aria-label={`Which ${noun}`}>
              <button type="button" aria-label={`Previous ${noun}`} title={`Previous ${noun} (,)`} onClick={() => step(-1)}>
                ‹
              </button>
              <select
                aria-label={`Which ${noun}`}
                value={pair ?? "mean"}
                onChange={({ currentTarget: { value } }) => change({ "effects.pair": value === "mean" ? null : value })}
              >
                <option value="mean">{`mean over ${about.pairs.length} ${noun}s`}</option>
                {about.pairs.map(({ name }, index) => (
                  <option key={index} value={index}>
                    {index + 1} of {about.pairs.length}: {name}
                  </option>
                ))}
              </select>
              <button type="button" aria-label={`Next ${noun}`} title={`Next ${noun} (.)`} onClick={() => step(1)}>
                ›
              </button>
            </div>
          )}
          {leading.map((axis, index) => (
            <label key={axis.name} class="choice">
              {axis.name}{" "}
              <select
                value={places[index]}
                onChange={(event) =>
                  change({ "effects.at": places.map((place, own) => (own === index ? event.currentTarget.value : place)).join(",") })
                }
              >
                {labelsOf(axis).map((text, own) => (
                  <option key={own} value={own}>
                    {text}
                  </option>
                ))}
              </select>
            </label>
          ))}
          {several && spread && (
            <label class="choice">
              show{" "}
              <select
                value={ofSpread ? "spread" : "effect"}
                onChange={(event) => change({ "effects.map": event.currentTarget.value === "spread" ? "spread" : null })}
              >
                <option value="effect">{about.kind}</option>
                <option value="spread">spread over {noun}s</option>
              </select>
            </label>
          )}
        </>
      }
      code={{
        python: ["import traceformer as tf", "", `effects = tf.open_effects(${pythonText(name)})`, `effects${pair === null ? "" : `.pair(${pair})`}.values`].join(
          "\n",
        ),
      }}
      sheet={() => sheetOf(about, packet, noun)}
    >
      <div class={busy ? "pictures busy" : "pictures"}>
        {ofSpread && spread ? picture(spread, "spread", parts[2]) : picture(values, about.kind, parts[0])}
        {exact && !ofSpread && picture(exact, "exact", parts[1])}
      </div>
      <ColourBar
        label={ofSpread ? `standard deviation over ${noun}s` : about.kind}
        range={ofSpread ? [0, farthest(spread ?? values) || 1] : [-largest, largest]}
        palette={ofSpread ? "sequential" : "diverging"}
      />
      <p class="range">
        {meaning(about)}{" "}
        {about.agreement && agreed(about.agreement, values.length)}
        {of && ` Metric of ${noun} ${of.name}: ${about.verb === "ablate" ? "untouched" : "clean"} ${shown(of.clean)}${of.corrupt === null ? "" : `, corrupt ${shown(of.corrupt)}`}.`}
      </p>
      <p class="range">
        {about.model}; {about.metric.replaceAll("_", " ")}
        {about.position === null ? "" : ` at position ${about.position}`}; {about.way}
        {about.compared > 0 && `; ${counted(about.compared, "cell")} compared with whole passes, largest difference ${shown(about.error)}`}.
      </p>
    </Chart>
  );
}

function title({ verb, how, sites }: EffectAbout): string {
  const done = { patch: "Patching", ablate: "Ablating" }[verb];
  return `${done} ${sites.map((site) => site.replace(/^.*\./, "")).join(" + ")} (${how})`;
}

function meaning({ verb }: EffectAbout): string {
  return verb === "patch"
    ? "0 leaves the metric where the corrupt text has it, 1 has it where the clean one has it."
    : "The metric with the ablation less the metric without.";
}

function agreed({ measured, spearman, worst }: NonNullable<EffectAbout["agreement"]>, cells: number): string {
  const rank = spearman === null ? "" : `, rank agreement ${shown(spearman)}`;
  return `${measured} of ${cells} cells were measured as well${rank}${worst === null ? "" : `, worst error ${shown(worst)}`}.`;
}

function labelsOf({ name, numbers, labels }: EffectAxis): string[] {
  const ofTokens = ["position", "query", "key"].includes(name);
  return numbers.map((own, index) => (ofTokens ? `${labels[index] ?? ""} ${own}`.trim() : labels[index] || `${own}`));
}

/** What of a cell other screens know as well. */
function linked(axis: EffectAxis | undefined, index: number): Record<string, number> {
  const number = axis?.numbers[index];
  return number !== undefined && (axis?.name === "layer" || axis?.name === "head") ? { [axis.name]: number } : {};
}

function farthest(values: Float32Array): number {
  return values.reduce((most, value) => (Number.isFinite(value) ? Math.max(most, Math.abs(value)) : most), 0);
}

function number(value: number | undefined): string {
  return value === undefined || Number.isNaN(value) ? "unknown" : shown(value);
}

function sheetOf(about: EffectAbout, packet: Packet, noun: string) {
  const { axes } = about;
  const arrays = ["values", "exact", "spread", "pairs"].flatMap((array) => {
    const found = packet.arrays[array];
    return found ? [[array, found] as const] : [];
  });
  const cells = axes.reduce((count, { numbers }) => count * numbers.length, 1);
  const name = (array: string) => (array === "values" ? about.kind : array === "pairs" ? `${noun}s` : array);
  const rows = Array.from({ length: cells }, (_, cell) => {
    let left = cell;
    const place = axes.map(() => 0);
    for (let index = axes.length - 1; index >= 0; index--) {
      const length = axes[index]?.numbers.length ?? 1;
      place[index] = left % length;
      left = Math.floor(left / length);
    }
    const numbers = arrays.map(([, { data }]) => (Number.isNaN(data[cell]) ? "" : (data[cell] as number)));
    return [...axes.map((axis, index) => labelsOf(axis)[place[index] ?? 0] ?? ""), ...numbers];
  });
  return { caption: `${title(about)}, ${about.metric}`, columns: [...axes.map(({ name }) => name), ...arrays.map(([array]) => name(array))], rows };
}
