"""Real Celery workers beside a real service, with Redis as broker and result backend."""

from __future__ import annotations

import subprocess
import textwrap
from collections import Counter
from typing import Any

import pytest

from builders import until

TASKS = '''
import os, sys, time
from celery import Celery, chord, group
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
import orbit_worker.integrations.celery

app = Celery("tasks", broker=REDIS, backend=REDIS)
app.conf.worker_prefetch_multiplier = 1
orbit_worker.integrations.celery.install(app, version="7")


def note(name, text=""):
    """Tell the test; it comes to be as a whole."""
    with open(f"{name}.new", "w") as file:
        file.write(f"{text}")
    os.rename(f"{name}.new", name)


@app.task
def add(a, b):
    return a + b


@app.task
def total(numbers):
    return sum(numbers)


@app.task(name="a näme, with\\tödd [characters]")
def odd():
    pass


class Unlike(Exception):
    def __init__(self, one, two):
        self.cannot_be_pickled = lambda: (one, two)


@app.task
def fail():
    raise ValueError("no")


@app.task
def fail_oddly():
    raise Unlike(1, 2)


@app.task
def nap(name, seconds):
    note(name, os.getpid())
    time.sleep(seconds)


@app.task
def vanish():
    os.kill(os.getpid(), 9)


@app.task(acks_late=True, reject_on_worker_lost=True)
def stubborn():
    if not os.path.exists("first"):
        note("first", os.getpid())
        time.sleep(60)


@app.task(bind=True, max_retries=2)
def flaky(self, succeeds_at):
    if self.request.retries + 1 < succeeds_at:
        raise self.retry(exc=OSError("away"), countdown=0.2)


@app.task(autoretry_for=(KeyError,), retry_backoff=False, default_retry_delay=0.2, max_retries=1)
def lookup():
    raise KeyError("gone")


@app.task
def careful():
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        pass


@app.task(bind=True)
def reject(self, requeue):
    if not self.request.delivery_info["redelivered"]:
        raise Reject("not now", requeue=requeue)


@app.task(acks_late=True)
def postponed():
    if not os.path.exists("once"):
        note("once")
        raise Reject("not now", requeue=True)


@app.task
def ignore():
    raise Ignore()


@app.task
def leave():
    sys.exit(3)
'''


def a_worker(site: Any, *options: str, **environ: str) -> subprocess.Popen[str]:
    """A worker of `tasks` that is ready; it knows no other workers and waits for none."""
    quick = ("--without-gossip", "--without-mingle", "-l", "INFO")
    worker = site.start("celery", "-A", "tasks", "worker", "-c", "2", *quick, *options, **environ)
    until(lambda: " ready." in (site.folder / "log.txt").read_text())
    return worker


def send(site: Any, code: str) -> str:
    """What this code prints; it sends tasks, and waits for their results where it wants them."""
    return site.run("from tasks import *\n" + textwrap.dedent(code))


def all_told(site: Any, worker: subprocess.Popen[str]) -> dict[str, Any]:
    """The numbers of the worker's life, once it has left and everything has arrived."""
    site.stop(worker)
    life = site.ended()
    ledger = site.ask("service.ledger")["total"]
    assert (ledger["waiting"], ledger["repeated"], ledger["late"]) == (0, 0, 0)
    metrics = site.ask("worker.metrics", worker="crew", window="1h")
    assert (metrics["totalRuns"], metrics["failed"]) == (life["totalRuns"], life["failed"])
    return metrics


def outcomes(site: Any) -> Counter[tuple[str, str]]:
    """Runs by pipeline, and by what became of them: success, or the type of the error."""
    return Counter(
        (run["pipeline"]["name"], run["error"]["type"] if run["error"] else run["status"])
        for run in site.ended_runs()
    )


