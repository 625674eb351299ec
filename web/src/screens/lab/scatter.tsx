import { useState } from "preact/hooks";
import { type Head, spoken } from "../../heads";
import { useKeys } from "../../keyboard";
import type { MetricAbout } from "../../payload";
import { Axis, extentOf, scaleOf, useWidth } from "../../ui/axes";
import { written } from "../../ui/headcard";
import { farthest, labelled, neighbour } from "./labels";

interface Props {
  /** Heads that have both metrics. */
  heads: Head[];
  across: MetricAbout;
  upward: MetricAbout;
  /** Names of clusters, and which one each head is in; null where there are none. */
  clusters: { names: string[]; of: number[] } | null;
  selected: Head | undefined;
  onSelect: (head: Head) => void;
  onHover: (head: Head | null) => void;
  onOpen: () => void;
}

const MARGIN = { left: 62, right: 20, top: 30, bottom: 44 };
const MOST_NAMES = 24;
const NEAR = 14; // pixels from the pointer to a point
const STEPS: Record<string, [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Heads as points: two metrics, and their clusters as colours and shapes. */
export function Scatter({ heads, across, upward, clusters, selected, onSelect, onHover, onOpen }: Props) {
  const [outer, wide] = useWidth<HTMLDivElement>();
  const [hovered, setHovered] = useState<number | null>(null);
  const tall = Math.max(300, Math.min(560, Math.round(wide * 0.62)));
  const value = (head: Head, { name }: MetricAbout) => head.values[name] ?? Number.NaN;
  const [rangeX, rangeY] = [across, upward].map((metric) => padded(extentOf([heads.map((head) => value(head, metric))])));
  const x = scaleOf(rangeX ?? [0, 1], [MARGIN.left, wide - MARGIN.right]);
  const y = scaleOf(rangeY ?? [0, 1], [tall - MARGIN.bottom, MARGIN.top]);
  const points = heads.map((head) => ({ x: x(value(head, across)), y: y(value(head, upward)) }));
  const chosen = selected ? heads.indexOf(selected) : -1;
  const names = heads.map(({ name }) => name);
  const first = [chosen, hovered ?? -1].filter((index) => index >= 0);
  const labels = labelled(points, [...first, ...farthest(points).slice(0, MOST_NAMES)].filter(unique), names, first, wide, tall);
  const told = (head: Head) =>
    `${head.attention} ${head.name}: ${spoken(across)} ${written(value(head, across))}, ${spoken(upward)} ${written(value(head, upward))}`;

  useKeys([
    { keys: ["a"], does: "heads lab: go to the heads", run: () => outer.current?.querySelector("svg")?.focus() },
    { keys: Object.keys(STEPS), written: "← → ↑ ↓", does: "among the heads: the nearest one there; Enter opens it" },
  ]);
  const hover = (index: number | null) => {
    if (index === hovered) return;
    setHovered(index);
    onHover(index === null ? null : (heads[index] ?? null));
  };
  const nearest = (event: PointerEvent | MouseEvent): number | null => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    const far = points.map((point) => Math.hypot(point.x - event.clientX + box.left, point.y - event.clientY + box.top));
    const least = far.reduce((best, own, index) => (own < (far[best] ?? Infinity) ? index : best), 0);
    return (far[least] ?? Infinity) <= NEAR ? least : null;
  };
  const press = (event: KeyboardEvent) => {
    if (event.key === "Enter" && chosen >= 0) {
      event.preventDefault();
      onOpen();
    }
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const next = heads[chosen < 0 ? 0 : neighbour(points, chosen, ...step)];
    if (next) onSelect(next);
  };
  return (
    <div class="scatter" ref={outer}>
      <svg
        width={wide}
        height={tall}
        tabindex={0}
        role="img"
        aria-label={`${heads.length} heads: ${spoken(upward)} by ${spoken(across)}${selected && chosen >= 0 ? `; ${told(selected)}` : "; arrow keys go from one to the next"}`}
        onKeyDown={press}
        onPointerMove={(event) => hover(nearest(event))}
        onPointerLeave={() => hover(null)}
        onClick={(event) => {
          const head = heads[nearest(event) ?? -1];
          if (head) onSelect(head);
        }}
        onDblClick={onOpen}
      >
        <Axis scale={y} at={MARGIN.left} upward rules={wide - MARGIN.left - MARGIN.right} name={titled(upward)} />
        <Axis scale={x} at={tall - MARGIN.bottom} rules={tall - MARGIN.top - MARGIN.bottom} name={titled(across)} count={wide / 110} />
        {points.map((point, index) => {
          const cluster = clusters?.of[index] ?? null;
          return <path key={index} class={cluster === null ? "point" : `point cluster-${cluster % SHAPES.length}`} d={shapeOf(cluster)} transform={`translate(${point.x.toFixed(1)},${point.y.toFixed(1)})`} />;
        })}
        {chosen >= 0 && <circle class="ring" cx={points[chosen]?.x} cy={points[chosen]?.y} r={9} />}
        {hovered !== null && <circle class="hovered" cx={points[hovered]?.x} cy={points[hovered]?.y} r={8} />}
        {labels.map(({ index, x, y, anchor }) => (
          <text key={index} class={first.includes(index) ? "name chosen" : "name"} x={x} y={y} text-anchor={anchor} dominant-baseline="central">
            {names[index]}
          </text>
        ))}
      </svg>
    </div>
  );
}

/** Clusters are told apart by shapes as well as by colours. */
const SHAPES = ["M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "M-3.7 -3.7h7.4v7.4h-7.4z", "M0 -4.8L4.6 3.6H-4.6z", "M0 -5L5 0L0 5L-5 0z", "M0 4.8L4.6 -3.6H-4.6z", "M-1.6 -5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4z", "M-5 -2.4h10v4.8h-10z", "M-2.4 -5h4.8v10h-4.8z"];

export function shapeOf(cluster: number | null): string {
  return SHAPES[(cluster ?? 0) % SHAPES.length] ?? "";
}

function titled(metric: MetricAbout): string {
  return metric.unit ? `${spoken(metric)} (${metric.unit})` : spoken(metric);
}

/** A little more than the least and the largest number. */
function padded(extent: [number, number] | null): [number, number] {
  const [low, high] = extent ?? [0, 1];
  const more = 0.04 * (high - low || Math.abs(high) || 1);
  return [low - more, high + more];
}

function unique<Value>(value: Value, index: number, values: Value[]): boolean {
  return values.indexOf(value) === index;
}
