/** What fires, what is done about it, by which rules, who is told, and what happened before. */

import { firesFor, firing, severity, SUBJECT } from "../alerts";
import {
  type Alert,
  type AlertList,
  AUDIT_KINDS,
  type AuditEntry,
  type AuditKind,
  type AuditLog,
  type ChannelView,
  type Recovery,
  type RuleList,
  type RuleView,
  type Silence,
} from "../api";
import { type Child, fill, h } from "../dom";
import { acknowledge, endSilence, silence } from "../forms";
import { ago, at, count, plural, since } from "../format";
import * as parts from "../parts";
import { link, remember } from "../router";
import { attempt, RpcError, stream } from "../rpc";
import { alerts, askAlerts } from "../store";
import { type Column, table } from "../table";

const SHOWN = 100; // alerts; of a thousand nobody reads all
const PAGE = 100; // entries of the audit
const MOST = 1_000; // that are answered at once

export function alertsView(id: string | undefined, query: URLSearchParams): parts.View {
  let asking = 0;
  let list: AlertList | null = null;
  let gone = false;
  let wanted = PAGE;
  const asked = query.get("kind");
  let kind = AUDIT_KINDS.find((known) => known === asked);

  const trouble = h("div", { "aria-live": "polite" });
  const begin = h("div", {});
  const about = h("div", {});
  const fires = h("section", { class: "alerts", "data-testid": "firing" });
  const pending = h("section", { class: "alerts", "data-testid": "pending" });
  const silences = h("section", { class: "panel", "data-testid": "silences" });
  const rules = h("section", { class: "panel", "data-testid": "rules" });
  const channels = h("section", { class: "panel", "data-testid": "channels" });
  const audit = h("section", { class: "panel", "data-testid": "audit" });

  const again = (): void => void view.refresh().catch(() => {});
  const actions: Actions = {
    silence: (alert) => silence(alert, again),
    acknowledge: (alert) => acknowledge(alert, again),
    silences: () => list?.silences ?? [],
  };

  const show = (now: Alert[]): void => {
    const [burning, waiting] = [firing(now), now.filter(({ phase }) => phase === "pending")];
    fill(
      fires,
      h("h2", {}, burning.length ? `Firing: ${count(burning.length)}` : "Firing"),
      burning.length ? cards(burning, id, actions) : list && nothingFires(list),
    );
    fill(
      pending,
      waiting.length > 0 && [
        h("h2", {}, `Pending: ${count(waiting.length)}`),
        cards(waiting, id, actions),
      ],
    );
    fill(
      about,
      id !== undefined && list && !now.some((alert) => alert.id === id) && noneSuch(id, list),
    );
  };

  /** To the alert of the address, once, and for a screen reader too. */
  const go = (): void => {
    const marked = view.element.querySelector<HTMLElement>("[aria-current=true]");
    if (!marked || gone) return;
    gone = true;
    marked.scrollIntoView({ block: "center" });
    marked.focus({ preventScroll: true });
  };

  const pick = h(
    "select",
    {
      on: {
        change: () => {
          kind = AUDIT_KINDS.find((known) => known === pick.value);
          wanted = PAGE;
          remember({ kind });
          again();
        },
      },
    },
    h("option", { value: "" }, "Everything"),
    AUDIT_KINDS.map((name) => h("option", { value: name, selected: name === kind }, WORDS[name])),
  );
  const what = h("label", { class: "beside" }, h("span", {}, "Show"), pick);
  const happened = h("div", {});
  audit.append(
    h(
      "div",
      { class: "bar-of-tools" },
      h("h2", {}, id === undefined ? "What happened" : "What happened to this alert"),
      what,
    ),
    happened,
  );

  const more = (): void => {
    wanted = MOST;
    again();
  };

  const view: parts.View = {
    title: "Alerts",
    element: h(
      "div",
      { class: "view" },
      h("h1", { tabindex: -1 }, "Alerts"),
      trouble,
      begin,
      about,
      fires,
      pending,
      silences,
      rules,
      channels,
      audit,
    ),
    every: () => 5_000,
    stop() {
      stopHearing();
      stopListening();
    },
    async refresh() {
      const mine = ++asking;
      const [now, known, past] = await Promise.all([
        askAlerts(),
        attempt("alerts.rules", {}),
        attempt("alerts.history", {
          limit: wanted,
          ...(kind && { kind }),
          ...(id !== undefined && { alert: id }),
        }),
      ]);
      if (mine !== asking) return;
      if (now instanceof RpcError) return fill(trouble, parts.excuse(now));
      list = now;
      fill(trouble, now.trouble !== null && troubled(now.trouble));
      show(now.alerts);
      const none = !(known instanceof RpcError) && known.file === null;
      for (const part of [fires, silences, rules, channels, audit]) part.hidden = none;
      fill(begin, none && howToBegin());
      go();
      if (none) return;
      fill(silences, silencesOf(now.silences, (one) => endSilence(one, again)));
      if (known instanceof RpcError) fill(rules, parts.excuse(known));
      else {
        fill(rules, rulesOf(known));
        fill(channels, channelsOf(known.channels));
      }
      fill(
        happened,
        past instanceof RpcError ? parts.excuse(past) : auditOf(past, id, wanted, more),
      );
    },
  };
  const stopHearing = alerts.hear(show);
  // What is told of changes is what fires; the rest is asked for.
  const stopListening = stream.subscribe("alerts.subscribe", {}, again);
  return view;
}

