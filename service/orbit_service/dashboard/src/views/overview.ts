/** Within ten seconds: is it well, what fails most and why, and what goes on now. */

import type {
  Health,
  History,
  Metrics,
  PipelineList,
  PipelineMetrics,
  PipelineSteps,
  PipelineView,
  RunView,
  Stats,
} from "../api";
import { worstAlerts } from "../alerts";
import { chart, RUNS, TIMES } from "../charts";
import { type Child, fill, h } from "../dom";
import { ago, at, count, duration, percent, perHour, plural, since } from "../format";
import { askMarks, type Mark } from "../marks";
import * as parts from "../parts";
import { link } from "../router";
import { attempt, call, RpcError } from "../rpc";
import { alerts, askAlerts, askMetrics, metrics, serviceInfo } from "../store";

const WORST = 4;
const LOST = new Set(["lost", "connection lost"]);

export function overview(query: URLSearchParams): parts.View {
  let totals: Metrics | null = null;
  let asking = 0;
  const range = new parts.RangeChoice(query, () => {
    choose();
    void view.refresh();
  });
  const health = h("section", { class: "health", "data-testid": "health", "aria-live": "polite" });
  const fires = h("section", { class: "fires", "aria-label": "Alerts", "data-testid": "fires" });
  const tiles = h("dl", { class: "tiles", "aria-label": "Since the connected workers began" });
  const welcome = h("div", {});
  const tools = h("div", { class: "tools" });
  const compared = h("p", { class: "comparison" });
  const worst = h("section", { class: "panel worst" });
  const now = h("section", { class: "panel" });
  const failures = h("section", { class: "panel" });
  const runs = chart(RUNS);
  const times = chart(TIMES);

  const rest = [
    h("div", { class: "bar-of-tools" }, tools, compared),
    h("div", { class: "columns" }, worst, now),
    h("div", { class: "columns even" }, runs.element, times.element),
    failures,
  ];
  const choose = (): void => fill(tools, range.buttons());
  const stops = [
    metrics.hear((fresh) => {
      totals = fresh;
      fill(tiles, tilesOf(fresh));
    }),
    alerts.hear((fresh) => fill(fires, worstAlerts(fresh))),
  ];
  choose();

  const view: parts.View = {
    title: "Overview",
    element: h(
      "div",
      { class: "view" },
      h("h1", { class: "unseen", tabindex: -1 }, "Overview"),
      health,
      fires,
      welcome,
      tiles,
      rest,
    ),
    every: () => range.every,
    stop() {
      for (const stop of stops) stop();
      runs.stop();
      times.stop();
    },
    async refresh() {
      const mine = ++asking;
      const from = range.from;
      const [said, past, marks, list, stats, running, failed, info] = await Promise.all([
        call("worker.health", {}),
        attempt("worker.history", { from, step: range.step, trend: true }),
        askMarks(from),
        attempt("pipelines.list", { from }),
        attempt("worker.stats", {}),
        attempt("worker.recentRuns", { status: "running", limit: 100 }),
        attempt("worker.recentRuns", { status: "failed", limit: 6 }),
        serviceInfo(),
        askMetrics(),
        askAlerts(),
      ]);
      const failing = list instanceof RpcError ? [] : worstOf(list.pipelines);
      const flying = running instanceof RpcError ? [] : oldestOf(running);
      const names = [...new Set(flying.map(({ pipeline }) => pipeline.name))];
      const [why, stepped] = await Promise.all([
        Promise.all(
          failing.map(({ name }) => attempt("pipelines.metrics", { pipeline: name, from })),
        ),
        Promise.all(names.map((name) => attempt("pipelines.steps", { pipeline: name }))),
      ]);
      const usual = usually(list, stepped);
      if (mine !== asking) return; // another range was chosen meanwhile
      fill(health, healthOf(said));
      const none = list instanceof RpcError || list.pipelines.length === 0;
      const nobody = Boolean(totals && !totals.connected && !totals.lastLife && !totals.known);
      fill(welcome, nobody && none && parts.howToConnect(info?.socket), lastLife(totals));
      // Charts of nothing would only hide what is to be done.
      for (const part of rest) part.hidden = nobody && none;
      if (past instanceof RpcError) fill(compared, parts.excuse(past));
      else showPast(past, marks);
      fill(
        worst,
        h("h2", {}, "What fails most"),
        list instanceof RpcError
          ? parts.excuse(list)
          : worstFirst(failing, why, list.pipelines, range),
      );
      fill(now, h("h2", {}, "Now"), nowOf(stats, running, said, usual));
      fill(failures, h("h2", {}, "Newest failures"), newest(failed));
    },
  };

  const showPast = (past: History, marks: Mark[]): void => {
    const group = past.groups[0];
    if (!group) return;
    const before = `against the ${range.long} before`;
    fill(compared, parts.comparison(group.total, group.trend, before));
    runs.show(group.points, past.step, marks);
    times.show(group.points, past.step, marks);
  };
  return view;
}

