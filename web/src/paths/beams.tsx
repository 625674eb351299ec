import type { ComponentChild } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import { percent, shown } from "../numbers";
import type { PathsPayload, Trace } from "../payload";
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

/** All beams, best first: what is ticked is drawn. */
export function Beams({ payload, trace, visible, lit, pick, show, onPick, onHover }: Props) {
  const listed = useListed(trace.beams.length);
  const toggled = (beam: number) => [...trace.beams.keys()].filter((b) => visible.has(b) !== (b === beam));
  return (
    <section class="beams" aria-label="Paths">
      <header>
        <h2>Paths</h2>
        <BeamFilter count={trace.beams.length} visible={visible} show={show} />
      </header>
      <ol>
        {trace.beams.slice(0, listed).map((_, index) => {
          const picked = pick?.kind === "beam" && pick.index === index;
          const state = [picked && "picked", lit && !lit.has(index) && "dim"].filter(Boolean).join(" ");
          return (
            <li
              key={index}
              class={state}
              onPointerEnter={() => onHover({ kind: "beam", index })}
              onPointerLeave={() => onHover(null)}
            >
              <input
                type="checkbox"
                checked={visible.has(index)}
                aria-label={`Draw path ${letter(index)}`}
                onChange={() => show(toggled(index))}
              />
              <button
                type="button"
                aria-pressed={picked}
                onClick={() => onPick(picked ? null : { kind: "beam", index })}
              >
                <Described {...{ payload, trace, beam: index, whole: picked }} />
              </button>
            </li>
          );
        })}
      </ol>
    </section>
  );
}

const FIRST_LISTED = 24; // more than are seen without scrolling

/** Returns how many rows of a list are made: the first few at once, the others when those have been painted. */
function useListed(count: number): number {
  const [all, setAll] = useState(false);
  useEffect(() => setAll(true), []);
  return all ? count : Math.min(count, FIRST_LISTED);
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
