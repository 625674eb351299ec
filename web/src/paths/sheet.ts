import type { PathsPayload, Trace } from "../payload";
import type { Sheet } from "../ui/save";
import { at, layerOf, letter, tokenOf } from "./model";

/** Returns a row per edge of each path, from the target on: the token that looked, and the one that it looked at. */
export function sheetOf(payload: PathsPayload, trace: Trace): Sheet {
  const end = (node: number) => [at(trace.nodes, node).position, tokenOf(payload, trace, node).text];
  const laneOf = (beam: number, from: number, to: number) =>
    trace.links.find(({ source, target }) => source === to && target === from)?.lanes.find((lane) => lane.beam === beam);
  return {
    caption: payload.title,
    columns: ["path", "score", "share", "edge", "layer", "head", "query", "query token", "key", "key token", trace.edge.name, "thickness"],
    rows: trace.beams.flatMap(({ nodes, attentions, score_norm, share }, beam) =>
      attentions.map((attention, step) => {
        const [from, to] = [at(nodes, step), at(nodes, step + 1)];
        const lane = laneOf(beam, from, to);
        const head = lane?.head ?? trace.head ?? "";
        return [letter(beam), score_norm, share, step + 1, layerOf(trace, from), head, ...end(from), ...end(to), attention, lane?.value ?? 0];
      }),
    ),
  };
}
