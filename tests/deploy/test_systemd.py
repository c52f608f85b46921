"""
The units of deploy/systemd, as far as they can be tried without systemd.

Proved: systemd's own checks of the files, where it is installed (what it makes of them, and
how exposed the service is); and, with the test in the place of the manager, what they say:
the socket with its group and mode, a user without a name or a right, the state directory,
readiness, a restart that no worker notices, and a worker's order.

Not proved: systemd at work (DynamicUser, the filter of system calls, the watchdog's kill).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from builders import until
from containers import ROOT, Container, a_volume, end, need_containers, send_signal
from managers import Manager
from orbit_rpc_schema.caller import call

UNITS = ROOT / "deploy" / "systemd"
WORKERS = 3_000  # the group orbit-workers
DYNAMIC = 61_184  # what DynamicUser= begins with
APP = 2_001
BINARY = "/opt/orbit-metrics/bin/orbit-metrics"


def unit(name: str) -> dict[str, list[str]]:
    """What a unit says, by `Section.Key`; a key may be there more than once."""
    said: dict[str, list[str]] = {}
    section = ""
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            said.setdefault(f"{section}.{key}", []).append(value)
    return said


# ---------------------------------------------------------------- what systemd says of them


@pytest.fixture
def installed(tmp_path: Path) -> list[str]:
    """The units, with programs and users that are there."""
    if shutil.which("systemd-analyze") is None:
        why = "systemd-analyze is not installed; Debian's package systemd brings it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    program = shutil.which("orbit-metrics", path=str(Path(sys.executable).parent))
    changes = {BINARY: program, "/srv/app/venv/bin/celery": "/bin/true", "User=app": "User=daemon"}
    for path in UNITS.iterdir():
        text = path.read_text()
        for old, new in changes.items():
            text = text.replace(old, str(new))
        (tmp_path / path.name).write_text(text)
    return sorted(str(tmp_path / path.name) for path in UNITS.iterdir())


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments], capture_output=True, text=True, check=False
    )


def test_systemd_finds_nothing_wrong_with_the_units(installed):
    checked = systemd_analyze("verify", *installed)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_service_that_is_broken_into_reaches_little(installed):
    [service] = [path for path in installed if path.endswith("/orbit-metrics.service")]
    judged = systemd_analyze("security", "--offline=true", "--threshold=20", service)
    assert judged.returncode == 0, judged.stdout


# ---------------------------------------------------------------- what they do


@pytest.fixture
def systemd(tmp_path: Path):
    """The test in systemd's place: it has made the socket and the directories."""
    need_containers()
    manager = Systemd(tmp_path)
    yield manager
    manager.close()


class Systemd(Manager):
    def __init__(self, folder: Path) -> None:
        socket_unit = unit("orbit-metrics.socket")
        self.run = a_volume(folder / "run", mode=int(socket_unit["Socket.DirectoryMode"][0], 8))
        self.state = a_volume(folder / "state", uid=DYNAMIC, gid=DYNAMIC, mode=0o700)
        super().__init__(self.run)
        (self.run / "notify").chmod(0o666)
        [listens] = socket_unit["Socket.ListenStream"]
        assert listens == "/run/orbit-metrics/worker.sock"
        self.socket = self.listen_for_workers(mode=int(socket_unit["Socket.SocketMode"][0], 8))
        shutil.chown(self.socket, group=WORKERS)

    def start_unit(self) -> subprocess.Popen[str]:
        """ExecStart= of the service, under its user and environment; ready when this returns."""
        service = unit("orbit-metrics.service")
        environ = dict(pair.split("=", 1) for pair in service["Service.Environment"])
        container = Container(
            DYNAMIC,
            DYNAMIC,
            mounts={"/run/orbit-metrics": self.run, "/var/lib/orbit-metrics": self.state},
            environ={
                **{name: value.replace("%S", "/var/lib") for name, value in environ.items()},
                "ORBIT_HTTP": "none",  # others may use the port of the unit
                "NOTIFY_SOCKET": "/run/orbit-metrics/notify",
            },
        )
        [command] = service["Service.ExecStart"]
        started = self._start(container.popen, *command.replace(BINARY, "orbit-metrics").split())
        while self.heard()[0] != "READY=1":
            pass
        return started

    def close(self) -> None:
        for service in self._services:
            end(service)
        super().close()

    def worker(self, uid: int, code: str, *groups: int) -> subprocess.CompletedProcess[str]:
        """A program of a user's that records."""
        container = Container(uid, uid, groups, {"/run/orbit-metrics": self.run})
        prelude = "from orbit_worker import flush, record_run\n"
        return container.run("python", "-c", prelude + code)


def test_workers_of_the_group_may_record_and_others_may_not(systemd):
    systemd.start_unit()
    code = "record_run(1, True); print(flush({}))"

    assert systemd.worker(APP, code.format(30), WORKERS).stdout == "True\n"
    assert "Permission denied" in systemd.worker(APP, code.format(5)).stdout
    assert call(systemd.socket, "worker.metrics", {"window": "1h"})["totalRuns"] == 1


def test_workers_do_not_notice_that_the_service_starts_again(systemd):
    first = systemd.start_unit()
    assert systemd.worker(APP, "record_run(1, True); print(flush(30))", WORKERS).stdout == "True\n"
    send_signal(first, signal.SIGTERM)
    assert first.wait(30) == 0
    assert systemd.socket.is_socket()  # it is not the service's to remove

    with socket.socket(socket.AF_UNIX) as early:
        early.connect(str(systemd.socket))  # is let in, and waits
        systemd.start_unit()
    metrics = until(lambda: call(systemd.socket, "worker.metrics", {"window": "1h"}))
    assert metrics["totalRuns"] == 1


def test_a_worker_wants_the_service_does_not_need_it_and_is_stopped_before_it():
    worker = unit("worker.service")
    both = ["orbit-metrics.socket orbit-metrics.service"]

    assert worker["Unit.Wants"] == worker["Unit.After"] == both
    assert "Unit.Requires" not in worker
    # Told themselves, the children of a pool die in the middle of their tasks.
    assert worker["Service.KillMode"] == ["mixed"]
    assert (
        worker["Service.SupplementaryGroups"] == unit("orbit-metrics.socket")["Socket.SocketGroup"]
    )
