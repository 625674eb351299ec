import type { RefObject } from "preact";
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { type Binding, useKeys } from "../../keyboard";
import { counted } from "../../numbers";
import { Beside } from "../../patterns/beside";
import { codeOf } from "../../patterns/code";
import { HeadControls, useHeadKeys, useLook } from "../../patterns/controls";
import { PatternMap, type Side } from "../../patterns/map";
import { changeOther, nextHead, type Other, otherOf } from "../../patterns/other";
import { attentionOf, numberAmong, type Pattern, useNeighbours, usePattern, useWeights } from "../../patterns/pattern";
import { Profile } from "../../patterns/profile";
import { NO_PATTERNS, tokensOf, useSelection } from "../../patterns/selection";
import type { AttentionAbout } from "../../payload";
import { type Loaded, useSource } from "../../resource";
import { Problem } from "../../problem";
import { tokenLabel } from "../../ui/heatmap";
import { Trouble } from "../../ui/states";
import { Tokens } from "../../ui/tokens";
import { addressOf, type View, useView } from "../../view";
import type { ScreenProps } from "..";
import { Facts } from "./facts";

/** One head: where each token of a text looks, alone or beside another head. */
export function Head({ run, example }: ScreenProps) {
  const [view] = useView();
  const attention = attentionOf(run, view.attn);
  if (!attention) return <Trouble problem={NO_PATTERNS} />;
  if (!tokensOf(example, attention.stack).length || !tokensOf(example, attention.key_stack).length) {
    return <Trouble problem={new Problem("this example has no tokens", "", "another example")} />;
  }
  return <OneHead key={`${attention.name} ${example.number}`} {...{ run, example, attention }} />;
}

function OneHead({ run, example, attention }: ScreenProps & { attention: AttentionAbout }) {
  const [view, change] = useView();
  const look = useLook();
  const layer = numberAmong(view.layer, attention.layers);
  const head = numberAmong(view.head, attention.heads);
  const [queries, keys] = [tokensOf(example, attention.stack), tokensOf(example, attention.key_stack)];
  const selected = useSelection(queries.length, keys.length);
  const first: Other = { run: run.name, ex: `${example.number}`, layer, head };
  const other = otherOf(view, "head", first);
  const side = useMemo<Side>(
    () => ({ letter: other ? "A" : "", query: { run: run.name, ex: example.number, attn: attention.name, layer, head }, example, queries, keys }),
    [run, example, attention, layer, head, !other],
  );
  const loaded = usePattern(side.query, queries.length, keys.length);
  const pattern = loaded.state === "ready" ? loaded.value : null;
  useNeighbours(side.query, attention, pattern);
  const { live } = useSource(); // what a page carries is of one text and one head at a time
  const select = (q: number, k: number | null) => change({ q, k });
  const inAnotherText = { screen: "compare", "compare.run": run.name, "compare.ex": (example.number + 1) % run.n_examples };
  const beside = () => changeOther(change, "head", other ? null : { head: nextHead(attention, head) });
  useKeys([
    ...useHeadKeys(attention, layer, head),
    ...(live ? [{ keys: ["b"], does: "compare with another head, or no longer", run: beside } satisfies Binding] : []),
    ...(live && run.n_examples > 1 ? [{ keys: ["c"], does: "compare the head in two texts", run: () => change(inAnotherText) } satisfies Binding] : []),
  ]);
  return (
    <div class="head">
      <div class="controls">
        <HeadControls {...{ run, attention, layer, head }} />
        {live && (
          <button type="button" title="Compare with another head (b)" aria-pressed={other !== null} onClick={beside}>
            Compare heads
          </button>
        )}
        {live && run.n_examples > 1 && (
          <a class="button" title="Compare the head in two texts (c)" href={addressOf(view, inAnotherText)}>
            Compare texts
          </a>
        )}
      </div>
      <Text {...{ side, attention, pattern, selected }} response={example.n_prompt} onSelect={select} />
      {other ? (
        <Beside screen="head" a={side} {...{ other, attention, look, selected }} onSelect={select} tall={420} />
      ) : (
        <Alone {...{ side, attention, loaded, pattern, selected }} notice={noticeOf(view, attention, pattern, look.scale)} onSelect={select} />
      )}
    </div>
  );
}

interface TextProps {
  side: Side;
  attention: AttentionAbout;
  pattern: Pattern | null;
  selected: readonly [number, number | null];
  response: number | null;
  onSelect: (query: number, key: number | null) => void;
}

