import type { ExampleAbout } from "../payload";
import { Problem } from "../problem";
import { useView } from "../view";

/** Returns the query and the key that the address names; without a query the last one. */
export function useSelection(queries: number, keys: number): readonly [query: number, key: number | null] {
  const [view] = useView();
  const query = positionOf(view.q, queries);
  return [query ?? queries - 1, positionOf(view.k, keys)];
}

function positionOf(text: string | undefined, length: number): number | null {
  const number = Number(text ?? NaN);
  return Number.isInteger(number) && number >= 0 && number < length ? number : null;
}

/** Returns tokens of one of an example's stacks. */
export function tokensOf(example: ExampleAbout, stack: "enc" | "dec") {
  return example.tokens[stack] ?? [];
}

export const NO_PATTERNS = new Problem("this run holds no attention patterns", "", 'record with `capture="attn"`');
