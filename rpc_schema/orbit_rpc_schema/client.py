"""
Ask a service or a hub from Python: a method for each procedure, answers as typed models.

    from orbit_rpc_schema.client import OrbitClient

    orbit = OrbitClient("http://127.0.0.1:8790", token=...)  # or OrbitClient(), over the socket
    orbit.worker.metrics(window="1h").p95
    for run in orbit.worker.recent_runs(status="failed"):
        print(run.pipeline.name, run.error)

Needs pydantic and nothing else: `pip install orbit-metrics[client]`. It is for dashboards and
scripts; a worker records by `orbit_worker`. Times are epoch milliseconds, durations
milliseconds. What a newer service tells beyond the models is passed over.

Raises OSError where no service answers, and CallFailed for an error that it answers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from orbit_rpc_schema.alerts import (
    Acknowledged,
    AlertList,
    AuditLog,
    Backtest,
    Kind,
    Phase,
    Reloaded,
    RuleList,
    Severity,
    SilenceView,
    TestSent,
    Unsilenced,
)
from orbit_rpc_schema.caller import CallFailed, call, call_http
from orbit_rpc_schema.model import Status
from orbit_rpc_schema.procedures import (
    PROCEDURES,
    CreatedRun,
    FleetBalance,
    FleetMetrics,
    Health,
    HistoryView,
    Metrics,
    PipelineList,
    PipelineMetrics,
    PipelineSteps,
    RunView,
    ServiceInfo,
    ServiceLedger,
    Snapshot,
    Stats,
    WorkerView,
)
from orbit_rpc_schema.wire import default_socket_path

__all__ = ["CallFailed", "OrbitClient"]

Moment = int | str  # epoch ms, "-1h", "now", ISO 8601
Duration = int | str  # ms, "30s", "24h"
T = TypeVar("T")


class OrbitClient:
    """A service at `http://host:port`, or at its worker socket, by default this user's.

    `token` is read from ORBIT_TOKEN where it is left out; `timeout` is in seconds.
    """

    def __init__(
        self,
        at: str | os.PathLike[str] | None = None,
        *,
        token: str | None = None,
        timeout: float = 35.0,
    ) -> None:
        self._at = default_socket_path() if at is None else at
        self._token = token or os.environ.get("ORBIT_TOKEN")
        self._timeout = timeout
        self.worker = WorkerCalls(self)
        self.pipelines = PipelineCalls(self)
        self.fleet = FleetCalls(self)
        self.service = ServiceCalls(self)
        self.runs = RunCalls(self)
        self.alerts = AlertCalls(self)

    def call(self, method: str, params: Mapping[str, Any]) -> Any:
        """The result as it comes, as JSON values."""
        given = {name: value for name, value in params.items() if value is not None}
        at = os.fspath(self._at)
        if at.startswith(("http://", "https://")):
            return call_http(at, method, given, token=self._token, timeout=self._timeout)
        return call(Path(at), method, given, timeout=self._timeout)

    def ask(self, method: str, _result: type[T], **params: Any) -> T:
        """The result as the procedure's model, which the caller names for the type checker."""
        aliases = {
            name: field.alias or name
            for name, field in PROCEDURES[method].params.model_fields.items()
        }
        by_alias = {aliases[name]: value for name, value in params.items()}
        answer: T = _reader(method).validate_python(self.call(method, by_alias), extra="ignore")
        return answer


@cache
def _reader(method: str) -> TypeAdapter[Any]:
    return TypeAdapter(PROCEDURES[method].result)


class _Calls:
    def __init__(self, client: OrbitClient) -> None:
        self._ask = client.ask


class WorkerCalls(_Calls):
    """worker.*"""

    def metrics(
        self,
        *,
        worker: str | None = None,
        pipeline: str | None = None,
        window: Duration | None = None,
    ) -> Metrics:
        return self._ask("worker.metrics", Metrics, worker=worker, pipeline=pipeline, window=window)

    def snapshot(self, *, worker: str | None = None, pipeline: str | None = None) -> Snapshot:
        return self._ask("worker.snapshot", Snapshot, worker=worker, pipeline=pipeline)

    def stats(self) -> Stats:
        return self._ask("worker.stats", Stats)

    def health(self) -> Health:
        return self._ask("worker.health", Health)

    def recent_runs(
        self,
        *,
        limit: int = 20,
        status: Status | None = None,
        worker: str | None = None,
        pipeline: str | None = None,
    ) -> list[RunView]:
        return self._ask(
            "worker.recentRuns",
            list[RunView],
            limit=limit,
            status=status,
            worker=worker,
            pipeline=pipeline,
        )

    def list(self) -> list[WorkerView]:
        return self._ask("worker.list", list[WorkerView])

    def history(
        self,
        *,
        from_: Moment | None = None,
        to: Moment | None = None,
        step: Duration | None = None,
        worker: str | None = None,
        pipeline: str | None = None,
        group_by: Literal["worker", "pipeline", "node"] | None = None,
        trend: bool = False,
    ) -> HistoryView:
        return self._ask(
            "worker.history",
            HistoryView,
            from_=from_,
            to=to,
            step=step,
            worker=worker,
            pipeline=pipeline,
            group_by=group_by,
            trend=trend,
        )