function troubled(why: string): HTMLElement {
  return h(
    "div",
    { class: "banner warn", "data-testid": "alerts-trouble" },
    parts.sign("warn"),
    h("p", {}, h("b", {}, "Trouble"), h("span", {}, why)),
  );
}

function howToBegin(): HTMLElement {
  return h(
    "section",
    { class: "panel", "data-testid": "no-rules" },
    h("h2", {}, "No rules are set"),
    h(
      "p",
      {},
      "Without rules nothing is watched. Start the service with ",
      h("code", {}, "ORBIT_ALERTS"),
      ", the path of a file of rules. This gives it one to begin with:",
    ),
    parts.code(
      "orbit-metrics alerts example > alerts.toml\nORBIT_ALERTS=alerts.toml orbit-metrics serve",
    ),
    parts.quiet("What can stand in it tells ", h("code", {}, "docs/alerts.md"), "."),
  );
}

function nothingFires({ evaluates, evaluatedAt }: AlertList): Child {
  if (evaluates)
    return h(
      "p",
      { class: "status-line" },
      parts.sign("ok"),
      h("span", {}, "Nothing fires; the rules were looked at ", ago(evaluatedAt), "."),
    );
  return parts.quiet(
    evaluatedAt === null
      ? "The rules are not looked at here: that begins, or another hub does it."
      : "The rules are not looked at here now: another hub may do it.",
  );
}

/** It was linked to, and is over, or never was. */
function noneSuch(id: string, { evaluates }: AlertList): HTMLElement {
  return h(
    "p",
    { class: "trouble", "data-testid": "no-such-alert" },
    parts.sign("idle"),
    h(
      "span",
      {},
      "Alert ",
      h("code", {}, id),
      evaluates ? " does not fire now. " : " is not known here. ",
      "What happened to it is told below. ",
      h("a", { href: link(["alerts"]) }, "All alerts"),
    ),
  );
}

// ------------------------------------------------------------------ alerts

interface Actions {
  silence: (alert: Alert) => void;
  acknowledge: (alert: Alert) => void;
  silences: () => Silence[];
}

function cards(all: Alert[], id: string | undefined, actions: Actions): Child {
  const shown = all.filter((alert, place) => place < SHOWN || alert.id === id);
  return [
    h(
      "ul",
      {},
      shown.map((alert) => card(alert, alert.id === id, actions)),
    ),
    all.length > shown.length &&
      parts.quiet(
        `And ${count(all.length - shown.length)} more: `,
        h("code", {}, "orbit-metrics alerts"),
        " tells them all.",
      ),
  ];
}

