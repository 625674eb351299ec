import type { ComponentChild } from "preact";
import { useState } from "preact/hooks";
import { useView } from "../view";

export interface Column<Row> {
  title: string;
  /** What the column is sorted by. */
  value: (row: Row) => number | string;
  cell: (row: Row) => ComponentChild;
  numeric?: boolean;
}

interface Props<Row> {
  caption: string;
  columns: Column<Row>[];
  rows: Row[];
  /** The field of the address that says how the rows are sorted; otherwise it is forgotten with the page. */
  field?: string;
  /** What a row does: then rows are stepped through by arrow keys, and chosen by Enter or a click. */
  onChoose?: (row: Row) => void;
}

interface Order {
  column: number;
  descending: boolean;
}

/** A table whose columns sort: the second press turns the order around. */
export function Table<Row>({ caption, columns, rows, field, onChoose }: Props<Row>) {
  const [view, change] = useView();
  const [inside, setInside] = useState<Order | null>(null);
  const order = field ? orderOf(view[field], columns) : inside;
  const setOrder = (next: Order) => {
    if (field) change({ [field]: `${next.descending ? "-" : ""}${columns[next.column]?.title ?? ""}` });
    else setInside(next);
  };
  const sorted = order ? sortedBy(rows, columns[order.column], order.descending) : rows;
  return (
    <table>
      <caption>{caption}</caption>
      <thead>
        <tr>
          {columns.map(({ title, numeric }, column) => {
            const mine = order?.column === column ? order : null;
            return (
              <th
                key={title}
                scope="col"
                class={numeric ? "number" : undefined}
                aria-sort={mine ? (mine.descending ? "descending" : "ascending") : "none"}
              >
                <button
                  type="button"
                  onClick={() => setOrder({ column, descending: mine ? !mine.descending : numeric === true })}
                >
                  {title}
                  <span aria-hidden="true">{mine ? (mine.descending ? " ▾" : " ▴") : ""}</span>
                </button>
              </th>
            );
          })}
        </tr>
      </thead>
      <tbody>
        {sorted.map((row, index) => (
          <tr key={index} {...(onChoose && { tabIndex: index ? -1 : 0, onClick: () => onChoose(row), onKeyDown: (event) => step(event, () => onChoose(row)) })}>
            {columns.map(({ title, numeric, cell }) => (
              <td key={title} class={numeric ? "number" : undefined}>
                {cell(row)}
              </td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function orderOf<Row>(text: string | undefined, columns: Column<Row>[]): Order | null {
  const column = columns.findIndex(({ title }) => title === text?.replace(/^-/, ""));
  return text === undefined || column < 0 ? null : { column, descending: text.startsWith("-") };
}

function step(event: KeyboardEvent, choose: () => void): void {
  const row = event.currentTarget as HTMLElement;
  if (event.key === "Enter" && event.target === row) return choose();
  const rows = row.parentElement?.children;
  const to = { ArrowUp: row.previousElementSibling, ArrowDown: row.nextElementSibling, Home: rows?.[0], End: rows?.[rows.length - 1] }[event.key];
  if (!(to instanceof HTMLElement)) return;
  event.preventDefault();
  to.focus();
}

function sortedBy<Row>(rows: Row[], column: Column<Row> | undefined, descending: boolean): Row[] {
  if (!column) return rows;
  const ascending = rows.toSorted((a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    return x < y ? -1 : x > y ? 1 : 0;
  });
  return descending ? ascending.toReversed() : ascending;
}
