/** What more than one view shows. */

import type { Change, RunView, Status, Summary } from "./api";
import { type Child, h, svg } from "./dom";
import { ago, count, duration, percent, signed, since } from "./format";
import { link, remember } from "./router";
import { RpcError } from "./rpc";

/** One page of the page: built once for an address, filled again and again. */
export interface View {
  title: string;
  element: HTMLElement;
  /** Ask for what it shows, and show it. */
  refresh: () => Promise<void>;
  /** Milliseconds until it is asked for again. */
  every: () => number;
  stop?: () => void;
}

// ------------------------------------------------------------------ ranges

interface Range {
  name: string;
  long: string;
  ms: number;
  step: string; // between two points of a chart: wide enough that a bar is more than a hair
}

const RANGES: Record<string, Range> = {
  "15m": { name: "15 min", long: "15 minutes", ms: 900_000, step: "10s" },
  "1h": { name: "1 h", long: "hour", ms: 3_600_000, step: "30s" },
  "6h": { name: "6 h", long: "6 hours", ms: 21_600_000, step: "3m" },
  "24h": { name: "24 h", long: "24 hours", ms: 86_400_000, step: "15m" },
  "7d": { name: "7 days", long: "7 days", ms: 604_800_000, step: "1h" },
  "30d": { name: "30 days", long: "30 days", ms: 2_592_000_000, step: "6h" },
};

/** A field to search a table by; the address keeps what is in it. */
export function search(what: string, text: string, changed: (text: string) => void): HTMLInputElement {
  const field = h("input", {
    type: "search",
    class: "search",
    placeholder: `Search ${what} ( / )`,
    "aria-label": `Search ${what}`,
    value: text,
    on: {
      input: () => {
        remember({ q: field.value });
        changed(field.value);
      },
    },
  });
  return field;
}

export class RangeChoice {
  private chosen: string;

  constructor(
    query: URLSearchParams,
    private readonly changed: () => void,
  ) {
    const asked = query.get("range") ?? "";
    this.chosen = asked in RANGES ? asked : "1h";
  }

  get from(): string {
    return `-${this.chosen}`;
  }

  get step(): string {
    return RANGES[this.chosen]?.step ?? "";
  }

  /** For a link that keeps the range. */
  get query(): { range: string | undefined } {
    return { range: this.chosen === "1h" ? undefined : this.chosen };
  }

  get long(): string {
    return RANGES[this.chosen]?.long ?? "";
  }

  /** How often it is worth asking again. */
  get every(): number {
    const ms = RANGES[this.chosen]?.ms ?? 0;
    return ms <= 3_600_000 ? 5_000 : ms <= 86_400_000 ? 15_000 : 60_000;
  }

  buttons(): HTMLElement {
    return h(
      "div",
      { class: "choice", role: "group", "aria-label": "Range of time" },
      Object.entries(RANGES).map(([value, { name, long }]) =>
        h(
          "button",
          {
            type: "button",
            "aria-pressed": String(value === this.chosen),
            title: `The last ${long}`,
            on: { click: () => this.choose(value) },
          },
          name,
        ),
      ),
    );
  }

  private choose(value: string): void {
    this.chosen = value;
    remember(this.query);
    this.changed();
  }
}

// ------------------------------------------------------------------ small parts

const SHAPES: Record<string, string> = {
  ok: "M3 8.5l3.2 3.2L13 5",
  warn: "M8 3v6M8 12v1",
  error: "M4 4l8 8M12 4l-8 8",
  run: "M8 3v5l3 2",
  idle: "M4 8h8",
  info: "M8 7.2v5M8 4v.4",
};

