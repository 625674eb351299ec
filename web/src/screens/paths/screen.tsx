import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { useKeys } from "../../keyboard";
import { Aside } from "../../paths/aside";
import { Figure } from "../../paths/figure";
import { Find } from "../../paths/find";
import type { Onward } from "../../paths/panel";
import { sheetOf } from "../../paths/sheet";
import { keysOf, usePaths } from "../../paths/state";
import { Strip } from "../../paths/strip";
import { Tables } from "../../paths/tables";
import type { PathsPayload } from "../../payload";
import { type Loaded, useJson, useSource } from "../../resource";
import { Problem } from "../../problem";
import { Chart } from "../../ui/chart";
import { Loading, Trouble } from "../../ui/states";
import { Tokens } from "../../ui/tokens";
import { addressOf, type Change, useView, type View } from "../../view";
import type { ScreenProps } from "..";
import { Controls } from "./controls";
import { type Asked, askedIn, codeOf, field, OPTIONS, queryOf } from "./options";

/** Which tokens one token drew on: paths through stored attention, searched again whenever something is changed. */
export function PathsOfRun(props: ScreenProps) {
  return <OfExample key={props.example.number} {...props} />;
}

const OF_ONE_RESULT = { [field("pick")]: null, [field("beams")]: null, [field("zoom")]: null, [field("trace")]: null };
const NO_PATTERNS = new Problem("this run holds no attention patterns", "paths lead through them", 'record it with `capture="attn"`');

function OfExample({ run, example }: ScreenProps) {
  const [view, change] = useView();
  const { live } = useSource();
  const asked = askedIn(view, run, ({ stack }) => example.tokens[stack]?.length ?? 0);
  const query = asked && queryOf(asked, run.name, example.number);
  const compared = query && { ...query, certify: 1 };
  // With the best paths there are they are compared once nothing moves: that takes longer than a slider may wait.
  const loaded = useJson<PathsPayload>("paths", live ? query : compared);
  const settled = useSettled(live && loaded.state === "ready" ? JSON.stringify(query) : null);
  const certified = useJson<PathsPayload>("paths", settled ? compared : null);
  const last = useRef<PathsPayload | null>(null);
  if (loaded.state === "ready") last.current = loaded.value;
  if (!asked) return <Trouble problem={NO_PATTERNS} />;

  const tokens = example.tokens[asked.attention.stack] ?? [];
  const setTarget = (q: number) => change({ ...OF_ONE_RESULT, q, k: null });
  const selected = view.layer !== undefined && view.head !== undefined && asked.attention.layers.includes(Number(view.layer));
  const controls = (
    <Controls
      {...{ run, asked, live }}
      target={tokens[asked.target]}
      head={selected ? { layer: Number(view.layer), head: Number(view.head) } : null}
      set={(options) => change({ ...OF_ONE_RESULT, ...Object.fromEntries(Object.entries(options).map(([name, value]) => [field(name), value])) })}
      setAttention={(attn) => change({ ...OF_ONE_RESULT, attn, q: null, k: null, [field("layer")]: null, [field("agg_heads")]: null })}
      reset={() => change({ ...OF_ONE_RESULT, ...Object.fromEntries([...OPTIONS, "layer"].map((name) => [field(name), null])) })}
    />
  );
  const state = <State loaded={loaded} />;
  return (
    <div class="paths" aria-busy={loaded.state === "loading"}>
      {last.current ? (
        <Result
          {...{ view, change, asked, controls, state, setTarget }}
          payload={last.current}
          old={loaded.state !== "ready"}
          code={codeOf(asked, run, example.id)}
          certificates={certified.state === "ready" ? certified.value.traces.map(({ certificate }) => certificate) : null}
          isCompared={!live || certified.state === "ready"}
        />
      ) : (
        <>
          <Tokens tokens={tokens} label="The text" selected={asked.target} onSelect={setTarget} />
          <div class="main">
            {controls}
            {state}
          </div>
        </>
      )}
    </div>
  );
}

/** That a search is under way, or what is wrong with it; beside what was found before. */
function State({ loaded }: { loaded: Loaded<PathsPayload> }) {
  if (loaded.state === "failed") return <Trouble problem={loaded.problem} />;
  if (loaded.state === "loading") return <Loading {...(loaded.of ? { done: loaded.done ?? 0, of: loaded.of } : {})} />;
  return null;
}

interface ResultProps {
  view: View;
  change: Change;
  asked: Asked;
  payload: PathsPayload;
  /** Whether it is of an earlier search, until that which is asked for is there. */
  old: boolean;
  certificates: string[] | null;
  isCompared: boolean;
  code: ReturnType<typeof codeOf>;
  controls: ComponentChildren;
  state: ComponentChildren;
  setTarget: (position: number) => void;
}

function Result({ view, change, asked, payload, old, certificates, isCompared, code, controls, state, setTarget }: ResultProps) {
  const [own, changeOwn] = useOwn(view, change);
  const paths = usePaths(payload, own, changeOwn);
  const { trace } = paths;
  useKeys(keysOf(paths, { find: "s", only: "i" }, () => changeOwn({ table: own["table"] ? null : 1 })));
  const onward: Onward = ({ layer, head, query, key, cross }) => {
    const attention = cross && asked.cross ? asked.cross : asked.attention;
    const shown = head ?? (attention.heads.includes(Number(view.head)) ? Number(view.head) : attention.heads[0]);
    if (shown === undefined) return null;
    const name = `L${layer}H${shown}`;
    const place = { screen: "head", attn: attention.name, layer, head: shown, q: query, k: key };
    return { address: addressOf(view, place), text: head === null ? `See ${name}, one of the heads combined here` : `See ${name} ${key === null ? "" : "at this cell"}` };
  };
  const compared = certificates?.[paths.index] ?? trace.certificate;
  const comparing = trace.beams.length > 0 && !isCompared && !old ? "Not yet compared with the best paths there are." : "";
  return (
    <>
      <Strip {...paths} onTarget={setTarget} />
      <div class="main" ref={paths.main}>
        {controls}
        <div class={old ? "result old" : "result"}>
          {state}
          <Chart
            title={payload.title}
            sheet={() => sheetOf(payload, trace)}
            code={code}
            field={field("table")}
            tools={<Find state={paths} keyOf="s" />}
            tables={<Tables {...paths} />}
          >
            <Figure state={paths} />
          </Chart>
        </div>
        <Aside state={paths} certificate={compared || comparing} onward={onward} />
      </div>
    </>
  );
}

/** Returns the fields of the address that are this screen's, without its name, and what changes them. */
function useOwn(view: View, change: Change): readonly [View, Change] {
  const start = field("");
  const own = useMemo(
    () => Object.fromEntries(Object.entries(view).flatMap(([name, value]) => (name.startsWith(start) ? [[name.slice(start.length), value]] : []))),
    [view],
  );
  return [own, (changes) => change(Object.fromEntries(Object.entries(changes).map(([name, value]) => [field(name), value])))];
}

const SETTLED = 700; // milliseconds

/** Returns a value once it has not changed for a while; null until then. */
function useSettled(value: string | null): string | null {
  const [settled, setSettled] = useState<string | null>(null);
  useEffect(() => {
    const timer = window.setTimeout(() => setSettled(value), SETTLED);
    return () => window.clearTimeout(timer);
  }, [value]);
  return settled === value ? settled : null;
}
