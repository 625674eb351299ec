/** Lines over whole numbers, such as layers or positions. */

import { useState } from "preact/hooks";
import { shown } from "../numbers";
import { Axis, extentOf, scaleOf, useWidth } from "./axes";

export interface Line {
  name: string;
  values: ArrayLike<number>;
  /** A number from 0: which colour and dashes it has; null for one that stays behind the others. */
  style: number | null;
}

interface Props {
  label: string;
  /** Where each value stands, the same for all lines. */
  across: number[];
  lines: Line[];
  acrossName: string;
  /** What to call one place, for whoever hears it. */
  place: (index: number) => string;
  upwardName: string;
  log?: boolean;
  height?: number;
  /** A level that is marked. */
  level?: { value: number; name: string } | null;
  selected?: number | null;
  onSelect?: (index: number) => void;
}

const MARGIN = { top: 26, right: 14, bottom: 38, left: 52 };

/** Lines; the values at the place under the pointer, or at the selected one, are said below. */
export function Lines(props: Props) {
  const { label, across, lines, acrossName, place, upwardName, log = false, height = 240, level, selected = null, onSelect } = props;
  const [ref, width] = useWidth<HTMLDivElement>();
  const [over, setOver] = useState<number | null>(null);
  const found = extentOf([...lines.map(({ values }) => values), level ? [level.value] : []], log ? 0 : -Infinity);
  if (!found || !across.length) return <p class="nothing">There is no finite number to draw.</p>;
  const x = scaleOf([across[0] as number, across[across.length - 1] as number], [MARGIN.left, width - MARGIN.right]);
  const y = scaleOf(found, [height - MARGIN.bottom, MARGIN.top], log);
  const at = over ?? selected;
  const nearest = (event: PointerEvent | MouseEvent) => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    const value = x.invert(event.clientX - box.left);
    return across.reduce((best, own, index) => (Math.abs(own - value) < Math.abs((across[best] as number) - value) ? index : best), 0);
  };
  const step = (event: KeyboardEvent) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const to = by === undefined ? { Home: 0, End: across.length - 1 }[event.key] : (selected ?? (by > 0 ? -1 : across.length)) + by;
    if (to === undefined || across[to] === undefined || !onSelect) return;
    event.preventDefault();
    onSelect(to);
  };
  return (
    <div class="lines" ref={ref}>
      <svg
        width={width}
        height={height}
        role="img"
        tabIndex={onSelect ? 0 : undefined}
        aria-label={`${label}${at === null ? "" : `; ${place(at)}: ${told(lines, at)}`}`}
        onPointerMove={(event) => setOver(nearest(event))}
        onPointerLeave={() => setOver(null)}
        onClick={(event) => onSelect?.(nearest(event))}
        onKeyDown={step}
      >
        <Axis scale={y} at={MARGIN.left} upward rules={width - MARGIN.left - MARGIN.right} name={upwardName} />
        <Axis scale={x} at={height - MARGIN.bottom} whole name={acrossName} count={Math.min(across.length, width / 80)} />
        {lines.map(({ name, values, style }) => (
          <path
            key={name}
            class={style === null ? "line behind" : `line style-${style}`}
            d={across.map((own, index) => point(x(own), y(values[index] as number), y(values[index - 1] ?? NaN))).join("")}
          />
        ))}
        {level && (
          <g class="level">
            <line x1={MARGIN.left} x2={width - MARGIN.right} y1={y(level.value)} y2={y(level.value)} />
            <text x={width - MARGIN.right} y={y(level.value) - 6}>
              {level.name}
            </text>
          </g>
        )}
        {at !== null && across[at] !== undefined && (
          <g class="at">
            <line x1={x(across[at] as number)} x2={x(across[at] as number)} y1={MARGIN.top} y2={height - MARGIN.bottom} />
            {lines.map(({ name, values, style }) => {
              const value = y(values[at] as number);
              return style !== null && Number.isFinite(value) && <circle key={name} class={`style-${style}`} cx={x(across[at] as number)} cy={value} r={4} />;
            })}
          </g>
        )}
      </svg>
      <ul class="legend">
        {lines.map(
          ({ name, values, style }) =>
            style !== null && (
              <li key={name}>
                <svg width={26} height={10} aria-hidden="true">
                  <path class={`line style-${style}`} d="M1 5H25" />
                </svg>
                {name}
                {at !== null && <b>{number(values[at])}</b>}
              </li>
            ),
        )}
        <li class="place">{at === null ? " " : place(at)}</li>
      </ul>
    </div>
  );
}

function told(lines: Line[], at: number): string {
  return lines
    .filter(({ style }) => style !== null)
    .map(({ name, values }) => `${name} ${number(values[at])}`)
    .join(", ");
}

function number(value: number | undefined): string {
  return value === undefined || Number.isNaN(value) ? "none" : Number.isFinite(value) ? shown(value) : value > 0 ? "∞" : "−∞";
}

/** A point of a path; a line begins anew behind what is not finite. */
function point(x: number, y: number, before: number): string {
  if (!Number.isFinite(y)) return "";
  return `${Number.isFinite(before) ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}${Number.isFinite(before) ? "" : "h.01"}`;
}
