import type { Trace } from "../../payload";
import { at } from "../model";
import { LANE_HEIGHT, type Placed, type Point } from "./placed";

/** One beam's part of one link. */
export interface Ribbon {
  link: number;
  beam: number;
  value: number;
  attention: number;
  height: number;
  /** Whether no other beam follows the link. */
  alone: boolean;
  /** The outline, of the same height everywhere, so that neighbouring ribbons touch and never overlap. */
  outline: string;
  /** The line along its middle, which carries the dashes. */
  spine: string;
  middle: Point;
}

/** Returns for each beam its ribbons: every link is split into one lane per beam, stacked in the beams' order. */
export function ribbons(trace: Trace, placed: Placed): Ribbon[][] {
  const found: Ribbon[][] = trace.beams.map(() => []);
  trace.links.forEach((link, index) => {
    const way = at(placed.links, index);
    let from = (-link.value * placed.scale) / 2;
    for (const { beam, attention, value } of link.lanes) {
      const thickness = value * placed.scale;
      const offset = from + thickness / 2;
      from += thickness;
      const height = Math.max(thickness, LANE_HEIGHT);
      const there = curve(way, offset - height / 2);
      const back = curve(way.toReversed(), offset + height / 2);
      at(found, beam).push({
        link: index,
        beam,
        value,
        attention,
        height,
        alone: link.lanes.length === 1,
        outline: `M${there}L${back}Z`,
        spine: `M${curve(way, offset)}`,
        middle: middleOf(way, offset),
      });
    }
  });
  return found;
}

/** Returns a smooth line through points of which every second step (through a column) is level. */
function curve(way: Point[], offset: number): string {
  return way
    .map(({ x, y }, index) => {
      const before = way[index - 1];
      const end = `${p(x)},${p(y + offset)}`;
      if (!before) return end;
      const middle = p((before.x + x) / 2);
      return before.y === y ? `L${end}` : `C${middle},${p(before.y + offset)} ${middle},${p(y + offset)} ${end}`;
    })
    .join("");
}

function middleOf(way: Point[], offset: number): Point {
  const step = 2 * Math.floor(way.length / 4);
  const [a, b] = [at(way, step), at(way, step + 1)];
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 + offset };
}

function p(value: number): number {
  return Math.round(value * 100) / 100;
}
