/**
 * What d3-zoom asks of d3-transition and d3-interpolate, for figures that move at once: `build.mjs` puts it in the place
 * of both, of which a page would carry 30 KB for nothing.
 */

import { selection } from "d3-selection";

selection.prototype.interrupt = function () {
  return this;
};

export function interrupt(): void {}

/** Returns the way from one view to another, which only a transition would take. */
export function interpolateZoom(): never {
  throw new Error("no figure moves by degrees");
}
