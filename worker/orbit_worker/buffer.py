"""
What a worker has recorded and the service has not acknowledged.

Callers append to `open`, one tuple a result, or count an `overflow`, and nothing
else; forming turns what is open into one encoded message with a sequence number,
and a message is kept until it is acknowledged. Bounded in runs and bytes: the
oldest message is dropped first, and counted.

Every step can be interrupted by an exception from a signal handler and taken
again (frameworks raise their time limits so): a message under way is kept in
`_unsettled`, and settling it twice is the same as once. Pure: no clock, no
socket, no lock; one thread at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from orbit_rpc_schema.wire import MAX_LINE, MAX_PROGRESS, Json, heartbeat_line, record_line

MAX_RUNS = 1_000_000  # some 10 MB of plain runs; at 100 a second almost three hours of absence
MAX_BYTES = 32 * 1_048_576
MAX_OPEN = 50_000  # results of one 50 ms; more than a thread can hand over in that time
RUNS_A_MESSAGE = 5_000  # about 60 KB a line, so that a slow service acknowledges often
BUFFER_FULL = "buffer full"  # why the oldest were dropped


class Started(NamedTuple):
    """An entry of `open`: a run has begun."""

    pipeline: str
    started_at_ms: int
    id: str
    attempt: int | None = None


class Withdrawn(NamedTuple):
    """An entry of `open`: a run that was announced has not been executed after all."""

    pipeline: str
    id: str


class Refused(NamedTuple):
    """An entry of `open`: results that cannot be counted, by reason."""

    reason: str
    results: int = 1


class Result(NamedTuple):
    """An entry of `open`: a run or an attempt has ended.

    `detail` is a Detail of the wire without its `queue`, which is the batch's.
    """

    pipeline: str
    duration_ms: float
    success: bool
    queue: str | None = None
    detail: Json | None = None


# The hot path appends a bare (pipeline, duration_ms, success): making a named
# tuple costs four times as much.
Plain = tuple[str, float, bool]
Entry = Plain | Result | Started | Withdrawn | Refused


class Message(NamedTuple):
    """One encoded line, and what it took from `open`."""

    seq: int
    line: bytes
    runs: int
    recorded: int  # the session's total, this message included
    refused: dict[str, int]  # likewise
    bytes_so_far: int
    taken: int
    first: Entry | None
    kind: Literal["record", "sign"] = "record"  # a sign carries no results; it may be lost
    hurry: bool = False


class Buffer:
    """The unacknowledged results of one session."""

    def __init__(self, max_runs: int = MAX_RUNS, max_bytes: int = MAX_BYTES) -> None:
        self.open: list[Entry] = []
        self.seq = 0
        self.recorded = 0
        self.running: dict[tuple[str, str], Started] = {}
        # How far those are that have steps, as a heartbeat tells it.
        self.progress: dict[tuple[str, str], Callable[[], Json]] = {}
        self._max_runs = max_runs
        self._max_bytes = max_bytes
        self._formed: dict[int, Message] = {}
        self._unsettled: Message | None = None
        self._bytes_so_far = 0
        self._refused: dict[str, int] = {}
        self._overflowed = 0
        # Of one thread several times: a signal handler may record while it is held.
        self._overflow_lock = threading.RLock()
        # (up to this number, so many runs): one assignment, so that an interruption
        # cannot come between a message and its count.
        self._dropped_unsent = (0, 0)
        self._dropped_uncounted = (0, 0)
        # Dropped after they had been sent: whether they were counted, the next
        # connect tells.
        self._dropped_sent: deque[tuple[int, int]] = deque()
        self._hurried = 0  # the number of the newest message that says so
        self._sent = 0  # the highest sequence number handed to this connection's socket

    # ------------------------------------------------------------ forming

    def overflow(self) -> None:
        """Count a result for which there was no room in `open`. From any thread."""
        with self._overflow_lock:
            self._overflowed += 1

    def form(self, at_ms: int, *, hurry: bool = False) -> bool:
        """Turn what is open, or its first RUNS_A_MESSAGE, into one message; False: nothing was."""
        if self._overflowed:
            with self._overflow_lock:
                count, self._overflowed = self._overflowed, 0
            self.open.append(Refused("overload", count))
        if self._unsettled is None and self.open:
            self._unsettled = self._build(at_ms, RUNS_A_MESSAGE, hurry=hurry)
        formed = self._unsettled is not None
        if self._unsettled is not None:
            self._settle(self._unsettled)
        self._keep_bounds()  # in any case: an interruption may have cut it short
        return formed

    def form_all(
        self,
        at_ms: int,
        after_each: Callable[[], object] = lambda: None,
        *,
        hurry: bool = False,
    ) -> None:
        """Form what is open now; a caller who goes on recording does not keep us here.

        With `hurry` it says that somebody waits for the acknowledgement.
        """
        for _ in range(len(self.open) // RUNS_A_MESSAGE + 1):
            self.form(at_ms, hurry=hurry)
            after_each()

    def hurry(self) -> None:
        """Form a message that says so of the results before it, where none of theirs does."""
        kept = reversed(self._formed.values())
        if next((m.seq for m in kept if m.kind == "record"), 0) > self._hurried:
            line = record_line(
                seq=self.seq + 1,
                recorded=self.recorded,
                dropped=self.dropped,
                batches=[],
                hurry=True,
            )
            self._settle(self._sign(line, hurry=True))

    def beat(self, cpu_seconds: float, rss_bytes: int, **fields: Any) -> None:
        """Form a heartbeat. It takes a number like any message; a lost one is a legal gap."""
        line = heartbeat_line(
            seq=self.seq + 1,
            recorded=self.recorded,
            dropped=self.dropped,
            in_flight=len(self.running),
            cpu_seconds=cpu_seconds,
            rss_bytes=rss_bytes,
            progress=[tell() for tell in list(self.progress.values())[-MAX_PROGRESS:]],
            **fields,
        )
        self._settle(self._sign(line))

    def _sign(self, line: bytes, *, hurry: bool = False) -> Message:
        return Message(
            seq=self.seq + 1,
            line=line,
            runs=0,
            recorded=self.recorded,
            refused=self._refused,
            bytes_so_far=self._bytes_so_far + len(line),
            taken=0,
            first=None,
            kind="sign",
            hurry=hurry,
        )

    def _build(self, at_ms: int, most: int, *, hurry: bool) -> Message:
        entries = list(islice(self.open, most))
        try:
            content = _content(entries, at_ms)
        except (ArithmeticError, TypeError, ValueError):
            # A number that compares and does not convert; it must not hold up the rest.
            content = _content([e if _converts(e) else Refused("duration") for e in entries], at_ms)
        refused = dict(self._refused)
        for reason, results in content.refused.items():
            refused[reason] = refused.get(reason, 0) + results
        runs = sum(len(batch["durationUs"]) for batch in content.batches)
        recorded = self.recorded + runs + sum(content.refused.values())
        line = record_line(
            seq=self.seq + 1,
            recorded=recorded,
            dropped={**refused, **self._overflow()},
            batches=content.batches,
            started=content.started,
            withdrawn=content.withdrawn,
            hurry=hurry,
        )
        if len(line) > MAX_LINE and len(entries) > 1:
            return self._build(at_ms, len(entries) // 2, hurry=hurry)
        return Message(
            seq=self.seq + 1,
            line=line,
            runs=runs,
            recorded=recorded,
            refused=refused,
            bytes_so_far=self._bytes_so_far + len(line),
            taken=content.taken,
            first=entries[0],
            hurry=hurry,
        )

    def _settle(self, message: Message) -> None:
        """Make the message part of the buffer; safe to repeat after an interruption."""
        self._formed[message.seq] = message
        if message.hurry:
            self._hurried = message.seq
        self.seq = message.seq
        self.recorded = message.recorded
        self._refused = message.refused
        self._bytes_so_far = message.bytes_so_far
        # Each entry is an object of its own, so its identity tells whether it is still there.
        if message.taken and self.open and self.open[0] is message.first:
            del self.open[: message.taken]
        self._unsettled = None

    def _keep_bounds(self) -> None:
        while self._formed and (
            self.unacknowledged > self._max_runs or self._held_bytes() > self._max_bytes
        ):
            message = self._formed[self._first_seq()]
            if message.seq > self._sent:
                self._dropped_unsent = _counted(self._dropped_unsent, message.seq, message.runs)
            elif not self._dropped_sent or self._dropped_sent[-1][0] < message.seq:
                self._dropped_sent.append((message.seq, message.runs))
            self._formed.pop(message.seq, None)

    # ------------------------------------------------------------ sending

    def after(self, seq: int) -> Message | None:
        """The first kept message with a higher number."""
        message = next(self._after(seq), None)
        if message is not None:
            self._sent = max(self._sent, message.seq)
        return message

    def kept(self, seq: int) -> Iterator[Message]:
        """The kept messages of results with a higher number, for whoever stores them."""
        return (message for message in self._after(seq) if message.kind == "record")

    def _after(self, seq: int) -> Iterator[Message]:
        for number in range(max(seq, self._first_seq() - 1) + 1, self.seq + 1):
            message = self._formed.get(number)
            if message is not None:
                yield message

    def acknowledge(self, seq: int) -> None:
        """Forget what is counted."""
        while self._formed:
            first = self._first_seq()
            if first > seq:
                break
            self._formed.pop(first, None)
        while self._dropped_sent and self._dropped_sent[0][0] <= seq:
            self._dropped_sent.popleft()

    def resume(self, acked: int) -> None:
        """A connection begins where the service stands; heartbeats of the past stay behind."""
        self.acknowledge(acked)
        while self._dropped_sent:
            self._dropped_uncounted = _counted(self._dropped_uncounted, *self._dropped_sent[0])
            self._dropped_sent.popleft()
        self._sent = acked  # what an older connection carried beyond that is not counted
        for number, message in list(self._formed.items()):
            if message.kind == "sign":
                del self._formed[number]

    # ------------------------------------------------------------ figures

    @property
    def empty(self) -> bool:
        """True when everything that was recorded is acknowledged or dropped."""
        # The list is made in one go: any thread may ask.
        return not self.open and not any(m.kind == "record" for m in list(self._formed.values()))

    def acknowledged(self, seq: int) -> bool:
        """True when every result up to this message is acknowledged or dropped."""
        return not any(m.kind == "record" and m.seq <= seq for m in self._formed.values())

    @property
    def settled(self) -> int:
        """Every result up to this message is acknowledged or dropped."""
        first = next((m.seq for m in self._formed.values() if m.kind == "record"), self.seq + 1)
        return first - 1

    @property
    def unacknowledged(self) -> int:
        """Results in formed messages, by the totals that these carry."""
        first = self._formed.get(self._first_seq())
        return 0 if first is None else self.recorded - first.recorded + first.runs

    @property
    def dropped(self) -> dict[str, int]:
        """The session's total of results that were not sent and will not be, by reason."""
        return {**self._refused, **self._overflow()}

    def _overflow(self) -> dict[str, int]:
        settled = self._dropped_unsent[1] + self._dropped_uncounted[1]
        lost = settled + sum(runs for _seq, runs in self._dropped_sent)
        return {BUFFER_FULL: lost} if lost else {}

    def _held_bytes(self) -> int:
        first = self._formed.get(self._first_seq())
        return 0 if first is None else self._bytes_so_far - first.bytes_so_far + len(first.line)

    def _first_seq(self) -> int:
        return next(iter(self._formed), self.seq + 1)

    def results(self) -> Iterator[Result]:
        """The open results, for whoever captures instead of sending."""
        for entry in self.open:
            if not isinstance(entry, Started | Withdrawn | Refused):
                yield Result(*entry)


