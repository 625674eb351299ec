/** The heads of a run with their metrics. */

import { floats, type Packet } from "./packet";
import type { HeadsAbout, MetricAbout, RunAbout } from "./payload";
import type { View } from "./view";

/** A head by the model's own numbers. */
export interface Place {
  attention: string;
  layer: number;
  head: number;
}

export interface Head extends Place {
  /** `L5H3`. */
  name: string;
  /** By the metrics' names; NaN where one has no meaning. */
  values: Record<string, number>;
}

export interface Measured {
  about: HeadsAbout;
  heads: Head[];
}

export function nameOf({ layer, head }: Place): string {
  return `L${layer}H${head}`;
}

/** Returns all heads of the answer of `heads`. */
export function headsOf(packet: Packet): Measured {
  const about = packet.about as unknown as HeadsAbout;
  const whole = (name: string) => packet.arrays[name]?.data ?? [];
  const [attentions, layers, numbers] = [whole("attention"), whole("layer"), whole("head")];
  const columns = about.metrics.map(({ name }) => [name, floats(packet, name)] as const);
  const heads = Array.from(layers, (layer, row) => {
    const place = { attention: about.attentions[attentions[row] ?? 0] ?? "", layer, head: numbers[row] ?? 0 };
    const values = Object.fromEntries(columns.map(([name, column]) => [name, column[row] ?? Number.NaN]));
    return { ...place, name: nameOf(place), values };
  });
  return { about, heads };
}

/** Returns the metric that is meant by its name, or by a part of it: `sparsity`. */
export function metricNamed(metrics: MetricAbout[], text: string | undefined): MetricAbout | undefined {
  const wanted = text?.trim().toLowerCase().replaceAll(" ", "_");
  if (!wanted) return undefined;
  return metrics.find(({ name }) => name === wanted) ?? metrics.find(({ name }) => name.startsWith(wanted)) ?? metrics.find(({ name }) => name.includes(wanted));
}

/** Returns a metric's name as it is read. */
export function spoken({ name }: MetricAbout): string {
  return name.replace(/_(\d.*)$/, " below $1").replaceAll("_", " ");
}

/** Returns the attention that the address names, or the first one that was recorded. */
export function attentionOf(run: RunAbout, view: View): string | undefined {
  return (run.attentions.find(({ name }) => name === view.attn) ?? run.attentions[0])?.name;
}

/** Returns the head that the address names, if it is one of these. */
export function selectedOf<Any extends Place>(heads: Any[], run: RunAbout, view: View): Any | undefined {
  const attention = attentionOf(run, view);
  return heads.find((head) => head.attention === attention && `${head.layer}` === view.layer && `${head.head}` === view.head);
}
