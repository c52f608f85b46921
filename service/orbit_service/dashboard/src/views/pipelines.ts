/** Every pipeline of a range, to sort and to search. */

import type { HistoryGroup, PipelineView } from "../api";
import { sparkline } from "../charts";
import { fill, h } from "../dom";
import { ago, count, duration, percent, perHour, plural } from "../format";
import * as parts from "../parts";
import { attempt, RpcError } from "../rpc";
import { serviceInfo } from "../store";
import { type Column, Sorting, table } from "../table";

export function pipelines(query: URLSearchParams): parts.View {
  let rows: PipelineView[] = [];
  let lines = new Map<string | null, HistoryGroup>();
  let wanted = query.get("q") ?? "";
  let nobody = false;
  let socket: string | undefined;
  let asked = false;
  let asking = 0;
  const tools = h("div", { class: "tools" });
  const body = h("div", { class: "panel flush" });
  const range = new parts.RangeChoice(query, () => {
    choose();
    void view.refresh();
  });
  const sorting = new Sorting(query, "-failed", () => show());
  const search = parts.search("pipelines", wanted, (text) => {
    wanted = text;
    show();
  });

  const choose = (): void => fill(tools, range.buttons());
  const columns: Column<PipelineView>[] = [
    {
      key: "name",
      name: "Pipeline",
      by: (p) => p.name,
      show: (p) => parts.pipelineLink(p.name, range.query.range),
      class: "wide",
    },
    {
      key: "time",
      name: "Over time",
      show: (p) => {
        const line = lines.get(p.name);
        return line ? sparkline(line.points) : "";
      },
    },
    {
      key: "runs",
      name: "Runs",
      num: true,
      by: (p) => p.total.runs,
      show: (p) => count(p.total.runs),
    },
    {
      key: "failed",
      name: "Failed",
      num: true,
      by: (p) => p.total.failed,
      show: (p) => count(p.total.failed),
    },
    {
      key: "errors",
      name: "Error rate",
      num: true,
      by: (p) => p.total.errorRate,
      show: (p) => rate(p.total.errorRate),
    },
    {
      key: "hour",
      name: "Per hour",
      num: true,
      by: (p) => p.total.runsPerHour,
      show: (p) => perHour(p.total.runsPerHour),
    },
    {
      key: "avg",
      name: "Average",
      num: true,
      by: (p) => p.total.avg,
      show: (p) => duration(p.total.avg),
    },
    {
      key: "p50",
      name: "p50",
      num: true,
      by: (p) => p.total.p50,
      show: (p) => duration(p.total.p50),
    },
    {
      key: "p95",
      name: "p95",
      num: true,
      by: (p) => p.total.p95,
      show: (p) => duration(p.total.p95),
    },
    {
      key: "p99",
      name: "p99",
      num: true,
      by: (p) => p.total.p99,
      show: (p) => duration(p.total.p99),
    },
    { key: "last", name: "Last run", num: true, by: (p) => p.lastRun, show: (p) => ago(p.lastRun) },
    {
      key: "success",
      name: "Last success",
      num: true,
      by: (p) => p.lastSuccess,
      show: (p) => ago(p.lastSuccess),
    },
    {
      key: "workers",
      name: "Workers",
      by: (p) => p.workers.length,
      show: (p) =>
        h(
          "span",
          { title: p.workers.join("\n") },
          p.workers.length > 2 ? plural(p.workers.length, "worker") : p.workers.join(", "),
        ),
      class: "names",
    },
  ];

  const show = (): void => {
    const text = wanted.trim().toLowerCase();
    const found = rows.filter(({ name }) => name.toLowerCase().includes(text));
    fill(
      body,
      nobody && !rows.length
        ? parts.howToConnect(socket)
        : table({
            label: "Pipelines",
            id: "pipelines-table",
            columns,
            rows: found,
            keyOf: ({ name }) => name,
            sorting,
            empty: !asked
              ? "…"
              : rows.length
                ? `No pipeline has “${wanted}” in its name.`
                : `Nothing has run in the last ${range.long}.`,
          }),
    );
  };

  choose();
  const view: parts.View = {
    title: "Pipelines",
    element: h(
      "div",
      { class: "view" },
      h("div", { class: "bar-of-tools" }, h("h1", { tabindex: -1 }, "Pipelines"), search, tools),
      body,
    ),
    every: () => range.every,
    async refresh() {
      const mine = ++asking;
      const from = range.from;
      const [list, past, workers, info] = await Promise.all([
        attempt("pipelines.list", { from }),
        attempt("worker.history", { from, groupBy: "pipeline" }),
        attempt("worker.list", {}),
        serviceInfo(),
      ]);
      if (mine !== asking) return;
      asked = true;
      if (list instanceof RpcError) return fill(body, parts.excuse(list));
      rows = list.pipelines;
      lines = new Map(
        past instanceof RpcError ? [] : past.groups.map((group) => [group.name, group]),
      );
      nobody = !(workers instanceof RpcError) && workers.length === 0;
      socket = info?.socket;
      show();
    },
  };
  show();
  return view;
}

function rate(errorRate: number | null): HTMLElement {
  const kind = (errorRate ?? 0) >= 50 ? "bad" : (errorRate ?? 0) >= 10 ? "poor" : "";
  return h(
    "span",
    { class: kind },
    kind && parts.sign(kind === "bad" ? "error" : "warn"),
    percent(errorRate),
  );
}
