import { Tokens } from "../../ui/tokens";
import { useView } from "../../view";
import type { ScreenProps } from "..";

/** An example: its text, what was predicted at each position, and all heads. */
export function Overview({ run, example }: ScreenProps) {
  const [view, change] = useView();
  const stack = run.arch === "enc" ? "enc" : "dec";
  return (
    <Tokens
      tokens={example.tokens[stack] ?? []}
      label="Text"
      selected={view.q === undefined ? null : Number(view.q)}
      onSelect={(q) => change({ q })}
    />
  );
}
