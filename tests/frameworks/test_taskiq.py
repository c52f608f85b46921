"""Real workers of Taskiq, with Redis as their broker."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from builders import until

BROKER = """
    import asyncio, os, time
    from taskiq import Context, SimpleRetryMiddleware, SmartRetryMiddleware, TaskiqDepends
    from taskiq.exceptions import NoResultError
    from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker
    from orbit_worker.integrations.taskiq import OrbitMiddleware

    class Backend(RedisAsyncResultBackend):
        async def set_result(self, task_id, result):
            if result.return_value == "nowhere":
                raise ConnectionError("the results cannot be stored")
            await super().set_result(task_id, result)

    broker = MAKE(REDIS).with_result_backend(Backend(REDIS)).with_middlewares(MIDDLEWARES)

    def note(text):
        with open("noted.txt", "a") as file:
            file.write(text + "\\n")
"""

TASKS = """
    @broker.task
    async def add(a, b):
        return a + b

    @broker.task
    def add_in_a_thread(a, b):
        return a + b

    @broker.task
    async def store(value):
        return lambda: value if value == "unserialisable" else value

    @broker.task
    async def store_text(value):
        return value

    @broker.task
    async def fail(text):
        raise ValueError(text)

    @broker.task(timeout=0.05)
    async def linger():
        await asyncio.sleep(60)

    @broker.task
    async def without_result():
        raise NoResultError

    @broker.task
    async def reject(context: Context = TaskiqDepends()):
        context.reject()

    @broker.task(retry_on_error=True, max_retries=3, delay=0.1)
    async def flaky(succeeds_at, context: Context = TaskiqDepends()):
        attempt = int(context.message.labels.get("_retries", 0)) + 1
        if attempt < succeeds_at:
            raise ValueError(f"not yet {attempt}")

    @broker.task
    async def come_back(context: Context = TaskiqDepends()):
        if "X-Taskiq-requeue" not in context.message.labels:
            await context.requeue()

    @broker.task
    async def hang(times):
        note(str(os.getpid()))
        with open("noted.txt") as file:
            if len(file.readlines()) <= times:
                await asyncio.sleep(300)
        await asyncio.sleep(0.3)
