import type { VNode } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";

/** Returns the part of this key as it was made last, unless its state is another one; all are made anew with other inputs. */
export type Keep = (key: number, state: string, make: () => VNode) => VNode;

/** Keeps parts of a picture of which few change at a time: what is handed over unchanged is not even compared. */
export function useKept(inputs: unknown[]): Keep {
  return useMemo(() => {
    const kept = new Map<number, { state: string; made: VNode }>();
    return (key, state, make) => {
      const known = kept.get(key);
      if (known?.state === state) return known.made;
      const made = make();
      kept.set(key, { state, made });
      return made;
    };
  }, inputs);
}

/** Returns a value as it was when the page was last painted; null before that. */
export function useLate<Value>(value: Value): Value | null {
  const [late, setLate] = useState<Value | null>(null);
  useEffect(() => setLate(value), [value]);
  return late;
}
