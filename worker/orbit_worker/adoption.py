"""
Send what an ended process of the same worker has left in its spool.

In a thread of its own, over a connection of its own, under the session of the
process that ended; the service says what of it it has counted. Whoever holds the
file's lock does it, and deletes the file while holding it.

What is lost is counted as dropped, by reason. Where a later message of the old
session has it in its total, a last heartbeat of that session tells the loss;
where none has (a file of another node or too old, a tail that is cut off), the
adopter's own session does, after the file is gone: nothing is counted twice.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orbit_rpc_schema.wire import MAX_LINE, Json, connect_line, encode, heartbeat_line, notification
from orbit_worker.buffer import BUFFER_FULL, RUNS_A_MESSAGE
from orbit_worker.connection import Connection, Foreign, Gone, wait
from orbit_worker.spool import (
    FORMAT,
    SUFFIX,
    UNFINISHED,
    claim,
    prefix,
    release,
    release_all,
    unpacked,
)

LOOK_SECONDS = 60.0
SILENCE_SECONDS = 10.0  # without any progress of the service
KEPT_MS = 24 * 3_600_000  # the service forgets sessions after that
ABANDONED_SECONDS = 60.0  # after which an unfinished file is one of nobody
READ_BYTES = 65_536
UNKNOWN_SEQ = 2**63  # higher than what a service acknowledges

DAMAGED = "spool damaged"
OTHER_NODE = "spool of another node"
TOO_OLD = "spool too old"
LOST = "results lost with %s (%s): %d"

log = logging.getLogger("orbit_worker")


# ---------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Line:
    """A message in the file, and where it stands there."""

    seq: int
    results: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Totals:
    """What a message says of its session, and its own runs."""

    seq: int
    recorded: int
    dropped: Mapping[str, int]
    runs: int

    def between(self, before: _Totals | None) -> int:
        """Results of the messages that are missing between the two; 1 when that is unknown."""
        if before is None:
            return 1
        told = (self.recorded - before.recorded) - (self._refused() - before._refused()) - self.runs
        return max(told, 0)

    def _refused(self) -> int:
        # What the buffer dropped was of older messages.
        return sum(n for reason, n in self.dropped.items() if reason != BUFFER_FULL)


@dataclass(slots=True)
class Contents:
    """What a spool holds: what is not settled, and what is lost."""

    header: Json | None = None
    lines: list[Line] = field(default_factory=list)
    damages: list[tuple[int, int]] = field(default_factory=list)  # (up to this number, results)
    tail: tuple[int, int] = (0, 0)  # likewise, for what follows the last whole message
    last: _Totals | None = None
    settled: int = 0
    buffer_full: int = 0  # results that the buffer has dropped, told by a message or not
    newest_ms: int | None = None

    @property
    def results(self) -> int:
        return sum(line.results for line in self.lines) + self.lost(0) + self.tail[1]

    def lost(self, acked: int) -> int:
        """Results of damaged lines that the service has not counted, the tail's excepted."""
        return sum(results for seq, results in self.damages if seq > acked)

    def losses(self, acked: int) -> dict[str, int]:
        """What the last message did not tell of the results that are in its total."""
        if self.last is None or self.last.seq <= acked:
            return {}
        told = self.last.dropped.get(BUFFER_FULL, 0)
        losses = {DAMAGED: self.lost(acked), BUFFER_FULL: self.buffer_full - told}
        return {reason: results for reason, results in losses.items() if results > 0}


def read_spool(file: int) -> Contents:
    """Read the whole file, cutting off and skipping what is damaged; never raises for it."""
    contents = Contents()
    damaged: list[bytes] = []
    for number, (start, raw) in enumerate(_raw_lines(file)):
        message = unpacked(raw)
        if number == 0:
            contents.header = _header(message)
        elif message is not None and type(message.get("settled")) is int:
            contents.settled = message["settled"]
            contents.buffer_full = int(message.get("bufferFull", 0))
        elif message is None or (totals := _totals(message)) is None:
            damaged.append(raw)
        else:
            if damaged:
                contents.damages.append((totals.seq - 1, totals.between(contents.last)))
                damaged.clear()
            contents.last = totals
            contents.lines.append(Line(totals.seq, totals.runs, start, start + len(raw)))
            contents.newest_ms = max(contents.newest_ms or 0, _newest(message)) or None
    if damaged:
        contents.tail = _cut_off(damaged[-1], contents.last)
    contents.lines = [line for line in contents.lines if line.seq > contents.settled]
    return contents


def _raw_lines(file: int) -> Iterator[tuple[int, bytes]]:
    """Each line with its offset and its newline; what is longer than any line comes in parts."""
    rest, start, position = b"", 0, 0
    while data := os.pread(file, READ_BYTES, position):
        position += len(data)
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield start, line + b"\n"
            start += len(line) + 1
        if len(rest) > 2 * MAX_LINE:
            yield start, rest
            start, rest = position, b""
    if rest:
        yield start, rest


