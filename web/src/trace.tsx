/** The page of one trace, which has nothing but its screen: a file of a fourth of the viewer's size. */

import { PathsScreen } from "./paths/screen";
import type { PathsPayload } from "./payload";
import { useJson } from "./resource";
import { Page, start } from "./shell/page";
import "./styles/page.css";
import "./styles/paths.css";
import { Await } from "./ui/states";

function Trace() {
  return <Await loaded={useJson<PathsPayload>("paths", {})}>{(payload) => <PathsScreen payload={payload} />}</Await>;
}

start((source) => (
  <Page source={source}>
    <Trace />
  </Page>
));
