/** What all views see: the totals as they move, and what the service says of itself. */

import type { Alert, AlertList, Metrics, ServiceInfo } from "./api";
import { attempt, call, RpcError, stream } from "./rpc";

/** The newest of something, for all who want to know it. */
class News<T> {
  newest: T | undefined;
  private listeners: ((news: T) => void)[] = [];

  tell(news: T): void {
    this.newest = news;
    for (const listener of this.listeners) listener(news);
  }

  /** Hear of it, now and whenever it comes, until what is returned is called. */
  hear(listener: (news: T) => void): () => void {
    this.listeners.push(listener);
    if (this.newest !== undefined) listener(this.newest);
    return () => {
      this.listeners = this.listeners.filter((other) => other !== listener);
    };
  }
}

/** The totals. */
export const metrics = new News<Metrics>();
/** What is pending or fires. */
export const alerts = new News<Alert[]>();
let info: ServiceInfo | null | undefined;

export async function askMetrics(): Promise<void> {
  metrics.tell(await call("worker.metrics", {}));
}

export async function askAlerts(): Promise<AlertList | RpcError> {
  const list = await attempt("alerts.list", {});
  if (!(list instanceof RpcError)) alerts.tell(list.alerts);
  return list;
}

export function follow(): void {
  const quietly = (asked: Promise<unknown>): void => void asked.catch(() => {});
  stream.subscribe(
    "worker.subscribe",
    { interval: 1_000 },
    (news) => metrics.tell(news.metrics),
    () => quietly(askMetrics()),
  );
  const ask = (): void => quietly(askAlerts());
  stream.subscribe("alerts.subscribe", {}, (news) => alerts.tell(news.alerts), ask);
  // What came about before one listened, or meanwhile, is told to nobody.
  stream.onChange((now) => now.state === "live" && ask());
  ask();
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
