"""Real workers of RQ."""

from __future__ import annotations

from typing import Any

import pytest

from builders import until

WORKER = "orbit_worker.integrations.rq.Worker"
SIMPLE = "orbit_worker.integrations.rq.SimpleWorker"
SPAWN = "orbit_worker.integrations.rq.SpawnWorker"

QUEUE = """
from datetime import timedelta
import redis, rq, tasks
from rq import Callback, Repeat, Retry
connection = redis.Redis.from_url(REDIS)
queue = rq.Queue("mail", connection=connection)
"""

TASKS = """
import os, pathlib, time

def send(seconds=0.0):
    time.sleep(seconds)

def fail():
    raise ValueError("no such address")

def hang():
    pathlib.Path("pid").write_text(str(os.getpid()))
    time.sleep(60)

def die():
    os.kill(os.getpid(), 9)

def succeed_at_third():
    tries = pathlib.Path("tries")
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    if len(tries.read_text()) < 3:
        raise ValueError("not yet")

def ask_to_be_tried_again():
    from rq import Retry
    return Retry(max=2)

def break_off(job, connection, result):
    raise RuntimeError("the callback failed")
"""


def worker(site: Any, *options: str, kind: str = WORKER, **environ: str) -> Any:
    """`rq worker` on the queue; further options, such as --burst."""
    return site.start("rq", "worker", "-u", site.redis, "-w", kind, *options, "mail", **environ)


def enqueue(site: Any, code: str) -> str:
    """What the code prints, which has `queue`, `connection` and `tasks`."""
    return site.run(QUEUE + code).strip()


def work_off(site: Any, code: str, kind: str = WORKER) -> str:
    """Execute what the code puts into the queue, in a worker that ends; what it prints."""
    said = enqueue(site, code)
    assert worker(site, "--burst", kind=kind).wait(60) == 0
    return said


def counts(site: Any) -> tuple[int, int, int]:
    """Runs, failed ones and retries, of all lives; once nothing is connected any more."""
    site.ended()
    assert site.ask("service.ledger")["total"]["waiting"] == 0
    told = site.ask("worker.metrics", worker="crew", window="1h")
    return told["totalRuns"], told["failed"], told["retries"]


LONG_AGO = """
an_hour_ago = rq.utils.utcformat(rq.utils.now() - timedelta(hours=1))
connection.hset(job.key, mapping={"created_at": an_hour_ago, "enqueued_at": an_hour_ago})
"""


def waited_most(site: Any) -> int:
    """The longest wait in milliseconds, of one run at least, in a worker that is stopped then."""
    process = worker(site, "--with-scheduler")
    until(lambda: site.runs() == 1)
    longest = site.worker()["maxWaitTime"]
    site.stop(process)
    return longest


@pytest.fixture(autouse=True)
def _tasks(site: Any) -> None:
    site.tasks(TASKS)


def test_a_hundred_jobs_in_forked_horses_are_a_hundred_runs_of_one_life(site: Any) -> None:
    work_off(site, "for _ in range(100): queue.enqueue(tasks.send)")

    assert site.ended()["totalRuns"] == 100
    assert counts(site) == (100, 0, 0)
    runs = site.ended_runs()
    assert {run["pipeline"]["name"] for run in runs} == {"tasks.send"}
    assert len({run["id"] for run in runs}) == 100


@pytest.mark.parametrize("kind", [SIMPLE, SPAWN])
def test_the_other_classes_count_the_same(site: Any, kind: str) -> None:
    work_off(site, "for task in (tasks.send, tasks.fail): queue.enqueue(task)", kind)

    assert counts(site) == (2, 1, 0)
    assert site.ended()["totalRuns"] == 2
    assert site.errors() == {"ValueError": 1}


def test_a_failure_has_its_error_and_the_id_of_its_job(site: Any) -> None:
    id = work_off(site, "print(queue.enqueue(tasks.fail).id)")

    assert counts(site) == (1, 1, 0)
    (run,) = site.ended_runs()
    assert run["error"]["message"] == "no such address"
    assert "in fail" in run["error"]["traceback"]
    assert run["id"].startswith(f"{id}:")
    assert run["durationMs"] is not None


def test_a_time_limit_is_one_failed_run(site: Any) -> None:
    work_off(site, "queue.enqueue(tasks.hang, job_timeout=1)")

    assert counts(site) == (1, 1, 0)
    assert site.errors() == {"JobTimeoutException": 1}
    assert site.ended_runs()[0]["durationMs"] >= 900


def test_attempts_are_numbered_and_the_last_one_is_the_run(site: Any) -> None:
    work_off(site, "queue.enqueue(tasks.succeed_at_third, retry=Retry(max=5))")

    assert counts(site) == (1, 0, 2)
    (run,) = [run for run in site.ended_runs() if run["status"] == "success"]
    assert run["attempt"] == 3


def test_a_retry_after_an_interval_has_waited_since_it_was_due(site: Any) -> None:
    id = work_off(site, "print(queue.enqueue(tasks.fail, retry=Retry(max=1, interval=1)).id)")
    enqueue(site, f"job = queue.fetch_job({id!r})" + LONG_AGO)

    assert waited_most(site) < 1_800_000
    assert counts(site) == (1, 1, 1)


def test_a_returned_retry_is_an_attempt_and_fails_when_none_is_left(site: Any) -> None:
    work_off(site, "queue.enqueue(tasks.ask_to_be_tried_again)")

    assert counts(site) == (1, 1, 2)
    (run,) = [run for run in site.ended_runs() if run["error"]["type"] == "MaxRetriesExceeded"]
    assert run["attempt"] == 3


