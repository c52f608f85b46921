"""Fixtures that more than one package's tests need."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from databases import Postgres
from orbit_rpc_schema.caller import call
from orbit_service.app import Service
from orbit_service.clock import wall_clock
from orbit_service.history import engines, schema
from orbit_service.hub import Hub
from orbit_service.rpc.handlers import Clock
from orbit_service.settings import Settings
from orbit_worker.client import MetricsClient

MAX_FAULT = 40  # lines
PYTESTS_OWN = ("/pluggy/", "/_pytest/", "/xdist/", "/execnet/", "Extension modules")
FAULTS = pytest.StashKey[Path]()


@pytest.hookimpl(trylast=True)  # pytest itself lets it be written in the middle of the dots
def pytest_configure(config: pytest.Config) -> None:
    """A process of tests that crashes leaves where it was, for the end of the output."""
    workers = getattr(config, "workerinput", None)
    if workers is None:
        config.stash[FAULTS] = Path(tempfile.mkdtemp(prefix="faults-"))
    else:
        file = os.open(Path(workers["faults"], workers["workerid"]), os.O_WRONLY | os.O_CREAT)
        faulthandler.enable(file)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a script has it that runs the tests behind itself; the programs that they start
        # would inherit it, and be deaf to Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["faults"] = str(node.config.stash[FAULTS])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for file in sorted(config.stash[FAULTS].iterdir()):
        if lines := file.read_text().splitlines():
            terminalreporter.section(f"the crash of {file.name}")
            told = [line for line in lines if not any(part in line for part in PYTESTS_OWN)]
            terminalreporter.write_line("\n".join(told[:MAX_FAULT]))
    shutil.rmtree(config.stash[FAULTS])


# The machine may do much else; what is asserted is never a time.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test meets a service or a setting of the machine it runs on."""
    for name in ("ORBIT_DISABLED", "ORBIT_STRICT", "ORBIT_WORKER_NAME", "METRICS_INTERVAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORBIT_SOCKET", str(tmp_path / "worker.sock"))
    monkeypatch.setenv("ORBIT_STATE", "none")


class RunningService:
    """A real service in a thread of this process, with its socket and HTTP address; or a hub."""

    def __init__(
        self,
        socket: Path,
        clock: Clock = wall_clock,
        program: type[Service] | type[Hub] = Service,
        **settings: Any,
    ) -> None:
        self.socket = socket
        self._program = program
        self._clock = clock
        self._settings = {"ORBIT_SOCKET": socket, "ORBIT_HTTP": "127.0.0.1:0", **settings}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.service: Any = None

    def start(self) -> None:
        async def start() -> Service | Hub:
            service = self._program(Settings(**self._settings), clock=self._clock)
            await service.start()
            return service

        self.service = self._await(start())

    def stop(self) -> None:
        if self.service is not None:
            self._await(self.service.stop())
            self.service = None

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=20)

    def control(
        self, worker: str, action: str, pipeline: str | None = None, timeout: float = 20
    ) -> Future[dict[str, str]]:
        """Tell the worker's sessions; the outcomes when they have answered."""
        assert self.service is not None
        told = self.service.workers.control(worker, action, pipeline, timeout)
        return asyncio.run_coroutine_threadsafe(told, self._loop)

    def ask(self, method: str, params: Any = ()) -> Any:
        """The result of one call over the socket."""
        return call(self.socket, method, params, timeout=30)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    """A service that runs."""
    running = RunningService(tmp_path / "worker.sock")
    running.start()
    yield running
    running.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[MetricsClient]:
    """A client of the worker `tests`, at the socket where `service` is if it is asked for."""
    client = MetricsClient(socket=tmp_path / "worker.sock", worker="tests")
    yield client
    client.close(timeout=1.0)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server for the tests of this process, with an empty history to copy."""
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    template = engines.postgres(engines.checked_url(server.make("empty")))
    schema.migrate(template)
    template.close()
    yield server
    server.close()


_numbers = iter(range(1_000_000))
_naming = threading.Lock()


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A database of the test's own, with the tables of a history."""
    with _naming:
        name = f"history-{next(_numbers)}"
    yield postgres.make(name, template="empty")
    postgres.drop(name)
