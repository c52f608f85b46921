"""Huey's consumers of all three kinds beside a real service, with a SQLite file between."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from builders import until

NEEDS_REDIS = False

TASKS = """
import os, time, types
if os.environ.get("KIND") == "greenlet":
    from gevent import monkey
    monkey.patch_all()
from huey import CancelExecution, SqliteHuey
from huey.exceptions import RetryTask
from orbit_worker.integrations import huey as integration
from orbit_worker.integrations.huey import install

huey = SqliteHuey("work", filename="huey.db")
install(huey, version="7")

def note(name, text="1"):
    with open(name, "a") as file:
        file.write(text)

def times(name):
    note(name)
    return os.path.getsize(name)

@huey.task()
def add(a, b):
    return a + b

@huey.task()
def fail():
    raise ValueError("no")

@huey.task(retries=2)
def third_time():
    if times("third") < 3:
        raise OSError("away")

@huey.task()
def asks_again():
    if times("asks") < 3:
        raise RetryTask()

@huey.task(retries=1, retry_delay=1)
def never():
    raise OSError("away")

@huey.task(retries=1, retry_delay=1)
def later():
    if times("later") < 2:
        # It fails an hour ago, and is due in a second.
        integration.time = types.SimpleNamespace(time=lambda: time.time() - 3600)
        raise OSError("away")

@huey.task(context=True)
def numbered(task=None):
    # The integration leaves the task as it was.
    assert "task" not in task.kwargs and task.retries == 0

@huey.task(timeout=0.1)
def endless():
    while True:
        time.sleep(0.01)

@huey.task(retries=1)
def cancels_itself():
    raise CancelExecution("enough", retry=False)

@huey.task()
@huey.lock_task("gate")
def locked(): ...

@huey.task()
def unstorable():
    return lambda: None

@huey.task()
def leaves():
    raise SystemExit(3)

@huey.task()
def unwanted(): ...

@huey.pre_execute()
def refuse(task):
    if task.name == "unwanted":
        raise CancelExecution()

@huey.task()
def wait_for(name):
    note("pids", f"{os.getpid()} ")
    while not os.path.exists(name):
        time.sleep(0.01)
