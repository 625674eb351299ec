import type { RefObject } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { useKeys } from "../keyboard";
import { counted, shown } from "../numbers";
import type { PathsPayload, Trace } from "../payload";
import { Drawing } from "./drawing";
import { place, ribbons, type Size, type Tick } from "./layout";
import { at, attentionOf, crossingsOf, linkName, linksOf, nodeName, nodesOf, type Pick, tokenOf } from "./model";
import type { PathsState } from "./state";
import { useZoom } from "./zoom";

interface Pointed {
  pick: Pick;
  x: number;
  y: number;
}

/** The diagram: drag and scroll, point, click, or walk through it with the arrow keys. */
export function Figure({ state }: { state: PathsState }) {
  const frame = useRef<HTMLDivElement>(null);
  const size = useSize(frame);
  return (
    <div class="figure" ref={frame}>
      {size && <Diagram state={state} size={size} />}
    </div>
  );
}

function Diagram({ state, size }: { state: PathsState; size: Size }) {
  const { payload, trace, visible, lit, pick, foundSet: found, zoom, change, onPick, onHover } = state;
  const svg = useRef<SVGSVGElement>(null);
  const labels = useMemo(() => trace.nodes.map((_, node) => label(payload, trace, node)), [payload, trace]);
  const placed = useMemo(() => place(trace, labels, size), [trace, labels, size.width, size.height]);
  const lanes = useMemo(() => ribbons(trace, placed), [trace, placed]);
  const view = useZoom(svg, placed, size, zoom, (kept) => change({ zoom: kept }));
  const present = useMemo(() => nodesOf(trace, visible), [trace, visible]);
  const [walked, setFocused] = useState(trace.target);
  const focused = present.has(walked) ? walked : trace.target;
  const [pointed, setPointed] = useState<Pointed | null>(null);
  useEffect(() => setFocused(pick?.kind === "node" ? pick.index : trace.target), [trace, pick]);

  const focus = (node: number) => {
    const { x, y, height } = at(placed.nodes, node);
    setFocused(node);
    view.show(x, y + height / 2);
    svg.current?.querySelector<SVGGElement>(`[data-node="${node}"]`)?.focus({ preventScroll: true });
  };
  const press = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const node = pickOf(event.target)?.index;
    const direction = DIRECTIONS[event.key];
    if (direction && event.shiftKey) view.pan(-80 * direction[0], -80 * direction[1]);
    else if (direction && node !== undefined) focus(neighbour(trace, placed.nodes, visible, present, node, direction));
    else if ((event.key === "Enter" || event.key === " ") && node !== undefined) onPick({ kind: "node", index: node });
    else return;
    event.preventDefault();
  };
  useKeys([
    { keys: ["+", "="], does: "zoom in", run: () => view.by(1.25) },
    { keys: ["-"], does: "zoom out", run: () => view.by(0.8) },
    { keys: ["f"], does: "show everything", run: view.fit },
  ]);
  const move = (event: PointerEvent) => {
    const over = event.buttons ? null : pickOf(event.target);
    const box = svg.current?.getBoundingClientRect();
    setPointed(over && box ? { pick: over, x: event.clientX - box.left, y: event.clientY - box.top } : null);
    onHover(over);
  };

  const names = useMemo(() => trace.nodes.map((_, node) => spoken(payload, trace, node)), [payload, trace]);
  const drawing = useMemo(
    () => <Drawing {...{ trace, placed, lanes, labels, names, visible, present, lit, pick, found, focused }} />,
    [trace, placed, lanes, labels, names, visible, present, lit, pick, found, focused],
  );
  const { x, y, k } = view.transform;
  return (
    <>
      <svg
        ref={svg}
        role="group"
        aria-label={`Diagram of ${counted(trace.beams.length, "path")}: arrow keys walk, Enter selects`}
        data-scale={placed.scale}
        width={size.width}
        height={size.height}
        viewBox={`0 0 ${size.width} ${size.height}`}
        onKeyDown={press}
        onPointerMove={move}
        onPointerLeave={() => {
          setPointed(null);
          onHover(null);
        }}
        onClick={(event) => onPick(pickOf(event.target))}
        onFocusIn={(event) => {
          const over = pickOf(event.target);
          if (over?.kind === "node") setFocused(over.index);
        }}
      >
        <g class="rules" aria-hidden="true">
          {placed.rows.map((row) => (
            <line key={row.at} x1={0} x2={size.width} y1={y + k * row.at} y2={y + k * row.at} />
          ))}
        </g>
        <g class="canvas" transform={`translate(${x},${y}) scale(${k})`}>
          {drawing}
        </g>
        <g class="ticks" aria-hidden="true">
          {placed.rows.map((row) => (
            <text key={row.at} x={10} y={y + k * row.at}>
              {row.text}
            </text>
          ))}
          {thinned(placed.columns, k).map((column) => (
            <text key={column.at} class="column" x={x + k * column.at} y={16}>
              {column.text}
            </text>
          ))}
        </g>
      </svg>
      <div class="zoom" role="group" aria-label="Zoom">
        <button type="button" aria-label="Zoom in" title="Zoom in (+)" onClick={() => view.by(1.25)}>
          +
        </button>
        <button type="button" aria-label="Zoom out" title="Zoom out (-)" onClick={() => view.by(0.8)}>
          −
        </button>
        <button type="button" title="Show everything (f)" onClick={view.fit}>
          Fit
        </button>
      </div>
      {pointed && (
        <div class={pointed.x > size.width / 2 ? "tip left" : "tip"} style={{ left: `${pointed.x}px`, top: `${pointed.y}px` }} aria-hidden="true">
          {tip(payload, trace, pointed.pick)}
        </div>
      )}
    </>
  );
}

