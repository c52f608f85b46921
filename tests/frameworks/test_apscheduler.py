"""Real schedulers of APScheduler, each a program of its own."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from builders import until

NEEDS_REDIS = False

TASKS = """
import asyncio, os, pathlib, threading, time
from datetime import datetime, timedelta, timezone
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from orbit_worker.integrations.apscheduler import install

gate = threading.Event()
# Else a job that begins a second late, as on a busy machine, is missed.
PATIENT = {"misfire_grace_time": None}

def ago(seconds):
    return datetime.now(timezone.utc) - timedelta(seconds=seconds)

def tick():
    pass

def fail():
    raise ValueError("no such table")

def nap(seconds):
    time.sleep(seconds)

def hang():
    pathlib.Path("pid.new").write_text(str(os.getpid()))
    os.rename("pid.new", "pid")
    time.sleep(60)

async def nap_async(seconds):
    await asyncio.sleep(seconds)

async def hang_async():
    gate.set()
    await asyncio.sleep(60)

async def fail_async():
    await asyncio.sleep(0)
    raise ValueError("no such page")

def done():
    gate.set()

def finish(scheduler):
    \"\"\"Wait until the job `done` has begun, and for all that had begun before.\"\"\"
    assert gate.wait(60)
    scheduler.shutdown()
