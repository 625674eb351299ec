import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Colouring, type Painter, painterOf, type Scale } from "../draw/heatmap";
import { blockFor, type Matrix } from "../draw/levels";
import { type Palette, paletteOf } from "../draw/palette";
import { shown } from "../numbers";
import type { Token } from "../payload";
import { useDark } from "../theme";
import { useWidth } from "./axes";
import { areaOf, cellAt, closeTo, enlarged, type Frame, holding, moved, type Plot, WHOLE } from "./frame";
import { depthOf, Ruler } from "./ruler";

type Cell = readonly [row: number, column: number];

interface Props {
  /** Numbers row after row, the first row on top. With neither these nor pixels, what was drawn before is dimmed. */
  values: Float32Array | null;
  /** Instead of numbers, bytes: 255 times the square root of a number's share of `most`. */
  pixels?: Uint8Array | null;
  most?: number;
  rows: number;
  columns: number;
  /** Of how many cells in each direction a number is the one farthest from zero. */
  block?: number;
  rowLabels: string[];
  columnLabels: string[];
  /** Of the colours; the lower end is above zero on a log scale. */
  range: readonly [number, number];
  scale?: Scale;
  palette?: Palette;
  /** A cell, or only its row or its column. */
  selected?: readonly [row: number | null, column: number | null] | null;
  onSelect?: (row: number, column: number) => void;
  onHover?: (row: number, column: number, value: number | null) => void;
  onLeave?: () => void;
  /** What is told of a cell; labels and the number, unless given. */
  describe?: (row: number, column: number) => string;
  /** The part that is shown, where several pictures share it. */
  frame?: Frame;
  onFrame?: (frame: Frame) => void;
  /** What it shows, for those who do not see it. */
  label: string;
  /** The most pixels from top to bottom. */
  tall?: number;
}

const STEPS: Record<string, Cell> = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const DRAG = 4; // pixels before a press becomes a drag

