"""
The buffer's optional disk: what is not acknowledged outlives the process.

One file a session, written by whoever steps the sender: a header, then each
message as it is formed, before it is sent; synced at most once a second. When all
is acknowledged the file goes back to its header, and when it grows over its bound
it is written anew with what the buffer keeps. A disk that fails costs the
guarantee and nothing else: results wait in memory as without a spool, and the
file is tried again every few seconds.

The owner holds a lock on its file, which ends with the process and which a forked
child does not have; a successor adopts what nobody holds (see adoption.py). A
POSIX lock ends as well when the process closes any descriptor of the file, and
does not keep threads apart: `claim` does that within the process.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from zlib import crc32

from orbit_rpc_schema.wire import Json, encode
from orbit_worker.buffer import BUFFER_FULL, MAX_BYTES, Buffer

FORMAT = 1
SUFFIX = ".spool"
UNFINISHED = ".new"  # appended while a file is written that will replace another
SYNC_SECONDS = 1.0
RETRY_SECONDS = 5.0  # of a disk that failed
MAX_FILE = 2 * MAX_BYTES  # so that a file is written anew at most once for each filling of it
PIECE = 262_144  # bytes a write, when many small messages are written

# The spools that this process owns or adopts, by file name. setdefault and pop are
# atomic, and a lock of threads could be held by another thread in a fork.
_claimed: dict[str, object] = {}


def claim(name: str, owner: object) -> bool:
    """Take a file for one owner in this process; False when another has it."""
    return _claimed.setdefault(name, owner) is owner


def release(name: str, owner: object) -> None:
    if _claimed.get(name) is owner:
        del _claimed[name]


def release_all(owner: object) -> None:
    for name, by in list(_claimed.items()):
        if by is owner:
            del _claimed[name]


# ---------------------------------------------------------------- format


def prefix(worker: str) -> str:
    """The worker's name as a file name can hold it; the header has the true one."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", worker)[:100]


def file_name(worker: str, session: str) -> str:
    return f"{prefix(worker)}-{session}{SUFFIX}"


def packed(line: bytes) -> bytes:
    """A line of the wire as a line of the spool: its CRC-32, a space, the line."""
    return b"%08x " % crc32(line) + line


def unpacked(raw: bytes) -> Json | None:
    """The message in a line of the spool; None for one that is damaged."""
    check, _space, line = raw.partition(b" ")
    if not raw.endswith(b"\n") or check != b"%08x" % crc32(line):
        return None
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def header_line(hello: Json, node: str | None) -> bytes:
    """What a successor needs to speak for this session; `node` is whom it spoke to."""
    lasting = {key: value for key, value in hello.items() if key != "running"}
    return packed(encode({"format": FORMAT, "node": node, "hello": lasting}))


def settled_line(seq: int, buffer_full: int) -> bytes:
    """Messages up to this number were counted or dropped; the results that the buffer dropped."""
    return packed(encode({"settled": seq, "bufferFull": buffer_full}))


# ---------------------------------------------------------------- the owner


