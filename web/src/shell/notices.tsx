import { useState } from "preact/hooks";

const SHOWN = 2;

/** What a run lacks, before anything is drawn of it. */
export function Notices({ notices }: { notices: string[] }) {
  const [all, setAll] = useState(false);
  if (!notices.length) return null;
  const shown = all ? notices : notices.slice(0, SHOWN);
  const left = notices.length - SHOWN;
  return (
    <p class="notices" role="status">
      {shown.map((notice) => (
        <span key={notice}>{notice}</span>
      ))}
      {left > 0 && (
        <button type="button" class="inline" aria-expanded={all} onClick={() => setAll(!all)}>
          {all ? "less" : `${left} more`}
        </button>
      )}
    </p>
  );
}
