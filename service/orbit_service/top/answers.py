"""
What the service answers, asked for in turn.

A question about the past costs the service more the more it has counted. Each is
therefore asked again only after ten times as long as its answer took: however
many look on, one of them takes a tenth of a service's time at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from orbit_rpc_schema.caller import CallFailed
from orbit_rpc_schema.wire import Json

Ask = Callable[[str, Mapping[str, Any]], Any]

REST = 10  # times as long as an answer took
PATIENCE = 5.0  # seconds for one answer
FAILURES = 50


@dataclass(frozen=True, slots=True)
class Unanswered:
    """In place of an answer: why there is none."""

    why: str


@dataclass(frozen=True, slots=True)
class Answers:
    """What was answered last, and when (`monotonic`); `trouble` is why nothing is now."""

    metrics: Json
    health: Json | Unanswered
    workers: list[Json] | Unanswered
    balance: list[Json] | Unanswered
    pipelines: list[Json] | Unanswered
    failures: list[Json] | Unanswered
    alerts: list[Json] | Unanswered  # what fires, the worst first
    at: float = 0.0
    trouble: str | None = None


@dataclass(slots=True)
class _Question:
    method: str
    params: Mapping[str, Any]
    pick: str | None = None  # the field of the result that is wanted
    due: float = 0.0
    answer: Any = field(default=Unanswered("not asked yet"))


class Questions:
    """The questions of one view, by this worker or pipeline or about all."""

    def __init__(self, ask: Ask, worker: str | None = None, pipeline: str | None = None) -> None:
        self._ask = ask
        self._pipeline = pipeline
        chosen = {"worker": worker, "pipeline": pipeline}
        selection = {name: value for name, value in chosen.items() if value is not None}
        balance = {"from": "-1h", **({"pipeline": pipeline} if pipeline else {})}
        pipelines = _Question("pipelines.list", {"from": "-1h"}, "pipelines")
        if worker is not None:  # pipelines.list sums over all workers
            of_one = {"from": "-1h", "step": "5m", "groupBy": "pipeline", **selection}
            pipelines = _Question("worker.history", of_one, "groups")
        self._asked = {
            "metrics": _Question("worker.metrics", selection),
            "health": _Question("worker.health", {}),
            "workers": _Question("worker.list", {}),
            "failures": _Question(
                "worker.recentRuns", {"limit": FAILURES, "status": "failed", **selection}
            ),
            "pipelines": pipelines,
            "balance": _Question("fleet.balance", balance, "workers"),
            "alerts": _Question("alerts.list", {"phase": "firing"}, "alerts"),
        }
        self._selection = selection
        self._worker = worker

    def ask(self) -> Answers:
        """Ask what is due. Raises OSError where no service answers, CallFailed where it has
        no totals to tell."""
        for name, question in self._asked.items():
            if monotonic() >= question.due:
                self._put(question, must=name == "metrics")
        answered = {name: question.answer for name, question in self._asked.items()}
        return Answers(**self._selected(answered), at=monotonic())

    def _put(self, question: _Question, *, must: bool) -> None:
        asked = monotonic()
        try:
            result = self._ask(question.method, question.params)
            question.answer = result if question.pick is None else result[question.pick]
        except CallFailed as error:
            if must:
                raise
            question.answer = Unanswered(error.message)
        except TimeoutError:
            if must:
                raise
            question.answer = Unanswered(f"no answer within {PATIENCE:g} s")
        answered = monotonic()
        question.due = answered + REST * (answered - asked)

    def _selected(self, answered: dict[str, Any]) -> dict[str, Any]:
        """Without the pipelines, workers and alerts that were not asked for."""
        workers, pipelines, balance = (answered[n] for n in ("workers", "pipelines", "balance"))
        alerts = answered["alerts"]
        if isinstance(alerts, list):  # those that are about another one are not of interest
            alerts = [
                alert
                for alert in alerts
                if all(alert["labels"].get(of, it) == it for of, it in self._selection.items())
            ]
        if self._pipeline is not None:
            if isinstance(pipelines, list):
                pipelines = [row for row in pipelines if row["name"] == self._pipeline]
            if isinstance(workers, list) and isinstance(balance, list):
                having = {row["worker"] for row in balance}
                workers = [row for row in workers if row["name"] in having]
        if self._worker is not None and isinstance(workers, list):
            workers = [row for row in workers if row["name"] == self._worker]
        return {**answered, "workers": workers, "pipelines": pipelines, "alerts": alerts}
