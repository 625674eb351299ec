/** The screens, in the order of their tabs; each lies in a folder of its own. */

import type { ComponentType } from "preact";
import type { ExampleAbout, RunAbout } from "../payload";
import { Head } from "./head/screen";
import { Compare } from "./compare/screen";
import { Effects, Interventions } from "./effects/screen";
import { Lab } from "./lab/screen";
import { Overview } from "./overview/screen";
import { PathsOfRun } from "./paths/screen";
import { Runs } from "./runs/screen";
import { Stream } from "./stream/screen";

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

/** Effects without a run. */
export const EFFECTS = { id: "effects", title: "Effects", component: Interventions };

export const SCREENS: Screen[] = [
  { id: "overview", title: "Overview", does: "an example: its text, what was predicted, all heads", component: Overview },
  { id: "head", title: "Head", does: "one head: where each token looks", component: Head },
  { id: "paths", title: "Paths", does: "which tokens one token drew on", component: PathsOfRun },
  { id: "lab", title: "Heads lab", does: "all heads by their metrics, in clusters", component: Lab },
  { id: "stream", title: "Stream", does: "the residual stream: norms, logit lens, traits", component: Stream },
  { id: "compare", title: "Compare", does: "a head in two texts, or in two runs", component: Compare },
  { id: "effects", title: "Effects", does: "what parts of the model do to a prediction, and interventions", component: Effects },
];
