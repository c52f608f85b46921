"""Real workers of arq."""

from __future__ import annotations

import subprocess
from typing import Any

from builders import until

ENVIRONMENT = "arq"

TASKS = """
    import asyncio, os
    from arq import Retry, create_pool, cron, func
    from arq.connections import RedisSettings
    from arq.jobs import Job
    from orbit_worker.integrations.arq import install

    def note(name, text):
        with open(name, "a") as file:
            file.write(str(text) + "\\n")

    async def add(ctx, a, b):
        return a + b

    async def fail(ctx, text):
        raise ValueError(text)

    async def flaky(ctx, succeeds_at, defer=None):
        if ctx["job_try"] < succeeds_at:
            raise Retry(defer)

    async def linger(ctx):
        await asyncio.sleep(60)

    async def hang(ctx):
        note("pids.txt", os.getpid())
        if ctx["job_try"] == 1:
            await asyncio.sleep(60)

    async def cancel_itself(ctx):
        if ctx["job_try"] == 1:
            raise asyncio.CancelledError

    async def tick(ctx):
        note("ticks.txt", ctx["job_id"])

    async def hooked(ctx):
        note("hooks.txt", f"{ctx['job_id']} {ctx['job_try']}" if "job_id" in ctx else "worker")

    async def enqueue(*jobs, **options):
        redis = await create_pool(RedisSettings.from_dsn(REDIS))
        return [await redis.enqueue_job(*job, **options) for job in jobs]

    async def enqueue_when_its_id_is_free(*job, **options):
        redis = await create_pool(RedisSettings.from_dsn(REDIS))
        while await redis.enqueue_job(*job, **options) is None:
            await asyncio.sleep(0.01)

    async def results(*jobs):
        for job in await enqueue(*jobs):
            note("results.txt", await job.result(timeout=30, poll_delay=0.05))

    async def abort(id):
        redis = await create_pool(RedisSettings.from_dsn(REDIS))
        assert await Job(id, redis).abort(timeout=30, poll_delay=0.05)

    async def release():
        redis = await create_pool(RedisSettings.from_dsn(REDIS))
        await redis.delete(*await redis.keys("arq:in-progress:*"))

    @install
    class WorkerSettings:
        functions = [
            add, fail, flaky, hang, cancel_itself, func(linger, timeout=0.2),
            func(linger, name="linger_without_result", timeout=0.2, keep_result=0),
            func(add, name="add_daily", keep_result=0),
        ]
        redis_settings = RedisSettings.from_dsn(REDIS)
        poll_delay = 0.05
        allow_abort_jobs = True
        OPTIONS
"""


def tasks(site: Any, options: str = "pass") -> None:
    site.tasks(TASKS.replace("OPTIONS", options))


def work(site: Any, **environ: str) -> subprocess.Popen[str]:
    return site.start("arq", "tasks.WorkerSettings", **environ)


def enqueue(site: Any, *calls: str) -> None:
    """What a producer does, each call an `enqueue(...)` of the module."""
    lines = "".join(f"    await {call}\n" for call in calls)
    site.run(
        f"import asyncio\nfrom tasks import *\nasync def main():\n{lines}\nasyncio.run(main())"
    )


def ended(site: Any, runs: int) -> list[dict[str, Any]]:
    """The ended runs, once there are that many."""
    until(lambda: len(site.ended_runs()) >= runs)
    return site.ended_runs()


def attempts(runs: list[dict[str, Any]]) -> dict[str, list[int]]:
    """The attempts at which runs ended, by pipeline."""
    found: dict[str, list[int]] = {}
    for run in runs:
        found.setdefault(run["pipeline"]["name"], []).append(run["attempt"])
    return {name: sorted(tries) for name, tries in found.items()}


def test_each_job_counts_once_as_what_its_function_did(site):
    tasks(site)
    worker = work(site)
    enqueue(
        site,
        "enqueue(*[('add', n, n) for n in range(20)])",
        "enqueue(('fail', 'no'), ('fail', 'no'), ('linger',), ('linger_without_result',))",
        "enqueue(('nobody',), ('add', 1))",
    )
    runs = ended(site, 26)
    seen = site.worker()
    site.stop(worker)
    life = site.ended()

    assert (life["totalRuns"], life["failed"]) == (26, 6)
    assert site.errors() == {
        "ValueError": 2,
        "TimeoutError": 2,
        "JobExecutionFailed": 1,  # arq does not know the function
        "TypeError": 1,
    }
    untimed = [run["pipeline"]["name"] for run in runs if run["durationMs"] is None]
    assert untimed == ["nobody"]
    assert seen["slots"] == 10
    assert all("arq 0." in runtime for runtime in seen["runtimes"])
    assert site.ask("service.ledger")["total"]["repeated"] == 0


def test_a_retried_try_is_not_a_run_and_one_too_many_ends_it(site):
    tasks(site, "max_tries = 3")
    worker = work(site)
    enqueue(site, "enqueue(('flaky', 1), ('flaky', 3, 0.05), ('flaky', 9), ('cancel_itself',))")
    runs = ended(site, 4)
    retries = site.metrics()["retries"]
    site.stop(worker)
    life = site.ended()

    assert (life["totalRuns"], life["failed"], retries) == (4, 1, 2 + 3 + 1)
    assert attempts(runs) == {"flaky": [1, 3, 4], "cancel_itself": [2]}
    assert [run["error"]["message"] for run in runs if run["error"]] == ["max 3 retries exceeded"]


