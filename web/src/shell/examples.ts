import { useEffect, useState } from "preact/hooks";
import { counted } from "../numbers";
import type { ExampleList, ExampleRow, RunAbout } from "../payload";
import { type Loaded, useJson } from "../resource";
import type { Choice } from "../ui/picker";

/** Returns the examples whose text or id contains something; asked for once nothing was typed for a moment. */
export function useExamples(run: string, find: string, wanted = true): Loaded<ExampleList> {
  const settled = useSettled(find, 150);
  return useJson<ExampleList>("examples", wanted ? { run, find: settled || null } : null);
}

export function choiceOf({ number, id, text, lengths }: ExampleRow, current: number | undefined, choose: (number: number) => void): Choice {
  const tokens = Object.values(lengths).map((length) => counted(length, "token"));
  return {
    key: `example ${number}`,
    title: text || id,
    detail: `number ${number} · ${tokens.join(" and ")} · ${id}`,
    current: number === current,
    choose: () => choose(number),
  };
}

/** Returns what is to be said below a list of examples. */
export function noteOf(list: Loaded<ExampleList>, run: RunAbout): string | null {
  if (list.state === "failed") return list.problem.message;
  if (list.state === "loading") return "Loading";
  const { total, examples } = list.value;
  if (!total) return `None of ${counted(run.n_examples, "example")} has this in its text or id`;
  return total > examples.length ? `${examples.length} of ${total} shown; type to find others` : null;
}

function useSettled<Value>(value: Value, milliseconds: number): Value {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), milliseconds);
    return () => clearTimeout(timer);
  }, [value]);
  return settled;
}
