import { counted } from "../numbers";
import type { PathsState } from "./state";

/** The field that finds tokens, and which of several traces is shown. */
export function Find({ state, keyOf }: { state: PathsState; keyOf: string }) {
  const { payload, index, query, found, meant, search, change, findNext, show } = state;
  return (
    <>
      <label class="search">
        <input
          ref={search}
          type="search"
          placeholder={`Search tokens ( ${keyOf} )`}
          aria-label="Search tokens"
          value={query}
          onInput={({ currentTarget }) => change({ find: currentTarget.value })}
          onKeyDown={({ key }) => key === "Enter" && findNext(1)}
        />
        {query && (
          <small role="status">
            {counted(found.length, "token")} on {counted(meant.size, "path")}
          </small>
        )}
      </label>
      {query && meant.size > 0 && (
        <button type="button" title="Draw only the paths found" onClick={() => show(meant)}>
          Draw only these
        </button>
      )}
      {payload.traces.length > 1 && (
        <select
          aria-label="Trace"
          value={index}
          onChange={({ currentTarget }) => change({ trace: currentTarget.value, pick: null, beams: null, zoom: null })}
        >
          {payload.traces.map(({ name }, other) => (
            <option key={name} value={other}>
              {name}
            </option>
          ))}
        </select>
      )}
    </>
  );
}