"""


def tasks(site: Any, middlewares: str = "OrbitMiddleware()", make: str = "ListQueueBroker") -> None:
    site.tasks(BROKER.replace("MIDDLEWARES", middlewares).replace("MAKE", make) + TASKS)


def work(site: Any, *options: str, **environ: str) -> subprocess.Popen[str]:
    return site.start("taskiq", "worker", "tasks:broker", *options, **environ)


def send(site: Any, code: str) -> None:
    """What a producer does: `send(task, *arguments)` once for each line."""
    lines = "\n".join(f"        await {line.strip()}" for line in code.strip().splitlines())
    site.run(
        "import asyncio\nfrom tasks import *\n"
        "async def main():\n"
        "    async with broker:\n"
        f"{lines}\n"
        "asyncio.run(main())\n"
    )


def ended(site: Any, runs: int) -> list[dict[str, Any]]:
    """The ended runs, once there are that many."""
    until(lambda: len(site.ended_runs()) >= runs)
    return site.ended_runs()


def test_each_task_counts_once_as_what_its_function_did(site):
    tasks(site)
    worker = work(site, "--workers", "2")
    send(
        site,
        """
        asyncio.gather(*(add.kiq(n, n) for n in range(20)))
        asyncio.gather(*(add_in_a_thread.kiq(n, n) for n in range(20)))
        asyncio.gather(*(fail.kiq("no") for n in range(3)))
        linger.kiq()
        without_result.kiq()
        reject.kiq()
        store_text.kiq("nowhere")
        store.kiq("unserialisable")
        """,
    )
    runs = ended(site, 48)
    seen = site.worker()
    site.stop(worker)
    life = site.ended()

    assert (life["totalRuns"], life["failed"]) == (48, 5)
    assert site.errors() == {"ValueError": 3, "TimeoutError": 1, "TaskRejectedError": 1}
    assert {run["pipeline"]["id"] for run in runs} >= {"tasks:add", "tasks:store_text"}
    assert all(run["durationMs"] is not None for run in runs)
    assert all("taskiq 0." in runtime for runtime in seen["runtimes"])
    assert site.ask("service.ledger")["total"]["repeated"] == 0


@pytest.mark.parametrize(
    "middlewares",
    [
        "OrbitMiddleware(), SimpleRetryMiddleware()",
        "SimpleRetryMiddleware(no_result_on_retry=False), OrbitMiddleware()",
        "SmartRetryMiddleware(no_result_on_retry=False), OrbitMiddleware()",
    ],
)
def test_a_retried_attempt_is_not_a_run(site, middlewares):
    tasks(site, middlewares)
    worker = work(site, "--workers", "1")
    send(site, "flaky.kiq(1)\nflaky.kiq(2)\nflaky.kiq(9)\ncome_back.kiq()")
    runs = ended(site, 4)
    metrics = site.metrics()
    site.stop(worker)
    life = site.ended()

    assert (life["totalRuns"], life["failed"], metrics["retries"]) == (4, 1, 4)
    assert sorted(run["attempt"] for run in runs) == [1, 2, 2, 3]
    assert [run["error"]["message"] for run in runs if run["error"]] == ["not yet 3"]


def test_a_killed_process_fails_what_it_ran_and_the_life_goes_on(site):
    tasks(site)
    work(site, "--workers", "1")
    send(site, "add.kiq(1, 1)\nhang.kiq(1)")
    until(lambda: (site.runs(), site.in_flight()) == (1, 1))
    site.kill(site.read("noted.txt"))
    until(lambda: site.runs() == 2)
    send(site, "add.kiq(1, 1)")
    until(lambda: site.runs() == 3)

    assert site.errors() == {"WorkerLost": 1}
    assert site.metrics()["lastLife"] is None


def test_a_process_may_be_killed_by_its_first_task_however_slowly_its_machine_starts(site):
    tasks(site)
    (site.folder / "sitecustomize.py").write_text(
        "import sys, time\nif any('_keeper' in word for word in sys.orig_argv): time.sleep(2)\n"
    )
    send(site, "hang.kiq(1)")
    work(site, "--workers", "1")
    until(lambda: site.in_flight() == 1)
    site.kill(site.read("noted.txt"))
    until(lambda: site.runs() == 1)

    assert site.errors() == {"WorkerLost": 1}
    assert site.metrics()["lastLife"] is None


def test_a_life_outlasts_processes_that_are_replaced_and_ends_with_their_parent(site):
    tasks(site)
    send(site, "asyncio.gather(*(add.kiq(n, n) for n in range(6)))")
    assert site.metrics()["known"] is False  # whoever sends is no worker
    worker = work(site, "--workers", "1", "--max-tasks-per-child", "2")
    ended(site, 6)
    assert site.metrics()["lastLife"] is None  # three processes later
    site.stop(worker)

    assert site.ended()["totalRuns"] == 6


def test_a_message_that_a_killed_process_left_is_another_run_and_a_retry(site):
    tasks(site, make="(lambda url: RedisStreamBroker(url, consumer_id='0'))")
    work(site, "--workers", "1")
    send(site, "hang.kiq(1)")
    until(lambda: site.in_flight() == 1)
    site.kill(site.read("noted.txt"))
    until(lambda: site.runs() == 1)
    site.run("""
        import redis
        connection = redis.Redis.from_url(REDIS)
        (left,) = connection.xpending_range("taskiq", "taskiq", "-", "+", 9)
        connection.xclaim("taskiq", "taskiq", "nobody", 0, [left["message_id"]], idle=3_600_000)
    """)
    send(site, "add.kiq(1, 1)")  # Taskiq looks for what was left when something new comes
    runs = ended(site, 3)
    metrics = site.metrics()

    left = [run for run in runs if run["pipeline"]["id"] == "tasks:hang"]
    assert [run["error"] and run["error"]["type"] for run in left] == [None, "WorkerLost"]
    assert len({run["id"] for run in left}) == 1
    assert (metrics["totalRuns"], metrics["failed"], metrics["retries"]) == (3, 1, 1)


IN_PROCESS = """
    import asyncio
    from taskiq import InMemoryBroker, ScheduleSource, SmartRetryMiddleware, TaskiqMiddleware
    from orbit_worker.integrations.taskiq import OrbitMiddleware
    from orbit_worker.testing import capture

    def tell(client):
        for run in client.runs:
            detail = run.detail
            error = detail.get("error", {}).get("type")
            print(run.success, detail.get("final", True), error, "waitUs" in detail, run.queue)
