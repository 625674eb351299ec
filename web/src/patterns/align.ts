/** Which positions of two texts stand for each other. */

import type { AlignmentAbout, Stack, Stretch } from "../payload";
import { type Loaded, useJson } from "../resource";
import type { Side } from "./map";

/** For each position of the one text that of the other, and the other way around; −1 where there is none. */
export interface Counterparts {
  there: Int32Array;
  back: Int32Array;
  /** Where the tokens are the same, and not only at the same place. */
  same: Uint8Array;
}

/** Returns the alignment of two texts; null for the same text, where each position is its own counterpart. */
export function useAlignment(a: Side, b: Side): Loaded<AlignmentAbout> | null {
  const isSame = a.query.run === b.query.run && a.example.number === b.example.number;
  const query = { run: a.query.run, ex: a.example.number, run2: b.query.run, ex2: b.example.number };
  const loaded = useJson<AlignmentAbout>("alignment", isSame ? null : query);
  return isSame ? null : loaded;
}

export function counterparts(alignment: AlignmentAbout | null, stack: Stack, length: number, otherLength: number): Counterparts {
  const whole: Stretch = { first: 0, second: 0, size: length, same: true };
  const found: Counterparts = {
    there: new Int32Array(length).fill(-1),
    back: new Int32Array(otherLength).fill(-1),
    same: new Uint8Array(length),
  };
  for (const { first, second, size, same } of alignment ? (alignment.stacks[stack] ?? []) : [whole]) {
    for (let at = 0; at < size; at++) {
      found.there[first + at] = second + at;
      found.back[second + at] = first + at;
      found.same[first + at] = Number(same);
    }
  }
  return found;
}
