/** Axes of charts, drawn from d3 scales, and how wide a chart may be. */

import { scaleLinear, scaleLog, type ScaleContinuousNumeric } from "d3-scale";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { shown } from "../numbers";

export type Scale = ScaleContinuousNumeric<number, number>;

/** Returns a scale from numbers to pixels; of a logarithmic one all numbers are above 0. */
export function scaleOf(domain: [number, number], range: [number, number], log = false): Scale {
  const [low, high] = domain[0] === domain[1] ? [domain[0] - 1, domain[1] + 1] : domain;
  return log && low > 0 ? scaleLog([low, high], range) : scaleLinear([low, high], range);
}

/** Returns the least and the largest of the numbers that are finite (and above 0); null where none is. */
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
  const ticks = spread(scale.ticks(count), count).filter((tick) => !whole || Number.isInteger(tick));
  const [start = 0, end = 0] = scale.range();
  return (
    <g class={`axis ${upward ? "upward" : "across"}`} aria-hidden="true">
      {ticks.map((tick) => {
        const place = scale(tick);
        return upward ? (
          <g key={tick} transform={`translate(${at},${place})`}>
            {rules !== 0 && <line x2={rules} />}
            <text x={-8}>{label(tick, whole)}</text>
          </g>
        ) : (
          <g key={tick} transform={`translate(${place},${at})`}>
            {rules !== 0 && <line y2={-rules} />}
            <text y={16}>{label(tick, whole)}</text>
          </g>
        );
      })}
      {name &&
        (upward ? (
          <text class="name" x={at} y={Math.min(start, end) - 12}>
            {name}
          </text>
        ) : (
          <text class="name" x={Math.max(start, end)} y={at + 32}>
            {name}
          </text>
        ))}
    </g>
  );
}

/** Ticks of a logarithmic scale are more than asked for. */
function spread(ticks: number[], count: number): number[] {
  const step = Math.ceil(ticks.length / (2 * count));
  return ticks.filter((_, index) => index % step === 0);
}

function label(tick: number, whole: boolean): string {
  return whole ? `${tick}` : shown(tick).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

/** Returns how wide an element is, and what to hand it as its `ref`. */
export function useWidth<Shown extends HTMLElement>(before = 640) {
  const ref = useRef<Shown>(null);
  const [width, setWidth] = useState(before);
  useLayoutEffect(() => {
    const element = ref.current;
    if (!element) return;
    setWidth(element.clientWidth || before);
    const watching = new ResizeObserver(() => setWidth(element.clientWidth || before));
    watching.observe(element);
    return () => watching.disconnect();
  }, []);
  return [ref, width] as const;
}