function tilesOf(m: Metrics): Child {
  const none = m.totalRuns === 0;
  const bad = m.errorRate >= 50 ? "bad" : m.errorRate >= 10 ? "poor" : "";
  const began = m.workerStartTime ? ["since ", at(m.workerStartTime)] : "no worker is connected";
  return [
    parts.tile("Uptime", m.uptime, "uptime", began),
    parts.tile(
      "Total runs",
      count(m.totalRuns),
      "total-runs",
      plural(m.workersConnected, "worker"),
    ),
    parts.tile(
      "Success rate",
      percent(m.successRate),
      "success-rate",
      none ? "" : `${count(m.succeeded)} succeeded`,
    ),
    parts.tile(
      "Error rate",
      percent(m.errorRate),
      "error-rate",
      none ? "" : `${count(m.failed)} failed`,
      bad,
    ),
    parts.tile(
      "Runs per hour",
      perHour(m.runsPerHour),
      "runs-per-hour",
      m.retries ? plural(m.retries, "retry", "retries") : "",
    ),
    parts.tile(
      "Average",
      duration(m.avgExecutionTime),
      "avg",
      none ? "" : ["longest ", duration(m.maxExecutionTime)],
    ),
    parts.tile("p95", duration(m.p95), "p95", none ? "" : ["p50 ", duration(m.p50)]),
  ];
}

interface Usual {
  ms: number | null;
  steps: number;
}

/** How long runs of a pipeline usually take, and in how many steps. */
function usually(
  list: PipelineList | RpcError,
  stepped: (PipelineSteps | RpcError)[],
): Map<string, Usual> {
  const usual = new Map<string, Usual>();
  if (!(list instanceof RpcError))
    for (const { name, total } of list.pipelines) usual.set(name, { ms: total.p50, steps: 0 });
  for (const known of stepped)
    if (!(known instanceof RpcError))
      usual.set(known.pipeline, {
        ms: null,
        ...usual.get(known.pipeline),
        steps: known.steps.length,
      });
  return usual;
}

const WORDS = { healthy: "Healthy", warning: "Warning", error: "Error" };

function healthOf({ status, message, lastActivity }: Health): Child {
  const kind = status === "healthy" ? "ok" : status === "warning" ? "warn" : "error";
  return h(
    "div",
    { class: `banner ${kind}` },
    parts.sign(kind),
    h("p", {}, h("b", {}, WORDS[status]), h("span", {}, message)),
    // It ticks: a screen reader shall not read it out each second.
    lastActivity && h("small", { "aria-live": "off" }, "heard ", ago(lastActivity)),
  );
}

function lastLife(metrics: Metrics | null): Child {
  const life = metrics?.lastLife;
  if (!life || (metrics.connected && !LOST.has(life.reason))) return null;
  return h(
    "p",
    { class: "last-life" },
    parts.sign(LOST.has(life.reason) ? "error" : "idle"),
    h(
      "span",
      {},
      LOST.has(life.reason) ? "Lost " : "Ended ",
      ago(life.endedAt),
      ": ",
      parts.workerLink(life.worker),
      ` after ${plural(life.totalRuns, "run")}, ${count(life.failed)} failed`,
      LOST.has(life.reason) ? "." : ` (${life.reason}).`,
    ),
  );
}

const worstOf = (pipelines: PipelineView[]): PipelineView[] =>
  pipelines
    .filter(({ total }) => total.failed > 0)
    .toSorted((a, b) => b.total.failed - a.total.failed || a.name.localeCompare(b.name))
    .slice(0, WORST);

function worstFirst(
  failing: PipelineView[],
  why: (PipelineMetrics | RpcError)[],
  all: PipelineView[],
  range: parts.RangeChoice,
): Child {
  if (!failing.length)
    return parts.quiet(
      all.length
        ? `Nothing has failed in the last ${range.long}.`
        : `Nothing has run in the last ${range.long}.`,
    );
  const failed = all.reduce((sum, { total }) => sum + total.failed, 0);
  return h(
    "ol",
    {},
    failing.map((pipeline, i) => {
      const reasons = why[i];
      const errors = reasons && !(reasons instanceof RpcError) ? reasons.errors : [];
      const [first] = errors;
      const { total, name } = pipeline;
      return h(
        "li",
        { "data-key": name },
        h(
          "div",
          { class: "failing" },
          parts.pipelineLink(name, range.query.range),
          h(
            "span",
            { class: "num" },
            h("b", {}, plural(total.failed, "failure")),
            ` of ${plural(total.runs, "run")}, `,
            h("b", {}, percent(total.errorRate)),
          ),
        ),
        parts.bar(
          (100 * total.failed) / failed,
          "error",
          `${Math.round((100 * total.failed) / failed)} % of all failures`,
        ),
        first
          ? h(
              "p",
              { class: "why" },
              h("b", {}, first.type),
              errors.length > 1 &&
                h("span", { class: "quiet" }, ` (${count(first.count)} of ${count(total.failed)})`),
              first.message && h("span", {}, `: ${first.message}`),
              first.lastSeen && h("small", {}, " ", ago(first.lastSeen)),
            )
          : h("p", { class: "why quiet" }, "No error was told."),
      );
    }),
    all.length > 0 &&
      h(
        "li",
        { class: "more", "data-key": "\n" },
        h("a", { href: link(["pipelines"], range.query) }, `All ${plural(all.length, "pipeline")}`),
      ),
  );
}

