/** One pipeline: where its time goes, why it fails, whether a version made it worse, its runs. */

import type { ErrorType, PipelineMetrics, RunView, StepMetrics, VersionView } from "../api";
import { chart, RUNS, TIMES } from "../charts";
import { type Child, fill, h } from "../dom";
import { ago, at, count, duration, percent, perHour, signed } from "../format";
import { askMarks } from "../marks";
import * as parts from "../parts";
import { link } from "../router";
import { attempt, RpcError } from "../rpc";
import { type Column, table } from "../table";

export function pipeline(name: string, query: URLSearchParams): parts.View {
  let asking = 0;
  const range = new parts.RangeChoice(query, () => {
    choose();
    void view.refresh();
  });
  const tools = h("div", { class: "tools" });
  const compared = h("p", { class: "comparison" });
  const facts = h("p", { class: "quiet" });
  const errors = h("section", { class: "panel" });
  const steps = h("section", { class: "panel" });
  const versions = h("section", { class: "panel" });
  const runs = h("section", { class: "panel" });
  const counts = chart(RUNS);
  const times = chart(TIMES);
  const choose = (): void => fill(tools, range.buttons());
  choose();

  const view: parts.View = {
    title: name,
    element: h(
      "div",
      { class: "view" },
      h("p", { class: "crumbs" }, h("a", { href: link(["pipelines"], range.query) }, "Pipelines")),
      h("div", { class: "bar-of-tools" }, h("h1", { class: "long", tabindex: -1 }, name), tools),
      facts,
      compared,
      h("div", { class: "columns even" }, counts.element, times.element),
      h("div", { class: "columns even" }, errors, steps),
      versions,
      runs,
    ),
    every: () => range.every,
    stop() {
      counts.stop();
      times.stop();
    },
    async refresh() {
      const mine = ++asking;
      const from = range.from;
      const [metrics, parted, past, marks, recent] = await Promise.all([
        attempt("pipelines.metrics", { pipeline: name, from }),
        attempt("pipelines.steps", { pipeline: name, from }),
        attempt("worker.history", { pipeline: name, from, step: range.step, trend: true }),
        askMarks(from, name),
        attempt("worker.recentRuns", { pipeline: name, limit: 20 }),
      ]);
      if (mine !== asking) return;
      if (past instanceof RpcError) fill(compared, parts.excuse(past));
      else if (past.groups[0]) {
        const group = past.groups[0];
        fill(
          compared,
          parts.comparison(group.total, group.trend, `against the ${range.long} before`),
        );
        counts.show(group.points, past.step, marks);
        times.show(group.points, past.step, marks);
      }
      if (metrics instanceof RpcError) {
        for (const part of [facts, errors, versions]) fill(part, parts.excuse(metrics));
      } else {
        fill(
          facts,
          metrics.lastRun
            ? [
                "Last run ",
                ago(metrics.lastRun),
                "; last success ",
                metrics.lastSuccess ? ago(metrics.lastSuccess) : "not in this range",
                ".",
              ]
            : `It has not run in the last ${range.long}.`,
        );
        fill(errors, h("h2", {}, "Why it fails"), errorsOf(metrics));
        fill(versions, h("h2", {}, "Versions"), versionsOf(metrics));
      }
      fill(
        steps,
        h("h2", {}, "Where the time goes"),
        parted instanceof RpcError ? parts.excuse(parted) : stepsOf(parted.steps),
      );
      fill(
        runs,
        h("h2", {}, "Its runs"),
        recent instanceof RpcError ? parts.excuse(recent) : runsOf(recent, name),
      );
    },
  };
  return view;
}

function errorsOf({ errors, untypedFailures, total }: PipelineMetrics): Child {
  if (!total.failed) return parts.quiet("Nothing has failed in this range.");
  return [
    h(
      "ul",
      { class: "errors" },
      errors.map((error, i) => errorOf(error, total.failed, i === 0)),
    ),
    untypedFailures > 0 &&
      parts.quiet(
        `Of ${count(untypedFailures)} more no error was told; track() tells it by itself.`,
      ),
  ];
}

function errorOf(
  { type, count: n, lastSeen, message, traceback }: ErrorType,
  failed: number,
  first: boolean,
): HTMLElement {
  return h(
    "li",
    { "data-key": type },
    h(
      "div",
      { class: "failing" },
      h("b", { class: "name" }, type),
      h(
        "span",
        { class: "num" },
        h("b", {}, count(n)),
        ` of ${count(failed)} failures, `,
        ago(lastSeen),
      ),
    ),
    parts.bar((100 * n) / failed, "error"),
    message && h("p", { class: "why" }, message),
    traceback &&
      h("details", { open: first }, h("summary", {}, "Newest traceback"), parts.code(traceback)),
  );
}

