import type { ComponentChildren } from "preact";
import { useRef, useState } from "preact/hooks";
import { useView } from "../view";
import { csv, pngOf, saveBlob, saveText, type Sheet, svgOf } from "./save";
import { Table } from "./table";

/** The Python and the command line that give the same. */
export interface Code {
  python: string;
  shell?: string;
}

interface Props {
  /** The heading; also the file's name when it is saved. */
  title: string;
  /** What is missing or not exact, said before anything is drawn. */
  notice?: string | null;
  /** The same as a table: each chart has one. */
  sheet: () => Sheet;
  code: Code;
  /** Controls beside the heading. */
  tools?: ComponentChildren;
  /** The field of the address that says whether the table is shown, where a screen has several charts. */
  field?: string;
  /** What the table view shows where it is more than the sheet. */
  tables?: ComponentChildren;
  children: ComponentChildren;
}

const MOST_ROWS = 2000;

/** A picture with its heading, its table, its code, and what saves it. */
export function Chart({ title, notice, sheet, code, tools, field = "table", tables, children }: Props) {
  const [view, change] = useView();
  const [coding, setCoding] = useState(false);
  const picture = useRef<HTMLDivElement>(null);
  const table = view[field] === "1";
  const name = title.replaceAll(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").toLowerCase();
  return (
    <section class="chart" aria-label={title}>
      <header>
        <h2>{title}</h2>
        {tools}
        <div class="saving" role="group" aria-label={`Save ${title}`}>
          <button type="button" aria-pressed={table} onClick={() => change({ [field]: table ? null : 1 })}>
            Table
          </button>
          <button type="button" aria-pressed={coding} onClick={() => setCoding(!coding)}>
            Code
          </button>
          <button type="button" disabled={table} onClick={async () => picture.current && saveBlob(`${name}.png`, await pngOf(picture.current))}>
            PNG
          </button>
          <button type="button" disabled={table} onClick={() => picture.current && saveText(`${name}.svg`, svgOf(picture.current), "image/svg+xml")}>
            SVG
          </button>
          <button type="button" onClick={() => saveText(`${name}.csv`, csv(sheet()), "text/csv")}>
            CSV
          </button>
        </div>
      </header>
      {notice && (
        <p class="notice" role="status">
          {notice}
        </p>
      )}
      {coding && <CodeShown {...code} />}
      {table ? (
        <div class="sheet">{tables ?? <SheetTable sheet={sheet()} />}</div>
      ) : (
        <div class="picture" ref={picture}>
          {children}
        </div>
      )}
    </section>
  );
}

function CodeShown({ python, shell }: Code) {
  return (
    <div class="code">
      {Object.entries({ Python: python, "Command line": shell }).map(
        ([what, text]) =>
          text && (
            <figure key={what}>
              <figcaption>
                {what}
                <button type="button" onClick={() => void navigator.clipboard?.writeText(text)}>
                  Copy
                </button>
              </figcaption>
              <pre>{text}</pre>
            </figure>
          ),
      )}
    </div>
  );
}

function SheetTable({ sheet: { caption, columns, rows } }: { sheet: Sheet }) {
  const some = rows.slice(0, MOST_ROWS);
  const numeric = columns.map((_, index) => some.every((row) => typeof row[index] === "number"));
  const left = rows.length > some.length ? `; ${some.length} of ${rows.length} rows shown, the CSV has all` : "";
  return (
    <Table<(string | number)[]>
      caption={caption + left}
      rows={some}
      columns={columns.map((title, index) => ({
        title,
        value: (row) => row[index] ?? "",
        cell: (row) => row[index],
        numeric: numeric[index] ?? false,
      }))}
    />
  );
}