function nowOf(
  stats: Stats | RpcError,
  running: RunView[] | RpcError,
  { stuckRuns }: Health,
  usual: Map<string, Usual>,
): Child {
  if (stats instanceof RpcError) return parts.excuse(stats);
  if (running instanceof RpcError) return parts.excuse(running);
  const stuck = new Set(stuckRuns.map((run) => `${run.worker}\n${run.pipeline}\n${run.id}`));
  const isStuck = (run: RunView): boolean =>
    stuck.has(`${run.worker}\n${run.pipeline.name}\n${run.id}`);
  const oldest = oldestOf(running);
  return [
    h(
      "dl",
      { class: "counts" },
      h(
        "div",
        {},
        h("dt", {}, "Pending"),
        h("dd", { class: "num" }, stats.pendingKnown ? count(stats.pending) : "–"),
        !stats.pendingKnown && h("dd", { class: "quiet" }, "no worker tells"),
      ),
      h("div", {}, h("dt", {}, "In flight"), h("dd", { class: "num" }, count(stats.running))),
      h(
        "div",
        { class: stuckRuns.length ? "poor" : "" },
        h("dt", {}, "Stuck"),
        h("dd", { class: "num" }, count(stuckRuns.length)),
      ),
    ),
    oldest.length === 0
      ? parts.quiet("Nothing is running at this moment.")
      : h(
          "ul",
          { class: "flight" },
          oldest.map((run) => inFlight(run, isStuck(run), usual.get(run.pipeline.name))),
        ),
    running.length > oldest.length &&
      h(
        "p",
        {},
        h(
          "a",
          { href: link(["runs"], { status: "running" }) },
          `All ${count(stats.running)} in flight`,
        ),
      ),
  ];
}

const oldestOf = (running: RunView[]): RunView[] =>
  running.toSorted((a, b) => (a.startedAt ?? 0) - (b.startedAt ?? 0)).slice(0, 6);

/** A run with its age; how far it is by its steps where they are told, else by its usual time. */
function inFlight(run: RunView, stuck: boolean, usual: Usual | undefined): HTMLElement {
  const { steps, startedAt, pipeline, worker } = run;
  const current = steps.filter((step) => step.status === "running");
  const done = steps.length - current.length;
  const all = usual && usual.steps >= steps.length ? usual.steps : 0;
  const age = startedAt ? Date.now() - startedAt : 0;
  const share = steps.length && all ? (100 * done) / all : usual?.ms ? (100 * age) / usual.ms : 0;
  const place = `step ${Math.min(done + 1, all || done + 1)}${all ? ` of ${all}` : ""}`;
  const at = steps.length
    ? ` ${place}${current.length ? `: ${current.map(({ name }) => name).join(", ")}` : ""}`
    : "";
  return h(
    "li",
    { "data-key": parts.keyOfRun(run), class: stuck ? "stuck" : "" },
    h(
      "div",
      {},
      parts.sign(stuck ? "warn" : "run"),
      parts.pipelineLink(pipeline.name),
      parts.runLink({ id: run.id, pipeline: pipeline.name, worker }),
    ),
    h(
      "div",
      { class: "quiet" },
      parts.bar(share, stuck ? "warn" : ""),
      h("b", { class: "num" }, startedAt ? since(startedAt) : ""),
      h(
        "span",
        { class: "name", title: at },
        stuck && "stuck",
        stuck && at && ",",
        at || (!stuck && usual?.ms ? `of usually ${duration(usual.ms)}` : ""),
      ),
    ),
  );
}

function newest(failed: RunView[] | RpcError): Child {
  if (failed instanceof RpcError) return parts.excuse(failed);
  if (!failed.length) return parts.quiet("No run that failed is remembered; the last hour's are.");
  return [
    h(
      "ul",
      { class: "failures" },
      failed.map((run) =>
        h(
          "li",
          { "data-key": parts.keyOfRun(run) },
          h("small", { class: "num" }, parts.ended(run)),
          parts.pipelineLink(run.pipeline.name),
          parts.fault(run),
          parts.runLink({ id: run.id, pipeline: run.pipeline.name, worker: run.worker }),
        ),
      ),
    ),
    h("p", {}, h("a", { href: link(["runs"], { status: "failed" }) }, "All failed runs")),
  ];
}
