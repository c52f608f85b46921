"""
The main job before one's eyes: a service, a worker, several hundred real runs.

Everything is real: two processes as in production, a socket between them, and
pipelines that read, parse and measure the standard library's own source.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from sysconfig import get_path
from typing import Any

import click

from orbit_rpc_schema.caller import CallFailed, call
from orbit_rpc_schema.wire import Json
from orbit_service.alerts import EXAMPLE
from orbit_service.tables import metrics_table

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
START_SECONDS = 30.0
RUNS_SECONDS = 600.0
ENDINGS = (signal.SIGTERM, signal.SIGHUP)
# As it can be typed: in a checkout the command is not on the path.
COMMAND = os.path.relpath(sys.argv[0])
CENSUS = "source_census"
WEATHER = "flaky_weather"

Enqueue = Callable[[Path, str, list[Any]], None]


class Demo:
    """One demonstration. `enqueue` puts pending runs into a pipelines database."""

    def __init__(self, enqueue: Enqueue, *, runs: int, http: str | None, once: bool) -> None:
        self._enqueue = enqueue
        self._runs = runs
        self._http = http
        self._once = once

    def run(self) -> int:
        """The exit code."""
        # However the demo is ended, what it has started ends with it.
        for number in ENDINGS:
            signal.signal(number, leave)
        if not EXAMPLES.is_dir():
            click.echo("orbit-metrics: the demo needs a checkout: there is no examples/", err=True)
            return 1
        try:
            # Its worker and service are ours: nothing that runs here already is touched.
            with tempfile.TemporaryDirectory(prefix="orbit-demo-") as folder:
                return self._in(Path(folder))
        except KeyboardInterrupt:
            return 0

    def _in(self, folder: Path) -> int:
        socket = folder / "worker.sock"
        database = folder / "pipelines.db"
        inputs = census_inputs(self._runs)
        say(f"putting in {len(inputs)} runs of {CENSUS} and 20 of {WEATHER}")
        self._enqueue(database, CENSUS, inputs)
        self._enqueue(database, WEATHER, [{"city": n} for n in range(20)])
        expected = len(inputs) + 20
        with ExitStack() as stack:
            service = stack.enter_context(self._process(folder, "service", ["serve"]))
            until(lambda: ask(socket, "service.info"), service, START_SECONDS)
            info = ask(socket, "service.info") or {}
            say(f"service: http://{info.get('http')} and {socket}")
            pipelines = ["worker", "--pipelines", str(EXAMPLES / "pipelines")]
            pipelines += ["--database", str(database)]
            worker = stack.enter_context(self._process(folder, "worker", pipelines))
            watch(socket, worker, expected)
            answer = ask(socket, "worker.metrics") or {}
            if self._once:
                click.echo(json.dumps(answer, indent=2))
                return 0 if answer.get("totalRuns") == expected else 1
            click.echo(metrics_table(answer))
            self._explain(socket, info)
            signal.pause()
        return 0

    def _explain(self, socket: Path, info: Json) -> None:
        say(
            f"the service stays up until Ctrl-C.\n"
            f"Look at http://{info.get('http')}/ in a browser. In another shell, try:\n"
            f"  export ORBIT_SOCKET={socket}\n"
            f"  {COMMAND} top\n"
            f"  {COMMAND} metrics\n"
            f"  {COMMAND} history --last 10m\n"
            f"  {COMMAND} history --last 10m --group-by pipeline\n"
            f"  {COMMAND} alerts        # what fires, by {self._rules()}\n"
            f"Make a pipeline fail: these inputs have no city, and within 15 s an alert fires.\n"
            f"  for i in $(seq 30); do {COMMAND} call runs.create "
            f'\'{{"pipeline": "{WEATHER}", "input": {{}}}}\'; done\n'
            f"And more to ask:\n"
            f'  {COMMAND} call worker.recentRuns \'{{"limit": 3, "status": "failed"}}\'\n'
            f"  curl -s http://{info.get('http')}/rpc -H 'Content-Type: application/json' "
            f'-d \'{{"jsonrpc":"2.0","id":1,"method":"worker.metrics"}}\''
        )

    def _rules(self) -> str:
        return os.environ.get("ORBIT_ALERTS") or f"the rules of `{COMMAND} alerts example`"

    @contextmanager
    def _process(
        self, folder: Path, name: str, arguments: list[str]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A child that is stopped at the end, and whose log is shown if it failed."""
        log = folder / f"{name}.log"
        environ = {
            **os.environ,
            "ORBIT_SOCKET": str(folder / "worker.sock"),
            "ORBIT_HTTP": self._http or "127.0.0.1:0",
            "ORBIT_STATE": str(folder / "state"),
            "ORBIT_WORKER_NAME": "demo",
            "POLL_INTERVAL": "1000",
            "CENSUS_STORE": str(folder / "census.db"),
            "ORBIT_PIPELINES_DATABASE": str(folder / "pipelines.db"),
        }
        environ.setdefault("ORBIT_ALERTS", str(EXAMPLE))
        command = [sys.executable, "-c", "from orbit_service.entry import main; main()", *arguments]
        with log.open("wb") as output:
            # A session of its own: Ctrl-C is for the demo, which stops them in order.
            child = subprocess.Popen(  # our own program
                command, stdout=output, stderr=output, env=environ, start_new_session=True
            )
        try:
            yield child
        except ChildEnded:
            click.echo(f"orbit-metrics: the demo's {name} or its partner ended early:", err=True)
            click.echo(log.read_text(errors="replace")[-3000:], err=True)
            raise SystemExit(1) from None
        finally:
            child.terminate()
            try:
                child.wait(timeout=35)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def leave(number: int, _frame: object) -> None:
    # Some send both, or one twice: the second must not end the clearing up. It is passed over
    # here, because Python complains of a pending signal that is ignored by then.
    for each in ENDINGS:
        signal.signal(each, lambda _number, _frame: None)
    sys.exit(128 + number)


