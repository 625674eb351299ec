import { render } from "preact";
import { App } from "./shell/app";
import { openSource } from "./source";
import "./styles/page.css";
import "./styles/shell.css";
import "./styles/picker.css";
import "./styles/runs.css";
import "./styles/chart.css";
import "./styles/heads.css";
import "./styles/lab.css";
import "./styles/overview.css";
import "./styles/heatmap.css";
import "./styles/stream.css";
import "./styles/effects.css";
import "./styles/paths.css";
import "./styles/paths_of_run.css";

const root = document.getElementById("app");

if (root) {
  openSource().then(
    (source) => render(<App source={source} />, root),
    (error: unknown) => {
      root.textContent = `This page cannot be shown: ${String(error)}`;
    },
  );
}