def test_each_task_is_one_run_of_its_pipeline(site):
    site.tasks(TASKS)
    worker = a_worker(site)

    send(
        site,
        """
    group(add.s(n, n) for n in range(5))().get(timeout=30)
    chord([add.s(1, 2), add.s(3, 4)])(total.s()).get(timeout=30)
    odd.delay().get(timeout=30)
    fail.delay().get(timeout=30, propagate=False)
    fail_oddly.delay().get(timeout=30, propagate=False)
    leave.delay().get(timeout=30, propagate=False)
    ignore.delay()
    (add.s(1, 2) | ignore.si()).delay().parent.get(timeout=30)
    """,
    )
    until(lambda: site.runs() == 15)
    told = site.worker()

    assert all_told(site, worker)["totalRuns"] == 15
    assert outcomes(site) == {
        ("tasks.add", "success"): 8,
        ("tasks.total", "success"): 1,
        ("a näme, with ödd [characters]", "success"): 1,
        ("tasks.fail", "ValueError"): 1,
        ("tasks.fail_oddly", "Unlike"): 1,
        ("tasks.leave", "SystemExit"): 1,
        ("tasks.ignore", "success"): 2,
    }
    assert told["versions"] == ["7"]
    assert "celery" in told["runtimes"][0]


def test_retries_are_attempts_of_one_run_and_their_delay_is_no_wait(site):
    site.tasks(TASKS)
    worker = a_worker(site)

    send(
        site,
        """
        from unittest.mock import patch

        with patch("orbit_worker.integrations.celery.time") as clock:
            clock.time.return_value = time.time() - 3600  # when it was sent
            delayed = add.apply_async((1, 2), countdown=0.1)
        tried = [flaky.delay(2), flaky.delay(9), lookup.delay()]
        for result in [*tried, delayed]:
            result.get(timeout=30, propagate=False)
        """,
    )
    until(lambda: site.runs() == 4)
    waited = site.worker()["maxWaitTime"]

    metrics = all_told(site, worker)
    assert (metrics["totalRuns"], metrics["failed"], metrics["retries"]) == (4, 2, 1 + 2 + 1)
    assert outcomes(site) == {
        ("tasks.add", "success"): 1,
        ("tasks.flaky", "success"): 1,
        ("tasks.flaky", "OSError"): 1,
        ("tasks.lookup", "KeyError"): 1,
    }
    assert sorted(run["attempt"] for run in site.ended_runs()) == [1, 2, 2, 3]
    assert 0 < waited < 1_800_000


def test_children_that_are_replaced_are_one_life_whose_total_never_falls(site):
    site.tasks(TASKS)
    worker = a_worker(site, "--max-tasks-per-child=5")
    seen = [0]

    def so_far() -> int:
        metrics = site.metrics()
        assert metrics["connected"]
        seen.append(metrics["totalRuns"])
        return seen[-1]

    send(site, "for n in range(32): add.delay(n, n)")
    until(lambda: so_far() == 32)

    assert all_told(site, worker)["totalRuns"] == 32
    assert seen == sorted(seen)


def test_a_killed_child_is_one_failed_run(site):
    site.tasks(TASKS)
    worker = a_worker(site)

    send(site, "for n in range(10): add.delay(n, n)\nnap.delay('pid', 60)")
    site.kill(site.read("pid"))
    send(site, "add.delay(1, 2).get(timeout=30)")
    until(lambda: site.runs() == 12)

    metrics = all_told(site, worker)
    assert (metrics["totalRuns"], metrics["failed"], metrics["retries"]) == (12, 1, 0)
    assert outcomes(site) == {("tasks.add", "success"): 11, ("tasks.nap", "WorkerLost"): 1}
    assert [run["durationMs"] for run in site.ended_runs() if run["error"]] == [None]


def test_what_a_child_did_just_before_it_was_killed_counts(site):
    site.tasks(TASKS)
    worker = a_worker(site, "-c", "1")

    send(
        site,
        """
        for n in range(10):
            add.delay(n, n), fail.delay(), flaky.delay(2)
        vanish.delay().get(timeout=30, propagate=False)
        """,
    )
    until(lambda: site.runs() == 31)

    metrics = all_told(site, worker)
    assert (metrics["totalRuns"], metrics["failed"], metrics["retries"]) == (31, 11, 10)
    assert outcomes(site) == {
        ("tasks.add", "success"): 10,
        ("tasks.fail", "ValueError"): 10,
        ("tasks.flaky", "success"): 10,
        ("tasks.vanish", "WorkerLost"): 1,
    }


