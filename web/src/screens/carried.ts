/** What a page has: all, or, where no server answers it, some screens of some examples. */

import { SCREENS, type Screen } from ".";
import type { Source } from "../source";

export function screensOf({ start }: Source): Screen[] {
  const carried = start["screens"]?.split(",");
  return carried ? SCREENS.filter(({ id }) => carried.includes(id)) : SCREENS;
}

/** Returns the numbers of the examples of a run that there are. */
export function examplesOf({ start }: Source, count: number): number[] {
  return start["examples"]?.split(",").map(Number) ?? Array.from({ length: count }, (_, number) => number);
}
