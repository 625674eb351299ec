import { useMemo, useState } from "preact/hooks";
import type { Scale } from "../draw/heatmap";
import { floats, type Packet } from "../packet";
import { counted, shown } from "../numbers";
import type { AttentionAbout, PatternAbout } from "../payload";
import { type Loaded, usePacket } from "../resource";
import { Chart } from "../ui/chart";
import { ColourBar } from "../ui/colourbar";
import { type Frame, WHOLE } from "../ui/frame";
import { Heatmap, tokenLabels } from "../ui/heatmap";
import { Trouble } from "../ui/states";
import type { Counterparts } from "./align";
import { codeOfDifference } from "./code";
import { type Look, PatternMap, type Side } from "./map";
import { type Pattern, useExact, usePattern } from "./pattern";

interface Props {
  attention: AttentionAbout;
  a: Side;
  b: Side;
  queries: Counterparts;
  keys: Counterparts;
  look: Look;
  /** In A. */
  selected: readonly [number | null, number | null];
  onSelect: (query: number, key: number) => void;
  tall: number;
}

/** Two heads on one scale, and the one less the other; what is selected or enlarged in one is so in all. */
export function Pair({ a, b, queries, keys, look, selected, onSelect, tall }: Props) {
  const [frame, setFrame] = useState<Frame>(WHOLE);
  const first = usePattern(a.query, a.queries.length, a.keys.length);
  const second = usePattern(b.query, b.queries.length, b.keys.length);
  const largest = Math.max(...[first, second].map((loaded) => (loaded.state === "ready" ? loaded.value.largest : 0)));
  const over = (map: Int32Array, position: number | null) => {
    const found = position === null ? -1 : (map[position] ?? -1);
    return found < 0 ? null : found;
  };
  const selectBack = (query: number, key: number) => {
    const [row, column] = [over(queries.back, query), over(keys.back, key)];
    if (row !== null && column !== null) onSelect(row, column);
  };
  const shared = { look, largest, frame, onFrame: setFrame, tall };
  const { run: run2, ex: ex2, layer: layer2, head: head2 } = b.query;
  const difference = usePacket("difference", { ...a.query, run2, ex2, layer2, head2 });
  const notice = difference.state === "ready" ? noticeOf(difference.value.about as unknown as PatternAbout) : null;
  return (
    <div class="pair">
      {notice && (
        <p class="notice" role="status">
          {notice}
        </p>
      )}
      <PatternMap side={a} loaded={first} {...shared} {...{ selected, onSelect }} />
      <PatternMap
        side={b}
        loaded={second}
        {...shared}
        selected={[over(queries.there, selected[0]), over(keys.there, selected[1])]}
        onSelect={selectBack}
      />
      <Difference {...{ a, b, first, second, queries, keys, selected, onSelect, frame, tall }} loaded={difference} scale={look.scale} onFrame={setFrame} />
    </div>
  );
}

interface DifferenceProps {
  loaded: Loaded<Packet>;
  scale: Scale;
  a: Side;
  b: Side;
  first: Loaded<Pattern>;
  second: Loaded<Pattern>;
  queries: Counterparts;
  keys: Counterparts;
  selected: readonly [number | null, number | null];
  onSelect: (query: number, key: number) => void;
  frame: Frame;
  onFrame: (frame: Frame) => void;
  tall: number;
}

function Difference({ loaded, scale, a, b, first, second, queries, keys, selected, onSelect, frame, onFrame, tall }: DifferenceProps) {
  const ours = useExact(a.query, valueOf(first));
  const theirs = useExact(b.query, valueOf(second));
  const rowLabels = useMemo(() => tokenLabels(a.queries), [a.queries]);
  const columnLabels = useMemo(() => tokenLabels(a.keys), [a.keys]);
  if (loaded.state === "failed") return <Trouble problem={loaded.problem} />;
  const about = loaded.state === "ready" ? (loaded.value.about as unknown as PatternAbout) : null;
  const values = loaded.state === "ready" ? floats(loaded.value, "values") : null;
  const most = about?.largest || 1;
  const signed = scale === "linear" ? "linear" : "sqrt"; // there is no logarithm of both signs
  const differenceAt = (row: number, column: number): number | null => {
    const [query, key] = [queries.there[row] ?? -1, keys.there[column] ?? -1];
    if (query < 0 || key < 0) return NaN;
    const [mine, other] = [ours(row, column), theirs(query, key)];
    return mine === null || other === null ? null : Math.fround(mine - other);
  };
  const describe = (row: number, column: number) => {
    const value = differenceAt(row, column);
    const told = value === null ? "…" : Number.isNaN(value) ? "no counterpart in B" : shown(value);
    return `${rowLabels[row]} → ${columnLabels[column]}: ${told}`;
  };
  return (
    <Chart
      title="A − B"
      field="tableAB"
      code={codeOfDifference(a.query, b.query)}
      sheet={() => ({
        caption: `A − B of the selected query, ${selected[0] ?? 0}`,
        columns: ["query", "query token", "key", "key token", "A − B"],
        rows: a.keys.map(({ text }, column) => {
          const [row, value] = [selected[0] ?? 0, differenceAt(selected[0] ?? 0, column)];
          return [row, a.queries[row]?.text ?? "", column, text, value === null ? "not loaded" : Number.isNaN(value) ? "no counterpart" : value];
        }),
      })}
    >
      <Heatmap
        values={values}
        block={about?.block ?? 1}
        rows={a.queries.length}
        columns={a.keys.length}
        {...{ rowLabels, columnLabels, selected, onSelect, frame, onFrame, tall, describe }}
        range={[-most, most]}
        palette="diverging"
        scale={signed}
        label="A less B, in the positions of A. Arrow keys select a cell, plus and minus zoom, f shows all."
      />
      {about && <ColourBar range={[-most, most]} palette="diverging" scale={signed} label="A − B" />}
    </Chart>
  );
}

function valueOf(loaded: Loaded<Pattern>): Pattern | null {
  return loaded.state === "ready" ? loaded.value : null;
}

/** Says what the picture of a difference leaves out. */
function noticeOf({ queries, keys, block, aligned_queries = 0, aligned_keys = 0 }: PatternAbout): string | null {
  const parts: string[] = [];
  if (aligned_queries < queries || aligned_keys < keys) {
    const [count, of, what] = queries - aligned_queries >= keys - aligned_keys ? [aligned_queries, queries, "query"] : [aligned_keys, keys, "key"];
    parts.push(`A − B: ${count} of ${counted(of, `${what} token`)} of A have a counterpart in B, the others are hatched`);
  }
  if (block > 1) parts.push(`A − B: each pixel is the largest difference of ${block} × ${block} cells`);
  return parts.length ? `${parts.join("; ")}.` : null;
}
