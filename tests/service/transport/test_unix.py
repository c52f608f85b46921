"""
What the worker socket does with whatever is written to it.

Every test here has a neighbour: a worker that behaves. It is served before and
after, whatever the test did in between.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from builders import until
from conftest import RunningService
from orbit_rpc_schema.messages import WRITING
from orbit_rpc_schema.wire import LIMITS, MAX_DURATION_US, MAX_LINE, PROTOCOL
from orbit_service.transport import unix
from orbit_service.transport.peers import Admission

MIB = 1_048_576
NOW = time.time_ns() // 1_000_000


class Wire:
    """A raw connection to the worker socket; it sends what it is given and reads lines."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.acked: list[int] = []
        self._received = b""

    def close(self) -> None:
        self.socket.close()

    def send(self, *lines: bytes | dict[str, Any]) -> None:
        """Everything in one write, a newline behind each."""
        self.socket.sendall(b"".join(as_line(line) for line in lines))

    def read(self) -> dict[str, Any] | None:
        """The next message; None at the end of the stream."""
        while b"\n" not in self._received:
            if not (data := self.socket.recv(65_536)):
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def answer(self) -> dict[str, Any]:
        """The next message that is no acknowledgement."""
        while (message := self.read()) is not None:
            if message.get("method") != "runs.acked":
                return message
            self.acked.append(message["params"]["seq"])
        raise EOFError

    def ask(self, method: str, params: Any = ()) -> dict[str, Any]:
        self.send(a_call(method, params))
        return self.answer()

    def hello(self, **fields: Any) -> dict[str, Any]:
        return self.ask("worker.connect", hello(**fields))

    def await_ack(self, seq: int) -> None:
        while not self.acked or self.acked[-1] < seq:
            message = self.read()
            assert message is not None
            assert message["method"] == "runs.acked"
            self.acked.append(message["params"]["seq"])

    def is_hung_up(self) -> bool:
        while self.read() is not None:
            pass
        return True


