/** What can be asked of a trace: who goes where, and what it is called. */

import type { PathsPayload, Token, Trace, TraceNode } from "../payload";

/** What is selected; the whole paths through it are lit. */
export interface Pick {
  kind: "node" | "link" | "beam";
  index: number;
}

export function tokenOf(payload: PathsPayload, trace: Trace, node: number): Token {
  const { position, source } = at(trace.nodes, node);
  return at(source && payload.source_tokens ? payload.source_tokens : payload.tokens, position);
}

/** Returns a node's name: its token and position, and its column where the same position stands in several. */
export function nodeName(payload: PathsPayload, trace: Trace, node: number): string {
  const { position, source, column } = at(trace.nodes, node);
  const where = source ? " (source)" : column === null ? "" : `, ${at(trace.columns, column)}`;
  return `${tokenOf(payload, trace, node).text} ${position}${where}`;
}

/** Returns the layer whose attention leads from a node to what it looked at; -1 for what enters the first layer. */
export function layerOf(trace: Trace, node: number): number {
  return trace.layer ?? (at(trace.nodes, node).column ?? 0) - 1;
}

/** A stop of a path, and by which layer the path came there, where it runs across layers. */
interface Stop {
  node: number;
  layer: string;
}

/** Returns a path's stops in the text's order, without those where it only stays where it is for another layer. */
export function placesOf(trace: Trace, beam: number): Stop[] {
  const stops: Stop[] = [];
  let last: TraceNode | null = null;
  for (const node of at(trace.beams, beam).nodes.toReversed()) {
    const here = at(trace.nodes, node);
    if (last === null || here.position !== last.position || here.source !== last.source) {
      const title = here.column === null ? "" : at(trace.columns, here.column);
      stops.push({ node, layer: last && /^L\d+$/.test(title) ? title : "" });
    }
    last = here;
  }
  return stops;
}

export function linkName(payload: PathsPayload, trace: Trace, link: number): string {
  const { source, target } = at(trace.links, link);
  return `${nodeName(payload, trace, target)} looks at ${nodeName(payload, trace, source)}`;
}

/** Returns A, B ... Z, AA, AB ... */
export function letter(beam: number): string {
  const last = String.fromCharCode(65 + (beam % 26));
  return beam < 26 ? last : letter(Math.floor(beam / 26) - 1) + last;
}

export function letters(beams: Iterable<number>): string {
  return [...beams].map(letter).join(", ");
}

/** What runs through a node: the beams that visit it, and the links that have it as their source, as their target. */
interface Crossing {
  beams: number[];
  source: number[];
  target: number[];
}

const crossings = new WeakMap<Trace, Crossing[]>();

/** Returns each node's crossing, worked out once for each trace. */
export function crossingsOf(trace: Trace): Crossing[] {
  const known = crossings.get(trace);
  if (known) return known;
  const found = trace.nodes.map((): Crossing => ({ beams: [], source: [], target: [] }));
  trace.beams.forEach(({ nodes }, beam) => nodes.forEach((node) => at(found, node).beams.push(beam)));
  trace.links.forEach(({ source, target }, link) => {
    at(found, source).source.push(link);
    at(found, target).target.push(link);
  });
  crossings.set(trace, found);
  return found;
}

/** Returns the beams that run through what is picked, whose whole paths are thereby meant. */
export function beamsThrough(trace: Trace, pick: Pick): ReadonlySet<number> {
  if (pick.kind === "beam") return new Set([pick.index]);
  if (pick.kind === "link") return new Set(at(trace.links, pick.index).lanes.map(({ beam }) => beam));
  return new Set(at(crossingsOf(trace), pick.index).beams);
}

/** Returns the nodes that some beams visit; the target is always one of them, whatever the beams. */
export function nodesOf(trace: Trace, beams: Iterable<number>): ReadonlySet<number> {
  return new Set([trace.target, ...[...beams].flatMap((beam) => at(trace.beams, beam).nodes)]);
}

/** Returns the links into a node (what it looks at) or out of it (what looks at it), strongest first. */
export function linksOf(trace: Trace, node: number, end: "source" | "target"): number[] {
  return at(crossingsOf(trace), node)[end].toSorted((a, b) => attentionOf(trace, b) - attentionOf(trace, a));
}

/** Returns the weight of a link's edge: one number for all beams, unless they chose heads for themselves. */
export function attentionOf(trace: Trace, link: number): number {
  return Math.max(...at(trace.links, link).lanes.map(({ attention }) => attention));
}

/** Returns the nodes that a search means: by a part of their token, by their position, or by their column's title. */
export function nodesFound(payload: PathsPayload, trace: Trace, query: string): number[] {
  const matches = matcher(query);
  if (!matches) return [];
  const isColumn = (column: number | null) =>
    column !== null && at(trace.columns, column).toLowerCase() === query.toLowerCase();
  return trace.nodes.flatMap(({ position, column }, node) =>
    isColumn(column) || matches(tokenOf(payload, trace, node), position) ? [node] : [],
  );
}

/** Returns the beams that a search means: through the nodes it finds, or along edges of a head (`H3`, `L5H3`). */
export function beamsFound(payload: PathsPayload, trace: Trace, query: string): ReadonlySet<number> {
  const [, layer, head] = /^(L\d+)?H(\d+)$/i.exec(query) ?? [];
  const alongHead = trace.links.flatMap(({ target, lanes }) => {
    const column = at(trace.nodes, target).column;
    const here = !layer || column === null || at(trace.columns, column) === layer.toUpperCase();
    return here && head ? lanes.filter((lane) => lane.head === Number(head)).map(({ beam }) => beam) : [];
  });
  const nodes = nodesFound(payload, trace, query);
  return new Set([...alongHead, ...nodes.flatMap((index) => [...beamsThrough(trace, { kind: "node", index })])]);
}

/** Returns what tells whether a token is searched for, or null where nothing is. */
export function matcher(query: string): ((token: Token, position: number) => boolean) | null {
  const needle = query.toLowerCase().replaceAll(" ", "·");
  if (!needle) return null;
  const number = /^\d+$/.test(query) ? Number(query) : null;
  return (token, position) => position === number || token.text.toLowerCase().includes(needle);
}

export function writePick(pick: Pick | null): string | null {
  return pick && `${pick.kind}${pick.index}`;
}

export function readPick(trace: Trace, text: string | undefined): Pick | null {
  const match = /^(node|link|beam)(\d+)$/.exec(text ?? "");
  if (!match) return null;
  const kind = match[1] as Pick["kind"];
  const count = { node: trace.nodes, link: trace.links, beam: trace.beams }[kind].length;
  return Number(match[2]) < count ? { kind, index: Number(match[2]) } : null;
}

/** Returns an element that the payload promises. */
export function at<T>(items: readonly T[], index: number): T {
  const item = items[index];
  if (item === undefined) throw new RangeError(`no element ${index} of ${items.length}`);
  return item;
}
