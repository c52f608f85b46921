/** What all views see: the totals as they move, and what the service says of itself. */

import type { Metrics, ServiceInfo } from "./api";
import { attempt, call, RpcError, stream } from "./rpc";

type Listener = (metrics: Metrics) => void;

let newest: Metrics | null = null;
let listeners: Listener[] = [];
let info: ServiceInfo | null | undefined;

function tell(metrics: Metrics): void {
  newest = metrics;
  for (const listener of listeners) listener(metrics);
}

/** Hear of the totals, now and whenever they come, until what is returned is called. */
export function onMetrics(listener: Listener): () => void {
  listeners.push(listener);
  if (newest) listener(newest);
  return () => {
    listeners = listeners.filter((other) => other !== listener);
  };
}

export async function askMetrics(): Promise<void> {
  tell(await call("worker.metrics", {}));
}

export function follow(): void {
  const poll = (): void => void askMetrics().catch(() => {});
  stream.subscribe("worker.subscribe", { interval: 1_000 }, (news) => tell(news.metrics), poll);
}

/** service.info; null on a hub, which answers for many. */
export async function serviceInfo(): Promise<ServiceInfo | null> {
  if (info === undefined) {
    const answer = await attempt("service.info", {});
    info = answer instanceof RpcError ? null : answer;
  }
  return info;
}

/** Another service may have come in its place. */
export function forgetInfo(): void {
  info = undefined;
}
