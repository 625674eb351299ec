import { type Head, nameOf, type Place, spoken } from "../heads";
import { shown } from "../numbers";
import type { MetricAbout } from "../payload";
import { addressOf, useView } from "../view";

interface Props {
  /** The head that is selected or pointed at. */
  head: Place | Head | null;
  metrics: MetricAbout[];
  /** Metrics that are marked, such as those of a chart's axes. */
  marked?: string[];
  /** What the numbers are of, or why there are none. */
  children?: preact.ComponentChildren;
}

/** A head with all its metrics, and the way to its own screen. */
export function HeadCard({ head, metrics, marked = [], children }: Props) {
  const [view] = useView();
  const values = head && "values" in head ? head.values : null;
  return (
    <aside class="headcard" aria-label="Head">
      <h3>{head ? `${head.attention} ${nameOf(head)}` : "No head is selected"}</h3>
      {head && (
        <a href={addressOf(view, { screen: "head", attn: head.attention, layer: head.layer, head: head.head })}>Open {nameOf(head)}</a>
      )}
      {values && (
        <dl>
          {metrics.map((metric) => (
            <div key={metric.name} class={marked.includes(metric.name) ? "marked" : undefined} title={metric.meaning}>
              <dt>{spoken(metric)}</dt>
              <dd>
                {written(values[metric.name])} {metric.unit && <small>{metric.unit}</small>}
              </dd>
            </div>
          ))}
        </dl>
      )}
      <p class="quiet">{children}</p>
    </aside>
  );
}

/** Returns a metric as text; a dash where it has no meaning. */
export function written(value: number | undefined): string {
  return value === undefined || Number.isNaN(value) ? "–" : shown(value);
}

/** Returns a metric in a table: all digits of a float32. */
export function digits(value: number | undefined): number | string {
  return value === undefined || Number.isNaN(value) ? "" : Number(value.toPrecision(7));
}
