"""
Nothing lost, nothing counted twice: faults in real processes, each by its name.

What is asserted is conservation, not survival: what the workers recorded is what
was counted. Random faults in a row are chaos.py's; of them a few seeds run here.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import ENTRY, HOUR, environment, until
from conftest import RunningService
from orbit_service.app import wall_clock
from orbit_worker.client import MetricsClient
from processes import House

HERE = Path(__file__).parent
POINTS = (
    "between_reading_and_committing",
    "in_the_middle_of_the_commit",
    "in_the_middle_of_a_checkpoint",
    "between_commit_and_acknowledging",
    "before_the_history_takes_a_publication",
    "in_the_middle_of_publishing",
    "after_the_history_has_taken_a_publication",
    "in_the_middle_of_rolling_up",
    "after_acknowledging",
)


class Home(House):
    """A house with a state directory that is known, and services that may be doomed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.state = folder / "state"
        self.file = self.state / "state.sqlite"

    def serve(
        self, *program: str, prepare: Callable[[], None] | None = None
    ) -> subprocess.Popen[str]:
        process = self.start_serving(*program, prepare=prepare)
        until(lambda: self.ask("service.info"))
        return process

    def start_serving(
        self, *program: str, prepare: Callable[[], None] | None = None
    ) -> subprocess.Popen[str]:
        with (self.folder / "service.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *program] if program else [*ENTRY, "serve"],
                env=environment(self.folder, ORBIT_STATE=str(self.state), ORBIT_HTTP="none"),
                cwd=self.folder,
                preexec_fn=prepare,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                text=True,
            )
        self._processes.append(process)
        return process

    def restart(self, service: subprocess.Popen[str]) -> subprocess.Popen[str]:
        """kill -9, and another."""
        kill(service)
        return self.serve()

    def said(self) -> str:
        return (self.folder / "service.log").read_text()

    def ledger(self) -> dict[str, Any]:
        return self.ask("service.ledger")["total"]

    def written(self) -> dict[str, Any]:
        return self.ask("service.info")["state"]

    def trouble(self) -> str | None:
        state = (self.ask("service.info") or {}).get("state") or {}
        return state.get("trouble")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.close()


def kill(service: subprocess.Popen[str]) -> None:
    service.kill()
    service.wait(10)


def books(home: Home) -> dict[str, Any]:
    """The ledger without its zeroes."""
    return {what: n for what, n in home.ledger().items() if n}


# A worker that records until it is told to go on, one run in four a failure; then it says
# whether all was acknowledged, and how many there were.
BUSY = """
import select
runs = 0
def record():
    global runs
    record_run(runs, runs % 4 != 0)
    runs += 1
def busy():
    while not select.select([sys.stdin], [], [], 0)[0]:
        record()
        flush(0.02)
    sys.stdin.readline()
    step(f"{flush(30)} {runs}")
"""
# A worker that records once, and once more each time that it is told to.
ONE_BY_ONE = (
    BUSY
    + """
while True:
    record()
    step(f"{flush(30)} {runs}")
"""
)


# ---------------------------------------------------------------- random faults


