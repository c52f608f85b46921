"""One short handler for each procedure of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NoReturn

from orbit_rpc_schema.errors import CreatesNoRuns, NotOnHub, RunNotCreated
from orbit_rpc_schema.model import Model
from orbit_rpc_schema.openrpc import document
from orbit_rpc_schema.procedures import (
    PROCEDURES,
    CreatedRun,
    Health,
    Metrics,
    MetricsParams,
    RunsCreateParams,
    ServiceInfo,
)
from orbit_service.core import snapshot
from orbit_service.core.collector import Collector
from orbit_service.core.fleet import Fleet
from orbit_service.rpc.past import Past
from orbit_service.threads import start_thread

Clock = Callable[[], int]  # epoch milliseconds
# Params model -> result, as `procedures.py` types them, or a coroutine of it.
Handler = Callable[[Any], Any]
# Pipeline, input -> the id of a pending run. It may take long. Raises RunNotCreated.
Create = Callable[[str, Any], str]
CREATE_SECONDS = 30.0

ON_HUB = frozenset(PROCEDURES) - {
    "worker.snapshot",
    "worker.stats",
    "worker.recentRuns",
    "service.info",
    "service.ledger",
    "runs.create",
}


def make_handlers(
    collector: Collector,
    clock: Clock,
    *,
    version: str,
    info: Callable[[], ServiceInfo],
    health: Callable[[], Health],
    past: Past,
    fleet: Callable[[], Fleet],
    alerts: Mapping[str, Handler],
    create: Create | None = None,
) -> Mapping[str, Handler]:
    """The handlers by procedure name; exactly the names that the contract lists."""

    def metrics(params: MetricsParams) -> Metrics | Awaitable[Metrics]:
        if params.window is not None:
            return past.metrics(params)
        return snapshot.metrics(collector, params, clock())

    return {
        "worker.metrics": metrics,
        "worker.snapshot": lambda params: snapshot.snapshot(collector, params, clock()),
        "worker.stats": lambda _params: snapshot.stats(collector, clock()),
        "worker.health": lambda _params: health(),
        "worker.recentRuns": lambda params: snapshot.recent_runs(collector, params, clock()),
        "worker.list": lambda _params: snapshot.worker_list(collector),
        **_of_the_past(past),
        "fleet.metrics": lambda _params: fleet().metrics(clock()),
        "service.info": lambda _params: info(),
        "service.ledger": lambda params: snapshot.ledger(collector, params),
        "runs.create": partial(_create, create),
        **alerts,
        "rpc.discover": lambda _params: document(version),
    }


async def _create(create: Create | None, params: RunsCreateParams) -> CreatedRun:
    if create is None:
        raise CreatesNoRuns
    work = partial(create, params.pipeline, params.input)
    try:
        async with asyncio.timeout(CREATE_SECONDS):
            id = await start_thread(work, "orbit-run-create")
    except TimeoutError:
        raise RunNotCreated(why=f"no answer within {CREATE_SECONDS:g} s") from None
    return CreatedRun(id=id)


def make_hub_handlers(
    clock: Clock,
    *,
    version: str,
    health: Callable[[], Health],
    past: Past,
    fleet: Callable[[], Fleet],
    alerts: Mapping[str, Handler],
) -> Mapping[str, Handler]:
    """The same for a hub; what a node alone can answer is an error that says so."""

    def metrics(params: MetricsParams) -> Metrics | Awaitable[Metrics]:
        if params.window is not None:
            return past.metrics(params)
        return snapshot.metrics(fleet(), params, clock())

    answered: dict[str, Handler] = {
        "worker.metrics": metrics,
        "worker.list": lambda _params: snapshot.worker_list(fleet()),
        "worker.health": lambda _params: health(),
        **_of_the_past(past),
        "fleet.metrics": lambda _params: fleet().metrics(clock()),
        **alerts,
        "rpc.discover": lambda _params: document(version, ON_HUB),
    }
    return {name: answered[name] if name in ON_HUB else _not_here(name) for name in PROCEDURES}


def _of_the_past(past: Past) -> dict[str, Handler]:
    return {
        "worker.history": past.history,
        "pipelines.list": past.pipelines,
        "pipelines.metrics": past.pipeline,
        "pipelines.steps": past.steps,
        "fleet.balance": past.balance,
    }


def _not_here(name: str) -> Handler:
    def refuse(_params: Model) -> NoReturn:
        raise NotOnHub(method=name)

    return refuse
