/** The second of two heads that are compared: it lies in the address, in fields that begin with the screen's name. */

import type { AttentionAbout, ExampleAbout, RunAbout, RunRow } from "../payload";
import { useJson, useSource } from "../resource";
import { type Change, type View, useView } from "../view";
import { stepped } from "./pattern";
import { Stepper } from "./stepper";

/** What it is; anything not said is as of the first. */
export interface Other {
  run: string;
  ex: string;
  layer: number;
  head: number;
}

const FIELDS = ["run", "ex", "layer", "head"] as const;

/** Returns the second head, or null where the address names none. */
export function otherOf(view: View, screen: string, first: Other): Other | null {
  if (FIELDS.every((field) => view[`${screen}.${field}`] === undefined)) return null;
  const said = (field: (typeof FIELDS)[number]) => view[`${screen}.${field}`];
  return {
    run: said("run") ?? first.run,
    ex: said("ex") ?? first.ex,
    layer: Number(said("layer") ?? first.layer),
    head: Number(said("head") ?? first.head),
  };
}

/** Changes the second head; null takes it away. */
export function changeOther(change: Change, screen: string, to: Partial<Other> | null): void {
  const fields = to ?? { run: null, ex: null, layer: null, head: null };
  change(Object.fromEntries(Object.entries(fields).map(([field, value]) => [`${screen}.${field}`, value])));
}

interface Props {
  screen: string;
  first: Other;
  other: Other;
  attention: AttentionAbout;
  run: RunAbout;
  example: ExampleAbout | null;
}

/** Chooses the second head: another layer or head, another text, another run. */
export function OtherPicker({ screen, first, other, attention, run, example }: Props) {
  const [, change] = useView();
  const { live } = useSource();
  const runs = useJson<{ runs: RunRow[] }>("runs", live ? {} : null);
  const set = (to: Partial<Other>) => changeOther(change, screen, { ...other, ...to });
  const names = runs.state === "ready" ? runs.value.runs.filter(({ problem }) => !problem).map(({ name }) => name) : [first.run];
  const count = run.n_examples;
  return (
    <div class="other" role="group" aria-label="B">
      <strong>B</strong>
      {names.length > 1 && (
        <label>
          run{" "}
          <select value={other.run} onChange={(event) => set({ run: event.currentTarget.value, ex: "0" })}>
            {names.map((name) => (
              <option key={name} value={name}>
                {name}
              </option>
            ))}
          </select>
        </label>
      )}
      {count > 1 && example && (
        <div class="stepper" role="group" aria-label="Text of B">
          <button type="button" aria-label="Previous text of B" onClick={() => set({ ex: `${(example.number + count - 1) % count}` })}>
            ‹
          </button>
          <span title={example.id}>
            text {example.number + 1} of {count}
          </span>
          <button type="button" aria-label="Next text of B" onClick={() => set({ ex: `${(example.number + 1) % count}` })}>
            ›
          </button>
        </div>
      )}
      <Stepper name="layer" value={other.layer} numbers={attention.layers} keys={null} onChange={(layer) => set({ layer })} />
      <Stepper name="head" value={other.head} numbers={attention.heads} keys={null} onChange={(head) => set({ head })} />
    </div>
  );
}

/** Returns the head after one, as what to compare it with at first. */
export function nextHead({ heads }: AttentionAbout, head: number): number {
  return stepped(heads, head, 1);
}
