import type { RunRow } from "../../payload";
import { shortName } from "../../ui/names";

/** A model or a data set, of whose path only the end is read. */
export function Model({ name }: { name: string | null | undefined }) {
  return name ? <span title={name}>{shortName(name)}</span> : null;
}

/** What is not as it should be with a run, or not yet. */
export function State({ problem, finished, n_examples = 0, n_expected = 0 }: RunRow) {
  if (problem) return <p class="problem">{problem}</p>;
  if (finished !== false) return null;
  if (n_expected === null) return <p class="written">being written: {n_examples} so far</p>;
  return (
    <p class="written">
      being written
      <progress value={n_examples} max={n_expected} aria-label={`${n_examples} of ${n_expected} examples`} />
      {n_examples} of {n_expected}
    </p>
  );
}