function card(alert: Alert, marked: boolean, actions: Actions): HTMLElement {
  const { acknowledged, error, lastNotified } = alert;
  const crossed = alert.firedAt !== null && alert.firedAt - alert.since >= 1_000;
  return h(
    "li",
    {
      class: `panel alert ${alert.severity}`,
      "data-key": alert.id,
      "data-alert": alert.id,
      tabindex: marked && -1,
      "aria-current": marked && "true",
    },
    h(
      "div",
      { class: "alert-head" },
      severity(alert.severity),
      h("h3", { class: "long" }, h("a", { href: link(["alerts", alert.id]) }, alert.summary)),
      h(
        "span",
        { class: "num" },
        alert.phase === "firing" ? "for " : "pending for ",
        h("b", {}, firesFor(alert)),
      ),
    ),
    h(
      "p",
      { class: "alert-facts" },
      h("span", {}, h("b", { class: "num" }, alert.valueText), ` against ${alert.thresholdText}`),
      h("span", {}, "rule ", h("b", { class: "name", title: alert.rule }, alert.rule)),
      labelsOf(alert.labels),
      crossed && h("span", {}, "past its threshold for ", since(alert.since)),
      lastNotified !== null && h("span", {}, "told ", ago(lastNotified)),
      alert.clearing && h("span", {}, "better now, and kept firing for a while"),
    ),
    error &&
      h(
        "p",
        { class: "why" },
        h("b", {}, error.type),
        error.message && `: ${error.message}`,
        h("small", {}, " ", ago(error.at)),
      ),
    alert.recovery.length > 0 && recoveryOf(alert.recovery),
    acknowledged &&
      h(
        "p",
        { class: "done" },
        parts.sign("ok"),
        h(
          "span",
          {},
          "Acknowledged by ",
          h("b", {}, acknowledged.who),
          " ",
          ago(acknowledged.at),
          acknowledged.note && `: ${acknowledged.note}`,
        ),
      ),
    alert.silencedBy.map((silenced) => silencedBy(silenced, actions.silences())),
    h(
      "div",
      { class: "alert-actions" },
      h(
        "button",
        { type: "button", on: { click: () => actions.silence(alert) } },
        "Silence…",
        h("span", { class: "unseen" }, ` ${alert.summary}`),
      ),
      !acknowledged &&
        h(
          "button",
          { type: "button", on: { click: () => actions.acknowledge(alert) } },
          "Acknowledge",
          h("span", { class: "unseen" }, ` ${alert.summary}`),
        ),
      alert.runbook !== null && runbook(alert.runbook),
    ),
  );
}

function silencedBy(id: string, silences: Silence[]): HTMLElement {
  const known = silences.find((one) => one.id === id);
  return h(
    "p",
    { class: "done" },
    parts.sign("idle"),
    h(
      "span",
      {},
      "Silenced",
      known && [" by ", h("b", {}, known.who), " until ", at(known.until), `: ${known.reason}`],
    ),
  );
}

function recoveryOf([newest, ...earlier]: Recovery[]): Child {
  const line = ({ action, outcome, at: when, text }: Recovery): Child => [
    h("b", {}, action),
    ` ${outcome} `,
    ago(when),
    text && `: ${text}`,
  ];
  return [
    newest && h("p", { class: "done" }, parts.sign("run"), h("span", {}, line(newest))),
    earlier.length > 0 &&
      h(
        "details",
        {},
        h("summary", {}, `${plural(earlier.length, "try", "tries")} before`),
        h(
          "ul",
          {},
          earlier.map((one) => h("li", {}, line(one))),
        ),
      ),
  ];
}

