"""
The wire between a worker and the service: framing, names, limits, encoders.

Messages are JSON-RPC 2.0, one UTF-8 line each, in both directions. Everything
here is a value or a pure function on the standard library, so that the client
has no dependencies and a client in another language has a reference to read.
`docs/protocol.md` describes the same in prose.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PROTOCOL = 1

# Limits. The service sends them as `limits` in the answer to worker.connect.
MAX_LINE = 1_048_576  # bytes; about 80,000 runs, and the most one client can make us hold
MAX_NAME = 200  # characters of a name (worker, pipeline, queue, step) or of a run id
MAX_MESSAGE = 1_000  # characters of an error message
MAX_TRACEBACK = 8_000  # characters; the innermost frames are last, so the end is kept
MAX_STEPS = 100  # steps of one run
MAX_PROGRESS = 20  # runs in flight whose steps a heartbeat tells
MAX_PROGRESS_STEPS = 50  # of each
MAX_RUNNING = 10_000  # runs of one session that have begun and not ended
MAX_DURATION_US = 315_576_000_000_000  # ten years; whatever is longer is a broken clock
MAX_INT = 2**63 - 1  # what SQLite and PostgreSQL can store
MAX_AHEAD_MS = 60_000  # a time further in the future than this is set to its arrival

LIMITS: Mapping[str, int] = {
    "line": MAX_LINE,
    "name": MAX_NAME,
    "message": MAX_MESSAGE,
    "traceback": MAX_TRACEBACK,
    "steps": MAX_STEPS,
    "running": MAX_RUNNING,
    "durationUs": MAX_DURATION_US,
    "aheadMs": MAX_AHEAD_MS,
}

# How often each side owes the other a sign of life.
HEARTBEAT_SECONDS = 10.0
SILENT_AFTER_SECONDS = 30.0

DEFAULT_PIPELINE = "default"
WORKER_LOST = "WorkerLost"  # the error type of a run whose worker was killed

Json = dict[str, Any]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def is_name(text: str) -> bool:
    """True for 1 to 200 characters without control characters or lone surrogates."""
    return 0 < len(text) <= MAX_NAME and _CONTROL.search(text) is None


def as_name(text: str) -> str:
    """The nearest legal name: control characters become spaces, the rest is cut."""
    if str.isprintable(text) and 0 < len(text) <= MAX_NAME and text == text.strip():
        return text  # as nearly all are; a third of what it costs otherwise
    return _CONTROL.sub(" ", text).strip()[:MAX_NAME] or "unnamed"


def as_text(text: str, limit: int) -> str:
    """A storable text of at most `limit` characters: NUL and lone surrogates become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text[:limit])


def as_traceback(text: str) -> str:
    """Like `as_text`, but it is the end that is kept: there the error is."""
    return as_text(text[-MAX_TRACEBACK:], MAX_TRACEBACK)


# ---------------------------------------------------------------- encoding

# Made once: json.dumps makes one a call, a sixth of what encoding a message of one run costs.
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def encode(message: Mapping[str, Any]) -> bytes:
    """One message as one line, newline included. Raises ValueError for NaN and infinity."""
    return _ENCODER.encode(message).encode() + b"\n"


def notification(method: str, params: Mapping[str, Any]) -> Json:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def request(id: int | str, method: str, params: Mapping[str, Any] | Sequence[Any]) -> Json:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


def connect_params(
    *,
    session: str,
    worker: str,
    started_at_ms: int,
    running: Sequence[Json] = (),
    version: str | None = None,
    framework: str | None = None,
    slots: int | None = None,
    queues: Sequence[str] = (),
) -> Json:
    """The params of worker.connect for this process."""
    runtime = f"{sys.implementation.name} {sys.version.split()[0]}"
    params: Json = {
        "protocol": PROTOCOL,
        "session": session,
        "worker": worker,
        "startedAt": started_at_ms,
        "pid": os.getpid(),
        "host": as_name(socket.gethostname()),
        "runtime": f"{runtime}, {as_name(framework)}" if framework else runtime,
        "running": list(running),
    }
    if version:
        params["version"] = as_name(version)
    if slots:
        params["slots"] = slots
    if queues:
        params["queues"] = list(queues)
    return params


