import { useState } from "preact/hooks";
import { type Binding, useKeys } from "../keyboard";
import type { PathsPayload } from "../payload";
import { asTheme, nextTheme } from "../theme";
import { Help } from "../ui/help";
import { useView } from "../view";
import { Aside } from "./aside";
import { Figure } from "./figure";
import { Find } from "./find";
import { keysOf, usePaths } from "./state";
import { Strip } from "./strip";
import { Tables } from "./tables";

/** A page that shows one result and nothing else: its text, its diagram or tables, its paths, what is selected. */
export function PathsScreen({ payload }: { payload: PathsPayload }) {
  const [view, change] = useView();
  const theme = asTheme(view.theme);
  const state = usePaths(payload, view, change);
  const { trace } = state;
  const [helping, setHelping] = useState(false);
  const table = view["view"] === "table";
  const toggle = () => change({ view: table ? null : "table" });
  const alone = (beam: number) => beam < trace.beams.length && state.show([beam]);
  const bindings: Binding[] = [
    { keys: ["?"], does: "this list", run: () => setHelping(true) },
    ...keysOf(state, { find: "/", only: "o" }, toggle),
    { keys: [..."123456789"], written: "1 … 9", does: "draw one path alone", run: (key) => alone(Number(key) - 1) },
    { keys: ["+", "-", "f"], does: "zoom in, zoom out, show everything" },
    { keys: ["d"], does: "theme: automatic, light, dark", run: () => change({ theme: nextTheme(theme) }) },
  ];
  useKeys(bindings);
  return (
    <>
      <header class="top">
        <div class="title">
          <h1>{payload.title}</h1>
          <p>{payload.subtitle}</p>
        </div>
        <div class="tools">
          <Find state={state} keyOf="/" />
          <button type="button" aria-pressed={table} title="Tables (t)" onClick={toggle}>
            Tables
          </button>
          <button type="button" title="Theme (d)" onClick={() => change({ theme: nextTheme(theme) })}>
            Theme: {theme}
          </button>
          <button type="button" aria-label="Keys" title="Keys (?)" onClick={() => setHelping(true)}>
            ?
          </button>
        </div>
      </header>
      <Strip {...state} />
      <div class="main" ref={state.main}>
        {table ? <Tables {...state} /> : <Figure state={state} />}
        <Aside state={state} />
      </div>
      {helping && <Help bindings={bindings} close={() => setHelping(false)} />}
    </>
  );
}
