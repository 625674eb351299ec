/** Pictures and tables as files. */

/** A table as it is shown and saved. */
export interface Sheet {
  caption: string;
  columns: string[];
  rows: (string | number)[][];
}

export function saveText(name: string, text: string, type: string): void {
  saveBlob(name, new Blob([text], { type }));
}

export function saveBlob(name: string, blob: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Returns a sheet as CSV (RFC 4180). */
export function csv({ columns, rows }: Sheet): string {
  const cell = (value: string | number) => (/[",\r\n]/.test(`${value}`) ? `"${`${value}`.replaceAll('"', '""')}"` : `${value}`);
  return [columns, ...rows].map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

const STYLES = [
  "fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linecap", "opacity",
  "font-family", "font-size", "font-weight", "text-anchor", "dominant-baseline", "paint-order",
  "visibility", "display",
];

/** Returns all drawings inside an element as one SVG file: its svg and canvas elements where they stand. */
export function svgOf(picture: Element): string {
  const box = picture.getBoundingClientRect();
  const root = document.createElementNS(SVG, "svg");
  root.setAttribute("xmlns", SVG);
  root.setAttribute("width", `${box.width}`);
  root.setAttribute("height", `${box.height}`);
  root.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
  const back = document.createElementNS(SVG, "rect");
  back.setAttribute("width", "100%");
  back.setAttribute("height", "100%");
  back.setAttribute("fill", getComputedStyle(document.documentElement).backgroundColor);
  root.append(back);
  for (const drawing of picture.querySelectorAll<SVGSVGElement | HTMLCanvasElement>("svg, canvas")) {
    if (drawing.parentElement?.closest("svg") || drawing.closest("[data-not-saved]")) continue;
    const place = drawing.getBoundingClientRect();
    if (place.width && place.height) root.append(copyOf(drawing, place.left - box.left, place.top - box.top, place));
  }
  return new XMLSerializer().serializeToString(root);
}

/** Returns the same as a PNG, at twice the size. */
export async function pngOf(picture: Element): Promise<Blob> {
  const { width, height } = picture.getBoundingClientRect();
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgOf(picture))}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = 2 * width;
  canvas.height = 2 * height;
  canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done, fail) => {
    canvas.toBlob((blob) => (blob ? done(blob) : fail(new Error("the picture is too large"))), "image/png");
  });
}

const SVG = "http://www.w3.org/2000/svg";

function copyOf(drawing: SVGSVGElement | HTMLCanvasElement, x: number, y: number, { width, height }: DOMRect): Element {
  if (drawing instanceof HTMLCanvasElement) {
    const image = document.createElementNS(SVG, "image");
    const fields = { x, y, width, height, href: drawing.toDataURL(), "image-rendering": "pixelated" };
    for (const [name, value] of Object.entries(fields)) image.setAttribute(name, `${value}`);
    return image;
  }
  const copy = drawing.cloneNode(true) as SVGSVGElement;
  const [from, to] = [[drawing, ...drawing.querySelectorAll("*")], [copy, ...copy.querySelectorAll<SVGElement>("*")]];
  from.forEach((element, index) => {
    const style = getComputedStyle(element);
    for (const name of STYLES) to[index]?.setAttribute(name, style.getPropertyValue(name)); // a style in markup is forbidden
    to[index]?.removeAttribute("style");
  });
  for (const [name, value] of Object.entries({ x, y, width, height })) copy.setAttribute(name, `${value}`);
  return copy;
}
