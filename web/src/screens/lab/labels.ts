/** Names beside points, where there is room for them. */

export interface Point {
  x: number;
  y: number;
}

export interface Label {
  index: number;
  x: number;
  y: number;
  anchor: "start" | "end" | "middle";
}

interface Box {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

const [CHARACTER, LINE, AWAY] = [6.4, 13, 8]; // pixels of a character and of a line, and from a point to its name
const SIDES: [number, number, Label["anchor"]][] = [
  [AWAY, 0, "start"],
  [-AWAY, 0, "end"],
  [0, -AWAY - 4, "middle"],
  [0, AWAY + 5, "middle"],
  [AWAY, -AWAY, "start"],
  [AWAY, AWAY, "start"],
  [-AWAY, -AWAY, "end"],
  [-AWAY, AWAY, "end"],
];

/**
 * Returns a place for each name that overlaps no other one and no point, taking points in the order they are wanted.
 * Those that are ringed have theirs further away.
 */
export function labelled(points: Point[], wanted: number[], names: string[], ringed: number[], wide: number, tall: number): Label[] {
  const taken: Box[] = points.map(({ x, y }) => ({ left: x - 4, right: x + 4, top: y - 4, bottom: y + 4 }));
  const labels: Label[] = [];
  for (const index of wanted) {
    const point = points[index];
    if (!point) continue;
    const width = (names[index]?.length ?? 0) * CHARACTER;
    const away = ringed.includes(index) ? 1.7 : 1;
    for (const [right, down, anchor] of SIDES) {
      const [x, y] = [point.x + away * right, point.y + away * down];
      const left = anchor === "start" ? x : anchor === "end" ? x - width : x - width / 2;
      const box = { left, right: left + width, top: y - LINE / 2, bottom: y + LINE / 2 };
      const inside = box.left >= 0 && box.right <= wide && box.top >= 0 && box.bottom <= tall;
      if (!inside || taken.some((other, own) => own !== index && overlap(box, other))) continue;
      taken.push(box);
      labels.push({ index, x, y, anchor });
      break;
    }
  }
  return labels;
}

function overlap(a: Box, b: Box): boolean {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

/** Returns points by how far out they lie, in units of how far half of them do; the farthest first. */
export function farthest(points: Point[]): number[] {
  const middles = (["x", "y"] as const).map((axis) => median(points.map((point) => point[axis])));
  const spreads = (["x", "y"] as const).map((axis, index) => median(points.map((point) => Math.abs(point[axis] - (middles[index] ?? 0)))) || 1);
  const far = points.map(({ x, y }) => Math.hypot((x - (middles[0] ?? 0)) / (spreads[0] ?? 1), (y - (middles[1] ?? 0)) / (spreads[1] ?? 1)));
  return far.map((_, index) => index).sort((a, b) => (far[b] ?? 0) - (far[a] ?? 0));
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}

/** Returns the nearest point in a direction: how far it is counts, and twice as much how far beside. */
export function neighbour(points: Point[], from: number, right: number, down: number): number {
  const start = points[from];
  if (!start) return from;
  let [best, least] = [from, Infinity];
  points.forEach(({ x, y }, index) => {
    const ahead = (x - start.x) * right + (y - start.y) * down;
    const beside = Math.abs((x - start.x) * down) + Math.abs((y - start.y) * right);
    // Of points at one place each is reached by number.
    const same = ahead === 0 && beside === 0;
    if (index === from || ahead < 0 || (ahead === 0 && !(same && (index - from) * (right + down) > 0))) return;
    const cost = same ? 0 : ahead + 2 * beside;
    if (cost < least) [best, least] = [index, cost];
  });
  return best;
}