def as_line(line: bytes | dict[str, Any]) -> bytes:
    return (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"


def a_call(method: str, params: Any = (), id: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params, "id": id}


def a_note(method: str, params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def hello(**fields: Any) -> dict[str, Any]:
    defaults = {"protocol": PROTOCOL, "session": "s1", "worker": "mailer"}
    return {**defaults, "startedAt": NOW, "pid": 4711, "host": "box", **fields}


def batch(**fields: Any) -> dict[str, Any]:
    return {"pipeline": "send", "at": NOW, "durationUs": [1000, 2000], **fields}


def record(seq: int, *batches: Any, **fields: Any) -> dict[str, Any]:
    """runs.record with one batch of two runs, unless told otherwise."""
    sent = list(batches) or [batch()]
    return {"seq": seq, "recorded": 2 * seq, "batches": sent, **fields}


def beat(seq: int, **fields: Any) -> dict[str, Any]:
    quiet = {"recorded": 0, "inFlight": 0, "cpuSeconds": 0, "rssBytes": 0}
    return {"seq": seq, **quiet, **fields}


def detail(**fields: Any) -> dict[str, Any]:
    return batch(durationUs=[1000], failed=[0], details={"0": fields})


def an_error(message: str, **fields: Any) -> dict[str, Any]:
    return {"type": "ValueError", "message": message, **fields}


def named(cases: dict[str, Any]) -> list[Any]:
    return [pytest.param(case, id=name) for name, case in cases.items()]


def code_of(answer: dict[str, Any]) -> int:
    return answer["error"]["code"]


def total(service: RunningService, worker: str = "mailer") -> int:
    return service.ask("worker.metrics", {"worker": worker})["totalRuns"]


def intake(service: RunningService) -> dict[str, Any]:
    return service.ask("service.info")["intake"]


def newest(service: RunningService) -> dict[str, Any]:
    return service.ask("worker.recentRuns", {"worker": "mailer", "limit": 1})[0]


def view(service: RunningService) -> dict[str, Any]:
    """The worker `mailer` as worker.list shows it."""
    return {worker["name"]: worker for worker in service.ask("worker.list")}["mailer"]


@pytest.fixture
def dial(service: RunningService) -> Iterator[Callable[[], Wire]]:
    """Makes connections that are closed when the test is over."""
    with ExitStack() as stack:

        def connect() -> Wire:
            wire = Wire(service.socket)
            stack.callback(wire.close)
            return wire

        yield connect


@pytest.fixture(autouse=True)
def a_neighbour_is_served_before_and_after(service, dial):
    neighbour = dial()
    neighbour.hello(session="neighbour", worker="neighbour")
    assert neighbour.ask("runs.record", record(1))["result"] == {"ok": True}
    yield
    assert neighbour.ask("runs.record", record(2))["result"] == {"ok": True}
    assert total(service, "neighbour") == 4


@pytest.fixture
def wire(dial) -> Wire:
    """A connection that has said nothing yet."""
    return dial()


@pytest.fixture
def mailer(wire) -> Wire:
    """The worker `mailer`, connected."""
    assert "result" in wire.hello()
    return wire


def stop_the_clock(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    """No session is away for too long from here on."""
    now = time.monotonic()
    monkeypatch.setattr(service.service.workers, "_monotonic", lambda: now)


@contextmanager
def held(service: RunningService) -> Iterator[None]:
    """What is written in this block lies in the sockets until its end."""
    holding, go_on = threading.Event(), threading.Event()
    service._loop.call_soon_threadsafe(lambda: (holding.set(), go_on.wait(10)))
    assert holding.wait(10)
    yield
    go_on.set()


# ---------------------------------------------------------------- lines


DEEP = b"[" * 10_000 + b"]" * 10_000
RECORD = b'{"jsonrpc":"2.0","id":1,"method":"runs.record","params":%b}'
NO_MESSAGES = {
    "not JSON": (b"hello?", -32700),
    "half of an object": (b'{"jsonrpc": "2.0", "method": "service.info"', -32700),
    "not UTF-8": (b'{"jsonrpc": "2.0", "method": "\xff", "id": 1}', -32700),
    "not UTF-8 where a pipeline's name is": (
        RECORD % b'{"seq":1,"recorded":1,"batches":[{"pipeline":"\xff","at":1,"durationUs":[1]}]}',
        -32700,
    ),
    "NaN": (RECORD % b'{"seq": NaN, "recorded": 0, "batches": []}', -32700),
    "10,000 nested arrays": (DEEP, -32700),
    "10,000 nested arrays as params": (RECORD % b'{"seq":1,"batches":%b}' % DEEP, -32700),
    "900 nested arrays as params": (
        RECORD % b'{"seq":"\\ud800","batches":%b}' % (b"[" * 900 + b"]" * 900),
        -32602,
    ),
    "a text": (b'"service.info"', -32600),
    "an empty batch": (b"[]", -32600),
    "no version": (b'{"method": "service.info", "id": 1}', -32600),
    "no version, to write": (b'{"method": "worker.reset", "id": 1, "jsonrpc": "1.0"}', -32600),
    "a method that does not exist": (b'{"jsonrpc":"2.0","id":1,"method":"worker.fire"}', -32601),
    "a method that is a number": (b'{"jsonrpc": "2.0", "id": 1, "method": 5}', -32600),
}


@pytest.mark.parametrize(
    ("line", "code"), [pytest.param(*case, id=name) for name, case in NO_MESSAGES.items()]
)
def test_a_line_that_is_no_message_has_an_error_and_the_next_is_served(service, mailer, line, code):
    mailer.send(line, a_note("runs.record", record(1)), a_call("service.info", id="next"))

    assert code_of(mailer.answer()) == code
    assert mailer.answer()["id"] == "next"
    assert total(service) == 2
    assert intake(service)["refused"] == {}


def test_a_line_over_the_limit_is_skipped_up_to_its_newline(service, mailer):
    mailer.send(b" " * (3 * MIB), a_note("runs.record", record(1)))

    answer = mailer.answer()
    assert (code_of(answer), answer["error"]["data"]["limit"]) == (-32010, MAX_LINE)
    mailer.await_ack(1)
    assert total(service) == 2
    assert intake(service)["faults"] == {"line too long": 1}


def test_a_line_of_just_the_limit_is_taken(service, mailer):
    line = json.dumps(a_note("runs.record", record(1))).encode()
    mailer.send(line.ljust(MAX_LINE))
    mailer.await_ack(1)
    assert total(service) == 2


def test_empty_lines_are_passed_over(mailer):
    mailer.send(b"", b"  \r", a_call("service.info", id="next"))
    assert mailer.answer()["id"] == "next"


def test_a_line_may_come_in_many_pieces(service, mailer):
    for byte in as_line(a_note("runs.record", record(1))):
        mailer.socket.sendall(bytes([byte]))
    mailer.await_ack(1)
    assert total(service) == 2


def test_half_a_line_before_the_end_is_counted_as_cut_off_and_as_nothing_else(service, mailer):
    mailer.send(a_note("runs.record", record(1)))
    mailer.socket.sendall(as_line(a_note("runs.record", record(2)))[:-10])
    mailer.close()

    until(lambda: intake(service)["faults"] == {"line cut off": 1})
    assert total(service) == 2


def test_a_line_that_is_cut_off_behind_calls_that_wait_is_counted_once(service, mailer):
    calls = [a_call("service.info", id=n) for n in range(50)]
    mailer.socket.sendall(b"".join(map(as_line, calls)) + b"{")
    mailer.socket.shutdown(socket.SHUT_WR)

    assert [mailer.answer()["id"] for _ in calls] == list(range(50))
    assert mailer.is_hung_up()
    assert intake(service)["faults"] == {"line cut off": 1}


# ---------------------------------------------------------------- connecting


@pytest.mark.parametrize("method", sorted(set(WRITING) - {"worker.connect"}))
def test_writing_before_connecting_is_refused_and_counted(service, wire, method):
    params = {
        "runs.record": record(1),
        "worker.heartbeat": beat(1),
        "worker.controlled": {"id": "c1", "outcome": "done"},
    }
    answer = wire.ask(method, params.get(method, {}))

    assert code_of(answer) == -32021
    assert intake(service)["faults"] == {"not connected": 1}
    assert total(service) == 0


BAD_HELLOS = {
    "protocol 2": ({"protocol": 2}, -32023),
    "protocol of a wrong type": ({"protocol": "1"}, -32602),
    "no worker": ({"worker": ""}, -32602),
    "a worker's name of 10 kB": ({"worker": "x" * 10_000}, -32602),
    "a worker's name with a newline": ({"worker": "mailer\nroot"}, -32602),
    "a session of 65 characters": ({"session": "s" * 65}, -32602),
    "a session of none": ({"session": ""}, -32602),
    "a pid below zero": ({"pid": -1}, -32602),
    "a pid of 2^63": ({"pid": 2**63}, -32602),
    "a start in words": ({"startedAt": "today"}, -32602),
    "a start before 1970": ({"startedAt": -1}, -32602),
    "a running run without an id": (
        {"running": [{"id": "", "pipeline": "send", "startedAt": NOW}]},
        -32602,
    ),
    "the session of another worker": ({"session": "neighbour"}, -32602),
}


@pytest.mark.parametrize(
    ("fields", "code"), [pytest.param(*case, id=name) for name, case in BAD_HELLOS.items()]
)
def test_a_bad_hello_opens_nothing_and_a_good_one_may_follow(service, wire, fields, code):
    assert code_of(wire.hello(**fields)) == code
    assert code_of(wire.ask("worker.reset", {})) == -32021
    assert [worker["name"] for worker in service.ask("worker.list")] == ["neighbour"]

    assert wire.hello()["result"]["known"] is False


def test_the_answer_to_a_hello_says_how_far_it_is_counted_and_the_limits(service, mailer, dial):
    mailer.ask("runs.record", record(7))
    assert dial().hello()["result"] == {
        "acked": 7,
        "known": True,
        "node": service.ask("service.info")["node"],
        "limits": dict(LIMITS),
    }


def test_a_second_hello_on_one_connection_is_refused_and_changes_nothing(service, mailer):
    assert code_of(mailer.hello(session="s2", worker="other")) == -32022
    mailer.ask("runs.record", record(1))
    assert total(service) == 2
    assert total(service, "other") == 0


def test_a_newer_connection_takes_the_session_over(service, mailer, dial):
    mailer.ask("runs.record", record(1))
    newer = dial()

    assert newer.hello()["result"]["known"] is True
    assert mailer.is_hung_up()
    newer.ask("runs.record", record(2))
    assert total(service) == 4
    assert service.ask("worker.metrics", {"worker": "mailer"})["workersConnected"] == 1


def test_what_the_older_connection_had_unread_is_discarded_and_may_be_sent_again(
    service, mailer, dial
):
    newer = dial()
    newer.ask("service.info")
    with held(service):
        newer.send(a_call("worker.connect", hello()))
        mailer.send(a_note("runs.record", record(1)))

    assert newer.answer()["result"]["acked"] == 0
    newer.ask("runs.record", record(1))
    assert total(service) == 2
    assert intake(service)["repeated"] == 0


# ---------------------------------------------------------------- messages that cannot be counted


BAD_BATCHES = {
    "durations in words": {"durationUs": ["1", "2"]},
    "durations with fractions": {"durationUs": [1.5, 2.5]},
    "durations not in a column": {"durationUs": 5},
    "a duration of null": {"durationUs": [1, None]},
    "a negative duration": {"durationUs": [5, -1]},
    "a duration of over ten years": {"durationUs": [5, MAX_DURATION_US + 1]},
    "a duration of 2^63": {"durationUs": [5, 2**63]},
    "a duration of 400 digits": {"durationUs": [5, 10**400]},
    "a failed index out of range": {"failed": [2]},
    "a failed index below zero": {"failed": [-1]},
    "a failed index of 2^63": {"failed": [2**63]},
    "a failed index twice": {"failed": [1, 1]},
    "failed in words": {"failed": ["0"]},
    "details out of range": {"details": {"2": {}}},
    "details below zero": {"details": {"-1": {}}},
    "details by a word": {"details": {"first": {}}},
    "details in a list": {"details": [{}]},
    "attempt 0": {"details": {"0": {"attempt": 0}}},
    "a negative wait": {"details": {"0": {"waitUs": -1}}},
    "a run id with a newline": {"details": {"0": {"id": "a\nb"}}},
    "101 steps": {"details": {"0": {"steps": [{"name": "s", "durationUs": 1}] * 101}}},
    "a step's name of 10 kB": {
        "details": {"0": {"steps": [{"name": "s" * 10_000, "durationUs": 1}]}}
    },
    "a step of negative length": {"details": {"0": {"steps": [{"name": "s", "durationUs": -1}]}}},
    "a pipeline's name of 10 kB": {"pipeline": "x" * 10_000},
    "a pipeline's name with a newline": {"pipeline": "send\nmail"},
    "a pipeline's name with NUL": {"pipeline": "send\0"},
    "a pipeline's name of nothing": {"pipeline": ""},
    "a pipeline that is a number": {"pipeline": 5},
    "a queue's name with an escape": {"queue": "\x1b[31m"},
    "a time before 1970": {"at": -1},
    "a time of 30 digits": {"at": 10**30},
    "a time in words": {"at": "now"},
    "no time": {"at": None},
}


@pytest.mark.parametrize("fields", named(BAD_BATCHES))
def test_a_message_with_a_bad_batch_is_refused_whole_counted_and_acknowledged(
    service, mailer, fields
):
    answer = mailer.ask("runs.record", record(1, batch(**fields)))

    assert code_of(answer) == -32602
    mailer.await_ack(1)
    assert intake(service)["refused"] == {"invalid": 2}
    assert total(service) == 0
    assert mailer.ask("runs.record", record(2))["result"] == {"ok": True}
    assert total(service) == 2


def test_a_good_batch_beside_a_bad_one_is_not_counted_either(service, mailer):
    started = [{"id": "r1", "pipeline": "send", "startedAt": NOW}]
    bad = batch(durationUs=[-1, 1])
    mailer.ask("runs.record", record(1, batch(), bad, recorded=4, started=started))

    assert intake(service)["refused"] == {"invalid": 4}
    assert total(service) == 0
    assert service.ask("worker.stats")["running"] == 0
    assert service.ask("worker.recentRuns", {"worker": "mailer"}) == []


BAD_RECORDS = {
    "batches in an object": {"batches": {}},
    "a batch that is a number": {"batches": [5]},
    "a start without an id": {"started": [{"pipeline": "send", "startedAt": NOW}]},
    "a start with a bad name": {"started": [{"id": "r", "pipeline": "\n", "startedAt": NOW}]},
    "drops below zero": {"dropped": {"overflow": -1}},
    "drops for 51 reasons": {"dropped": {str(n): 1 for n in range(51)}},
    "a number of 5,000 digits in passing": {"batches": {}, "note": 0},
}


@pytest.mark.parametrize("fields", named(BAD_RECORDS))
def test_a_message_that_is_bad_elsewhere_is_refused_and_acknowledged_too(service, mailer, fields):
    line = json.dumps(a_call("runs.record", record(1, **fields))).encode()
    mailer.send(line.replace(b'"note": 0', b'"note": ' + b"1" * 5_000))

    assert code_of(mailer.answer()) == -32602
    mailer.await_ack(1)
    assert intake(service)["refused"] == {"invalid": 2}
    assert total(service) == 0


@pytest.mark.parametrize("seq", [0, -1, 2**63, 10**400, "1", 1.5, None], ids=lambda s: str(s)[:20])
def test_a_message_without_a_number_of_its_own_is_refused_and_moves_nothing(service, mailer, seq):
    assert code_of(mailer.ask("runs.record", {**record(1), "seq": seq})) == -32602
    assert mailer.ask("runs.record", record(1))["result"] == {"ok": True}
    assert total(service) == 2


BAD_BEATS = {
    "in flight below zero": {"inFlight": -1},
    "memory of 2^63": {"rssBytes": 2**63},
    "time in words": {"cpuSeconds": "0.1"},
    "negative time": {"cpuSeconds": -0.1},
    "a queue of negative depth": {"queues": {"fast": -1}},
}


@pytest.mark.parametrize("fields", named(BAD_BEATS))
def test_a_bad_heartbeat_is_refused_and_acknowledged(service, mailer, fields):
    assert code_of(mailer.ask("worker.heartbeat", beat(1, **fields))) == -32602
    mailer.await_ack(1)
    assert sum(intake(service)["refused"].values()) == 0


def test_what_was_dropped_before_a_refused_message_is_not_counted_again_behind_it(service, mailer):
    mailer.ask("runs.record", record(1, recorded=7, dropped={"overflow": 5}))
    mailer.ask("runs.record", record(2, batch(at="now"), recorded=10, dropped={"overflow": 6}))
    mailer.ask("runs.record", record(3, recorded=12, dropped={"overflow": 6}))

    assert intake(service)["dropped"] == {"overflow": 6}
    assert intake(service)["refused"] == {"invalid": 2}
    assert total(service) == 4


def test_a_bad_notification_is_refused_without_an_answer(service, mailer):
    mailer.send(a_note("runs.record", record(1, batch(failed=[9]))), a_call("service.info", id=5))
    assert mailer.answer()["id"] == 5
    assert intake(service)["refused"] == {"invalid": 2}


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    "text",
    named({"NUL": "a\0b", "high surrogate": "a\ud800b", "low surrogate": "a\udc00b"}),
)
def test_what_cannot_be_stored_in_a_text_is_replaced(service, mailer, text):
    error = an_error(text, type=f"Bad{text}", traceback=text)
    mailer.ask("runs.record", record(1, detail(error=error)))

    shown = newest(service)["error"]
    assert shown["message"] == shown["traceback"] == "a\ufffdb"
    assert "\0" not in shown["type"]
    assert total(service) == 1


def test_texts_are_cut_to_length_and_of_a_traceback_the_end_is_kept(service, mailer):
    error = an_error("m" * 5_000, traceback="t" * 50_000 + "the end")
    mailer.ask("runs.record", record(1, detail(error=error)))

    shown = newest(service)["error"]
    assert shown["message"] == "m" * LIMITS["message"]
    assert len(shown["traceback"]) == LIMITS["traceback"]
    assert shown["traceback"].endswith("the end")


@pytest.mark.parametrize("bad", ["\0", "\n", "\ud800"], ids=["NUL", "newline", "surrogate"])
def test_what_a_worker_says_of_itself_holds_no_control_characters(service, wire, bad):
    text = f"a{bad}b"
    wire.hello(host=text, version=text, runtime=text)
    wire.ask("worker.heartbeat", beat(1, queues={text: 3}, dropped={text: 4}))
    mailer = view(service)
    wire.ask("worker.disconnect", {"reason": text})

    said = [*mailer["hosts"], *mailer["versions"], *mailer["runtimes"], *mailer["queues"]]
    said += [*intake(service)["dropped"], view(service)["lastLife"]["reason"]]
    assert len(said) == 6
    assert set(said) <= {"a b", "a\ufffdb"}


def test_order_is_kept_behind_a_line_that_takes_the_long_way(service, mailer):
    # A lone surrogate is what the short way cannot read; were it overtaken by
    # number 2, number 1 would be taken for one that was counted before.
    first = record(1, detail(id="r1", error=an_error("\ud800")))
    mailer.send(*(a_note("runs.record", params) for params in [first, *map(record, range(2, 202))]))

    mailer.await_ack(201)
    assert total(service) == 1 + 200 * 2
    assert mailer.acked == sorted(mailer.acked)


def test_a_question_is_answered_from_what_was_sent_before_it_and_nothing_else(mailer):
    question = a_call("worker.metrics", {"worker": "mailer"})
    mailer.send(question, a_note("runs.record", record(1)), question)
    assert [mailer.answer()["result"]["totalRuns"] for _ in range(2)] == [0, 2]


def test_params_go_by_position_too(service, mailer):
    mailer.send(a_call("runs.record", [1, 2, [batch()]]))
    assert mailer.answer()["result"] == {"ok": True}
    assert total(service) == 2


def test_calls_may_come_in_a_batch(mailer):
    calls = [a_call("runs.record", record(1), id=1), a_call("service.info", id=2)]
    mailer.send(json.dumps(calls).encode())
    assert sorted(answer["id"] for answer in mailer.read()) == [1, 2]
    assert mailer.read() == a_note("runs.acked", {"seq": 1})


# ---------------------------------------------------------------- acknowledgements


def test_a_counted_message_is_acknowledged(mailer):
    mailer.send(a_note("runs.record", record(1)))
    assert mailer.read() == a_note("runs.acked", {"seq": 1})


def test_of_many_messages_the_newest_acknowledgement_is_the_one_that_matters(service, mailer):
    with held(service):
        mailer.send(*(a_note("runs.record", record(seq)) for seq in range(1, 101)))
    assert mailer.read() == a_note("runs.acked", {"seq": 100})


def test_numbers_may_have_gaps_and_one_that_was_counted_is_passed_over(service, mailer):
    for seq in (1, 5, 5, 3):
        mailer.ask("runs.record", record(seq))
    mailer.ask("service.info")
    assert mailer.acked == [1, 5]
    assert total(service) == 4


def test_a_worker_that_reads_no_acknowledgement_is_counted_all_the_same(service, mailer):
    for seq in range(1, 2_001):
        mailer.send(a_note("runs.record", record(seq)))
    until(lambda: total(service) == 4_000)


# ---------------------------------------------------------------- control


@pytest.fixture
def two(dial) -> list[Wire]:
    """Two sessions of the worker `pool`: p1 and p2."""
    wires = [dial(), dial()]
    for number, wire in enumerate(wires, 1):
        assert "result" in wire.hello(session=f"p{number}", worker="pool")
    return wires


def obey(wire: Wire, outcome: str) -> dict[str, Any]:
    """Answer the control message that has come; what it said."""
    message = wire.answer()
    assert message["method"] == "worker.control"
    wire.send(
        a_note("worker.controlled", {"id": message["params"]["id"], "outcome": outcome}),
    )
    return {name: value for name, value in message["params"].items() if name != "id"}


def test_a_control_message_goes_to_each_session_of_the_worker_and_each_answers(service, two):
    asked = service.control("pool", "restart", "send")

    assert obey(two[0], "done") == {"action": "restart", "pipeline": "send"}
    obey(two[1], "refused")
    assert asked.result(10) == {"p1": "done", "p2": "refused"}


def test_without_a_pipeline_a_control_message_names_none(service, mailer):
    asked = service.control("mailer", "pause")

    assert obey(mailer, "unknown") == {"action": "pause"}
    assert asked.result(10) == {"s1": "unknown"}


def test_a_session_that_never_answers_costs_the_others_the_time_out_alone(
    service, two, monkeypatch
):
    asked = service.control("pool", "pause", timeout=3_600)
    obey(two[0], "done")
    two[0].ask("service.info")  # its answer has been read
    monkeypatch.setattr(service._loop, "time", lambda: time.monotonic() + 3_600)
    service._loop.call_soon_threadsafe(lambda: None)  # look at the clock

    assert asked.result(10) == {"p1": "done", "p2": "no answer"}


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda wire: wire.close(), id="its connection ends"),
        pytest.param(lambda wire: wire.send(a_note("worker.disconnect", {})), id="goodbye"),
    ],
)
def test_a_session_that_goes_while_it_is_waited_for_is_gone(service, two, leave):
    asked = service.control("pool", "pause")
    obey(two[0], "done")
    two[1].answer()
    leave(two[1])

    assert asked.result(10) == {"p1": "done", "p2": "gone"}


