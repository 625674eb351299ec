import type { Trace } from "../../payload";
import { at, crossingsOf } from "../model";
import { NODE_HEIGHT, NODE_WIDTH, type Placed, type Size } from "./placed";

const MARGIN = { top: 40, bottom: 56, left: 24, right: 24 }; // the buttons stand below
const ROW = { least: 24, most: 104 };
const COLUMN = { least: 56, most: 400 };

/** Places a trace whose nodes stand in columns (layers, or steps back): each position keeps its row throughout. */
export function grid(trace: Trace, labels: string[], size: Size): Placed {
  const keys = trace.nodes.map(({ position, source }) => (source ? -1e9 : 0) + position);
  const order = [...new Set(keys)].toSorted((a, b) => a - b);
  const gutter = 7.2 * Math.max(4, ...labels.map((label) => label.length)) + 16;
  const step = {
    row: clamp((size.height - MARGIN.top - MARGIN.bottom) / order.length, ROW.least, ROW.most),
    column: clamp(
      (size.width - gutter - MARGIN.left - MARGIN.right) / Math.max(trace.columns.length - 1, 1),
      COLUMN.least,
      COLUMN.most,
    ),
  };
  const x = (column: number) => gutter + MARGIN.left + step.column * column;
  const y = (key: number) => MARGIN.top + step.row * (order.indexOf(key) + 0.5);
  const xs = trace.nodes.map(({ column }) => x(column ?? 0));
  const middles = keys.map(y);

  const ends = stacked(trace, middles);
  const scale = (0.72 * step.row) / Math.max(...ends.totals, Number.MIN_VALUE);
  return {
    width: gutter + MARGIN.left + MARGIN.right + step.column * (trace.columns.length - 1) + NODE_WIDTH,
    height: MARGIN.top + MARGIN.bottom + step.row * order.length,
    scale,
    nodes: xs.map((left, node) => {
      const height = Math.max(at(ends.totals, node) * scale, NODE_HEIGHT);
      return { x: left, y: at(middles, node) - height / 2, height };
    }),
    links: trace.links.map(({ source, target }, link) => [
      { x: at(xs, source) + NODE_WIDTH, y: at(middles, source) + scale * at(ends.leaving, link) },
      { x: at(xs, target), y: at(middles, target) + scale * at(ends.arriving, link) },
    ]),
    columns: trace.columns.map((text, column) => ({ at: x(column) + NODE_WIDTH / 2, text })),
    rows: order.map((key) => ({ at: y(key), text: at(labels, keys.indexOf(key)) })),
  };
}

/** Returns each node's larger sum of values, and where each link's middle lies from the middle of its two nodes. */
function stacked(trace: Trace, middles: number[]) {
  const totals = trace.nodes.map(() => 0);
  const side = (mine: "source" | "target", other: "source" | "target") => {
    const offsets = trace.links.map(() => 0);
    for (const node of trace.nodes.keys()) {
      const height = (link: number) => at(middles, at(trace.links, link)[other]);
      const own = at(crossingsOf(trace), node)[mine].toSorted((a, b) => height(a) - height(b));
      const total = own.reduce((sum, link) => sum + at(trace.links, link).value, 0);
      totals[node] = Math.max(at(totals, node), total);
      let from = -total / 2;
      for (const link of own) {
        const { value } = at(trace.links, link);
        offsets[link] = from + value / 2;
        from += value;
      }
    }
    return offsets;
  };
  const leaving = side("source", "target");
  const arriving = side("target", "source");
  return { totals, leaving, arriving };
}

function clamp(value: number, least: number, most: number): number {
  return Math.min(Math.max(value, least), most);
}