/** A sign that tells by its shape too, for whoever cannot tell the colours. */
export function sign(kind: "ok" | "warn" | "error" | "run" | "idle" | "info"): SVGElement {
  return svg(
    "svg",
    { class: `sign ${kind}`, viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" },
    svg("circle", { cx: 8, cy: 8, r: 8 }),
    svg("path", { d: SHAPES[kind] }),
  );
}

const STATUS = {
  pending: ["idle", "Pending"],
  running: ["run", "Running"],
  success: ["ok", "Success"],
  failed: ["error", "Failed"],
} as const;

export function status(of: Status): HTMLElement {
  const [kind, word] = STATUS[of];
  return h("span", { class: `status ${kind}` }, sign(kind), word);
}

export const panel = (title: string, ...children: Child[]): HTMLElement =>
  h("section", { class: "panel" }, h("h2", {}, title), children);

export function tile(
  label: string,
  value: Child,
  id: string,
  hint?: Child,
  state = "",
): HTMLElement {
  return h(
    "div",
    { class: `tile ${state}` },
    h("dt", {}, label),
    h("dd", {}, h("b", { class: "num", "data-testid": id }, value), hint && h("small", {}, hint)),
  );
}

/** Why a part cannot be shown; quietly where that is how things are. */
export function excuse(error: RpcError): HTMLElement {
  if (error.notOnHub)
    return h(
      "p",
      { class: "quiet" },
      "Each node tells this for itself, and this is the hub of many.",
    );
  return h(
    "p",
    { class: "trouble" },
    sign("warn"),
    error.message,
    error.advice && ` ${error.advice}`,
  );
}

export const quiet = (...text: Child[]): HTMLElement => h("p", { class: "quiet" }, text);

export const code = (text: string): HTMLElement =>
  h(
    "pre",
    { tabindex: 0, role: "region", "aria-label": "Text of several lines" },
    h("code", {}, text),
  );

export const pipelineLink = (name: string, range?: string): HTMLElement =>
  h("a", { href: link(["pipelines", name], { range }), class: "name", title: name }, name);

export const workerLink = (name: string): HTMLElement =>
  h("a", { href: link(["workers"], { q: name }), class: "name", title: name }, name);

export function runLink(run: { id: string; pipeline: string; worker: string }): HTMLElement {
  const { id, pipeline, worker } = run;
  return h(
    "a",
    { href: link(["runs", id], { pipeline, worker }), class: "name id", title: id },
    id,
  );
}

/** A bar of a share, beside its number. */
export const bar = (share: number, kind = "", label?: string): HTMLElement =>
  h(
    "span",
    { class: `bar ${kind}`, role: label && "img", "aria-label": label },
    h("i", { style: { width: `${Math.min(Math.max(share, 0), 100)}%` } }),
  );

// ------------------------------------------------------------------ comparisons

const worse = (n: number | null, unit: number): string =>
  n === null || Math.abs(n) < unit ? "" : n > 0 ? "worse" : "better";

const LEAST = 10; // runs, below which a change would be chance

/** What has changed, in words: what is better and what is worse says its sign too. */
export function comparison(total: Summary, change: Change | null, before: string): Child {
  const item = (label: string, value: string, delta: Child): HTMLElement =>
    h("span", { class: "compared" }, `${label} `, h("b", { class: "num" }, value), " ", delta);
  const enough = (change?.before.runs ?? 0) >= LEAST;
  const delta = (text: string, kind = ""): Child =>
    enough ? h("span", { class: `delta num ${kind}` }, text) : null;
  return [
    item("Runs", count(total.runs), delta(signed(change?.runsPerHour ?? null, "%"))),
    item(
      "Failed",
      total.runs ? `${count(total.failed)} (${percent(total.errorRate)})` : "0",
      delta(signed(change?.errorRate ?? null, "points", 2), worse(change?.errorRate ?? null, 0.01)),
    ),
    item(
      "p95",
      duration(total.p95),
      delta(signed(change?.p95 ?? null, "%"), worse(change?.p95 ?? null, 1)),
    ),
    h("span", { class: "quiet" }, enough ? before : "too little before it to compare with"),
  ];
}

// ------------------------------------------------------------------ runs

/** What went wrong in a run, in one line. */
export const fault = (run: RunView): Child =>
  run.error
    ? h(
        "span",
        { class: "fault", title: `${run.error.type}: ${run.error.message}` },
        h("b", {}, run.error.type),
        run.error.message && ` ${run.error.message}`,
      )
    : run.status === "failed"
      ? h("span", { class: "quiet" }, "no error was told")
      : null;

export const lasted = (run: RunView): Child =>
  run.status === "running" && run.startedAt ? since(run.startedAt) : duration(run.durationMs);

export const keyOfRun = (run: RunView): string =>
  `${run.worker}\n${run.pipeline.name}\n${run.id}\n${run.attempt}\n${run.finishedAt ?? ""}`;

export const ended = (run: RunView): Child =>
  run.finishedAt ? ago(run.finishedAt) : run.startedAt ? ago(run.startedAt) : null;

// ------------------------------------------------------------------ nobody there yet

export function howToConnect(socket: string | undefined): HTMLElement {
  const where = socket && `# the service listens at ${socket}\n`;
  return h(
    "section",
    { class: "panel welcome" },
    h("h2", {}, "No worker has connected yet"),
    h(
      "p",
      {},
      "A worker connects with its first run. Install ",
      h("code", {}, "orbit-metrics"),
      " where the worker runs, and add these lines:",
    ),
    h(
      "div",
      { class: "two" },
      h(
        "div",
        {},
        h("h3", {}, "Any Python"),
        code(
          'from orbit_worker import track\n\nwith track("import-orders") as run:\n' +
            '    with run.step("download"):\n        ...  # your code',
        ),
      ),
      h(
        "div",
        {},
        h("h3", {}, "Celery"),
        code(
          "import orbit_worker.integrations.celery\n\norbit_worker.integrations.celery.install(app)",
        ),
      ),
    ),
    socket &&
      h(
        "p",
        { class: "quiet" },
        "The worker finds the service by itself; if another user runs it:",
      ),
    where && code(`${where}export ORBIT_SOCKET=${socket}`),
  );
}
