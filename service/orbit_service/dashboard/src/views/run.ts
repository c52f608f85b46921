/** One run: its steps one after the other, its error and traceback. */

import type { RunView, StepView } from "../api";
import { type Child, fill, h } from "../dom";
import { at, count, duration } from "../format";
import * as parts from "../parts";
import { link } from "../router";
import { attempt, RpcError } from "../rpc";
import { keep, remembered } from "./runs";

export function run(id: string, query: URLSearchParams): parts.View {
  const [pipeline, worker] = [query.get("pipeline"), query.get("worker")];
  let found = remembered(id, pipeline);
  const body = h("div", { "data-testid": "run-detail" });
  const show = (): void => fill(body, found ? details(found) : parts.quiet("…"));
  show();
  const view: parts.View = {
    title: `Run ${id}`,
    element: h(
      "div",
      { class: "view" },
      h("p", { class: "crumbs" }, h("a", { href: link(["runs"]) }, "Runs")),
      h("h1", { class: "long", tabindex: -1 }, id),
      body,
    ),
    every: () => (found && found.status !== "running" ? 60_000 : 2_000),
    async refresh() {
      const selection = { ...(pipeline && { pipeline }), ...(worker && { worker }), limit: 100 };
      // Of failed ones a hundred go further back than of all.
      const answers = await Promise.all(
        (["running", "failed", "success"] as const).map((status) =>
          attempt("worker.recentRuns", { ...selection, status }),
        ),
      );
      const [first] = answers;
      if (first instanceof RpcError && !found) return fill(body, parts.excuse(first));
      const known = answers.flatMap((answer) => (answer instanceof RpcError ? [] : answer));
      keep(known);
      // The end of a run before its beginning, where both are told at this moment.
      found = known.findLast((other) => other.id === id) ?? found;
      if (found) show();
      else
        fill(
          body,
          parts.quiet(
            "This run is not among those that are remembered: details are kept for the last hour, ",
            "at most 1,000 a worker, and the newest 100 can be asked for. It is counted all the same.",
          ),
        );
    },
  };
  return view;
}

function details(of: RunView): Child {
  const fact = (term: string, value: Child): HTMLElement =>
    h("div", {}, h("dt", {}, term), h("dd", {}, value));
  return [
    h(
      "dl",
      { class: "facts panel" },
      fact("Status", parts.status(of.status)),
      fact("Pipeline", parts.pipelineLink(of.pipeline.name)),
      fact("Worker", parts.workerLink(of.worker)),
      fact("Started", at(of.startedAt)),
      fact("Ended", at(of.finishedAt)),
      fact(
        "Took",
        h(
          "span",
          { class: "num" },
          of.durationMs === null && of.status === "failed"
            ? "not known: its worker was lost"
            : parts.lasted(of),
        ),
      ),
      fact("Attempt", count(of.attempt)),
    ),
    of.error &&
      h(
        "section",
        { class: "panel wrong" },
        h("h2", {}, parts.sign("error"), of.error.type),
        of.error.message && h("p", { class: "why" }, of.error.message),
        of.error.traceback && parts.code(of.error.traceback),
      ),
    parts.panel("Steps", of.steps.length ? waterfall(of) : parts.quiet("No steps are told of it.")),
  ];
}

/** Steps tell how long they took and not when they began: they are drawn one after the other. */
function waterfall({ steps, durationMs, startedAt, status }: RunView): HTMLElement {
  const sum = steps.reduce((total, step) => total + step.durationMs, 0);
  const age = startedAt && status === "running" ? Date.now() - startedAt : 0;
  const whole = Math.max(durationMs ?? age, sum, 1);
  let before = 0;
  const row = (step: StepView): HTMLElement => {
    const left = (100 * before) / whole;
    before += step.durationMs;
    const running = step.status === "running"; // since the end of the one before, to this moment
    const width = (100 * (running ? Math.max(whole - sum, 0) : step.durationMs)) / whole;
    const kind = step.status === "failed" ? "error" : "";
    const sign = { pending: "idle", running: "run", success: "ok", failed: "error" } as const;
    return h(
      "li",
      {},
      h(
        "span",
        { class: "step" },
        parts.sign(sign[step.status]),
        h("span", { class: "name", title: step.name }, step.name),
        step.attemptCount > 1 && h("small", {}, ` ${step.attemptCount} tries`),
        kind && h("small", { class: "bad" }, " failed"),
      ),
      h(
        "span",
        { class: `track ${kind}` },
        h("i", {
          style: { "margin-left": `${Math.min(left, 99.6)}%`, width: `${Math.max(width, 0.4)}%` },
        }),
      ),
      h("span", { class: "num" }, running ? "running" : duration(step.durationMs)),
    );
  };
  const rest = durationMs === null ? 0 : durationMs - sum;
  return h(
    "div",
    {},
    h("ol", { class: "waterfall" }, steps.map(row)),
    rest > whole / 100 && parts.quiet(`${duration(rest)} passed outside of its steps.`),
  );
}
