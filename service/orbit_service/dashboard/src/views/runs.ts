/** Runs as they end, by status, pipeline and worker. */

import type { RunView, Status } from "../api";
import { type Child, fill, h } from "../dom";
import { count, plural } from "../format";
import * as parts from "../parts";
import { remember } from "../router";
import { attempt, RpcError, stream } from "../rpc";
import { type Column, table } from "../table";

const SHOWN = 200;
const seen = new Map<string, RunView>();

/** A run that was shown before, for as long as it is remembered here. */
export const remembered = (id: string, pipeline: string | null): RunView | undefined =>
  seen.get(`${pipeline}\n${id}`);

export function keep(runs: RunView[]): void {
  for (const run of runs) {
    const key = `${run.pipeline.name}\n${run.id}`;
    seen.delete(key);
    seen.set(key, run);
  }
  for (const key of seen.keys()) {
    if (seen.size <= 1_000) break;
    seen.delete(key);
  }
}

export function runs(query: URLSearchParams): parts.View {
  let rows: RunView[] = [];
  let missed = 0;
  let waiting: RunView[] = [];
  let paused = false;
  let asked = false;
  let pipelines: string[] = [];
  let workers: string[] = [];
  let stopListening = (): void => {};
  let asking = 0;
  const chosen = {
    status: query.get("status") ?? "",
    pipeline: query.get("pipeline") ?? "",
    worker: query.get("worker") ?? "",
  };
  const filters = h("div", { class: "tools" });
  const said = h("p", { class: "quiet", role: "status" });
  const body = h("div", { class: "panel flush" });

  const selection = (): { pipeline?: string; worker?: string } => ({
    ...(chosen.pipeline && { pipeline: chosen.pipeline }),
    ...(chosen.worker && { worker: chosen.worker }),
  });

  const pick = (
    name: keyof typeof chosen,
    label: string,
    options: [string, string][],
  ): HTMLElement => {
    const select = h(
      "select",
      {
        on: {
          change: ({ target }: Event) => {
            const { value } = target as HTMLSelectElement;
            chosen[name] = value;
            remember({ [name]: value });
            rows = [];
            asked = false;
            show();
            listen();
            void view.refresh();
          },
        },
      },
      options.map(([value, text]) =>
        h("option", { value, selected: value === chosen[name] }, text),
      ),
    );
    return h("label", { "data-key": name }, h("span", {}, label), select);
  };

  const named = (all: string, names: string[], now: string): [string, string][] => [
    ["", all],
    ...[...new Set(now ? [...names, now] : names)]
      .sort()
      .map((name): [string, string] => [name, name]),
  ];

  const choose = (): void =>
    fill(
      filters,
      pick("status", "Status", [
        ["", "All"],
        ["failed", "Failed"],
        ["success", "Success"],
        ["running", "Running"],
      ]),
      pick("pipeline", "Pipeline", named("All pipelines", pipelines, chosen.pipeline)),
      pick("worker", "Worker", named("All workers", workers, chosen.worker)),
      h(
        "button",
        {
          type: "button",
          "data-key": "pause",
          "aria-pressed": String(paused),
          on: {
            click: () => {
              paused = !paused;
              if (!paused) take([]);
              choose();
              show();
            },
          },
        },
        paused ? "Go on" : "Pause",
      ),
    );

  /** Newest first; a run that was in flight gives way to its end. */
  const take = (fresh: RunView[]): void => {
    waiting = [...fresh, ...waiting].slice(0, SHOWN);
    if (paused) return;
    const known = new Set(waiting.map(parts.keyOfRun));
    const over = new Set(waiting.map((run) => `${run.pipeline.name}\n${run.id}`));
    rows = [
      ...waiting,
      ...rows.filter(
        (run) =>
          !known.has(parts.keyOfRun(run)) &&
          !(run.status === "running" && over.has(`${run.pipeline.name}\n${run.id}`)),
      ),
    ].slice(0, SHOWN);
    waiting = [];
  };

  const listen = (): void => {
    stopListening();
    missed = 0;
    if (chosen.status === "running") return void (stopListening = () => {});
    const status =
      chosen.status === "failed" || chosen.status === "success"
        ? ({ status: chosen.status } as const)
        : {};
    stopListening = stream.subscribe(
      "runs.subscribe",
      { ...selection(), ...status },
      (news) => {
        keep(news.runs);
        missed += news.missed ?? 0;
        take(news.runs);
        show();
      },
      () => void view.refresh().catch(() => {}),
    );
  };

  const columns: Column<RunView>[] = [
    {
      key: "id",
      name: "Run",
      show: (r) => parts.runLink({ id: r.id, pipeline: r.pipeline.name, worker: r.worker }),
    },
    { key: "status", name: "Status", show: (r) => parts.status(r.status) },
    { key: "pipeline", name: "Pipeline", show: (r) => parts.pipelineLink(r.pipeline.name) },
    { key: "when", name: "When", num: true, show: (r) => parts.ended(r) },
    { key: "took", name: "Took", num: true, show: (r) => parts.lasted(r) },
    { key: "attempt", name: "Attempt", num: true, show: (r) => count(r.attempt) },
    { key: "worker", name: "Worker", show: (r) => parts.workerLink(r.worker) },
    { key: "error", name: "Error", show: (r) => parts.fault(r), class: "wide" },
  ];

  const empty = (): Child =>
    !asked
      ? "…"
      : Object.values(chosen).some(Boolean)
        ? "No run like that is remembered; the last hour's are. New ones appear here as they end."
        : "No run is remembered; the last hour's are. New ones appear here as they end.";

  const show = (): void => {
    fill(
      said,
      paused
        ? `Paused; ${plural(waiting.length, "run")} ended since.`
        : "Live: what ends comes in at the top.",
      missed > 0 &&
        ` ${plural(missed, "more run")} ended faster than they can be shown; all are counted.`,
    );
    fill(
      body,
      table({
        label: "Runs, the newest first",
        id: "runs-table",
        columns,
        rows,
        keyOf: parts.keyOfRun,
        empty: empty(),
      }),
    );
  };

  choose();
  const view: parts.View = {
    title: "Runs",
    element: h(
      "div",
      { class: "view" },
      h("div", { class: "bar-of-tools" }, h("h1", { tabindex: -1 }, "Runs"), filters),
      said,
      body,
    ),
    every: () => (chosen.status === "running" ? 2_000 : 10_000),
    stop: () => stopListening(),
    async refresh() {
      const mine = ++asking;
      const status = chosen.status ? { status: chosen.status as Status } : {};
      const [recent, list, known] = await Promise.all([
        attempt("worker.recentRuns", { limit: 100, ...selection(), ...status }),
        attempt("worker.list", {}),
        attempt("pipelines.list", { from: "-24h" }),
      ]);
      if (mine !== asking) return;
      asked = true;
      if (!(list instanceof RpcError)) workers = list.map(({ name }) => name);
      if (!(known instanceof RpcError)) pipelines = known.pipelines.map(({ name }) => name);
      choose();
      if (recent instanceof RpcError) {
        fill(said);
        return fill(body, parts.excuse(recent));
      }
      keep(recent);
      // What is in flight is told here alone; what has ended stays where it is.
      rows = chosen.status === "running" ? [] : rows.filter((run) => run.status !== "running");
      const fresh = new Set(recent.map(parts.keyOfRun));
      rows = [...recent, ...rows.filter((run) => !fresh.has(parts.keyOfRun(run)))]
        .sort((a, b) => (b.finishedAt ?? b.startedAt ?? 0) - (a.finishedAt ?? a.startedAt ?? 0))
        .slice(0, SHOWN);
      show();
    },
  };
  show();
  listen();
  return view;
}
