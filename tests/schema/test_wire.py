"""Framing, names, texts, encoders, and the defaults that meet."""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import T0
from orbit_rpc_schema.messages import Connect, Heartbeat, Record
from orbit_rpc_schema.wire import (
    LIMITS,
    MAX_LINE,
    MAX_NAME,
    MAX_TRACEBACK,
    LineDecoder,
    LineTooLong,
    as_name,
    as_text,
    as_traceback,
    connect_line,
    connect_params,
    default_socket_path,
    default_worker_name,
    encode,
    heartbeat_line,
    is_name,
    notification,
    record_line,
    request,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)

TOO_LONG = "too long"
LIMIT = 8


def lines(*chunks: bytes, limit: int = LIMIT) -> list[bytes | str]:
    """What a decoder makes of these reads; TOO_LONG where it skipped a line."""
    decoder = LineDecoder(limit)
    return [
        TOO_LONG if isinstance(line, LineTooLong) else line
        for chunk in chunks
        for line in decoder.feed(chunk)
    ]


def lines_by_definition(data: bytes, limit: int = LIMIT) -> list[bytes | str]:
    *complete, rest = data.split(b"\n")
    found: list[bytes | str] = [
        TOO_LONG if len(line) > limit else line
        for line in complete
        if line.strip() or len(line) > limit
    ]
    return [*found, TOO_LONG] if len(rest) > limit else found


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


streams = st.lists(st.sampled_from([b"a", b"{}", b" ", b"\r", b"\n", b"0123456"]), max_size=30).map(
    b"".join
)
cuts = st.lists(st.integers(0, 120), max_size=12)
any_text = st.text(st.characters(), max_size=300)  # lone surrogates and NUL among it


# ---------------------------------------------------------------- framing


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        pytest.param([b"one\ntwo\n"], [b"one", b"two"], id="two lines in one read"),
        pytest.param([b"o", b"n", b"e\n"], [b"one"], id="one line in three reads"),
        pytest.param([b"one\ntw"], [b"one"], id="an unfinished line waits"),
        pytest.param([b"\n \n\r\n\none\n"], [b"one"], id="empty lines are left out"),
        pytest.param([b"x" * 8 + b"\n"], [b"x" * 8], id="a line of just the limit passes"),
        pytest.param([b"x" * 9 + b"\nok\n"], [TOO_LONG, b"ok"], id="a longer one is skipped"),
        pytest.param([b"x" * 9], [TOO_LONG], id="it is told before its newline comes"),
        pytest.param([b"x" * 9, b"x" * 9, b"x\nok\n"], [TOO_LONG, b"ok"], id="and told once"),
        pytest.param([b"x" * 5, b"x" * 5 + b"\nok\n"], [TOO_LONG, b"ok"], id="over two reads"),
        pytest.param([b"", b"one\n", b""], [b"one"], id="an empty read means nothing"),
    ],
)
def test_bytes_are_cut_into_lines(chunks: list[bytes], expected: list[bytes | str]) -> None:
    assert lines(*chunks) == expected


@quick
@given(streams, cuts)
def test_however_the_bytes_are_split_the_lines_are_the_same(data: bytes, cuts: list[int]) -> None:
    assert lines(*pieces(data, cuts)) == lines_by_definition(data)


@quick
@given(streams, cuts)
def test_a_decoder_never_holds_more_than_the_limit(data: bytes, cuts: list[int]) -> None:
    decoder = LineDecoder(LIMIT)
    for piece in pieces(data, cuts):
        list(decoder.feed(piece))
        assert len(decoder._partial) <= LIMIT


def test_a_megabyte_without_a_newline_is_not_kept() -> None:
    decoder = LineDecoder(1_000)
    found = [line for _ in range(1_000) for line in decoder.feed(b"x" * 1_000)]

    assert len(found) == 1
    assert len(decoder._partial) == 0


@pytest.mark.parametrize(
    ("data", "unfinished"),
    [
        pytest.param(b"", False, id="nothing came"),
        pytest.param(b"one\n", False, id="after a newline"),
        pytest.param(b"one\ntw", True, id="in a line"),
        pytest.param(b"x" * 9, True, id="in a line that is skipped"),
        pytest.param(b"x" * 9 + b"\n", False, id="after one that was skipped"),
    ],
)
def test_a_decoder_knows_whether_it_stands_in_a_line(data: bytes, unfinished: bool) -> None:
    decoder = LineDecoder(LIMIT)
    list(decoder.feed(data))

    assert decoder.unfinished is unfinished