"""

PERIODIC = """
@huey.periodic_task(lambda now: True)
def tick(): ...
"""

KINDS = ("thread", "process", "greenlet")


def start(site, kind, *options, **environ):
    """A consumer that TERM stops gracefully, once it would."""
    often = ("-d", "0.05", "-m", "0.2", "-c", "1", "-g", "TERM")
    consumer = site.start(
        "huey_consumer", "tasks.huey", "-k", kind, *often, *options, KIND=kind, **environ
    )
    until(lambda: catches_term(consumer))
    return consumer


def catches_term(consumer):
    status = Path(f"/proc/{consumer.pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
    return caught & 1 << (signal.SIGTERM - 1)


def last_life(site):
    """Runs and failures of the life that is over, once nothing is on its way."""
    ended = site.ended()
    ledger = site.ask("service.ledger")["total"]
    assert (ledger["waiting"], ledger["repeated"], ledger["late"]) == (0, 0, 0)
    return ended["totalRuns"], ended["failed"]


def attempts(site):
    """Results that the service counted: runs, and attempts that were tried again."""
    return site.ask("service.ledger")["total"]["counted"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_task_is_one_run_and_each_retry_an_attempt(site, kind):
    site.tasks(TASKS)
    site.run("""
        from tasks import add, asks_again, fail, huey, never, numbered, third_time
        for i in range(40):
            add(i, 1)
        for _ in range(5):
            fail()
        huey.enqueue(fail.s(retries=2))
        for task in (asks_again, never, numbered, third_time):
            task()
    """)
    assert not site.connected()  # a producer is no worker

    consumer = start(site, kind, "-w", "4")
    until(lambda: site.runs() >= 50)
    assert (site.worker()["slots"], site.worker()["versions"]) == (4, ["7"])
    assert site.stop(consumer) == 0

    assert last_life(site) == (50, 7)
    assert attempts(site) == 50 + 2 + 2 + 1 + 2
    of_pipeline = {
        name: sorted(
            (run["attempt"], run["error"] and run["error"]["type"])
            for run in site.ended_runs()
            if run["pipeline"]["name"] == f"tasks.{name}"
        )
        for name in ("fail", "asks_again", "never", "third_time")
    }
    assert of_pipeline == {
        "fail": [(1, "ValueError")] * 5 + [(3, "ValueError")],
        "asks_again": [(3, None)],
        "never": [(2, "OSError")],
        "third_time": [(3, None)],
    }
    # Nothing of ours stays in Huey's storage.
    assert "orbit" not in site.run("import tasks; print(list(tasks.huey.all_results()))")


def test_what_is_not_called_counts_only_where_it_should_have_been(site):
    site.tasks(TASKS)
    site.run("""
        from tasks import add, cancels_itself, endless, huey, locked, unwanted
        import time
        huey.lock_task("gate").acquire()
        for task in (cancels_itself, endless, locked, unwanted):
            task()
        add(1, 1).revoke()
        huey.enqueue(add.s(1, 1, expires=0.01))
        time.sleep(0.05)
    """)
    consumer = start(site, "process", "-w", "1")
    until(lambda: site.runs() >= 4)
    site.run("import tasks; tasks.add(1, 1)")
    until(lambda: site.runs() >= 5)
    assert site.worker()["inFlight"] == 0
    assert site.stop(consumer) == 0

    assert last_life(site) == (5, 4)
    assert attempts(site) == 5
    assert site.errors() == {
        "CancelExecution": 1,
        "Expired": 1,
        "TaskLockedException": 1,
        "TaskTimeout": 1,
    }


def test_what_huey_itself_tells_nobody_of_is_a_failed_run_and_not_in_flight_for_ever(site):
    site.tasks(TASKS)
    site.run("import tasks; tasks.unstorable(); tasks.leaves(); tasks.add(1, 1)")
    consumer = start(site, "thread", "-w", "1")
    until(lambda: (site.runs(), site.in_flight()) == (3, 0))
    assert site.stop(consumer) == 0

    assert last_life(site) == (3, 2)
    assert site.errors().keys() > {"SystemExit"}


def test_a_delay_is_not_waiting(site):
    site.tasks(TASKS + PERIODIC)
    consumer = start(site, "thread", "-w", "2")
    until(site.connected)
    site.run("import tasks; tasks.later(); tasks.add.schedule((1, 1), delay=1)")
    until(lambda: site.runs() >= 3)  # with what is periodic
    assert site.worker()["retries"] == 1
    assert 0 < site.worker()["maxWaitTime"] < 1_800_000
    assert site.stop(consumer) == 0

    assert last_life(site) == (3, 0)


def test_a_killed_process_is_one_failed_run_and_the_life_goes_on(site):
    site.tasks(TASKS)
    site.run("""
        from tasks import add, wait_for
        for _ in range(2):
            wait_for("go")
        for i in range(3):
            add(i, 1)
    """)
    consumer = start(site, "process", "-w", "2")
    until(lambda: site.connected() and site.worker()["inFlight"] == 2)
    until(lambda: site.worker()["queues"] == {"work": 3})  # which one process alone tells
    site.kill(site.read("pids").split()[0])
    until(lambda: site.runs() >= 4)
    (site.folder / "go").touch()
    until(lambda: site.runs() >= 5)
    assert site.stop(consumer) == 0

    assert last_life(site) == (5, 1)
    assert site.errors() == {"WorkerLost": 1}


def test_processes_that_are_replaced_leave_the_life_open(site):
    site.tasks(TASKS)
    site.run("import tasks; [tasks.add(i, 1) for i in range(12)]")
    consumer = start(site, "process", "-w", "2", "-M", "2")
    until(lambda: site.runs() >= 12)
    assert site.stop(consumer) == 0

    assert last_life(site) == (12, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_that_is_interrupted_has_failed(site, kind):
    site.tasks(TASKS)
    site.run("import tasks; tasks.wait_for('never')")
    consumer = start(site, kind, "-w", "1")
    site.read("pids")
    consumer.send_signal(signal.SIGINT)
    assert consumer.wait(30) == 0

    assert last_life(site) == (1, 1)
    assert site.errors() == {"Interrupted": 1}


def test_a_consumer_that_restarts_itself_loses_nothing(site):
    site.tasks(TASKS)
    site.run("import tasks; [tasks.add(i, 1) for i in range(10)]")
    consumer = start(site, "thread", "-w", "2")
    until(lambda: site.runs() >= 1)
    consumer.send_signal(signal.SIGHUP)
    until(lambda: attempts(site) >= 10)
    until(lambda: len(site.ask("service.ledger")["sessions"]) == 2 and catches_term(consumer))
    assert site.stop(consumer) == 0
    last_life(site)

    assert attempts(site) == 10


def test_immediate_mode_is_not_recorded(site):
    site.tasks(TASKS)
    said = site.run("""
        import orbit_worker, tasks
        tasks.huey.immediate = True
        tasks.huey.enqueue(tasks.fail.s(retries=1))
        print(tasks.add(1, 1)())
        assert orbit_worker.flush()
    """)

    assert said.strip() == "2"
    assert site.ask("service.ledger")["total"]["recorded"] == 0


def test_without_a_service_tasks_are_executed_as_ever(site):
    site.tasks(TASKS)
    site.run("import tasks; tasks.third_time(); tasks.wait_for('third')")
    consumer = start(site, "process", "-w", "1", ORBIT_SOCKET=str(site.folder / "nobody"))
    until(lambda: site.read("third") == "111")
    site.read("pids")
    assert site.stop(consumer) == 0
    log = (site.folder / "log.txt").read_text()
    assert log.count("executed in") == 2
    assert "Error occurred in receiver" not in log
