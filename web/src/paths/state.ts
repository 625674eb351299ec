/** What is selected, drawn, lit and found of a trace: kept in the page's address, but for what is pointed at. */

import type { RefObject } from "preact";
import { useMemo, useRef, useState } from "preact/hooks";
import type { Binding } from "../keyboard";
import type { PathsPayload, Trace } from "../payload";
import type { Change, View } from "../view";
import { at, beamsFound, beamsThrough, letter, nodesFound, type Pick, readPick, writePick } from "./model";

export interface PathsState {
  payload: PathsPayload;
  trace: Trace;
  /** Which trace it is of several. */
  index: number;
  visible: ReadonlySet<number>;
  lit: ReadonlySet<number> | null;
  pick: Pick | null;
  query: string;
  found: number[];
  foundSet: ReadonlySet<number>;
  /** The beams through what was found. */
  meant: ReadonlySet<number>;
  zoom: string | undefined;
  /** Whether fewer are drawn than were found, since they would be too many. */
  cut: boolean;
  main: RefObject<HTMLDivElement | null>;
  search: RefObject<HTMLInputElement | null>;
  change: Change;
  onPick: (pick: Pick | null) => void;
  onHover: (pick: Pick | null) => void;
  show: (beams: Iterable<number>) => void;
  findNext: (by: number) => void;
}

const MOST_LANES = 2000; // drawn without being asked for more

/** Returns the state of a trace from its fields of the address, and what changes it. */
export function usePaths(payload: PathsPayload, view: View, change: Change): PathsState {
  const index = Math.max(0, Math.min(Number(view["trace"] ?? 0) || 0, payload.traces.length - 1));
  const trace = at(payload.traces, index);
  const visible = useMemo(() => visibleBeams(trace, view["beams"]), [trace, view["beams"]]);
  const pick = useMemo(() => readPick(trace, view["pick"]), [trace, view["pick"]]);
  const [hover, setHover] = useState<Pick | null>(null);
  const query = view["find"] ?? "";
  const found = useMemo(() => nodesFound(payload, trace, query), [payload, trace, query]);
  const foundSet = useMemo(() => new Set(found), [found]);
  const meant = useMemo(() => beamsFound(payload, trace, query), [payload, trace, query]);
  const lit = useMemo(() => {
    const one = hover ?? pick;
    return one && beamsThrough(trace, one);
  }, [trace, hover?.kind, hover?.index, pick]);
  const onPick = (next: Pick | null) => change({ pick: writePick(next) });
  return {
    payload,
    trace,
    index,
    visible,
    lit,
    pick,
    query,
    found,
    foundSet,
    meant,
    zoom: view["zoom"],
    cut: !view["beams"] && visible.size < trace.beams.length,
    main: useRef<HTMLDivElement>(null),
    search: useRef<HTMLInputElement>(null),
    change,
    onPick,
    onHover: (next) => setHover((old) => (same(old, next) ? old : next)),
    show: (beams) => change({ beams: writeBeams(trace, beams) }),
    findNext: (by) => {
      const from = pick?.kind === "node" ? found.indexOf(pick.index) : -1;
      const next = found[(from + by + found.length) % found.length];
      if (next !== undefined) onPick({ kind: "node", index: next });
    },
  };
}

/** Returns the keys of a trace; those of its search and of its filter differ where a page has others for these. */
export function keysOf(state: PathsState, keys: { find: string; only: string }, toggle: () => void): Binding[] {
  const { trace, pick, query, meant, change, onPick, show, findNext, search, main } = state;
  const step = (by: number) => {
    const count = trace.beams.length;
    const from = pick?.kind === "beam" ? pick.index : by > 0 ? -1 : count;
    if (count) onPick({ kind: "beam", index: (from + by + count) % count });
  };
  const only = () => {
    const beams = pick ? beamsThrough(trace, pick) : meant;
    if (beams.size) show(beams);
  };
  const clear = () => {
    if (document.activeElement === search.current) search.current?.blur();
    else if (pick) onPick(null);
    else if (query) change({ find: null });
    else change({ beams: null });
  };
  return [
    { keys: ["g"], does: "go to the diagram", run: () => main.current?.querySelector<SVGGElement>(".node[tabindex='0']")?.focus() },
    { keys: ["ArrowLeft", "ArrowRight"], does: "in the diagram: along the strongest edge, backward and forward" },
    { keys: ["ArrowUp", "ArrowDown"], does: "in the diagram: the next token above or below" },
    { keys: ["Enter", " "], does: "select: the whole paths through it are lit" },
    { keys: ["Escape"], does: "leave the search field; clear the selection, the search, the filter", run: clear },
    { keys: ["j", "k"], does: "next and previous path", run: (key) => step(key === "j" ? 1 : -1) },
    { keys: ["0"], does: "draw all paths", run: () => change({ beams: null }) },
    { keys: [keys.only], does: "draw only the paths selected, or found", run: only },
    { keys: [keys.find], does: "find by token, position, layer (L5) or head (L5H3)", run: () => search.current?.select() },
    { keys: ["n", "p"], does: "next and previous token found", run: (key) => findNext(key === "n" ? 1 : -1) },
    { keys: ["Shift + arrows"], does: "in the diagram: pan" },
    { keys: ["t"], does: "diagram or tables", run: toggle },
  ];
}

function same(a: Pick | null, b: Pick | null): boolean {
  return a?.kind === b?.kind && a?.index === b?.index;
}

/** Returns the beams that are drawn: those the address names, or all, or as many as can be drawn quickly. */
function visibleBeams(trace: Trace, named: string | undefined): ReadonlySet<number> {
  if (named) {
    const wanted = new Set(named.split(","));
    return new Set([...trace.beams.keys()].filter((beam) => wanted.has(letter(beam))));
  }
  let lanes = 0;
  return new Set(
    [...trace.beams.keys()].filter((beam) => (lanes += at(trace.beams, beam).attentions.length) <= MOST_LANES),
  );
}

function writeBeams(trace: Trace, beams: Iterable<number>): string | null {
  const drawn = [...beams].map(letter);
  if (drawn.length === trace.beams.length) return null;
  return drawn.join(",") || "none";
}
