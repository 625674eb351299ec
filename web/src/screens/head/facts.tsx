import { useState } from "preact/hooks";
import { headsOf, spoken } from "../../heads";
import type { HeadQuery } from "../../patterns/pattern";
import { usePacket } from "../../resource";
import { Loading } from "../../ui/states";
import { written } from "../../ui/headcard";

/** The head's metrics in this text; of a long one they are measured when that is asked for. */
export function Facts({ query, long }: { query: HeadQuery; long: boolean }) {
  const { run, ex, attn, layer, head } = query;
  const [wanted, setWanted] = useState(false);
  const measured = usePacket("heads", !long || wanted ? { run, ex } : null);
  if (measured.state === "failed") return null;
  const found = measured.state === "ready" ? headsOf(measured.value) : null;
  const values = found?.heads.find((each) => each.attention === attn && each.layer === layer && each.head === head)?.values;
  return (
    <section aria-label="Metrics">
      <h2>Metrics in this text</h2>
      {found && values ? (
        <dl class="facts">
          {found.about.metrics.map((metric) => (
            <div key={metric.name} title={metric.meaning}>
              <dt>{spoken(metric)}</dt>
              <dd>
                {written(values[metric.name])} {metric.unit && <small>{metric.unit}</small>}
              </dd>
            </div>
          ))}
        </dl>
      ) : long && !wanted ? (
        <button type="button" onClick={() => setWanted(true)}>
          Measure all heads
        </button>
      ) : (
        <Loading {...(measured.state === "loading" && measured.of ? { done: measured.done ?? 0, of: measured.of } : {})} />
      )}
    </section>
  );
}
