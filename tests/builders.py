"""Builders of the data that tests speak about; every field has a sensible value."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orbit_rpc_schema.messages import Batch, Connect, Detail, Error, Heartbeat, Record, Start
from orbit_rpc_schema.wire import PROTOCOL
from orbit_service.alerts.messages import Item, Message
from orbit_service.core.collector import Collector
from orbit_service.core.sessions import Session

T0 = 1_700_000_000_000  # a fixed moment, epoch milliseconds, on a whole ten seconds
SECOND = 1_000
MINUTE = 60_000
HOUR = 3_600_000
MS = 1_000  # microseconds

ENTRY = [sys.executable, "-c", "from orbit_service.entry import main; main()"]


def a_connect(**fields: Any) -> Connect:
    defaults: dict[str, Any] = {
        "protocol": PROTOCOL,
        "session": "s1",
        "worker": "mailer",
        "started_at": T0,
        "pid": 4711,
        "host": "box",
    }
    return Connect(**{**defaults, **fields})


def a_batch(*durations_us: int, **fields: Any) -> Batch:
    defaults: dict[str, Any] = {"pipeline": "send", "at": T0}
    return Batch(duration_us=list(durations_us), **{**defaults, **fields})


def a_record(
    seq: int = 1, *batches: Batch, started: list[Start] | None = None, **fields: Any
) -> Record:
    counted = sum(len(batch.duration_us) for batch in batches)
    defaults: dict[str, Any] = {"recorded": counted, "started": started or []}
    return Record(seq=seq, batches=list(batches), **{**defaults, **fields})


def a_start(id: str = "r1", **fields: Any) -> Start:
    return Start(**{"id": id, "pipeline": "send", "started_at": T0, **fields})


def a_result(id: str, duration_us: int = MS, *, failed: bool = False, **detail: Any) -> Batch:
    """A batch of one run that has an id."""
    return a_batch(duration_us, failed=[0] if failed else [], details={0: Detail(id=id, **detail)})


def an_item(**fields: Any) -> Item:
    """An alert as it is said to people."""
    defaults: dict[str, Any] = {
        "alert": "a1",
        "saying": "firing",
        "rule": "many failures",
        "severity": "critical",
        "labels": {"pipeline": "census"},
        "summary": "census: error rate over 5m is 40 %, above 10 %",
        "since_ms": T0 - 2 * MINUTE,
        "fired_ms": T0 - MINUTE,
        "at_ms": T0,
        "metric": "error_rate",
        "value": 40.0,
        "threshold": 10.0,
    }
    return Item(**{**defaults, **fields})


def a_message(*items: Item, **fields: Any) -> Message:
    defaults: dict[str, Any] = {"key": "k-1", "at_ms": T0, "node": "box"}
    return Message(items=list(items), **{**defaults, **fields})


def an_error(type: str = "ValueError", message: str = "no") -> Error:
    return Error(type=type, message=message)


def a_heartbeat(seq: int = 1, **fields: Any) -> Heartbeat:
    defaults: dict[str, Any] = {
        "recorded": 0,
        "in_flight": 0,
        "cpu_seconds": 0.1,
        "rss_bytes": 1_000_000,
    }
    return Heartbeat(seq=seq, **{**defaults, **fields})


def a_session(
    collector: Collector, session: str = "s1", *, now_ms: int = T0, **fields: Any
) -> Session:
    """A session that has connected to the collector."""
    collector.connect(a_connect(session=session, **fields), now_ms)
    return collector.sessions[session]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a process of ours that touches nothing outside `folder`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORBIT_", "METRICS_"))}
    return {
        **clean,
        "ORBIT_SOCKET": str(folder / "worker.sock"),
        "ORBIT_HTTP": "127.0.0.1:0",
        "XDG_STATE_HOME": str(folder / "state"),
        **more,
    }


def command(folder: Path, *arguments: str, timeout: float = 60, **more: str) -> Any:
    """Run `orbit-metrics ...` to its end; a CompletedProcess with texts."""
    return subprocess.run(
        [*ENTRY, *arguments],
        env=environment(folder, **more),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def a_port() -> Iterator[int]:
    """A port of 127.0.0.1 for a server to listen on, more than once; nobody else is given it.

    Linux lets the server bind it too, because both say SO_REUSEADDR and this one never listens.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def until(condition: Callable[[], Any], seconds: float = 40.0) -> Any:
    """The first true value of `condition`; fails when there is none in time.

    The time is for a machine that does much else; what is asserted is never a time.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s")
        time.sleep(0.01)  # between two looks at something outside; not a wait for luck
    return value
