// A worker in Node that tells Orbit Metrics of its runs, by docs/protocol.md and without packages:
// ORBIT_SOCKET=<the path that `orbit-metrics serve` prints> node worker.mjs 1000
import { randomUUID } from "node:crypto";
import { createConnection } from "node:net";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
const json = (message) => `${JSON.stringify({ jsonrpc: "2.0", ...message })}\n`;

class Orbit {
  me = { protocol: 1, session: randomUUID(), startedAt: Date.now(), pid: process.pid };
  totals = { recorded: 0, dropped: { "buffer full": 0 } };
  seq = 0;
  runs = []; // that stand in no message yet
  kept = []; // not on the service's disk yet; over 10,000 messages, runs are dropped and counted

  constructor(worker, path = process.env.ORBIT_SOCKET || "/run/orbit-metrics/worker.sock") {
    Object.assign(this, { path, me: { ...this.me, worker, host: hostname() } });
    this.timers = [setInterval(() => this.tell(), 50), setInterval(() => this.beat(), 10_000)];
    this.connect();
  }
  record(pipeline, durationMs, error) {
    const run = { pipeline, at: Date.now(), durationUs: [Math.round(durationMs * 1000)] };
    const { name: type, message = "", stack = "" } = error ?? {};
    const told = { type, message: message.slice(0, 1000), traceback: stack.slice(0, 2000) };
    this.runs.push(error ? { ...run, failed: [0], details: { 0: { error: told } } } : run);
    this.totals.recorded += 1;
    if (this.runs.length === 100) this.tell(); // with their errors so many are under 1 MiB
  }
  tell() {
    const batches = this.runs.splice(0);
    if (this.kept.length >= 10_000) this.totals.dropped["buffer full"] += batches.length;
    else if (batches.length) this.keep("runs.record", { batches });
  }
  beat() {
    const { user, system } = process.cpuUsage();
    const usage = { cpuSeconds: (user + system) / 1e6, rssBytes: process.memoryUsage.rss() };
    if (this.connected) this.keep("worker.heartbeat", { inFlight: 0, ...usage });
  }
  keep(method, params) {
    const text = json({ method, params: { seq: ++this.seq, ...this.totals, ...params } });
    this.kept.push({ seq: this.seq, text });
    if (this.connected) this.socket.write(text);
  }
  connect() {
    let rest = "";
    this.socket = createConnection(this.path).setEncoding("utf8").on("error", () => {});
    this.socket.write(json({ id: 1, method: "worker.connect", params: this.me }));
    this.socket.on("data", (heard) => {
      const lines = (rest + heard).split("\n");
      rest = lines.pop();
      for (const { id, result, error, params } of lines.map((line) => JSON.parse(line))) {
        if (error) console.error(`orbit: ${error.message}`);
        const acked = result?.acked ?? params?.seq ?? 0; // of worker.connect, or of runs.acked
        this.kept = this.kept.filter(({ seq }) => seq > acked);
        if (id !== 1 || !result) continue;
        this.connected = true;
        for (const { text } of this.kept) this.socket.write(text); // what it has not, again
      }
    });
    this.socket.on("close", () => { // after an error too
      this.connected = false;
      if (!this.closed) setTimeout(() => this.connect(), 250);
    });
  }
  async close(withinMs = 60_000) {
    this.tell();
    for (const end = Date.now() + withinMs; this.kept.length && Date.now() < end; ) await sleep(10);
    this.closed = true;
    this.timers.forEach(clearInterval);
    this.socket.end(json({ method: "worker.disconnect", params: { reason: "exit" } }));
  }
}

const orbit = new Orbit(process.env.ORBIT_WORKER_NAME || `${hostname()}:tea`);
for (let n = 1; n <= process.argv[2]; n++) {
  await sleep(1); // the work
  orbit.record("tea", n % 7, n % 10 ? undefined : RangeError("no more tea"));
}
await orbit.close();
