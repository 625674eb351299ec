import type { ComponentChildren, VNode } from "preact";
import { render } from "preact";
import { SourceContext } from "../resource";
import { openSource, type Source } from "../source";
import { asTheme, useTheme } from "../theme";
import { useAddress, ViewContext } from "../view";

/** What everything on a page stands in: where it gets its data, its address, its theme. */
export function Page({ source, children }: { source: Source; children: ComponentChildren }) {
  const address = useAddress(source.start);
  useTheme(asTheme(address[0].theme));
  return (
    <SourceContext.Provider value={source}>
      <ViewContext.Provider value={address}>{children}</ViewContext.Provider>
    </SourceContext.Provider>
  );
}

/** Draws the page once its source is open. */
export function start(page: (source: Source) => VNode): void {
  const root = document.getElementById("app");
  if (!root) return;
  openSource().then(
    (source) => render(page(source), root),
    (error: unknown) => {
      root.textContent = `This page cannot be shown: ${String(error)}`;
    },
  );
}
