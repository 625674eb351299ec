/** Axes of charts: from numbers to pixels, with ticks at round numbers; and how wide a chart may be. */

import { useLayoutEffect, useState } from "preact/hooks";
import { shown } from "../numbers";

export interface Scale {
  (value: number): number;
  /** The number that belongs to a pixel. */
  invert(pixel: number): number;
  /** Round numbers, about as many as are asked for. */
  ticks(count: number): number[];
  range: readonly [number, number];
}

/** Returns a scale from numbers to pixels; of a logarithmic one all numbers are above 0. */
export function scaleOf(domain: readonly [number, number], range: readonly [number, number], log = false): Scale {
  const [to, back] = log ? [Math.log10, (own: number) => 10 ** own] : [(own: number) => own, (own: number) => own];
  const [low, high] = domain[0] === domain[1] ? [to(domain[0]) - 0.5, to(domain[1]) + 0.5] : [to(domain[0]), to(domain[1])];
  const scale = (value: number) => range[0] + ((to(value) - low) / (high - low)) * (range[1] - range[0]);
  const invert = (pixel: number) => back(low + ((pixel - range[0]) / (range[1] - range[0])) * (high - low));
  const ticks = (count: number) => (log && high - low > 1 ? decades(low, high, count) : steps(back(low), back(high), count));
  return Object.assign(scale, { invert, ticks, range });
}

/** Multiples of 1, 2 or 5 times a power of ten. */
function steps(low: number, high: number, count: number): number[] {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((own) => own * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/** Powers of ten, and 2 and 5 times these where there is room. */
function decades(low: number, high: number, count: number): number[] {
  const each = high - low > count ? [1] : [1, 2, 5];
  const ticks = steps(Math.floor(low), Math.ceil(high), count).flatMap((power) =>
    Number.isInteger(power) ? each.map((own) => own * 10 ** power) : [],
  );
  return ticks.filter((tick) => Math.log10(tick) >= low - 1e-9 && Math.log10(tick) <= high + 1e-9);
}

/** Returns the least and the largest of the numbers that are finite and above a bound; null where none is. */
export function extentOf(arrays: ArrayLike<number>[], above = -Infinity): [number, number] | null {
  let [low, high] = [Infinity, -Infinity];
  for (const values of arrays)
    for (let index = 0; index < values.length; index++) {
      const value = values[index] as number;
      if (!Number.isFinite(value) || value <= above) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  return low <= high ? [low, high] : null;
}

interface AxisProps {
  scale: Scale;
  /** Where the axis lies: at this y for numbers across, at this x for numbers upward. */
  at: number;
  upward?: boolean;
  /** How long the lines are that lead through the chart; none for 0. */
  rules?: number;
  count?: number;
  /** Whether there are whole numbers only. */
  whole?: boolean;
  name?: string;
}

/** An axis with its ticks. */
export function Axis({ scale, at, upward = false, rules = 0, count = 5, whole = false, name }: AxisProps) {
  const ticks = scale.ticks(count).filter((tick) => !whole || Number.isInteger(tick));
  const ends = scale.range;
  return (
    <g class={`axis ${upward ? "upward" : "across"}`} aria-hidden="true">
      {ticks.map((tick) => (
        <g key={tick} transform={upward ? `translate(${at},${scale(tick)})` : `translate(${scale(tick)},${at})`}>
          {rules !== 0 && <line x2={upward ? rules : 0} y2={upward ? 0 : -rules} />}
          <text x={upward ? -8 : 0} y={upward ? 0 : 16}>
            {label(tick, whole)}
          </text>
        </g>
      ))}
      {name && (
        <text class="name" x={upward ? at : Math.max(...ends)} y={upward ? Math.min(...ends) - 14 : at + 32}>
          {name}
        </text>
      )}
    </g>
  );
}

function label(tick: number, whole: boolean): string {
  return whole ? `${tick}` : shown(tick).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

/** Returns what to hand an element as its `ref`, and how wide it is. */
export function useWidth<Shown extends HTMLElement>(before = 640) {
  const [element, setElement] = useState<Shown | null>(null);
  const [width, setWidth] = useState(before);
  useLayoutEffect(() => {
    if (!element) return;
    const measure = () => setWidth(element.clientWidth || before);
    measure();
    const watching = new ResizeObserver(measure);
    watching.observe(element);
    return () => watching.disconnect();
  }, [element]);
  return [setElement, width] as const;
}
