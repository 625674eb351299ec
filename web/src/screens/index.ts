/** The screens, in the order of their tabs; each lies in a folder of its own. */

import type { ComponentType } from "preact";
import type { ExampleAbout, RunAbout } from "../payload";
import { Overview } from "./overview/screen";
import { PathsOfRun } from "./paths/screen";
import { Runs } from "./runs/screen";

/** What every screen of a run is given. */
export interface ScreenProps {
  run: RunAbout;
  example: ExampleAbout;
}

export interface Screen {
  id: string;
  title: string;
  /** What it shows, for the help. */
  does: string;
  component: ComponentType<ScreenProps>;
}

/** The screen of the list of runs, which is given none. */
export const RUNS = { id: "runs", title: "Runs", component: Runs };

export const SCREENS: Screen[] = [
  { id: "overview", title: "Overview", does: "an example: its text, what was predicted, all heads", component: Overview },
  { id: "paths", title: "Paths", does: "which tokens one token drew on", component: PathsOfRun },
];
