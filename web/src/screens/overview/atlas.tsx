import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { sequential } from "../../draw/palette";
import type { Place } from "../../heads";
import type { AtlasAbout } from "../../payload";
import { useDark } from "../../theme";
import type { Thumbnails } from "./thumbnails";

interface Props {
  atlas: AtlasAbout;
  thumbnails: Thumbnails;
  /** All heads that are stored, layer by layer. */
  heads: Place[];
  /** The layers that have no attention, which are told between the others. */
  without: number[];
  /** How many there are of each layer. */
  width: number;
  /** Pixels from left to right that there are for it. */
  room: number;
  /** Which heads are shown, in this order, and a few words below each of them; null for layers above each other. */
  ranked: { head: number; words: string }[] | null;
  selected: number | null;
  onSelect: (head: number) => void;
  onHover: (head: number | null) => void;
  onOpen: () => void;
  /** What is told of a head. */
  describe: (head: number) => string;
}

const LEFT = 40; // pixels for the names of layers
const TALL = 720; // pixels that the picture may take before its thumbnails are as small as they get
const LARGEST = 128; // pixels of a thumbnail
const TOLD = 16; // pixels for a line about layers without attention

/** Layers without attention in words, each with the line before which it is told: layers that lie together at once. */
function gapsOf(without: number[], layers: number[]): { line: number; words: string }[] {
  const before = new Map<number, number[]>();
  for (const layer of without) {
    const line = layers.findIndex((each) => each > layer);
    const place = line < 0 ? layers.length : line;
    before.set(place, [...(before.get(place) ?? []), layer]);
  }
  return [...before].map(([line, own]) => {
    const [first, last] = [own[0] ?? 0, own[own.length - 1] ?? 0];
    const names = own.length > 2 && last - first === own.length - 1 ? `L${first} to L${last}` : own.map((layer) => `L${layer}`).join(", ");
    return { line, words: `${names}: no attention` };
  });
}

