"""Answers about the past, from rows that come in any order."""

from __future__ import annotations

import random

import pytest

from builders import HOUR, MINUTE, MS, SECOND, T0
from orbit_service.core.outbox import ErrorText, Key
from orbit_service.core.rollup import BadRange, Range
from orbit_service.core.sessions import Life, Worker
from orbit_service.core.stats import Stats
from orbit_service.core.timeline import (
    Timeline,
    Totals,
    balance,
    covered_ms,
    pipeline_list,
    pipeline_metrics,
    pipeline_steps,
    summary,
)

START = T0 - T0 % HOUR
END = START + HOUR
SEND = Key("mailer", "send")


def runs(*durations_us: int, failed: int = 0, at_ms: int = START) -> Stats:
    stats = Stats()
    stats.add_runs(durations_us, failed, at_ms)
    return stats


def a_range(step: int = 10 * MINUTE) -> Range:
    return Range(START, END, step, level=1)


def totals(*rows: tuple[int, str, Key, Stats]) -> Totals:
    total = Totals()
    for row in rows:
        total.add(*row)
    return total


# ---------------------------------------------------------------- worker.history


def test_runs_stand_at_the_step_in_which_they_ended() -> None:
    line = Timeline(a_range(), None)
    for minute in (0, 9, 10, 59):
        line.add(START + minute * MINUTE, "n", SEND, runs(MS))
    [group] = line.view("1m", END).groups

    assert [point.runs for point in group.points] == [2, 1, 0, 0, 0, 1]
    assert [point.at for point in group.points] == [START + n * 10 * MINUTE for n in range(6)]
    assert group.total.runs == 4


def test_a_step_without_runs_is_empty_and_not_quick() -> None:
    [group] = Timeline(a_range(), None).view("1m", END).groups

    point = group.points[0]
    assert (point.runs, point.failed, point.runs_per_hour) == (0, 0, 0.0)
    assert {point.avg, point.min, point.max, point.p50, point.p95, point.error_rate} == {None}


def test_lost_runs_are_failures_without_a_duration() -> None:
    lost = Stats()
    lost.add_untimed_failure(START)
    found = summary(lost, HOUR)

    assert (found.runs, found.failed, found.error_rate, found.avg) == (1, 1, 100.0, None)


def test_a_rate_is_over_the_step_and_over_what_has_passed_of_the_last() -> None:
    line = Timeline(a_range(), None)
    line.add(START, "n", SEND, runs(*[MS] * 10))
    line.add(START + 50 * MINUTE, "n", SEND, runs(*[MS] * 10))
    [group] = line.view("1m", START + 55 * MINUTE).groups

    assert (group.points[0].runs_per_hour, group.points[-1].runs_per_hour) == (60.0, 120.0)
    assert group.total.runs_per_hour == 21.82


@pytest.mark.parametrize(
    ("by", "names"),
    [("worker", ["a", "b"]), ("pipeline", ["send", "fetch"]), ("node", ["m", "n"])],
)
def test_groups_stand_in_the_order_of_their_runs(by, names) -> None:
    line = Timeline(a_range(), by)
    line.add(START, "m", Key("a", "send"), runs(MS, MS))
    line.add(START, "n", Key("b", "fetch"), runs(MS))

    assert [group.name for group in line.view("1m", END).groups] == names


def test_a_trend_is_against_the_range_before() -> None:
    line = Timeline(a_range(), None, trend=True)
    line.add(START - HOUR, "n", SEND, runs(*[10 * MS] * 4, failed=1))
    line.add(START, "n", SEND, runs(*[15 * MS] * 6, failed=3))
    [group] = line.view("1m", END).groups

    assert group.trend is not None
    assert (group.trend.from_, group.trend.before.runs) == (START - HOUR, 4)
    assert (group.trend.runs_per_hour, group.trend.error_rate, group.trend.p95) == (
        50.0,
        25.0,
        50.0,
    )


def test_a_trend_from_nothing_is_none() -> None:
    line = Timeline(a_range(), None, trend=True)
    line.add(START, "n", SEND, runs(MS))
    [group] = line.view("1m", END).groups

    assert group.trend is not None
    assert {group.trend.runs_per_hour, group.trend.error_rate, group.trend.p95} == {None}


def test_more_points_than_can_be_answered_say_which_step_would_do() -> None:
    line = Timeline(a_range(10 * SECOND), "pipeline")
    for n in range(50):
        line.add(START, "n", Key("w", str(n)), runs(MS))

    with pytest.raises(BadRange, match=r"50 groups of 360 points are more than 10000: .* 20s"):
        line.view("10s", END)


# ---------------------------------------------------------------- pipelines


def test_pipelines_are_listed_with_who_runs_them() -> None:
    found = pipeline_list(
        totals(
            (START, "n", Key("a", "send"), runs(MS)),
            (START, "n", Key("b", "send"), runs(MS, failed=1, at_ms=START + SECOND)),
            (START, "n", Key("a", "fetch"), runs(MS)),
        ),
        START,
        END,
    )

    assert [(p.name, p.workers, p.total.runs) for p in found.pipelines] == [
        ("send", ["a", "b"], 2),
        ("fetch", ["a"], 1),
    ]
    assert (found.pipelines[0].last_run, found.pipelines[0].last_success) == (START + SECOND, START)