def record_line(
    *,
    seq: int,
    recorded: int,
    dropped: Mapping[str, int],
    batches: Sequence[Json],
    started: Sequence[Json] = (),
    withdrawn: Sequence[Json] = (),
    hurry: bool = False,
) -> bytes:
    """One runs.record line. `recorded` and `dropped` are the session's totals so far.

    With `hurry` it says that somebody waits for the acknowledgement.
    """
    params: Json = {"seq": seq, "recorded": recorded, "dropped": dropped, "batches": batches}
    if started:
        params["started"] = started
    if withdrawn:
        params["withdrawn"] = withdrawn
    if hurry:
        params["hurry"] = True
    return encode(notification("runs.record", params))


def heartbeat_line(
    *,
    seq: int,
    recorded: int,
    dropped: Mapping[str, int],
    in_flight: int,
    cpu_seconds: float,
    rss_bytes: int,
    queues: Mapping[str, int] | None = None,
    oldest: Mapping[str, int] | None = None,
    last_report_at_ms: int | None = None,
    progress: Sequence[Json] = (),
) -> bytes:
    """One worker.heartbeat line."""
    params: Json = {
        "seq": seq,
        "recorded": recorded,
        "dropped": dropped,
        "inFlight": in_flight,
        "cpuSeconds": round(cpu_seconds, 3),
        "rssBytes": rss_bytes,
    }
    if queues is not None:
        params["queues"] = dict(queues)
    if oldest:
        params["oldest"] = dict(oldest)
    if last_report_at_ms is not None:
        params["lastReportAt"] = last_report_at_ms
    if progress:
        params["progress"] = list(progress)
    return encode(notification("worker.heartbeat", params))


def connect_line(id: int | str, params: Json) -> bytes:
    """One worker.connect line; of the running runs as many, the newest, as the limits allow."""
    while True:
        params["running"] = params["running"][-MAX_RUNNING:]
        line = encode(request(id, "worker.connect", params))
        if len(line) <= MAX_LINE:
            return line
        params["running"] = params["running"][len(params["running"]) // 2 + 1 :]


# ---------------------------------------------------------------- framing


class LineTooLong:
    """Stands in the stream of lines where one was over the limit and has been skipped."""


class LineDecoder:
    """Cut a stream of bytes into lines; bytes in, lines out, no I/O.

    A line over `limit` bytes is skipped up to its newline and yields LineTooLong
    once, as soon as it is known to be too long, so that at most `limit` bytes and
    one read are ever held.
    """

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._partial = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | LineTooLong]:
        """Yield every line that `data` completes, without its newline; empty ones are left out."""
        *complete, rest = data.split(b"\n")
        for piece in complete:
            if self._skipping:
                self._skipping = False
                continue
            if self._partial:
                self._partial += piece
                piece = bytes(self._partial)
                self._partial.clear()
            if len(piece) > self._limit:
                yield LineTooLong()
            elif piece.strip():
                yield piece
        if self._skipping:
            return
        self._partial += rest
        if len(self._partial) > self._limit:
            self._partial.clear()
            self._skipping = True
            yield LineTooLong()

    @property
    def unfinished(self) -> bool:
        """True when the stream stands in the middle of a line."""
        return self._skipping or bool(self._partial)


# ---------------------------------------------------------------- defaults that meet

# sun_path holds 108 bytes with its NUL on Linux, 104 on macOS; Python allows no longer path.
MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103


def default_socket_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where worker and service meet when neither was told: one function for both sides.

    ORBIT_SOCKET, else /run/orbit-metrics/worker.sock if that directory exists, else
    the user's runtime directory, else a directory of this user's below the
    temporary one.
    """
    if given := environ.get("ORBIT_SOCKET"):
        return Path(given)
    system = Path("/run/orbit-metrics")
    if system.is_dir():
        return system / "worker.sock"
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "orbit-metrics" / "worker.sock"
    # Not tempfile.gettempdir(), which writes to find out, and raises where it may not.
    temporary = environ.get("TMPDIR") or "/tmp"  # noqa: S108  # a directory of ours, 0700, in it
    return Path(temporary) / f"orbit-metrics-{os.getuid()}" / "worker.sock"


def default_worker_name(environ: Mapping[str, str] = os.environ) -> str:
    """ORBIT_WORKER_NAME, else `<host>:<program>`: never a pid, so that a restart keeps its name."""
    if given := environ.get("ORBIT_WORKER_NAME"):
        return as_name(given)
    program = Path(sys.argv[0] if sys.argv and sys.argv[0] else sys.executable)
    # `python -m package` names the file __main__.py; the package says more.
    stem = program.parent.name if program.stem == "__main__" else program.stem
    # `python -c` and a shell have no program; they name it "-c" and "".
    return as_name(f"{socket.gethostname()}:{'python' if stem in ('', '-c') else stem}")
