import { useMemo, useRef } from "preact/hooks";
import type { Trace } from "../payload";
import { useKept } from "./kept";
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
const DASHED = 4; // and this high for its dashes
const MOST_DASHED = 400; // lanes of which even a thin one is dashed, where it is alone: dashes are slow to paint

/**
 * Lanes by beam, then the nodes above them. Lighting or hiding a beam or a node changes its class and nothing else, so
 * what was drawn once stays in the document.
 */
export function Drawing({ trace, placed, lanes, labels, names, visible, present, lit, pick, found, focused }: Props) {
  const bright = useMemo(() => lit && nodesOf(trace, lit), [trace, lit]);
  const labelled = placed.rows.length === 0;
  const keep = useKept([trace, placed, labels, names]);
  const few = useMemo(() => lanes.flat().length <= MOST_DASHED, [lanes]);
  return (
    <>
      {lanes.map((own, beam) => (
        <Lanes key={beam} beam={beam} lanes={own} few={few} visible={visible.has(beam)} state={shade(lit, beam)} />
      ))}
      {trace.nodes.map(({ source }, node) => {
        const picked = pick?.kind === "node" && pick.index === node;
        const classes = [
          "node",
          !present.has(node) && "off",
          node === trace.target && "target",
          source && "source",
          shade(bright, node),
          picked && "picked",
          found.has(node) && "found",
        ]
          .filter(Boolean)
          .join(" ");
        return keep(node, `${classes} ${node === focused}`, () => {
          const { x, y, height } = at(placed.nodes, node);
          const label = labelled ? at(labels, node) : "";
          return (
            <g
              key={node}
              class={classes}
              data-node={node}
              role="button"
              aria-label={at(names, node)}
              aria-pressed={picked}
              tabindex={node === focused ? 0 : -1}
              transform={`translate(${x},${y})`}
            >
              <rect class="reach" x={-6} y={-6} width={NODE_WIDTH + 12} height={height + 12} />
              <rect class="body" width={NODE_WIDTH} height={height} rx={2.5} />
              {label && (
                <text x={NODE_WIDTH / 2} y={-11}>
                  {label}
                </text>
              )}
            </g>
          );
        });
      })}
    </>
  );
}

function shade(bright: ReadonlySet<number> | null, index: number): "lit" | "dim" | "" {
  return bright ? (bright.has(index) ? "lit" : "dim") : "";
}

interface LanesProps {
  beam: number;
  lanes: Ribbon[];
  few: boolean;
  visible: boolean;
  state: string;
}

function Lanes({ beam, lanes, few, visible, state }: LanesProps) {
  const wanted = useRef(false);
  wanted.current ||= visible;
  const needed = wanted.current;
  const drawn = useMemo(() => {
    if (!needed) return null;
    const dashed = lanes.filter(({ height, alone }) => (few && alone) || height >= DASHED);
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
  }, [lanes, few, beam, needed]);
  return (
    drawn && (
      <g class={`beam ${visible ? state : "off"}`} style={{ "--beam": colour(beam) }}>
        {drawn}
      </g>
    )
  );
}
