"""Dramatiq's own processes and threads beside a real service, with Redis as the broker."""

from __future__ import annotations

import signal

from builders import until

TASKS = """
import asyncio, os, time
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, CurrentMessage, Middleware, SkipMessage
from orbit_worker.integrations.dramatiq import install

broker = RedisBroker(
    url=REDIS,
    heartbeat_timeout=int(os.environ.get("HEARTBEAT", 60_000)),
    maintenance_chance=1_000_000,
)
broker.add_middleware(AsyncIO())
broker.add_middleware(CurrentMessage())
install(broker, version="7")
dramatiq.set_broker(broker)

class Guard(Middleware):
    def before_process_message(self, broker, message):
        if message.actor_name == "unwanted":
            raise SkipMessage("unwanted")

broker.add_middleware(Guard())

def note(name, text="1"):
    with open(name, "a") as file:
        file.write(text)

@dramatiq.actor(queue_name="sums")
def add(a, b):
    return a + b

@dramatiq.actor
async def wait(seconds=0.01):
    await asyncio.sleep(seconds)

@dramatiq.actor(max_retries=0)
def fail():
    raise ValueError("no")

@dramatiq.actor(max_retries=2, min_backoff=50)
def never():
    raise OSError("away")

@dramatiq.actor(min_backoff=50)
def second_time():
    if not os.path.exists("first"):
        note("first")
        raise OSError("away")

@dramatiq.actor(throws=KeyError)
def expected():
    raise KeyError("unknown")

@dramatiq.actor(max_retries=0, time_limit=100)
def endless():
    while True:
        time.sleep(0.01)

@dramatiq.actor
def rejected():
    CurrentMessage.get_current_message().fail()

@dramatiq.actor
def later():
    if not os.path.exists("later"):
        note("later")
        raise dramatiq.Retry(delay=15_000)

@dramatiq.actor
def unwanted(): ...

@dramatiq.actor(notify_shutdown=True, min_backoff=50)
def sleep_once():
    if not os.path.exists("pid"):
        note("pid", str(os.getpid()))
        while True:
            time.sleep(0.01)
    while not os.path.exists("go"):
        time.sleep(0.01)

@dramatiq.actor
def wait_for(name):
    note("waits")
    while not os.path.exists(name):
        time.sleep(0.01)
"""


def start(site, *options, **environ):
    return site.start("dramatiq", "tasks", *options, **environ)


def last_life(site):
    """Runs and failures of the life that is over, once nothing is on its way."""
    ended = site.ended()
    ledger = site.ask("service.ledger")["total"]
    assert (ledger["waiting"], ledger["repeated"], ledger["late"]) == (0, 0, 0)
    return ended["totalRuns"], ended["failed"]


def attempts(site):
    """Results that the service counted: runs, and attempts that were tried again."""
    return site.ask("service.ledger")["total"]["counted"]


def test_each_message_of_all_processes_and_threads_is_one_run(site):
    site.tasks(TASKS)
    site.run("""
        import dramatiq, tasks
        for i in range(180):
            tasks.add.send(i, 1)
        for _ in range(15):
            tasks.fail.send()
        for _ in range(5):
            tasks.wait.send()
        (tasks.add.message(1, 2) | tasks.add.message(3)).run()
        dramatiq.group([tasks.wait.message() for _ in range(3)]).run()
    """)
    assert not site.connected()  # a producer is no worker

    worker = start(site, "-p", "2", "-t", "4")
    until(lambda: site.runs() >= 205)
    until(lambda: site.worker()["slots"] == 8)
    assert site.worker()["versions"] == ["7"]
    assert site.worker()["maxWaitTime"] > 0
    assert site.stop(worker) == 0

    assert last_life(site) == (205, 15)
    assert len(site.ask("service.ledger")["sessions"]) == 2


def test_a_failed_message_is_an_attempt_until_it_is_final(site):
    site.tasks(TASKS)
    site.run("""
        from tasks import endless, expected, never, rejected, second_time
        for actor in (endless, expected, never, rejected, second_time):
            actor.send()
    """)
    worker = start(site, "-p", "1", "-t", "4")
    until(lambda: site.runs() >= 5)
    assert site.metrics()["retries"] == 3
    assert site.stop(worker) == 0

    assert last_life(site) == (5, 4)
    assert attempts(site) == 5 + 3
    assert {
        run["pipeline"]["name"]: (run["attempt"], run["error"] and run["error"]["type"])
        for run in site.ended_runs()
    } == {
        "never": (3, "OSError"),
        "second_time": (2, None),
        "expected": (1, "KeyError"),
        "endless": (1, "TimeLimitExceeded"),
        "rejected": (1, "Rejected"),
    }


