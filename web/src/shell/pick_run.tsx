import { useState } from "preact/hooks";
import type { RunList } from "../payload";
import { useJson } from "../resource";
import { shortName } from "../ui/names";
import { Picker } from "../ui/picker";
import { useView } from "../view";

/** The list of runs, to change to another one. */
export function PickRun({ name, close }: { name: string; close: () => void }) {
  const [, change] = useView();
  const [find, setFind] = useState("");
  const list = useJson<RunList>("runs", {});
  const runs = list.state === "ready" ? list.value.runs : [];
  const words = find.toLowerCase().split(/\s+/);
  const shown = runs.filter(({ name, model }) => words.every((word) => `${name} ${model ?? ""}`.toLowerCase().includes(word)));
  return (
    <Picker
      label="Run"
      placeholder="Find a run"
      query={find}
      onQuery={setFind}
      close={close}
      note={list.state === "failed" ? list.problem.message : list.state === "ready" && !shown.length ? "No such run" : null}
      choices={shown.map((run) => ({
        key: run.name,
        title: run.name,
        detail: run.problem || (run.model && shortName(run.model)),
        current: run.name === name,
        choose: () => change({ run: run.name, ex: null, attn: null, layer: null, head: null, q: null, k: null }),
      }))}
    />
  );
}
