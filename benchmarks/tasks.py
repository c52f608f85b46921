"""
What recording costs a task: the integrations' hooks, without their framework's own work.

    .venv/bin/python benchmarks/tasks.py [--tasks 50000] [--rounds 3]

Each row is a process of its own with a client that is connected to a real service. It
calls the hooks of one framework as often as --tasks says, begin and end, with ids of
their own. Printed are microseconds a task, the least of --rounds: CPU of the thread that executes
tasks, which is what a task pays, and wall time, back to back, where the sender's thread
has its share. Beside them, in the same run, prometheus-client does what one writes
with it by hand: a gauge of what is in progress, a counter and a histogram with two
labels. The frameworks are those of `make test-frameworks`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orbit_rpc_schema.caller import CallFailed, call

ROOT = Path(__file__).parents[1]
SERVE = [sys.executable, "-c", "from orbit_service.entry import main; main()", "serve"]

MEASURE = """
import sys, time
import orbit_worker
N = int(sys.argv[1])

def measure(each, tasks):
    orbit_worker.default_client().connect()
    cpu, wall = time.thread_time(), time.perf_counter()
    for task in tasks:
        each(task)
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    print(cpu / N * 1e6, wall / N * 1e6)
    assert orbit_worker.flush(60)
"""

PEER = """
from prometheus_client import Counter, Gauge, Histogram
running = Gauge("running", "", ["task"])
total = Counter("runs", "", ["task", "outcome"])
took = Histogram("took", "", ["task"], buckets=[2.0**k for k in range(-10, 16)])

def each(id):
    running.labels("send").inc()
    began = time.perf_counter()
    took.labels("send").observe(time.perf_counter() - began)
    total.labels("send", "success").inc()
    running.labels("send").dec()

measure(each, [str(n) for n in range(N)])
"""

COMMON = """
from orbit_worker.integrations._tasks import Task, Tasks
tasks = Tasks()

def each(id):
    tasks.begin(Task(id, "send", queue="mail", wait_ms=1.5))
    tasks.end(id)

measure(each, [f"task-{n}" for n in range(N)])
"""

CELERY = """
import celery
from celery import signals
from celery.app.task import Context
import orbit_worker.integrations.celery
app = celery.Celery("shop", broker="memory://")

@app.task
def send(): ...

info = {"exchange": "", "routing_key": "celery", "redelivered": False}
headers = {"orbit_sent_at": time.time(), "retries": 0, "eta": None, "delivery_info": info}
"""

# Signals as Celery sends them around a task, in the pools that are in the worker's process.
SIGNALS = """
def each(request):
    send.request_stack.push(request)
    signals.task_prerun.send(sender=send, task_id=request.id, task=send, args=(), kwargs={})
    signals.task_postrun.send(
        sender=send, task_id=request.id, task=send, args=(), kwargs={}, retval=None, state="SUCCESS"
    )
    send.request_stack.pop()

measure(each, [Context({"id": f"t{n}", "is_eager": False, **headers}) for n in range(N)])
"""

NOTHING = CELERY + SIGNALS
IN_PROCESS = CELERY + "orbit_worker.integrations.celery.install(app)" + SIGNALS

# What the main process of a prefork pool hears of each task.
PREFORK = (
    CELERY
    + """
orbit_worker.integrations.celery.install(app)

class Consumer:
    class pool:
        uses_semaphore = True

class Request:
    task = send
    def __init__(self, id):
        self.id, self.request_dict = id, {"id": id, **headers}
    def on_accepted(self, pid, at): ...
    def on_success(self, result, **kwargs): ...
    def on_failure(self, exc_info, *args, **kwargs): ...

def each(request):
    signals.task_received.send(sender=Consumer, request=request)
    request.on_accepted(1, time.monotonic())
    request.on_success((0, "3", 0.001))

measure(each, [Request(f"task-{n}") for n in range(N)])
"""
)

DRAMATIQ = """
import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from orbit_worker.integrations.dramatiq import Orbit, install
broker = StubBroker()
install(broker)
orbit = next(each for each in broker.middleware if isinstance(each, Orbit))

@dramatiq.actor(broker=broker)
def send(): ...

def each(message):
    orbit.before_process_message(broker, message)
    orbit.after_process_message(broker, message, result=None)

measure(each, [MessageProxy(send.message()) for _ in range(N)])
"""

HUEY = """
from huey import MemoryHuey
from huey.signals import SIGNAL_EXECUTING
from orbit_worker.integrations.huey import install
huey = MemoryHuey()
install(huey)

@huey.task()
def send(): ...

def each(task):
    huey._emit(SIGNAL_EXECUTING, task)
    huey._run_post_execute(task, None, None)

measure(each, [send.s() for _ in range(N)])
"""

TASKIQ = """
from taskiq import InMemoryBroker, TaskiqMessage, TaskiqResult
from orbit_worker.integrations.taskiq import OrbitMiddleware
middleware = OrbitMiddleware()
middleware.set_broker(InMemoryBroker())
result = TaskiqResult(is_err=False, return_value=None, execution_time=0)

def each(message):
    middleware.pre_execute(message)
    middleware.post_execute(message, result)

async def main():
    measure(each, [
        TaskiqMessage(task_id=f"t{n}", task_name="send", labels={}, args=[], kwargs={})
        for n in range(N)
    ])

import asyncio
asyncio.run(main())
"""

ROWS = [
    ("prometheus-client by hand", ".venv", PEER),
    ("what all integrations share", ".venv", COMMON),
    ("Celery's own signals, for nobody", ".frameworks/shared", NOTHING),
    ("Celery, threads and the like", ".frameworks/shared", IN_PROCESS),
    ("Celery, prefork", ".frameworks/shared", PREFORK),
    ("Dramatiq", ".frameworks/shared", DRAMATIQ),
    ("Huey", ".frameworks/shared", HUEY),
    ("Taskiq", ".frameworks/shared", TASKIQ),
]


def run(environment: str, code: str, tasks: int, socket: Path) -> tuple[float, float]:
    """CPU and wall time a task, in microseconds."""
    told = subprocess.run(
        [ROOT / environment / "bin" / "python", "-c", MEASURE + code, str(tasks)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'worker'}:{ROOT / 'rpc_schema'}",
            "ORBIT_SOCKET": str(socket),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    cpu, wall = map(float, told.split())
    return cpu, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "worker.sock"
        environ = {**os.environ, "ORBIT_SOCKET": str(socket), "ORBIT_HTTP": "none"}
        environ |= {"ORBIT_STATE": "none", "LOG_LEVEL": "ERROR"}
        service = subprocess.Popen(SERVE, env=environ)
        while True:
            try:
                call(socket, "service.info", {})
                break
            except (OSError, CallFailed):
                time.sleep(0.05)  # until the service answers
        print(f"{'us a task':34} {'CPU':>8} {'wall':>8}")
        for name, environment, code in ROWS:
            rounds = [run(environment, code, options.tasks, socket) for _ in range(options.rounds)]
            cpu, wall = (min(figures) for figures in zip(*rounds, strict=True))
            print(f"{name:34} {cpu:8.1f} {wall:8.1f}")
        service.terminate()
        service.wait()


if __name__ == "__main__":
    main()
