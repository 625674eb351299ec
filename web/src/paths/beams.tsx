import type { ComponentChild, VNode } from "preact";
import { useMemo } from "preact/hooks";
import { percent, shown } from "../numbers";
import type { PathsPayload, Trace } from "../payload";
import { type Keep, useKept, useLate } from "./kept";
import { at, letter, type Pick, placesOf, tokenOf } from "./model";
import { colour, dashes } from "./palette";

interface Props {
  payload: PathsPayload;
  trace: Trace;
  visible: ReadonlySet<number>;
  lit: ReadonlySet<number> | null;
  pick: Pick | null;
  show: (beams: Iterable<number>) => void;
  onPick: (pick: Pick | null) => void;
  onHover: (pick: Pick | null) => void;
}

/** What of the page's state a row of the list shows. */
interface Shown {
  payload: PathsPayload;
  trace: Trace;
  visible: ReadonlySet<number>;
  lit: ReadonlySet<number> | null;
  pick: Pick | null;
}

const AT_ONCE = 24; // rows: more than are seen without scrolling

/** All beams, best first: what is ticked is drawn. Rows that are not seen follow when the others have been painted. */
export function Beams({ payload, trace, visible, lit, pick, show, onPick, onHover }: Props) {
  const now = useMemo((): Shown => ({ payload, trace, visible, lit, pick }), [payload, trace, visible, lit, pick]);
  const late = useLate(now);
  const [first, others] = [useKept([payload, trace]), useKept([late?.payload, late?.trace])];
  const toggled = (beam: number) => [...trace.beams.keys()].filter((b) => visible.has(b) !== (b === beam));
  const press = (event: Event) => {
    const index = beamAt(event);
    if (index === null || !(event.target as Element).closest("button")) return;
    onPick(pick?.kind === "beam" && pick.index === index ? null : { kind: "beam", index });
  };
  const hover = (event: Event) => {
    const index = beamAt(event);
    onHover(index === null ? null : { kind: "beam", index });
  };
  return (
    <section class="beams" aria-label="Paths">
      <header>
        <h2>Paths</h2>
        <BeamFilter count={trace.beams.length} visible={visible} show={show} />
      </header>
      <ol
        class={late?.trace === trace ? undefined : "stale"}
        onClick={press}
        onChange={(event) => show(toggled(beamAt(event) ?? -1))}
        onPointerOver={hover}
        onPointerLeave={() => onHover(null)}
      >
        {rows(now, 0, AT_ONCE, first)}
        {late && rows(late, AT_ONCE, Infinity, others)}
      </ol>
    </section>
  );
}

function beamAt({ target }: Event): number | null {
  const row = target instanceof Element ? target.closest<HTMLLIElement>("li") : null;
  return row && Number(row.value);
}

function rows({ payload, trace, visible, lit, pick }: Shown, from: number, to: number, keep: Keep): VNode[] {
  return trace.beams.slice(from, to).map((_, place) => {
    const index = from + place;
    const picked = pick?.kind === "beam" && pick.index === index;
    const state = [picked && "picked", lit && !lit.has(index) && "dim"].filter(Boolean).join(" ");
    const drawn = visible.has(index);
    return keep(index, `${state} ${drawn}`, () => (
      <li key={index} value={index} class={state}>
        <input type="checkbox" checked={drawn} aria-label={`Draw path ${letter(index)}`} />
        <button type="button" aria-pressed={picked}>
          <Described {...{ payload, trace, beam: index, whole: picked }} />
        </button>
      </li>
    ));
  });
}

interface DescribedProps {
  payload: PathsPayload;
  trace: Trace;
  beam: number;
  whole: boolean;
}

/** A path's swatch, its tokens and its score; made once, whatever is drawn or lit. */
function Described({ payload, trace, beam, whole }: DescribedProps) {
  return useMemo(() => {
    const { score_norm, share } = at(trace.beams, beam);
    return (
      <>
        <Swatch beam={beam} />
        <span class="path">{stopsOf(payload, trace, beam, whole)}</span>
        <span class="score" title="Score, and the path's share among these">
          {shown(score_norm)}
          <small>{percent(share)}</small>
        </span>
      </>
    );
  }, [payload, trace, beam, whole]);
}

const MOST_STOPS = 10;

/** Returns a path in words; of a long one that is not wanted whole, its two ends. */
function stopsOf(payload: PathsPayload, trace: Trace, beam: number, whole: boolean): ComponentChild[] {
  const stops = placesOf(trace, beam);
  const half = MOST_STOPS / 2;
  const left = whole || stops.length <= MOST_STOPS ? 0 : stops.length - MOST_STOPS;
  return stops.map(({ node }, step) => {
    if (left > 0 && step === half) return <i key={node}> … {left} more … → </i>;
    if (left > 0 && step > half && step < half + left) return null;
    const next = stops[step + 1];
    const arrow = next ? ` ${next.layer && `─${next.layer}`}→ ` : "";
    return [tokenOf(payload, trace, node).text, <i key={node}>{`${at(trace.nodes, node).position}${arrow}`}</i>];
  });
}

function BeamFilter({ count, visible, show }: { count: number; visible: ReadonlySet<number>; show: Props["show"] }) {
  const [only] = visible.size === 1 ? visible : [];
  const value = visible.size === count ? "all" : (only?.toString() ?? "some");
  const alone = useMemo(
    () =>
      Array.from({ length: count }, (_, beam) => (
        <option key={beam} value={beam}>
          only {letter(beam)}
        </option>
      )),
    [count],
  );
  return (
    <select
      aria-label="Paths that are drawn"
      value={value}
      onChange={({ currentTarget }) =>
        show(currentTarget.value === "all" ? Array.from({ length: count }, (_, i) => i) : [Number(currentTarget.value)])
      }
    >
      <option value="all">all paths</option>
      {value === "some" && (
        <option value="some">
          {visible.size} of {count} paths
        </option>
      )}
      {alone}
    </select>
  );
}

/** A beam's colour, dash pattern and letter. */
export function Swatch({ beam }: { beam: number }) {
  return (
    <svg class="swatch" width="34" height="16" aria-label={`path ${letter(beam)}`} style={{ "--beam": colour(beam) }}>
      <rect width="34" height="16" rx="3" />
      <line x1="0" y1="8" x2="34" y2="8" stroke-dasharray={dashes(beam)} />
      <circle cx="17" cy="8" r="7" />
      <text x="17" y="8.5">
        {letter(beam)}
      </text>
    </svg>
  );
}
