/** How a beam is told from others without its colour: Okabe and Ito's palette, a dash pattern, and a letter. */

const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#7f7f7f"];
const DASHES = ["none", "7 3", "2 3", "10 3 2 3", "4 2", "12 4", "1 2", "6 2 1 2 1 2", "3 6"];

export function colour(beam: number): string {
  return COLOURS[beam % COLOURS.length] ?? "currentColor";
}

/** Returns a pattern that differs from that of other beams of the same colour; there are nine, which is not a multiple of eight. */
export function dashes(beam: number): string {
  return DASHES[beam % DASHES.length] ?? "none";
}
