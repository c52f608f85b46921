/** Tables that sort, scroll inside their box, and say their headers. */

import { type Child, h } from "./dom";
import { remember } from "./router";

export interface Column<Row> {
  key: string;
  name: string;
  show: (row: Row) => Child;
  /** What it is sorted by; left out: it is not. */
  by?: (row: Row) => number | string | null;
  num?: boolean;
  class?: string;
  title?: string;
}

export class Sorting {
  private key: string;
  private down: boolean;

  constructor(
    query: URLSearchParams,
    private readonly first: string,
    private readonly changed: () => void,
  ) {
    const asked = query.get("sort") ?? first;
    this.down = asked.startsWith("-");
    this.key = asked.replace(/^-/, "");
  }

  of<Row>(columns: Column<Row>[], rows: Row[]): Row[] {
    const by = columns.find((column) => column.key === this.key)?.by;
    if (!by) return rows;
    const way = this.down ? -1 : 1;
    // What is not known comes last, whichever way.
    return rows.toSorted((one, other) => {
      const [a, b] = [by(one), by(other)];
      if (a === null || b === null) return Number(a === null) - Number(b === null);
      return a === b ? 0 : a < b ? -way : way;
    });
  }

  way(key: string): "ascending" | "descending" | undefined {
    return key === this.key ? (this.down ? "descending" : "ascending") : undefined;
  }

  choose(column: Column<never>): void {
    this.down = column.key === this.key ? !this.down : Boolean(column.num);
    this.key = column.key;
    const sort = `${this.down ? "-" : ""}${this.key}`;
    remember({ sort: sort === this.first ? undefined : sort });
    this.changed();
  }
}

interface Table<Row> {
  label: string;
  id?: string;
  columns: Column<Row>[];
  rows: Row[];
  keyOf: (row: Row) => string;
  sorting?: Sorting;
  empty: Child;
}

export function table<Row>({
  label,
  id,
  columns,
  rows,
  keyOf,
  sorting,
  empty,
}: Table<Row>): HTMLElement {
  const look = (column: Column<Row>): string =>
    [column.num ? "num" : "", column.class ?? ""].join(" ").trim();
  const head = (column: Column<Row>): HTMLElement => {
    const sortable = sorting && column.by;
    const way = sorting?.way(column.key);
    const arrow = way && h("span", { "aria-hidden": "true" }, way === "descending" ? " ↓" : " ↑");
    const choose = { click: () => sorting?.choose(column as Column<never>) };
    return h(
      "th",
      { scope: "col", class: look(column), "aria-sort": way, title: column.title },
      sortable ? h("button", { type: "button", on: choose }, column.name, arrow) : column.name,
    );
  };
  const row = (value: Row): HTMLElement =>
    h(
      "tr",
      { "data-key": keyOf(value) },
      columns.map((column, i) =>
        i === 0
          ? h("th", { scope: "row", class: look(column) }, column.show(value))
          : h("td", { class: look(column) }, column.show(value)),
      ),
    );
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": label, "data-testid": id },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, columns.map(head))),
      h("tbody", {}, (sorting?.of(columns, rows) ?? rows).map(row)),
    ),
    rows.length === 0 && h("div", { class: "empty" }, empty),
  );
}
