/** What a page has: all, or, where no server answers it, some screens of some examples. */

import { SCREENS, type Screen } from ".";
import type { Source } from "../source";

export function screensOf({ start }: Source): Screen[] {
  const carried = start["screens"]?.split(",");
  return carried ? SCREENS.filter(({ id }) => carried.includes(id)) : SCREENS;
}

/** Returns the example that comes some steps after one. */
export function stepped({ start }: Source, example: number, by: number, count: number): number {
  const carried = start["examples"]?.split(",").map(Number);
  if (!carried) return (example + by + count) % count;
  return carried[(carried.indexOf(example) + by + carried.length) % carried.length] ?? example;
}