/** The text, shaded by where the selected query looks: press a token to see what it drew on. */
function Text({ side, attention, pattern, selected: [query, key], response, onSelect }: TextProps) {
  const weights = useWeights(side.query, pattern, "row", query);
  const most = weights ? weights.reduce((most, weight) => Math.max(most, weight), 0) : 0;
  const shade = weights && weights.map((weight) => weight / (most || 1));
  const crossed = attention.stack !== attention.key_stack;
  return (
    <div class="texts">
      <Tokens
        tokens={side.queries}
        label={crossed ? "Queries" : "Text: press a token to see what it drew on"}
        selected={query}
        second={crossed ? null : key}
        shade={crossed ? null : shade}
        response={attention.stack === "dec" ? response : null}
        onSelect={(q) => onSelect(q, null)}
      />
      {crossed && <Tokens tokens={side.keys} label="Keys: what the query drew on" selected={key} shade={shade} onSelect={(k) => onSelect(query, k)} />}
    </div>
  );
}

interface AloneProps {
  side: Side;
  attention: AttentionAbout;
  loaded: Loaded<Pattern>;
  pattern: Pattern | null;
  selected: readonly [number, number | null];
  notice: string | null;
  onSelect: (query: number, key: number | null) => void;
}

/** The picture of one head, with the row and the column that are selected. */
function Alone({ side, loaded, pattern, selected, notice, onSelect }: AloneProps) {
  const [query, key] = selected;
  const row = useWeights(side.query, pattern, "row", query);
  const column = useWeights(side.query, pattern, "column", key);
  const look = useLook();
  const [place, tall] = useRoom();
  const name = (tokens: Side["keys"], position: number) => `“${tokens[position] && tokenLabel(tokens[position], position)}”`;
  return (
    <div class="alone" ref={place}>
      <PatternMap
        {...{ side, loaded, look, selected, onSelect, notice }}
        largest={pattern?.largest ?? 1}
        tall={tall}
      />
      <div class="profiles">
        <Profile
          title={`What ${name(side.queries, query)} looks at`}
          tokens={side.keys}
          weights={row}
          selected={key}
          onSelect={(k) => onSelect(query, k)}
          code={codeOf(side.query, `pattern[${query}]`)}
          field="tableQ"
          whole
        />
        {key !== null && (
          <Profile
            title={`Who looks at ${name(side.keys, key)}`}
            tokens={side.queries}
            weights={column}
            selected={query}
            onSelect={(q) => onSelect(q, key)}
            code={codeOf(side.query, `pattern[:, ${key}]`)}
            field="tableK"
          />
        )}
        <Facts query={side.query} long={pattern !== null && !pattern.values} />
      </div>
    </div>
  );
}

const AROUND = 150; // pixels of a picture's heading, its words and its colours

/** Returns how tall a picture may be so that all of it is seen without scrolling. */
function useRoom(): readonly [RefObject<HTMLDivElement | null>, number] {
  const place = useRef<HTMLDivElement>(null);
  const [tall, setTall] = useState(480);
  useLayoutEffect(() => {
    const measure = () => setTall(Math.max(360, window.innerHeight - (place.current?.offsetTop ?? 0) - AROUND));
    measure();
    window.addEventListener("resize", measure);
    return () => window.removeEventListener("resize", measure);
  }, []);
  return [place, tall];
}

/** Says what is not there, and what colours cannot show. */
function noticeOf(view: View, { name, layers, n_layers, without }: AttentionAbout, pattern: Pattern | null, scale: string): string | null {
  const parts: string[] = [];
  if (view.layer !== undefined && !layers.includes(Number(view.layer))) parts.push(`layer ${view.layer} was not recorded`);
  if (without.length) parts.push(`no attention in ${without.length === 1 ? "layer" : "layers"} ${without.join(", ")}`);
  if (n_layers !== null && layers.length + without.length < n_layers) parts.push(`${name} of ${counted(layers.length, "layer")} only: ${layers.join(", ")}`);
  if (pattern?.rounded) parts.push("this file carries weights in 256 steps of their square roots; the run itself has them as they are");
  if (pattern?.pixels && scale === "log") parts.push("long texts are drawn in 255 steps of square roots, which a logarithm shows coarsely below a thousandth of the largest weight; the number that is told of a cell is as stored");
  const told = parts.join("; ");
  return told ? `${told.charAt(0).toUpperCase()}${told.slice(1)}.` : null;
}
