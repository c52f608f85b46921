"""
APScheduler 3, by its executors and a listener.

    import orbit_worker.integrations.apscheduler

    scheduler = BackgroundScheduler()
    orbit_worker.integrations.apscheduler.install(scheduler)

A run is one execution of a job at one of its scheduled times; the pipeline is the job's
name, which is its function's unless `add_job` was told another (ids are random by
default). The queue is the executor's alias: that is where a run waits for its turn.

Events come when a run is over and do not tell when it began. So the function that
executors call for a job is replaced by one that calls it and measures: for the whole
process, because executors import it by name, and without effect on schedulers that are
not installed here. The job and its function are not touched.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from orbit_worker.client import MetricsClient
from orbit_worker.integrations import needs
from orbit_worker.integrations._tasks import Task, Tasks, waited_ms

with needs("apscheduler", "apscheduler"):
    from apscheduler import __version__
    from apscheduler.events import (
        EVENT_JOB_EXECUTED,
        EVENT_JOB_MAX_INSTANCES,
        EVENT_JOB_MISSED,
        EVENT_SCHEDULER_STARTED,
        JobSubmissionEvent,
    )
    from apscheduler.executors import base
    from apscheduler.schedulers.base import BaseScheduler

_run_job = base.run_job
_run_coroutine_job = base.run_coroutine_job
_installed: WeakKeyDictionary[Any, Tasks] = WeakKeyDictionary()
_in_pool = Tasks()  # of a process pool's child, which knows no scheduler
_numbers = itertools.count(1)


def install(
    scheduler: BaseScheduler, client: MetricsClient | None = None, version: str | None = None
) -> None:
    """Record what this scheduler executes, and what it should have executed and did not.

    The children of a ProcessPoolExecutor have a client of their own, by the environment.
    """
    if scheduler in _installed:
        return
    tasks = _installed[scheduler] = Tasks(client)
    tasks.client.describe(version=version, framework=f"apscheduler {__version__}")
    scheduler.add_listener(lambda _event: tasks.client.connect(), EVENT_SCHEDULER_STARTED)
    scheduler.add_listener(lambda event: _refused(scheduler, tasks, event), EVENT_JOB_MAX_INSTANCES)
    if scheduler.running:
        tasks.client.connect()
    _replace(_run_job, run_job)
    _replace(_run_coroutine_job, run_coroutine_job)


def run_job(job: Any, jobstore: str, run_times: list[datetime], logger: str) -> list[Any]:
    """What executors call in their thread or process, for one or more scheduled times."""
    tasks = _tasks_of(job)
    if tasks is None:
        return _run_job(job, jobstore, run_times, logger)
    events = []
    for run_time in run_times:
        task = _begin(tasks, job, run_time)
        events += (ended := _run_job(job, jobstore, [run_time], logger))
        _end(tasks, task, ended[0])
    return events


async def run_coroutine_job(
    job: Any, jobstore: str, run_times: list[datetime], logger: str
) -> list[Any]:
    """The same in the event loop, for a coroutine function."""
    tasks = _tasks_of(job)
    if tasks is None:
        return await _run_coroutine_job(job, jobstore, run_times, logger)
    events = []
    for run_time in run_times:
        task = _begin(tasks, job, run_time)
        events += (ended := await _run_coroutine_job(job, jobstore, [run_time], logger))
        _end(tasks, task, ended[0])
    return events


def _begin(tasks: Tasks, job: Any, run_time: datetime) -> Task:
    waited = waited_ms(run_time.timestamp())
    task = Task(_run_id(tasks, job.id, run_time), job.name, queue=job.executor, wait_ms=waited)
    tasks.begin(task)
    return task


def _end(tasks: Tasks, task: Task, event: Any) -> None:
    if event.code == EVENT_JOB_MISSED:
        error = {"type": "Missed", "message": "it was later than misfire_grace_time allows"}
        tasks.fail(replace(task, wait_ms=None), error)
    else:
        tasks.end(task.id, None if event.code == EVENT_JOB_EXECUTED else event.exception)


def _refused(scheduler: BaseScheduler, tasks: Tasks, event: JobSubmissionEvent) -> None:
    # The job that still runs is in its store, unless this was its last time.
    job = scheduler.get_job(event.job_id, event.jobstore)
    name, queue = (event.job_id, None) if job is None else (job.name, job.executor)
    error = {"type": "MaxInstances", "message": "as many of it as may run at once still ran"}
    for run_time in event.scheduled_run_times:
        tasks.fail(Task(_run_id(tasks, event.job_id, run_time), name, queue=queue), error)


def _run_id(tasks: Tasks, job_id: str, run_time: datetime) -> str:
    """One for each execution: programs that run side by side have the same jobs and times."""
    return f"{job_id[:100]}@{run_time.isoformat()}#{tasks.client.session[:8]}.{next(_numbers)}"


def _tasks_of(job: Any) -> Tasks | None:
    """None for a scheduler that is not installed."""
    scheduler = getattr(job, "_scheduler", None)
    if scheduler is not None:
        return _installed.get(scheduler)
    _in_pool.client.describe(framework=f"apscheduler {__version__}")
    return _in_pool


def _replace(original: Any, ours: Any) -> None:
    """In executors that are imported already, and in the module that others import it from."""
    function = original.__name__
    for name, module in list(sys.modules.items()):
        if name.startswith("apscheduler.executors.") and vars(module).get(function) is original:
            setattr(module, function, ours)
