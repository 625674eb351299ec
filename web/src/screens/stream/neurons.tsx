import { shown } from "../../numbers";
import type { Neurons as Answer } from "../../payload";
import { useJson } from "../../resource";
import { Await } from "../../ui/states";
import { Table } from "../../ui/table";
import { useView } from "../../view";
import type { Place } from "./screen";

/** The most active neurons of one MLP at the selected token. */
export function Neurons({ run, example, stack, q }: Place) {
  const [view, change] = useView();
  const array = ["mlp_mid", "mlp_act"].map((site) => run.arrays.find(({ key }) => key === `${stack}.${site}`)).find(Boolean);
  const layers = array?.layers ?? [];
  const layer = layers.find((own) => own === Number(view.layer)) ?? layers[layers.length - 1];
  const tokens = example.tokens[stack] ?? [];
  const at = q ?? tokens.length - 1;
  const query = array ? { run: run.name, ex: example.number, stack, layer: layer ?? 0, q: at } : null;
  const found = useJson<Answer>("neurons", query);
  if (!array) return null;
  return (
    <section class="chart neurons" aria-label="Neurons">
      <header>
        <h2>
          Most active neurons at {tokens[at]?.text} {at}
        </h2>
        <label class="choice">
          layer{" "}
          <select value={layer} onChange={(event) => change({ layer: event.currentTarget.value })}>
            {layers.map((own) => (
              <option key={own} value={own}>
                {own}
              </option>
            ))}
          </select>
        </label>
      </header>
      <Await loaded={found}>
        {({ neurons, count, array }) => (
          <Table
            caption={`the ${neurons.length} of ${count} that are farthest from 0 in ${array}`}
            rows={neurons}
            columns={[
              { title: "neuron", value: ({ neuron }) => neuron, cell: ({ neuron }) => neuron, numeric: true },
              { title: "activation", value: ({ value }) => value, cell: ({ value }) => shown(value), numeric: true },
            ]}
          />
        )}
      </Await>
    </section>
  );
}
