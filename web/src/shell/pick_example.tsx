import { useState } from "preact/hooks";
import type { ExampleAbout, RunAbout } from "../payload";
import { Picker } from "../ui/picker";
import { useView } from "../view";
import { choiceOf, noteOf, useExamples } from "./examples";

/** The examples of a run, to change to another one. */
export function PickExample({ run, example, close }: { run: RunAbout; example: ExampleAbout | null; close: () => void }) {
  const [, change] = useView();
  const [find, setFind] = useState("");
  const list = useExamples(run.name, find);
  const shown = list.state === "ready" ? list.value.examples : [];
  return (
    <Picker
      label="Example"
      placeholder="Find an example by its text or id"
      query={find}
      onQuery={setFind}
      close={close}
      note={noteOf(list, run)}
      choices={shown.map((row) => choiceOf(row, example?.number, (number) => change({ ex: number, q: null, k: null })))}
    />
  );
}
