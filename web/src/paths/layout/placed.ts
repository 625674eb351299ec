/** Where everything of a trace stands, in pixels before zooming. */

export interface Placed {
  width: number;
  height: number;
  /** Pixels of thickness per unit of share x attention. */
  scale: number;
  nodes: PlacedNode[];
  /** For each link the points that the middle of its ribbon runs through, from source to target. */
  links: Point[][];
  columns: Tick[];
  rows: Tick[];
}

export interface PlacedNode {
  x: number;
  y: number;
  height: number;
}

export interface Point {
  x: number;
  y: number;
}

export interface Tick {
  at: number;
  text: string;
}

export interface Size {
  width: number;
  height: number;
}

export const NODE_WIDTH = 10;
export const NODE_HEIGHT = 4; // at least
export const LANE_HEIGHT = 1; // at least
