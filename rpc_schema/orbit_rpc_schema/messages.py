"""
What a worker sends, as typed structs that the service decodes into.

The writing half of the contract; `procedures.py` is the reading half. The two
use different libraries for a reason: these are decoded thousands of times a
second and hold columns of integers, which msgspec reads straight into lists.
Field names are camelCase in JSON. Unknown fields are passed over, so that a
newer client may send more.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from orbit_rpc_schema.wire import (
    MAX_DURATION_US,
    MAX_INT,
    MAX_NAME,
    MAX_PROGRESS,
    MAX_PROGRESS_STEPS,
    MAX_RUNNING,
)

Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
SequenceNumber = Annotated[int, Meta(ge=1, le=MAX_INT)]
EpochMs = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]  # to the end of the year 9999
DurationUs = Annotated[int, Meta(ge=0, le=MAX_DURATION_US)]
Attempt = Annotated[int, Meta(ge=1, le=1_000_000)]

Text = Annotated[str, Meta(max_length=MAX_NAME)]
ByReason = Annotated[dict[Annotated[str, Meta(max_length=50)], Count], Meta(max_length=50)]


class Message(Struct, rename="camel", gc=False):
    """What all of them share: camelCase names.

    The garbage collector passes them over: none refers to itself, and of the newest runs'
    details there may be tens of thousands, which it would look at again and again.
    """


class Start(Message):
    """A run that has begun and not ended; the attempt where it is known."""

    id: str
    pipeline: str
    started_at: EpochMs
    attempt: Attempt | None = None


class Withdrawal(Message):
    """A start that was announced and led to nothing: no run, and no failure."""

    id: str
    pipeline: str


class Error(Message):
    type: str
    message: str = ""
    traceback: str | None = None


class Step(Message):
    """A named part of a run; `attempts` counts its tries, one if there was no retry."""

    name: str
    duration_us: DurationUs
    failed: bool = False
    attempts: Attempt = 1


class Progress(Message):
    """How far a run in flight is: the steps that ended, and the names of those under way."""

    id: str
    pipeline: str
    done: Annotated[list[Step], Meta(max_length=MAX_PROGRESS_STEPS)] = []
    now: Annotated[list[Text], Meta(max_length=MAX_PROGRESS_STEPS)] = []


class Detail(Message):
    """What is known of one run beyond its duration and outcome.

    A run that is `untimed` has no duration: what stands in the column is passed over. One
    that `began` in this very message, unannounced, is no repetition of one that had ended.
    """

    id: str | None = None
    attempt: Attempt = 1
    final: bool = True
    untimed: bool = False
    began: bool = False
    wait_us: DurationUs | None = None
    error: Error | None = None
    steps: tuple[Step, ...] = ()


class Batch(Message):
    """Runs of one pipeline that finished in the 50 ms before `at`, in columns.

    `failed` and the keys of `details` are indexes into `duration_us`.
    """

    pipeline: str
    at: EpochMs
    duration_us: list[DurationUs]
    failed: list[Count] = []
    queue: str | None = None
    details: dict[int, Detail] = {}


class Connect(Message):
    """worker.connect: a session begins, or comes back."""

    protocol: int
    session: Annotated[str, Meta(min_length=1, max_length=64)]
    worker: str
    started_at: EpochMs
    pid: Count
    host: Text
    version: Text | None = None
    runtime: Text | None = None
    slots: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    queues: Annotated[list[Text], Meta(max_length=1_000)] = []
    resume: bool = False
    running: Annotated[list[Start], Meta(max_length=MAX_RUNNING)] = []


class Record(Message):
    """runs.record: results, starts and starts taken back; the counters are the session's totals.

    `hurry` where somebody waits for the acknowledgement.
    """

    seq: SequenceNumber
    recorded: Count
    batches: list[Batch] = []
    dropped: ByReason = {}
    started: list[Start] = []
    withdrawn: list[Withdrawal] = []
    hurry: bool = False


class Heartbeat(Message):
    """worker.heartbeat: the session lives, every 10 s.

    `queues` holds how much waits in each queue, `oldest` since when the first of it does;
    `progress` how far runs in flight are.
    """

    seq: SequenceNumber
    recorded: Count
    in_flight: Count
    cpu_seconds: Annotated[float, Meta(ge=0)]
    rss_bytes: Count
    dropped: ByReason = {}
    queues: Annotated[dict[Text, Count], Meta(max_length=1_000)] | None = None
    oldest: Annotated[dict[Text, EpochMs], Meta(max_length=1_000)] = {}
    last_report_at: EpochMs | None = None
    progress: Annotated[list[Progress], Meta(max_length=MAX_PROGRESS)] = []


class Reset(Message):
    """worker.reset: this worker's life ends and another begins."""


class Disconnect(Message):
    """worker.disconnect: the session ends, and says so."""

    reason: Text = "disconnected"


class Controlled(Message):
    """worker.controlled: the outcome of a worker.control, by its id."""

    id: str
    outcome: Annotated[str, Meta(pattern="^(done|refused|unknown)$")]


class Connected(Message):
    """The answer to worker.connect.

    `acked` is the highest sequence number that is counted, and `known` is false
    for a session that this service has never seen or has lost.
    """

    acked: int
    known: bool
    node: str
    limits: dict[str, int]


class Done(Message):
    """The answer to the other writing methods, where they carry an id."""

    ok: bool = True


class Acked(Message):
    """runs.acked, from the service: everything up to `seq` is counted."""

    seq: int


class WritingMethod(NamedTuple):
    """One row of the table of writing methods."""

    name: str
    summary: str
    params: type[Message]
    result: type[Message]


WRITING: dict[str, WritingMethod] = {
    row.name: row
    for row in (
        WritingMethod("worker.connect", "A session begins, or comes back", Connect, Connected),
        WritingMethod("runs.record", "Results and starts, in columns", Record, Done),
        WritingMethod("worker.heartbeat", "The session lives", Heartbeat, Done),
        WritingMethod("worker.reset", "The worker's life ends, another begins", Reset, Done),
        WritingMethod("worker.disconnect", "The session ends, and says so", Disconnect, Done),
        WritingMethod("worker.controlled", "The outcome of a control message", Controlled, Done),
    )
}


def json_schemas() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """JSON Schemas: params and result of each writing method in turn, then their components."""
    types = [part for row in WRITING.values() for part in (row.params, row.result)]
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    # As JSON has them: a default may be a tuple here, and there is a list.
    return list(schemas), msgspec.json.decode(msgspec.json.encode(components))
