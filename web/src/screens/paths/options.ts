/** What can be chosen of a search, where it stands in the page's address, and how it is written down elsewhere. */

import type { AttentionAbout, RunAbout } from "../../payload";
import type { Query } from "../../source";
import type { Code } from "../../ui/chart";
import { pythonText, shellWord } from "../../ui/code";
import type { View } from "../../view";

/** The fields of `PathOptions` that the controls change, and their defaults there. */
export const DEFAULTS = {
  top_beam: "5",
  top_k: "5",
  min_attn: "0",
  agg_heads: "mean",
  weighting: "attention",
  search: "beam",
  length_norm: "avg_logprob",
  exclude_self: "0",
  exclude_sink: "0",
  stop_at_bos: "1",
} as const;

export type Option = keyof typeof DEFAULTS;
export const OPTIONS = Object.keys(DEFAULTS) as Option[];

/** A search: which token, through which layers of which attention, and how. */
export interface Asked {
  attention: AttentionAbout;
  /** Another attention of the same stack, which looks into another text. */
  cross: AttentionAbout | null;
  target: number;
  layer: number | "all";
  options: Record<Option, string>;
}

export const field = (name: string) => `paths.${name}`;

/** Returns the search that the page's state means; null where no attention is stored. */
export function askedIn(view: View, run: RunAbout, tokens: (attention: AttentionAbout) => number): Asked | null {
  const meant = run.attentions.find(({ name }) => name === view.attn) ?? run.attentions.find(({ stack }) => stack === "dec") ?? run.attentions[0];
  if (!meant) return null;
  const ofStack = run.attentions.filter(({ stack }) => stack === meant.stack);
  const attention = ofStack.find(({ stack, key_stack }) => stack === key_stack) ?? meant;
  const cross = ofStack.find(({ stack, key_stack }) => stack !== key_stack) ?? null;
  const named = view[field("layer")];
  const numbers = attention.layers;
  const layer = named === undefined ? (acrossAll(attention, cross) ? "all" : (numbers.at(-1) ?? 0)) : named === "all" ? "all" : Number(named);
  const options = Object.fromEntries(OPTIONS.map((name) => [name, view[field(name)] ?? DEFAULTS[name]])) as Record<Option, string>;
  return { attention, cross, target: view.q === undefined ? tokens(attention) - 1 : Number(view.q), layer, options };
}

/** Returns whether paths can lead across layers: all of them are stored, and none leads into another text. */
export function acrossAll({ layers, n_layers, without }: AttentionAbout, cross: AttentionAbout | null): boolean {
  return cross === null && layers.length + without.length === n_layers;
}

export function queryOf(asked: Asked, run: string, example: number): Query {
  return { run, ex: example, attn: asked.attention.name, q: asked.target, layer: asked.layer, ...changed(asked) };
}

/** Returns what gives the same in Python and on the command line. */
export function codeOf(asked: Asked, run: RunAbout, example: string): Code {
  const { attention, layer, target } = asked;
  const several = new Set(run.attentions.map(({ stack }) => stack)).size > 1;
  const stated = Object.entries(changed(asked));
  const python = [
    `to=${target}`,
    `layer=${layer === "all" ? '"all"' : layer}`,
    ...(several ? [`stack="${attention.stack}"`] : []),
    ...stated.map(([name, value]) => `${name}=${YES_NO.has(name) ? (value === "1" ? "True" : "False") : isNumber(value) ? value : pythonText(value)}`),
  ];
  const head = isNumber(asked.options.agg_heads) && layer !== "all";
  const flags = [
    `--target-pos ${target}`,
    head ? `--head L${layer}H${asked.options.agg_heads}` : `--layer ${layer}`,
    ...(several ? [`--stack ${attention.stack}`] : []),
    ...stated.flatMap(([name, value]) => (name === "agg_heads" && head ? [] : [flagOf(name, value)])),
  ];
  return {
    python: `import traceformer as tf\n\nrun = tf.open_run(${pythonText(run.name)})\ntf.paths(run, ${pythonText(example)}, ${python.join(", ")})`,
    shell: `traceformer paths ${shellWord(run.name)} --example ${shellWord(example)} ${flags.join(" ")} --html paths.html`,
  };
}

const YES_NO = new Set<string>(["exclude_self", "exclude_sink", "stop_at_bos"]);

function flagOf(name: string, value: string): string {
  if (name === "stop_at_bos") return "--pass-bos";
  const flag = `--${name.replaceAll("_", "-")}`;
  return YES_NO.has(name) ? flag : `${flag} ${shellWord(value)}`;
}

function isNumber(value: string): boolean {
  return /^[\d.]+$/.test(value);
}

function changed({ options }: Asked): Partial<Record<Option, string>> {
  return Object.fromEntries(OPTIONS.filter((name) => options[name] !== DEFAULTS[name]).map((name) => [name, options[name]]));
}