def test_a_bad_deploy_shows() -> None:
    older, newer = SEND._replace(version="1.0"), SEND._replace(version="1.1")
    found = pipeline_metrics(
        "send",
        totals(
            (START + 30 * MINUTE, "n", newer, runs(*[30 * MS] * 10, failed=5)),
            (START, "n", older, runs(*[10 * MS] * 20, failed=1)),
        ),
        {},
        START,
        END,
    )

    assert [(v.version, v.total.runs) for v in found.versions] == [("1.0", 20), ("1.1", 10)]
    assert found.change is not None
    assert (found.change.previous, found.change.version) == ("1.0", "1.1")
    assert (found.change.error_rate, found.change.p95) == (45.0, 200.0)
    assert found.total.runs == 30


def test_one_version_has_nothing_to_be_compared_with() -> None:
    found = pipeline_metrics("send", totals((START, "n", SEND, runs(MS))), {}, START, END)

    assert found.change is None
    assert [version.version for version in found.versions] == [None]


def test_error_types_stand_by_count_with_their_newest_text() -> None:
    def error(name: str, count: int) -> tuple[int, str, Key, Stats]:
        return START, "n", SEND._replace(error=name), Stats(runs=count, failed=count)

    texts = {
        ("n", SEND._replace(error="KeyError")): ErrorText(5, "older", None),
        ("m", SEND._replace(error="KeyError")): ErrorText(9, "newer", "Traceback"),
    }
    rows = totals(
        error("ValueError", 2), error("KeyError", 3), (START, "n", SEND, runs(*[MS] * 9, failed=6))
    )
    found = pipeline_metrics("send", rows, texts, START, END)

    assert [(e.type, e.count, e.message, e.traceback) for e in found.errors] == [
        ("KeyError", 3, "newer", "Traceback"),
        ("ValueError", 2, "", None),
    ]
    assert found.untyped_failures == 1


def test_steps_stand_by_their_share_of_the_time() -> None:
    parse, load = SEND._replace(step="parse"), SEND._replace(step="load")
    loaded = Stats()
    loaded.add_step(60 * MS, False, 3, START)
    found = pipeline_steps(
        "send",
        totals(
            (START, "n", SEND, runs(100 * MS)),
            (START, "n", parse, runs(10 * MS, failed=1)),
            (START, "n", load, loaded),
        ),
        START,
        END,
    )

    assert [(s.name, s.share_of_time, s.retries, s.failed) for s in found.steps] == [
        ("load", 60.0, 2, 0),
        ("parse", 10.0, 0, 1),
    ]
    assert (found.runs, found.steps[0].last_success, found.steps[1].last_success) == (
        1,
        START,
        None,
    )


# ---------------------------------------------------------------- balance


def a_worker(name: str, *, alive: bool = True, started_ms: int = START - HOUR) -> Worker:
    worker = Worker(name, END, node="n")
    worker.life = Life(1, started_ms, "s") if alive else None
    return worker


def test_shares_are_of_runs_and_of_busy_time() -> None:
    rows = totals(
        (START, "n", Key("a", "send"), runs(*[MS] * 30)),
        (START, "n", Key("b", "send"), runs(*[9 * MS] * 10)),
    )
    found = balance(rows, [a_worker("a"), a_worker("b")], START, END)

    assert [(w.worker, w.share_of_runs, w.share_of_busy_time) for w in found.workers] == [
        ("b", 25.0, 75.0),
        ("a", 75.0, 25.0),
    ]
    assert (found.skew.runs, found.skew.busy_time) == (1.5, 1.5)


def test_who_is_connected_and_idle_has_a_share_of_nothing() -> None:
    rows = totals((START, "n", Key("a", "send"), runs(MS)))
    found = balance(
        rows, [a_worker("a"), a_worker("idle"), a_worker("gone", alive=False)], START, END
    )

    assert [(w.worker, w.share_of_runs) for w in found.workers] == [("a", 100.0), ("idle", 0.0)]
    assert found.skew.runs == 2.0


def test_nothing_is_balanced() -> None:
    assert balance(totals(), [], START, END).skew.runs == 1.0


@pytest.mark.parametrize(
    ("life", "first", "covered"),
    [
        pytest.param(START - HOUR, START, HOUR, id="there all the time"),
        pytest.param(END - 10 * MINUTE, None, 10 * MINUTE, id="there for ten minutes"),
        pytest.param(END - MINUTE, END - 20 * MINUTE, 20 * MINUTE, id="with an earlier life"),
        pytest.param(None, END - MINUTE, HOUR, id="not connected"),
        pytest.param(END + MINUTE, None, 1, id="by a clock that is ahead"),
    ],
)
def test_of_a_range_counts_what_the_worker_was_there_for(life, first, covered) -> None:
    assert covered_ms(START, END, life, first) == covered


def test_a_worker_that_is_slower_than_the_others_is_named_with_the_evidence() -> None:
    chance = random.Random(3)
    rows = [
        (START, "n", Key(name, "send"), runs(*(chance.randrange(80, 100) * MS for _ in range(50))))
        for name in "abc"
    ]
    rows.append((START, "m", Key("slow", "send"), runs(*[400 * MS] * 50)))
    rows.append((START, "m", Key("few", "send"), runs(*[900 * MS] * 5)))
    [outlier] = balance(totals(*rows), [], START, END).outliers

    assert (outlier.worker, outlier.node, outlier.runs, outlier.others_runs) == (
        "slow",
        "m",
        50,
        150,
    )
    assert outlier.ratio == pytest.approx(4, rel=0.1)
    assert "slow on m is" in outlier.message
    assert "over 50 runs" in outlier.message


def test_alike_and_alone_nobody_is_slow() -> None:
    rows = [(START, "n", Key(name, "send"), runs(*[90 * MS] * 50)) for name in "ab"]
    rows.append((START, "n", Key("a", "alone"), runs(*[900 * MS] * 50)))

    assert balance(totals(*rows), [], START, END).outliers == []