def test_delay_and_back_off_are_not_waiting(site):
    site.tasks(TASKS)
    worker = start(site, "-p", "1", "-t", "2")
    until(site.connected)
    site.run("""
        import tasks
        tasks.later.send()
        tasks.add.send_with_options(args=(1, 1), delay=15_000)
    """)
    until(lambda: site.runs() == 2)
    assert site.worker()["retries"] == 1
    assert 0 < site.worker()["maxWaitTime"] < 15_000
    assert site.stop(worker) == 0


def test_a_skipped_message_counts_as_nothing_and_a_dead_letter_as_a_failure(site):
    site.tasks(TASKS)
    site.run("""
        import dramatiq, tasks
        @dramatiq.actor
        def forgotten(): ...
        tasks.unwanted.send()
        tasks.add.send_with_options(args=(1, 1), max_age=1)
        forgotten.send()
    """)
    worker = start(site, "-p", "1", "-t", "1")
    until(lambda: site.runs() >= 2)
    site.run("import tasks; tasks.add.send(1, 1)")
    until(lambda: site.runs() >= 3)
    assert site.worker()["inFlight"] == 0
    assert site.stop(worker) == 0

    assert last_life(site) == (3, 2)
    assert site.errors() == {"Expired": 1, "ActorNotFound": 1}


def test_a_killed_process_is_one_failed_run_and_the_redelivery_a_retry(site):
    site.tasks(TASKS)
    site.run("import tasks; tasks.sleep_once.send()")
    worker = start(site, "-p", "2", "-t", "1")
    pid = site.read("pid")
    until(lambda: (site.worker()["inFlight"], site.worker()["sessions"]) == (1, 2))
    site.kill(pid)
    # Dramatiq stops the other process as well.
    assert worker.wait(30) != 0

    assert last_life(site) == (1, 1)
    assert site.errors() == {"WorkerLost": 1}

    worker = start(site, "-p", "1", "-t", "1", HEARTBEAT="1000")
    until(lambda: site.connected() and site.worker()["inFlight"] == 1)
    (site.folder / "go").touch()
    until(lambda: site.runs() >= 1)
    assert site.metrics()["retries"] == 1
    assert site.stop(worker) == 0

    assert last_life(site) == (1, 0)


def test_what_a_clean_stop_interrupts_is_an_attempt(site):
    site.tasks(TASKS)
    site.run("import tasks; tasks.sleep_once.send()")
    worker = start(site, "-p", "1", "-t", "1")
    site.read("pid")
    assert site.stop(worker) == 0

    assert last_life(site) == (0, 0)
    assert attempts(site) == 1

    (site.folder / "go").touch()
    worker = start(site, "-p", "1", "-t", "1")
    until(lambda: site.runs() >= 1)
    assert site.stop(worker) == 0

    assert last_life(site) == (1, 0)
    assert [run["attempt"] for run in site.ended_runs()] == [2]


def test_one_process_alone_tells_what_waits(site):
    site.tasks(TASKS)
    site.run("""
        import tasks
        for _ in range(7):
            tasks.wait_for.send("go")
    """)
    worker = start(site, "-p", "2", "-t", "1", dramatiq_queue_prefetch="1")
    until(lambda: site.read("waits") == "11")
    until(lambda: site.worker()["queues"].get("default") == 5)
    (site.folder / "go").touch()
    until(lambda: site.runs() >= 7)
    assert site.stop(worker) == 0

    assert last_life(site) == (7, 0)


def test_greenlets_are_counted(site):
    site.tasks(TASKS)
    site.run("""
        import tasks
        for i in range(50):
            tasks.add.send(i, 1)
        tasks.second_time.send()
        tasks.endless.send()
    """)
    worker = site.start("dramatiq-gevent", "tasks", "-p", "1", "-t", "8")
    until(lambda: site.runs() >= 52)
    assert site.stop(worker) == 0

    assert last_life(site) == (52, 1)
    assert attempts(site) == 53


def test_without_a_service_messages_are_processed_as_ever(site):
    site.tasks(TASKS)
    site.run("import tasks; tasks.second_time.send(); tasks.wait_for.send('first')")
    worker = start(site, "-p", "1", "-t", "2", ORBIT_SOCKET=str(site.folder / "nobody"))
    site.read("waits")
    # An empty queue: all was acknowledged.
    until(lambda: site.run("import tasks; print(tasks.broker.do_qsize('default'))").strip() == "0")
    worker.send_signal(signal.SIGINT)
    assert worker.wait(30) == 0
    assert "CRITICAL" not in (site.folder / "log.txt").read_text()
