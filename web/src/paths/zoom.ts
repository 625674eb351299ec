import { select } from "d3-selection";
import { zoom, zoomIdentity, zoomTransform, type ZoomTransform } from "d3-zoom";
import type { RefObject } from "preact";
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { at } from "./model";
import type { Placed, Size } from "./layout";

const READABLE = 0.5; // a figure that would have to be smaller than this is shown in part
const EDGE = 24; // where a node counts as seen

export interface View {
  transform: ZoomTransform;
  by: (factor: number) => void;
  pan: (x: number, y: number) => void;
  fit: () => void;
  /** Pans as little as needed for a point of the figure to be seen. */
  show: (x: number, y: number) => void;
}

/** Lets a figure be zoomed and panned. `kept` and `keep` are its place in the page's state, independent of the window's size. */
export function useZoom(
  svg: RefObject<SVGSVGElement | null>,
  placed: Placed,
  size: Size,
  kept: string | undefined,
  keep: (text: string | null) => void,
): View {
  const [transform, setTransform] = useState(zoomIdentity);
  const behaviour = useMemo(() => zoom<SVGSVGElement, unknown>().scaleExtent([0.05, 10]), []);
  const latest = useRef({ size, keep });
  latest.current = { size, keep };

  useLayoutEffect(() => {
    if (!svg.current) return;
    behaviour.on("zoom", (event: { transform: ZoomTransform }) => setTransform(event.transform));
    behaviour.on("end", (event: { transform: ZoomTransform; sourceEvent: unknown }) => {
      if (event.sourceEvent) latest.current.keep(write(event.transform, latest.current.size));
    });
    const figure = select(svg.current).call(behaviour).on("dblclick.zoom", null);
    return () => {
      figure.on(".zoom", null);
    };
  }, [behaviour, svg]);

  const set = (next: ZoomTransform, remember: boolean) => {
    if (!svg.current) return;
    select(svg.current).call(behaviour.transform, next);
    if (remember) keep(write(next, size));
  };
  // Before the first paint, and whenever the figure or the window changes.
  useLayoutEffect(() => set(read(kept, size) ?? fitting(placed, size), false), [placed, size.width, size.height]);

  const now = () => (svg.current ? zoomTransform(svg.current) : zoomIdentity);
  const pan = (x: number, y: number) => set(now().translate(x / now().k, y / now().k), true);
  return {
    transform,
    pan,
    by: (factor) => {
      const { k } = now();
      const [x, y] = now().invert([size.width / 2, size.height / 2]);
      set(centred(k * factor, x, y, size), true);
    },
    fit: () => {
      set(fitting(placed, size), false);
      keep(null);
    },
    show: (x, y) => {
      const [left, top] = now().apply([x, y]);
      const inward = (place: number, length: number) => Math.min(Math.max(place, EDGE), length - EDGE) - place;
      const [dx, dy] = [inward(left, size.width), inward(top, size.height)];
      if (dx || dy) pan(dx, dy);
    },
  };
}

/** Returns the whole figure, or its part with the target (at the right) where the whole could not be read. */
function fitting(placed: Placed, size: Size): ZoomTransform {
  const whole = Math.min(1, size.width / placed.width, size.height / placed.height);
  const k = Math.max(whole, READABLE);
  const x = Math.min((size.width - k * placed.width) / 2, size.width - k * placed.width);
  const y = (size.height - k * placed.height) / 2;
  return zoomIdentity.translate(k * placed.width > size.width ? x : (size.width - k * placed.width) / 2, y).scale(k);
}

function centred(k: number, x: number, y: number, size: Size): ZoomTransform {
  return zoomIdentity.translate(size.width / 2 - k * x, size.height / 2 - k * y).scale(k);
}

function write(transform: ZoomTransform, size: Size): string {
  const [x, y] = transform.invert([size.width / 2, size.height / 2]);
  return [transform.k.toFixed(3), x.toFixed(0), y.toFixed(0)].join(",");
}

function read(text: string | undefined, size: Size): ZoomTransform | null {
  const numbers = (text ?? "").split(",").map(Number);
  if (numbers.length !== 3 || !numbers.every(Number.isFinite) || at(numbers, 0) <= 0) return null;
  return centred(at(numbers, 0), at(numbers, 1), at(numbers, 2), size);
}