# ---------------------------------------------------------------- names and texts


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        pytest.param("send", True, id="a word"),
        pytest.param("Büro / Öl 🛢", True, id="any script"),
        pytest.param("x" * MAX_NAME, True, id="200 characters"),
        pytest.param("", False, id="nothing"),
        pytest.param("x" * (MAX_NAME + 1), False, id="201 characters"),
        pytest.param("a\nb", False, id="a newline"),
        pytest.param("a\0b", False, id="NUL"),
        pytest.param("a\x7fb", False, id="DEL"),
        pytest.param("a\x85b", False, id="a C1 control"),
        pytest.param("a\u2028b", False, id="a line separator"),
        pytest.param("a\ud800b", False, id="a lone surrogate"),
    ],
)
def test_a_name_is_1_to_200_characters_without_control_characters(text: str, legal: bool) -> None:
    assert is_name(text) is legal


@pytest.mark.parametrize(
    ("text", "name"),
    [
        pytest.param("send", "send", id="a legal one stays"),
        pytest.param("a\tb", "a b", id="a control character becomes a space"),
        pytest.param("\n a \n", "a", id="none at the ends"),
        pytest.param("x" * 300, "x" * 200, id="a long one is cut"),
        pytest.param("", "unnamed", id="nothing has a name"),
        pytest.param("\0\0", "unnamed", id="nothing printable too"),
    ],
)
def test_any_text_has_a_nearest_name(text: str, name: str) -> None:
    assert as_name(text) == name


@quick
@given(any_text)
def test_what_is_made_a_name_is_one(text: str) -> None:
    assert is_name(as_name(text))


@quick
@given(any_text, st.integers(0, 300))
def test_a_text_is_made_storable_and_cut_to_its_beginning(text: str, limit: int) -> None:
    stored = as_text(text, limit)

    assert len(stored) == min(len(text), limit)
    assert "\0" not in stored
    assert stored.encode("utf-8") or not stored
    assert all(new in (old, "\ufffd") for old, new in zip(text, stored, strict=False))


def test_of_a_long_traceback_the_end_is_kept() -> None:
    text = "x" * MAX_TRACEBACK + "\0ValueError: no"

    assert len(as_traceback(text)) == MAX_TRACEBACK
    assert as_traceback(text).endswith("x\ufffdValueError: no")


# ---------------------------------------------------------------- encoding


@quick
@given(st.dictionaries(any_text, any_text | st.integers() | st.none(), max_size=5))
def test_a_message_is_one_line_and_reads_back_the_same(message: dict[str, Any]) -> None:
    line = encode(message)

    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line) == message


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_has_no_number_for_is_not_written(number: float) -> None:
    with pytest.raises(ValueError):
        encode({"n": number})


def test_messages_are_json_rpc_2() -> None:
    assert notification("m", {"a": 1}) == {"jsonrpc": "2.0", "method": "m", "params": {"a": 1}}
    assert request(7, "m", [1]) == {"jsonrpc": "2.0", "id": 7, "method": "m", "params": [1]}


def test_the_service_reads_a_record_as_it_was_meant() -> None:
    batch = {"pipeline": "send", "at": T0, "durationUs": [1200, 90], "failed": [1]}
    start = {"id": "r1", "pipeline": "send", "startedAt": T0}
    line = record_line(
        seq=7,
        recorded=9,
        dropped={"full": 1},
        batches=[batch],
        started=[start],
        withdrawn=[{"id": "r2", "pipeline": "send"}],
    )
    message = msgspec.convert(json.loads(line)["params"], Record)

    assert (message.seq, message.recorded, message.dropped) == (7, 9, {"full": 1})
    assert (message.batches[0].duration_us, message.batches[0].failed) == ([1200, 90], [1])
    assert (message.started[0].id, message.started[0].attempt) == ("r1", None)
    assert message.withdrawn[0].id == "r2"


def test_a_record_without_starts_does_not_mention_them() -> None:
    line = record_line(seq=1, recorded=0, dropped={}, batches=[])

    assert json.loads(line)["params"].keys().isdisjoint({"started", "withdrawn"})


