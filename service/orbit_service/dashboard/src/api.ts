/**
 * What the service answers, as procedures.py and alerts.py in rpc_schema/orbit_rpc_schema type it.
 * Times are epoch milliseconds, durations milliseconds, rates percent.
 */

export type Status = "pending" | "running" | "success" | "failed";

export interface LastLife {
  worker: string;
  endedAt: number;
  reason: string;
  totalRuns: number;
  failed: number;
}

export interface Metrics {
  uptime: string;
  uptimeSeconds: number;
  totalRuns: number;
  successRate: number;
  errorRate: number;
  runsPerHour: number;
  avgExecutionTime: number;
  minExecutionTime: number;
  maxExecutionTime: number;
  succeeded: number;
  failed: number;
  workerStartTime: number | null;
  lastRunTime: number | null;
  timestamp: number;
  connected: boolean;
  known: boolean;
  workersConnected: number;
  p50: number;
  p95: number;
  p99: number;
  retries: number;
  lastLife: LastLife | null;
}

export interface Stats {
  pending: number;
  pendingKnown: boolean;
  running: number;
  runsLastHour: number;
  runsLast24Hours: number;
  successCount: number;
  failedCount: number;
  avgDurationMs: number;
  errorRate: number;
}

export interface StuckRun {
  id: string;
  worker: string;
  pipeline: string;
  startedAt: number;
}

export interface Health {
  status: "healthy" | "warning" | "error";
  message: string;
  lastActivity: number | null;
  stuckRuns: StuckRun[];
}

export interface StepView {
  id: string;
  name: string;
  status: Status;
  attemptCount: number;
  durationMs: number;
}

export interface RunView {
  id: string;
  status: Status;
  startedAt: number | null;
  finishedAt: number | null;
  durationMs: number | null;
  attempt: number;
  worker: string;
  pipeline: { id: string; name: string; description: string | null };
  steps: StepView[];
  error: { type: string; message: string; traceback: string | null } | null;
}

export interface WorkerView {
  name: string;
  node: string;
  connected: boolean;
  sessions: number;
  workerStartTime: number | null;
  lastSeen: number;
  lastRunTime: number | null;
  totalRuns: number;
  failed: number;
  retries: number;
  inFlight: number;
  oldestInFlight: number | null;
  avgWaitTime: number;
  maxWaitTime: number;
  slots: number | null;
  hosts: string[];
  versions: string[];
  runtimes: string[];
  queues: Record<string, number>;
  lastLife: LastLife | null;
}

export interface Summary {
  runs: number;
  failed: number;
  retries: number;
  avg: number | null;
  min: number | null;
  max: number | null;
  p50: number | null;
  p95: number | null;
  p99: number | null;
  runsPerHour: number;
  errorRate: number | null;
}

export interface Point extends Summary {
  at: number;
}

export interface Change {
  before: Summary;
  runsPerHour: number | null;
  errorRate: number | null;
  p95: number | null;
}

export interface HistoryGroup {
  name: string | null;
  total: Summary;
  points: Point[];
  trend: (Change & { from: number }) | null;
}

export interface History {
  from: number;
  to: number;
  step: number;
  level: string;
  groups: HistoryGroup[];
}

export interface PipelineView {
  id: string;
  name: string;
  description: string | null;
  workers: string[];
  total: Summary;
  lastRun: number | null;
  lastSuccess: number | null;
}

export interface PipelineList {
  from: number;
  to: number;
  pipelines: PipelineView[];
}

export interface VersionView {
  version: string | null;
  firstRun: number;
  lastRun: number;
  total: Summary;
}

export interface ErrorType {
  type: string;
  count: number;
  lastSeen: number | null;
  message: string;
  traceback: string | null;
}

export interface PipelineMetrics {
  pipeline: string;
  from: number;
  to: number;
  total: Summary;
  lastRun: number | null;
  lastSuccess: number | null;
  versions: VersionView[];
  change: (Change & { version: string | null; previous: string | null }) | null;
  errors: ErrorType[];
  untypedFailures: number;
}

export interface StepMetrics {
  name: string;
  count: number;
  failed: number;
  retries: number;
  avg: number;
  min: number;
  max: number;
  p50: number;
  p95: number;
  p99: number;
  shareOfTime: number;
  lastSuccess: number | null;
}

export interface PipelineSteps {
  pipeline: string;
  from: number;
  to: number;
  runs: number;
  steps: StepMetrics[];
}

export interface Node_ {
  name: string;
  alive: boolean;
  lastSeen: number;
  workersConnected: number;
  totalRuns: number;
  failed: number;
}

export interface FleetMetrics {
  nodes: Node_[];
  nodesAlive: number;
  total: Metrics;
}

export interface WorkerShare {
  node: string;
  worker: string;
  connected: boolean;
  runs: number;
  shareOfRuns: number;
  busySeconds: number;
  shareOfBusyTime: number;
  slots: number | null;
  utilisation: number | null;
  p95: number | null;
}

export interface FleetBalance {
  from: number;
  to: number;
  workers: WorkerShare[];
  skew: { runs: number; busyTime: number };
  outliers: { node: string; worker: string; pipeline: string; message: string }[];
}