class Spool:
    """One session's file. Like the buffer: one thread at a time.

    `hello` gives the params of worker.connect. `news` are lines for the log, told by
    whoever holds no lock. Raises nothing of the disk's; an exception from a signal
    handler may cut anything short, and then the file is written anew.
    """

    def __init__(
        self,
        directory: Path,
        worker: str,
        session: str,
        buffer: Buffer,
        hello: Callable[[], Json],
        max_file: int = MAX_FILE,
    ) -> None:
        self.path = directory / file_name(worker, session)
        self.news: list[tuple[int, str]] = []
        self._buffer = buffer
        self._hello = hello
        self._max_file = max_file
        self._node: str | None = None
        self._file: int | None = None
        self._file_node: str | None = None
        self._size = 0
        self._header_size = 0
        self._whole = True  # False while a write is under way, and after one that was cut short
        self._written = 0  # messages up to this number are in the file
        self._settled = (0, 0)  # what the file says of it
        self._sync_at = math.inf  # the time when what was written has to be synced
        self._synced = False  # some of what the file holds
        self._failing = False
        self._retry_at = 0.0
        self._closed = False
        self._left = 0  # messages up to this number are safe in a file that was closed
        claim(self.path.name, self)

    def met(self, node: str | None) -> None:
        """The service has answered and this is its name: a successor speaks to no other."""
        self._node = node

    def keep(self, now: float) -> None:
        """Bring the file up to what the buffer keeps."""
        if self._closed or (self._failing and now < self._retry_at):
            return
        try:
            self._keep(now)
            if now >= self._sync_at:
                self._sync()
        except OSError as error:
            self._fail(error, now)

    def holds(self, seq: int, now: float) -> bool:
        """Sync; True when every message up to this number is safe on the disk."""
        if self._closed:
            return seq <= self._left
        self.keep(now)
        if self._failing or self._file is None or self._written < seq:
            return False
        try:
            self._sync()
        except OSError as error:
            self._fail(error, now)
        return not self._failing

    def due_in(self, now: float) -> float:
        """Seconds until there is something to do without anything new."""
        if self._failing:
            return self._retry_at - now if self._keeps_any() else math.inf
        return self._sync_at - now

    def close(self) -> None:
        """The session ends: remove a file with nothing left in it, leave another to successors."""
        if self._closed:
            return
        self._closed = True
        if self._file is not None:
            try:
                if self._buffer.empty:
                    self.path.unlink()
                elif not self._failing:
                    self._sync()
                    self._left = self._written
            except OSError as error:
                _pass_host_errors(error)  # else the disk's, and nobody is left to try again
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file as it is; in a forked child it is the parent's."""
        self._closed = True
        file, self._file = self._file, None  # first: a fork may come in between
        if file is not None:
            os.close(file)
        release(self.path.name, self)

    # ------------------------------------------------------------ inside

    def _keeps_any(self) -> bool:
        return self._buffer.settled < self._buffer.seq

    def _keep(self, now: float) -> None:
        buffer_full = self._buffer.dropped.get(BUFFER_FULL, 0)
        settled = (self._buffer.settled, buffer_full)
        if not self._keeps_any():
            self._empty()
        elif self._file is None or self._failing or not self._is_current():
            self._rewrite(settled)
            self._sync_at = min(self._sync_at, now + SYNC_SECONDS)
            if self._failing:
                self._failing = False
                self.news.append((logging.INFO, f"the spool {self.path} is written again"))
        else:
            if settled[0] >= self._written:
                self._empty()
            if self._append(settled):
                self._sync_at = min(self._sync_at, now + SYNC_SECONDS)
        self._written = self._buffer.seq

    def _is_current(self) -> bool:
        return self._whole and self._file_node == self._node and self._size <= self._max_file

    def _empty(self) -> None:
        """Back to the header: whatever followed is settled."""
        if self._file is not None and (self._size > self._header_size or not self._whole):
            os.ftruncate(self._file, self._header_size)
            self._size = self._header_size
            self._whole = True
        self._sync_at = math.inf
        self._synced = False

    def _append(self, settled: tuple[int, int]) -> bool:
        lines = [packed(message.line) for message in self._buffer.kept(self._written)]
        follows = self._size > self._header_size
        if settled[1] > self._settled[1] or (follows and settled > self._settled):
            # First: what is dropped must not be sent, once a message tells of it.
            lines.insert(0, settled_line(*settled))
        if not lines:
            return False
        assert self._file is not None
        self._whole = False
        written = _write(self._file, lines)
        self._size += written
        self._settled = settled
        self._whole = True
        return True

    def _rewrite(self, settled: tuple[int, int]) -> None:
        """A new file in the place of the old, with what the buffer keeps."""
        self._whole = False
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + UNFINISHED)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
        file = os.open(unfinished, flags, 0o600)
        try:
            # Before it has its name, so that no successor finds it unlocked.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            node = self._node
            header_size = _write(file, [header_line(self._hello(), node)])
            mark = [settled_line(*settled)] if settled[1] else []
            kept = (packed(message.line) for message in self._buffer.kept(0))
            size = header_size + _write(file, chain(mark, kept))
            if self._synced:  # else the new file has nothing to lose that the old one had
                os.fsync(file)
            unfinished.replace(self.path)
        except BaseException:
            os.close(file)
            unfinished.unlink(missing_ok=True)
            raise
        before, self._file = self._file, file
        if before is not None:
            os.close(before)
        self._file_node, self._header_size, self._size = node, header_size, size
        self._settled = settled
        self._whole = True

    def _sync(self) -> None:
        if self._file is not None:
            if os.fstat(self._file).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "it was deleted")
            if self._sync_at < math.inf:
                os.fsync(self._file)
                self._synced = True
        self._sync_at = math.inf

    def _fail(self, error: OSError, now: float) -> None:
        _pass_host_errors(error)
        if self._file is not None and not self._whole:
            try:
                # What was written before is whole, and better than nothing.
                os.ftruncate(self._file, self._size)
            except OSError as also:
                _pass_host_errors(also)
        self._retry_at = now + RETRY_SECONDS
        self._sync_at = math.inf
        if not self._failing:
            self._failing = True
            why = error.strerror or str(error)
            text = f"the spool {self.path} cannot be written ({why}); results wait in memory alone"
            self.news.append((logging.WARNING, text))


def _write(file: int, lines: Iterable[bytes]) -> int:
    """Write all of it; how many bytes."""
    size = 0
    for piece in _pieces(lines):
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(file, rest) :]
        size += len(piece)
    return size


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    piece: list[bytes] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= PIECE:
            yield b"".join(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece)


def _pass_host_errors(error: OSError) -> None:
    """Raise a TimeoutError of the host's signal handler; the system's errors have a number."""
    if error.errno is None:
        raise error