/** A matrix as colours: moved by dragging, enlarged by wheel, keys and double click, read cell by cell. */
export function Heatmap(props: Props) {
  const { values, pixels = null, most = 1, rows, columns, block = 1, rowLabels, columnLabels, selected = null, tall = 620 } = props;
  const { scale = "linear", palette = "sequential", range, onSelect, onHover, onLeave, label } = props;
  const [own, setOwn] = useState<Frame>(WHOLE);
  const [hovered, setHovered] = useState<Cell | null>(null);
  const [plain, setPlain] = useState(false);
  const dark = useDark();
  const field = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const painter = useRef<Painter | null>(null);
  const [outer, width] = useWidth<HTMLDivElement>(0);

  const frame = props.frame ?? own;
  const setFrame = props.onFrame ?? setOwn;
  const left = useMemo(() => depthOf(rowLabels), [rowLabels]);
  const top = useMemo(() => depthOf(columnLabels), [columnLabels]);
  const plot = useMemo(() => plotOf(width - left, tall - top, rows, columns), [width, left, top, tall, rows, columns]);
  const matrix = useMemo<Matrix | null>(() => {
    const data = values ?? pixels;
    return data && { rows, columns, block, data, most };
  }, [values, pixels, rows, columns, block, most]);
  const [atRow, atColumn] = selected ?? [null, null];
  const chosen: Cell | null = atRow !== null && atColumn !== null ? [atRow, atColumn] : null;
  const area = areaOf(frame, plot);
  const cell = { width: plot.width / area.columns, height: plot.height / area.rows };

  useLayoutEffect(() => {
    if (!canvas.current) return;
    const made = painterOf(canvas.current, plain, () => setPlain(true));
    painter.current = made;
    return () => made.dispose();
  }, [plain]);

  useLayoutEffect(() => {
    if (!matrix || !canvas.current || !painter.current || plot.width < 1) return;
    const ratio = window.devicePixelRatio;
    const size = [Math.round(plot.width * ratio), Math.round(plot.height * ratio)] as const;
    if (canvas.current.width !== size[0]) canvas.current.width = size[0];
    if (canvas.current.height !== size[1]) canvas.current.height = size[1];
    const colouring: Colouring = { palette: paletteOf(palette, dark), range, scale };
    painter.current.draw(matrix, areaOf(frame, plot), colouring);
  }, [matrix, frame, plot, palette, dark, range[0], range[1], scale, plain]);

  useWheel(field, (event) => {
    const factor = Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018) * (event.deltaMode === 1 ? 30 : 1));
    if (factor < 1 && frame.zoom === 1) return; // the page scrolls on
    event.preventDefault();
    const box = field.current?.getBoundingClientRect();
    if (box) setFrame(enlarged(frame, plot, factor, event.clientX - box.left, event.clientY - box.top));
  });

  const valueAt = (row: number, column: number): number | null =>
    values && block === 1 ? (values[row * columns + column] ?? null) : null;
  const hover = (found: Cell | null) => {
    if (found?.[0] === hovered?.[0] && found?.[1] === hovered?.[1]) return;
    setHovered(found);
    if (found) onHover?.(found[0], found[1], valueAt(...found));
    else onLeave?.();
  };
  const press = (event: PointerEvent) => {
    if (event.button !== 0) return;
    const [target, start] = [event.currentTarget as HTMLElement, frame];
    let dragged = false;
    const move = (to: PointerEvent) => {
      const [right, down] = [to.clientX - event.clientX, to.clientY - event.clientY];
      dragged ||= Math.hypot(right, down) > DRAG;
      if (dragged) setFrame(moved(start, plot, right, down));
    };
    const stop = (at: PointerEvent) => {
      target.removeEventListener("pointermove", move);
      target.removeEventListener("pointerup", stop);
      target.removeEventListener("pointercancel", stop);
      const found = at.type === "pointerup" && !dragged && cellOf(at, frame, plot);
      if (found) onSelect?.(...found);
    };
    target.setPointerCapture(event.pointerId);
    target.addEventListener("pointermove", move);
    target.addEventListener("pointerup", stop);
    target.addEventListener("pointercancel", stop);
  };
  const key = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = STEPS[event.key];
    if (step && onSelect) {
      const far = chosen ? (event.shiftKey ? 10 : 1) : 0;
      const to = [within((atRow ?? 0) + far * step[0], rows), within((atColumn ?? 0) + far * step[1], columns)] as const;
      onSelect(...to);
      setFrame(holding(frame, plot, ...to));
    } else if (event.key === "+" || event.key === "=") setFrame(zoomed(2));
    else if (event.key === "-") setFrame(zoomed(0.5));
    else if (event.key === "f") setFrame(WHOLE);
    else if (event.key === "Enter" && chosen) setFrame(closeTo(plot, ...chosen));
    else return;
    event.preventDefault();
  };
  /** Enlarged around the selected cell, where it is seen. */
  const zoomed = (factor: number): Frame => {
    const at = chosen && placeOf(...chosen);
    return at && at.left >= 0 && at.top >= 0 && at.left <= plot.width && at.top <= plot.height
      ? enlarged(frame, plot, factor, at.left, at.top)
      : enlarged(frame, plot, factor);
  };
  const placeOf = (row: number, column: number) => ({
    left: (column + 0.5 - area.column) * cell.width,
    top: (row + 0.5 - area.row) * cell.height,
  });

  const describe =
    props.describe ??
    ((row: number, column: number) => {
      const value = valueAt(row, column);
      return `${rowLabels[row]} × ${columnLabels[column]}${value === null ? "" : `: ${Number.isNaN(value) ? "no number" : shown(value)}`}`;
    });
  const told = hovered ?? chosen;
  const ratio = window.devicePixelRatio;
  const shownBlock = plot.width > 0 ? blockFor(block, Math.max(1 / cell.width, 1 / cell.height) / ratio) : 1;
  const marked = (selectedOne: number | null, hoveredOne: number | undefined) => [selectedOne, hoveredOne ?? null].filter((one) => one !== null);
  return (
    <div class="heatmap" ref={outer} aria-busy={!matrix}>
      <div class="plane" style={{ gridTemplateColumns: `${left}px ${plot.width}px` }}>
        <span />
        <Ruler side="top" labels={columnLabels} from={-area.column * cell.width} cell={cell.width} length={plot.width} depth={top} marked={marked(atColumn, hovered?.[1])} />
        <Ruler side="left" labels={rowLabels} from={-area.row * cell.height} cell={cell.height} length={plot.height} depth={left} marked={marked(atRow, hovered?.[0])} />
        <div
          class="field"
          ref={field}
          tabIndex={0}
          role="application"
          aria-roledescription="heat map"
          aria-label={label}
          style={{ width: `${plot.width}px`, height: `${plot.height}px` }}
          onPointerDown={press}
          onPointerMove={(event) => hover(event.buttons ? null : cellOf(event, frame, plot))}
          onPointerLeave={() => hover(null)}
          onDblClick={(event) => {
            const found = cellOf(event, frame, plot);
            if (found) setFrame(frame.zoom < closeTo(plot, ...found).zoom * 0.99 ? closeTo(plot, ...found) : WHOLE);
          }}
          onKeyDown={key}
        >
          <canvas key={`${plain}`} ref={canvas} style={{ width: `${plot.width}px`, height: `${plot.height}px` }} />
          <svg class="marks" width={plot.width} height={plot.height} aria-hidden="true">
            {hovered && <Cross {...{ cell, plot }} {...placeOf(...hovered)} of="hovered" />}
            {selected && <Cross {...{ cell, plot }} {...placeOf(atRow ?? NaN, atColumn ?? NaN)} of="selected" />}
          </svg>
        </div>
      </div>
      {shownBlock > 1 && (
        <p class="reduced">
          A pixel shows one of {shownBlock} × {shownBlock} cells: the {palette === "diverging" ? "farthest from zero" : "largest"}.
        </p>
      )}
      <p class="told" role="status" aria-live={hovered ? "off" : "polite"}>
        {!matrix ? "Loading" : told ? describe(...told) : "\u00a0"}
      </p>
    </div>
  );
}