export interface Ledger {
  recorded: number;
  counted: number;
  repeated: number;
  late: number;
  refused: Record<string, number>;
  dropped: Record<string, number>;
  waiting: number;
  forgotten: number;
}

export interface SessionLedger extends Ledger {
  session: string;
  worker: string;
  connected: boolean;
  lastSeen: number;
}

export interface ServiceLedger {
  total: Ledger;
  balanced: boolean;
  sessions: SessionLedger[];
}

export type Severity = "info" | "warning" | "critical";

export interface Recovery {
  action: string;
  outcome: string;
  at: number;
  text: string;
}

export interface Alert {
  id: string;
  rule: string;
  severity: Severity;
  phase: "pending" | "firing";
  labels: Record<string, string>;
  summary: string;
  valueText: string;
  thresholdText: string;
  since: number;
  firedAt: number | null;
  clearing: boolean;
  silencedBy: string[];
  acknowledged: { who: string; note: string; at: number } | null;
  lastNotified: number | null;
  recovery: Recovery[];
  error: { type: string; message: string; at: number } | null;
  runbook: string | null;
}

export interface Silence {
  id: string;
  matchers: Record<string, string>;
  from: number;
  until: number;
  reason: string;
  who: string;
}

export interface AlertList {
  alerts: Alert[];
  silences: Silence[];
  evaluatedAt: number | null;
  evaluates: boolean;
  trouble: string | null;
}

export interface RuleView {
  name: string;
  condition: string;
  scope: Record<string, string>;
  severity: Severity;
  channels: string[];
  actions: string[];
  runbook: string | null;
  matches: number;
  pending: number;
  firing: number;
  trouble: string | null;
}

export interface ChannelView {
  name: string;
  kind: string;
  severities: Severity[];
  sent: number;
  failed: number;
  givenUp: number;
  heldBack: number;
  waiting: number;
  trouble: string | null;
}

export interface RuleList {
  rules: RuleView[];
  channels: ChannelView[];
  file: string | null;
  loadedAt: number | null;
  dryRun: boolean;
}

export const AUDIT_KINDS = [
  "pending",
  "firing",
  "resolved",
  "calmed",
  "silenced",
  "unsilenced",
  "acknowledged",
  "notified",
  "held back",
  "undelivered",
  "action",
  "escalated",
  "reloaded",
] as const;

export type AuditKind = (typeof AUDIT_KINDS)[number];

export interface AuditEntry {
  id: number;
  at: number;
  kind: AuditKind;
  rule: string | null;
  alert: string | null;
  labels: Record<string, string>;
  text: string;
  who: string | null;
}

export interface AuditLog {
  entries: AuditEntry[];
  more: boolean;
}

/** What the page shows of it. */
export interface ServiceInfo {
  version: string;
  node: string;
  socket: string;
  http: string | null;
  createsRuns: boolean;
}

export interface WorkerUpdate {
  subscription: string;
  metrics: Metrics;
  window: Point | null;
  missed?: number;
}

export interface RunsEnded {
  subscription: string;
  runs: RunView[];
  missed?: number;
}

export interface AlertsChanged {
  subscription: string;
  alerts: Alert[];
  changes: AuditEntry[];
  missed?: number;
}

interface Range {
  from?: string | number;
  to?: string | number;
}

interface Selection {
  worker?: string;
  pipeline?: string;
}

type OfPipeline = Range & { pipeline: string; worker?: string };
type Nothing = Record<string, never>;

/** Params and result of each procedure that the page calls. */
export interface Procedures {
  "worker.metrics": [Selection, Metrics];
  "worker.stats": [Nothing, Stats];
  "worker.health": [Nothing, Health];
  "worker.recentRuns": [Selection & { limit?: number; status?: Status }, RunView[]];
  "worker.list": [Nothing, WorkerView[]];
  "worker.history": [
    Range &
      Selection & { groupBy?: "worker" | "pipeline" | "node"; step?: string; trend?: boolean },
    History,
  ];
  "pipelines.list": [Range, PipelineList];
  "pipelines.metrics": [OfPipeline, PipelineMetrics];
  "pipelines.steps": [OfPipeline, PipelineSteps];
  "fleet.metrics": [Nothing, FleetMetrics];
  "fleet.balance": [Range & { pipeline?: string }, FleetBalance];
  "service.info": [Nothing, ServiceInfo];
  "service.ledger": [{ worker?: string; limit?: number }, ServiceLedger];
  "alerts.list": [{ phase?: "pending" | "firing" }, AlertList];
  "alerts.rules": [Nothing, RuleList];
  "alerts.history": [Range & { alert?: string; kind?: AuditKind; limit?: number }, AuditLog];
  "alerts.silence": [
    { matchers: Record<string, string>; duration: string; reason: string; who: string },
    Silence,
  ];
  "alerts.unsilence": [{ id: string; who: string }, { ok: true }];
  "alerts.acknowledge": [{ alert: string; who: string; note: string }, { ok: true }];
  "runs.create": [{ pipeline: string; input?: unknown }, { id: string }];
}

/** Params of each subscription, and the notification that it brings. */
export interface Subscriptions {
  "worker.subscribe": [Selection & { interval?: number }, WorkerUpdate];
  "runs.subscribe": [Selection & { status?: "success" | "failed" }, RunsEnded];
  "alerts.subscribe": [Nothing, AlertsChanged];
}
