import { App } from "./shell/app";
import { start } from "./shell/page";
import "./styles/page.css";
import "./styles/shell.css";
import "./styles/picker.css";
import "./styles/runs.css";
import "./styles/chart.css";
import "./styles/heads.css";
import "./styles/lab.css";
import "./styles/overview.css";
import "./styles/heatmap.css";
import "./styles/head.css";
import "./styles/stream.css";
import "./styles/effects.css";
import "./styles/paths.css";
import "./styles/paths_of_run.css";

start((source) => <App source={source} />);
