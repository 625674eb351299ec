import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import { useView } from "./view";

export const THEMES = ["auto", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

/** Shows the page in a theme; `auto` is the system's. */
export function useTheme(theme: Theme): void {
  useLayoutEffect(() => {
    document.documentElement.dataset["theme"] = theme;
  }, [theme]);
}

export function asTheme(text: string | undefined): Theme {
  return THEMES.find((theme) => theme === text) ?? "auto";
}

export function nextTheme(theme: Theme): Theme {
  return THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length] ?? "auto";
}

/** Returns whether the page is dark, by its theme or the system's. */
export function useDark(): boolean {
  const theme = asTheme(useView()[0].theme);
  const [system, setSystem] = useState(SYSTEM.matches);
  useEffect(() => {
    const follow = () => setSystem(SYSTEM.matches);
    SYSTEM.addEventListener("change", follow);
    return () => SYSTEM.removeEventListener("change", follow);
  }, []);
  return theme === "auto" ? system : theme === "dark";
}

const SYSTEM = window.matchMedia("(prefers-color-scheme: dark)");
