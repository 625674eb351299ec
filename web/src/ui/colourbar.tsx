import { useLayoutEffect, useRef } from "preact/hooks";
import { type Scale, stepOf } from "../draw/heatmap";
import { type Palette, paletteOf } from "../draw/palette";
import { shown } from "../numbers";
import { useDark } from "../theme";

interface Props {
  range: readonly [number, number];
  scale?: Scale;
  palette?: Palette;
  /** What the numbers are. */
  label: string;
}

const [WIDTH, HEIGHT] = [168, 10];

/** Which colour is which number. */
export function ColourBar({ range, scale = "linear", palette = "sequential", label }: Props) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const dark = useDark();
  useLayoutEffect(() => {
    const image = new ImageData(256, 1);
    const colours = paletteOf(palette, dark);
    for (let step = 0; step < 256; step++) image.data.set([...colours.subarray(3 * step, 3 * step + 3), 255], 4 * step);
    canvas.current?.getContext("2d")?.putImageData(image, 0, 0);
  }, [palette, dark]);
  const marks = marksOf(range, scale);
  return (
    <figure class="colourbar" aria-label={`${label}: colours from ${shown(range[0])} to ${shown(range[1])}, ${scale}`}>
      <figcaption>{label}</figcaption>
      <div>
        <canvas ref={canvas} width={256} height={1} style={{ width: `${WIDTH}px`, height: `${HEIGHT}px` }} />
        <svg width={WIDTH + 48} height={18} aria-hidden="true">
          {marks.map((value) => (
            <text key={value} x={24 + (WIDTH * stepOf(value, { range, scale, palette: NONE })) / 255} y={13} text-anchor="middle">
              {shown(value)}
            </text>
          ))}
        </svg>
      </div>
    </figure>
  );
}

const NONE = new Uint8Array();

/** Returns the numbers that are written: both ends, and some between. */
function marksOf([low, high]: readonly [number, number], scale: Scale): number[] {
  if (scale === "log") {
    const middle = Math.round((Math.log10(low) + Math.log10(high)) / 2);
    return [low, 10 ** middle, high];
  }
  return scale === "sqrt" && low === 0 ? [low, low + (high - low) / 4, high] : [low, (low + high) / 2, high];
}
