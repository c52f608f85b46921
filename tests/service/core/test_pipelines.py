"""Pipelines, their versions, errors and steps, from rows of windows."""

from __future__ import annotations

import pytest

from builders import MINUTE, MS, SECOND
from orbit_service.core.outbox import ErrorText, Key
from orbit_service.core.pipelines import pipeline_list, pipeline_metrics, pipeline_steps
from orbit_service.core.stats import Stats
from rows import END, SEND, START, runs, totals


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
            (START, "n", newer, runs(*[30 * MS] * 10, failed=5, at_ms=START + 30 * MINUTE)),
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
    loaded.add_runs([60 * MS], 0, START)
    for _ in range(2):
        loaded.add_unfinished_attempt()
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


def test_the_rate_of_a_version_is_over_the_time_in_which_it_ran() -> None:
    """Not over the windows in which its runs are: a deploy in the middle of an hour is none."""
    older, newer = SEND._replace(version="1.0"), SEND._replace(version="1.1")
    rows = []
    for minute in range(60):
        key = older if minute < 55 else newer
        rows.append((START, "n", key, runs(MS, at_ms=START + minute * MINUTE)))
    found = pipeline_metrics("send", totals(*rows), {}, START, END)

    assert [round(v.total.runs_per_hour) for v in found.versions] == [61, 60]
    assert found.change is not None
    assert found.change.runs_per_hour == pytest.approx(0, abs=2)
