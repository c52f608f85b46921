/** Who works, how the work is spread, and whether the books are balanced. */

import type {
  FleetBalance,
  Ledger,
  Node_,
  ServiceLedger,
  SessionLedger,
  WorkerShare,
  WorkerView,
} from "../api";
import { type Child, fill, h } from "../dom";
import { ago, count, duration, percent, plural, since } from "../format";
import * as parts from "../parts";
import { attempt, RpcError } from "../rpc";
import { serviceInfo } from "../store";
import { type Column, Sorting, table } from "../table";

type Row = WorkerView & { share: WorkerShare | undefined };

export function workers(query: URLSearchParams): parts.View {
  let rows: Row[] = [];
  let wanted = query.get("q") ?? "";
  let socket: string | undefined;
  let asked = false;
  let asking = 0;
  const body = h("div", { class: "panel flush" });
  const notes = h("div", {});
  const ledger = h("section", { class: "panel" });
  const nodes = h("div", {});
  const tools = h("div", { class: "tools" });
  const range = new parts.RangeChoice(query, () => {
    choose();
    void view.refresh();
  });
  const sorting = new Sorting(query, "state", () => show());
  const search = parts.search("workers", wanted, (text) => {
    wanted = text;
    show();
  });
  const choose = (): void => fill(tools, range.buttons());

  const columns: Column<Row>[] = [
    {
      key: "name",
      name: "Worker",
      by: (w) => w.name,
      show: (w) =>
        h("span", { class: "name", title: [w.name, ...w.hosts, ...w.runtimes].join("\n") }, w.name),
      class: "wide",
    },
    { key: "state", name: "State", by: (w) => rank(w), show: state },
    {
      key: "processes",
      name: "Processes",
      num: true,
      by: (w) => w.sessions,
      show: (w) => count(w.sessions),
    },
    {
      key: "flight",
      name: "In flight",
      num: true,
      by: (w) => w.inFlight,
      show: (w) => [
        count(w.inFlight),
        w.slots !== null && h("span", { class: "quiet" }, ` / ${w.slots}`),
      ],
      title: "of as many as it has slots",
    },
    {
      key: "oldest",
      name: "Oldest",
      num: true,
      by: (w) => w.oldestInFlight,
      show: (w) => (w.oldestInFlight ? since(w.oldestInFlight) : "–"),
    },
    {
      key: "pending",
      name: "Pending",
      num: true,
      by: pending,
      show: (w) =>
        h(
          "span",
          {
            title: Object.entries(w.queues)
              .map(([name, depth]) => `${name}: ${depth}`)
              .join("\n"),
          },
          Object.keys(w.queues).length ? count(pending(w)) : "–",
        ),
    },
    {
      key: "runs",
      name: "Runs",
      num: true,
      by: (w) => w.share?.runs ?? 0,
      show: (w) => count(w.share?.runs ?? 0),
    },
    {
      key: "share",
      name: "Share of work",
      by: (w) => w.share?.shareOfBusyTime ?? 0,
      num: true,
      show: (w) => [
        parts.bar(w.share?.shareOfBusyTime ?? 0),
        h("span", { class: "share" }, percent(w.share?.shareOfBusyTime ?? 0, 1)),
      ],
      class: "nowrap",
      title: "of the time in which all workers were busy",
    },
    {
      key: "used",
      name: "Utilisation",
      by: (w) => w.share?.utilisation ?? null,
      num: true,
      show: (w) =>
        w.share?.utilisation == null
          ? h("span", { title: "it does not tell how many slots it has" }, "–")
          : [
              parts.bar(w.share.utilisation, w.share.utilisation > 90 ? "warn" : ""),
              h("span", { class: "share" }, percent(w.share.utilisation, 1)),
            ],
      class: "nowrap",
    },
    {
      key: "p95",
      name: "p95",
      num: true,
      by: (w) => w.share?.p95 ?? null,
      show: (w) => duration(w.share?.p95),
    },
    {
      key: "wait",
      name: "Waits",
      num: true,
      by: (w) => w.avgWaitTime,
      show: (w) =>
        w.maxWaitTime
          ? h("span", { title: `at most ${duration(w.maxWaitTime)}` }, duration(w.avgWaitTime))
          : "–",
      title: "how long runs waited before they began, on average",
    },
    { key: "version", name: "Version", show: (w) => w.versions.join(", ") || "–", class: "names" },
    { key: "node", name: "Node", by: (w) => w.node, show: (w) => w.node, class: "names" },
    {
      key: "seen",
      name: "Last seen",
      num: true,
      by: (w) => w.lastSeen,
      show: (w) => ago(w.lastSeen),
    },
  ];

  const show = (): void => {
    const text = wanted.trim().toLowerCase();
    const found = rows.filter(({ name }) => name.toLowerCase().includes(text));
    fill(
      body,
      asked && !rows.length
        ? parts.howToConnect(socket)
        : table({
            label: "Workers",
            id: "workers-table",
            columns,
            rows: found,
            keyOf: ({ name, node }) => `${node}\n${name}`,
            sorting,
            empty: asked ? `No worker has “${wanted}” in its name.` : "…",
          }),
    );
  };

  choose();
  const view: parts.View = {
    title: "Workers",
    element: h(
      "div",
      { class: "view" },
      h("div", { class: "bar-of-tools" }, h("h1", { tabindex: -1 }, "Workers"), search, tools),
      notes,
      body,
      nodes,
      ledger,
    ),
    every: () => Math.min(range.every, 5_000),
    async refresh() {
      const mine = ++asking;
      const [list, balance, books, fleet, info] = await Promise.all([
        attempt("worker.list", {}),
        attempt("fleet.balance", { from: range.from }),
        attempt("service.ledger", { limit: 50 }),
        attempt("fleet.metrics", {}),
        serviceInfo(),
      ]);
      if (mine !== asking) return;
      asked = true;
      socket = info?.socket;
      if (list instanceof RpcError) return fill(body, parts.excuse(list));
      const shares = balance instanceof RpcError ? [] : balance.workers;
      rows = list.map((worker) => ({
        ...worker,
        share: shares.find((share) => share.worker === worker.name && share.node === worker.node),
      }));
      show();
      fill(notes, balance instanceof RpcError ? parts.excuse(balance) : notesOf(balance));
      const many = !(fleet instanceof RpcError) && (fleet.nodes.length > 1 || info === null);
      fill(nodes, many && nodesOf(fleet.nodes));
      fill(
        ledger,
        h("h2", {}, "The books"),
        books instanceof RpcError ? parts.excuse(books) : booksOf(books),
      );
    },
  };
  show();
  return view;
}

