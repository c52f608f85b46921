"""The groups of figures, in the order of the table; each is a generator of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from benchmarks.scale import Scale
from benchmarks.suite import (
    asking,
    calls,
    flood,
    latency,
    memory,
    messages,
    past,
    rules,
    starting,
    workers,
)
from benchmarks.table import Row

GROUPS: Mapping[str, Callable[[Scale], Iterator[Row]]] = {
    "calls": calls.rows,
    "workers": workers.rows,
    "flood": flood.rows,
    "messages": messages.rows,
    "track": messages.tracked,
    "asking": asking.rows,
    "latency": latency.rows,
    "memory": memory.rows,
    "history": past.history,
    "scrape": past.scrape,
    "later": memory.later,
    "imports": starting.imports,
    "ready": starting.ready,
    "rules": rules.rows,
}
