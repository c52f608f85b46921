"""What waits in a worker: formed into columns, numbered, kept until counted, bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from builders import T0
from interruption import interrupted_at
from orbit_rpc_schema.wire import MAX_LINE
from orbit_worker import buffer as buffer_module
from orbit_worker.buffer import Buffer, Refused, Result, Started, Withdrawn


class Counting:
    """The other side of the wire: counts each sequence number once, as the service does."""

    def __init__(self) -> None:
        self.acked = 0
        self.counted: list[int] = []
        self.said: dict[str, Any] = {}

    def take(self, line: bytes) -> None:
        self.said = json.loads(line)["params"]
        if self.said["seq"] > self.acked:
            self.acked = self.said["seq"]
            for batch in self.said.get("batches", []):
                self.counted += batch["durationUs"]


def record(buffer: Buffer, *durations_ms: float) -> None:
    for duration_ms in durations_ms:
        buffer.open.append(("send", duration_ms, True))


def form_rest(buffer: Buffer) -> None:
    """One form_all takes what a message or two can hold; the next goes on."""
    while buffer.open:
        buffer.form_all(T0)
    buffer.form_all(T0)


def formed(buffer: Buffer) -> list[dict[str, Any]]:
    """The params of every message that is kept, in order."""
    lines, seq = [], 0
    while (message := buffer.after(seq)) is not None:
        seq = message.seq
        lines.append(json.loads(message.line)["params"])
    return lines


def form(*entries: Any) -> dict[str, Any]:
    """The params of the one message that these entries make."""
    buffer = Buffer()
    buffer.open.extend(entries)
    buffer.form_all(T0)
    [params] = formed(buffer)
    return params


def deliver_all(buffer: Buffer, service: Counting) -> None:
    """Connect again and send until nothing waits."""
    form_rest(buffer)
    buffer.resume(service.acked)
    while (message := buffer.after(service.acked)) is not None:
        service.take(message.line)
    buffer.acknowledge(service.acked)


# ---------------------------------------------------------------- forming


def test_runs_of_one_pipeline_and_queue_share_columns():
    params = form(("send", 1.5, True), ("send", 2.0, False), Result("send", 3, True, "fast"))

    assert params["batches"] == [
        {"pipeline": "send", "at": T0, "durationUs": [1500, 2000], "failed": [1]},
        {"pipeline": "send", "at": T0, "durationUs": [3000], "failed": [], "queue": "fast"},
    ]


@pytest.mark.parametrize(
    ("duration_ms", "duration_us"), [(0, 0), (0.0004, 0), (0.0005, 1), (1.2345, 1235), (7, 7000)]
)
def test_durations_become_whole_microseconds_half_up(duration_ms, duration_us):
    assert form(("send", duration_ms, True))["batches"][0]["durationUs"] == [duration_us]


def test_details_stand_under_the_index_of_their_run():
    params = form(("send", 1, True), Result("send", 2, True, detail={"waitUs": 5}))

    assert params["batches"][0]["details"] == {"1": {"waitUs": 5}}


def test_a_start_is_announced_while_its_run_goes_on():
    started = form(Started("send", T0, "r1"))["started"]

    assert started == [{"id": "r1", "pipeline": "send", "startedAt": T0}]


def test_a_run_that_starts_and_ends_in_one_message_sends_no_start_and_says_so():
    detail = {"id": "r1"}
    params = form(Started("send", T0, "r1"), Result("send", 1, True, detail=detail))

    assert "started" not in params
    assert params["batches"][0]["details"]["0"] == {"id": "r1", "began": True}
    assert detail == {"id": "r1"}  # it may have to be formed again


def test_a_run_that_was_announced_does_not_say_again_that_it_began():
    params = form(Result("send", 1, True, detail={"id": "r1"}))

    assert params["batches"][0]["details"]["0"] == {"id": "r1"}


def test_the_end_of_one_pipelines_run_leaves_anothers_start_of_the_same_id():
    params = form(Started("a", T0, "r1"), Result("b", 1, True, detail={"id": "r1"}))

    assert [start["pipeline"] for start in params["started"]] == ["a"]


def test_a_run_that_starts_again_after_its_end_does_so_in_a_message_of_its_own():
    buffer = Buffer()  # the service takes the starts of a message before its results
    buffer.open += [Result("send", 1, True, detail={"id": "r1"}), Started("send", T0, "r1")]
    form_rest(buffer)

    first, second = formed(buffer)
    assert "started" not in first
    assert [start["id"] for start in second["started"]] == ["r1"]


def test_a_start_that_says_its_attempt_tells_it():
    [start] = form(Started("send", T0, "r1", 3))["started"]

    assert start["attempt"] == 3


def test_a_start_that_was_announced_can_be_taken_back():
    assert form(Withdrawn("send", "r1"))["withdrawn"] == [{"id": "r1", "pipeline": "send"}]


def test_a_start_that_is_taken_back_at_once_is_never_told():
    params = form(Started("send", T0, "r1"), Withdrawn("send", "r1"), ("send", 1, True))

    assert params.keys().isdisjoint({"started", "withdrawn"})


def test_a_run_that_starts_again_after_it_was_taken_back_does_so_in_a_message_of_its_own():
    buffer = Buffer()
    buffer.open += [Withdrawn("send", "r1"), Started("send", T0, "r1")]
    form_rest(buffer)

    first, second = formed(buffer)
    assert ("withdrawn" in first, "started" in first) == (True, False)
    assert [start["id"] for start in second["started"]] == ["r1"]


def test_messages_are_numbered_from_one_and_carry_the_totals_so_far():
    buffer = Buffer()
    for count in (2, 3):
        record(buffer, *range(count))
        buffer.form_all(T0)

    assert [(m["seq"], m["recorded"]) for m in formed(buffer)] == [(1, 2), (2, 5)]


def test_what_cannot_be_counted_is_told_by_reason_and_stands_in_the_total():
    params = form(("send", 1, True), Refused("duration"), Refused("duration"), Refused("name"))

    assert params["dropped"] == {"duration": 2, "name": 1}
    assert params["recorded"] == 4


def test_nothing_open_forms_nothing():
    buffer = Buffer()
    buffer.form_all(T0)

    assert buffer.empty
    assert buffer.after(0) is None


def test_a_message_over_the_longest_line_is_split_and_nothing_is_lost():
    buffer = Buffer()
    detail = {"error": {"type": "E", "message": "x" * 1000}}
    buffer.open += [Result("send", n, False, detail=detail) for n in range(3000)]
    form_rest(buffer)

    messages = [buffer.after(seq) for seq in range(buffer.seq)]
    assert max(len(m.line) for m in messages) <= MAX_LINE
    columns = [m["batches"][0]["durationUs"] for m in formed(buffer)]
    assert [us for column in columns for us in column] == [n * 1000 for n in range(3000)]


# ---------------------------------------------------------------- sending


def test_what_is_acknowledged_is_forgotten_and_the_rest_kept():
    buffer = Buffer()
    for n in range(3):
        record(buffer, n)
        buffer.form_all(T0)
    buffer.acknowledge(2)

    assert [m["seq"] for m in formed(buffer)] == [3]
    assert buffer.unacknowledged == 1
    assert not buffer.empty


def test_a_buffer_is_empty_when_all_is_acknowledged():
    buffer = Buffer()
    record(buffer, 1)
    buffer.form_all(T0)
    buffer.acknowledge(1)

    assert buffer.empty


def test_a_connection_begins_after_what_the_service_has_counted():
    buffer = Buffer()
    for n in range(3):
        record(buffer, n)
        buffer.form_all(T0)
    formed(buffer)
    buffer.resume(acked=1)

    assert [m["seq"] for m in formed(buffer)] == [2, 3]


def test_heartbeats_of_the_past_are_not_sent_again():
    buffer = Buffer()
    buffer.beat(0.5, 1000)
    record(buffer, 1)
    buffer.form_all(T0)
    buffer.resume(acked=0)

    assert [m["seq"] for m in formed(buffer)] == [2]


def test_a_heartbeat_carries_the_totals_and_keeps_no_one_waiting():
    buffer = Buffer()
    buffer.running["send", "r1"] = Started("send", T0, "r1")
    buffer.beat(0.5, 1000, queues={"fast": 3}, last_report_at_ms=T0)

    [beat] = formed(buffer)
    assert beat == {
        "seq": 1,
        "recorded": 0,
        "dropped": {},
        "inFlight": 1,
        "cpuSeconds": 0.5,
        "rssBytes": 1000,
        "queues": {"fast": 3},
        "lastReportAt": T0,
    }
    assert buffer.empty


# ---------------------------------------------------------------- bounds


def test_over_the_bound_of_runs_the_oldest_message_goes_and_is_counted():
    buffer = Buffer(max_runs=4)
    for n in range(3):
        record(buffer, n, n)
        buffer.form_all(T0)

    assert [m["seq"] for m in formed(buffer)] == [2, 3]
    assert buffer.dropped == {"buffer full": 2}


def test_over_the_bound_of_bytes_the_oldest_message_goes_and_is_counted():
    buffer = Buffer(max_bytes=5_000)
    for n in range(3):
        buffer.open.append(Result("send", n, False, detail={"error": {"message": "x" * 2_000}}))
        buffer.form_all(T0)

    assert [m["seq"] for m in formed(buffer)] == [2, 3]
    assert buffer.dropped == {"buffer full": 1}


def test_what_was_dropped_stands_in_the_next_message():
    buffer = Buffer(max_runs=1)
    for n in range(3):
        record(buffer, n)
        buffer.form_all(T0)

    assert formed(buffer)[-1]["dropped"] == {"buffer full": 1}  # the third drops the second
    assert buffer.dropped == {"buffer full": 2}


def test_more_than_the_bound_at_once_is_dropped_before_the_rest_is_formed():
    buffer = Buffer(max_runs=10_000)
    record(buffer, *range(30_000))
    buffer.form_all(T0)

    assert buffer.unacknowledged <= 10_000
    assert buffer.dropped["buffer full"] + buffer.unacknowledged == 30_000


def a_buffer_that_dropped_what_it_had_sent() -> Buffer:
    buffer = Buffer(max_runs=1)
    record(buffer, 1)
    buffer.form_all(T0)
    buffer.after(0)  # handed to the socket
    record(buffer, 2)
    buffer.form_all(T0)
    return buffer


@pytest.mark.parametrize(
    ("acked", "dropped"),
    [
        pytest.param(1, {}, id="it was counted"),
        pytest.param(0, {"buffer full": 1}, id="it was not, or that is forgotten"),
    ],
)
def test_what_was_dropped_after_it_was_sent_is_settled_by_the_next_connect(acked, dropped):
    buffer = a_buffer_that_dropped_what_it_had_sent()
    buffer.resume(acked)
    buffer.acknowledge(2)

    assert buffer.dropped == dropped


def test_what_was_dropped_after_it_was_sent_is_not_dropped_once_acknowledged():
    buffer = a_buffer_that_dropped_what_it_had_sent()
    assert buffer.dropped == {"buffer full": 1}
    buffer.acknowledge(1)

    assert buffer.dropped == {}


def test_what_only_an_older_connection_carried_is_dropped_as_not_sent():
    buffer = Buffer(max_runs=1)
    record(buffer, 1)
    buffer.form_all(T0)
    buffer.after(0)
    buffer.resume(acked=0)
    record(buffer, 2)
    buffer.form_all(T0)  # drops the first before this connection has sent it
    buffer.acknowledge(2)

    assert buffer.dropped == {"buffer full": 1}


# ---------------------------------------------------------------- the ledger


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: recorded == delivered once + dropped + waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = Buffer(max_runs=12)
        self.service = Counting()
        self.recorded = 0
        self.refused = 0
        self.position = 0
        self.on_the_wire: list[bytes] = []

    @rule(runs=st.integers(1, 6))
    def record(self, runs: int) -> None:
        record(self.buffer, *range(self.recorded, self.recorded + runs))
        self.recorded += runs

    @rule()
    def refuse(self) -> None:
        self.buffer.open.append(Refused("duration"))
        self.refused += 1

    @rule()
    def form(self) -> None:
        self.buffer.form_all(T0)

    @rule()
    def beat(self) -> None:
        self.buffer.form_all(T0)
        self.buffer.beat(0.1, 1)

    @rule()
    def send(self) -> None:
        message = self.buffer.after(self.position)
        if message is not None:
            self.position = message.seq
            self.on_the_wire.append(message.line)

    @rule()
    def arrive(self) -> None:
        if self.on_the_wire:
            self.service.take(self.on_the_wire.pop(0))

    @rule()
    def acknowledge(self) -> None:
        self.buffer.acknowledge(self.service.acked)

    @rule()
    def reconnect(self) -> None:
        self.on_the_wire.clear()
        self.position = self.service.acked
        self.buffer.resume(self.service.acked)

    @invariant()
    def each_run_is_counted_at_most_once(self) -> None:
        assert len(set(self.service.counted)) == len(self.service.counted)

    @invariant()
    def the_ledger_balances_at_any_moment(self) -> None:
        counted, kept = set(self.service.counted), set(self.waiting())
        dropped = sum(self.buffer.dropped.values())
        unsettled = sum(runs for _seq, runs in self.buffer._dropped_sent)
        open_refusals = sum(isinstance(entry, Refused) for entry in self.buffer.open)
        missing = self.recorded + self.refused - len(counted | kept) - dropped - open_refusals
        # What was dropped after it had been sent may have been counted, or still be.
        assert -unsettled <= missing <= 0

    def waiting(self) -> list[int]:
        messages = [m for m in self.buffer._formed.values() if m.kind == "record"]
        batches = [b for m in messages for b in json.loads(m.line)["params"]["batches"]]
        opened = [entry[1] * 1000 for entry in self.buffer.open if not isinstance(entry, Refused)]
        return [us for batch in batches for us in batch["durationUs"]] + opened

    def teardown(self) -> None:
        deliver_all(self.buffer, self.service)
        self.buffer.beat(0.1, 1)
        self.service.take(self.buffer.after(self.service.acked).line)

        assert self.buffer.empty
        assert self.service.said["recorded"] == self.recorded + self.refused
        assert self.service.said["dropped"].get("duration", 0) == self.refused
        dropped = sum(self.service.said["dropped"].values())
        assert self.service.said["recorded"] == len(self.service.counted) + dropped


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


# ---------------------------------------------------------------- interruption


def a_full_buffer(service: Counting) -> Buffer:
    """One message counted, one on the wire, one not sent, and more open than the bound."""
    buffer = Buffer(max_runs=5)
    for n in range(3):
        record(buffer, 2 * n, 2 * n + 1)
        buffer.form_all(T0)
        if n < 2:
            sent = buffer.after(n)
            if n == 0:
                service.take(sent.line)
    record(buffer, *range(6, 10))
    buffer.open.append(Refused("duration"))
    return buffer


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda buffer: buffer.form_all(T0), id="form"),
        pytest.param(lambda buffer: buffer.acknowledge(1), id="acknowledge"),
        pytest.param(lambda buffer: buffer.resume(1), id="resume"),
        pytest.param(lambda buffer: (buffer.form_all(T0), buffer.beat(0.1, 1)), id="beat"),
        pytest.param(lambda buffer: (buffer.form_all(T0), buffer.resume(1)), id="settle"),
    ],
)
def test_an_exception_at_any_instruction_loses_and_doubles_nothing(act):
    for instruction in range(1, 100_000):
        service = Counting()
        buffer = a_full_buffer(service)
        interrupted = interrupted_at(instruction, buffer_module, lambda b=buffer: act(b))
        deliver_all(buffer, service)

        dropped = sum(buffer.dropped.values())
        assert len(set(service.counted)) == len(service.counted)
        assert len(service.counted) + dropped == buffer.recorded == 11, instruction
        if not interrupted:
            break
    assert instruction > 20


# ---------------------------------------------------------------- in a hurry


def test_what_is_formed_in_a_hurry_says_so() -> None:
    buffer = Buffer()
    record(buffer, 1)
    buffer.form_all(T0, hurry=True)

    assert [message.get("hurry") for message in formed(buffer)] == [True]


def test_for_what_was_formed_before_a_message_of_its_own_says_so_once() -> None:
    buffer = Buffer()
    record(buffer, 1)
    buffer.form_all(T0)
    for _ in range(2):
        buffer.hurry()

    assert [message.get("hurry") for message in formed(buffer)] == [None, True]
    assert formed(buffer)[1] == {
        "seq": 2,
        "recorded": 1,
        "dropped": {},
        "batches": [],
        "hurry": True,
    }


def test_what_says_so_itself_needs_no_other_after_a_heartbeat() -> None:
    buffer = Buffer()
    record(buffer, 1)
    buffer.form_all(T0, hurry=True)
    buffer.beat(0.0, 0)
    buffer.hurry()

    assert [message["seq"] for message in formed(buffer)] == [1, 2]


def test_nothing_hurries_what_is_acknowledged() -> None:
    buffer = Buffer()
    record(buffer, 1)
    buffer.form_all(T0)
    buffer.acknowledge(1)
    buffer.hurry()

    assert formed(buffer) == []