def test_a_session_that_comes_back_by_a_newer_connection_may_still_answer(service, dial, mailer):
    asked = service.control("mailer", "pause")
    id = mailer.answer()["params"]["id"]
    newer = dial()
    newer.hello()
    newer.send(a_note("worker.controlled", {"id": id, "outcome": "done"}))

    assert asked.result(10) == {"s1": "done"}


def test_an_answer_that_nobody_waits_for_is_passed_over(service, two):
    stray = a_note("worker.controlled", {"id": "nobody's\nid", "outcome": "done"})
    two[1].send(stray)
    asked = service.control("pool", "pause")
    two[0].send(stray)
    id = two[0].answer()["params"]["id"]
    two[0].send(
        *[a_note("worker.controlled", {"id": id, "outcome": o}) for o in ("done", "refused")]
    )
    obey(two[1], "done")

    assert asked.result(10) == {"p1": "done", "p2": "done"}


def test_a_worker_without_a_connection_has_nobody_to_tell(service, mailer):
    assert service.control("nobody", "pause").result(10) == {}
    mailer.close()
    until(lambda: not service.service.workers.speaking() - {"neighbour"})
    assert service.control("mailer", "pause").result(10) == {}


def test_a_successor_is_not_told(service, wire):
    wire.hello(resume=True)

    assert service.control("mailer", "pause").result(10) == {}


