import type { EffectsRow } from "../../payload";
import { useJson } from "../../resource";
import { Await } from "../../ui/states";
import { useView } from "../../view";
import type { ScreenProps } from "..";
import { AttributionSection } from "./attribution";
import { EffectMaps } from "./maps";

/** What parts of a model do to a prediction: of one token of a run, and in the folders that interventions wrote. */
export function Effects(props: ScreenProps) {
  return (
    <>
      <AttributionSection {...props} />
      <Interventions />
    </>
  );
}

/** What interventions wrote, with or without a run beside it. */
export function Interventions() {
  const [view, change] = useView();
  const found = useJson<{ effects: EffectsRow[] }>("effects", {});
  return (
    <Await loaded={found}>
      {({ effects }) => {
        const usable = effects.filter(({ problem }) => !problem);
        const chosen = usable.find(({ name }) => name === view["effects.name"]) ?? usable[0];
        const choose = (
          <label class="choice">
            of{" "}
            <select
              value={chosen?.name}
              onChange={(event) => change({ "effects.name": event.currentTarget.value, "effects.pair": null, "effects.at": null, "effects.cell": null })}
            >
              {effects.map(({ name, problem }) => (
                <option key={name} value={name} disabled={problem !== ""} title={problem}>
                  {name}
                  {problem && " (cannot be read)"}
                </option>
              ))}
            </select>
          </label>
        );
        return (
          <div>
            {chosen ? (
              <EffectMaps key={chosen.name} name={chosen.name} choose={choose} />
            ) : (
              <section class="chart" aria-label="Interventions">
                <h2>Interventions</h2>
                <p class="nothing">
                  No effects lie beside the runs. <code>traceformer patch MODEL --pairs FILE --out-dir FOLDER</code> writes some, and so does{" "}
                  <code>traceformer ablate</code>.
                </p>
              </section>
            )}
            {effects.map(
              ({ name, problem }) =>
                problem && (
                  <p key={name} class="nothing">
                    {name}: {problem}
                  </p>
                ),
            )}
          </div>
        );
      }}
    </Await>
  );
}