class ChildEnded(Exception):
    """A process of the demo ended before its time."""


def census_inputs(most: int) -> list[str]:
    """Files of the standard library, and a few of our own that truly do not parse."""
    broken = sorted(map(str, (EXAMPLES / "broken").glob("*.py")))
    library = Path(get_path("stdlib"))
    files = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    # Spread over the library, so that small and large files come in turn.
    wanted = max(most - len(broken), 0)
    stride = max(len(files) // max(wanted, 1), 1)
    return [*map(str, files[::stride][:wanted]), *broken][:most]


def watch(socket: Path, worker: subprocess.Popen[bytes], expected: int) -> None:
    """Show progress until every run has ended: a bar on a terminal, lines elsewhere."""
    with _bar(expected) if sys.stderr.isatty() else _lines(expected) as advance:

        def done() -> bool:
            answer = ask(socket, "worker.metrics")
            if answer is None:
                return False
            advance(answer)
            return bool(answer["totalRuns"] >= expected)

        until(done, worker, RUNS_SECONDS)


def until(condition: Callable[[], Any], child: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if child.poll() is not None or time.monotonic() > deadline:
            raise ChildEnded
        time.sleep(0.1)  # between two looks at another process


def ask(socket: Path, method: str) -> Json | None:
    try:
        answer: Json = call(socket, method, timeout=5.0)
    except (OSError, CallFailed):
        return None
    return answer


def say(text: str) -> None:
    """Progress goes to standard error; standard output is for the result."""
    click.echo(text, err=True)


@contextmanager
def _bar(expected: int) -> Iterator[Callable[[Json], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting the worker", total=expected)

        def advance(m: Json) -> None:
            progress.update(task, completed=m["totalRuns"], description=_summary(m))

        yield advance


@contextmanager
def _lines(expected: int) -> Iterator[Callable[[Json], None]]:
    last = -1

    def advance(m: Json) -> None:
        nonlocal last
        tenth = 10 * m["totalRuns"] // expected
        if tenth != last:
            last = tenth
            say(f"{m['totalRuns']}/{expected} runs, {_summary(m)}")

    yield advance


def _summary(m: Json) -> str:
    return (
        f"{m['failed']} failed, avg {m['avgExecutionTime']} ms, "
        f"p95 {m['p95']} ms, {m['runsPerHour']:.0f} an hour"
    )
