// Does with the programs of docs/trpc.md what a dashboard does.
import { createHTTPServer } from "@trpc/server/adapters/standalone";
import { orbit } from "./all.js";
import { appRouter } from "./router.js";
import { trpc } from "./split.js";

const server = createHTTPServer({ router: appRouter });
server.listen({ fd: Number(process.argv[2]) }); // of a socket that listens already

const caller = appRouter.createCaller({});
const first: number = (await caller.worker.metrics()).totalRuns;
const [greeting, metrics, stats, health, runs] = await Promise.all([
  trpc.greeting.query(),
  trpc.worker.metrics.query(),
  trpc.worker.stats.query(),
  trpc.worker.health.query(),
  trpc.worker.recentRuns.query({ limit: 1 }),
]);
const all: number = (await orbit.worker.metrics.query({ window: "1h" })).totalRuns;
const workers: string[] = (await orbit.worker.list.query()).map((worker) => worker.name);
// @ts-expect-error: a window is a time or a text
const wrong = await orbit.worker.metrics.query({ window: true }).catch((error) => error.data.code);

console.log(
  JSON.stringify({
    first,
    greeting,
    split: [metrics.totalRuns, stats.runsLast24Hours, health.status, runs.length],
    dates: (metrics.timestamp as unknown) instanceof Date,
    all,
    workers,
    wrong,
  }),
);
server.close();
