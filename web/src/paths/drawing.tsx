import { useMemo } from "preact/hooks";
import type { Trace } from "../payload";
import { NODE_WIDTH, type Placed, type Ribbon } from "./layout";
import { at, letter, nodesOf, type Pick } from "./model";
import { colour, dashes } from "./palette";

interface Props {
  trace: Trace;
  placed: Placed;
  lanes: Ribbon[][];
  labels: string[];
  names: string[];
  visible: ReadonlySet<number>;
  present: ReadonlySet<number>;
  lit: ReadonlySet<number> | null;
  pick: Pick | null;
  found: ReadonlySet<number>;
  focused: number;
}

const LETTERED = 10; // a lane this high has room for its beam's letter
const DASHED = 4; // and this high for its dashes, beside other lanes

/** Lanes by beam, so that lighting or hiding a beam touches one element; then the nodes above them. */
export function Drawing({ trace, placed, lanes, labels, names, visible, present, lit, pick, found, focused }: Props) {
  const bright = useMemo(() => lit && nodesOf(trace, lit), [trace, lit]);
  return (
    <>
      {lanes.map((own, beam) =>
        visible.has(beam) ? (
          <Lanes key={beam} beam={beam} lanes={own} state={lit ? (lit.has(beam) ? "lit" : "dim") : "plain"} />
        ) : null,
      )}
      {trace.nodes.map((_, node) => {
        if (!present.has(node)) return null;
        const { x, y, height } = at(placed.nodes, node);
        const picked = pick?.kind === "node" && pick.index === node;
        const classes = [
          "node",
          node === trace.target && "target",
          trace.nodes[node]?.source && "source",
          bright && (bright.has(node) ? "lit" : "dim"),
          picked && "picked",
          found.has(node) && "found",
        ];
        return (
          <g
            key={node}
            class={classes.filter(Boolean).join(" ")}
            data-node={node}
            role="button"
            aria-label={names[node]}
            aria-pressed={picked}
            tabindex={node === focused ? 0 : -1}
            transform={`translate(${x},${y})`}
          >
            <rect class="reach" x={-6} y={-6} width={NODE_WIDTH + 12} height={height + 12} />
            <rect class="body" width={NODE_WIDTH} height={height} rx={2.5} />
            {placed.rows.length === 0 && (
              <text x={NODE_WIDTH / 2} y={-11}>
                {labels[node]}
              </text>
            )}
          </g>
        );
      })}
    </>
  );
}

function Lanes({ beam, lanes, state }: { beam: number; lanes: Ribbon[]; state: string }) {
  const drawn = useMemo(() => {
    const dashed = lanes.filter(({ height, alone }) => alone || height >= DASHED);
    const lettered = lanes.filter(({ height }) => height >= LETTERED);
    return (
      <>
        {lanes.map(({ link, value, attention, height, outline }) => (
          <path
            key={link}
            class={height < DASHED ? "lane thin" : "lane"}
            d={outline}
            {...{ "data-link": link, "data-beam": beam, "data-value": value, "data-attention": attention }}
          />
        ))}
        <path class="spine" d={dashed.map(({ spine }) => spine).join("")} stroke-dasharray={dashes(beam)} />
        {lettered.map(({ link, middle }) => (
          <text key={link} x={middle.x} y={middle.y}>
            {letter(beam)}
          </text>
        ))}
      </>
    );
  }, [lanes, beam]);
  return (
    <g class={`beam ${state}`} style={{ "--beam": colour(beam) }}>
      {drawn}
    </g>
  );
}
