import { Beams } from "./beams";
import { type Onward, Panel } from "./panel";
import type { PathsState } from "./state";

interface Props {
  state: PathsState;
  /** Whether the beams are the best there are, where that was found out later than they. */
  certificate?: string;
  onward?: Onward | undefined;
}

/** All paths, and what is known of the thing that is selected. */
export function Aside({ state, certificate, onward }: Props) {
  const { trace, visible, cut } = state;
  return (
    <aside>
      {cut && (
        <p class="notice" role="status">
          {visible.size} of {trace.beams.length} paths are drawn; tick others below.
        </p>
      )}
      <Beams {...state} />
      <Panel {...state} certificate={certificate ?? trace.certificate} onward={onward} />
    </aside>
  );
}