function stepsOf(steps: StepMetrics[]): Child {
  const columns: Column<StepMetrics>[] = [
    { key: "name", name: "Step", show: (s) => h("span", { class: "name", title: s.name }, s.name) },
    {
      key: "share",
      name: "Share of time",
      show: (s) => [
        parts.bar(s.shareOfTime),
        h("span", { class: "num share" }, percent(s.shareOfTime, 1)),
      ],
      class: "nowrap",
    },
    { key: "p50", name: "p50", num: true, show: (s) => duration(s.p50) },
    { key: "p95", name: "p95", num: true, show: (s) => duration(s.p95) },
    { key: "count", name: "Count", num: true, show: (s) => count(s.count) },
    {
      key: "failed",
      name: "Failed",
      num: true,
      show: (s) => h("span", { class: s.failed ? "bad" : "" }, count(s.failed)),
    },
    { key: "retries", name: "Retries", num: true, show: (s) => count(s.retries) },
  ];
  return table({
    label: "Steps by share of time",
    columns,
    rows: steps,
    keyOf: ({ name }) => name,
    empty: ["No steps are told. In Python: ", h("code", {}, 'with run.step("download"):')],
  });
}

function versionsOf({ versions, change }: PipelineMetrics): Child {
  const columns: Column<VersionView>[] = [
    {
      key: "version",
      name: "Version",
      show: (v) =>
        v.version === null
          ? h("i", {}, "not told")
          : h("span", { class: "name", title: v.version }, v.version),
    },
    { key: "runs", name: "Runs", num: true, show: (v) => count(v.total.runs) },
    { key: "failed", name: "Failed", num: true, show: (v) => count(v.total.failed) },
    { key: "errors", name: "Error rate", num: true, show: (v) => percent(v.total.errorRate) },
    { key: "hour", name: "Per hour", num: true, show: (v) => perHour(v.total.runsPerHour) },
    { key: "p50", name: "p50", num: true, show: (v) => duration(v.total.p50) },
    { key: "p95", name: "p95", num: true, show: (v) => duration(v.total.p95) },
    { key: "first", name: "First run", num: true, show: (v) => at(v.firstRun) },
    { key: "last", name: "Last run", num: true, show: (v) => at(v.lastRun) },
  ];
  const told = versions.some(({ version }) => version !== null);
  if (!told)
    return parts.quiet(
      "No version is told. Set ",
      h("code", {}, "ORBIT_WORKER_VERSION"),
      " in the worker, and a bad deploy shows here.",
    );
  const worse = (n: number | null, least: number): string =>
    n === null || Math.abs(n) < least ? "" : n > 0 ? "worse" : "better";
  return [
    change &&
      h(
        "p",
        { class: "comparison" },
        h(
          "span",
          {},
          h("b", {}, change.version ?? "not told"),
          " against ",
          h("b", {}, change.previous ?? "not told"),
          ":",
        ),
        h(
          "span",
          { class: "compared" },
          "errors ",
          h(
            "span",
            { class: `delta num ${worse(change.errorRate, 0.01)}` },
            signed(change.errorRate, "points", 2),
          ),
        ),
        h(
          "span",
          { class: "compared" },
          "p95 ",
          h("span", { class: `delta num ${worse(change.p95, 1)}` }, signed(change.p95, "%")),
        ),
        h(
          "span",
          { class: "compared" },
          "runs per hour ",
          h("span", { class: "delta num" }, signed(change.runsPerHour, "%")),
        ),
      ),
    table({
      label: "Versions, the newest first",
      columns,
      rows: versions.toReversed(),
      keyOf: ({ version }) => version ?? "\n",
      empty: "",
    }),
  ];
}

function runsOf(runs: RunView[], pipeline: string): Child {
  const columns: Column<RunView>[] = [
    {
      key: "id",
      name: "Run",
      show: (r) => parts.runLink({ id: r.id, pipeline, worker: r.worker }),
    },
    { key: "status", name: "Status", show: (r) => parts.status(r.status) },
    { key: "when", name: "When", num: true, show: (r) => parts.ended(r) },
    { key: "lasted", name: "Took", num: true, show: (r) => parts.lasted(r) },
    { key: "worker", name: "Worker", show: (r) => parts.workerLink(r.worker) },
    { key: "error", name: "Error", show: (r) => parts.fault(r), class: "wide" },
  ];
  return [
    table({
      label: "The newest runs of this pipeline",
      columns,
      rows: runs,
      keyOf: parts.keyOfRun,
      empty: "No run of it is remembered; the last hour's are.",
    }),
    h("p", {}, h("a", { href: link(["runs"], { pipeline }) }, "Its runs as they end")),
  ];
}
