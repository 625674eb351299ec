/** What `traceformer/viewer/resources` sends: the only knowledge that the two sides share. */

export type Stack = "enc" | "dec";

/** `runs`. */
export interface RunList {
  /** Where the runs lie; empty for runs that are at hand. */
  folder: string;
  runs: RunRow[];
  /** The names of folders of effects. */
  effects: string[];
}

/** Of a run that cannot be read only its name and the problem are known, and perhaps some of the rest. */
export interface RunRow {
  name: string;
  problem: string;
  model?: string | null;
  data_set?: string | null;
  kind?: string | null;
  arch?: "enc" | "dec" | "encdec";
  /** How many examples there are, and how many there will be. */
  n_examples?: number;
  /** Null where nobody knows. */
  n_expected?: number | null;
  finished?: boolean;
  /** On disk, and the same in words. */
  bytes?: number;
  size?: string;
  begun?: string | null;
}

/** `run`: what a run holds. */
export interface RunAbout {
  name: string;
  /** Another one once there is more of the run. */
  version: string;
  model: string | null;
  data_set: string | null;
  kind: string | null;
  arch: "enc" | "dec" | "encdec";
  n_examples: number;
  n_expected: number | null;
  finished: boolean;
  /** What it lacks: each a sentence without an end. */
  notices: string[];
  /** The metrics of heads: name and meaning. */
  features: Record<string, string>;
  stacks: Partial<Record<Stack, Record<string, number>>>;
  arrays: ArrayAbout[];
  attentions: AttentionAbout[];
  settings: Record<string, string | number>;
}

export interface ArrayAbout {
  key: string;
  name: string;
  meaning: string;
  layers: number[];
  heads: number[];
  width: number;
}

export interface AttentionAbout {
  /** `enc.self`, `dec.self` or `dec.cross`. */
  name: string;
  stack: Stack;
  key_stack: Stack;
  /** The layers and heads that are stored. */
  layers: number[];
  heads: number[];
  /** How many layers the model has, if that is known. */
  n_layers: number | null;
  /** The layers of the model that have no attention. */
  without: number[];
  /** Whether only keys up to the query are stored, since no query sees a later one. */
  triangle: boolean;
}

/** `examples`. */
export interface ExampleList {
  total: number;
  first: number;
  examples: ExampleRow[];
}

export interface ExampleRow {
  number: number;
  id: string;
  text: string;
  lengths: Partial<Record<Stack, number>>;
}

/** `example`. */
export interface ExampleAbout {
  number: number;
  id: string;
  text: string;
  /** Where the response begins, in the decoder, of a generation. */
  n_prompt: number | null;
  tokens: Partial<Record<Stack, Token[]>>;
}

/** What `matrix` and `difference` say of their arrays. */
export interface PatternAbout {
  queries: number;
  keys: number;
  /** Of how many cells in each direction a number or a byte is the one farthest from zero. */
  block: number;
  /** The largest weight, or the largest size of a difference; of pixels what the byte 255 stands for. */
  largest: number;
  /** What numbers are stored as, such as `float16`. */
  stored?: string;
  /** Of a difference, how many rows and columns have a counterpart. */
  aligned_queries?: number;
  aligned_keys?: number;
}

/** `alignment`: which tokens of two texts stand for each other. */
export interface AlignmentAbout {
  stacks: Partial<Record<Stack, Stretch[]>>;
}

export interface Stretch {
  first: number;
  second: number;
  size: number;
  /** Whether they are the same tokens, or others at the same place. */
  same: boolean;
}

export interface PathsPayload {
  kind: "paths";
  title: string;
  subtitle: string;
  tokens: Token[];
  /** The tokens that are looked at, where they are another text's than those that look (cross-attention). */
  source_tokens: Token[] | null;
  /** One trace, or one for each head. */
  traces: Trace[];
}

export interface Token {
  /** With spaces, line ends and stray bytes made visible. */
  text: string;
  /** What is worth knowing and not seen, such as the character that a token is a part of; or empty. */
  note: string;
}

export interface Trace {
  name: string;
  target: number;
  /** `flow`: nodes may stand anywhere; `grid`: in the column they name and in the row of their position. */
  arrangement: "flow" | "grid";
  /** Titles of the grid's columns, from the earliest; none in a flow. */
  columns: string[];
  /** The layer that was searched; null across layers, where column c is behind layer c - 1. */
  layer: number | null;
  /** The head that was searched, if it was one alone. */
  head: number | null;
  nodes: TraceNode[];
  links: Link[];
  beams: Beam[];
  settings: Setting[];
  length_norm: LengthNorm;
  /** What the weights of edges are. */
  edge: EdgeMeaning;
  /** Whether the beams are the best there are; or empty. */
  certificate: string;
  /** What share of the target each position has, by one method or several. */
  attributions: Attribution[];
}

export interface Attribution {
  name: string;
  shares: number[];
}

export interface TraceNode {
  position: number;
  /** Whether `position` counts in `source_tokens`. */
  source: boolean;
  column: number | null;
}

/** An edge that at least one beam follows: `target` looked at `source`. */
export interface Link {
  source: number;
  target: number;
  /** How thick it is drawn: the sum over its lanes of share x attention. */
  value: number;
  lanes: Lane[];
}

