/** The state of the page, which is its address: `#screen=head&run=NAME&ex=0&attn=dec.self&layer=2&head=3`. */

import { createContext } from "preact";
import { useCallback, useContext, useEffect, useLayoutEffect, useState } from "preact/hooks";
import { onSelected, tellView } from "./host";

/** Fields that screens share; each screen may have more of its own, and only strings. */
export type View = Readonly<Record<string, string>> & {
  readonly screen?: string;
  readonly run?: string;
  /** The example's number or id. */
  readonly ex?: string;
  /** An attention, `dec.self`. */
  readonly attn?: string;
  readonly layer?: string;
  readonly head?: string;
  /** Positions of the query and of the key that are selected. */
  readonly q?: string;
  readonly k?: string;
  readonly theme?: string;
};

/** Changes fields; null takes one away. A change of `screen`, `run` or `ex` can be gone back from. */
export type Change = (changes: Record<string, string | number | null>) => void;

export const ViewContext = createContext<readonly [View, Change]>([{}, () => {}]);

export function useView(): readonly [View, Change] {
  return useContext(ViewContext);
}

const STEPS = ["screen", "run", "ex"];

/** Returns the page's state and what changes it, for the one who hands it on through `ViewContext`. */
export function useAddress(start: View): readonly [View, Change] {
  const [view, setView] = useState<View>(() => ({ ...start, ...read(location.hash) }));
  useLayoutEffect(() => {
    const reread = () => setView({ ...start, ...read(location.hash) });
    // A frame's links would lead to the page around it, since that gives them their base.
    const follow = (event: MouseEvent) => {
      const link = event.target instanceof Element ? event.target.closest("a[href^='#']") : null;
      if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      const next = read(link.getAttribute("href") ?? "");
      setView(next);
      write(next, true);
    };
    onSelected(setView);
    window.addEventListener("hashchange", reread);
    window.addEventListener("popstate", reread);
    document.addEventListener("click", follow);
    return () => {
      window.removeEventListener("hashchange", reread);
      window.removeEventListener("popstate", reread);
      document.removeEventListener("click", follow);
    };
  }, []);
  useEffect(() => tellView(view), [view]);
  const change = useCallback<Change>((changes) => {
    setView((old) => {
      const next = changed(old, changes);
      if (text(next) !== text(old)) write(next, STEPS.some((field) => next[field] !== old[field]));
      return next;
    });
  }, []);
  return [view, change];
}

/** Returns the address of a state, for links. */
export function addressOf(view: View, changes: Record<string, string | number | null>): string {
  return `#${text(changed(view, changes))}`;
}

function changed(view: View, changes: Record<string, string | number | null>): View {
  const entries = Object.entries({ ...view, ...changes }).filter(([, value]) => value !== null && value !== "");
  return Object.fromEntries(entries.map(([name, value]) => [name, String(value)]));
}

function read(hash: string): View {
  return Object.fromEntries(new URLSearchParams(hash.slice(1)));
}

function text(view: View): string {
  return new URLSearchParams(view).toString().replaceAll("%2C", ",");
}

function write(view: View, step: boolean): void {
  try {
    history[step ? "pushState" : "replaceState"](null, "", text(view) ? `#${text(view)}` : location.href.replace(/#.*$/, ""));
  } catch {
    // A frame without an origin of its own (in a notebook) has no address to keep; its state lives as long as it does.
  }
}
