import { useEffect, useMemo, useState } from "preact/hooks";
import { activeBindings, type Binding, useKeys } from "../keyboard";
import type { ExampleAbout, RunAbout } from "../payload";
import { useFollowed, useJson, useSource, VersionContext } from "../resource";
import { EFFECTS, RUNS } from "../screens";
import { examplesOf, screensOf } from "../screens/carried";
import type { Source } from "../source";
import { asTheme, nextTheme } from "../theme";
import { Help } from "../ui/help";
import { Await } from "../ui/states";
import { addressOf, useView } from "../view";
import { Bar } from "./bar";
import { Notices } from "./notices";
import { Page } from "./page";

/** The page: one screen of one run, or the list of runs. */
export function App({ source }: { source: Source }) {
  return (
    <Page source={source}>
      <Shown />
    </Page>
  );
}

function Shown() {
  const [view] = useView();
  return view.run ? <OneRun name={view.run} /> : <AllRuns />;
}

/** What needs no run: the list of them, or effects that lie beside them. */
function AllRuns() {
  const [view] = useView();
  const alone = view.screen === EFFECTS.id ? EFFECTS : RUNS;
  return (
    <Frame title={alone.title} screen={alone.id}>
      <alone.component />
    </Frame>
  );
}

/** A run, and as much more of it as it has become since. */
function OneRun({ name }: { name: string }) {
  usePrefetched(name);
  const run = useFollowed<RunAbout>("run", { run: name }, ({ finished }) => !finished);
  if (run.state === "ready") {
    return (
      <VersionContext.Provider value={run.value.version}>
        <OneExample run={run.value} />
      </VersionContext.Provider>
    );
  }
  return (
    <Frame title={name}>
      <Await loaded={run}>{() => null}</Await>
      {run.state === "failed" && <Elsewhere />}
    </Frame>
  );
}

/** Asks for what an example's page needs while the run itself is still asked for: one wait in place of three. */
function usePrefetched(run: string): void {
  const [{ ex = "0", screen = "overview" }] = useView();
  const source = useSource();
  useMemo(() => {
    if (!source.live) return;
    const asked = ["example", ...(screen === "overview" && /^\d+$/.test(ex) ? ["overview", "predictions"] : [])];
    for (const resource of asked) source.bytes(resource, { run, ex }).catch(() => null); // who needs it asks again
  }, [source, run]);
}

function OneExample({ run }: { run: RunAbout }) {
  const [view] = useView();
  const example = useJson<ExampleAbout>("example", run.n_examples ? { run: run.name, ex: view.ex ?? 0 } : null);
  const screens = screensOf(useSource());
  const screen = screens.find(({ id }) => id === view.screen) ?? screens[0];
  return (
    <Frame title={`${screen?.title ?? ""} · ${run.name}`} run={run} example={example.state === "ready" ? example.value : null} screen={screen?.id}>
      {run.n_examples ? (
        <Await loaded={example}>{(example) => screen && <screen.component key={`${run.name} ${screen.id}`} {...{ run, example }} />}</Await>
      ) : (
        <p class="loading">{run.finished ? "This run holds no examples." : "Nothing is committed yet; the first examples appear here by themselves."}</p>
      )}
    </Frame>
  );
}

/** The way on from a run that cannot be shown. */
function Elsewhere() {
  const [view] = useView();
  return (
    <p class="elsewhere">
      <a href={addressOf({}, { theme: view.theme ?? null })}>All runs</a>
    </p>
  );
}

interface FrameProps {
  title: string;
  run?: RunAbout | null;
  example?: ExampleAbout | null;
  screen?: string | undefined;
  children: preact.ComponentChildren;
}

/** What surrounds every screen: the bar, the keys of all screens, the help. */
function Frame({ title, run = null, example = null, screen, children }: FrameProps) {
  const [view, change] = useView();
  const [helping, setHelping] = useState(false);
  const source = useSource();
  const screens = screensOf(source);
  useEffect(() => {
    document.title = `${title} · Traceformer`;
  }, [title]);
  const theme = asTheme(view.theme);
  const numbers = examplesOf(source, run?.n_examples ?? 0);
  // The number is known before the example is there, unless it was named by its id.
  const number = example?.number ?? (/^\d*$/.test(view.ex ?? "") ? Number(view.ex ?? 0) : null);
  const step = (by: number) => {
    if (number === null || !numbers.length) return;
    const next = numbers[(numbers.indexOf(number) + by + numbers.length) % numbers.length];
    change({ ex: next ?? null, q: null, k: null });
  };
  const bindings: Binding[] = [
    { keys: ["?"], does: "this list", run: () => setHelping(true) },
    { keys: ["d"], does: "theme: automatic, light, dark", run: () => change({ theme: nextTheme(theme) }) },
    ...(run
      ? [
          { keys: ["[", "]"], does: "previous and next example", run: (key: string) => step(key === "]" ? 1 : -1) },
          {
            keys: screens.map((_, index) => `${index + 1}`),
            written: `1 … ${screens.length}`,
            does: `screens: ${screens.map(({ title }) => title.toLowerCase()).join(", ")}`,
            run: (key: string) => change({ screen: screens[Number(key) - 1]?.id ?? null }),
          },
        ]
      : []),
  ];
  useKeys(bindings);
  return (
    <>
      <div class="above">
        <Bar {...{ run, example, number, numbers, screen, step, theme }} help={() => setHelping(true)} />
        {run && <Notices notices={run.notices} />}
      </div>
      <div class="screen" id={screen ?? RUNS.id}>
        {children}
      </div>
      {helping && <Help bindings={activeBindings()} close={() => setHelping(false)} />}
    </>
  );
}