"""


def test_a_try_whose_retry_is_a_schedule_is_not_final(site):
    program = """
    class Source(ScheduleSource):
        async def get_schedules(self): return []
        async def add_schedule(self, schedule): print("scheduled")

    smart = SmartRetryMiddleware(schedule_source=Source(), no_result_on_retry=False)
    broker = InMemoryBroker(await_inplace=True).with_middlewares(OrbitMiddleware(), smart)

    @broker.task(retry_on_error=True, max_retries=2, queue_name="slow")
    async def fail(): raise ValueError

    with capture() as client:
        asyncio.run(fail.kiq())
        asyncio.run(fail.kicker().with_labels(_retries=1).kiq())
        tell(client)
    """
    assert site.run(IN_PROCESS + program).splitlines() == [
        "scheduled",
        "False False ValueError True slow",
        "False True ValueError True slow",
    ]


@pytest.mark.parametrize("orbit_first", [True, False])
def test_a_retry_may_end_before_its_first_try_does(site, orbit_first):
    program = """
    from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends

    class Slow(InMemoryBroker):
        async def kick(self, message):
            await super().kick(message)
            await self.wait_all_but_this()

        async def wait_all_but_this(self):
            this = asyncio.current_task()
            await asyncio.gather(*(task for task in self._running_tasks if task is not this))

    middlewares = [OrbitMiddleware(), SimpleRetryMiddleware(no_result_on_retry=False)]
    broker = Slow().with_middlewares(*(middlewares if ORBIT_FIRST else reversed(middlewares)))

    @broker.task(retry_on_error=True)
    async def flaky(context: Context = TaskiqDepends()):
        if "_retries" not in context.message.labels:
            raise ValueError

    @broker.task
    async def come_back(context: Context = TaskiqDepends()):
        if "X-Taskiq-requeue" not in context.message.labels:
            await context.requeue()

    with capture() as client:
        asyncio.run(flaky.kiq())
        asyncio.run(come_back.kiq())
        for run in client.runs:
            print(run.success, run.detail.get("attempt", 1), run.detail.get("final", True))
    """
    told = site.run(IN_PROCESS + program.replace("ORBIT_FIRST", str(orbit_first))).splitlines()
    # Where the retry is quicker than that, why the first try failed is not known yet.
    assert told == [f"{orbit_first} 1 False", "True 2 True", "True 1 False", "True 2 True"]


def test_what_taskiq_leaves_half_done_is_a_failed_run_and_its_trouble_is_still_logged(site):
    program = """
    class Broken(TaskiqMiddleware):
        def post_execute(self, message, result): raise RuntimeError("broken")

    broker = InMemoryBroker().with_middlewares(OrbitMiddleware(), Broken())

    @broker.task
    async def fail(): raise ValueError

    @broker.task
    async def succeed(): pass

    async def main():
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: print(context["exception"])
        )
        await fail.kiq()
        await succeed.kiq()
        for _ in range(10):
            await asyncio.sleep(0)

    with capture() as client:
        asyncio.run(main())
        tell(client)
    """
    assert site.run(IN_PROCESS + program).splitlines() == [
        "broken",
        "broken",
        "False True ValueError True None",
        "False True Abandoned True None",
    ]


def test_waiting_counts_from_the_end_of_a_delay(site):
    program = """
    import time
    from taskiq import TaskiqMessage

    middleware = OrbitMiddleware()
    InMemoryBroker().with_middlewares(middleware)
    message = TaskiqMessage(task_id="1", task_name="t", labels={}, args=[], kwargs={})

    async def wait_of(**labels):
        message.labels = labels
        middleware.pre_send(message)
        await asyncio.sleep(0.1)
        middleware.pre_execute(message)
        middleware.post_execute(message, None)
        assert message.labels == labels  # the stamp is gone: a retry brings its own
        return client.runs[-1].detail["waitUs"]

    with capture() as client:
        print(asyncio.run(wait_of()) >= 100_000, asyncio.run(wait_of(delay="3600")))
    """
    assert site.run(IN_PROCESS + program).split() == ["True", "0"]


def test_tasks_succeed_while_the_service_is_away(site):
    tasks(site, "OrbitMiddleware(), SimpleRetryMiddleware()")
    worker = work(site, "--workers", "1", ORBIT_SOCKET=str(site.folder / "nobody.sock"))
    succeeded = site.run("""
        from tasks import *

        async def main():
            async with broker:
                task = await flaky.kiq(2)
                print((await task.wait_result(timeout=30)).is_err)

        asyncio.run(main())
    """)
    site.stop(worker)

    assert succeeded.strip() == "False"
    assert site.metrics()["known"] is False