def test_a_job_whose_callback_fails_has_failed_as_rq_has_it(site: Any) -> None:
    work_off(site, "queue.enqueue(tasks.send, on_success=Callback(tasks.break_off))")

    assert counts(site) == (1, 1, 0)
    assert site.errors() == {"RuntimeError": 1}


def test_a_job_that_cannot_be_read_has_failed_without_a_duration(site: Any) -> None:
    work_off(
        site,
        """
job = queue.enqueue(tasks.send)
connection.hset(job.key, "data", b"no pickle")
""",
    )

    assert counts(site) == (1, 1, 0)
    assert site.errors() == {"DeserializationError": 1}
    assert site.ended_runs()[0]["durationMs"] is None


def test_a_job_that_runs_again_under_its_id_is_a_run_each_time(site: Any) -> None:
    work_off(
        site,
        """
queue.enqueue(tasks.send, repeat=Repeat(times=3))
queue.enqueue(tasks.fail, job_id="chosen")
""",
    )
    work_off(site, "queue.fetch_job('chosen').requeue()")
    work_off(site, "queue.enqueue(tasks.send, job_id='chosen')")

    assert counts(site) == (7, 2, 0)


def test_a_killed_horse_is_one_failed_run(site: Any) -> None:
    enqueue(site, "queue.enqueue(tasks.hang); queue.enqueue(tasks.send)")
    process = worker(site)
    site.kill(site.read("pid"))
    until(lambda: site.runs() == 2)
    site.stop(process)

    assert counts(site) == (2, 1, 0)
    assert site.errors() == {"WorkerLost": 1}


def test_a_horse_killed_before_its_start_is_heard_is_one_failed_run(site: Any) -> None:
    work_off(site, "for _ in range(10): queue.enqueue(tasks.die)")

    assert counts(site) == (10, 10, 0)
    assert site.errors() == {"WorkerLost": 10}
    assert {run["pipeline"]["name"] for run in site.ended_runs()} == {"tasks.die"}


def test_a_killed_horse_s_job_that_is_tried_again_is_a_run_each_time(site: Any) -> None:
    work_off(site, "queue.enqueue(tasks.die, retry=Retry(max=1))")

    assert counts(site) == (2, 2, 0)
    assert sorted(run["attempt"] for run in site.ended_runs()) == [1, 2]


def test_a_stopped_job_is_one_failed_run_and_not_lost(site: Any) -> None:
    id = enqueue(site, "print(queue.enqueue(tasks.hang).id)")
    process = worker(site)
    site.read("pid")
    enqueue(site, f"rq.command.send_stop_job_command(connection, {id!r})")
    until(lambda: site.worker()["inFlight"] == 0 and site.runs() == 1)
    site.stop(process)

    assert counts(site) == (1, 1, 0)
    assert site.errors() == {"Stopped": 1}


def test_the_cleanup_of_an_abandoned_job_counts_nothing_more(site: Any) -> None:
    enqueue(site, "queue.enqueue(tasks.hang)")
    process = worker(site)
    horse = site.read("pid")
    until(lambda: site.in_flight() == 1)
    process.kill()
    process.wait(10)
    site.kill(horse)
    until(lambda: site.errors() == {"WorkerLost": 1})
    # Its entry is over time, and whichever worker starts next finds it abandoned.
    work_off(
        site,
        """
for entry in connection.zrange("rq:wip:mail", 0, -1):
    connection.zadd("rq:wip:mail", {entry: 1})
connection.delete("rq:clean_registries:mail")
queue.enqueue(tasks.send)
""",
    )

    assert enqueue(site, "print(queue.failed_job_registry.get_job_count(cleanup=False))") == "1"
    assert counts(site) == (2, 1, 0)


def test_a_scheduled_job_has_waited_since_it_was_due(site: Any) -> None:
    enqueue(site, "job = queue.enqueue_in(timedelta(seconds=1), tasks.send)" + LONG_AGO)

    assert waited_most(site) < 1_800_000
    assert counts(site) == (1, 0, 0)


def test_the_parent_alone_tells_of_itself_and_of_the_queue(site: Any) -> None:
    enqueue(site, "queue.enqueue(tasks.hang)\nfor _ in range(5): queue.enqueue(tasks.send)")
    worker(site)
    site.read("pid")

    # Depths are asked for when the parent connects, and every ten seconds.
    until(lambda: site.ask("worker.stats")["pending"] in (5, 6))
    until(lambda: site.worker()["sessions"] == 2)
    assert site.worker()["slots"] == 1


def test_without_a_service_jobs_succeed_and_no_horse_waits(site: Any) -> None:
    enqueue(site, "for _ in range(10): queue.enqueue(tasks.send)")
    process = worker(site, "--burst", ORBIT_SOCKET=str(site.folder / "nobody.sock"))

    assert process.wait(60) == 0
    times = """
jobs = [queue.fetch_job(id) for id in queue.finished_job_registry.get_job_ids()]
ends = sorted(job.ended_at for job in jobs)
print(len(ends), min((b - a).total_seconds() for a, b in zip(ends, ends[1:])))
"""
    succeeded, seconds = enqueue(site, times).split()
    assert succeeded == "10"
    assert float(seconds) < 1  # from one end to the next, where each horse waited for its second
