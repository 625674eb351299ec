import { useState } from "preact/hooks";
import { css, sequential } from "../../draw/palette";
import { attentionOf, headsOf, type Measured, metricNamed, nameOf, type Place, selectedOf, spoken } from "../../heads";
import { useKeys } from "../../keyboard";
import { counted } from "../../numbers";
import type { AtlasAbout, AttentionAbout, ExampleAbout, RunAbout } from "../../payload";
import { usePacket } from "../../resource";
import { useDark } from "../../theme";
import { useWidth } from "../../ui/axes";
import { Chart } from "../../ui/chart";
import { digits, HeadCard, written } from "../../ui/headcard";
import { Trouble } from "../../ui/states";
import { useView } from "../../view";
import { Atlas } from "./atlas";
import { useThumbnails } from "./thumbnails";

const WIDE = 780; // pixels, with which the card stands beside the atlas
const CARD = 244;

interface Props {
  run: RunAbout;
  example: ExampleAbout;
  atlas: AtlasAbout;
  attention: AttentionAbout;
}

/** The atlas of one attention: all heads as thumbnails, by layer or by a metric, and the one that is selected. */
export function Heads({ run, example, atlas, attention }: Props) {
  const [view, change] = useView();
  const [hovered, setHovered] = useState<number | null>(null);
  const [outer, room] = useWidth<HTMLDivElement>();
  const dark = useDark();
  const thumbnails = useThumbnails(run.name, example.number, atlas);
  const places: Place[] = attention.layers.flatMap((layer) => attention.heads.map((head) => ({ attention: atlas.name, layer, head })));
  const done = thumbnails.count === places.length;
  // Measuring reads all patterns once more: not before the pictures are there.
  const answer = usePacket("heads", done ? { run: run.name, ex: example.number } : null);
  const measured: Measured | null = answer.state === "ready" ? headsOf(answer.value) : null;
  const values = measured?.heads.filter((head) => head.attention === atlas.name) ?? null;
  const metrics = measured?.about.metrics.filter(({ name }) => values?.some((head) => !Number.isNaN(head.values[name]))) ?? [];
  const metric = metricNamed(metrics, view["overview.sort"]);
  const up = view["overview.up"] === "1";
  const ranked = metric && values ? rankedBy(metric.name, up) : null;

  function rankedBy(name: string, up: boolean) {
    const value = (head: number) => values?.[head]?.values[name] ?? Number.NaN;
    const sign = up ? 1 : -1;
    const known = places.map((_, head) => head).filter((head) => !Number.isNaN(value(head)));
    return known
      .sort((a, b) => sign * (value(a) - value(b)) || a - b)
      .map((head) => ({ head, words: `${nameOf(places[head] as Place)} ${written(value(head))}` }));
  }

  const chosen = selectedOf(places, run, view);
  const selected = chosen ? places.indexOf(chosen) : null;
  const told = hovered ?? selected;
  const shownHead = told === null ? null : (values?.[told] ?? places[told] ?? null);
  const describe = (head: number) => {
    const [place, own] = [places[head], values?.[head]];
    if (!place) return "";
    return [nameOf(place), ...(own ? metrics.map((each) => `${spoken(each)} ${written(own.values[each.name])}`) : [])].join("\n");
  };
  useKeys([
    { keys: ["a"], does: "overview: go to the heads", run: () => document.querySelector<HTMLElement>(".atlas .field")?.focus() },
    { keys: ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Enter"], written: "← → ↑ ↓", does: "among the heads: the next one; Enter opens it" },
  ]);
  const open = () => {
    if (chosen) change({ screen: "head", attn: atlas.name, layer: chosen.layer, head: chosen.head });
  };
  const coarse = atlas.queries > atlas.rows || atlas.keys > atlas.columns;
  const size = `${counted(atlas.queries, "query", "queries")} and ${counted(atlas.keys, "key")}`;
  const cells = coarse
    ? `${size} in ${atlas.rows} × ${atlas.columns} cells: each is the attention that its queries give to its keys together, on average over these queries.`
    : `${size}, a cell each.`;
  const asked = view["overview.sort"];
  return (
    <Chart
      title={`Heads of ${atlas.name}`}
      field="overview.heads"
      sheet={() => ({
        caption: `Heads of ${atlas.name}${measured ? `, measured on this example (${measured.about.convention} convention)` : "; not measured yet"}`,
        columns: ["layer", "head", ...metrics.map(({ name, unit }) => (unit ? `${name} (${unit})` : name))],
        rows: (ranked?.map(({ head }) => head) ?? places.map((_, head) => head)).map((head) => [
          places[head]?.layer ?? "",
          places[head]?.head ?? "",
          ...metrics.map(({ name }) => digits(values?.[head]?.values[name])),
        ]),
      })}
      code={{
        python: `import traceformer as tf\nfrom traceformer.analysis.thumbnails import thumbnail\n\nrun = tf.open_run(${JSON.stringify(run.name)})\nthumbnail(run.get(${example.number}, "${atlas.name}.attn_pattern"))  # (layer, head, row, column)\ntf.heads(run, examples=[${example.number}]).part("${atlas.name}").to_frame()`,
      }}
      tools={
        <>
          {run.attentions.length > 1 && (
            <label class="choice">
              Attention{" "}
              <select value={attentionOf(run, view)} onChange={({ currentTarget }) => change({ attn: currentTarget.value, layer: null, head: null })}>
                {run.attentions.map(({ name }) => (
                  <option key={name}>{name}</option>
                ))}
              </select>
            </label>
          )}
          <label class="choice">
            Order{" "}
            <select value={metric?.name ?? ""} disabled={!measured} onChange={({ currentTarget }) => change({ "overview.sort": currentTarget.value || null })}>
              <option value="">by layer</option>
              {metrics.map((each) => (
                <option key={each.name} value={each.name}>
                  {spoken(each)}
                </option>
              ))}
            </select>
          </label>
          {metric && (
            <button type="button" aria-pressed={up} onClick={() => change({ "overview.up": up ? null : 1 })}>
              {up ? "lowest first" : "highest first"}
            </button>
          )}
          {!done && (
            <span class="progress" role="status">
              <progress value={thumbnails.count} max={places.length} /> {thumbnails.count} of {places.length} drawn
            </span>
          )}
          {done && answer.state === "loading" && (
            <span class="progress" role="status">
              measuring{answer.of ? ` ${answer.done} of ${answer.of}` : ""}
            </span>
          )}
        </>
      }
    >
      {thumbnails.problem && <Trouble problem={thumbnails.problem} />}
      {answer.state === "failed" && <Trouble problem={answer.problem} />}
      {asked && measured && !metric && <p class="missing">No metric is called “{asked}”.</p>}
      <p class="cells">
        {cells} {dark ? "Lighter" : "Darker"} is more: <ColourKey dark={dark} />
      </p>
      <div class="heads" ref={outer}>
        <Atlas
          {...{ atlas, thumbnails, ranked, selected, describe }}
          heads={places}
          without={attention.without}
          width={attention.heads.length}
          room={room > WIDE ? room - CARD : room}
          onSelect={(head) => change({ attn: atlas.name, layer: places[head]?.layer ?? null, head: places[head]?.head ?? null })}
          onHover={setHovered}
          onOpen={open}
        />
        <HeadCard head={shownHead} metrics={metrics} marked={metric ? [metric.name] : []}>
          {values ? "Measured on this example." : "Point at a head, or go through them with the arrow keys; Enter opens it."}
        </HeadCard>
      </div>
    </Chart>
  );
}

/** The colours of weights from 0 to 1, which go by their square roots. */
function ColourKey({ dark }: { dark: boolean }) {
  const colours = sequential(dark);
  return (
    <svg class="colours" width={150} height={14} role="img" aria-label="0, a quarter in the middle, 1">
      {Array.from({ length: 33 }, (_, step) => (
        <rect key={step} x={14 + step * 3} y={2} width={3.2} height={10} fill={css(colours, Math.round((255 * step) / 32))} />
      ))}
      <g class="axis">
        <text x={0} y={11}>0</text>
        <text x={118} y={11}>1</text>
      </g>
    </svg>
  );
}
