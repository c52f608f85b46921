"""
What deploy/compose says to Docker Compose.

Proved: the file is valid by the Compose Specification, with nothing unknown in it, and what
it refers to is there; both of its services run by bubblewrap as the users, with the
commands, variables, volumes and the secret that it says, read-only and without a capability,
until the worker's runs are told over HTTP to one who has the token; both end when told to.

Not proved, for want of an engine: networks and the published port (the service listens on a
free port of this machine), when health is asked and what is restarted, and that Compose keeps
the order which the file asks for. This environment stands in for the image, whose own user,
folders and command tests/deploy/test_image.py proves.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from compose_spec import PyCompose

from builders import until
from containers import ROOT, Container, a_volume, end, need_containers, send_signal
from images import FOLDERS, SERVICE_UID
from orbit_rpc_schema.caller import CallFailed, call, call_http
from orbit_service.settings import known_names

FILE = ROOT / "deploy" / "compose" / "compose.yaml"
SERVE = ("orbit-metrics", "serve")  # entry point and command of the image
TOKEN = "0123456789abcdef"

Spec = dict[str, Any]


@pytest.fixture
def spec() -> Spec:
    """The file as the specification's parser reads it, which refuses what it does not know."""
    return PyCompose.from_yaml(FILE.read_text()).to_dict()


def test_what_it_refers_to_is_there(spec: Spec) -> None:
    services = spec["services"].values()

    assert {name for s in services for name, _path in volumes(s)} == spec["volumes"].keys()
    assert {name for s in services for name in s.get("secrets", ())} == spec["secrets"].keys()
    assert {name for s in services for name in s.get("depends_on", ())} <= spec["services"].keys()


def test_every_variable_of_it_is_a_setting(spec: Spec) -> None:
    for service in spec["services"].values():
        assert service["environment"].keys() <= known_names()


def test_http_is_published_on_loopback_alone(spec: Spec) -> None:
    service = spec["services"]["orbit-metrics"]
    port = service["environment"]["ORBIT_HTTP"].rpartition(":")[2]

    assert service["ports"] == [f"127.0.0.1:8790:{port}"]


def test_the_worker_starts_after_the_service_but_does_not_wait_for_it(spec: Spec) -> None:
    wanted = spec["services"]["worker"]["depends_on"]

    assert wanted == {"orbit-metrics": {"condition": "service_started"}}


def test_everything_is_read_only_and_without_a_capability(spec: Spec) -> None:
    for service in spec["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_runs_of_the_worker_are_told_to_one_who_has_the_token(engine: Engine) -> None:
    engine.up()

    until(lambda: engine.metrics()["succeeded"] >= 3)
    assert engine.metrics()["connected"]
    with pytest.raises(ConnectionError, match="401"):
        call_http(engine.url, "worker.metrics")


def test_nothing_that_the_service_says_is_a_warning(engine: Engine) -> None:
    engine.up()
    until(lambda: engine.metrics()["succeeded"])

    assert {line.split()[1] for line in engine.log("orbit-metrics").splitlines()} == {"INFO"}


def test_the_worker_says_goodbye_and_then_the_service_ends(engine: Engine) -> None:
    engine.up()
    until(lambda: engine.metrics()["succeeded"])

    assert engine.stop("worker") == 0
    life = until(lambda: engine.metrics()["lastLife"])
    assert (life["reason"], life["failed"]) == ("exit", 0)
    assert engine.stop("orbit-metrics") == 0


def test_the_numbers_survive_an_up_after_a_down(engine: Engine) -> None:
    engine.up()
    until(lambda: engine.metrics()["succeeded"])
    engine.stop("worker")
    life = until(lambda: engine.metrics()["lastLife"])
    engine.stop("orbit-metrics")

    engine.start("orbit-metrics")
    assert until(engine.metrics)["lastLife"] == life


def test_a_token_that_cannot_be_read_ends_the_start_with_its_name(engine: Engine) -> None:
    only_for(engine.secret, uid=0)

    process = engine.start("orbit-metrics")
    assert process.wait(20) != 0
    assert "/run/secrets/orbit-token: Permission denied" in engine.log("orbit-metrics")


# ---------------------------------------------------------------- helpers


class Engine:
    """Does with the file what Compose does, as far as this machine allows."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self.secret = folder / "orbit-token"
        self.secret.write_text(f"{TOKEN}\n")
        only_for(self.secret, uid=SERVICE_UID)

    def up(self) -> None:
        self.start("orbit-metrics")
        until(lambda: self.url)
        self.start("worker")

    def start(self, name: str) -> subprocess.Popen[str]:
        service = self._spec["services"][name]
        command = (*service.get("entrypoint", ()), *service.get("command", ())) or SERVE
        container = self._container(service)
        process = container.start(*command, log=self._folder / f"{name}.log")
        self._processes[name] = process
        return process

    def stop(self, name: str) -> int:
        """Tell it to end; its exit status, within the grace that it has."""
        process = self._processes[name]
        send_signal(process, signal.SIGTERM)
        grace = self._spec["services"][name].get("stop_grace_period", "10s")
        return process.wait(int(grace.removesuffix("s")))

    @property
    def url(self) -> str | None:
        try:
            info = call(self._folder / "orbit-socket" / "worker.sock", "service.info")
        except (OSError, CallFailed):
            return None
        return f"http://127.0.0.1:{info['http'].rpartition(':')[2]}"

    def metrics(self) -> Any:
        url = self.url
        return url and call_http(url, "worker.metrics", {"worker": "example"}, token=TOKEN)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def close(self) -> None:
        for process in self._processes.values():
            end(process)

    def _container(self, service: Spec) -> Container:
        uid, gid = map(int, service.get("user", f"{SERVICE_UID}:{SERVICE_UID}").split(":"))
        secrets = {f"/run/secrets/{name}": self.secret for name in service.get("secrets", ())}
        return Container(
            uid,
            gid,
            mounts={**dict(self._volumes(service)), **secrets},
            environ=self._environ(service),
            read_only=secrets.keys(),
        )

    def _volumes(self, service: Spec) -> Iterator[tuple[str, Path]]:
        """Named volumes; while they are new they take owner and mode from the image."""
        for name, inside in volumes(service):
            folder = self._folder / name
            if not folder.exists():
                uid, gid, mode = FOLDERS[inside]
                a_volume(folder, uid=uid, gid=gid, mode=mode)
            yield inside, folder

    def _environ(self, service: Spec) -> Mapping[str, str]:
        environ = dict(service["environment"])
        if "ORBIT_HTTP" in environ:
            host = environ["ORBIT_HTTP"].rpartition(":")[0]
            environ["ORBIT_HTTP"] = f"{host}:0"  # there are no networks of its own here
        return environ


@pytest.fixture
def engine(spec: Spec, tmp_path: Path) -> Iterator[Engine]:
    need_containers()
    engine = Engine(spec, tmp_path)
    yield engine
    engine.close()


def volumes(service: Spec) -> list[tuple[str, str]]:
    """Names and paths inside."""
    return [(name, inside) for name, inside in (v.split(":") for v in service["volumes"])]


def only_for(path: Path, uid: int) -> None:
    """Only this user may read it; Compose mounts it with the owner and mode that it has."""
    os.chown(path, uid, uid)
    path.chmod(0o400)
