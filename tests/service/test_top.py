"""The terminal view: what keys do, and that a frame is right at every size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from builders import HOUR, MINUTE, SECOND, T0
from orbit_rpc_schema.alerts import Alert
from orbit_rpc_schema.caller import CallFailed
from orbit_rpc_schema.procedures import (
    ErrorView,
    Health,
    LastLife,
    Metrics,
    PipelineRef,
    PipelineView,
    RunView,
    Summary,
    WorkerView,
)
from orbit_service.plain import plain
from orbit_service.top.answers import Answers, Questions, Unanswered
from orbit_service.top.state import State, keys, press
from orbit_service.top.view import Frame, count, cut, duration, fit, frame, span

# ---------------------------------------------------------------- what a service would answer


def a_metrics(**fields: Any) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "uptime": "1h 1m",
        "uptime_seconds": 3660,
        "total_runs": 420,
        "success_rate": 98.1,
        "error_rate": 1.9,
        "runs_per_hour": 413.11,
        "avg_execution_time": 135,
        "min_execution_time": 19,
        "max_execution_time": 661,
        "succeeded": 412,
        "failed": 8,
        "worker_start_time": T0 - HOUR,
        "last_run_time": T0 - 3 * SECOND,
        "timestamp": T0,
        "connected": True,
        "known": True,
        "workers_connected": 1,
        "p50": 109,
        "p95": 357,
        "p99": 474,
        "retries": 0,
        "last_life": None,
    }
    return Metrics(**{**numbers, **fields}).model_dump(by_alias=True)


def a_health(status: str = "healthy", message: str = "All is well") -> dict[str, Any]:
    health = Health(status=status, message=message, last_activity=T0, stuck_runs=[])
    return health.model_dump(by_alias=True)


def a_pipeline(name: str, runs: int = 10, failed: int = 0, p95: int | None = 100) -> dict[str, Any]:
    rate = 100 * failed / runs if runs else None
    times = dict.fromkeys(("avg", "min", "max", "p50", "p99"), p95)
    total = Summary(
        runs=runs, failed=failed, retries=0, p95=p95, runs_per_hour=runs, error_rate=rate, **times
    )
    return PipelineView(
        id=name, name=name, workers=["crew"], total=total, last_run=T0 - runs, last_success=None
    ).model_dump(by_alias=True)


def a_worker(name: str = "crew", **fields: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "node": "box",
        "connected": True,
        "sessions": 4,
        "worker_start_time": T0 - HOUR,
        "last_seen": T0,
        "last_run_time": T0 - 3 * SECOND,
        "total_runs": 420,
        "failed": 8,
        "retries": 0,
        "in_flight": 2,
        "oldest_in_flight": None,
        "avg_wait_time": 0,
        "max_wait_time": 0,
        "slots": 4,
        "hosts": ["box"],
        "versions": [],
        "runtimes": [],
        "queues": {},
        "last_life": None,
    }
    return WorkerView(name=name, **{**facts, **fields}).model_dump(by_alias=True)


def a_failure(pipeline: str = "send", type: str = "ValueError", message: str = "no") -> Any:
    return RunView(
        id="r1",
        status="failed",
        started_at=None,
        finished_at=T0 - 5 * MINUTE,
        duration_ms=None,
        attempt=1,
        worker="crew",
        pipeline=PipelineRef(id=pipeline, name=pipeline),
        steps=[],
        error=ErrorView(type=type, message=message),
    ).model_dump(by_alias=True)


def an_alert(summary: str = "send: too slow", **fields: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": "a1",
        "rule": "slow",
        "severity": "warning",
        "phase": "firing",
        "labels": {"pipeline": "send"},
        "metric": "p95",
        "value": 1.0,
        "value_text": "1 ms",
        "threshold": 1.0,
        "threshold_text": "1 ms",
        "since": T0 - HOUR,
        "fired_at": T0 - 5 * MINUTE,
        "clearing": False,
        "silenced_by": [],
        "acknowledged": None,
        "last_notified": None,
        "recovery": [],
        "error": None,
        "runbook": None,
    }
    return Alert(summary=summary, **{**facts, **fields}).model_dump(by_alias=True)


def answers(**fields: Any) -> Answers:
    given: dict[str, Any] = {
        "metrics": a_metrics(),
        "health": a_health(),
        "workers": [a_worker()],
        "balance": [],
        "pipelines": [a_pipeline("send", 400, 7), a_pipeline("weather", 20, 1)],
        "failures": [a_failure()],
        "alerts": [],
    }
    return Answers(**{**given, **fields})


def texts(frame: Frame) -> list[str]:
    return [line.plain for line in frame.lines]


def shown(
    answers: Answers, state: State | None = None, width: int = 100, height: int = 30, **more: Any
) -> str:
    return "\n".join(texts(frame(answers, state or State(), width, height, **more)))


def names(answers: Answers, state: State) -> list[str]:
    """The pipelines in the order in which they are shown."""
    lines = texts(frame(answers, State(**_fields(state), alone=True), 100, 60))
    body = lines[lines.index(next(line for line in lines if line.startswith("pipeline"))) + 1 : -1]
    return [line.split()[0] for line in body if line]


def _fields(state: State) -> dict[str, Any]:
    return {"sort": state.sort, "reverse": state.reverse, "filter": state.filter}


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("typed", "pressed"),
    [
        ("q", ["q"]),
        ("\x1b", ["escape"]),
        ("\x1b[A\x1b[B", ["up", "down"]),
        ("\x1bOA", ["up"]),
        ("\x1b[5~\x1b[6~", ["page up", "page down"]),
        ("\x1b[15~", []),  # F5
        ("\x1b[1;5C", []),  # Ctrl-right
        ("\x1bx", []),  # Alt-x
        ("\x00\x01", []),
        ("ä語", ["ä", "語"]),
        ("/ab\r", ["/", "a", "b", "enter"]),
    ],
)
def test_what_a_terminal_sends_is_read_as_keys(typed: str, pressed: list[str]) -> None:
    assert list(keys(typed)) == pressed


@given(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from("\x1b[O;5~A")))
def test_whatever_is_typed_makes_a_state_that_can_be_drawn(typed: str) -> None:
    state = State()
    for key in keys(typed):
        state = press(state, key, most_offset=3)

    assert len(frame(answers(), state, 40, 10).lines) == 10


@pytest.mark.parametrize(
    ("typed", "state"),
    [
        pytest.param("q", State(quit=True), id="q ends it"),
        pytest.param("\x1b", State(quit=True), id="Esc ends it"),
        pytest.param("\x03", State(quit=True), id="Ctrl-C ends it"),
        pytest.param("r", State(sort="runs"), id="a column is sorted by"),
        pytest.param("rr", State(sort="runs", reverse=True), id="again: the other way"),
        pytest.param("rrr", State(sort="runs"), id="and back"),
        pytest.param("rrn", State(sort="name"), id="another begins its own way"),
        pytest.param("jj\x1b[A", State(offset=1), id="scrolled"),
        pytest.param("G", State(offset=5), id="to the last"),
        pytest.param("Gg", State(), id="to the first"),
        pytest.param("\x1b[6~", State(offset=5), id="not past the last"),
        pytest.param("kk", State(), id="not before the first"),
        pytest.param("j\t", State(pane="workers"), id="the next pane, from its first row"),
        pytest.param("\x1b[Z", State(pane="failures"), id="the pane before"),
        pytest.param("3", State(pane="failures"), id="a pane by number"),
        pytest.param("\r", State(alone=True), id="alone"),
        pytest.param(" ", State(paused=True), id="pause"),
        pytest.param("  ", State(), id="and on"),
        pytest.param("?", State(help=True), id="help"),
        pytest.param("?q", State(), id="any key leaves the help"),
        pytest.param("/rq\r", State(filter="rq"), id="what is typed is no command"),
        pytest.param("/ab\x7f", State(filter="a", typing=True), id="backspace"),
        pytest.param("/ab\x15", State(typing=True), id="Ctrl-U"),
        pytest.param("/ab\x1b", State(), id="Esc drops the filter"),
        pytest.param("/a\x03", State(filter="a", typing=True, quit=True), id="Ctrl-C at any time"),
    ],
)
def test_a_key_does_what_the_help_says(typed: str, state: State) -> None:
    now = State()
    for key in keys(typed):
        now = press(now, key, most_offset=5)

    assert now == state


# ---------------------------------------------------------------- sorting and filtering

SOME = [a_pipeline("b", 9, 3, 10), a_pipeline("a", 30, 3, None), a_pipeline("c", 1, 1, 500)]


@pytest.mark.parametrize(
    ("state", "order"),
    [
        (State(sort="name"), ["a", "b", "c"]),
        (State(sort="name", reverse=True), ["c", "b", "a"]),
        (State(sort="runs"), ["a", "b", "c"]),
        (State(sort="errors"), ["c", "b", "a"]),
        (State(sort="last"), ["c", "b", "a"]),
        pytest.param(State(sort="failed"), ["a", "b", "c"], id="names settle ties"),
        pytest.param(State(sort="p95"), ["c", "b", "a"], id="without a value: last"),
        pytest.param(State(sort="p95", reverse=True), ["b", "c", "a"], id="either way"),
    ],
)
def test_rows_are_sorted_by_any_column(state: State, order: list[str]) -> None:
    assert names(answers(pipelines=SOME), state) == order


def test_the_column_that_is_sorted_by_is_marked() -> None:
    assert "failed▼" in shown(answers())
    assert "pipeline▲" in shown(answers(), State(sort="name"))


def test_a_filter_is_of_all_panes_and_heeds_no_case() -> None:
    text = shown(answers(), State(filter="SEND"))

    assert "send" in text
    assert "weather" not in text
    assert "nothing matches the filter" in text  # of the workers


def test_a_failure_is_found_by_its_message() -> None:
    found = answers(failures=[a_failure(message="disk full"), a_failure(message="timeout")])

    assert "timeout" not in shown(found, State(filter="disk"))


def test_scrolling_says_where_one_is() -> None:
    many = answers(pipelines=[a_pipeline(f"p{n:03}", 1000 - n) for n in range(100)])
    state = State(sort="name", alone=True, offset=10)

    assert "· 11 to 34 of 100" in shown(many, state)
    assert frame(many, state, 100, 30).most_offset == 76


# ---------------------------------------------------------------- sizes

LONG = answers(
    metrics=a_metrics(total_runs=10**12, failed=10**11, uptime="400d 23h 59m 59s"),
    health=a_health("error", "Half of the last hour's runs failed; " * 20),
    pipelines=[a_pipeline("日本" * 90, 10**12, 10**11, 10**10) for _ in range(50)],
    workers=[a_worker("👩‍💻" * 60, in_flight=10**9) for _ in range(50)],
    failures=[a_failure("x" * 200, "E" * 200, "line\nline " * 400) for _ in range(50)],
    alerts=[an_alert("日本\n" * 90) for _ in range(5_000)],
)


@pytest.mark.parametrize("said", [answers(), LONG], ids=["short", "long"])
@pytest.mark.parametrize("silent", [None, 12.0], ids=["answering", "silent"])
@pytest.mark.parametrize("state", [State(), State(help=True), State(filter="語" * 90, typing=True)])
def test_no_line_is_too_wide_and_none_too_many(
    said: Answers, silent: float | None, state: State
) -> None:
    for width in (1, 2, 7, 19, 20, 39, 40, 60, 80, 100, 250):
        for height in (1, 2, 3, 5, 10, 15, 16, 24, 30, 90):
            lines = texts(frame(said, state, width, height, silent))
            assert len(lines) <= height
            assert max(map(cell_len, lines)) <= width, (width, height)
            assert not any(character in line for line in lines for character in "\n\r\t\x1b")


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (40, "pipeline runs failed▼ err %"),
        (60, "pipeline runs failed▼ err % p95"),
        (80, "pipeline runs failed▼ err % p95 runs/h last"),
        (160, "pipeline runs failed▼ err % p95 avg p50 p99 runs/h last"),
    ],
)
def test_columns_go_by_importance(width: int, columns: str) -> None:
    heading = next(
        line for line in shown(answers(), width=width).split("\n") if line.startswith("pipeline")
    )
    assert " ".join(heading.split()) == columns


def test_a_low_terminal_has_the_pane_that_is_looked_at() -> None:
    text = shown(answers(), State(pane="failures"), height=12)

    assert "Last failures" in text
    assert "Pipelines" not in text


def test_without_a_height_every_row_is_there_and_no_keys() -> None:
    many = answers(pipelines=[a_pipeline(f"p{n:03}") for n in range(100)])
    text = "\n".join(texts(frame(many, State(), 80, None)))

    assert "p000" in text
    assert "p099" in text
    assert "quit" not in text


# ---------------------------------------------------------------- what is said


def test_the_totals_are_those_of_worker_metrics() -> None:
    text = shown(answers())
    for said in ("runs 420", "failed 8 (1.90 %)", "p95 357ms", "an hour 413", "last run 3 s ago"):
        assert said in text


def test_health_is_the_first_line() -> None:
    text = shown(answers(health=a_health("warning", "1 in flight for more than 10 min")))

    assert text.startswith("warning: 1 in flight for more than 10 min")


@pytest.mark.parametrize(
    ("alerts", "said"),
    [
        pytest.param(
            [an_alert("send: too slow")],
            "1 alert fires: warning for 5 min: send: too slow",
            id="one",
        ),
        pytest.param(
            [an_alert("mail: all fail", severity="critical"), an_alert()],
            "2 alerts fire: critical for 5 min: mail: all fail",
            id="the worst is the first",
        ),
        pytest.param(
            [an_alert("hushed", silenced_by=["s1"]), an_alert()],
            "2 alerts fire (1 silenced): warning for 5 min: send: too slow",
            id="the worst that is not silenced",
        ),
        pytest.param(
            [an_alert(silenced_by=["s1"])], "1 alert fires (1 silenced)", id="all are silenced"
        ),
        pytest.param(
            [an_alert("a\x1b[2Jb\nc")],
            "1 alert fires: warning for 5 min: a\ufffd[2Jb c",
            id="a hostile name",
        ),
    ],
)
def test_what_fires_is_the_second_line(alerts: list[Any], said: str) -> None:
    assert shown(answers(alerts=alerts)).split("\n")[1] == said


@pytest.mark.parametrize("alerts", [[], Unanswered("no such method")], ids=["none", "unanswered"])
def test_where_nothing_fires_no_line_says_so(alerts: Any) -> None:
    assert "alert" not in shown(answers(alerts=alerts))


def test_silence_is_said_with_its_length_and_reason() -> None:
    gone = answers(trouble="Connection refused")

    assert shown(gone, silent=12.3).startswith(
        "no answer for 12 s: Connection refused; trying again"
    )


def test_with_no_worker_the_last_life_is_told() -> None:
    life = LastLife(worker="crew", ended_at=T0 - 5 * MINUTE, reason="lost", total_runs=42, failed=1)
    gone = answers(metrics=a_metrics(connected=False, last_life=life))

    assert "no worker is connected; crew ended 5 min ago (lost): 42 runs, 1 failed" in shown(gone)


def test_a_worker_that_is_lost_is_marked_and_tells_what_it_was() -> None:
    life = LastLife(worker="crew", ended_at=T0, reason="lost", total_runs=42, failed=1)
    lost = a_worker(connected=False, total_runs=0, failed=0, last_life=life)
    row = next(line for line in shown(answers(workers=[lost])).split("\n") if "crew  " in line)

    assert row.split()[:4] == ["crew", "lost", "42", "1"]


def test_workers_of_one_name_are_told_apart_by_their_node() -> None:
    text = shown(answers(workers=[a_worker(node="left"), a_worker(node="right")]), width=80)

    assert "left" in text
    assert "right" in text


def test_what_a_hub_does_not_answer_is_said_in_its_place() -> None:
    text = shown(answers(failures=Unanswered("worker.recentRuns is answered by each node")))

    assert "worker.recentRuns is answered by each node" in text
    assert "send" in text


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("send", "send"),
        ("[red]x[/red]", "[red]x[/red]"),
        ("a\x1b[2Jb", "a�[2Jb"),
        ("a\x9b2Jb", "a�2Jb"),
        ("a\r\nb\tc", "a  b c"),
        ("a\u2028b", "a b"),
        ("\u202egnp.exe", "gnp.exe"),  # right to left
        ("👩‍💻", "👩💻"),  # joined: terminals do not agree how wide that is
        ("日本", "日本"),
        ("\ud800", "�"),
    ],
)
def test_a_hostile_name_is_text(given: str, text: str) -> None:
    assert plain(given) == text


def test_markup_in_a_name_is_shown_as_it_is() -> None:
    text = shown(answers(pipelines=[a_pipeline("[bold red]x[/]")], failures=[]))

    assert "[bold red]x[/]" in text


@given(st.text(), st.integers(1, 40))
def test_a_text_is_fitted_to_its_cells(text: str, width: int) -> None:
    harmless = plain(text)

    assert cell_len(cut(harmless, width)) <= width
    assert cell_len(fit(harmless, width)) == width


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "-"),
        (0, "0ms"),
        (999, "999ms"),
        (1_000, "1.0s"),
        (59_949, "59.9s"),
        (59_950, "1m00s"),
        (192_000, "3m12s"),
        (2 * HOUR + 5 * MINUTE, "2h05m"),
        (76 * HOUR, "3d04h"),
    ],
)
def test_durations_are_short(ms: int | None, text: str) -> None:
    assert duration(ms) == text


@pytest.mark.parametrize(
    ("number", "text"), [(999_999, "999,999"), (1_234_567, "1.23M"), (45_600_000_000, "45.60G")]
)
def test_large_counts_are_short(number: int, text: str) -> None:
    assert count(number) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(-5, "0 s"), (119_999, "119 s"), (120_000, "2 min"), (2 * HOUR, "2 h"), (72 * HOUR, "3 d")],
)
def test_ages_have_one_unit(ms: int, text: str) -> None:
    assert span(ms) == text


# ---------------------------------------------------------------- asking


def test_a_selection_is_of_everything_that_is_asked() -> None:
    asked: dict[str, Mapping[str, Any]] = {}

    def ask(method: str, params: Mapping[str, Any]) -> Any:
        asked[method] = params
        found: dict[str, Any] = {
            "worker.list": [a_worker("crew"), a_worker("other")],
            "worker.history": {"groups": []},
            "fleet.balance": {"workers": []},
            "alerts.list": {"alerts": []},
        }
        return found.get(method, {})

    said = Questions(ask, worker="crew").ask()

    assert [worker["name"] for worker in said.workers] == ["crew"]
    assert all(
        asked[method]["worker"] == "crew"
        for method in ("worker.metrics", "worker.recentRuns", "worker.history")
    )


def test_alerts_about_others_than_what_was_chosen_are_left_out() -> None:
    found = [an_alert(labels=labels) for labels in ({"pipeline": "send"}, {"pipeline": "x"}, {})]

    def ask(method: str, _params: Mapping[str, Any]) -> Any:
        if method == "alerts.list":
            return {"alerts": found}
        return [] if method.startswith("worker.") else {"workers": [], "pipelines": []}

    said = Questions(ask, pipeline="send").ask()

    assert said.alerts == [found[0], found[2]]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (CallFailed({"code": -32026, "message": "ask a node"}), "ask a node"),
        (TimeoutError("timed out"), "no answer within 5 s"),
    ],
)
def test_a_question_that_is_not_answered_leaves_the_others(error: Exception, why: str) -> None:
    def ask(method: str, _params: Mapping[str, Any]) -> Any:
        if method != "worker.metrics":
            raise error
        return a_metrics()

    said = Questions(ask).ask()

    assert said.metrics["totalRuns"] == 420
    assert said.failures == Unanswered(why)