def test_after_random_kills_the_books_are_what_was_recorded():
    ended = subprocess.run(
        [sys.executable, HERE / "chaos.py", "--kills", "12", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr


# ---------------------------------------------------------------- a kill at a point with a name


@pytest.mark.parametrize("point", POINTS)
def test_a_service_killed_at_any_point_of_its_work_loses_and_doubles_nothing(home, point):
    worker = home.worker(BUSY + "busy()\n")
    # A minute is rolled up once.
    for times in (1,) if point == "in_the_middle_of_rolling_up" else (1, 4):
        doomed = home.start_serving(str(HERE / "killed_at.py"), point, str(times))
        assert doomed.wait(60) == -signal.SIGKILL
    service = home.serve()
    worker.go_on()
    flushed, runs = worker.reached().split()
    recorded = int(runs)

    for again in (False, True):
        if again:
            home.restart(service)
        assert (flushed, books(home)) == ("True", {"recorded": recorded, "counted": recorded})
        assert (home.runs(), home.metrics()["failed"]) == (recorded, (recorded + 3) // 4)
        assert home.metrics()["lastLife"] is None
        assert home.ask("worker.metrics", window="1h")["totalRuns"] == recorded


# ---------------------------------------------------------------- who is not dead


def test_a_service_that_stands_still_for_longer_than_every_time_out_loses_no_worker(home):
    service = home.serve()
    hurried = ("import orbit_worker.sender as sender\n"
               "sender.GREETING_SECONDS, sender.HEARTBEAT_SECONDS = 0.7, 0.3\n")  # fmt: skip
    early = home.worker(hurried + BUSY + "orbit_worker.default_client().start_run('long')\n"
                        "record(); flush(); step(); busy()")  # fmt: skip
    early.reached()
    early.go_on()
    service.send_signal(signal.SIGSTOP)
    # One that comes now is not answered, gives up, and tries again, many times.
    late = home.worker(hurried + BUSY + "record(); flush(4); step(); record()\n"
                       "step(f'{flush(30)} {runs}')")  # fmt: skip
    late.reached()
    service.send_signal(signal.SIGCONT)
    recorded = 0
    for worker in (early, late):
        worker.go_on()
        flushed, runs = worker.reached().split()
        assert flushed == "True"
        recorded += int(runs)

    assert (home.runs(), home.metrics()["lastLife"]) == (recorded, None)
    assert books(home) == {"recorded": recorded, "counted": recorded}
    [crew] = home.ask("worker.list")
    assert (crew["sessions"], crew["inFlight"]) == (2, 1)


def test_a_proxy_that_cuts_delays_and_splits_loses_no_worker(home):
    home.serve()
    front = home.folder / "front.sock"
    program = ("import sys; from pathlib import Path; import chaos\n"
               "chaos.Proxy(Path(sys.argv[1]), Path(sys.argv[2]), 'seed').run()")  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", program, front, home.socket],
        env={**os.environ, "PYTHONPATH": str(HERE)},
    ) as proxy:
        until(front.exists)
        worker = home.worker(
            f"os.environ['ORBIT_SOCKET'] = {str(front)!r}\n" + BUSY
            + "orbit_worker.default_client().start_run('long')\n"
            "for _ in range(30_000): record(); runs % 500 or flush(0.1)\n"
            "step(f'{flush(30)} {runs}')"
        )  # fmt: skip
        said = worker.reached()
        metrics, [crew], ledger = home.metrics(), home.ask("worker.list"), books(home)
        proxy.kill()

    assert said == "True 30000"
    assert (metrics["totalRuns"], metrics["failed"]) == (30_000, 7_500)
    assert (crew["inFlight"], metrics["lastLife"]) == (1, None)
    assert ledger == {"recorded": 30_000, "counted": 30_000}


def test_a_child_that_inherited_the_socket_does_not_hide_the_death_of_its_parent(home):
    home.serve()
    worker = home.worker("orbit_worker.default_client().start_run('r1', pipeline='job')\n"
                         "flush()\n"
                         "os.dup(orbit_worker.default_client()._sender._connection.socket.fileno())\n"
                         "if os.fork() == 0:\n"
                         "    sys.stdin.read()\n"
                         "    os._exit(0)\n"
                         "step()")  # fmt: skip
    worker.reached()
    worker.kill()

    ended = home.ended()
    assert (ended["totalRuns"], ended["failed"], ended["reason"]) == (1, 1, "lost")


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_set_loses_no_worker_and_counts_nothing_twice(tmp_path, hours):
    clock = Clock()
    running = RunningService(tmp_path / "worker.sock", clock=clock, ORBIT_STATE=tmp_path / "state")
    running.start()
    connected = MetricsClient(socket=running.socket, worker="connected")
    suspect = MetricsClient(socket=running.socket, worker="suspect")
    try:
        for client in (connected, suspect):
            client.start_run("r1")
            client.record_run(1, True)
            assert client.flush()
        with suspect._sender._lock:  # it stays away until the clock has been set
            suspect._sender._connection.socket.shutdown(socket.SHUT_RDWR)
            until(lambda: running.ask("service.info")["connections"] == 2)  # and who asks
            clock.offset_ms += hours * HOUR
            looked = running.service.workers._looked_at
            until(lambda: running.service.workers._looked_at != looked)
        for client in (connected, suspect):
            client.record_run(1, True)
            assert client.flush()
        for again in (False, True):
            if again:
                running.stop()
                running.start()
                assert connected.flush()
                assert suspect.flush()
            for name in ("connected", "suspect"):
                metrics = running.ask("worker.metrics", {"worker": name})
                assert (metrics["totalRuns"], metrics["failed"]) == (2, 0)
                assert (metrics["connected"], metrics["lastLife"]) == (True, None)
            total = running.ask("service.ledger")["total"]
            assert {k: n for k, n in total.items() if n} == {"recorded": 4, "counted": 4}
            assert running.ask("worker.stats")["running"] == 2
    finally:
        for client in (connected, suspect):
            client.close()
        running.close()


class Clock:
    """The wall clock, and how far it has been set."""

    def __init__(self) -> None:
        self.offset_ms = 0

    def __call__(self) -> int:
        return wall_clock() + self.offset_ms


# ---------------------------------------------------------------- a disk that does not


def lift(service: subprocess.Popen[str], limit: int = resource.RLIM_INFINITY) -> None:
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def goes_on_in_memory(home: Home, worker: Any, service: subprocess.Popen[str], why: str) -> None:
    """Runs count and are not acknowledged, and it is said why."""
    before = home.runs()
    worker.go_on()  # and waits, for an acknowledgement that does not come
    trouble = until(home.trouble)
    until(lambda: home.runs() == before + 1)
    health = home.ask("worker.health")
    assert why in trouble
    assert (health["status"], trouble in health["message"]) == ("warning", True)
    assert service.poll() is None


def catches_up(home: Home, worker: Any, service: subprocess.Popen[str]) -> None:
    """Everything is acknowledged, and survives a kill."""
    flushed, runs = worker.reached().split()
    assert flushed == "True"
    until(lambda: home.trouble() is None)
    for again in (False, True):
        if again:
            home.restart(service)
        assert books(home) == {"recorded": int(runs), "counted": int(runs)}
        assert home.runs() == int(runs)


def calm(code: str) -> str:
    """The worker without failures, which would be another reason for a warning."""
    return code.replace("runs % 4 != 0", "True")


def test_a_full_disk_stops_the_acknowledgements_and_nothing_else(home):
    service = home.serve()
    worker = home.worker(calm(ONE_BY_ONE))
    assert worker.reached() == "True 1"
    lift(service, limit=0)
    goes_on_in_memory(home, worker, service, "disk")

    lift(service)
    catches_up(home, worker, service)


def test_a_state_that_is_deleted_while_it_is_used_is_written_anew(home):
    service = home.serve()
    worker = home.worker(calm(ONE_BY_ONE))
    worker.reached()
    for file in home.state.iterdir():
        file.unlink()
    worker.go_on()

    catches_up(home, worker, service)
    assert "was lost; it is written anew" in home.said()


def test_a_state_directory_that_is_deleted_while_it_is_used_is_made_anew(home):
    service = home.serve()
    worker = home.worker(calm(ONE_BY_ONE))
    worker.reached()
    for file in home.state.iterdir():
        file.unlink()
    home.state.rmdir()
    worker.go_on()

    catches_up(home, worker, service)


def test_a_database_that_somebody_locks_is_waited_for(home):
    service = home.serve()
    worker = home.worker(calm(ONE_BY_ONE))
    worker.reached()
    with sqlite3.connect(home.file, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        goes_on_in_memory(home, worker, service, "locked")
        other.execute("ROLLBACK")
    other.close()

    catches_up(home, worker, service)


def test_a_database_that_is_locked_at_the_start_is_taken_up_when_it_is_free(home):
    service = home.serve()
    worker = home.worker(calm(ONE_BY_ONE))
    worker.reached()
    kill(service)
    other = sqlite3.connect(home.file, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")  # so that nobody can read it either
    other.execute("BEGIN EXCLUSIVE")
    service = home.serve()
    assert "locked" in home.trouble()
    worker.go_on()
    until(lambda: home.runs() == 1)  # of this service's time; the other is on the disk
    other.close()

    catches_up(home, worker, service)
    assert home.ledger()["forgotten"] == 0


def without_privileges() -> None:
    """As root too, the mode of a file says who may write it."""
    drop_from_bounding_set, override_modes = 24, 1  # prctl(2), capabilities(7)
    ctypes.CDLL(None).prctl(drop_from_bounding_set, override_modes)


def test_a_state_that_is_read_only_is_not_written_and_not_lost(home):
    service = home.serve()
    worker = home.worker(calm(ONE_BY_ONE))
    worker.reached()
    kill(service)
    files = list(home.state.iterdir())
    for path in (*files, home.state):
        path.chmod(path.stat().st_mode & 0o555)
    service = home.serve(prepare=without_privileges)
    worker.go_on()
    trouble = until(home.trouble)
    until(lambda: home.runs() in (1, 2))
    assert home.ask("worker.health")["status"] == "warning"
    assert trouble in home.ask("worker.health")["message"]

    for path in (home.state, *files):
        path.chmod(path.stat().st_mode | 0o200)
    catches_up(home, worker, service)


def test_a_state_of_a_newer_release_is_left_as_it_is(home):
    kill(home.serve())
    with sqlite3.connect(home.file) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("PRAGMA user_version=99")
    database.close()
    before = home.file.read_bytes()
    service = home.serve()
    worker = home.worker("record_run(1, True); flush(0.1); step()")
    worker.reached()

    until(lambda: home.runs() == 1)
    assert "newer release" in home.trouble()
    assert home.ask("worker.health")["status"] == "warning"
    kill(service)
    assert home.file.read_bytes() == before


@pytest.mark.parametrize(
    "garbage", [b"no database at all " * 500, b"SQLite format 3\0" + b"x" * 9000]
)
def test_a_state_that_is_garbage_is_put_aside(home, garbage):
    home.state.mkdir()
    home.file.write_bytes(garbage)
    service = home.serve()
    worker = home.worker(calm(ONE_BY_ONE))
    assert worker.reached() == "True 1"

    [aside] = home.state.glob("state.damaged-*")
    assert aside.read_bytes() == garbage
    assert str(aside) in home.said()
    home.restart(service)
    assert home.runs() == 1


def test_a_state_that_was_lost_while_the_service_was_down_is_noticed_and_said(home):
    service = home.serve()
    worker = home.worker(calm(ONE_BY_ONE))
    for _ in range(3):
        worker.reached()
        worker.go_on()
    assert worker.reached() == "True 4"
    kill(service)
    for file in home.state.iterdir():
        file.unlink()
    home.serve()
    worker.go_on()

    assert worker.reached() == "True 5"
    assert books(home) == {"recorded": 1, "counted": 1, "forgotten": 4}
    assert home.runs() == 1


def test_a_second_service_on_the_same_state_is_refused_with_a_sentence(home):
    home.serve()
    second = subprocess.run(
        [*ENTRY, "serve"],
        env=environment(
            home.folder, ORBIT_STATE=str(home.state), ORBIT_SOCKET=str(home.folder / "2.sock")
        ),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert second.returncode != 0
    assert f"The state directory {home.state} is used by another service." in second.stderr
    assert "Traceback" not in second.stderr


def test_nothing_is_written_while_nothing_happens(home):
    # A window that closes is written, and one that is still open has to be closed some time.
    home.serve("-c", "from orbit_service.core import outbox; outbox.GRACE_MS = 3_600_000\n"
               "from orbit_service.entry import main; main()", "serve")  # fmt: skip
    worker = home.worker("import orbit_worker.sender as sender\n"
                         "sender.HEARTBEAT_SECONDS = 0.05\n"
                         "record_run(1, True); flush(); step()")  # fmt: skip
    worker.reached()
    heard_for(home, ms=500)  # and so all that the flush itself has sent is there
    before = until(lambda: (state := home.written())["bytesWaiting"] == 0 and state)
    heard_for(home, ms=2_000)  # some forty heartbeats

    assert home.written() == before


def heard_for(home: Home, ms: int) -> None:
    """Wait until the one worker has gone on talking for so long."""
    seen = home.ask("worker.list")[0]["lastSeen"]
    until(lambda: home.ask("worker.list")[0]["lastSeen"] > seen + ms)