/** Only what leads to a page is a link: a rule may say `javascript:` as well as anything. */
function runbook(text: string): HTMLElement {
  if (!/^https?:\/\//i.test(text)) return h("span", { class: "long" }, `Runbook: ${text}`);
  const elsewhere = { rel: "noopener noreferrer", target: "_blank" };
  return h("a", { href: text, title: text, ...elsewhere }, "Runbook");
}

/** What it is about comes first, then labels of its rule's own. */
function labelsOf(labels: Record<string, string>): Child {
  const own = (name: string): number => Number(!SUBJECT.includes(name));
  const inOrder = Object.entries(labels).toSorted(([a], [b]) => own(a) - own(b));
  return inOrder.map(([name, value]) =>
    h(
      "span",
      { class: "label", "data-key": name },
      `${name} `,
      name === "pipeline"
        ? parts.pipelineLink(value)
        : name === "worker"
          ? parts.workerLink(value)
          : h("span", { class: "name", title: value }, value),
    ),
  );
}

// ------------------------------------------------------------------ silences, rules, channels

function silencesOf(silences: Silence[], end: (silence: Silence) => void): Child {
  const columns: Column<Silence>[] = [
    { key: "of", name: "Of", show: (s) => h("span", { class: "labels" }, labelsOf(s.matchers)) },
    { key: "until", name: "Until", num: true, show: (s) => at(s.until) },
    { key: "who", name: "Who", show: (s) => s.who, class: "names" },
    {
      key: "reason",
      name: "Reason",
      show: (s) => h("span", { class: "fault", title: s.reason }, s.reason),
      class: "wide",
    },
    {
      key: "end",
      name: "End",
      show: (s) =>
        h(
          "button",
          { type: "button", on: { click: () => end(s) } },
          "End",
          h("span", { class: "unseen" }, ` the silence of ${s.who}: ${s.reason}`),
        ),
    },
  ];
  return [
    h("h2", {}, "Silences"),
    silences.length
      ? table({
          label: "Silences in force",
          columns,
          rows: silences,
          keyOf: ({ id }) => id,
          empty: "",
        })
      : parts.quiet("Nothing is silenced."),
  ];
}

function rulesOf({ rules, file, loadedAt, dryRun }: RuleList): Child {
  const columns: Column<RuleView>[] = [
    { key: "name", name: "Rule", show: (r) => h("span", { class: "name", title: r.name }, r.name) },
    { key: "severity", name: "Severity", show: (r) => severity(r.severity) },
    {
      key: "condition",
      name: "Condition",
      show: (r) => [
        r.condition,
        Object.entries(r.scope).map(([name, pattern]) => `, ${name} ${pattern}`),
      ],
    },
    { key: "matches", name: "Matches", num: true, show: (r) => count(r.matches) },
    {
      key: "firing",
      name: "Firing",
      num: true,
      show: (r) => h("span", { class: r.firing ? "bad" : "" }, count(r.firing)),
    },
    { key: "pending", name: "Pending", num: true, show: (r) => count(r.pending) },
    { key: "channels", name: "Tells", show: (r) => names(r.channels), class: "names" },
    { key: "actions", name: "Does", show: (r) => names(r.actions), class: "names" },
    { key: "runbook", name: "Runbook", show: (r) => r.runbook !== null && runbook(r.runbook) },
  ];
  return [
    h("h2", {}, "Rules"),
    rules.flatMap(({ name, trouble }) => (trouble === null ? [] : [troubleOf(name, trouble)])),
    table({
      label: "Rules",
      columns,
      rows: rules,
      keyOf: ({ name }) => name,
      empty: "No rule is in force.",
    }),
    parts.quiet(
      file,
      loadedAt !== null && [", read ", ago(loadedAt)],
      ".",
      dryRun &&
        rules.some(({ actions }) => actions.length) &&
        " Actions are dry: they say what they would do, and do nothing.",
    ),
  ];
}

function channelsOf(channels: ChannelView[]): Child {
  const number = (
    key: "sent" | "failed" | "givenUp" | "heldBack" | "waiting",
    name: string,
    bad = "",
  ): Column<ChannelView> => ({
    key,
    name,
    num: true,
    show: (c) => h("span", { class: c[key] ? bad : "" }, count(c[key])),
  });
  const columns: Column<ChannelView>[] = [
    {
      key: "name",
      name: "Channel",
      show: (c) => h("span", { class: "name", title: c.name }, c.name),
    },
    { key: "kind", name: "Kind", show: (c) => c.kind },
    { key: "severities", name: "For", show: (c) => c.severities.join(", ") },
    number("sent", "Sent"),
    number("failed", "Failed", "bad"),
    number("givenUp", "Given up", "bad"),
    number("heldBack", "Held back"),
    number("waiting", "Waiting"),
  ];
  return [
    h("h2", {}, "Channels"),
    channels.flatMap(({ name, trouble }) => (trouble === null ? [] : [troubleOf(name, trouble)])),
    table({
      label: "Channels",
      columns,
      rows: channels,
      keyOf: ({ name }) => name,
      empty: "There is no channel: nobody is told.",
    }),
  ];
}

const names = (all: string[]): HTMLElement =>
  h("span", { title: all.join(", ") }, all.join(", ") || "–");

const troubleOf = (name: string, trouble: string): HTMLElement =>
  h(
    "p",
    { class: "trouble", "data-key": name },
    parts.sign("warn"),
    h("span", {}, h("b", {}, name), `: ${trouble}`),
  );

// ------------------------------------------------------------------ what happened

const WORDS: Record<AuditKind, string> = {
  pending: "Pending",
  firing: "Firing",
  resolved: "Resolved",
  calmed: "Calmed",
  silenced: "Silenced",
  unsilenced: "Silence ended",
  acknowledged: "Acknowledged",
  notified: "Notified",
  "held back": "Held back",
  undelivered: "Undelivered",
  action: "Action",
  escalated: "Escalated",
  reloaded: "Reloaded",
};
const SIGNS: Partial<Record<AuditKind, "ok" | "warn" | "error" | "run">> = {
  pending: "warn",
  firing: "error",
  resolved: "ok",
  undelivered: "error",
  action: "run",
  escalated: "error",
};

function auditOf(
  { entries, more }: AuditLog,
  id: string | undefined,
  wanted: number,
  older: () => void,
): Child {
  const columns: Column<AuditEntry>[] = [
    { key: "at", name: "When", show: (e) => at(e.at) },
    {
      key: "kind",
      name: "What",
      show: ({ kind }) =>
        h("span", { class: "status" }, parts.sign(SIGNS[kind] ?? "idle"), WORDS[kind]),
    },
    {
      key: "rule",
      name: "Rule",
      show: (e) =>
        e.rule === null
          ? "–"
          : e.alert === null || e.alert === id
            ? h("span", { class: "name", title: e.rule }, e.rule)
            : h(
                "a",
                { href: link(["alerts", e.alert]), class: "name", title: e.rule },
                e.rule,
              ),
    },
    {
      key: "text",
      name: "Detail",
      show: (e) => h("span", { class: "fault", title: e.text }, e.text),
      class: "wide",
    },
    { key: "who", name: "Who", show: (e) => e.who ?? "–", class: "names" },
    {
      key: "labels",
      name: "About",
      show: (e) => h("span", { class: "labels" }, labelsOf(e.labels)),
    },
  ];
  return [
    table({
      label: "What happened to alerts, the newest first",
      id: "audit-table",
      columns,
      rows: entries,
      keyOf: (entry) => String(entry.id),
      empty: "Nothing of that kind in the last seven days.",
    }),
    more &&
      (wanted < MOST
        ? h("p", {}, h("button", { type: "button", on: { click: older } }, "Show older"))
        : parts.quiet(
            "There are older ones: ",
            h("code", {}, "orbit-metrics alerts history"),
            " tells them.",
          )),
  ];
}
