import { useLayoutEffect, useRef } from "preact/hooks";

/** One line of the help, and what its keys do; keys without `run` are handled where the focus is. */
export interface Binding {
  keys: string[];
  /** How the keys are written in the help, where not one by one. */
  written?: string;
  does: string;
  run?: (key: string) => void;
}

/** The bindings of everything that is on the page, for the help. */
const active = new Set<{ current: Binding[] }>();

export function activeBindings(): Binding[] {
  return [...active].flatMap(({ current }) => current);
}

/**
 * Runs the binding of each key that is pressed outside of text fields (where Escape counts) and of dialogs, from the
 * moment what it is about is on the page: an effect that waits for the paint loses the keys of a quick hand.
 */
export function useKeys(bindings: Binding[]): void {
  const latest = useRef(bindings); // those of the last render, even for a key that is pressed before it is painted
  latest.current = bindings;
  useLayoutEffect(() => {
    active.add(latest);
    return () => void active.delete(latest);
  }, []);
  useLayoutEffect(() => {
    const press = (event: KeyboardEvent) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
      if (isTyping(event.target) && event.key !== "Escape") return;
      if (document.querySelector("dialog[open]")) return;
      const binding = latest.current.find(({ keys, run }) => run && keys.includes(event.key));
      if (!binding?.run) return;
      event.preventDefault();
      binding.run(event.key);
    };
    window.addEventListener("keydown", press);
    return () => window.removeEventListener("keydown", press);
  }, []);
}

function isTyping(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && target.matches("input:not([type=checkbox]), select, textarea");
}
