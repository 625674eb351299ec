import { percent, shown } from "../numbers";
import type { PathsPayload, Trace } from "../payload";
import { Table } from "../ui/table";
import { Swatch } from "./beams";
import { at, attentionOf, letter, letters, nodeName, type Pick } from "./model";

interface Props {
  payload: PathsPayload;
  trace: Trace;
  visible: ReadonlySet<number>;
  onPick: (pick: Pick) => void;
}

/** The diagram as tables, with everything that it shows. */
export function Tables({ payload, trace, visible, onPick }: Props) {
  const name = (node: number) => nodeName(payload, trace, node);
  const end = (node: number) => (
    <button type="button" class="inline" onClick={() => onPick({ kind: "node", index: node })}>
      {name(node)}
    </button>
  );
  const beamsOf = (link: number) => at(trace.links, link).lanes.map(({ beam }) => beam);
  return (
    <div class="tables">
      <Table
        caption="Paths, the target last"
        rows={[...visible].toSorted((a, b) => a - b)}
        columns={[
          {
            title: "path",
            value: (beam) => beam,
            cell: (beam) => (
              <button type="button" class="inline" onClick={() => onPick({ kind: "beam", index: beam })}>
                <Swatch beam={beam} />
              </button>
            ),
          },
          {
            title: "tokens",
            value: (beam) => name(at(at(trace.beams, beam).nodes, -1 + at(trace.beams, beam).nodes.length)),
            cell: (beam) => at(trace.beams, beam).nodes.toReversed().map(name).join(" → "),
          },
          number("edges", (beam) => at(trace.beams, beam).attentions.length, String),
          number(`sum of ln ${trace.edge.name}`, (beam) => at(trace.beams, beam).score_raw),
          number("score", (beam) => at(trace.beams, beam).score_norm),
          number("share", (beam) => at(trace.beams, beam).share, percent),
        ]}
      />
      <Table
        caption="Edges"
        rows={[...trace.links.keys()].filter((link) => beamsOf(link).some((beam) => visible.has(beam)))}
        columns={[
          {
            title: "token",
            value: (link) => at(trace.nodes, at(trace.links, link).target).position,
            cell: (link) => end(at(trace.links, link).target),
          },
          {
            title: "looks at",
            value: (link) => at(trace.nodes, at(trace.links, link).source).position,
            cell: (link) => end(at(trace.links, link).source),
          },
          number(trace.edge.name, (link) => attentionOf(trace, link)),
          number("thickness", (link) => at(trace.links, link).value),
          { title: "paths", value: (link) => beamsOf(link).map(letter).join(), cell: (link) => letters(beamsOf(link)) },
        ]}
      />
    </div>
  );
}

function number(title: string, value: (row: number) => number, written: (value: number) => string = shown) {
  return { title, value, cell: (row: number) => written(value(row)), numeric: true };
}
