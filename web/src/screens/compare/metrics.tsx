import { type Head, headsOf, spoken } from "../../heads";
import { shown } from "../../numbers";
import type { HeadQuery } from "../../patterns/pattern";
import type { MetricAbout } from "../../payload";
import { type Loaded, usePacket } from "../../resource";
import type { Packet } from "../../packet";
import { Chart } from "../../ui/chart";
import { Loading } from "../../ui/states";
import { Table } from "../../ui/table";

interface Row {
  metric: MetricAbout;
  a: number;
  b: number;
}

/** The metrics of both heads in their texts, and what they differ by; of a pattern that is not measured nothing. */
export function Metrics({ a, b }: { a: HeadQuery; b: HeadQuery }) {
  const [first, second] = [usePacket("heads", { run: a.run, ex: a.ex }), usePacket("heads", { run: b.run, ex: b.ex })];
  if (first.state === "failed" || second.state === "failed") return null;
  const [mine, other] = [headIn(first, a), headIn(second, b)];
  if (!mine || !other || first.state !== "ready") {
    const at = [first, second].find(({ state }) => state === "loading");
    return at?.state === "loading" ? <Loading {...(at.of ? { done: at.done ?? 0, of: at.of } : {})} /> : null;
  }
  const rows: Row[] = headsOf(first.value).about.metrics.flatMap((metric) => {
    const [ours, theirs] = [mine.values[metric.name], other.values[metric.name]];
    return ours === undefined || theirs === undefined ? [] : [{ metric, a: ours, b: theirs }];
  });
  const title = "Metrics of the head in both texts";
  const names = [`A: L${a.layer}H${a.head}`, `B: L${b.layer}H${b.head}`];
  return (
    <Chart
      title={title}
      field="tableM"
      code={{
        python: `import traceformer as tf\n\nfirst = tf.heads(tf.open_run(${JSON.stringify(a.run)}), examples=[${a.ex}]).to_frame()\nsecond = tf.heads(tf.open_run(${JSON.stringify(b.run)}), examples=[${b.ex}]).to_frame()`,
      }}
      sheet={() => ({
        caption: title,
        columns: ["metric", ...names, "A − B"],
        rows: rows.map(({ metric, a: ours, b: theirs }) => [spoken(metric), ours, theirs, ours - theirs]),
      })}
    >
      <Table<Row>
        caption="A row is a metric of this one example; the heading of a column sorts it."
        rows={rows}
        columns={[
          { title: "metric", value: ({ metric }) => spoken(metric), cell: ({ metric }) => <span title={metric.meaning}>{spoken(metric)}</span> },
          { title: names[0] ?? "", value: (row) => row.a, cell: (row) => written(row.a), numeric: true },
          { title: names[1] ?? "", value: (row) => row.b, cell: (row) => written(row.b), numeric: true },
          { title: "A − B", value: (row) => Math.abs(row.a - row.b), cell: (row) => written(row.a - row.b), numeric: true },
          { title: "unit", value: ({ metric }) => metric.unit, cell: ({ metric }) => metric.unit },
        ]}
      />
    </Chart>
  );
}

function headIn(loaded: Loaded<Packet>, { attn, layer, head }: HeadQuery): Head | undefined {
  if (loaded.state !== "ready") return undefined;
  return headsOf(loaded.value).heads.find((each) => each.attention === attn && each.layer === layer && each.head === head);
}

function written(value: number): string {
  return Number.isNaN(value) ? "no meaning here" : shown(value);
}
