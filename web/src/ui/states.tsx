import type { ComponentChildren } from "preact";
import type { Loaded } from "../resource";
import type { Problem } from "../problem";

/** Shows an answer once it is there; until then that it is loading, or what is wrong. */
export function Await<Value>({ loaded, children }: { loaded: Loaded<Value>; children: (value: Value) => ComponentChildren }) {
  if (loaded.state === "ready") return <>{children(loaded.value)}</>;
  if (loaded.state === "failed") return <Trouble problem={loaded.problem} />;
  return <Loading {...(loaded.of ? { done: loaded.done ?? 0, of: loaded.of } : {})} />;
}

export function Loading({ done, of }: { done?: number; of?: number }) {
  return (
    <div class="loading" role="status">
      {of ? <progress value={done} max={of} /> : null}
      <span>{of ? `${done} of ${of}` : "Loading"}</span>
    </div>
  );
}

/** What cannot be shown, why, and what would work. */
export function Trouble({ problem }: { problem: Problem }) {
  return (
    <div class="trouble" role="alert">
      <p>{problem.message}</p>
      {problem.why && <p>{problem.why}</p>}
      {problem.hint && <p class="hint">Try: {problem.hint}</p>}
    </div>
  );
}
