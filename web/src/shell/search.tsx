import { useState } from "preact/hooks";
import type { ExampleAbout, RunAbout, Stack, Token } from "../payload";
import { SCREENS } from "../screens";
import { type Choice, Picker } from "../ui/picker";
import { useView } from "../view";
import { choiceOf, noteOf, useExamples } from "./examples";

interface Props {
  run: RunAbout;
  example: ExampleAbout | null;
  close: () => void;
}

const MOST_TOKENS = 40;
const BESIDE = 3; // tokens on either side

/** Finds a token of this example, a feature that heads are sorted by, or another example by its text. */
export function Search({ run, example, close }: Props) {
  const [view, change] = useView();
  const [find, setFind] = useState("");
  const list = useExamples(run.name, find, find !== "");
  const tokens = example && find ? tokenChoices(example, find, view.q, (q) => change({ q, k: null })) : { choices: [], more: 0 };
  const texts = find && list.state === "ready" ? list.value.examples : [];
  const choices: Choice[] = [
    ...tokens.choices,
    ...features(run, find, (name) => change({ screen: "lab", "lab.y": name })),
    ...texts.map((row) => ({ ...choiceOf(row, example?.number, (ex) => change({ ex, q: null, k: null })), group: "Examples" })),
  ];
  const more = tokens.more ? `${MOST_TOKENS} of ${MOST_TOKENS + tokens.more} tokens shown. ` : "";
  return (
    <Picker
      label="Search"
      placeholder="A token, a feature of heads, or the text of an example"
      query={find}
      onQuery={setFind}
      close={close}
      note={find ? `${more}${noteOf(list, run) ?? ""}` || null : null}
      choices={choices}
    />
  );
}

function features(run: RunAbout, find: string, choose: (name: string) => void): Choice[] {
  if (!SCREENS.some(({ id }) => id === "lab") || !run.attentions.length) return [];
  const wanted = find.toLowerCase().replaceAll(" ", "_");
  return Object.entries(run.features)
    .filter(([name]) => name.includes(wanted))
    .map(([name, meaning]) => ({
      key: `feature ${name}`,
      title: `${name.replaceAll("_", " ")} of heads`,
      detail: meaning,
      group: "Heads by",
      choose: () => choose(name),
    }));
}

function tokenChoices({ tokens }: ExampleAbout, find: string, q: string | undefined, choose: (position: number) => void) {
  const stack: Stack = tokens.dec ? "dec" : "enc";
  const all = tokens[stack] ?? [];
  const wanted = find.toLowerCase().replaceAll(" ", "·");
  const found = all.flatMap(({ text }, position) => (text.toLowerCase().includes(wanted) ? [position] : []));
  const choices = found.slice(0, MOST_TOKENS).map((position) => ({
    key: `token ${position}`,
    title: <InPlace tokens={all} position={position} />,
    detail: `position ${position}`,
    group: "Tokens of this example",
    current: `${position}` === q,
    choose: () => choose(position),
  }));
  return { choices, more: found.length - choices.length };
}

function InPlace({ tokens, position }: { tokens: Token[]; position: number }) {
  const text = (from: number, to: number) => tokens.slice(Math.max(0, from), to).map(({ text }) => text).join("");
  return (
    <>
      <bdi>{text(position - BESIDE, position)}</bdi>
      <b>
        <bdi>{tokens[position]?.text}</bdi>
      </b>
      <bdi>{text(position + 1, position + 1 + BESIDE)}</bdi>
    </>
  );
}
