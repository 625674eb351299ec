import type { RunRow } from "../../payload";
import { useJson } from "../../resource";
import { Await } from "../../ui/states";
import { Table } from "../../ui/table";
import { addressOf, useView } from "../../view";

/** All runs there are. */
export function Runs() {
  const [view] = useView();
  const runs = useJson<{ runs: RunRow[] }>("runs", {});
  return (
    <Await loaded={runs}>
      {({ runs: rows }) => (
        <Table
          caption={`${rows.length} runs`}
          rows={rows}
          columns={[
            {
              title: "run",
              value: ({ name }) => name,
              cell: ({ name }) => <a href={addressOf({}, { theme: view.theme ?? null, screen: "overview", run: name })}>{name}</a>,
            },
            { title: "model", value: ({ model }) => model ?? "", cell: ({ model }) => model },
            { title: "examples", value: (row) => row.n_examples ?? 0, cell: (row) => row.n_examples, numeric: true },
          ]}
        />
      )}
    </Await>
  );
}