def test_a_task_that_is_delivered_again_after_its_child_was_killed_is_a_second_run(site):
    site.tasks(TASKS)
    worker = a_worker(site)

    result = send(site, "print(stubborn.delay().id)").strip()
    until(lambda: site.metrics() and site.worker()["inFlight"] == 1)
    site.kill(site.read("first"))
    send(site, f"app.AsyncResult({result!r}).get(timeout=30)")
    until(lambda: site.runs() == 2)

    metrics = all_told(site, worker)
    assert (metrics["totalRuns"], metrics["failed"], metrics["retries"]) == (2, 1, 0)
    assert outcomes(site) == {("tasks.stubborn", "WorkerLost"): 1, ("tasks.stubborn", "success"): 1}


def test_a_killed_worker_loses_what_had_begun(site):
    site.tasks(TASKS)
    worker = a_worker(site)

    send(site, "add.delay(1, 2).get(timeout=30); nap.delay('pid', 60)")
    until(lambda: site.runs() == 1 and site.worker()["inFlight"] == 1)
    site.kill(worker.pid)

    life = site.ended()
    assert (life["totalRuns"], life["failed"]) == (2, 1)
    assert outcomes(site) == {("tasks.add", "success"): 1, ("tasks.nap", "WorkerLost"): 1}


def test_a_time_limit_is_one_failed_run(site):
    site.tasks(TASKS)
    worker = a_worker(site)

    send(
        site,
        """
        results = [
            nap.apply_async(("hard", 60), time_limit=1),
            nap.apply_async(("soft", 60), soft_time_limit=1),
            careful.apply_async(soft_time_limit=5),  # which is to find it where it is careful
        ]
        for result in results:
            result.get(timeout=30, propagate=False)
        """,
    )
    until(lambda: site.runs() == 3)

    assert all_told(site, worker)["totalRuns"] == 3
    assert outcomes(site) == {
        ("tasks.nap", "TimeLimitExceeded"): 1,
        ("tasks.nap", "SoftTimeLimitExceeded"): 1,
        ("tasks.careful", "success"): 1,
    }


def test_a_revoked_task_is_nothing_and_one_that_ran_or_expired_is_a_failed_run(site):
    site.tasks(TASKS)
    worker = a_worker(site, "-c", "1")

    send(
        site,
        """
        expired = add.apply_async((1, 2), expires=-60)
        running = nap.delay("pid", 60)
        while not os.path.exists("pid"):
            time.sleep(0.01)
        revoked = add.apply_async((1, 2))  # it waits for the one child
        assert app.control.revoke(revoked.id, reply=True, timeout=30, limit=1)
        running.revoke(terminate=True)
        running.get(timeout=30, propagate=False)
        """,
    )
    until(lambda: (site.folder / "log.txt").read_text().count("Discarding revoked task") == 2)
    until(lambda: site.runs() == 2)

    assert all_told(site, worker)["totalRuns"] == 2
    assert outcomes(site) == {("tasks.add", "Expired"): 1, ("tasks.nap", "Terminated"): 1}


def test_a_rejected_task_is_an_attempt_where_it_comes_again_and_else_a_failed_run(site):
    site.tasks(TASKS)
    worker = a_worker(site)

    send(
        site,
        """
        for result in [reject.delay(False), postponed.delay()]:
            result.get(timeout=30, propagate=False)
        reject.delay(True)  # without acks_late it has been acknowledged, and does not come again
        """,
    )
    until(lambda: site.runs() == 3)

    metrics = all_told(site, worker)
    assert (metrics["totalRuns"], metrics["failed"], metrics["retries"]) == (3, 2, 1)
    assert outcomes(site) == {("tasks.reject", "Reject"): 2, ("tasks.postponed", "success"): 1}


