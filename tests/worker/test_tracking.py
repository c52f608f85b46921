"""`track`: a run as a block or a function, in whatever way it ends."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from orbit_rpc_schema.wire import MAX_MESSAGE, MAX_NAME, MAX_STEPS, MAX_TRACEBACK
from orbit_worker import RunStep, record_run, track
from orbit_worker.testing import capture


@pytest.fixture
def captured():
    with capture() as client:
        yield client


def outcomes(captured):
    return [(run.pipeline, run.success) for run in captured.runs]


def fail_with(error):
    with track("job"):
        raise error


# ---------------------------------------------------------------- blocks and functions


def test_a_block_is_a_run(captured, monkeypatch):
    clock = SimpleNamespace(perf_counter=iter([1.0, 1.25]).__next__)
    monkeypatch.setattr("orbit_worker.tracking.time", clock)
    with track("job", queue="fast", wait_ms=2, attempt=3, id="r1"):
        pass

    [run] = captured.runs
    assert (run.pipeline, run.success, run.queue) == ("job", True, "fast")
    assert run.detail == {"id": "r1", "attempt": 3, "waitUs": 2000}
    assert run.duration_ms == 250


def test_a_run_without_an_id_gets_one_of_its_own(captured):
    with track("job") as first, track("job") as second:
        pass

    assert first.id != second.id
    assert [run.detail["id"] for run in captured.runs] == [second.id, first.id]


def test_a_decorated_function_takes_its_arguments_and_gives_its_result(captured):
    @track("job")
    def add(a, b=1):
        "Add."
        return a + b

    assert add(2, b=3) == 5
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert outcomes(captured) == [("job", True)]


def test_a_decorator_without_a_name_takes_the_functions(captured):
    @track
    def send_mail():
        pass

    send_mail()
    assert outcomes(captured) == [("send_mail", True)]


async def test_an_async_function_is_measured_until_it_has_run(captured):
    released = asyncio.Event()

    @track
    async def fetch():
        await released.wait()
        return 7

    task = asyncio.create_task(fetch())
    await asyncio.sleep(0)
    assert captured.runs == []
    released.set()
    assert await task == 7
    assert outcomes(captured) == [("fetch", True)]


async def test_an_async_block_is_a_run(captured):
    async with track("job") as run, track("part"):
        assert run.id

    assert outcomes(captured) == [("part", True), ("job", True)]


def test_a_function_calls_itself_and_each_call_is_a_run(captured):
    @track
    def count_down(n):
        return n and count_down(n - 1)

    count_down(3)
    assert outcomes(captured) == [("count_down", True)] * 4


async def test_a_block_shared_by_tasks_keeps_their_outcomes_apart(captured):
    tracker, both_in = track("job"), asyncio.Barrier(2)
    first_out = asyncio.Event()

    async def second():
        with tracker:
            await both_in.wait()
            await first_out.wait()

    async def first():
        with pytest.raises(KeyError), tracker as run:  # noqa: PT012
            with run.step("of the first"):
                await both_in.wait()
            raise KeyError
        first_out.set()

    await asyncio.gather(first(), second())
    failed, succeeded = captured.runs
    assert not failed.success
    assert [step["name"] for step in failed.detail["steps"]] == ["of the first"]
    assert succeeded.success
    assert "steps" not in succeeded.detail


def test_a_block_shared_by_threads_keeps_their_outcomes_apart(captured):
    tracker, inside, leave = track("job"), threading.Event(), threading.Event()

    def other():
        with tracker:
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    with pytest.raises(KeyError), tracker:  # noqa: PT012
        thread.start()
        inside.wait(5)
        raise KeyError
    leave.set()
    thread.join()

    assert [run.success for run in captured.runs] == [False, True]
    assert "error" not in captured.runs[1].detail


def a_generator():
    yield 1


async def an_async_generator():
    yield 1


@pytest.mark.parametrize("function", [a_generator, an_async_generator])
def test_a_generator_is_refused_because_its_call_ends_before_it_runs(function):
    with pytest.raises(TypeError, match="is a generator"):
        track(function)


def test_a_name_that_is_none_becomes_the_nearest_one(captured):
    with track("a\nb" + "c" * 300, queue="q\0"):
        pass

    [run] = captured.runs
    assert run.pipeline == ("a b" + "c" * 300)[:MAX_NAME]
    assert run.queue == "q"


@pytest.mark.parametrize("pipeline", [5, None, b"job"])
def test_a_name_of_another_type_is_a_type_error(pipeline):
    with pytest.raises(TypeError):
        track(pipeline)


@pytest.mark.parametrize(
    "wrong",
    [{"attempt": "2"}, {"attempt": 2.0}, {"attempt": None}, {"wait_ms": "5"}, {"queue": 5}],
    ids=str,
)
def test_a_wrong_type_is_told_before_the_block_and_not_after_its_work(captured, wrong):
    with pytest.raises(TypeError):
        track("job", **wrong)

    assert captured.runs == []


# ---------------------------------------------------------------- exceptions


@pytest.mark.parametrize(
    "error",
    [
        *[ValueError("no"), asyncio.CancelledError(), SystemExit(3)],
        *[KeyboardInterrupt(), GeneratorExit(), StopIteration(4)],
    ],
    ids=repr,
)
def test_whatever_leaves_the_block_is_a_failure_and_passes(captured, error):
    with pytest.raises(type(error)) as passed:
        fail_with(error)

    assert passed.value is error
    assert outcomes(captured) == [("job", False)]
    assert captured.runs[0].detail["error"]["type"] == type(error).__name__


async def test_a_cancelled_task_is_a_failure_and_stays_cancelled(captured):
    @track
    async def wait():
        await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outcomes(captured) == [("wait", False)]


def test_an_error_is_told_with_type_message_and_the_place_where_it_was_raised(captured):
    with pytest.raises(ValueError):
        fail_with(ValueError("not a number"))

    error = captured.runs[0].detail["error"]
    assert (error["type"], error["message"]) == ("ValueError", "not a number")
    assert "in fail_with" in error["traceback"]
    assert error["traceback"].endswith("ValueError: not a number\n")


def test_long_texts_are_cut_the_message_behind_and_the_traceback_in_front(captured):
    with pytest.raises(ValueError):
        fail_with(ValueError("m" * 20_000 + "end"))

    error = captured.runs[0].detail["error"]
    assert error["message"] == "m" * MAX_MESSAGE
    assert len(error["traceback"]) == MAX_TRACEBACK
    assert error["traceback"].endswith("mend\n")


def test_bytes_that_cannot_be_stored_are_replaced(captured):
    with pytest.raises(ValueError):
        fail_with(ValueError("a\0b\ud800c"))

    assert captured.runs[0].detail["error"]["message"] == "a\ufffdb\ufffdc"


def test_an_error_whose_text_cannot_be_made_is_still_told(captured):
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError

    with pytest.raises(Broken):
        fail_with(Broken())

    error = captured.runs[0].detail["error"]
    assert error["type"].endswith("Broken")
    assert error["message"] == "(its text cannot be made: RuntimeError)"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("no", {"type": "Error", "message": "no"}),
        ({"type": "T", "message": "m"}, {"type": "T", "message": "m"}),
        ({"type": "T", "traceback": "t"}, {"type": "T", "message": "", "traceback": "t"}),
    ],
)
def test_record_run_takes_an_error_as_text_or_mapping(captured, error, told):
    record_run(1, False, error=error)

    assert captured.runs[0].detail["error"] == told


# ---------------------------------------------------------------- steps


def test_steps_are_told_in_order_with_their_outcome(captured):
    with pytest.raises(KeyError), track("job") as run:  # noqa: PT012
        with run.step("download"):
            pass
        with run.step("parse"):
            raise KeyError

    download, parse = captured.runs[0].detail["steps"]
    assert (download["name"], "failed" in download) == ("download", False)
    assert (parse["name"], parse["failed"]) == ("parse", True)
    assert download["durationUs"] >= 0


def test_of_many_steps_the_first_hundred_are_told(captured):
    with track("job") as run:
        for n in range(MAX_STEPS + 5):
            with run.step(f"s{n}"):
                pass
    record_run(1, True, steps=[RunStep("s", 1)] * (MAX_STEPS + 5))

    assert [len(run.detail["steps"]) for run in captured.runs] == [MAX_STEPS, MAX_STEPS]


def test_record_run_takes_measured_steps(captured):
    record_run(9, True, steps=[RunStep("a", 1.5), RunStep("b", 2, success=False, attempts=3)])

    assert captured.runs[0].detail["steps"] == [
        {"name": "a", "durationUs": 1500},
        {"name": "b", "durationUs": 2000, "failed": True, "attempts": 3},
    ]


@pytest.mark.parametrize("clock", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_broken_clock_in_a_detail_refuses_no_run(client, service, clock):
    client.record_run(1, True, wait_ms=clock, steps=[RunStep("s", clock, attempts=0)])
    with client.track("job", wait_ms=clock, attempt=-1):
        pass
    client.flush()

    assert service.ask("worker.metrics")["totalRuns"] == 2


# ---------------------------------------------------------------- how far a run is


def test_a_heartbeat_tells_which_steps_ended_and_which_are_under_way(captured):
    with track("import", id="r1") as run:
        with run.step("download"):
            pass
        with run.step("parse"):
            [tell] = captured._buffer.progress.values()
            told = tell()

    assert (told["id"], told["pipeline"], told["now"]) == ("r1", "import", ["parse"])
    assert [step["name"] for step in told["done"]] == ["download"]
    assert not captured._buffer.progress  # it has ended