interface CrossProps {
  /** Where it is, NaN for neither row nor column. */
  left: number;
  top: number;
  cell: { width: number; height: number };
  plot: Plot;
  of: "hovered" | "selected";
}

/** A row and a column, and the cell where they meet. */
function Cross({ left, top, cell, plot, of }: CrossProps) {
  const [width, height] = [Math.max(cell.width, 5), Math.max(cell.height, 5)];
  const [row, column] = [!Number.isNaN(top), !Number.isNaN(left)];
  return (
    <g class={of}>
      {row && <line x1={0} x2={plot.width} y1={top} y2={top} />}
      {column && <line x1={left} x2={left} y1={0} y2={plot.height} />}
      {row && column && <rect x={left - width / 2} y={top - height / 2} {...{ width, height }} />}
    </g>
  );
}

/** Returns tokens as labels of an axis. */
export function tokenLabels(tokens: readonly Token[]): string[] {
  return tokens.map(tokenLabel);
}

const LONGEST = 40; // characters of a token in a label

/** Returns a token as a label: its text, cut if it is very long, and its position. */
export function tokenLabel({ text }: Token, position: number): string {
  return `${text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text} ${position}`;
}

/** Returns the largest plot that fits: cells are squares, unless that would leave hardly any height or width. */
function plotOf(width: number, height: number, rows: number, columns: number): Plot {
  const across = Math.max(0, Math.min(width, Math.max((height * columns) / Math.max(1, rows), width / 3)));
  const down = Math.max(0, Math.min(height, Math.max((across * rows) / Math.max(1, columns), Math.min(height, 24 * rows, 160))));
  return { width: Math.floor(across), height: Math.floor(down), rows, columns };
}

function cellOf(event: MouseEvent, frame: Frame, plot: Plot): Cell | null {
  const box = (event.currentTarget as Element).getBoundingClientRect();
  return cellAt(frame, plot, event.clientX - box.left, event.clientY - box.top);
}

function within(index: number, count: number): number {
  return Math.min(count - 1, Math.max(0, index));
}

/** Listens for the wheel in a way that can keep the page from scrolling. */
function useWheel(element: { current: HTMLElement | null }, turn: (event: WheelEvent) => void): void {
  const latest = useRef(turn);
  latest.current = turn;
  useLayoutEffect(() => {
    const { current } = element;
    const listen = (event: WheelEvent) => latest.current(event);
    current?.addEventListener("wheel", listen, { passive: false });
    return () => current?.removeEventListener("wheel", listen);
  }, []);
}