@pytest.mark.parametrize("pool", ["threads", "solo", "gevent", "eventlet"])
def test_other_pools_tell_the_same(site, pool):
    site.tasks(TASKS)
    worker = a_worker(site, "-P", pool)

    send(
        site,
        """
        chord([add.s(n, n) for n in range(10)])(total.s()).get(timeout=30)
        for result in [fail.delay(), flaky.delay(2), reject.delay(False)]:
            result.get(timeout=30, propagate=False)
        """,
    )
    until(lambda: site.runs() == 14)
    slots = site.worker()["slots"]

    metrics = all_told(site, worker)
    assert (metrics["totalRuns"], metrics["failed"], metrics["retries"]) == (14, 2, 1)
    assert outcomes(site) == {
        ("tasks.add", "success"): 10,
        ("tasks.total", "success"): 1,
        ("tasks.fail", "ValueError"): 1,
        ("tasks.flaky", "success"): 1,
        ("tasks.reject", "Reject"): 1,
    }
    assert slots == (1 if pool == "solo" else 2)


def test_a_retry_may_begin_before_its_first_try_is_over(site):
    site.tasks(
        TASKS
        + """
def wait_for_the_second_try(*_):
    while not os.path.exists("second"):
        time.sleep(0.01)


@app.task(bind=True, on_retry=wait_for_the_second_try)
def hasty(self):
    if self.request.retries == 0:
        raise self.retry(exc=OSError("away"), countdown=0)
    note("second")
    while not os.path.exists("leave"):
        time.sleep(0.01)
"""
    )
    worker = a_worker(site, "-P", "threads")

    send(site, "hasty.delay()")
    until(lambda: site.metrics()["retries"] == 1)
    (site.folder / "leave").touch()
    until(lambda: site.runs() == 1)

    metrics = all_told(site, worker)
    assert (metrics["totalRuns"], metrics["failed"], metrics["retries"]) == (1, 0, 1)
    assert [run["attempt"] for run in site.ended_runs()] == [2]


def test_greenthreads_of_eventlet_that_record_at_once_are_not_hurt_and_all_heard(site):
    site.run("""
        import eventlet
        eventlet.monkey_patch()
        from orbit_worker import flush, record_run

        for _ in range(5):
            threads = [eventlet.spawn(record_run, 1, True) for _ in range(5)]
            for thread in threads:
                thread.wait()  # raises what the thread has raised
            assert flush(30)
            eventlet.sleep(0.3)  # after which the sender has nothing to do, and is to be woken
    """)

    assert site.ended()["totalRuns"] == 25


def test_the_main_process_alone_tells_of_slots_and_of_what_waits_in_queues(site):
    site.tasks(TASKS)
    send(
        site,
        """
        for n in range(2):
            nap.apply_async(("pid", 60), queue="slow")
        for n in range(7):
            add.apply_async((n, n), queue="slow")
        """,
    )
    a_worker(site, "-Q", "slow,idle")

    # Two of them are executed, and two are taken ahead.
    until(lambda: site.connected() and site.worker()["queues"] == {"slow": 5, "idle": 0})
    told = site.worker()
    assert (told["slots"], told["sessions"], told["inFlight"]) == (2, 1, 2)


def test_tasks_succeed_while_the_service_is_away(site):
    site.tasks(TASKS)
    worker = a_worker(site, "--max-tasks-per-child=2", ORBIT_SOCKET=f"{site.folder}/nobody.sock")

    said = send(site, "print(group(add.s(n, n) for n in range(6))().get(timeout=30))")

    assert said.strip() == "[0, 2, 4, 6, 8, 10]"
    assert site.stop(worker) == 0
    assert site.ask("worker.list") == []


def test_programs_that_only_send_tasks_are_no_workers(site):
    site.tasks(
        TASKS
        + """
app.conf.beat_schedule = {"often": {"task": "tasks.add", "schedule": 0.1, "args": (1, 2)}}
"""
    )
    beat = site.start("celery", "-A", "tasks", "beat", "-l", "INFO")
    until(lambda: "Sending due task" in (site.folder / "log.txt").read_text())

    said = send(
        site,
        """
        print(add.apply_async((1, 2)).state)
        app.conf.task_always_eager = True
        print(add.delay(1, 2).get(), fail.delay().state, flaky.delay(2).state)
        """,
    )

    assert said.split() == ["PENDING", "3", "FAILURE", "SUCCESS"]
    site.stop(beat)
    assert site.ask("worker.list") == []