class Content(NamedTuple):
    """What a message tells, and how many entries it took for that."""

    batches: list[Json]
    started: list[Json]
    withdrawn: list[Json]
    refused: dict[str, int]
    taken: int


def _content(entries: Sequence[Entry], at_ms: int) -> Content:
    """Sort entries into columns. Raises what a duration raises that does not convert."""
    batches: dict[str | tuple[str, str], Json] = {}
    started: dict[tuple[str, str], Started] = {}
    withdrawn: list[Json] = []
    refused: dict[str, int] = {}
    ended: set[tuple[str, str]] = set()
    taken = len(entries)
    for position, entry in enumerate(entries):
        if type(entry) is tuple:  # plain, as nearly all are; this way is kept short for them
            pipeline, duration_ms, success = entry  # type: ignore[misc]  # no named tuple is one
            batch = batches.get(pipeline)
            if batch is None:
                batch = batches[pipeline] = _batch(pipeline, None, at_ms)
            durations = batch["durationUs"]
            if not success:
                batch["failed"].append(len(durations))
            durations.append(duration_ms)
        elif isinstance(entry, Result):
            _add(batches, started, ended, entry, at_ms)
        elif isinstance(entry, Started):
            if (entry.pipeline, entry.id) in ended:
                # The service takes a message's starts before all else: a run that
                # begins again does so in the next.
                taken = position
                break
            started[entry.pipeline, entry.id] = entry
        elif isinstance(entry, Withdrawn):
            key = (entry.pipeline, entry.id)
            if started.pop(key, None) is None:
                withdrawn.append({"id": entry.id, "pipeline": entry.pipeline})
            ended.add(key)
        elif isinstance(entry, Refused):
            refused[entry.reason] = refused.get(entry.reason, 0) + entry.results
    for batch in batches.values():
        # Whole microseconds, half up; as in _converts.
        batch["durationUs"] = [int(float(ms) * 1000 + 0.5) for ms in batch["durationUs"]]
    starts = [start_json(start) for start in started.values()]
    return Content(list(batches.values()), starts, withdrawn, refused, taken)


