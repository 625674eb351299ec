import { sankey, sankeyRight, type SankeyNode } from "d3-sankey";
import type { Trace } from "../../payload";
import { at, crossingsOf } from "../model";
import { NODE_HEIGHT, NODE_WIDTH, type Placed, type Point, type Size } from "./placed";

const THICKEST = 0.3; // of the figure's height
const PADDING = { least: 30, most: 130 }; // between nodes of one column, where their labels stand
const MARGIN = { top: 44, bottom: 56, side: 16 }; // the buttons stand below
const LARGE = 200; // links: more rounds would take long, and could not make them easy to follow
const CROWDED = 1.5; // a column that needs this many times the figure's height gets no bends

/** Places a trace of one causal layer: the target at the right, every other node as far right as its links allow. */
export function flow(trace: Trace, labels: string[], size: Size): Placed {
  if (trace.links.length === 0) return alone(trace, size);
  const depths = depthsOf(trace);
  const bent = routed(trace, depths);
  const plain = { depths, links: trace.links.map((link) => [link.source, link.target]) };
  const route = mostInColumn(bent) * PADDING.least > CROWDED * size.height ? plain : bent;

  const labelWidth = 7.4 * Math.max(4, ...labels.map((label) => label.length)) + 12;
  const side = MARGIN.side + labelWidth / 2;
  const width = Math.max(size.width, 2 * side + Math.max(...depths) * Math.max(labelWidth, 84));
  const { padding, used } = spread(trace, route, size);
  const height = Math.max(size.height, used + MARGIN.top + MARGIN.bottom);
  const top = MARGIN.top + (height - MARGIN.top - MARGIN.bottom - used) / 2;

  const layout = sankey<object, { link: number }>()
    .nodeAlign(sankeyRight)
    .nodeWidth(NODE_WIDTH)
    .nodePadding(padding)
    .iterations(trace.links.length > LARGE ? 6 : 24)
    .extent([
      [side, top],
      [width - side, top + used],
    ]);
  const graph = layout({
    nodes: route.depths.map(() => ({})),
    links: route.links.flatMap((way, link) =>
      way.slice(1).map((target, step) => ({ source: at(way, step), target, value: valueOf(trace, link), link })),
    ),
  });
  const links = trace.links.map((): Point[] => []);
  for (const { source, target, y0 = 0, y1 = 0, link } of graph.links) {
    // Numbers when it was called, the nodes themselves afterwards.
    const [from, to] = [source, target] as [SankeyNode<object, object>, SankeyNode<object, object>];
    at(links, link).push({ x: from.x1 ?? 0, y: y0 }, { x: to.x0 ?? 0, y: y1 });
  }
  return {
    width,
    height,
    scale: Math.max(...graph.links.map((link) => (link.width ?? 0) / link.value)),
    nodes: graph.nodes.slice(0, trace.nodes.length).map(({ x0 = 0, y0 = 0, y1 = 0 }) => {
      const tall = Math.max(y1 - y0, NODE_HEIGHT);
      return { x: x0, y: (y0 + y1 - tall) / 2, height: tall };
    }),
    links,
    columns: [],
    rows: [],
  };
}

/** Nodes by their number of columns from the target, and for each link the nodes that it runs through. */
interface Route {
  depths: number[];
  links: number[][];
}

/** Returns each node's largest number of edges to the target. */
function depthsOf(trace: Trace): number[] {
  const known = new Map<number, number>();
  const depth = (node: number): number => {
    const later = at(crossingsOf(trace), node).source.map((link) => at(trace.links, link).target);
    const own = known.get(node) ?? Math.max(-1, ...later.map(depth)) + 1;
    known.set(node, own);
    return own;
  };
  return trace.nodes.map((_, node) => depth(node));
}

/** Returns links with a bend in every column that they cross, so that no ribbon runs behind a node that is not its own. */
function routed(trace: Trace, own: number[]): Route {
  const depths = [...own];
  const links = trace.links.map(({ source, target }) => {
    const bends: number[] = [];
    for (let depth = at(own, source) - 1; depth > at(own, target); depth--) bends.push(depths.push(depth) - 1);
    return [source, ...bends, target];
  });
  return { depths, links };
}

function mostInColumn({ depths }: Route): number {
  const counts = new Map<number, number>();
  for (const depth of depths) counts.set(depth, (counts.get(depth) ?? 0) + 1);
  return Math.max(...counts.values());
}

/** Returns the space between nodes, and the height that the fullest column needs with the thickest scale that fits. */
function spread(trace: Trace, route: Route, size: Size): { padding: number; used: number } {
  const space = size.height - MARGIN.top - MARGIN.bottom;
  const padding = Math.min(Math.max((0.6 * space) / mostInColumn(route), PADDING.least), PADDING.most);
  const flows = throughputs(trace, route);
  const columns = Map.groupBy(flows.keys(), (node) => at(route.depths, node));
  const needs = [...columns.values()].map((nodes) => ({
    gaps: (nodes.length - 1) * padding,
    flow: nodes.reduce((sum, node) => sum + at(flows, node), 0),
  }));
  const unit = Math.min(
    (THICKEST * size.height) / Math.max(...flows),
    ...needs.map(({ gaps, flow }) => Math.max(space - gaps, 24) / flow),
  );
  return { padding, used: Math.max(...needs.map(({ gaps, flow }) => gaps + unit * flow)) };
}

/** Returns for each node the larger one of what comes in and what goes out. */
function throughputs(trace: Trace, { depths, links }: Route): number[] {
  const [leaving, arriving] = [depths.map(() => 0), depths.map(() => 0)];
  links.forEach((way, link) => {
    const value = valueOf(trace, link);
    for (const node of way.slice(0, -1)) leaving[node] = at(leaving, node) + value;
    for (const node of way.slice(1)) arriving[node] = at(arriving, node) + value;
  });
  return leaving.map((value, node) => Math.max(value, at(arriving, node)));
}

/** Returns a link's value, which d3-sankey wants to be more than nothing. */
function valueOf(trace: Trace, link: number): number {
  return Math.max(at(trace.links, link).value, 1e-12);
}

function alone(trace: Trace, { width, height }: Size): Placed {
  const nodes = trace.nodes.map(() => ({ x: width / 2, y: height / 2 - 20, height: 40 }));
  return { width, height, scale: 1, nodes, links: [], columns: [], rows: [] };
}