/** All heads as thumbnails, drawn into one canvas: by layer and head, or by rank. */
export function Atlas(props: Props) {
  const { atlas, thumbnails, heads, without, width, room, ranked, selected, onSelect, onHover, onOpen, describe } = props;
  const canvas = useRef<HTMLCanvasElement>(null);
  const [hovered, setHovered] = useState<number | null>(null);
  const dark = useDark();
  const order = ranked?.map(({ head }) => head) ?? heads.map((_, head) => head);
  const top = ranked ? 4 : 22; // pixels for the names of heads
  const lines = Math.ceil(order.length / width);
  const cell = sizeOf(atlas, (room - LEFT) / width, TALL / lines);
  const gap = cell > 40 ? 5 : 1;
  const words = ranked !== null && cell >= 44 ? 16 : 0;
  const [stepX, stepY] = [cell + gap, cell + gap + words];
  const told = ranked ? [] : gapsOf(without, Array.from({ length: lines }, (_, line) => heads[line * width]?.layer ?? 0));
  const above = (line: number) => TOLD * told.filter((each) => each.line <= line).length;
  const [wide, tall] = [width * stepX - gap, lines * stepY - gap + above(lines)]; // and a line of one pixel around
  const placeOf = (place: number) => {
    const line = Math.floor(place / width);
    return [(place % width) * stepX, line * stepY + above(line)] as const;
  };
  const lineAt = (y: number) => Array.from({ length: lines }, (_, line) => line).find((line) => y >= line * stepY + above(line) && y < (line + 1) * stepY + above(line)) ?? -1;

  const picture = [order.join(), cell, dark, wide, tall].join(" ");
  const painted = useRef({ picture: "", heads: new Set<number>() });
  useLayoutEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (!context) return;
    const anew = painted.current.picture !== picture;
    if (anew) painted.current = { picture, heads: new Set() };
    context.fillStyle = getComputedStyle(canvas.current as Element).color;
    order.forEach((head, place) => {
      const [x, y] = placeOf(place);
      if (anew) context.fillRect(x, y, cell + 2, cell + 2);
      if (!thumbnails.drawn[head] || painted.current.heads.has(head)) return;
      painted.current.heads.add(head);
      context.putImageData(imageOf(atlas, thumbnails.pixels, head, cell, dark), x + 1, y + 1);
    });
  }, [thumbnails, picture]);

  const chosen = selected === null ? -1 : order.indexOf(selected);
  useEffect(() => {
    // Not when the page opens, which begins with its text.
    if (document.activeElement?.closest(".atlas")) document.getElementById(RING)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [chosen, cell]);

  const at = (event: PointerEvent | MouseEvent): number | null => {
    const box = canvas.current?.getBoundingClientRect();
    if (!box) return null;
    const [x, y] = [Math.floor((event.clientX - box.left) / stepX), lineAt(event.clientY - box.top)];
    return x >= 0 && x < width && y >= 0 ? (order[y * width + x] ?? null) : null;
  };
  const hover = (head: number | null) => {
    if (head === hovered) return;
    setHovered(head);
    onHover(head);
  };
  const press = (event: KeyboardEvent) => {
    if (event.key === "Enter" && selected !== null) {
      event.preventDefault();
      onOpen();
      return;
    }
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width, Home: -chosen, End: order.length - 1 - chosen }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = order[chosen < 0 ? 0 : chosen + step];
    if (next !== undefined) onSelect(next);
  };

  const spokenOf = hovered ?? selected;
  return (
    <div class="atlas">
      <div
        class="field"
        role="listbox"
        tabIndex={0}
        aria-label={`Heads of ${atlas.name}`}
        aria-activedescendant={selected === null ? undefined : OPTION}
        style={{ width: `${wide + LEFT + 2}px`, height: `${tall + top + 2}px` }}
        onKeyDown={press}
        onPointerMove={(event) => hover(at(event))}
        onPointerLeave={() => hover(null)}
        onClick={(event) => {
          const head = at(event);
          if (head !== null) onSelect(head);
        }}
        onDblClick={onOpen}
        title={spokenOf === null ? undefined : describe(spokenOf)}
      >
        <canvas ref={canvas} width={wide + 2} height={tall + 2} style={{ left: `${LEFT - 1}px`, top: `${top - 1}px` }} />
        <svg width={wide + LEFT + 2} height={tall + top + 2 + words} aria-hidden="true">
          <g class="axis">
            {Array.from({ length: ranked ? 0 : width }, (_, column) => (
              <text key={column} x={LEFT + column * stepX + cell / 2} y={top - 8} text-anchor="middle">
                H{heads[column]?.head}
              </text>
            ))}
            {Array.from({ length: lines }, (_, line) => (
              <text key={line} x={LEFT - 8} y={top + line * stepY + above(line) + cell / 2} text-anchor="end" dominant-baseline="central">
                {ranked ? `${line * width + 1}.` : `L${heads[line * width]?.layer}`}
              </text>
            ))}
            {told.map(({ line, words }) => (
              <text key={words} x={LEFT} y={top + line * stepY + above(line) - TOLD / 2} dominant-baseline="central">
                {words}
              </text>
            ))}
            {words > 0 &&
              ranked?.map(({ head, words }, place) => {
                const [x, y] = placeOf(place);
                return (
                  <text key={head} x={LEFT + x + cell / 2} y={top + y + cell + 12} text-anchor="middle">
                    {words}
                  </text>
                );
              })}
          </g>
          {[chosen, hovered === null ? -1 : order.indexOf(hovered)].map((place, index) => {
            if (place < 0) return null;
            const [x, y] = placeOf(place);
            const frame = { x: LEFT + x - 1, y: top + y - 1, width: cell + 2, height: cell + 2 };
            return <rect key={index} id={index ? undefined : RING} class={index ? "hovered" : "ring"} {...frame} rx={1} />;
          })}
        </svg>
        {selected !== null && (
          <span id={OPTION} class="unseen" role="option" aria-selected="true">
            {describe(selected)}
          </span>
        )}
      </div>
    </div>
  );
}

const RING = "atlas-ring";
const OPTION = "atlas-option";

/** Returns how many pixels a thumbnail's side has: a multiple of its cells, so that all of them are the same. */
function sizeOf({ rows, columns }: AtlasAbout, wide: number, tall: number): number {
  const cells = Math.max(rows, columns, 1);
  const most = Math.min(wide - 5, tall - 5, LARGEST);
  return cells * Math.max(1, Math.floor(most / cells));
}

function imageOf({ rows, columns }: AtlasAbout, pixels: Uint8Array, head: number, cell: number, dark: boolean): ImageData {
  const image = new ImageData(cell, cell);
  const colours = sequential(dark);
  const first = head * rows * columns;
  for (let y = 0, at = 0; y < cell; y++) {
    const row = first + Math.floor((y * rows) / cell) * columns;
    for (let x = 0; x < cell; x++, at += 4) {
      const colour = 3 * (pixels[row + Math.floor((x * columns) / cell)] ?? 0);
      image.data[at] = colours[colour] ?? 0;
      image.data[at + 1] = colours[colour + 1] ?? 0;
      image.data[at + 2] = colours[colour + 2] ?? 0;
      image.data[at + 3] = 255;
    }
  }
  return image;
}

