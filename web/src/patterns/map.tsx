import type { ComponentChildren } from "preact";
import { useLayoutEffect, useMemo } from "preact/hooks";
import type { Scale } from "../draw/heatmap";
import { shown } from "../numbers";
import type { ExampleAbout, Token } from "../payload";
import type { Loaded } from "../resource";
import { Chart } from "../ui/chart";
import { ColourBar } from "../ui/colourbar";
import type { Frame } from "../ui/frame";
import { Heatmap, tokenLabels } from "../ui/heatmap";
import type { Sheet } from "../ui/save";
import { Trouble } from "../ui/states";
import { codeOf } from "./code";
import { type HeadQuery, type Pattern, useExact } from "./pattern";

/** One head of one example, and the tokens along its axes. */
export interface Side {
  /** `A` or `B`, or nothing where there is one only. */
  letter: string;
  query: HeadQuery;
  example: ExampleAbout;
  queries: Token[];
  keys: Token[];
}

/** How weights become colours. */
export interface Look {
  scale: Scale;
  /** Whether the strongest colour is the largest weight, and not 1. */
  stretched: boolean;
}

interface Props {
  side: Side;
  loaded: Loaded<Pattern>;
  look: Look;
  /** The largest weight of all pictures that share a scale. */
  largest: number;
  selected: readonly [number | null, number | null];
  onSelect: (query: number, key: number) => void;
  /** The part that is shown, where two pictures share it. */
  frame?: Frame;
  onFrame?: (frame: Frame) => void;
  tall: number;
  notice?: string | null;
  tools?: ComponentChildren;
}

const LOG_SPAN = 1e-4; // of the largest: what lies below has the colour of nothing

/** A head's pattern: queries from top to bottom, keys from left to right. */
export function PatternMap({ side, loaded, look, largest, selected, onSelect, frame, onFrame, tall, notice, tools }: Props) {
  const pattern = loaded.state === "ready" ? loaded.value : null;
  const exact = useExact(side.query, pattern);
  const rowLabels = useMemo(() => tokenLabels(side.queries), [side.queries]);
  const columnLabels = useMemo(() => tokenLabels(side.keys), [side.keys]);
  useMarks(pattern, side);
  if (loaded.state === "failed") return <Trouble problem={loaded.problem} />;
  const { layer, head } = side.query;
  const range = rangeOf(look, largest);
  const describe = (row: number, column: number) => {
    const value = exact(row, column);
    return `${rowLabels[row]} → ${columnLabels[column]}: ${value === null ? "…" : shown(value)}`;
  };
  const title = side.letter ? `${side.letter}: L${layer}H${head}, text ${side.example.number + 1}` : `L${layer}H${head}`;
  return (
    <Chart
      title={title}
      field={`table${side.letter}`}
      notice={notice ?? null}
      code={codeOf(side.query)}
      sheet={() => sheetOf(side, pattern, exact, selected[0])}
      tools={tools}
    >
      <Heatmap
        values={pattern?.values ?? null}
        pixels={pattern?.pixels ?? null}
        most={pattern?.largest ?? 1}
        block={pattern?.block ?? 1}
        rows={side.queries.length}
        columns={side.keys.length}
        {...{ rowLabels, columnLabels, range, selected, onSelect, tall, describe }}
        {...(frame && onFrame ? { frame, onFrame } : {})}
        scale={look.scale}
        label={`Attention of layer ${layer}, head ${head}: ${side.queries.length} queries from top to bottom, ${side.keys.length} keys from left to right. Arrow keys select a cell, plus and minus zoom, f shows all.`}
      />
      <ColourBar range={range} scale={look.scale} label="weight" />
    </Chart>
  );
}

export function rangeOf({ scale, stretched }: Look, largest: number): readonly [number, number] {
  const most = stretched && largest > 0 ? largest : 1;
  return [scale === "log" ? most * LOG_SPAN : 0, most];
}

/** Says in the browser's time line when a head can be recognised, and when it is sharp. */
function useMarks(pattern: Pattern | null, { query }: Side): void {
  useLayoutEffect(() => {
    if (!pattern) return;
    const detail = `L${query.layer}H${query.head}`;
    performance.mark("head-recognisable", { detail });
    if (pattern.block === 1) performance.mark("head-sharp", { detail });
  }, [pattern]);
}

const MOST_CELLS = 64 * 64;

/** Returns all weights of a short text, or those of one query. */
function sheetOf({ queries, keys, query }: Side, pattern: Pattern | null, exact: (row: number, column: number) => number | null, selected: number | null): Sheet {
  const all = pattern?.values && queries.length * keys.length <= MOST_CELLS;
  const chosen = all ? queries.map((_, row) => row) : [selected ?? queries.length - 1];
  const rows = chosen.flatMap((row) =>
    keys.map(({ text }, column) => [row, queries[row]?.text ?? "", column, text, exact(row, column) ?? "not loaded"]),
  );
  const what = all ? "all weights" : `the weights of the selected query, ${chosen[0]}`;
  return { caption: `L${query.layer}H${query.head}: ${what}`, columns: ["query", "query token", "key", "key token", "weight"], rows };
}
