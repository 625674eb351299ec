import type { Trace } from "../../payload";
import { flow } from "./flow";
import { grid } from "./grid";
import type { Placed, Size } from "./placed";

export type { Placed, Size, Tick } from "./placed";
export { NODE_WIDTH } from "./placed";
export { type Ribbon, ribbons } from "./ribbons";

/** Returns where a trace's nodes and links stand in a figure of about this size. */
export function place(trace: Trace, labels: string[], size: Size): Placed {
  return trace.arrangement === "flow" ? flow(trace, labels, size) : grid(trace, labels, size);
}
