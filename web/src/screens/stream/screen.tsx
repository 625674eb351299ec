import type { Stack } from "../../payload";
import { Tokens } from "../../ui/tokens";
import { useKeys } from "../../keyboard";
import { useView } from "../../view";
import type { ScreenProps } from "..";
import { LensSection } from "./lens";
import { Neurons } from "./neurons";
import { Norms } from "./norms";
import { Traits } from "./traits";

/** What a section of this screen is given: whose tokens, and which of them is selected. */
export interface Place extends ScreenProps {
  stack: Stack;
  q: number | null;
}

/** The residual stream: how long it is, what it would say at each layer, and how far along traits it lies. */
export function Stream({ run, example }: ScreenProps) {
  const [view, change] = useView();
  const usual: Stack = run.arch === "enc" ? "enc" : "dec";
  const stack = run.arch === "encdec" && view["stream.stack"] === "enc" ? "enc" : usual;
  const tokens = example.tokens[stack] ?? [];
  const q = view.q !== undefined && tokens[Number(view.q)] ? Number(view.q) : null;
  const place: Place = { run, example, stack, q };
  useKeys([
    { keys: ["ArrowLeft", "ArrowRight"], does: "previous and next position, in a chart that has the focus" },
    { keys: ["ArrowUp", "ArrowDown"], does: "layer above and below, in the logit lens" },
  ]);
  return (
    <>
      {run.arch === "encdec" && (
        <label class="choice">
          Stream of the{" "}
          <select value={stack} onChange={(event) => change({ "stream.stack": event.currentTarget.value, q: null })}>
            <option value="dec">decoder</option>
            <option value="enc">encoder</option>
          </select>
        </label>
      )}
      <Tokens tokens={tokens} label="Text" selected={q} response={stack === "dec" ? example.n_prompt : null} onSelect={(q) => change({ q })} />
      {tokens.length === 0 ? (
        <p class="nothing">This example has no tokens.</p>
      ) : (
        <>
          <Norms {...place} />
          {(stack === "dec" || run.arch === "enc") && <LensSection {...place} />}
          <Traits {...place} />
          <Neurons {...place} />
        </>
      )}
    </>
  );
}
