import { useState } from "preact/hooks";
import { useKeys } from "../keyboard";
import type { ExampleAbout, RunAbout } from "../payload";
import { useSource } from "../resource";
import { screensOf } from "../screens/carried";
import { nextTheme, type Theme } from "../theme";
import { shortName } from "../ui/names";
import { addressOf, useView } from "../view";
import { PickExample } from "./pick_example";
import { PickRun } from "./pick_run";
import { Search } from "./search";

interface Props {
  run: RunAbout | null;
  example: ExampleAbout | null;
  /** The example's, known before the example is there. */
  number: number | null;
  screen: string | undefined;
  step: (by: number) => void;
  theme: Theme;
  help: () => void;
}

type Open = "runs" | "examples" | "search" | null;

/** The head of the page: which run, which example, which screen, and the search for others. */
export function Bar({ run, example, number, screen, step, theme, help }: Props) {
  const [view, change] = useView();
  const [open, setOpen] = useState<Open>(null);
  const source = useSource();
  const close = () => setOpen(null);
  const toggle = (which: Open) => () => setOpen(open === which ? null : which);
  const canPick = run !== null && (source.live || source.has("examples", { run: run.name }));
  useKeys([
    ...(run && source.live ? [{ keys: ["o"], does: "open another run", run: () => setOpen("runs") }] : []),
    ...(canPick ? [{ keys: ["e"], does: "choose an example", run: () => setOpen("examples") }] : []),
    ...(canPick ? [{ keys: ["/"], does: "search: a token, a feature of heads, a text", run: () => setOpen("search") }] : []),
  ]);
  return (
    <header class="bar">
      {source.live ? (
        <a class="brand" href={addressOf({}, { theme: view.theme ?? null })} title="All runs">
          Traceformer
        </a>
      ) : (
        <span class="brand">Traceformer</span>
      )}
      {run && (
        <>
          <div class="pick run">
            <button type="button" disabled={!source.live} aria-haspopup="listbox" aria-expanded={open === "runs"} title={`${run.name}\n${run.model ?? ""}\nAnother run (o)`} onClick={toggle("runs")}>
              <b>{run.name}</b>
              {run.model && run.model !== run.name && <span>{shortName(run.model)}</span>}
            </button>
            {open === "runs" && <PickRun name={run.name} close={close} />}
          </div>
          <div class="pick stepper" role="group" aria-label="Example">
            <button type="button" aria-label="Previous example" title="Previous example ([)" onClick={() => step(-1)}>
              ‹
            </button>
            <button
              type="button"
              class="which"
              disabled={!canPick}
              aria-haspopup="listbox"
              aria-expanded={open === "examples"}
              title={example ? `${example.id}\nAnother example (e)` : undefined}
              onClick={toggle("examples")}
            >
              {number === null ? "–" : number + 1} of {run.n_examples}
            </button>
            <button type="button" aria-label="Next example" title="Next example (])" onClick={() => step(1)}>
              ›
            </button>
            {open === "examples" && <PickExample {...{ run, example, close }} />}
          </div>
          <nav aria-label="Screens">
            {screensOf(source).map(({ id, title }) => (
              <a key={id} href={addressOf(view, { screen: id })} aria-current={id === screen ? "page" : undefined}>
                {title}
              </a>
            ))}
          </nav>
        </>
      )}
      <div class="tools">
        {canPick && (
          <div class="pick find">
            <button type="button" aria-haspopup="listbox" aria-expanded={open === "search"} title="Search (/)" onClick={toggle("search")}>
              Search <kbd>/</kbd>
            </button>
            {open === "search" && run && <Search {...{ run, example, close }} />}
          </div>
        )}
        <button type="button" aria-label={`Theme: ${theme}`} title={`Theme: ${theme} (d)`} onClick={() => change({ theme: nextTheme(theme) })}>
          {{ auto: "◐", light: "○", dark: "●" }[theme]}
        </button>
        <button type="button" aria-label="Keys" title="Keys (?)" onClick={help}>
          ?
        </button>
      </div>
    </header>
  );
}
