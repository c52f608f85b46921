/** What more than one view shows of alerts. */

import type { Alert, Severity } from "./api";
import { type Child, h } from "./dom";
import { plural, since } from "./format";
import { sign } from "./parts";
import { link } from "./router";

const WORST = 3;

/** Labels that say what an alert is about; others are its rule's own. */
export const SUBJECT = ["pipeline", "worker", "step", "queue"];

const SIGNS = { critical: "error", warning: "warn", info: "info" } as const;
const WORDS = { critical: "Critical", warning: "Warning", info: "Info" };

export const severity = (of: Severity): HTMLElement =>
  h("span", { class: `status ${SIGNS[of]}` }, sign(SIGNS[of]), WORDS[of]);

export const firing = (alerts: Alert[]): Alert[] =>
  alerts.filter(({ phase }) => phase === "firing");

/** How many fire, in the colour of the worst that nobody has silenced. */
export function badge(alerts: Alert[]): Child {
  const fires = firing(alerts);
  if (!fires.length) return null;
  const worst = fires.find(({ silencedBy }) => !silencedBy.length)?.severity;
  return h(
    "span",
    { class: `badge ${worst ? SIGNS[worst] : "idle"}`, "data-testid": "alerts-badge" },
    h("span", { class: "num" }, fires.length > 99 ? "99+" : fires.length),
    h("span", { class: "unseen" }, fires.length === 1 ? " fires" : " fire"),
  );
}

/** The worst of what fires, each with a link to it. */
export function worstAlerts(alerts: Alert[]): Child {
  const fires = firing(alerts);
  if (!fires.length) return null;
  return [
    h(
      "ul",
      {},
      fires.slice(0, WORST).map((alert) =>
        h(
          "li",
          { "data-key": alert.id, class: SIGNS[alert.severity] },
          severity(alert.severity),
          h("a", { href: link(["alerts", alert.id]), title: alert.summary }, alert.summary),
          h("small", {}, alert.silencedBy.length > 0 && "silenced, ", "for ", firesFor(alert)),
        ),
      ),
    ),
    fires.length > WORST &&
      h("a", { href: link(["alerts"]), class: "all" }, `All ${plural(fires.length, "alert")}`),
  ];
}

/** For how long, which ticks. */
export const firesFor = ({ firedAt, since: crossed }: Alert): HTMLElement =>
  since(firedAt ?? crossed);
