/** Labels along an axis of a matrix: as many as there is room for, and always those that are pointed at. */

interface Props {
  side: "top" | "left";
  labels: string[];
  /** Where the first label's cell begins, and how long a cell is, in pixels. */
  from: number;
  cell: number;
  /** Of the axis, and across it. */
  length: number;
  depth: number;
  /** Labels that are shown whatever else is. */
  marked: readonly number[];
}

const SPACING = 13; // pixels between labels
const GAP = 6;
const STEPS = [1, 2, 5];

export function Ruler({ side, labels, from, cell, length, depth, marked }: Props) {
  const step = stepFor(SPACING / cell);
  const first = Math.max(0, Math.ceil(-from / cell - 0.5));
  const last = Math.min(labels.length - 1, Math.floor((length - from) / cell - 0.5));
  const seen = [...new Set(marked)].filter((index) => index >= first && index <= last);
  const free = (index: number) => seen.every((other) => index === other || Math.abs(index - other) * cell >= SPACING);
  const shown: number[] = [];
  for (let index = Math.ceil(first / step) * step; index <= last; index += step) if (free(index)) shown.push(index);
  const top = side === "top";
  return (
    <svg class="ruler" width={top ? length : depth} height={top ? depth : length} aria-hidden="true">
      {[...new Set([...shown, ...apart(seen, cell)])].map((index) => {
        const at = from + (index + 0.5) * cell;
        return (
          <text
            key={index}
            class={seen.includes(index) ? "marked" : undefined}
            transform={top ? `translate(${at} ${depth - GAP}) rotate(-90)` : `translate(${depth - GAP} ${at})`}
            text-anchor={top ? "start" : "end"}
            dominant-baseline="central"
          >
            {fitting(labels[index] ?? "", depth - GAP)}
          </text>
        );
      })}
    </svg>
  );
}

/** Returns how many pixels labels need across their axis. */
export function depthOf(labels: string[]): number {
  const longest = labels.reduce((most, label) => Math.max(most, widthOf(label)), 0);
  return Math.min(104, Math.max(26, Math.ceil(longest) + GAP + 4));
}

/** Returns those marks of which none hides an earlier one. */
function apart(marked: number[], cell: number): number[] {
  return marked.filter((index, place) => marked.slice(0, place).every((other) => Math.abs(index - other) * cell >= SPACING));
}

function stepFor(cells: number): number {
  for (let power = 1; ; power *= 10) for (const step of STEPS) if (step * power >= cells) return step * power;
}

/** Returns a label cut to a width; a position at its end stays. */
function fitting(label: string, width: number): string {
  if (widthOf(label) <= width) return label;
  const [, text = label, position = ""] = /^(.*?)( [0-9]+)?$/s.exec(label) ?? [];
  const characters = [...text];
  while (characters.length > 1 && widthOf(`${characters.join("")}…${position}`) > width) characters.pop();
  return `${characters.join("")}…${position}`;
}

/** Returns about how many pixels a text takes at 11 pixels. */
function widthOf(text: string): number {
  let width = 0;
  for (const character of text) width += (character.codePointAt(0) ?? 0) > 0x2e80 ? 11.5 : 6.4;
  return width;
}