const isLost = ({ connected, lastLife }: WorkerView): boolean =>
  !connected && lastLife?.reason === "lost";

/** What needs a look comes first. */
const rank = (worker: WorkerView): string =>
  `${isLost(worker) ? 0 : worker.connected ? 1 : 2}${worker.name}`;

const pending = ({ queues }: WorkerView): number =>
  Object.values(queues).reduce((sum, depth) => sum + depth, 0);

function state(worker: WorkerView): Child {
  if (worker.connected) return h("span", { class: "status ok" }, parts.sign("ok"), "Connected");
  const reason = worker.lastLife?.reason ?? "ended";
  const lost = isLost(worker);
  return h(
    "span",
    { class: `status ${lost ? "error" : "idle"}`, title: reason },
    parts.sign(lost ? "error" : "idle"),
    lost ? "Lost" : "Ended",
  );
}

function notesOf({ outliers, skew, workers }: FleetBalance): Child {
  return [
    outliers
      .slice(0, 5)
      .map((outlier) =>
        h(
          "p",
          { class: "trouble", "data-key": `${outlier.worker}\n${outlier.pipeline}` },
          parts.sign("warn"),
          outlier.message,
        ),
      ),
    workers.length > 1 &&
      skew.busyTime > 0 &&
      parts.quiet(
        `The busiest worker has ${skew.busyTime.toFixed(1)} times an equal part of the work.`,
      ),
  ];
}

