/** The widget around a page in a notebook: it answers, is told what is selected, and may select. */

import { problemTold, type Told } from "./problem";

type Fields = Record<string, string>;

/** What goes from the page to the widget. */
export type ToHost = { ready: true } | { ask: number; resource: string; query: Fields } | { view: Fields };

/** What goes from the widget to the page. */
export type ToPage = { view: Fields } | { answered: number; bytes: ArrayBuffer } | { answered: number; told: Told };

export const isEmbedded = document.documentElement.dataset["host"] === "widget";

const waiting = new Map<number, { done: (bytes: ArrayBuffer) => void; fail: (error: Error) => void }>();
let asked = 0;
let given: Fields | null = null;
let select: (view: Fields) => void = () => {};

/** Returns what is to be shown first. */
export function startOfHost(): Promise<Fields> {
  return new Promise((done) => {
    select = done;
    window.addEventListener("message", ({ source, data }: MessageEvent<ToPage>) => {
      if (source !== window.parent) return;
      if ("view" in data) {
        given = data.view;
        return select(given);
      }
      const { done, fail } = waiting.get(data.answered) ?? {};
      waiting.delete(data.answered);
      if ("bytes" in data) done?.(data.bytes);
      else fail?.(problemTold(data.told));
    });
    tell({ ready: true });
  });
}

export function askHost(resource: string, query: Fields): Promise<ArrayBuffer> {
  asked += 1;
  tell({ ask: asked, resource, query });
  return new Promise((done, fail) => waiting.set(asked, { done, fail }));
}

/** Tells the widget what is shown, but for what it said itself: it may have said something else since. */
export function tellView(view: Fields): void {
  if (isEmbedded && view !== given) tell({ view });
}

/** Has the widget's own selections shown. */
export function onSelected(show: (view: Fields) => void): void {
  select = show;
}

function tell(message: ToHost): void {
  window.parent.postMessage(message, "*");
}
