"""The newest runs of a worker."""

from __future__ import annotations

import pytest

from builders import HOUR, MS, SECOND, T0
from orbit_rpc_schema.messages import Detail, Error
from orbit_service.core.recent import KEPT_RUNS, KEPT_TEXT, Column, RecentRuns, Run


def a_column(key: str = "k", count: int = 1, at_ms: int = T0, **fields: object) -> Column:
    defaults = {"durations_us": [MS] * count, "failed": set()}
    return Column(key=key, pipeline="send", at_ms=at_ms, **{**defaults, **fields})  # type: ignore[arg-type]


def newest(*columns: Column, now_ms: int = T0) -> list[Run]:
    recent = RecentRuns()
    for column in columns:
        recent.add(column)
    return list(recent.newest(now_ms))


def ids(runs: list[Run]) -> list[str]:
    return [run.id for run in runs]


def test_of_a_column_the_last_run_is_the_newest() -> None:
    assert ids(newest(a_column(count=3))) == ["k.2", "k.1", "k.0"]


def test_columns_are_told_newest_first_whenever_they_came() -> None:
    early, late = a_column("early", at_ms=T0 - SECOND), a_column("late")

    assert ids(newest(late, early)) == ids(newest(early, late)) == ["late.0", "early.0"]


def test_of_columns_with_the_same_time_the_last_to_come_is_the_newest() -> None:
    assert ids(newest(a_column("a"), a_column("b"))) == ["b.0", "a.0"]


def test_a_run_knows_its_outcome_its_detail_and_when_it_began() -> None:
    detail = Detail(id="r1", attempt=2)
    column = a_column(durations_us=[3 * MS, 7 * MS], failed={0}, details={0: detail})
    fine, failed = newest(column)

    assert (fine.id, fine.success, fine.started_ms) == ("k.1", True, T0 - 7)
    assert (failed.id, failed.success, failed.started_ms) == ("r1", False, T0 - 3)
    assert failed.detail is detail


def test_a_run_without_a_duration_began_when_its_start_was_told() -> None:
    (run,) = newest(a_column(durations_us=[None], failed={0}, started_ms=T0 - 9))

    assert (run.duration_us, run.started_ms, run.finished_ms) == (None, T0 - 9, T0)


@pytest.mark.parametrize(
    ("later_ms", "kept"),
    [
        pytest.param(HOUR - 1, 1, id="within the hour"),
        pytest.param(HOUR, 0, id="after it"),
    ],
)
def test_runs_of_the_last_hour_are_told(later_ms: int, kept: int) -> None:
    assert len(newest(a_column(), now_ms=T0 + later_ms)) == kept


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([3000], id="one long column"),
        pytest.param([1] * 1500, id="many short ones"),
        pytest.param([700, 700], id="two that do not fit"),
        pytest.param([5, 1000], id="a full one"),
    ],
)
def test_at_most_a_thousand_runs_are_told_the_newest(sizes: list[int]) -> None:
    columns = [a_column(str(n), size, at_ms=T0 + n) for n, size in enumerate(sizes)]
    every = [f"{n}.{i}" for n, size in enumerate(sizes) for i in range(size)]

    assert ids(newest(*columns, now_ms=T0)) == every[: -KEPT_RUNS - 1 : -1]


def test_what_is_held_is_bounded() -> None:
    recent = RecentRuns()
    for number in range(100):
        recent.add(a_column(str(number), 999))

    assert sum(len(column.durations_us) for column in recent.columns) < 2 * KEPT_RUNS


def a_failure(key: str, characters: int) -> Column:
    """A run whose error has so many characters, half of them in its traceback."""
    half = characters // 2
    error = Error(type="E", message="m" * (characters - half), traceback="t" * half)
    return a_column(key, failed={0}, details={0: Detail(error=error)})


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        pytest.param([KEPT_TEXT // 4] * 5, ["4.0", "3.0", "2.0", "1.0"], id="the oldest goes"),
        pytest.param([KEPT_TEXT // 4] * 4, ["3.0", "2.0", "1.0", "0.0"], id="what fits stays"),
        pytest.param([1, KEPT_TEXT - 1, 1], ["2.0", "1.0"], id="to the character"),
        pytest.param([1, 1, KEPT_TEXT], ["2.0"], id="a long one leaves no room"),
        pytest.param([2 * KEPT_TEXT], ["0.0"], id="the newest stays, however long"),
    ],
)
def test_at_most_a_million_characters_of_errors_are_kept(texts: list[int], told: list[str]) -> None:
    assert KEPT_TEXT == 1_048_576
    assert ids(newest(*(a_failure(str(n), size) for n, size in enumerate(texts)))) == told


def test_runs_without_an_error_cost_no_text() -> None:
    plain = [a_column(str(n)) for n in range(KEPT_RUNS - 1)]

    assert len(newest(a_failure("long", 2 * KEPT_TEXT), *plain)) == KEPT_RUNS


def test_failures_and_details_stay_with_their_runs_when_older_ones_leave() -> None:
    details = {0: Detail(id="first"), 1000: Detail(id="last")}
    runs = newest(a_column(count=1001, failed={0, 1, 1000}, details=details))

    assert ids(runs)[:2] == ["last", "k.999"]
    assert [run.id for run in runs if not run.success] == ["last", "k.1"]


def test_a_run_keeps_its_id_when_newer_ones_come() -> None:
    old = a_column("old", 700)
    before = set(ids(newest(old)))
    after = {id for id in ids(newest(old, a_column("new", 700, T0 + 1))) if id.startswith("old")}

    assert after == {f"old.{i}" for i in range(400, 700)}
    assert after < before