class PipelineCalls(_Calls):
    """pipelines.*"""

    def list(self, *, from_: Moment | None = None, to: Moment | None = None) -> PipelineList:
        return self._ask("pipelines.list", PipelineList, from_=from_, to=to)

    def metrics(
        self,
        pipeline: str,
        *,
        worker: str | None = None,
        from_: Moment | None = None,
        to: Moment | None = None,
    ) -> PipelineMetrics:
        return self._ask(
            "pipelines.metrics",
            PipelineMetrics,
            pipeline=pipeline,
            worker=worker,
            from_=from_,
            to=to,
        )

    def steps(
        self,
        pipeline: str,
        *,
        worker: str | None = None,
        from_: Moment | None = None,
        to: Moment | None = None,
    ) -> PipelineSteps:
        return self._ask(
            "pipelines.steps", PipelineSteps, pipeline=pipeline, worker=worker, from_=from_, to=to
        )


class FleetCalls(_Calls):
    """fleet.*"""

    def metrics(self) -> FleetMetrics:
        return self._ask("fleet.metrics", FleetMetrics)

    def balance(
        self,
        *,
        pipeline: str | None = None,
        from_: Moment | None = None,
        to: Moment | None = None,
    ) -> FleetBalance:
        return self._ask("fleet.balance", FleetBalance, pipeline=pipeline, from_=from_, to=to)


class ServiceCalls(_Calls):
    """service.*"""

    def info(self) -> ServiceInfo:
        return self._ask("service.info", ServiceInfo)

    def ledger(self, *, worker: str | None = None, limit: int = 100) -> ServiceLedger:
        return self._ask("service.ledger", ServiceLedger, worker=worker, limit=limit)


class RunCalls(_Calls):
    """runs.*"""

    def create(self, pipeline: str, input: Any = None) -> CreatedRun:
        return self._ask("runs.create", CreatedRun, pipeline=pipeline, input=input)


class AlertCalls(_Calls):
    """alerts.*"""

    def list(
        self,
        *,
        phase: Phase | None = None,
        rule: str | None = None,
        severity: Severity | None = None,
    ) -> AlertList:
        return self._ask("alerts.list", AlertList, phase=phase, rule=rule, severity=severity)

    def rules(self) -> RuleList:
        return self._ask("alerts.rules", RuleList)

    def history(
        self,
        *,
        from_: Moment | None = None,
        to: Moment | None = None,
        rule: str | None = None,
        alert: str | None = None,
        kind: Kind | None = None,
        limit: int = 100,
    ) -> AuditLog:
        return self._ask(
            "alerts.history",
            AuditLog,
            from_=from_,
            to=to,
            rule=rule,
            alert=alert,
            kind=kind,
            limit=limit,
        )

    def silence(
        self, matchers: Mapping[str, str], *, duration: Duration = "1h", reason: str, who: str
    ) -> SilenceView:
        return self._ask(
            "alerts.silence",
            SilenceView,
            matchers=matchers,
            duration=duration,
            reason=reason,
            who=who,
        )

    def unsilence(self, id: str, *, who: str) -> Unsilenced:
        return self._ask("alerts.unsilence", Unsilenced, id=id, who=who)

    def acknowledge(self, alert: str, *, who: str, note: str = "") -> Acknowledged:
        return self._ask("alerts.acknowledge", Acknowledged, alert=alert, who=who, note=note)

    def backtest(
        self,
        *,
        from_: Moment | None = None,
        to: Moment | None = None,
        rule: str | None = None,
    ) -> Backtest:
        return self._ask("alerts.backtest", Backtest, from_=from_, to=to, rule=rule)

    def reload(self) -> Reloaded:
        return self._ask("alerts.reload", Reloaded)

    def send_test(self, channel: str) -> TestSent:
        return self._ask("alerts.sendTest", TestSent, channel=channel)