def _batch(pipeline: str, queue: str | None, at_ms: int) -> Json:
    batch: Json = {"pipeline": pipeline, "at": at_ms, "durationUs": [], "failed": []}
    if queue is not None:
        batch["queue"] = queue
    return batch


def _add(
    batches: dict[str | tuple[str, str], Json],
    started: dict[tuple[str, str], Started],
    ended: set[tuple[str, str]],
    result: Result,
    at_ms: int,
) -> None:
    """Put one result into its batch's columns; its duration is still in milliseconds."""
    pipeline, duration_ms, success, queue, detail = result
    key = pipeline if queue is None else (pipeline, queue)
    batch = batches.get(key)
    if batch is None:
        batch = batches[key] = _batch(pipeline, queue, at_ms)
    index = len(batch["durationUs"])
    batch["durationUs"].append(duration_ms)
    if not success:
        batch["failed"].append(index)
    if not detail:
        return
    if "id" in detail:
        run = pipeline, detail["id"]
        ended.add(run)
        # Begun and ended in one message: there is nothing to announce.
        if started.pop(run, None) is not None:
            detail = {**detail, "began": True}
    batch.setdefault("details", {})[index] = detail


def _converts(entry: Entry) -> bool:
    """False for a result whose duration is no number, though it compares like one."""
    if isinstance(entry, Started | Withdrawn | Refused):
        return True
    try:
        int(float(entry[1]) * 1000 + 0.5)
    except (ArithmeticError, TypeError, ValueError):
        return False
    return True


def _counted(so_far: tuple[int, int], seq: int, runs: int) -> tuple[int, int]:
    """(number, sum) with one message more; the same message again changes nothing."""
    return (seq, so_far[1] + runs) if seq > so_far[0] else so_far


def start_json(start: Started) -> Json:
    """A Start of the wire."""
    known = {} if start.attempt is None else {"attempt": start.attempt}
    return {"id": start.id, "pipeline": start.pipeline, "startedAt": start.started_at_ms, **known}
