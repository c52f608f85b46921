"""
The image, as `make test-image` builds it: what is in it, and that it serves as a container.

Proved with what its config says (environment, entry point, user, health check) on its own
root, by bubblewrap: under its user and under any other of group 0, read-only, without a
capability, with two folders to write in. Where no engine answers, its base is made of
Debian's packages and stands in for python:3.11-slim. Not proved: that an engine pulls,
starts and probes it, and what a registry or a cluster's policy says of it.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import until
from containers import ROOT, Container, a_volume, end, need_containers, send_signal
from images import FOLDERS, SERVICE_UID, Image, built_image
from orbit_rpc_schema.caller import CallFailed, call

GRACE = 10  # seconds that `docker stop` gives
WORKER = """
import sys, orbit_worker
orbit_worker.record_run(5, True)
print("counted" if orbit_worker.flush(float(sys.argv[1])) else "waiting")
"""


@pytest.fixture(scope="module")
def image() -> Image:
    image = built_image()
    need_containers()
    return image


class Pod:
    """The two folders of a service, and containers of the image around them."""

    def __init__(self, image: Image, folder: Path, user: str | None = None, **environ: str) -> None:
        self.log = folder / "log"
        self.socket = folder / "socket" / "worker.sock"
        volumes = dict(zip(FOLDERS, (folder / "socket", folder / "state"), strict=True))
        for inside, (uid, gid, mode) in FOLDERS.items():
            a_volume(volumes[inside], uid=uid, gid=gid, mode=mode)
        uid, gid = map(int, (user or image.user).split(":"))
        self.container = Container(
            uid,
            gid,
            mounts=volumes,
            environ={**image.environ, "ORBIT_HTTP": "none", **environ},
            image=image.root,
        )
        self._image = image
        self._processes: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        process = self.container.start(*self._image.command, log=self.log)
        self._processes.append(process)
        until(self.is_healthy)
        return process

    def is_healthy(self) -> bool:
        return self.container.run(*self._image.probe).returncode == 0

    def worker(self, uid: int, *groups: int, patience: float = 20) -> str:
        """What becomes of the run of a worker with a Python of its own, in another container."""
        mounts = {"/run/orbit-metrics": self.socket.parent}
        worker = Container(uid, uid, groups, mounts)
        return worker.run("python", "-c", WORKER, str(patience)).stdout.split()[-1]

    def ask(self, method: str) -> Any:
        try:
            return call(self.socket, method)
        except (OSError, CallFailed):
            return None

    def said(self, *levels: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.split()[1] in levels]

    def close(self) -> None:
        for process in self._processes:
            end(process)


@pytest.fixture
def a_pod(image: Image, tmp_path: Path) -> Iterator[Callable[..., Pod]]:
    pods: list[Pod] = []

    def make(user: str | None = None, **environ: str) -> Pod:
        pods.append(Pod(image, tmp_path, user, **environ))
        return pods[-1]

    yield make
    for pod in pods:
        pod.close()


# ---------------------------------------------------------------- what is in it


def test_it_is_under_150_megabytes_compressed(image: Image) -> None:
    print(f"{image.size / 1e6:.1f} MB compressed, of which the base {image.base_size / 1e6:.1f} MB")

    assert image.size < 150e6


def test_its_user_is_a_number_that_is_not_root(image: Image) -> None:
    assert image.user == f"{SERVICE_UID}:{SERVICE_UID}"


def test_no_port_is_published_by_default(image: Image) -> None:
    assert not image.ports


def test_it_says_what_it_is(image: Image) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = {name.rpartition(".")[2]: text for name, text in image.labels.items()}

    assert said["title"] == project["name"]
    assert said["version"] == project["version"]
    assert said["licenses"] == project["license"]
    assert said["description"]


def test_its_folders_are_its_own_and_those_of_group_0(image: Image) -> None:
    for inside, expected in FOLDERS.items():
        found = (image.root / inside[1:]).stat()

        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == expected


def test_it_has_the_service_and_nothing_of_frameworks_or_tests(
    a_pod: Callable[..., Pod],
) -> None:
    found = installed(a_pod())

    assert packages("service") <= found
    # Tests name PyYAML too, which Apprise brings with it.
    assert found & (packages() - packages("service")) == {"pyyaml"}


def test_nothing_is_compiled_when_it_starts(a_pod: Callable[..., Pod]) -> None:
    pod = a_pod(PYTHONVERBOSE="1")
    pod.start()
    sources = re.findall(r"# code object from '(.*)'", pod.log.read_text())

    assert len(sources) > 400
    assert [path for path in sources if path.endswith(".py")] == []


# ---------------------------------------------------------------- that it serves


@pytest.mark.parametrize("user", [None, "1234567:0"])
def test_it_serves_under_its_user_and_under_any_of_group_0(
    a_pod: Callable[..., Pod], user: str | None
) -> None:
    pod = a_pod(user, ORBIT_ALLOW_UIDS="10002")
    pod.start()

    assert pod.worker(10002) == "counted"
    assert pod.said("WARNING", "ERROR") == []
    assert pod.ask("worker.health")["status"] == "healthy"
    assert pod.ask("service.info")["state"]["trouble"] is None


def test_a_worker_of_another_uid_in_the_group_of_the_volume_is_admitted(
    a_pod: Callable[..., Pod],
) -> None:
    pod = a_pod(ORBIT_ALLOW_UIDS="10002")
    a_volume(pod.socket.parent, gid=3000, mode=0o2770)  # as a cluster gives it to an fsGroup
    pod.container.groups = [3000]
    pod.start()

    assert pod.worker(10002, 3000) == "counted"


def test_a_third_uid_is_refused_and_the_log_names_the_setting(a_pod: Callable[..., Pod]) -> None:
    pod = a_pod(ORBIT_ALLOW_UIDS="10002")
    pod.start()

    assert pod.worker(10003, patience=1) == "waiting"
    until(lambda: "set ORBIT_ALLOW_UIDS=10003 to admit it" in pod.log.read_text())
    assert pod.ask("service.ledger")["total"]["counted"] == 0


def test_sqlite_has_a_place_for_what_is_too_much_for_memory(a_pod: Callable[..., Pod]) -> None:
    answer = a_pod().container.run("python", "-c", SORT)

    assert answer.stdout == "20000\n"


def test_without_a_folder_for_the_state_it_serves_and_says_which_is_missing(
    a_pod: Callable[..., Pod],
) -> None:
    pod = a_pod()
    pod.container.mounts = {"/run/orbit-metrics": pod.socket.parent}
    pod.start()

    assert pod.ask("worker.health")["message"].startswith("The state cannot be written")
    assert pod.ask("service.info")["state"]["path"] == "/var/lib/orbit-metrics"


# ---------------------------------------------------------------- how it ends


def test_the_health_check_tells_up_from_down(a_pod: Callable[..., Pod]) -> None:
    pod = a_pod()
    process = pod.start()
    assert pod.is_healthy()

    end(process)
    assert not pod.is_healthy()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_after_an_end_it_answers_over_the_same_folders_as_before(
    a_pod: Callable[..., Pod], number: int
) -> None:
    pod = a_pod(ORBIT_ALLOW_UIDS="10002", ORBIT_NODE="here")
    process = pod.start()
    pod.worker(10002)
    before = pod.ask("service.ledger")["total"]

    send_signal(process, number)
    ended = process.wait(GRACE)
    pod.start()

    assert before["counted"] == 1
    assert pod.ask("service.ledger")["total"] == before
    assert number == signal.SIGKILL or ended == 0


# ---------------------------------------------------------------- helpers

# More than SQLite sorts in memory: it has 2 MB for that.
SORT = """
from orbit_service.settings import let_sqlite_sort, read_settings
let_sqlite_sort(read_settings())
import os, sqlite3
database = sqlite3.connect("/var/lib/orbit-metrics/sort.sqlite")
database.execute("CREATE TABLE t (x)")
database.executemany("INSERT INTO t VALUES (?)", ((os.urandom(500),) for _ in range(20_000)))
print(len(database.execute("SELECT x FROM t ORDER BY x").fetchall()))
"""

INSTALLED = """
import json
from importlib.metadata import distributions
print(json.dumps([d.name for d in distributions()]))
"""


def installed(pod: Pod) -> set[str]:
    answer = pod.container.run("python", "-c", INSTALLED)
    return {plain(name) for name in json.loads(answer.stdout)}


def packages(*extras: str) -> set[str]:
    """What pyproject.toml names in these extras; without any: in all, and for development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = project["project"]["optional-dependencies"]
    lists = [named[extra] for extra in extras] or [
        *named.values(),
        project["dependency-groups"]["dev"],
    ]
    return {plain(re.split(r"[^\w.-]", line)[0]) for lines in lists for line in lines}


def plain(name: str) -> str:
    """A package's name as PEP 503 compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()
