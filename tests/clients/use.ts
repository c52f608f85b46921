// Uses what `orbit-metrics typescript` prints, as a program of its user: node use.js URL TOKEN DEAF
import { CallFailed, NoAnswer, OrbitMetrics, type Metrics, type Procedures } from "./orbit-metrics.js";

const [url = "", token = "", deaf = ""] = process.argv.slice(2);
const orbit = new OrbitMetrics(`${url}/`, { token });

async function failure(call: Promise<unknown>): Promise<CallFailed | NoAnswer> {
  try {
    await call;
  } catch (error) {
    if (error instanceof CallFailed || error instanceof NoAnswer) return error;
    throw error;
  }
  throw new Error("it did not fail");
}

const metrics: Metrics = await orbit.worker.metrics();
const hour: number = (await orbit.worker.metrics({ window: "1h", pipeline: "orders" })).totalRuns;
const [run] = await orbit.call("worker.recentRuns", { limit: 1, status: "failed" });
const error: string | undefined = run?.error?.type;

// @ts-expect-error: there is no such procedure
const unknown = await failure(orbit.call("worker.fire"));
// @ts-expect-error: a pipeline has to be named
const incomplete = await failure(orbit.pipelines.metrics({}));
// @ts-expect-error: a status is one of four words
const wrong: Procedures["worker.recentRuns"]["params"] = { status: "lost", limit: 0 };
const invalid = await failure(orbit.worker.recentRuns(wrong));
// @ts-expect-error: it has no params
await failure(orbit.call("worker.stats", { worker: "tests" }));

const refused = await failure(new OrbitMetrics(url).worker.stats());
const late = await failure(new OrbitMetrics(deaf, { timeoutMs: 100 }).worker.stats());
const away = await failure(new OrbitMetrics("http://127.0.0.1:1").worker.stats());

const told = (failed: CallFailed | NoAnswer) =>
  failed instanceof CallFailed
    ? { kind: failed.kind, code: failed.code, message: failed.message, data: failed.data }
    : { timedOut: failed.timedOut, status: failed.status ?? null, message: failed.message };
console.log(
  JSON.stringify({
    total: metrics.totalRuns,
    hour,
    error,
    unknown: told(unknown),
    incomplete: told(incomplete),
    invalid: told(invalid),
    refused: told(refused),
    late: told(late),
    away: told(away),
  }),
);