# ---------------------------------------------------------------- clients that do not read


def fill(wire: Wire, line: bytes, most: int) -> int:
    """Send the line over and over until the service takes no more; how many it took."""
    wire.socket.settimeout(0.5)
    block, sent = line * 100, 0
    try:
        while sent < most * len(line):
            sent += wire.socket.send(block)
    except TimeoutError:
        pass
    return sent // len(line)


def rest(service: RunningService) -> None:
    """Wait until the service's thread has no more to do."""
    clock = time.pthread_getcpuclockid(service._thread.ident)
    looks = [time.clock_gettime(clock)]

    def idle() -> bool:
        looks.append(time.clock_gettime(clock))
        return len(looks) > 20 and looks[-1] - looks[-20] < 0.01

    until(idle)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_client_that_never_reads_is_read_no_further_and_holds_little_memory(service, wire):
    service.ask("rpc.discover")
    before = resident_bytes()

    taken = fill(wire, as_line(a_call("rpc.discover")), most=100_000)
    rest(service)

    assert taken < 30_000
    assert resident_bytes() - before < 24 * MIB
    assert service.ask("service.info")["connections"] == 3


def test_a_client_that_never_reads_is_sent_no_control_message(service, mailer):
    def unsent() -> int:
        return sum(len(connection._unsent) for connection in service.service._unix.connections)

    fill(mailer, as_line(a_call("rpc.discover")), most=100_000)
    rest(service)
    before = unsent()

    assert service.control("mailer", "pause", timeout=0.01).result(10) == {"s1": "no answer"}
    assert unsent() == before > 0


