import type { ExampleAbout, RunAbout } from "../payload";
import { useSource } from "../resource";
import { SCREENS } from "../screens";
import { nextTheme, type Theme } from "../theme";
import { addressOf, useView } from "../view";

interface Props {
  run: RunAbout | null;
  example: ExampleAbout | null;
  screen: string | undefined;
  step: (by: number) => void;
  theme: Theme;
  help: () => void;
}

/** The head of the page: which run, which example, which screen. */
export function Bar({ run, example, screen, step, theme, help }: Props) {
  const [view, change] = useView();
  const { live } = useSource();
  return (
    <header class="bar">
      {live ? (
        <a class="brand" href={addressOf({}, { theme: view.theme ?? null })}>
          Traceformer
        </a>
      ) : (
        <span class="brand">Traceformer</span>
      )}
      {run && (
        <>
          <span class="run" title={run.name}>
            {run.name}
            {!run.finished && <em> (being written)</em>}
          </span>
          {example && (
            <div class="stepper" role="group" aria-label="Example">
              <button type="button" aria-label="Previous example" title="Previous example ([)" onClick={() => step(-1)}>
                ‹
              </button>
              <span title={example.id}>
                {example.number + 1} of {run.n_examples}
              </span>
              <button type="button" aria-label="Next example" title="Next example (])" onClick={() => step(1)}>
                ›
              </button>
            </div>
          )}
          <nav aria-label="Screens">
            {SCREENS.map(({ id, title }) => (
              <a key={id} href={addressOf(view, { screen: id })} aria-current={id === screen ? "page" : undefined}>
                {title}
              </a>
            ))}
          </nav>
        </>
      )}
      <div class="tools">
        <button type="button" title="Theme (d)" onClick={() => change({ theme: nextTheme(theme) })}>
          Theme: {theme}
        </button>
        <button type="button" aria-label="Keys" title="Keys (?)" onClick={help}>
          ?
        </button>
      </div>
    </header>
  );
}