const DIRECTIONS: Record<string, readonly [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

/** Returns where an arrow key leads: along the strongest link, or to the next node above or below. */
function neighbour(
  trace: Trace,
  nodes: { x: number; y: number }[],
  visible: ReadonlySet<number>,
  present: ReadonlySet<number>,
  node: number,
  [across, down]: readonly [number, number],
): number {
  if (across) {
    const links = linksOf(trace, node, across < 0 ? "target" : "source");
    const link = links.find((index) => at(trace.links, index).lanes.some(({ beam }) => visible.has(beam)));
    return link === undefined ? node : at(trace.links, link)[across < 0 ? "source" : "target"];
  }
  const here = at(nodes, node);
  const onward = nodes
    .map(({ x, y }, index) => ({ index, off: Math.abs(x - here.x), step: (y - here.y) * down }))
    .filter(({ index, step }) => present.has(index) && index !== node && (step > 0 || (step === 0 && index * down > node * down)))
    .toSorted((a, b) => 4 * a.off + a.step - (4 * b.off + b.step));
  return onward[0]?.index ?? node;
}

/** Returns what an element of the drawing stands for. */
function pickOf(target: EventTarget | null): Pick | null {
  const element = target instanceof Element ? target.closest<SVGElement>("[data-node], [data-link]") : null;
  const { node, link } = element?.dataset ?? {};
  if (node !== undefined) return { kind: "node", index: Number(node) };
  return link === undefined ? null : { kind: "link", index: Number(link) };
}

/** Returns what stands beside a node: token and position. */
function label(payload: PathsPayload, trace: Trace, node: number): string {
  const { text } = tokenOf(payload, trace, node);
  const short = [...text].length > 16 ? `${[...text].slice(0, 15).join("")}…` : text;
  return `${short} ${at(trace.nodes, node).position}`;
}

function spoken(payload: PathsPayload, trace: Trace, node: number): string {
  const { position, source, column } = at(trace.nodes, node);
  const { beams } = at(crossingsOf(trace), node);
  const role = node === trace.target ? "target, " : "";
  const where = source ? ", source" : column === null ? "" : `, ${at(trace.columns, column)}`;
  return `${tokenOf(payload, trace, node).text}, ${role}position ${position}${where}, in ${counted(beams.length, "path")}`;
}

function tip(payload: PathsPayload, trace: Trace, pick: Pick): string {
  if (pick.kind === "link") return `${linkName(payload, trace, pick.index)}: ${shown(attentionOf(trace, pick.index))}`;
  const { note } = tokenOf(payload, trace, pick.index);
  return nodeName(payload, trace, pick.index) + (note && ` (${note})`);
}

/** Returns as many of the columns' titles as have room beside each other. */
function thinned(columns: Tick[], k: number): Tick[] {
  const [first, second] = columns;
  const gap = first && second ? (second.at - first.at) * k : Infinity;
  const longest = Math.max(0, ...columns.map(({ text }) => text.length));
  const every = Math.ceil((6.5 * longest + 10) / gap);
  return columns.filter((_, index) => (columns.length - 1 - index) % every === 0);
}

/** Returns an element's size: null until it is known, which is before anything is painted. */
function useSize(frame: RefObject<HTMLElement | null>): Size | null {
  const [size, setSize] = useState<Size | null>(null);
  useLayoutEffect(() => {
    const element = frame.current;
    if (!element) return;
    const measure = () => {
      const [width, height] = [element.clientWidth, element.clientHeight];
      if (width && height) setSize((old) => (old?.width === width && old.height === height ? old : { width, height }));
    };
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    measure();
    return () => observer.disconnect();
  }, [frame]);
  return size;
}
