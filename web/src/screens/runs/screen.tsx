import { useRef } from "preact/hooks";
import { useKeys } from "../../keyboard";
import { counted } from "../../numbers";
import type { RunList, RunRow } from "../../payload";
import { useFollowed } from "../../resource";
import { Await } from "../../ui/states";
import { Table } from "../../ui/table";
import { addressOf, useView } from "../../view";
import { Empty } from "./empty";
import { Model, State } from "./cells";

const FIND = "runs.find";

/** All runs there are, and the effects beside them. */
export function Runs() {
  // A list without a run may have one soon, as one with a run that is being written.
  const list = useFollowed<RunList>("runs", {}, ({ runs }) => !runs.length || runs.some(({ finished, problem }) => finished === false && !problem));
  return <Await loaded={list}>{(list) => (list.runs.length + list.effects.length ? <Listed {...list} /> : <Empty folder={list.folder} />)}</Await>;
}

function Listed({ folder, runs, effects }: RunList) {
  const [view, change] = useView();
  const field = useRef<HTMLInputElement>(null);
  const find = view[FIND] ?? "";
  const shown = runs.filter((run) => matches(run, find));
  const firstRow = () => field.current?.closest(".runs")?.querySelector<HTMLElement>("tbody tr")?.focus();
  useKeys([
    { keys: ["/"], does: "find a run", run: () => field.current?.focus() },
    { keys: ["ArrowDown"], does: "to the list; arrow keys step through it, Enter opens a run", run: firstRow },
  ]);
  const theme = view.theme ?? null;
  const open = ({ name }: RunRow) => change({ screen: "overview", run: name });
  return (
    <div class="runs">
      <header>
        <h1>Runs</h1>
        {folder && (
          <p title={folder}>
            <bdi>{folder}</bdi>
          </p>
        )}
        <input
          ref={field}
          type="search"
          aria-label="Find a run by its name, model or texts"
          placeholder="Find by name, model or texts ( / )"
          value={find}
          onInput={(event) => change({ [FIND]: event.currentTarget.value })}
          onKeyDown={(event) => {
            if (event.key !== "ArrowDown" && event.key !== "Enter") return;
            event.preventDefault();
            if (event.key === "Enter" && shown[0]) open(shown[0]);
            else firstRow();
          }}
        />
      </header>
      {shown.length > 0 && (
        <Table
          caption={find ? `${shown.length} of ${counted(runs.length, "run")}` : counted(runs.length, "run")}
          rows={shown}
          field="runs.sort"
          onChoose={open}
          columns={[
            {
              title: "Run",
              value: ({ name }) => name,
              cell: (run) => (
                <>
                  <a href={addressOf({}, { theme, screen: "overview", run: run.name })} tabIndex={-1}>
                    {run.name}
                  </a>
                  <State {...run} />
                </>
              ),
            },
            { title: "Model", value: ({ model }) => model ?? "", cell: ({ model }) => <Model name={model} /> },
            { title: "Texts", value: ({ data_set }) => data_set ?? "", cell: ({ data_set, kind }) => <Model name={kind === "generation" ? `answers to ${data_set ?? "prompts"}` : data_set} /> },
            { title: "Examples", value: ({ n_examples }) => n_examples ?? 0, cell: ({ n_examples }) => n_examples, numeric: true },
            { title: "On disk", value: ({ bytes }) => bytes ?? 0, cell: ({ size }) => size, numeric: true },
            { title: "Begun", value: ({ begun }) => begun ?? "", cell: ({ begun }) => begun, numeric: true },
          ]}
        />
      )}
      {!shown.length && runs.length > 0 && (
        <p class="none">
          None of {counted(runs.length, "run")} has all of “{find}” in its name, model or texts.{" "}
          <button type="button" class="inline" onClick={() => change({ [FIND]: null })}>
            Show all
          </button>
        </p>
      )}
      {effects.length > 0 && (
        <>
          <h2>Effects</h2>
          <ul>
            {effects.map((name) => (
              <li key={name}>
                <a href={addressOf({}, { theme, screen: "effects", "effects.name": name })}>{name}</a>
              </li>
            ))}
          </ul>
        </>
      )}
    </div>
  );
}

function matches({ name, model, data_set, kind }: RunRow, find: string): boolean {
  const told = [name, model, data_set, kind].join(" ").toLowerCase();
  return find.toLowerCase().split(/\s+/).every((word) => told.includes(word));
}
