import { useState } from "preact/hooks";
import type { ExampleAbout, RunAbout, Token } from "../payload";
import { type Choice, Picker } from "../ui/picker";
import { useView } from "../view";
import { choiceOf, noteOf, useExamples } from "./examples";

interface Props {
  run: RunAbout;
  example: ExampleAbout | null;
  close: () => void;
}

const MOST_TOKENS = 40;
const BESIDE = 12; // tokens on either side, as far as they fit

/** Finds a token of this example, a feature that heads are sorted by, or another example by its text. */
export function Search({ run, example, close }: Props) {
  const [view, change] = useView();
  const [find, setFind] = useState("");
  const list = useExamples(run.name, find, find !== "");
  const tokens = example && find ? tokenChoices(example, find, view.q, (q) => change({ q, k: null })) : { choices: [], more: 0 };
  const texts = find && list.state === "ready" ? list.value.examples : [];
  const choices: Choice[] = [
    ...tokens.choices,
    ...features(run, find, (name) => change(view.screen === "lab" ? { "lab.y": name } : { screen: "overview", "overview.sort": name })),
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
  if (!run.attentions.length) return [];
  const wanted = find.toLowerCase().replaceAll(" ", "_");
  return Object.entries(run.features)
    .filter(([name]) => name.includes(wanted))
    .map(([name, meaning]) => ({
      key: `feature ${name}`,
      title: name.replaceAll("_", " "),
      detail: meaning,
      group: "Sort heads by",
      choose: () => choose(name),
    }));
}

/** A word may be several tokens, as in a model of bytes: the last of them is meant, whose next token it leads to. */
function tokenChoices({ tokens }: ExampleAbout, find: string, q: string | undefined, choose: (position: number) => void) {
  const all = tokens.dec ?? tokens.enc ?? [];
  const found = occurrences(all, find.toLowerCase().replaceAll(" ", "·"));
  const choices = found.slice(0, MOST_TOKENS).map(({ first, last }) => ({
    key: `token ${first} ${last}`,
    title: <InPlace tokens={all} first={first} last={last} />,
    detail: first === last ? `position ${last}` : `positions ${first}–${last}`,
    group: "In this example",
    current: `${last}` === q,
    choose: () => choose(last),
  }));
  return { choices, more: found.length - choices.length };
}

/** Returns the first and the last token of each place where a text occurs. */
function occurrences(tokens: Token[], wanted: string): { first: number; last: number }[] {
  const owners: number[] = [];
  let whole = "";
  tokens.forEach(({ text }, position) => {
    const lower = text.toLowerCase();
    whole += lower;
    for (let at = 0; at < lower.length; at++) owners.push(position);
  });
  const found = new Map<string, { first: number; last: number }>();
  for (let at = whole.indexOf(wanted); at >= 0; at = whole.indexOf(wanted, at + 1)) {
    const [first = 0, last = 0] = [owners[at], owners[at + wanted.length - 1]];
    found.set(`${first} ${last}`, { first, last });
  }
  return [...found.values()];
}

function InPlace({ tokens, first, last }: { tokens: Token[]; first: number; last: number }) {
  const text = (from: number, to: number) => tokens.slice(Math.max(0, from), to).map(({ text }) => text).join("");
  return (
    <>
      <bdi>{text(first - BESIDE, first)}</bdi>
      <b>
        <bdi>{text(first, last + 1)}</bdi>
      </b>
      <bdi>{text(last + 1, last + 1 + BESIDE)}</bdi>
    </>
  );
}
