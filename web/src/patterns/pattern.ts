/** The pattern of a head as it comes from its source: small, then whole, and exact rows of it. */

import { useEffect, useRef, useState } from "preact/hooks";
import { floats, type Packet, pixels, readPacket } from "../packet";
import type { AttentionAbout, PatternAbout, RunAbout } from "../payload";
import { type Loaded, usePacket, useSource } from "../resource";
import type { Query, Source } from "../source";

/** Names one head's pattern of one example. */
export interface HeadQuery extends Record<string, string | number> {
  run: string;
  ex: string | number;
  attn: string;
  layer: number;
  head: number;
}

export interface Pattern {
  rows: number;
  columns: number;
  /** One of the two. */
  values: Float32Array | null;
  pixels: Uint8Array | null;
  /** Whether `values` are what 256 steps of their square roots tell. */
  rounded: boolean;
  block: number;
  largest: number;
  stored: string;
}

const EXACT_CELLS = 512 * 512; // up to which numbers themselves are sent, as in resources/patterns.py

/** Returns a pattern: of a long text first a small picture of it. */
export function usePattern(query: HeadQuery, rows: number, columns: number): Loaded<Pattern> {
  const { live } = useSource();
  const long = live && rows * columns > EXACT_CELLS;
  const small = usePacket("matrix", long ? { ...query, form: "small" } : null);
  const whole = usePacket("matrix", long && small.state === "loading" ? null : live ? query : { ...query, form: "pixels" });
  const best = whole.state === "loading" ? small : whole;
  return best.state === "ready" ? { state: "ready", value: patternOf(best.value, live) } : best;
}

const read = new WeakMap<Packet, Pattern>();

function patternOf(packet: Packet, live: boolean): Pattern {
  const about = packet.about as unknown as PatternAbout;
  const bytes = packet.arrays["pixels"] ? pixels(packet, "pixels") : null;
  // A page that carries its data has nothing finer to ask for.
  const rounded = bytes && !live ? Float32Array.from(bytes, (byte) => about.largest * (byte / 255) ** 2) : null;
  const pattern = read.get(packet) ?? {
    rows: about.queries,
    columns: about.keys,
    values: packet.arrays["values"] ? floats(packet, "values") : rounded,
    pixels: rounded ? null : bytes,
    rounded: rounded !== null,
    block: about.block,
    largest: about.largest,
    stored: about.stored ?? "",
  };
  read.set(packet, pattern);
  return pattern;
}

/** Returns the exact weights of a query, or of a key (`column`); null until they are there. */
export function useWeights(query: HeadQuery, pattern: Pattern | null, of: "row" | "column", position: number | null): Float32Array | null {
  const values = pattern?.values ?? null;
  const wanted = pattern && !values && position !== null;
  const asked = usePacket("row", wanted ? { ...query, [of === "row" ? "q" : "k"]: position } : null);
  if (!pattern || position === null) return null;
  if (values) return of === "row" ? values.subarray(position * pattern.columns, (position + 1) * pattern.columns) : columnOf(values, pattern, position);
  return asked.state === "ready" ? floats(asked.value, of) : null;
}

function columnOf(values: Float32Array, { rows, columns }: Pattern, position: number): Float32Array {
  return Float32Array.from({ length: rows }, (_, row) => values[row * columns + position] ?? NaN);
}

/**
 * Returns what tells the exact weight of a cell, or null while that is not there; of rows that it is asked for, the
 * latest is fetched, one at a time.
 */
export function useExact(query: HeadQuery, pattern: Pattern | null): (row: number, column: number) => number | null {
  const source = useSource();
  const key = JSON.stringify(query);
  const rows = useRef({ key, known: new Map<number, Float32Array>(), wanted: -1, busy: false });
  const [, setTold] = useState(0);
  if (rows.current.key !== key) rows.current = { key, known: new Map(), wanted: -1, busy: false };
  const fetchWanted = async (state: typeof rows.current) => {
    state.busy = true;
    while (state.wanted >= 0 && !state.known.has(state.wanted)) {
      const row = state.wanted;
      const bytes = await source.bytes("row", { ...query, q: row }).catch(() => null);
      if (!bytes) break;
      state.known.set(row, floats(readPacket(bytes), "row"));
    }
    state.busy = false;
    setTold((times) => times + 1);
  };
  return (row, column) => {
    if (!pattern) return null;
    if (pattern.values) return pattern.values[row * pattern.columns + column] ?? null;
    const state = rows.current;
    state.wanted = row;
    if (!state.known.has(row) && !state.busy) void fetchWanted(state);
    return state.known.get(row)?.[column] ?? null;
  };
}

/** Returns the number next to one among those there are, from the last to the first. */
export function stepped(numbers: readonly number[], from: number, by: number): number {
  return numbers[(numbers.indexOf(from) + by + numbers.length) % numbers.length] ?? from;
}

/** Fetches the heads around one, so that they are there when they are asked for. */
export function useNeighbours(query: HeadQuery, { layers, heads }: AttentionAbout, pattern: Pattern | null): void {
  const source = useSource();
  const [sharp, long] = [pattern?.block === 1, pattern !== null && !pattern.values];
  useEffect(() => {
    if (!sharp || !source.live) return;
    let wanted = true;
    void (async () => {
      const beside = [1, -1].map((by) => ({ ...query, head: stepped(heads, query.head, by) }));
      const above = [1, -1].map((by) => ({ ...query, layer: stepped(layers, query.layer, by) }));
      const small = long ? [...beside, ...above].map((each): Query => ({ ...each, form: "small" })) : [];
      for (const each of [...small, ...(long ? beside : [...beside, ...above])]) if (wanted) await fetched(source, each);
    })();
    return () => {
      wanted = false;
    };
  }, [JSON.stringify(query), sharp]);
}

function fetched(source: Source, query: Query): Promise<unknown> {
  return source.bytes("matrix", query).catch(() => null); // it is asked for again when it is wanted
}

/** Returns the attention that a name means; the first otherwise. */
export function attentionOf(run: RunAbout, name: string | undefined): AttentionAbout | undefined {
  return run.attentions.find((each) => each.name === name) ?? run.attentions[0];
}

/** Returns a number of the address where it is among those there are, otherwise the first of these. */
export function numberAmong(text: string | undefined, numbers: readonly number[]): number {
  const number = Number(text ?? NaN);
  return numbers.includes(number) ? number : (numbers[0] ?? 0);
}
