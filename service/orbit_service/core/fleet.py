"""
The workers of many nodes, as these last told.

A worker is a name at a node: of the same name at two nodes there are two. When a
node is lost its workers are shown as lost with it; it may come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from orbit_rpc_schema.procedures import FleetMetrics, NodeView, Selection
from orbit_service.core import snapshot
from orbit_service.core.collector import Collector
from orbit_service.core.sessions import EndedLife, Worker

NODE_LOST = "node lost"


@dataclass
class NodeLives:
    """One node, as it said at `at_ms`."""

    name: str
    at_ms: int
    alive: bool
    workers: list[Worker]
    seen: set[tuple[str, str]]

    def lost(self) -> NodeLives:
        """The same, its lives over."""
        return replace(self, alive=False, workers=[_lost(w, self.at_ms) for w in self.workers])


def _lost(worker: Worker, at_ms: int) -> Worker:
    if worker.life is None:
        return worker
    totals = worker.life.totals()
    ended = EndedLife(worker.name, at_ms, NODE_LOST, True, totals.runs, totals.failed)
    return replace(worker, life=None, last_life=ended, sessions={})


@dataclass
class Fleet:
    """All nodes; `here` is the own one, where this is no hub."""

    here: Collector | None = None
    others: dict[str, NodeLives] = field(default_factory=dict)  # by instance

    def select(self, name: str | None) -> Iterator[Worker]:
        """All workers, or those of this name."""
        if self.here is not None:
            yield from self.here.select(name)
        for node in self.others.values():
            yield from (w for w in node.workers if name in (None, w.name))

    def has_seen(self, worker: Worker, pipeline: str) -> bool:
        """Whether this worker has run the pipeline, in this life or an earlier one."""
        if self.here is not None and self.here.workers.get(worker.name) is worker:
            return self.here.has_seen(worker, pipeline)
        nodes = (node for node in self.others.values() if node.name == worker.node)
        return any((worker.name, pipeline) in node.seen for node in nodes)

    def metrics(self, now_ms: int) -> FleetMetrics:
        """fleet.metrics."""
        nodes = [_view(n.name, n.alive, n.at_ms, n.workers) for n in self.others.values()]
        if self.here is not None:
            nodes.append(_view(self.here.node, True, now_ms, self.here.workers.values()))
        nodes.sort(key=lambda node: (not node.alive, node.name))
        return FleetMetrics(
            nodes=nodes,
            nodes_alive=sum(node.alive for node in nodes),
            total=snapshot.metrics(self, Selection(), now_ms),
        )


def _view(name: str, alive: bool, at_ms: int, workers: Iterable[Worker]) -> NodeView:
    lives = [worker.life for worker in workers if worker.life is not None]
    totals = [life.totals() for life in lives]
    return NodeView(
        name=name,
        alive=alive,
        last_seen=at_ms,
        workers_connected=len(lives),
        total_runs=sum(total.runs for total in totals),
        failed=sum(total.failed for total in totals),
    )