def test_the_service_reads_a_heartbeat_as_it_was_meant() -> None:
    totals: dict[str, Any] = {"seq": 8, "recorded": 9, "dropped": {"full": 1}, "in_flight": 2}
    gauges: dict[str, Any] = {"rss_bytes": 5, "queues": {"mail": 3}, "oldest": {"mail": T0}}
    line = heartbeat_line(**totals, **gauges, cpu_seconds=1.23456, last_report_at_ms=T0)
    beat = msgspec.convert(json.loads(line)["params"], Heartbeat)

    assert {name: getattr(beat, name) for name in totals} == totals
    assert {name: getattr(beat, name) for name in gauges} == gauges
    assert (beat.cpu_seconds, beat.last_report_at) == (1.235, T0)


def test_a_heartbeat_without_queues_does_not_claim_that_they_are_empty() -> None:
    line = heartbeat_line(seq=1, recorded=0, dropped={}, in_flight=0, cpu_seconds=0.0, rss_bytes=0)

    assert json.loads(line)["params"].keys().isdisjoint({"queues", "oldest", "lastReportAt"})


def test_the_service_reads_a_hello_as_it_was_meant() -> None:
    running = [{"id": "r1", "pipeline": "send", "startedAt": T0}]
    params = connect_params(
        session="s1",
        worker="mailer",
        started_at_ms=T0,
        running=running,
        version="1.2",
        framework="celery 5.6",
        slots=4,
        queues=["mail"],
    )
    hello = msgspec.convert(json.loads(encode(params)), Connect)

    assert (hello.session, hello.worker, hello.started_at) == ("s1", "mailer", T0)
    assert (hello.version, hello.slots, hello.queues) == ("1.2", 4, ["mail"])
    assert hello.runtime is not None
    assert hello.runtime.endswith(", celery 5.6")
    assert hello.running[0].id == "r1"


def test_a_hello_with_too_many_runs_in_flight_names_the_newest_that_a_line_holds() -> None:
    running = [{"id": f"{n:0200}", "pipeline": "p" * 200, "startedAt": T0} for n in range(20_000)]
    params = connect_params(session="s", worker="w", started_at_ms=T0, running=running)
    line = connect_line(1, params)

    named = json.loads(line)["params"]["running"]
    assert len(line) <= MAX_LINE
    assert 1_000 < len(named) < 10_000
    assert named[-1] == running[-1]


def test_the_limits_of_the_contract_are_what_they_were() -> None:
    assert LIMITS == {
        "line": 1_048_576,
        "name": 200,
        "message": 1_000,
        "traceback": 8_000,
        "steps": 100,
        "running": 10_000,
        "durationUs": 315_576_000_000_000,
        "aheadMs": 60_000,
    }


# ---------------------------------------------------------------- defaults that meet


def test_the_socket_is_where_it_was_said_to_be() -> None:
    assert default_socket_path({"ORBIT_SOCKET": "/x/y.sock"}) == Path("/x/y.sock")


@pytest.mark.skipif(Path("/run/orbit-metrics").is_dir(), reason="this machine has a service")
def test_else_it_is_below_the_runtime_directory_of_the_user() -> None:
    path = default_socket_path({"XDG_RUNTIME_DIR": "/run/user/7"})

    assert path == Path("/run/user/7/orbit-metrics/worker.sock")


@pytest.mark.skipif(Path("/run/orbit-metrics").is_dir(), reason="this machine has a service")
def test_else_it_is_in_a_temporary_directory_of_this_user_alone() -> None:
    own = f"orbit-metrics-{os.getuid()}/worker.sock"

    assert default_socket_path({}) == Path("/tmp") / own
    assert default_socket_path({"TMPDIR": "/not/there"}) == Path("/not/there") / own


@pytest.mark.parametrize(
    ("argv", "program"),
    [
        pytest.param(["/app/mailer.py", "--fast"], "mailer", id="a script"),
        pytest.param(["/usr/bin/celery"], "celery", id="a command"),
        pytest.param(["/app/mailer/__main__.py"], "mailer", id="a package"),
        pytest.param(["-c"], "python", id="python -c"),
        pytest.param([""], Path(sys.executable).stem, id="a shell"),
    ],
)
def test_a_worker_is_named_by_host_and_program(
    argv: list[str], program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)

    host, _, name = default_worker_name({}).rpartition(":")
    assert (bool(host), name) == (True, program)


def test_a_worker_is_named_as_it_was_told() -> None:
    assert default_worker_name({"ORBIT_WORKER_NAME": "a\tb"}) == "a b"
