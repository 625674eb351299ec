import { useMemo } from "preact/hooks";
import type { AlignmentAbout, AttentionAbout, ExampleAbout, RunAbout } from "../payload";
import { useJson } from "../resource";
import { Problem } from "../problem";
import { Loading, Trouble } from "../ui/states";
import { counterparts, useAlignment } from "./align";
import type { Look, Side } from "./map";
import { type Other, OtherPicker } from "./other";
import { Pair } from "./pair";
import { tokensOf } from "./selection";

interface Props {
  screen: string;
  a: Side;
  other: Other;
  attention: AttentionAbout;
  look: Look;
  selected: readonly [number | null, number | null];
  onSelect: (query: number, key: number) => void;
  tall: number;
  /** What is shown above the pictures, once it is known what B is. */
  children?: (b: Side, alignment: AlignmentAbout | null) => preact.ComponentChildren;
}

/** A head beside another one, which can be chosen here. */
export function Beside(props: Props) {
  const { screen, a, other, attention } = props;
  const run = useJson<RunAbout>("run", { run: other.run });
  const example = useJson<ExampleAbout>("example", { run: other.run, ex: other.ex });
  const first: Other = { run: String(a.query.run), ex: `${a.example.number}`, layer: a.query.layer, head: a.query.head };
  const theirs = run.state === "ready" ? run.value.attentions.find(({ name }) => name === attention.name) : null;
  const ready = run.state === "ready" && example.state === "ready" ? { run: run.value, example: example.value } : null;
  return (
    <>
      {run.state === "ready" && (
        <OtherPicker {...{ screen, first, other }} attention={theirs ?? attention} run={run.value} example={ready?.example ?? null} />
      )}
      {run.state === "failed" && <Trouble problem={run.problem} />}
      {example.state === "failed" && <Trouble problem={example.problem} />}
      {ready && theirs && <Both key={`${other.run} ${other.ex}`} {...props} example={ready.example} theirs={theirs} />}
      {ready && theirs === undefined && <Trouble problem={lacking(other.run, attention, ready.run)} />}
      {run.state === "loading" || example.state === "loading" ? <Loading /> : null}
    </>
  );
}

function lacking(name: string, attention: AttentionAbout, { attentions }: RunAbout): Problem {
  const why = attentions.length ? `it has ${attentions.map((each) => each.name).join(" and ")}` : "it holds no attention patterns";
  return new Problem(`${name} holds no ${attention.name}`, why, "another run for B");
}

function Both({ a, other, attention, theirs, example, look, selected, onSelect, tall, children }: Props & { example: ExampleAbout; theirs: AttentionAbout }) {
  const b = useMemo<Side>(
    () => ({
      letter: "B",
      query: { run: other.run, ex: example.number, attn: attention.name, layer: other.layer, head: other.head },
      example,
      queries: tokensOf(example, attention.stack),
      keys: tokensOf(example, attention.key_stack),
    }),
    [example, other.layer, other.head],
  );
  const alignment = useAlignment(a, b);
  const known = alignment && (alignment.state === "ready" ? alignment.value : null);
  const maps = useMemo(
    () => ({
      queries: counterparts(known, attention.stack, a.queries.length, b.queries.length),
      keys: counterparts(known, attention.key_stack, a.keys.length, b.keys.length),
    }),
    [known, a.queries, a.keys, b.queries, b.keys],
  );
  const missing = missingOf(theirs, b);
  if (missing) return <Trouble problem={missing} />;
  if (alignment && alignment.state !== "ready") return alignment.state === "failed" ? <Trouble problem={alignment.problem} /> : <Loading />;
  return (
    <>
      {children?.(b, known)}
      <Pair {...{ attention, a, b, look, selected, onSelect, tall }} {...maps} />
    </>
  );
}

function missingOf({ layers, heads, name }: AttentionAbout, { query, queries, keys }: Side): Problem | null {
  if (!queries.length || !keys.length) return new Problem("text B has no tokens", "", "another text for B");
  const [what, number, stored] = layers.includes(query.layer) ? (["head", query.head, heads] as const) : (["layer", query.layer, layers] as const);
  return stored.includes(number) ? null : new Problem(`${what} ${number} of ${name} is not in B's run`, `it holds ${what}s ${stored.join(", ")}`);
}

