"""What a message must hold beyond its types."""

from __future__ import annotations

from typing import Any

import pytest

from builders import a_batch, a_connect, a_record, a_start
from orbit_rpc_schema.messages import Batch, Detail, Error, Record, Step
from orbit_rpc_schema.wire import MAX_STEPS
from orbit_service.core.checks import Refused, check_connect, check_record, mended


def with_detail(**fields: Any) -> Batch:
    return a_batch(1, details={0: Detail(**fields)})


STEP = Step(name="parse", duration_us=1)
BAD_NAME = "characters without control characters"


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(a_record(1), id="nothing at all"),
        pytest.param(a_record(1, a_batch()), id="an empty column"),
        pytest.param(a_record(1, a_batch(1, 2, failed=[1, 0])), id="all failed, in any order"),
        pytest.param(a_record(1, a_batch(1, queue="mail")), id="a queue"),
        pytest.param(a_record(1, with_detail(id="r1", steps=[STEP] * MAX_STEPS)), id="100 steps"),
        pytest.param(a_record(1, started=[a_start()]), id="a start"),
    ],
)
def test_a_message_that_can_be_counted_passes(message: Record) -> None:
    assert check_record(message, known=()) is None


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        pytest.param(a_record(1, a_batch(1, failed=[1])), "failed names run 1 of 1", id="no run"),
        pytest.param(a_record(1, a_batch(failed=[0])), "failed names run 0 of 0", id="no runs"),
        pytest.param(a_record(1, a_batch(1, failed=[0, 0])), "twice", id="a failure twice"),
        pytest.param(
            a_record(1, a_batch(1, details={1: Detail()})), "details name run 1 of 1", id="detail"
        ),
        pytest.param(
            a_record(1, a_batch(1, details={-1: Detail()})), "details name run -1", id="negative"
        ),
        pytest.param(a_record(1, with_detail(steps=[STEP] * 101)), "101 steps", id="101 steps"),
        pytest.param(
            a_record(1, a_batch(1, pipeline="")),
            f"pipeline name is 1 to 200 {BAD_NAME}",
            id="pipeline",
        ),
        pytest.param(a_record(1, a_batch(1, queue="a\n")), "queue name", id="queue"),
        pytest.param(a_record(1, with_detail(id="x" * 201)), "run id", id="run id"),
        pytest.param(
            a_record(1, with_detail(steps=[Step(name="", duration_us=1)])), "step name", id="step"
        ),
        pytest.param(a_record(1, started=[a_start(id="\0")]), "run id", id="id of a start"),
        pytest.param(a_record(1, started=[a_start(pipeline="")]), "pipeline", id="its pipeline"),
        pytest.param(
            a_record(1, a_batch(1), a_batch(failed=[0])), "failed", id="any of its batches"
        ),
    ],
)
def test_one_that_cannot_is_refused_with_the_problem(message: Record, problem: str) -> None:
    with pytest.raises(Refused, match=problem):
        check_record(message, known=())


def test_a_pipeline_that_is_known_is_not_read_again() -> None:
    assert check_record(a_record(1, a_batch(1, pipeline="\n")), known={"\n"}) is None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        pytest.param({"worker": ""}, "worker name", id="no worker name"),
        pytest.param({"worker": "x" * 201}, "worker name", id="a long one"),
        pytest.param({"session": "a\0"}, "session id", id="a session id with NUL"),
        pytest.param({"running": [a_start(id="")]}, "run id", id="a run without an id"),
    ],
)
def test_a_hello_with_a_bad_name_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(Refused, match=problem):
        check_connect(a_connect(**fields))


def test_a_good_hello_passes() -> None:
    assert check_connect(a_connect(running=[a_start()])) is None


def test_texts_are_mended_not_refused() -> None:
    error = Error(type="Bad\nError", message="\0" + "m" * 2000, traceback="t" * 9000 + "\0")
    found = mended(Detail(id="r1", attempt=3, error=error))

    assert (found.id, found.attempt) == ("r1", 3)
    assert found.error == Error(
        type="Bad Error", message="\ufffd" + "m" * 999, traceback="t" * 7999 + "\ufffd"
    )


def test_a_detail_without_texts_stays_as_it_is() -> None:
    detail = Detail(id="r1")

    assert mended(detail) is detail
    assert mended(Detail(error=Error(type="E"))).error == Error(type="E")