def test_a_client_that_reads_late_has_every_answer_in_order(wire):
    calls = [a_call("rpc.discover", id=n) for n in range(300)]
    writing = threading.Thread(target=wire.send, args=calls)
    writing.start()
    assert [wire.answer()["id"] for _ in calls] == list(range(300))
    writing.join()


def test_a_client_that_leaves_without_reading_is_forgotten(service, wire):
    fill(wire, as_line(a_call("rpc.discover")), most=1_000)
    wire.close()
    until(lambda: service.ask("service.info")["connections"] == 2)


def test_connections_over_the_bound_are_told_so_and_counted(service, dial, monkeypatch):
    monkeypatch.setattr(service.service._unix, "limit", 2)
    dial().ask("service.info")
    one_too_many = dial()
    assert code_of(one_too_many.answer()) == -32024
    assert one_too_many.is_hung_up()
    monkeypatch.undo()
    assert intake(service)["faults"] == {"connections": 1}


# ---------------------------------------------------------------- processes that die


SAYS = f"""
import json, os, signal, socket, sys
wire = socket.socket(socket.AF_UNIX)
wire.connect(sys.argv[1])
def say(method, params):
    message = {{"jsonrpc": "2.0", "method": method, "params": params}}
    wire.sendall(json.dumps(message).encode() + b"\\n")
say("worker.connect", {{**{hello()!r}, "running": [
    {{"id": "r1", "pipeline": "send", "startedAt": {NOW}}}]}})
"""
RECORDS_AND_IS_KILLED = f"""{SAYS}
for seq in range(1, 501):
    say("runs.record", {{"seq": seq, "recorded": seq, "batches": [
        {{"pipeline": "send", "at": {NOW}, "durationUs": [1000]}}]}})
os.kill(os.getpid(), signal.SIGKILL)
"""
FORKS_AND_WAITS = f"""{SAYS}
child = os.fork()
if child:
    print("forked", flush=True)
sys.stdin.read()
"""


