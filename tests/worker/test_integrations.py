"""Integrations without their frameworks: a sentence, and no side effects."""

from __future__ import annotations

import subprocess
import sys

import pytest

from builders import environment
from orbit_worker.integrations import needs
from orbit_worker.integrations._tasks import Task, Tasks, waited_ms
from orbit_worker.testing import CapturingClient

FRAMEWORKS = ["apscheduler", "arq", "celery", "dramatiq", "huey", "rq", "taskiq"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_that_is_not_installed_gives_a_sentence(tmp_path, framework):
    """It hides the framework, where the test's environment happens to have it."""
    code = f"import sys; sys.modules[{framework!r}] = None; "
    done = subprocess.run(
        [sys.executable, "-c", code + f"import orbit_worker.integrations.{framework}"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stderr.splitlines()[-1] == (
        f"ModuleNotFoundError: {framework} is not installed, which "
        f"orbit_worker.integrations.{framework} is for: pip install 'orbit-metrics[{framework}]'"
    )


def test_what_a_framework_itself_misses_is_said_as_it_is():
    with pytest.raises(ModuleNotFoundError) as missing, needs("json", "celery"):
        raise ModuleNotFoundError("No module named 'vine'", name="vine")

    assert str(missing.value) == "No module named 'vine'"


# ---------------------------------------------------------------- tasks


@pytest.fixture
def client() -> CapturingClient:
    return CapturingClient()


@pytest.fixture
def tasks(client: CapturingClient) -> Tasks:
    return Tasks(client)


def details(client: CapturingClient) -> list[tuple[str, bool, dict | None]]:
    return [(run.pipeline, run.success, run.detail) for run in client.runs]


def test_a_task_that_ends_is_a_run(tasks, client):
    tasks.begin(Task("a", "send", attempt=2, queue="mail", wait_ms=3))
    assert tasks.end("a")

    [run] = client.runs
    assert (run.pipeline, run.success, run.queue) == ("send", True, "mail")
    assert run.detail == {"id": "a", "attempt": 2, "waitUs": 3000}
    assert run.duration_ms > 0


def test_a_task_that_will_be_tried_again_is_an_attempt(tasks, client):
    tasks.begin(Task("a", "send"))
    tasks.end("a", ValueError("no"), final=False)

    [(_, success, detail)] = details(client)
    assert (success, detail["final"], detail["error"]["type"]) == (False, False, "ValueError")


def test_a_task_that_did_not_begin_here_does_not_end_here(tasks, client):
    assert not tasks.end("a")
    assert client.runs == []


def test_a_task_that_failed_elsewhere_has_no_duration(tasks, client):
    tasks.fail(Task("a", "send"), {"type": "WorkerLost", "message": "killed"})

    [(_, success, detail)] = details(client)
    assert (success, detail["untimed"], detail["error"]["type"]) == (False, True, "WorkerLost")


def test_a_task_that_is_passed_over_counts_as_nothing(tasks, client):
    tasks.begin(Task("a", "send"))
    tasks.withdraw("a")
    tasks.withdraw("never begun")

    assert not tasks.end("a")
    assert client.runs == []
    assert client._buffer.running == {}


def test_a_name_that_is_none_is_made_one(tasks, client):
    tasks.begin(Task("a", "multi\nline" + "x" * 300))
    tasks.end("a")

    assert client.runs[0].pipeline == ("multi line" + "x" * 300)[:200]


def test_clocks_that_differ_make_no_negative_wait(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 100.0)

    assert waited_ms(99.5) == 500
    assert waited_ms(101) == 0
    assert waited_ms(None) is None
