import { useMemo, useRef, useState } from "preact/hooks";
import { type Binding, useKeys } from "../keyboard";
import { counted } from "../numbers";
import type { PathsPayload, Trace } from "../payload";
import { asTheme, nextTheme } from "../theme";
import { Help } from "../ui/help";
import { useView } from "../view";
import { Beams } from "./beams";
import { Figure } from "./figure";
import { at, beamsFound, beamsThrough, letter, nodesFound, type Pick, readPick, writePick } from "./model";
import { Panel } from "./panel";
import { Strip } from "./strip";
import { Tables } from "./tables";

const MOST_LANES = 2000; // drawn without being asked for more

/** One trace: its text, its diagram or tables, its beams, and what is known of the thing selected. */
export function PathsScreen({ payload }: { payload: PathsPayload }) {
  const [hash, change] = useView();
  const theme = asTheme(hash["theme"]);
  const index = Math.min(Number(hash["trace"] ?? 0) || 0, payload.traces.length - 1);
  const trace = at(payload.traces, Math.max(index, 0));
  const visible = useMemo(() => visibleBeams(trace, hash["beams"]), [trace, hash["beams"]]);
  const pick = useMemo(() => readPick(trace, hash["pick"]), [trace, hash["pick"]]);
  const [hover, setHover] = useState<Pick | null>(null);
  const [helping, setHelping] = useState(false);
  const search = useRef<HTMLInputElement>(null);
  const main = useRef<HTMLDivElement>(null);

  const query = hash["find"] ?? "";
  const found = useMemo(() => nodesFound(payload, trace, query), [payload, trace, query]);
  const beamsMeant = useMemo(() => beamsFound(payload, trace, query), [payload, trace, query]);
  const foundSet = useMemo(() => new Set(found), [found]);
  const lit = useMemo(() => {
    const meant = hover ?? pick;
    return meant && beamsThrough(trace, meant);
  }, [trace, hover?.kind, hover?.index, pick]);
  const view = hash["view"] === "table" ? "table" : "figure";

  const onPick = (next: Pick | null) => change({ pick: writePick(next) });
  const onHover = (next: Pick | null) => setHover((old) => (same(old, next) ? old : next));
  const show = (beams: Iterable<number>) => change({ beams: writeBeams(trace, beams) });
  const step = (by: number) => {
    const count = trace.beams.length;
    const from = pick?.kind === "beam" ? pick.index : by > 0 ? -1 : count;
    if (count) onPick({ kind: "beam", index: (from + by + count) % count });
  };
  const findNext = (by: number) => {
    const from = pick?.kind === "node" ? found.indexOf(pick.index) : -1;
    const next = found[(from + by + found.length) % found.length];
    if (next !== undefined) onPick({ kind: "node", index: next });
  };
  const focusFigure = () => main.current?.querySelector<SVGGElement>(".node[tabindex='0']")?.focus();

  const bindings: Binding[] = [
    { keys: ["?"], does: "this list", run: () => setHelping(true) },
    { keys: ["g"], does: "go to the diagram", run: focusFigure },
    { keys: ["ArrowLeft", "ArrowRight"], does: "in the diagram: along the strongest edge, backward and forward" },
    { keys: ["ArrowUp", "ArrowDown"], does: "in the diagram: the next token above or below" },
    { keys: ["Enter", " "], does: "select: the whole paths through it are lit" },
    { keys: ["Escape"], does: "leave the search field; clear the selection, the search, the filter", run: () => clear() },
    { keys: ["j", "k"], does: "next and previous path", run: (key) => step(key === "j" ? 1 : -1) },
    { keys: [..."123456789"], written: "1 … 9", does: "draw one path alone", run: (key) => alone(Number(key) - 1) },
    { keys: ["0"], does: "draw all paths", run: () => change({ beams: null }) },
    { keys: ["o"], does: "draw only the paths selected, or found", run: () => only() },
    { keys: ["/"], does: "search by token, position, layer (L5) or head (L5H3)", run: () => search.current?.select() },
    { keys: ["n", "p"], does: "next and previous token found", run: (key) => findNext(key === "n" ? 1 : -1) },
    { keys: ["+", "-", "f"], does: "zoom in, zoom out, show everything" },
    { keys: ["Shift + arrows"], does: "in the diagram: pan" },
    { keys: ["t"], does: "diagram or tables", run: () => toggleView() },
    { keys: ["d"], does: "theme: automatic, light, dark", run: () => change({ theme: nextTheme(theme) }) },
  ];
  useKeys(bindings);

  function only() {
    const meant = pick ? beamsThrough(trace, pick) : beamsMeant;
    if (meant.size) show(meant);
  }
  function alone(beam: number) {
    if (beam < trace.beams.length) show([beam]);
  }
  function toggleView() {
    change({ view: view === "table" ? null : "table" });
  }
  function clear() {
    if (document.activeElement === search.current) search.current?.blur();
    else if (pick) onPick(null);
    else if (query) change({ find: null });
    else change({ beams: null });
  }

  return (
    <>
      <header class="top">
        <div class="title">
          <h1>{payload.title}</h1>
          <p>{payload.subtitle}</p>
        </div>
        <div class="tools">
          <label class="search">
            <input
              ref={search}
              type="search"
              placeholder="Search tokens ( / )"
              aria-label="Search tokens"
              value={query}
              onInput={({ currentTarget }) => change({ find: currentTarget.value })}
              onKeyDown={({ key }) => key === "Enter" && findNext(1)}
            />
            {query && (
              <small role="status">
                {counted(found.length, "token")} on {counted(beamsMeant.size, "path")}
              </small>
            )}
          </label>
          {query && beamsMeant.size > 0 && (
            <button type="button" title="Draw only the paths found (o)" onClick={() => show(beamsMeant)}>
              Draw only these
            </button>
          )}
          {payload.traces.length > 1 && (
            <select
              aria-label="Trace"
              value={index}
              onChange={({ currentTarget }) =>
                change({ trace: currentTarget.value, pick: null, beams: null, zoom: null })
              }
            >
              {payload.traces.map(({ name }, other) => (
                <option key={name} value={other}>
                  {name}
                </option>
              ))}
            </select>
          )}
          <button type="button" aria-pressed={view === "table"} title="Tables (t)" onClick={toggleView}>
            Tables
          </button>
          <button type="button" title="Theme (d)" onClick={() => change({ theme: nextTheme(theme) })}>
            Theme: {theme}
          </button>
          <button type="button" aria-label="Keys" title="Keys (?)" onClick={() => setHelping(true)}>
            ?
          </button>
        </div>
      </header>
      <Strip {...{ payload, trace, visible, lit, query, onPick, onHover }} />
      <div class="main" ref={main}>
        {view === "table" ? (
          <Tables {...{ payload, trace, visible, onPick }} />
        ) : (
          <Figure
            {...{ payload, trace, visible, lit, pick, onPick, onHover }}
            found={foundSet}
            zoom={hash["zoom"]}
            keepZoom={(zoom) => change({ zoom })}
          />
        )}
        <aside>
          {!hash["beams"] && visible.size < trace.beams.length && (
            <p class="notice" role="status">
              {visible.size} of {trace.beams.length} paths are drawn; tick others below.
            </p>
          )}
          <Beams {...{ payload, trace, visible, lit, pick, show, onPick, onHover }} />
          <Panel {...{ payload, trace, pick, onPick, show }} />
        </aside>
      </div>
      {helping && <Help bindings={bindings} close={() => setHelping(false)} />}
    </>
  );
}

function same(a: Pick | null, b: Pick | null): boolean {
  return a?.kind === b?.kind && a?.index === b?.index;
}

/** Returns the beams that are drawn: those the URL names, or all, or as many as can be drawn quickly. */
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