def _header(message: Json | None) -> Json | None:
    if message is None or message.get("format") != FORMAT:
        return None
    hello = message.get("hello")
    return message if isinstance(hello, dict) and isinstance(hello.get("worker"), str) else None


def _totals(message: Json) -> _Totals | None:
    try:
        params = message["params"]
        runs = sum(len(batch["durationUs"]) for batch in params["batches"])
        return _Totals(int(params["seq"]), int(params["recorded"]), dict(params["dropped"]), runs)
    except (KeyError, TypeError, ValueError):
        return None


def _newest(message: Json) -> int:
    times = [batch.get("at") for batch in message["params"]["batches"]]
    return max((at for at in times if type(at) is int), default=0)


_HEAD = re.compile(
    rb'[0-9a-f]{8} [^\[]*?"seq":(\d{1,15}),"recorded":(\d{1,15}),"dropped":(\{[^}]*\})'
)


def _cut_off(raw: bytes, before: _Totals | None) -> tuple[int, int]:
    """What the beginning of the last line tells; one result lost where it does not reach so far."""
    head = None if raw.endswith(b"\n") else _HEAD.match(raw)
    if head is None:
        return UNKNOWN_SEQ, 1
    seq, recorded = int(head[1]), int(head[2])
    try:
        dropped = json.loads(head[3])
    except ValueError:
        return seq, 1
    return seq, min(_Totals(seq, recorded, dropped, 0).between(before), RUNS_A_MESSAGE)


# ---------------------------------------------------------------- sending


class _Talk:
    """The connection on which an ended session speaks once more. Raises Gone and Foreign."""

    def __init__(self, connection: Connection, hello: Json) -> None:
        self._connection = connection
        self._greeted = False
        self.acked = 0
        self.node: object = None
        self._say(connect_line("resume", {**hello, "running": [], "resume": True}))
        self._listen(lambda: self._greeted)

    def send(self, line: bytes) -> None:
        self._say(line)
        self._hear(0.0)  # acknowledgements that nobody reads would hold up the service

    def tell(self, last: _Totals, losses: Mapping[str, int]) -> None:
        """The session's last totals, with what they do not have."""
        dropped = Counter(last.dropped) + Counter(losses)
        line = heartbeat_line(
            seq=last.seq + 1,
            recorded=last.recorded,
            dropped=dropped,
            in_flight=0,
            cpu_seconds=0,
            rss_bytes=0,
        )
        self.send(line)
        self.wait_for(last.seq + 1)

    def wait_for(self, seq: int) -> None:
        self._listen(lambda: self.acked >= seq)

    def leave(self) -> None:
        self._say(encode(notification("worker.disconnect", {"reason": "spool"})))

    def _say(self, line: bytes) -> None:
        self._connection.send(line)
        self._listen(lambda: not self._connection.busy)

    def _listen(self, until: Callable[[], bool]) -> None:
        silent_at = time.monotonic() + SILENCE_SECONDS
        while not until():
            if self._hear(max(silent_at - time.monotonic(), 0.0)):
                silent_at = time.monotonic() + SILENCE_SECONDS
            elif time.monotonic() >= silent_at:
                raise Gone("it does not answer")

    def _hear(self, timeout: float) -> bool:
        """Wait for what can be read or sent; True when something came."""
        wait(self._connection, None, timeout)
        self._connection.push()
        messages = self._connection.read()
        for message in messages:
            self._take(message)
        return bool(messages)

    def _take(self, message: Json) -> None:
        try:
            if message.get("method") == "runs.acked":
                self.acked = max(self.acked, int(message["params"]["seq"]))
            elif message.get("id") == "resume" and "error" not in message:
                self.acked, self.node = int(message["result"]["acked"]), message["result"]["node"]
                self._greeted = True
            elif message.get("id") == "resume":
                raise Gone(f"it refuses: {message['error'].get('message')}")
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Foreign from None


# ---------------------------------------------------------------- the successor


