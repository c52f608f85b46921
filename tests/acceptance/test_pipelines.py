"""The pipeline worker as a process: executes, records, recovers, drains."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from builders import ENTRY, command, environment, until
from orbit_rpc_schema.caller import CallFailed, call
from orbit_worker.pipelines.store import Store, database_url
from orbit_worker.pipelines.worker import RESTART_CODE

PIPELINES = """
import time
from pathlib import Path
from orbit_worker.pipelines import Pipeline, step

def note(value):
    with open(Path(value["folder"]) / "log", "a") as log:
        log.write(value["name"] + "\\n")
    return value

def gate(value):
    note({**value, "name": "at the gate"})
    while not (Path(value["folder"]) / "open").exists():
        time.sleep(0.01)
    return value

def double(n): return 2 * n
def fail(n): raise ValueError(f"{n} is wrong")

double_it = Pipeline("double", steps=[double])
failing = Pipeline("failing", steps=[double, fail])
gated = Pipeline("gated", steps=[note, gate, step(name="end")(note)])
"""


class Place:
    """A folder with pipelines, a database, and what is done there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pipelines").mkdir()
        (folder / "pipelines" / "some.py").write_text(PIPELINES)
        self.settings = {
            "ORBIT_PIPELINES_DATABASE": str(folder / "pipelines.db"),
            "ORBIT_WORKER_NAME": "pipelines",
            "POLL_INTERVAL": "200",
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return command(self.folder, "run", *arguments, **self.settings)

    def gated(self, name: str) -> str:
        given = json.dumps({"folder": str(self.folder), "name": name})
        return self.run("gated", "--input", given).stdout.strip()

    def open_gate(self) -> None:
        (self.folder / "open").touch()

    @contextmanager
    def store(self) -> Iterator[Store]:
        store = Store(database_url(self.settings["ORBIT_PIPELINES_DATABASE"]))
        yield store
        store.close()

    def log(self) -> list[str]:
        path = self.folder / "log"
        return path.read_text().splitlines() if path.exists() else []

    def worker_log(self) -> str:
        return (self.folder / "worker.log").read_text()

    @contextmanager
    def worker(self, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [*ENTRY, "worker"],
                env=environment(self.folder, **{**self.settings, **settings}),
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def finished(service: Any, runs: int) -> Any:
    return until(lambda: service.ask("worker.stats")["runsLast24Hours"] >= runs)


def begun(service: Any, runs: int) -> Any:
    return until(lambda: service.ask("worker.stats")["running"] == runs)


def test_a_pending_run_is_executed_and_its_result_printed(place, service):
    with place.worker():
        done = place.run("double", "--input", "21", "--wait")

    assert (done.returncode, json.loads(done.stdout)) == (0, 42)


def test_a_failing_run_ends_the_wait_with_1_and_is_recorded_with_its_steps_and_error(
    place, service
):
    with place.worker():
        done = place.run("failing", "--input", "3", "--wait")
        finished(service, 1)
        [run] = service.ask("worker.recentRuns", {"status": "failed"})

    assert (done.returncode, "ValueError: 6 is wrong" in done.stderr) == (1, True)
    assert [(s["name"], s["status"]) for s in run["steps"]] == [
        ("double", "success"),
        ("fail", "failed"),
    ]
    assert (run["error"]["type"], run["attempt"]) == ("ValueError", 1)


def test_an_interrupted_run_is_taken_up_and_no_finished_step_executed_twice(place, service):
    with place.worker() as killed:
        place.gated("one")
        until(lambda: "at the gate" in place.log())
        begun(service, 1)  # that it has begun is known, or nobody could know that it is lost
        killed.kill()
    place.open_gate()
    with place.worker():
        finished(service, 2)

    assert place.log() == ["one", "at the gate", "at the gate", "one"]
    lost, done = sorted(service.ask("worker.recentRuns"), key=lambda run: run["finishedAt"])
    assert (lost["error"]["type"], done["status"], done["attempt"]) == ("WorkerLost", "success", 2)


def test_a_worker_that_is_busy_takes_up_the_run_of_a_killed_one(place, service):
    with place.worker(ORBIT_CONCURRENCY="1"):
        place.gated("one")
        until(lambda: place.log().count("at the gate") == 1)
        # The limit is the queue's, and the last to register sets it for all: with another one
        # here, the first worker might take up both.
        with place.worker(ORBIT_CONCURRENCY="1") as killed:
            two = place.gated("two")
            until(lambda: place.log().count("at the gate") == 2)
            begun(service, 2)
            killed.kill()
        until(lambda: f"taking up run {two}" in place.worker_log())
        done_until_then = service.ask("worker.stats")["successCount"]
        place.open_gate()
        finished(service, 3)

    assert done_until_then == 0, "the run that kept the other worker busy"
    assert service.ask("worker.stats")["successCount"] == 2


def test_a_run_cancelled_and_put_back_is_one_run_and_an_attempt(place, service):
    with place.worker():
        id = place.gated("one")
        until(lambda: place.log().count("at the gate") == 1)
        with place.store() as store:
            store.client.cancel_workflow(id)
            store.put_back(id)
        until(lambda: place.log().count("at the gate") == 2)
        place.open_gate()
        finished(service, 1)
        metrics = until(
            lambda: (m := service.ask("worker.metrics"))["retries"] and m  # the first execution's
        )

    assert (metrics["totalRuns"], metrics["succeeded"], metrics["retries"]) == (1, 1, 1)


def test_a_cancelled_run_is_recorded_as_failed_and_executes_no_further_step(place, service):
    with place.worker():
        id = place.gated("one")
        until(lambda: "at the gate" in place.log())
        with place.store() as store:
            store.client.cancel_workflow(id)
        place.open_gate()
        finished(service, 1)
        until(lambda: f"run {id} of gated was broken off" in place.worker_log())
        assert place.run("double", "--input", "21", "--wait").returncode == 0
        [failed] = service.ask("worker.recentRuns", {"status": "failed"})

    assert (failed["id"], failed["error"]["type"]) == (id, "Cancelled")
    assert place.log() == ["one", "at the gate"]
    assert "Traceback" not in place.worker_log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_finishes_what_is_in_flight_and_leaves_with_0(place, service, number):
    with place.worker() as worker:
        place.gated("one")
        until(lambda: "at the gate" in place.log())
        worker.send_signal(number)
        until(lambda: "stopping: 1 runs in flight" in place.worker_log())
        place.gated("two")
        place.open_gate()
        code = worker.wait(timeout=40)

    assert (code, place.log()) == (0, ["one", "at the gate", "one"])
    assert service.ask("worker.metrics", {"worker": "pipelines"})["lastLife"]["totalRuns"] == 1


# ---------------------------------------------------------------- control


def obeyed(service: Any, *command: str | None) -> list[str]:
    """What the sessions of the worker made of a control message, as soon as there are any."""
    return until(lambda: sorted(service.control("pipelines", *command).result(30).values()))


def test_while_a_pipeline_is_paused_its_runs_stay_pending_and_others_run(place, service):
    with place.worker(), place.store() as store:
        assert place.run("double", "--input", "1", "--wait").returncode == 0
        assert obeyed(service, "pause", "double") == ["done"]
        held = store.enqueue("double", range(10))
        # Behind them, and executed: the slots are not theirs.
        assert place.run("failing", "--input", "3", "--wait").returncode == 1
        pending = store.pending(100)
        assert obeyed(service, "resume", "double") == ["done"]
        values = [store.wait(id)["value"] for id in held]
        finished(service, 12)

    assert (pending, values) == (10, [2 * n for n in range(10)])
    assert service.ask("worker.stats")["runsLast24Hours"] == 12
    assert place.worker_log().count("paused: double;") == 1
    assert place.worker_log().count("resumed: double") == 1


def test_a_pipeline_is_paused_in_postgresql_too(place, service, postgres):
    place.settings["ORBIT_PIPELINES_DATABASE"] = postgres.make("paused-runs")
    with place.worker(), place.store() as store:
        assert obeyed(service, "pause", "double") == ["done"]
        [held] = store.enqueue("double", [21])
        assert place.run("failing", "--input", "3", "--wait").returncode == 1
        pending = store.pending(100)
        assert obeyed(service, "resume", "double") == ["done"]
        assert (pending, store.wait(held)["value"]) == (1, 42)


def test_while_all_is_paused_what_runs_goes_on_and_nothing_begins(place, service):
    with place.worker() as worker, place.store() as store:
        running = place.gated("one")
        until(lambda: "at the gate" in place.log())
        assert obeyed(service, "pause", None) == ["done"]
        held = [*store.enqueue("double", [21]), *store.enqueue("nobody's", [1])]
        place.open_gate()
        store.wait(running)
        worker.terminate()
        assert worker.wait(40) == 0
        pending = store.pending(100)

    assert pending == 2
    with place.worker(), place.store() as store:  # a pause ends with its process
        assert [store.wait(id)["value"] for id in held] == [42, 1]


def test_a_paused_worker_leaves_its_runs_to_another_of_the_same_database(place, service):
    with place.worker(), place.worker(ORBIT_WORKER_NAME="another"), place.store() as store:
        assert obeyed(service, "pause", "double") == ["done"]
        until(lambda: service.ask("worker.metrics", {"worker": "another"})["connected"])
        held = store.enqueue("double", range(10))
        assert [store.wait(id)["value"] for id in held] == [2 * n for n in range(10)]
        finished(service, 10)
        totals = [
            service.ask("worker.metrics", {"worker": name})["totalRuns"]
            for name in ("pipelines", "another")
        ]

    assert totals == [0, 10]


def test_each_process_of_the_worker_is_told(place, service):
    with place.worker(), place.worker(), place.store() as store:
        until(lambda: obeyed(service, "pause", None) == ["done", "done"])
        [held] = store.enqueue("double", [21])
        assert obeyed(service, "resume", None) == ["done", "done"]
        assert store.wait(held)["value"] == 42


def test_no_run_is_lost_or_executed_twice_however_often_it_is_paused(place, service):
    place.open_gate()
    names = [str(number) for number in range(60)]
    with place.worker(), place.worker(), place.store() as store:
        until(lambda: obeyed(service, "pause", "gated") == ["done", "done"])
        ids = store.enqueue("gated", [{"folder": str(place.folder), "name": n} for n in names])
        while store.pending(1):
            obeyed(service, "resume", "gated")
            obeyed(service, "pause", "gated")
        for id in ids:
            store.wait(id)

    # Each notes its name as it begins and as it ends.
    assert Counter(place.log()) == {"at the gate": 60, **dict.fromkeys(names, 2)}


@pytest.mark.parametrize(
    ("command", "outcome"),
    [
        (("pause", "nobody's"), "refused"),
        (("resume", "nobody's"), "refused"),
        (("restart", "nobody's"), "refused"),
        (("dance", None), "unknown"),
    ],
)
def test_a_command_that_does_not_concern_the_worker_changes_nothing(
    place, service, command, outcome
):
    with place.worker():
        assert place.run("double", "--input", "1", "--wait").returncode == 0
        assert obeyed(service, *command) == [outcome]
        assert place.run("double", "--input", "21", "--wait").stdout.strip() == "42"


def test_a_restart_finishes_what_is_in_flight_and_leaves_with_the_code_to_be_started_again(
    place, service
):
    with place.worker() as worker:
        place.gated("one")
        until(lambda: "at the gate" in place.log())
        assert obeyed(service, "restart", None) == ["done"]
        until(lambda: "stopping: 1 runs in flight" in place.worker_log())
        two = place.gated("two")
        place.open_gate()
        assert worker.wait(timeout=40) == RESTART_CODE
    assert place.log() == ["one", "at the gate", "one"]

    with place.worker(), place.store() as store:
        store.wait(two)
        finished(service, 2)
    assert place.log() == ["one", "at the gate", "one", "two", "at the gate", "two"]
    assert service.ask("worker.stats")["failedCount"] == 0


def test_a_signal_while_a_restart_drains_ends_nothing_sooner_and_is_no_failure(place, service):
    with place.worker() as worker:
        place.gated("one")
        until(lambda: "at the gate" in place.log())
        obeyed(service, "restart", None)
        until(lambda: "stopping: 1 runs in flight" in place.worker_log())
        worker.terminate()
        place.open_gate()
        assert worker.wait(timeout=40) == 0

    assert place.log() == ["one", "at the gate", "one"]


def test_an_idle_worker_answers_before_it_leaves_for_its_restart(place, service):
    with place.worker() as worker:
        until(lambda: service.ask("worker.metrics")["connected"])
        assert obeyed(service, "restart", None) == ["done"]
        assert worker.wait(timeout=40) == RESTART_CODE


# ---------------------------------------------------------------- at once, and on the command line


def test_several_runs_are_executed_at_once_and_no_more_than_the_setting_says(place, service):
    for name in "abcdef":
        place.gated(name)
    with place.worker():
        until(lambda: place.log().count("at the gate") >= 4)
        until(lambda: service.ask("worker.stats")["running"] >= 4)
        now = service.ask("worker.stats")
        place.open_gate()
        finished(service, 6)

    assert (now["running"], now["pendingKnown"]) == (4, True)
    assert sorted(set(place.log()) - {"at the gate"}) == list("abcdef")


def test_an_unknown_pipeline_is_an_error_that_lists_the_known_ones(place):
    done = place.run("dubble")

    assert done.returncode == 1
    assert "known are: double, failing, gated" in done.stderr


def test_without_pipelines_the_worker_says_where_it_looked_and_leaves_with_1(tmp_path):
    done = command(tmp_path, "worker", "--pipelines", "nowhere")

    assert (done.returncode, str(tmp_path / "nowhere") in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LOG_LEVEL", "LOUD", "LOG_LEVEL=LOUD is none of"),
        ("POLL_INTERVAL", "soon", "POLL_INTERVAL=soon is not a number"),
        ("ORBIT_PIPELINES_DATABASE", "mysql://box/runs", "the database is a path, or a URL of"),
        ("ORBIT_PIPELINES_DATABASE", "sqlite:///", "the database is a path, or a URL of"),
        ("ORBIT_PIPELINES_DATABASE", "postgresql://box:port/runs", "the database is a path, or"),
        ("ORBIT_PIPELINES_DATABASE", "/proc/no/runs.db", "cannot be made: No such file"),
        ("ORBIT_PIPELINES_DATABASE", "sqlite:////proc/no/runs.db", "the database cannot be used: "),
        ("ORBIT_PIPELINES_DATABASE", "postgresql://127.0.0.1:1/runs", "Connection refused"),
    ],
)
def test_a_setting_the_worker_cannot_start_with_is_one_sentence_and_leaves_with_1(
    place, name, value, said
):
    done = command(place.folder, "worker", **{**place.settings, name: value})

    # Only DBOS's own warnings may stand before it.
    *before, sentence = done.stderr.splitlines()
    assert done.returncode == 1
    assert sentence.startswith("orbit-metrics: ")
    assert said in sentence
    assert all(" WARNING " in line for line in before)


def test_the_demo_ends_with_the_metrics_of_its_runs_as_json(tmp_path):
    done = command(tmp_path, "demo", "--once", "--runs", "20", timeout=80)

    answer = json.loads(done.stdout)
    assert (done.returncode, answer["connected"]) == (0, True)
    assert answer["totalRuns"] == answer["succeeded"] + answer["failed"] == 40
    assert answer["failed"] >= 6, "the broken files are among them"


# ---------------------------------------------------------------- runs.create


def test_a_run_that_is_put_in_by_a_call_is_executed(place):
    with serving(place, ORBIT_PIPELINES_DATABASE=place.settings["ORBIT_PIPELINES_DATABASE"]):
        assert ask(place, "service.info")["createsRuns"] is True
        id = ask(place, "runs.create", pipeline="double", input=21)["id"]
        with place.worker(), place.store() as store:
            assert store.wait(id)["value"] == 42


def test_without_the_database_a_call_says_which_setting_names_it(place):
    with serving(place):
        assert ask(place, "service.info")["createsRuns"] is False
        with pytest.raises(CallFailed, match="No run can be put in here"):
            ask(place, "runs.create", pipeline="double")


def test_a_database_that_cannot_be_used_is_a_sentence(place):
    nowhere = f"sqlite:////{place.folder}/none/there/x.db"
    with serving(place, ORBIT_PIPELINES_DATABASE=nowhere):
        with pytest.raises(CallFailed, match=r"could not be put in: .*unable to open"):
            ask(place, "runs.create", pipeline="double")
        assert ask(place, "worker.metrics")["totalRuns"] == 0


@contextmanager
def serving(place: Place, **settings: str) -> Iterator[None]:
    service = subprocess.Popen(
        [*ENTRY, "serve"],
        env=environment(place.folder, **settings),
        cwd=place.folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: listens(place.folder / "worker.sock"))
        yield
    finally:
        service.terminate()
        service.wait(20)


def listens(path: Path) -> bool:
    """Where there is a socket it may not be listened to yet."""
    try:
        call(path, "service.info", timeout=40)
    except OSError:
        return False
    return True


def ask(place: Place, method: str, **params: Any) -> Any:
    return call(place.folder / "worker.sock", method, params, timeout=40)
