/** Which part of a matrix is shown: how much it is enlarged, and its upper left corner as a part of the whole. */

import type { Area } from "../draw/heatmap";

export interface Frame {
  /** From 0 to 1, so that matrices of two sizes can be shown alike. */
  x: number;
  y: number;
  zoom: number;
}

export const WHOLE: Frame = { x: 0, y: 0, zoom: 1 };

const WIDEST = 56; // pixels of a cell

export interface Plot {
  width: number;
  height: number;
  rows: number;
  columns: number;
}

export function areaOf({ x, y, zoom }: Frame, { rows, columns }: Plot): Area {
  return { column: x * columns, row: y * rows, columns: columns / zoom, rows: rows / zoom };
}

/** Returns the cell at a place of the plot, or null beside it. */
export function cellAt(frame: Frame, plot: Plot, left: number, top: number): readonly [row: number, column: number] | null {
  const area = areaOf(frame, plot);
  const row = Math.floor(area.row + (top / plot.height) * area.rows);
  const column = Math.floor(area.column + (left / plot.width) * area.columns);
  return row >= 0 && column >= 0 && row < plot.rows && column < plot.columns ? [row, column] : null;
}

/** Returns a frame moved by pixels. */
export function moved(frame: Frame, plot: Plot, right: number, down: number): Frame {
  return bounded({ ...frame, x: frame.x - right / plot.width / frame.zoom, y: frame.y - down / plot.height / frame.zoom });
}

/** Returns a frame enlarged so that what is at a place of the plot stays there. */
export function enlarged(frame: Frame, plot: Plot, factor: number, left = plot.width / 2, top = plot.height / 2): Frame {
  const zoom = Math.min(mostZoom(plot), Math.max(1, frame.zoom * factor));
  const [across, down] = [left / plot.width, top / plot.height];
  return bounded({
    zoom,
    x: frame.x + across / frame.zoom - across / zoom,
    y: frame.y + down / frame.zoom - down / zoom,
  });
}

/** Returns a frame in which single cells can be told apart, with one of them in the middle. */
export function closeTo(plot: Plot, row: number, column: number): Frame {
  const zoom = Math.min(mostZoom(plot), Math.max(1, (28 * plot.columns) / plot.width));
  return bounded({ zoom, x: (column + 0.5) / plot.columns - 0.5 / zoom, y: (row + 0.5) / plot.rows - 0.5 / zoom });
}

/** Returns a frame moved as far as needed for a cell to be seen. */
export function holding(frame: Frame, plot: Plot, row: number, column: number): Frame {
  const part = 1 / frame.zoom;
  const along = (from: number, index: number, count: number) => Math.min(index / count, Math.max((index + 1) / count - part, from));
  return bounded({ ...frame, x: along(frame.x, column, plot.columns), y: along(frame.y, row, plot.rows) });
}

function mostZoom({ columns, rows, width, height }: Plot): number {
  return Math.max(1, Math.min((WIDEST * columns) / width, (WIDEST * rows) / height));
}

function bounded({ x, y, zoom }: Frame): Frame {
  const within = (from: number) => Math.min(1 - 1 / zoom, Math.max(0, from));
  return { x: within(x), y: within(y), zoom };
}