@contextmanager
def a_process(source: str, socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process; its children end when its standard input is closed."""
    arguments = [sys.executable, "-S", "-c", source, str(socket)]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_was_written_before_the_end_is_read_though_an_acknowledgement_fails(
    service, mailer, monkeypatch
):
    monkeypatch.setattr(unix, "READ_BYTES", 512)  # an acknowledgement between any two reads
    with held(service):
        mailer.send(*(a_note("runs.record", record(seq)) for seq in range(1, 401)))
        mailer.close()

    until(lambda: total(service) == 800)
    assert intake(service)["faults"] == {}


def test_what_a_process_wrote_before_it_was_killed_is_read_to_the_end(service):
    with a_process(RECORDS_AND_IS_KILLED, service.socket) as process:
        process.wait(10)
        life = until(lambda: service.ask("worker.metrics", {"worker": "mailer"})["lastLife"])

    assert (life["reason"], life["totalRuns"], life["failed"]) == ("lost", 501, 1)


def test_a_killed_process_is_lost_at_once_though_a_child_holds_its_socket(service, monkeypatch):
    stop_the_clock(service, monkeypatch)
    with a_process(FORKS_AND_WAITS, service.socket) as process:
        assert process.stdout.readline() == b"forked\n"
        until(lambda: service.ask("worker.stats")["running"] == 1)
        process.kill()
        until(lambda: service.ask("worker.stats")["running"] == 0)
        assert newest(service)["error"]["type"] == "WorkerLost"


def test_a_connection_that_ends_without_goodbye_may_come_back(service, mailer, dial, monkeypatch):
    stop_the_clock(service, monkeypatch)
    mailer.ask("runs.record", record(1))
    mailer.close()
    until(lambda: service.ask("service.info")["connections"] == 2)

    assert dial().hello()["result"]["known"] is True
    metrics = service.ask("worker.metrics", {"worker": "mailer"})
    assert (metrics["totalRuns"], metrics["lastLife"]) == (2, None)


def test_a_goodbye_ends_the_life_at_once(service, mailer):
    mailer.ask("runs.record", record(1))
    mailer.ask("worker.disconnect", {"reason": "SIGTERM"})
    metrics = service.ask("worker.metrics", {"worker": "mailer"})
    assert metrics["connected"] is False
    assert metrics["lastLife"]["reason"] == "SIGTERM"


# ---------------------------------------------------------------- who says nothing


def test_a_connection_that_speaks_for_nobody_and_says_nothing_is_ended(service, dial, monkeypatch):
    monkeypatch.setattr(unix, "IDLE_SECONDS", 0.2)
    with held(service):  # it says hello in the moment in which it is taken
        worker = dial()
        worker.send(a_call("worker.connect", hello()))
    assert "result" in worker.answer()

    # A worker may be silent: its heartbeat is watched. It is looked at as often as these.
    for _ in range(3):
        assert dial().read() is None
    assert worker.ask("worker.metrics")["result"]["workersConnected"] == 2
    assert worker.ask("service.info")["result"]["intake"]["faults"] == {"idle": 3}


# ---------------------------------------------------------------- who may connect


SOMEBODY = 54_321  # a uid that is neither ours nor root's
BECOMES_SOMEBODY = f"""
import os, socket, sys
os.setuid({SOMEBODY})
wire = socket.socket(socket.AF_UNIX)
wire.connect(sys.argv[1])
os.write(1, wire.recv(9999))
"""


@pytest.mark.parametrize(
    ("uids", "uid", "admitted"),
    [
        pytest.param(frozenset(), os.geteuid(), True, id="ourselves"),
        pytest.param(frozenset(), 0, True, id="root"),
        pytest.param(frozenset(), SOMEBODY, False, id="somebody"),
        pytest.param({SOMEBODY}, SOMEBODY, True, id="somebody who is named"),
        pytest.param({SOMEBODY}, SOMEBODY + 1, False, id="somebody else than who is named"),
        pytest.param(None, SOMEBODY, True, id="somebody where everybody may"),
        pytest.param(frozenset(), None, True, id="unknown, where the system does not tell"),
    ],
)
def test_our_own_user_root_and_whom_the_settings_name_may_connect(uids, uid, admitted):
    assert Admission(uids).admits(uid) is admitted


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_is_not_admitted_is_told_the_setting_and_counted():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    running = RunningService(folder / "worker.sock", ORBIT_SOCKET_MODE="0666")
    running.start()
    with a_process(BECOMES_SOMEBODY, running.socket) as process:
        answer = json.loads(process.stdout.readline())
    faults = intake(running)["faults"]
    running.close()
    shutil.rmtree(folder)

    assert f"ORBIT_ALLOW_UIDS={SOMEBODY}" in answer["error"]["data"]["advice"]
    assert faults == {"uid": 1}
