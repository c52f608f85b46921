"""One short handler for each procedure of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orbit_rpc_schema.openrpc import document
from orbit_rpc_schema.procedures import Health, ServiceInfo
from orbit_service.core import snapshot
from orbit_service.core.collector import Collector

Clock = Callable[[], int]  # epoch milliseconds
Handler = Callable[[Any], Any]  # params model -> result, as `procedures.py` types them


def make_handlers(
    collector: Collector,
    clock: Clock,
    *,
    version: str,
    info: Callable[[], ServiceInfo],
    health: Callable[[], Health],
) -> Mapping[str, Handler]:
    """The handlers by procedure name; exactly the names that the contract lists."""
    return {
        "worker.metrics": lambda params: snapshot.metrics(collector, params, clock()),
        "worker.snapshot": lambda params: snapshot.snapshot(collector, params, clock()),
        "worker.stats": lambda _params: snapshot.stats(collector, clock()),
        "worker.health": lambda _params: health(),
        "worker.recentRuns": lambda params: snapshot.recent_runs(collector, params, clock()),
        "worker.list": lambda _params: snapshot.worker_list(collector),
        "service.info": lambda _params: info(),
        "service.ledger": lambda params: snapshot.ledger(collector, params),
        "rpc.discover": lambda _params: document(version),
    }
