import { render } from "preact";
import { readPayload } from "./data";
import { PathsScreen } from "./paths/screen";
import "./styles/page.css";
import "./styles/paths.css";

const root = document.getElementById("app");

if (root) {
  readPayload().then(
    (payload) => render(<PathsScreen payload={payload} />, root),
    (error: unknown) => {
      root.textContent = `This page cannot be shown: ${String(error)}`;
    },
  );
}