class Adopter:
    """Looks for spools of this worker whose owner is gone, while connected.

    `dropped` takes a reason and a number of results; it is called in another thread.
    """

    def __init__(
        self, directory: Path, worker: str, socket: Path, dropped: Callable[[str, int], object]
    ) -> None:
        self._directory = directory
        self._worker = worker
        self._socket = socket
        self._dropped = dropped
        self._node: str | None = None
        self._look_at = 0.0
        self._looking: threading.Thread | None = None
        self._stopping = False
        self._file: int | None = None
        self._connection: Connection | None = None
        self._complained: set[str] = set()

    def met(self, node: str | None) -> None:
        self._node = node
        self._look_at = 0.0  # the service was away: what ended meanwhile waits now

    def look_when_due(self, now: float) -> None:
        """Start a look; at most one at a time, and one each LOOK_SECONDS. Never waits."""
        if self._stopping or now < self._look_at or self._looking is not None:
            return
        self._look_at = now + LOOK_SECONDS
        self._looking = threading.Thread(target=self.look, name="orbit-worker-spool", daemon=True)
        try:
            self._looking.start()
        except RuntimeError:  # at a limit of the system, or the interpreter is leaving
            self._looking = None

    def stop(self) -> None:
        """Begin with no further file."""
        self._stopping = True

    def abandon(self) -> None:
        """In a forked child: let go of what the parent's thread has in hand."""
        self._stopping = True
        if self._connection is not None:
            self._connection.close()
        if self._file is not None:
            os.close(self._file)
        release_all(self)

    # ------------------------------------------------------------ in the thread

    def look(self) -> None:
        """Adopt what is there now. Raises nothing."""
        try:
            for name in self._names():
                if self._stopping:
                    return
                # An owner claims its file under both names: to close the unfinished one
                # here would end the lock that the finished one goes on with.
                owned = name.removesuffix(UNFINISHED)
                if not self._is_ripe(name):
                    continue
                if claim(owned, self):
                    try:
                        self._open(self._directory / name)
                    finally:
                        release(owned, self)
        except Exception:
            log.exception("looking for spools of ended processes failed")
        finally:
            self._looking = None

    def _names(self) -> list[str]:
        """This worker's spools and unfinished ones, as far as their names tell."""
        try:
            names = sorted(path.name for path in self._directory.iterdir())
        except OSError:
            return []  # not made yet, or not ours to read
        return [
            name
            for name in names
            if name.removesuffix(UNFINISHED).endswith(SUFFIX)
            and name.rpartition("-")[0] == prefix(self._worker)
        ]

    def _is_ripe(self, name: str) -> bool:
        """Not for an unfinished file of somebody who is about to lock it."""
        if not name.endswith(UNFINISHED):
            return True
        try:
            return time.time() - (self._directory / name).stat().st_mtime > ABANDONED_SECONDS
        except OSError:
            return False  # it has its name by now

    def _open(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):  # else another successor was quicker
                self._complain(path, error.strerror or str(error))
            return
        try:
            if _is_left(self._file, path):
                self._adopt(self._file, path)
        except (OSError, Gone) as error:
            self._complain(path, str(error))
        except Foreign:
            self._complain(path, "what answers is another program")
        finally:
            file, self._file = self._file, None
            os.close(file)

    def _adopt(self, file: int, path: Path) -> None:
        """Send it or drop it; the lock is held."""
        written_at = os.fstat(file).st_mtime
        if path.name.endswith(UNFINISHED):
            path.unlink()  # its owner ended in the middle; what it was to replace is there
            return
        contents = read_spool(file)
        header = contents.header
        newest_ms = contents.newest_ms or int(written_at * 1000)
        if header is not None and header["hello"]["worker"] != self._worker:
            return
        if header is None:
            self._drop(path, DAMAGED, contents.results)
        elif header["node"] not in (None, self._node):
            self._drop(path, OTHER_NODE, contents.results)
        elif newest_ms < time.time() * 1000 - KEPT_MS:
            self._drop(path, TOO_OLD, contents.results)
        elif not contents.lines and not contents.tail[1]:
            path.unlink()
        else:
            self._send(file, path, header["hello"], contents)

    def _send(self, file: int, path: Path, hello: Json, contents: Contents) -> None:
        self._connection = connection = Connection(self._socket)
        try:
            talk = _Talk(connection, hello)
            if talk.node != self._node:
                raise Gone("another service has taken its place")
            acked = talk.acked
            left = [line for line in contents.lines if line.seq > acked]
            for line in left:
                if self._stopping:
                    return
                raw = os.pread(file, line.end - line.start, line.start)
                talk.send(raw.partition(b" ")[2])
            losses = contents.losses(acked)
            if left:
                talk.wait_for(left[-1].seq)
            if losses and contents.last is not None:
                talk.tell(contents.last, losses)
            talk.leave()
        finally:
            self._connection = None
            connection.close()
        sent = sum(line.results for line in left)
        log.info("sent %d results of an ended process from %s", sent, path)
        for reason, results in losses.items():
            log.warning(LOST, path, reason, results)
        self._drop(path, DAMAGED, contents.tail[1] if contents.tail[0] > acked else 0)

    def _drop(self, path: Path, reason: str, results: int) -> None:
        """Delete the file, and count what was lost with it."""
        path.unlink()
        if results:
            log.warning(LOST, path, reason, results)
            self._dropped(reason, results)

    def _complain(self, path: Path, why: str) -> None:
        """One line a file, however often it is tried."""
        if path.name not in self._complained:
            self._complained.add(path.name)
            log.warning("the spool %s of an ended process waits (%s)", path, why)


def _is_left(file: int, path: Path) -> bool:
    """Take the lock; False when the owner lives, or when another successor was quicker."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        here, there = os.fstat(file), path.stat()
    except (BlockingIOError, PermissionError, FileNotFoundError):
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