export interface Lane {
  beam: number;
  /** The weight of the edge itself, between 0 and 1. */
  attention: number;
  /** Whose weight it is, where beams chose heads for themselves. */
  head: number | null;
  value: number;
}

export interface Beam {
  /** From the target backward. */
  nodes: number[];
  attentions: number[];
  score_raw: number;
  score_norm: number;
  share: number;
}

export interface Setting {
  name: string;
  value: string;
}

export interface EdgeMeaning {
  /** Such as "attention". */
  name: string;
  /** How the number was made, as a sentence. */
  made: string;
}

/** Scores are divided by edges ** power. */
export interface LengthNorm {
  name: string;
  power: number;
}

/** `overview`: what there is of an example's attentions. */
export interface OverviewAbout {
  attentions: AtlasAbout[];
}

export interface AtlasAbout {
  name: string;
  queries: number;
  keys: number;
  /** Cells of a thumbnail. */
  rows: number;
  columns: number;
  /** Which heads, counted layer by layer, are asked for together: from the first to before the second number. */
  groups: [number, number][];
}

/** `predictions`, beside its arrays over positions. */
export interface PredictionsAbout {
  source: "logits" | "lens" | null;
  /** What was not recorded. */
  missing: string;
  stack?: Stack;
  /** Which token a position's prediction is about. */
  speaks_of?: "next" | "own" | "label";
  /** The layer that was read out. */
  layer?: number;
  /** The most that an entropy can be. */
  most?: number;
  /** Those that the arrays number. */
  tokens?: Token[];
}

/** `heads`, beside its arrays over heads. */
export interface HeadsAbout {
  attentions: string[];
  metrics: MetricAbout[];
  /** How many examples were read, of how many. */
  read: number;
  of: number;
  convention: string;
  window: number;
}

export interface MetricAbout {
  name: string;
  meaning: string;
  unit: string;
}

/** `clusters`, beside its arrays over the heads of one attention. */
export interface ClustersAbout {
  names: string[];
  sizes: number[];
  score: number;
  k: number;
  features: string[];
}

/** `norms`, of a packet with `norms` (layer, token). */
export interface NormsAbout {
  array: string;
  layers: number[];
  meaning: string;
}

/** `neurons`: the most active ones of a layer at a position. */
export interface Neurons {
  array: string;
  meaning: string;
  /** How many the layer has. */
  count: number;
  neurons: { neuron: number; value: number }[];
}

/**
 * `lens`, of a packet with `probability` and `token` (layer, position, rank), `entropy`, `target_probability` and
 * `target_rank` (layer, position); a token is its place in `names`.
 */
export interface LensAbout {
  array: string;
  layers: number[];
  /** Those that were read out, of `length`; `window` is the most there are in one answer. */
  positions: number[];
  length: number;
  window: number;
  names: string[];
  /** The token that came next at each of the positions. */
  targets: (string | null)[];
  has_entropy: boolean;
}

/** `directions`. */
export interface DirectionRow {
  key: string;
  name: string;
  problem: string;
}

/** `projection`, of a packet with `values` (layer, token). */
export interface ProjectionAbout {
  name: string;
  site: string;
  /** Where its file lies; null of those that were projected onto while recording. */
  file: string | null;
  method: string | null;
  /** What stood for an example when it was fitted. */
  position: string | null;
  best_layer: number | null;
  notes: string[];
  layers: (number | null)[];
  /** Of each layer, where that is known. */
  thresholds: (number | null)[];
}

/** `effects`: of what cannot be read only its name and the problem are known. */
export interface EffectsRow {
  name: string;
  problem: string;
  pairs?: number;
  verb?: "patch" | "ablate";
  model?: string;
  how?: string;
  sites?: string[];
  metric?: string;
  /** The names of the axes. */
  over?: string[];
}

/** `effect`, of a packet with `values` over the axes, and maybe `exact`, `spread` and `pairs`. */
export interface EffectAbout extends Required<Omit<EffectsRow, "name" | "problem" | "pairs">> {
  kind: "effect" | "estimate";
  /** Whose these are; null for the mean over all. */
  pair: number | null;
  axes: EffectAxis[];
  /** The metric of each pair's untouched texts. */
  pairs: { name: string; clean: number; corrupt: number | null }[];
  agreement: { measured: number; spearman: number | null; worst: number | null } | null;
  way: string;
  compared: number;
  error: number;
  position: number | null;
  align: string | null;
}

export interface EffectAxis {
  name: string;
  numbers: number[];
  /** Empty for a position whose token is not the same in all pairs. */
  labels: string[];
}

/** `attribution`, of a packet with `contributions` (part) and, of a head, `sources` (token). */
export interface AttributionAbout {
  position: number;
  to: string;
  against: string | null;
  is_likeliest: boolean;
  total: number;
  remainder: number;
  /** The largest remainder that rounding explains. */
  explained: number;
  softcap: number | null;
  sums: Record<string, number>;
  parts: LogitPart[];
  /** The head whose sources there are. */
  source: string | null;
  has_sources: boolean;
}

export interface LogitPart {
  part: string;
  kind: "embed" | "head" | "attn" | "mlp" | "bias" | "norm";
  layer: number | null;
  head: number | null;
  attention: "self" | "cross" | null;
}

