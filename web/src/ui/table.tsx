import type { ComponentChild } from "preact";
import { useState } from "preact/hooks";

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
}

/** A table whose columns sort: the second press turns the order around. */
export function Table<Row>({ caption, columns, rows }: Props<Row>) {
  const [order, setOrder] = useState<{ column: number; descending: boolean } | null>(null);
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
          <tr key={index}>
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

function sortedBy<Row>(rows: Row[], column: Column<Row> | undefined, descending: boolean): Row[] {
  if (!column) return rows;
  const ascending = rows.toSorted((a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    return x < y ? -1 : x > y ? 1 : 0;
  });
  return descending ? ascending.toReversed() : ascending;
}
