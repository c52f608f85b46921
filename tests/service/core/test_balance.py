"""How work is spread over workers, and who is slower than the others."""

from __future__ import annotations

import random
from statistics import median

import pytest

from builders import HOUR, MINUTE, MS
from orbit_service.core.balance import _median_without, balance, covered_ms
from orbit_service.core.outbox import Key
from orbit_service.core.sessions import Life, Worker
from rows import END, START, runs, totals


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


def test_the_median_of_the_others_is_that_of_the_others() -> None:
    chance = random.Random(5)
    for _ in range(200):
        values = sorted(chance.randrange(20) for _ in range(chance.randrange(2, 9)))
        for i, value in enumerate(values):
            assert _median_without(values, value) == int(median(values[:i] + values[i + 1 :]))