function nodesOf(nodes: Node_[]): HTMLElement {
  const columns: Column<Node_>[] = [
    { key: "name", name: "Node", show: (n) => n.name },
    {
      key: "state",
      name: "State",
      show: (n) =>
        h(
          "span",
          { class: `status ${n.alive ? "ok" : "error"}` },
          parts.sign(n.alive ? "ok" : "error"),
          n.alive ? "Alive" : "Not heard of",
        ),
    },
    { key: "workers", name: "Workers", num: true, show: (n) => count(n.workersConnected) },
    { key: "runs", name: "Runs", num: true, show: (n) => count(n.totalRuns) },
    { key: "failed", name: "Failed", num: true, show: (n) => count(n.failed) },
    { key: "seen", name: "Last seen", num: true, show: (n) => ago(n.lastSeen) },
  ];
  return parts.panel(
    "Nodes",
    table({
      label: "Nodes",
      columns,
      rows: nodes,
      keyOf: ({ name }) => name,
      empty: "No node has been heard of.",
    }),
  );
}

const sum = (reasons: Record<string, number>): number =>
  Object.values(reasons).reduce((total, n) => total + n, 0);

const reasons = (by: Record<string, number>): string =>
  Object.entries(by)
    .map(([reason, n]) => `${reason}: ${count(n)}`)
    .join(", ");

function booksOf({ total, balanced, sessions }: ServiceLedger): Child {
  const lost = sum(total.refused) + sum(total.dropped);
  const columns: Column<SessionLedger>[] = [
    {
      key: "worker",
      name: "Worker",
      show: (s) => h("span", { class: "name", title: s.worker }, s.worker),
    },
    {
      key: "session",
      name: "Session",
      show: (s) => h("span", { class: "id", title: s.session }, s.session.slice(0, 8)),
    },
    { key: "recorded", name: "Recorded", num: true, show: (s) => count(s.recorded) },
    { key: "counted", name: "Counted", num: true, show: (s) => count(s.counted) },
    { key: "repeated", name: "Repeated", num: true, show: (s) => count(s.repeated) },
    { key: "late", name: "Late", num: true, show: (s) => count(s.late) },
    {
      key: "refused",
      name: "Refused",
      num: true,
      show: (s) => h("span", { title: reasons(s.refused) }, count(sum(s.refused))),
    },
    {
      key: "dropped",
      name: "Dropped",
      num: true,
      show: (s) => h("span", { title: reasons(s.dropped) }, count(sum(s.dropped))),
    },
    { key: "waiting", name: "Waiting", num: true, show: (s) => count(s.waiting) },
    { key: "seen", name: "Last seen", num: true, show: (s) => ago(s.lastSeen) },
  ];
  return [
    h(
      "p",
      { class: "status-line" },
      parts.sign(balanced ? (lost ? "warn" : "ok") : "error"),
      balanced
        ? lost
          ? `Balanced; ${plural(lost, "result")} did not get here, and that is known.`
          : "Balanced: every result that workers recorded is accounted for."
        : "Not balanced: something was counted twice. Please report it.",
    ),
    h("p", { class: "books num" }, equation(total)),
    lost > 0 && parts.quiet(reasons({ ...total.refused, ...total.dropped })),
    total.forgotten > 0 &&
      parts.quiet(`${count(total.forgotten)} more were counted before the service lost its state.`),
    h(
      "details",
      {},
      h("summary", {}, "By session"),
      table({
        label: "The books by session, the newest first",
        columns,
        rows: sessions,
        keyOf: ({ session }) => session,
        empty: "No session is remembered.",
      }),
    ),
  ];
}

function equation(total: Ledger): Child {
  const term = (n: number, word: string): HTMLElement =>
    h("span", {}, h("b", {}, count(n)), ` ${word}`);
  return [
    term(total.recorded, "recorded"),
    " = ",
    term(total.counted, "counted"),
    " + ",
    term(total.repeated, "repeated"),
    " + ",
    term(total.late, "late"),
    " + ",
    term(sum(total.refused), "refused"),
    " + ",
    term(sum(total.dropped), "dropped"),
    " + ",
    term(total.waiting, "waiting"),
  ];
}