def test_jobs_that_a_shutdown_cancels_are_tried_again_by_the_next_worker(site):
    tasks(site)
    worker = work(site)
    enqueue(site, "enqueue(('hang',), ('hang',))")
    until(lambda: len(site.read("pids.txt").splitlines()) == 2)
    site.stop(worker)
    first = site.ended()
    worker = work(site)
    runs = ended(site, 2)
    site.stop(worker)
    until(lambda: site.ended()["totalRuns"] == 2)

    assert (first["totalRuns"], first["failed"]) == (0, 0)
    assert attempts(runs) == {"hang": [2, 2]}
    assert site.errors() == {}


def test_each_job_of_a_killed_worker_fails_and_is_another_run_in_the_next(site):
    tasks(site)
    worker = work(site)
    # What has a result is over for arq too: it would not be executed again.
    enqueue(site, "results(('add', 1, 1))", "enqueue(('hang',), ('hang',), ('hang',))")
    until(lambda: site.worker()["inFlight"] == 3 and site.runs() == 1)
    site.kill(worker.pid)
    life = site.ended()
    lost = site.errors()
    # arq takes them up when their time limit is over, which is five minutes.
    enqueue(site, "release()")
    worker = work(site)
    until(lambda: site.runs() == 3)
    retries = site.metrics()["retries"]
    site.stop(worker)
    until(lambda: site.ended()["totalRuns"] == 3)

    assert (life["totalRuns"], life["failed"], lost) == (4, 3, {"WorkerLost": 3})
    assert (retries, site.ended()["failed"]) == (3, 0)


def test_an_aborted_job_has_failed_if_it_had_begun_and_else_is_nothing(site):
    tasks(site)
    worker = work(site)
    enqueue(site, "enqueue(('hang',), _job_id='running')")
    site.read("pids.txt")
    enqueue(
        site,
        "abort('running')",
        "enqueue(('add', 1, 1), _job_id='waiting', _defer_by=3600)",
        "abort('waiting')",
    )
    site.stop(worker)
    life = site.ended()

    assert (life["totalRuns"], life["failed"]) == (1, 1)
    assert site.errors() == {"CancelledError": 1}


def test_an_expired_job_has_failed_and_took_no_time(site):
    tasks(site)
    enqueue(site, "enqueue(('add', 1, 1), ('add', 2, 2), _expires=0.001)")
    worker = work(site)
    runs = ended(site, 2)
    site.stop(worker)

    assert site.ended()["totalRuns"] == 2
    assert site.errors() == {"Expired": 2}
    assert [run["durationMs"] for run in runs] == [None, None]


def test_an_id_that_is_used_again_is_another_run_and_no_retry(site):
    tasks(site)
    worker = work(site)
    for count in (1, 2, 3):
        enqueue(site, "enqueue_when_its_id_is_free('add_daily', 1, 1, _job_id='daily')")
        until(lambda count=count: site.runs() == count)
    retries = site.metrics()["retries"]
    site.stop(worker)

    assert (site.ended()["totalRuns"], retries) == (3, 0)


def test_a_cron_job_is_a_run_and_hooks_of_the_user_are_called(site):
    tasks(
        site,
        "on_startup = on_shutdown = on_job_start = on_job_end = after_job_end = hooked; "
        "cron_jobs = [cron(tick, month=1, day=1, hour=1, minute=1, run_at_startup=True)]",
    )
    worker = work(site)
    runs = ended(site, 1)
    until(lambda: len(site.read("hooks.txt").splitlines()) == 4)  # the run has ended before
    site.stop(worker)

    assert attempts(runs) == {"cron:tick": [1]}
    assert site.ended()["totalRuns"] == 1
    job = site.read("ticks.txt").strip()
    hooks = site.read("hooks.txt").splitlines()
    assert hooks == ["worker", *[f"{job} 1"] * 3, "worker"]


def test_depth_is_of_jobs_that_are_due_and_not_running(site):
    tasks(site, "max_jobs = 1")
    work(site)
    enqueue(site, "enqueue(('hang',))")
    site.read("pids.txt")
    enqueue(
        site,
        "enqueue(('add', 1, 1), ('add', 1, 1))",
        "enqueue(('add', 1, 1), _defer_by=3600)",
    )
    until(lambda: site.worker()["queues"] == {"arq:queue": 2})


def test_waiting_counts_from_when_a_job_was_due_and_is_not_known_of_later_tries(site):
    program = """
        import asyncio, time
        from datetime import datetime, timezone
        from arq.worker import create_worker
        from orbit_worker.integrations.arq import install
        from orbit_worker.testing import capture

        async def job(ctx): pass

        HOUR_AGO, SECONDS_AGO = time.time() - 3600, time.time() - 5

        async def wait_of(job_try):
            worker = create_worker(install({"functions": [job]}))
            enqueued = datetime.fromtimestamp(HOUR_AGO, tz=timezone.utc)
            ctx = {"job_id": "1", "enqueue_time": enqueued, "score": int(SECONDS_AGO * 1000)}
            await worker.functions["job"].coroutine({**ctx, "job_try": job_try})
            return client.runs[-1].detail.get("waitUs")

        with capture() as client:
            first, second = asyncio.run(wait_of(1)), asyncio.run(wait_of(2))
            print(5_000_000 <= first < 3_600_000_000, second)
    """
    assert site.run(program).split() == ["True", "None"]


def test_jobs_succeed_while_the_service_is_away(site):
    tasks(site)
    worker = work(site, ORBIT_SOCKET=str(site.folder / "nobody.sock"))
    enqueue(site, "results(('add', 1, 2), ('flaky', 2))")
    site.stop(worker)

    assert site.read("results.txt").split() == ["3", "None"]
    assert site.metrics()["known"] is False
