import { useMemo } from "preact/hooks";
import { useKeys } from "../../keyboard";
import { counted } from "../../numbers";
import { counterparts } from "../../patterns/align";
import { Beside } from "../../patterns/beside";
import { HeadControls, useHeadKeys, useLook } from "../../patterns/controls";
import type { Side } from "../../patterns/map";
import { changeOther, nextHead, type Other, otherOf } from "../../patterns/other";
import { attentionOf, numberAmong } from "../../patterns/pattern";
import { NO_PATTERNS, tokensOf, useSelection } from "../../patterns/selection";
import type { AlignmentAbout, AttentionAbout } from "../../payload";
import { Problem } from "../../problem";
import { Trouble } from "../../ui/states";
import { Tokens } from "../../ui/tokens";
import { useView } from "../../view";
import type { ScreenProps } from "..";
import { Metrics } from "./metrics";

/** Two texts, or two runs: the same head in both, and what differs. */
export function Compare({ run, example }: ScreenProps) {
  const [view] = useView();
  const attention = attentionOf(run, view.attn);
  if (!attention) return <Trouble problem={NO_PATTERNS} />;
  if (!tokensOf(example, attention.stack).length || !tokensOf(example, attention.key_stack).length) {
    return <Trouble problem={new Problem("this example has no tokens", "", "another example")} />;
  }
  return <TwoTexts key={`${attention.name} ${example.number}`} {...{ run, example, attention }} />;
}

function TwoTexts({ run, example, attention }: ScreenProps & { attention: AttentionAbout }) {
  const [view, change] = useView();
  const look = useLook();
  const layer = numberAmong(view.layer, attention.layers);
  const head = numberAmong(view.head, attention.heads);
  const [queries, keys] = [tokensOf(example, attention.stack), tokensOf(example, attention.key_stack)];
  const selected = useSelection(queries.length, keys.length);
  const first: Other = { run: run.name, ex: `${example.number}`, layer, head };
  const several = run.n_examples > 1;
  const next = several ? { ...first, ex: `${(example.number + 1) % run.n_examples}` } : { ...first, head: nextHead(attention, head) };
  const other = otherOf(view, "compare", first) ?? next;
  const side = useMemo<Side>(
    () => ({ letter: "A", query: { run: run.name, ex: example.number, attn: attention.name, layer, head }, example, queries, keys }),
    [run, example, attention, layer, head],
  );
  const select = (q: number, k: number | null) => change({ q, k });
  useKeys([
    ...useHeadKeys(attention, layer, head),
    { keys: ["n"], does: "the next text as B", run: () => changeOther(change, "compare", { ...other, ex: `${(Number(other.ex) + 1) % run.n_examples}` }) },
  ]);
  return (
    <div class="head">
      <div class="controls">
        <strong>A</strong>
        <HeadControls {...{ run, attention, layer, head }} />
      </div>
      <Beside screen="compare" a={side} {...{ other, attention, look, selected }} onSelect={select} tall={400}>
        {(b, alignment) => <Texts a={side} {...{ b, alignment, attention, selected }} onSelect={select} />}
      </Beside>
      <Metrics a={side.query} b={{ run: other.run, ex: other.ex, attn: attention.name, layer: other.layer, head: other.head }} />
    </div>
  );
}

interface TextsProps {
  a: Side;
  b: Side;
  alignment: AlignmentAbout | null;
  attention: AttentionAbout;
  selected: readonly [number, number | null];
  onSelect: (query: number, key: number | null) => void;
}

/** Both texts: a token that is pressed in one is selected in the other as well; those that differ are marked. */
function Texts({ a, b, alignment, attention, selected: [query, key], onSelect }: TextsProps) {
  const maps = useMemo(
    () => counterparts(alignment, attention.stack, a.queries.length, b.queries.length),
    [alignment, a.queries, b.queries],
  );
  const apart = (length: number, other: (position: number) => boolean) => Float32Array.from({ length }, (_, position) => (other(position) ? 0 : 0.3));
  const shadeA = useMemo(() => apart(a.queries.length, (position) => maps.same[position] === 1), [maps]);
  const shadeB = useMemo(() => apart(b.queries.length, (position) => maps.same[maps.back[position] ?? -1] === 1), [maps]);
  const there = (position: number | null) => {
    const found = position === null ? -1 : (maps.there[position] ?? -1);
    return found < 0 ? null : found;
  };
  const same = maps.same.reduce((sum, one) => sum + one, 0);
  const placed = maps.there.reduce((sum, one) => sum + Number(one >= 0), 0) - same;
  const crossed = attention.stack !== attention.key_stack;
  return (
    <div class="texts two">
      <Tokens tokens={a.queries} label="Text A" selected={query} second={crossed ? null : key} shade={shadeA} onSelect={(q) => onSelect(q, null)} />
      <Tokens
        tokens={b.queries}
        label="Text B"
        selected={there(query)}
        second={crossed ? null : there(key)}
        shade={shadeB}
        onSelect={(position) => {
          const back = maps.back[position] ?? -1;
          if (back >= 0) onSelect(back, null);
        }}
      />
      <p class="rest">
        {alignment
          ? `${counted(same, "token")} of ${a.queries.length} in A and ${b.queries.length} in B are the same${placed ? `, ${placed} more stand at the same place` : ""}; what differs is shaded.`
          : "Both are the same text."}
      </p>
    </div>
  );
}
