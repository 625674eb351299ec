import { useState } from "preact/hooks";
import { attentionOf, type Head, headsOf, type Measured, metricNamed, selectedOf, spoken } from "../../heads";
import { counted, shown } from "../../numbers";
import type { ClustersAbout, MetricAbout } from "../../payload";
import { usePacket } from "../../resource";
import { Chart } from "../../ui/chart";
import { shellWord } from "../../ui/code";
import { digits, HeadCard } from "../../ui/headcard";
import { Await, Trouble } from "../../ui/states";
import { useView } from "../../view";
import type { ScreenProps } from "..";
import { Scatter, shapeOf } from "./scatter";

const METHODS = { ward: "Ward", kmeans: "k-means", gmm: "Gaussian mixture" };
const [ACROSS, UPWARD] = ["distance", "entropy"];
const FEATURES = ["entropy", "sparsity", "distance"];
const MOST_CLUSTERS = 8;

/** All heads of a run by two of their metrics, in clusters. */
export function Lab({ run, example }: ScreenProps) {
  const [view, change] = useView();
  const attention = attentionOf(run, view);
  const one = view["lab.of"] === "example";
  const asked = { run: run.name, ...(one ? { ex: example.number } : { n: view["lab.n"] }) };
  const answer = usePacket("heads", attention ? asked : null);
  if (!attention) return <p class="missing">No attention patterns were recorded; tf.record(..., capture="attn") keeps them.</p>;
  return (
    <div class="lab">
      <form class="settings" onSubmit={(event) => event.preventDefault()}>
        {run.attentions.length > 1 && (
          <label class="choice">
            Attention{" "}
            <select value={attention} onChange={({ currentTarget }) => change({ attn: currentTarget.value, layer: null, head: null })}>
              {run.attentions.map(({ name }) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          </label>
        )}
        <label class="choice">
          Measured on{" "}
          <select value={one ? "example" : "first"} onChange={({ currentTarget }) => change({ "lab.of": currentTarget.value === "first" ? null : "example" })}>
            <option value="first">the first examples</option>
            <option value="example">this example</option>
          </select>
        </label>
        {!one && (
          <label class="choice">
            How many{" "}
            <input
              type="number"
              min={1}
              max={run.n_examples}
              placeholder={answer.state === "ready" ? `${headsOf(answer.value).about.read}` : ""}
              value={view["lab.n"] ?? ""}
              onChange={({ currentTarget }) => change({ "lab.n": currentTarget.value || null })}
            />{" "}
            of {run.n_examples}
          </label>
        )}
      </form>
      <Await loaded={answer}>{(packet) => <Plot {...{ run, example, attention, one }} measured={headsOf(packet)} asked={asked} />}</Await>
    </div>
  );
}

interface PlotProps extends ScreenProps {
  attention: string;
  measured: Measured;
  asked: Record<string, string | number | undefined>;
  one: boolean;
}

function Plot({ run, example, attention, measured, asked, one }: PlotProps) {
  const [view, change] = useView();
  const [hovered, setHovered] = useState<Head | null>(null);
  const all = measured.heads.filter((head) => head.attention === attention);
  const metrics = measured.about.metrics.filter(({ name }) => all.some((head) => !Number.isNaN(head.values[name])));
  const across = metricNamed(metrics, view["lab.x"] ?? ACROSS) ?? metrics[0];
  const upward = metricNamed(metrics, view["lab.y"] ?? UPWARD) ?? metrics[1] ?? metrics[0];
  const [deciding, method, k] = [view["lab.by"] ?? "own", view["lab.method"] ?? "ward", view["lab.k"] ?? ""];
  const list = deciding === "axes" ? [...new Set([across?.name ?? "", upward?.name ?? ""])] : deciding === "all" ? ["all"] : FEATURES;
  const found = usePacket("clusters", { ...asked, attn: attention, method, k: k || null, features: list.join(",") });
  const clusters = found.state === "ready" ? (found.value.about as unknown as ClustersAbout) : null;
  const labels = found.state === "ready" ? Array.from(found.value.arrays["cluster"]?.data ?? []) : null;
  const selected = selectedOf(all, run, view);
  if (!across || !upward) return <p class="missing">No metric has a meaning for {attention}.</p>;

  const inside = all.map((head, index) => ({ head, cluster: labels?.[index] ?? null })).filter(({ head }) => both(head, across, upward));
  const select = (head: Head) => change({ attn: head.attention, layer: head.layer, head: head.head });
  const open = () => selected && change({ screen: "head", attn: selected.attention, layer: selected.layer, head: selected.head });
  const { read, of, convention } = measured.about;
  const over = one ? `on example ${example.id}` : `over ${read} of ${counted(of, "example")}`;
  const unknown = [view["lab.x"], view["lab.y"]].filter((name) => name && !metricNamed(metrics, name));
  const without = all.length - inside.length;
  const notices = [
    unknown.length ? `No metric is called ${unknown.map((name) => `“${name}”`).join(" or ")}.` : "",
    without ? `${counted(without, "head")} without a number for these metrics ${without === 1 ? "is" : "are"} left out.` : "",
    !one && read < of ? `Measured ${over}: more can be asked for above.` : "",
  ];
  const examples = one ? `, examples=[${example.number}]` : read < of ? `, limit=${read}` : "";
  const python = [
    "import traceformer as tf",
    "",
    `run = tf.open_run(${JSON.stringify(run.name)})`,
    `heads = tf.heads(run${examples})`,
    "heads.to_frame()",
    `tf.cluster(heads, features=${JSON.stringify(list)}, method="${method}"${k && `, k=${k}`}, attention="${attention}").to_frame()`,
  ].join("\n");
  const shell = `traceformer heads ${shellWord(run.name)}${read < of ? ` --num_seqs ${read}` : ""} --output heads.csv`;
  return (
    <Chart
      title={`Heads by ${spoken(upward)} and ${spoken(across)}`}
      field="lab.table"
      notice={notices.filter(Boolean).join(" ") || null}
      sheet={() => ({
        caption: `Heads of ${attention}, ${over} (${convention} convention)`,
        columns: ["layer", "head", ...(clusters ? ["cluster"] : []), ...metrics.map(({ name, unit }) => (unit ? `${name} (${unit})` : name))],
        rows: all.map((head, index) => [
          head.layer,
          head.head,
          ...(clusters ? [clusters.names[labels?.[index] ?? -1] ?? ""] : []),
          ...metrics.map(({ name }) => digits(head.values[name])),
        ]),
      })}
      code={one ? { python } : { python, shell }}
      tools={
        <>
          <Choice label="Up" value={upward.name} options={metrics} onChange={(name) => change({ "lab.y": name })} />
          <Choice label="Across" value={across.name} options={metrics} onChange={(name) => change({ "lab.x": name })} />
        </>
      }
    >
      <div class="plot">
        <Scatter
          heads={inside.map(({ head }) => head)}
          {...{ across, upward, selected }}
          clusters={clusters && labels ? { names: clusters.names, of: inside.map(({ cluster }) => cluster ?? 0) } : null}
          onSelect={select}
          onHover={setHovered}
          onOpen={open}
        />
        <div class="beside">
          <section class="clusters" aria-label="Clusters">
            <h3>Clusters</h3>
            <label class="choice">
              by{" "}
              <select value={deciding} onChange={({ currentTarget }) => change({ "lab.by": currentTarget.value === "own" ? null : currentTarget.value })}>
                <option value="own">entropy, sparsity, distance</option>
                <option value="axes">the two axes</option>
                <option value="all">all metrics</option>
              </select>
            </label>
            <label class="choice">
              method{" "}
              <select value={method} onChange={({ currentTarget }) => change({ "lab.method": currentTarget.value === "ward" ? null : currentTarget.value })}>
                {Object.entries(METHODS).map(([name, title]) => (
                  <option key={name} value={name}>
                    {title}
                  </option>
                ))}
              </select>
            </label>
            <label class="choice">
              how many{" "}
              <select value={k} onChange={({ currentTarget }) => change({ "lab.k": currentTarget.value || null })}>
                <option value="">the best of 2 to {MOST_CLUSTERS}</option>
                {Array.from({ length: MOST_CLUSTERS - 1 }, (_, index) => (
                  <option key={index}>{index + 2}</option>
                ))}
              </select>
            </label>
            {found.state === "failed" && <Trouble problem={found.problem} />}
            {found.state === "loading" && <p class="quiet">Clustering</p>}
            {clusters && (
              <>
                <ul>
                  {clusters.names.map((name, index) => (
                    <li key={name}>
                      <svg width={14} height={14} aria-hidden="true">
                        <path class={`point cluster-${index % MOST_CLUSTERS}`} d={shapeOf(index)} transform="translate(7,7)" />
                      </svg>
                      {name} <small>{counted(clusters.sizes[index] ?? 0, "head")}</small>
                    </li>
                  ))}
                </ul>
                <p class="quiet">Mean silhouette {shown(clusters.score)}, from −1 to 1.</p>
              </>
            )}
          </section>
          <HeadCard head={hovered ?? selected ?? null} metrics={metrics} marked={[across.name, upward.name]}>
            Measured {over}. Point at a head, or go through them with the arrow keys; Enter opens it.
          </HeadCard>
        </div>
      </div>
    </Chart>
  );
}

interface ChoiceProps {
  label: string;
  value: string;
  options: MetricAbout[];
  onChange: (name: string) => void;
}

function Choice({ label, value, options, onChange }: ChoiceProps) {
  return (
    <label class="choice">
      {label}{" "}
      <select value={value} onChange={({ currentTarget }) => onChange(currentTarget.value)}>
        {options.map((metric) => (
          <option key={metric.name} value={metric.name} title={metric.meaning}>
            {spoken(metric)}
          </option>
        ))}
      </select>
    </label>
  );
}

function both({ values }: Head, across: MetricAbout, upward: MetricAbout): boolean {
  return !Number.isNaN(values[across.name]) && !Number.isNaN(values[upward.name]);
}
