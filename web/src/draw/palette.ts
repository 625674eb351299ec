/**
 * Colours of numbers and of kinds.
 *
 * A palette is a curve in Oklab, whose lightness runs from that of the page to its opposite, cut into 255 pieces of
 * the same length: equal steps of a number look equally far apart, and the order can be seen without seeing hues.
 */

/** Okabe and Ito's palette, which people see apart whatever cones they have. */
export const categories = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#7f7f7f"];

export type Palette = "sequential" | "diverging";

type Point = [lightness: number, a: number, b: number];

const FINE = 2048; // points of a curve before it is cut

/** Returns 256 colours (red, green, blue, one after the other) from the page's own for the least to the strongest. */
export const sequential = remembered((dark) => {
  const [from, to, hue, turn] = dark ? [0.205, 0.95, -75, 170] : [0.985, 0.24, 95, -170];
  return cut((t) => polar(from + (to - from) * t, 0.165 * Math.sin(0.85 * Math.PI * t), hue + turn * t), 256);
});

/** Returns 256 colours from blue through the page's own, at 127 and 128, to orange. */
export const diverging = remembered((dark) => {
  const [from, to] = dark ? [0.205, 0.8] : [0.985, 0.42];
  const half = (hue: number) => cut((t) => polar(from + (to - from) * t, 0.13 * Math.sin(0.73 * Math.PI * t), hue), 128);
  const [cold, warm] = [half(250), half(45)];
  return Uint8Array.from({ length: 768 }, (_, at) => {
    const [step, part] = [Math.floor(at / 3), at % 3];
    return (step < 128 ? cold[3 * (127 - step) + part] : warm[3 * (step - 128) + part]) ?? 0;
  });
});

export function paletteOf(name: Palette, dark: boolean): Uint8Array {
  return name === "sequential" ? sequential(dark) : diverging(dark);
}

/** Returns a step of a palette as CSS writes it. */
export function css(palette: Uint8Array, step: number): string {
  return `rgb(${palette.subarray(3 * step, 3 * step + 3).join(" ")})`;
}

function remembered(make: (dark: boolean) => Uint8Array): (dark: boolean) => Uint8Array {
  const made = new Map<boolean, Uint8Array>();
  return (dark) => {
    const known = made.get(dark) ?? make(dark);
    made.set(dark, known);
    return known;
  };
}

/** Returns colours at equal distances along a curve. */
function cut(curve: (t: number) => Point, count: number): Uint8Array {
  const points = Array.from({ length: FINE }, (_, index) => curve(index / (FINE - 1)));
  let length = 0;
  const reached = points.map((point, index) => {
    const before = points[index - 1] ?? point;
    length += Math.hypot(point[0] - before[0], point[1] - before[1], point[2] - before[2]);
    return length;
  });
  const colours: number[] = [];
  for (let step = 0, at = 0; step < count; step++) {
    while (at < FINE - 1 && (reached[at] ?? length) < (length * step) / (count - 1)) at++;
    colours.push(...rgb(points[at] ?? curve(1)));
  }
  return Uint8Array.from(colours);
}

function polar(lightness: number, chroma: number, hue: number): Point {
  const angle = (hue * Math.PI) / 180;
  return [lightness, chroma * Math.cos(angle), chroma * Math.sin(angle)];
}

/** Oklab to sRGB in bytes (Ottosson, "A perceptual color space for image processing", 2020). */
function rgb([lightness, a, b]: Point): number[] {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((part) => {
    const bounded = Math.min(1, Math.max(0, part));
    return Math.round(255 * (bounded <= 0.0031308 ? 12.92 * bounded : 1.055 * bounded ** (1 / 2.4) - 0.055));
  });
}