"""


def program(site: Any, code: str) -> Any:
    """A program that has all of TASKS."""
    return site.start("python", "-c", "from tasks import *\n" + textwrap.dedent(code))


def counts(site: Any, process: Any) -> tuple[int, int]:
    """Runs and failed ones, once the program has ended by itself."""
    assert process.wait(60) == 0
    life = site.ended()
    assert site.ask("service.ledger")["total"]["waiting"] == 0
    return life["totalRuns"], life["failed"]


def pipelines(site: Any) -> list[str]:
    return sorted(run["pipeline"]["name"] for run in site.ended_runs())


@pytest.fixture(autouse=True)
def _tasks(site: Any) -> None:
    site.tasks(TASKS)


def test_each_execution_in_a_thread_is_one_run_by_the_job_s_name(site: Any) -> None:
    process = program(
        site,
        """
        scheduler = BackgroundScheduler(job_defaults=PATIENT)
        install(scheduler, version="7")
        install(scheduler)
        for _ in range(50):
            scheduler.add_job(tick)
        scheduler.add_job(fail, name="nightly report")
        scheduler.add_job(nap, args=[0.2])
        scheduler.start()
        scheduler.add_job(done)
        finish(scheduler)
        """,
    )

    assert counts(site, process) == (53, 1)
    assert pipelines(site) == ["done", "nap", "nightly report", *["tick"] * 50]
    runs = {run["pipeline"]["name"]: run for run in site.ended_runs()}
    assert 190 <= runs["nap"]["durationMs"] < 10_000
    assert runs["nightly report"]["error"]["message"] == "no such table"
    assert "in fail" in runs["nightly report"]["error"]["traceback"]


def test_a_blocking_scheduler_s_runs_count_and_wait_since_they_were_due(site: Any) -> None:
    process = program(
        site,
        """
        def leave_when_told():
            while not os.path.exists("leave"):
                time.sleep(0.01)
            scheduler.shutdown()

        scheduler = BlockingScheduler(job_defaults=PATIENT)
        install(scheduler)
        scheduler.add_job(tick, next_run_time=ago(5))
        threading.Thread(target=leave_when_told).start()
        scheduler.start()
        """,
    )
    until(lambda: site.runs() == 1)
    assert site.worker()["maxWaitTime"] >= 5_000
    (site.folder / "leave").touch()

    assert counts(site, process) == (1, 0)


def test_coroutines_and_functions_in_the_event_loop_count(site: Any) -> None:
    process = program(
        site,
        """
        async def main():
            scheduler = AsyncIOScheduler(job_defaults=PATIENT)
            install(scheduler)
            over = []
            scheduler.add_listener(over.append, 2 ** 12 | 2 ** 13)
            scheduler.add_job(nap_async, args=[0.2])
            scheduler.add_job(fail_async)
            scheduler.add_job(tick)
            scheduler.start()
            while len(over) < 3:
                await asyncio.sleep(0.01)
            scheduler.add_job(hang_async, name="cancelled")
            while not gate.is_set():
                await asyncio.sleep(0.01)
            scheduler.shutdown()
            await asyncio.sleep(0.5)
        asyncio.run(main())
        """,
    )

    assert counts(site, process) == (4, 2)
    assert site.errors() == {"ValueError": 1, "CancelledError": 1}
    (nap,) = [run for run in site.ended_runs() if run["pipeline"]["name"] == "nap_async"]
    assert nap["durationMs"] >= 190


def test_what_was_missed_is_a_failed_run_without_duration(site: Any) -> None:
    process = program(
        site,
        """
        one_thread = {"default": ThreadPoolExecutor(1)}
        scheduler = BackgroundScheduler(executors=one_thread, job_defaults=PATIENT)
        install(scheduler)
        scheduler.add_job(nap, args=[2.5])
        scheduler.add_job(tick, misfire_grace_time=1)
        scheduler.add_job(done)
        scheduler.start()
        finish(scheduler)
        """,
    )

    assert counts(site, process) == (3, 1)
    assert site.errors() == {"Missed": 1}
    (missed,) = [run for run in site.ended_runs() if run["error"]]
    assert missed["pipeline"]["name"] == "tick"
    assert missed["durationMs"] is None


def test_what_was_skipped_because_it_still_ran_is_a_failed_run(site: Any) -> None:
    process = program(
        site,
        """
        scheduler = BackgroundScheduler(job_defaults=PATIENT)
        install(scheduler)
        skipped = []

        def end_at_the_second(event):
            \"\"\"In the scheduler's thread: before it looks what is due again.\"\"\"
            skipped.append(event)
            if len(skipped) == 2:
                scheduler.pause()
                gate.set()

        scheduler.add_listener(end_at_the_second, 2 ** 16)
        scheduler.add_job(gate.wait, "interval", seconds=0.2, name="slow", next_run_time=ago(0))
        scheduler.start()
        finish(scheduler)
        """,
    )

    assert counts(site, process) == (3, 2)
    assert site.errors() == {"MaxInstances": 2}
    assert set(pipelines(site)) == {"slow"}


def test_times_that_came_together_are_a_run_each_unless_they_are_coalesced(site: Any) -> None:
    process = program(
        site,
        """
        scheduler = BackgroundScheduler(job_defaults=PATIENT)
        install(scheduler)
        for coalesce in (True, False):
            scheduler.add_job(
                tick, "interval", minutes=1, coalesce=coalesce,
                name=f"coalesced {coalesce}", next_run_time=ago(210),
            )
        scheduler.add_job(done)
        scheduler.start()
        finish(scheduler)
        """,
    )

    assert counts(site, process) == (6, 0)
    assert pipelines(site) == ["coalesced False"] * 4 + ["coalesced True", "done"]


def test_children_of_a_process_pool_tell_of_their_runs(site: Any) -> None:
    process = program(
        site,
        """
        two_processes = {"default": ProcessPoolExecutor(2)}
        scheduler = BackgroundScheduler(executors=two_processes, job_defaults=PATIENT)
        install(scheduler)
        over = []
        scheduler.add_listener(over.append, 2 ** 12 | 2 ** 13)
        for task in (tick, tick, fail):
            scheduler.add_job(task)
        scheduler.start()
        while len(over) < 3:
            time.sleep(0.01)
        scheduler.shutdown()
        """,
    )

    assert counts(site, process) == (3, 1)
    assert site.errors() == {"ValueError": 1}


@pytest.mark.parametrize("executor", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
def test_a_killed_process_s_run_is_lost_and_counts_once(site: Any, executor: str) -> None:
    process = program(
        site,
        f"""
        one = {{"default": {executor}(1)}}
        scheduler = BlockingScheduler(executors=one, job_defaults=PATIENT)
        install(scheduler)
        scheduler.add_job(hang)
        scheduler.start()
        """,
    )
    pid = site.read("pid")
    until(lambda: site.worker()["inFlight"] == 1)
    site.kill(pid)
    until(lambda: site.errors() == {"WorkerLost": 1})
    process.kill()

    life = site.ended()
    assert (life["totalRuns"], life["failed"]) == (1, 1)


def test_a_scheduler_that_is_not_installed_is_left_alone(site: Any) -> None:
    process = program(
        site,
        """
        scheduler = BackgroundScheduler(job_defaults=PATIENT)
        other = BackgroundScheduler(job_defaults=PATIENT)
        install(scheduler)
        other.start()
        other.add_job(tick)
        scheduler.start()
        scheduler.add_job(done)
        finish(scheduler)
        other.shutdown()
        """,
    )

    assert counts(site, process) == (1, 0)
    assert pipelines(site) == ["done"]


def test_without_a_service_jobs_run_all_the_same(site: Any) -> None:
    process = site.start(
        "python",
        "-c",
        textwrap.dedent(
            """
            from tasks import *
            scheduler = BackgroundScheduler(job_defaults=PATIENT)
            install(scheduler)
            over = []
            scheduler.add_listener(over.append, 2 ** 12)
            scheduler.start()
            for _ in range(20):
                scheduler.add_job(tick)
            scheduler.add_job(done)
            while len(over) < 21:
                time.sleep(0.01)
            finish(scheduler)
            """
        ),
        ORBIT_SOCKET=str(site.folder / "nobody.sock"),
    )

    assert process.wait(60) == 0
