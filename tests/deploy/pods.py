"""
A small kubelet: it does with the containers of containers.py what a pod's spec says.

It follows the order in which containers start (init containers, native sidecars with their
startup probes, the rest) and end (sidecars last, in what is left of the grace), the users
and groups, the environment, the volumes and the commands. What it does not do: pull
images, watch liveness, set bounds on CPU and memory, give a pod a network of its own.
All containers share this machine's network, so a pod's port 8790 becomes a free one. It is
stricter than a kubelet in one thing: no container can write to its root.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from builders import a_port, until
from containers import Container, a_volume, end, send_signal

PORT = "8790"
LEAST_GRACE = 2.0  # what a sidecar is given when the worker has used up all (kubelet 1.29)
IN_THE_IMAGE = {"/run/orbit-metrics": 0o755, "/var/lib/orbit-metrics": 0o700}  # our Dockerfile
Spec = Mapping[str, Any]


@dataclass
class Node:
    """A machine of a cluster: its own folders, and what the pods on it are given."""

    folder: Path
    secrets: Mapping[str, Mapping[str, str]]
    services: Sequence[str] = ()  # of the namespace, all with a port http
    stack: ExitStack = field(default_factory=ExitStack)  # of what the pods hold
    _pods: list[Pod] = field(default_factory=list)

    def start(self, name: str, spec: Spec, **programs: Sequence[str]) -> Pod:
        """A pod whose containers have all started.

        `programs` stand in for images that are not here, by the name of the container. An image
        of ours needs none: its entrypoint is `orbit-metrics`, and its command `serve`.
        """
        pod = Pod(name, spec, self, programs)
        self._pods.append(pod)
        pod.start()
        return pod

    def host_path(self, path: str) -> Path:
        """A folder of the node, made as `DirectoryOrCreate` does it."""
        folder = self.folder / "node" / path.strip("/")
        return folder if folder.exists() else a_volume(folder, mode=0o755)

    def image(self, path: str) -> Path:
        """A folder of our image, which is empty."""
        folder = self.folder / "image" / path.strip("/")
        return a_volume(folder, uid=10001, gid=10001, mode=IN_THE_IMAGE[path])

    def close(self) -> None:
        for pod in self._pods:
            pod.kill()
        self.stack.close()


class Pod:
    """The containers of one pod."""

    def __init__(
        self, name: str, spec: Spec, node: Node, programs: Mapping[str, Sequence[str]]
    ) -> None:
        self.name, self.node = name, node
        self._spec, self._programs = spec, programs
        self.port = node.stack.enter_context(a_port())
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = node.folder / name
        self._folder.mkdir()
        self._volumes = {v["name"]: self._volume(v) for v in spec.get("volumes", ())}
        self._init = {c["name"]: c for c in spec.get("initContainers", ())}
        self._containers = {c["name"]: c for c in spec["containers"]}
        self._processes: dict[str, subprocess.Popen[str]] = {}

    # ------------------------------------------------------------ what happens to it

    def start(self) -> None:
        for name, container in self._init.items():
            self.start_container(name)
            if is_sidecar(container):
                until(lambda name=name: self.probe(name, "startupProbe"))
            else:
                code = self._processes.pop(name).wait(60)
                assert code == 0, self.log(name)
        for name, container in self._containers.items():
            self.start_container(name)
            for probe in ("startupProbe", "readinessProbe"):
                if probe in container:
                    until(lambda name=name, probe=probe: self.probe(name, probe))

    def start_container(self, name: str) -> None:
        """Start it, or start it again, over the same volumes."""
        command = self._programs.get(name) or self._command(self._all()[name])
        self._processes[name] = self._container(name).start(*command, log=self._log_file(name))

    def stop(self) -> dict[str, int]:
        """Delete the pod; the exit codes, of which 137 says that one was killed."""
        deadline = self._deadline()
        self.end(*self._containers, deadline=deadline)
        return self.complete(deadline)

    def complete(self, deadline: float | None = None) -> dict[str, int]:
        """Wait until the containers have ended, and end the sidecars, the last one first."""
        codes = {name: self._processes[name].wait(60) for name in self._containers}
        deadline = self._deadline() if deadline is None else deadline
        for name in reversed([name for name, c in self._init.items() if is_sidecar(c)]):
            self.end(name, deadline=deadline)
            codes[name] = self._processes[name].wait()
        return codes

    def end(self, *names: str, deadline: float | None = None) -> None:
        """Tell these containers to stop, and kill those that are there when the time is up."""
        deadline = self._deadline() if deadline is None else deadline
        processes = [self._processes[name] for name in names]
        for process in processes:
            if process.poll() is None:
                send_signal(process, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(max(deadline - time.monotonic(), LEAST_GRACE))
            except subprocess.TimeoutExpired:
                end(process)

    def kill(self, *names: str) -> None:
        """End these containers, or all, as the kernel does when memory is short."""
        for process in [self._processes[name] for name in names or tuple(self._processes)]:
            end(process)

    # ------------------------------------------------------------ what is known of it

    def log(self, name: str) -> str:
        return self._log_file(name).read_text()

    def probe(self, name: str, kind: str) -> bool:
        """Whether the probe passes once; its time-out counts for a command."""
        assert self._processes[name].poll() is None, f"{name} has ended:\n{self.log(name)}"
        probe = self._all()[name][kind]
        if "exec" in probe:
            command = probe["exec"]["command"]
            return self._container(name).run(*command, timeout=60).returncode == 0
        try:
            with urlopen(self.url + probe["httpGet"]["path"], timeout=10) as answer:
                return answer.status == 200
        except (URLError, OSError):
            return False

    # ------------------------------------------------------------ what the spec says

    def _deadline(self) -> float:
        return time.monotonic() + self._spec["terminationGracePeriodSeconds"]

    def _all(self) -> dict[str, Spec]:
        return {**self._init, **self._containers}

    def _container(self, name: str) -> Container:
        container = self._all()[name]
        pod, own = self._spec.get("securityContext", {}), container["securityContext"]
        context = {**pod, **own}
        mounts = {m["mountPath"]: m for m in container.get("volumeMounts", ())}
        # What our image brings is there without a volume too, and cannot be written then.
        bare = () if name in self._programs else IN_THE_IMAGE.keys() - mounts
        return Container(
            uid=context["runAsUser"],
            gid=context["runAsGroup"],
            groups=[pod["fsGroup"]] if "fsGroup" in pod else (),
            mounts={
                **{path: self.node.image(path) for path in bare},
                **{path: self._volumes[m["name"]] for path, m in mounts.items()},
            },
            read_only=[*bare, *(path for path, m in mounts.items() if m.get("readOnly"))],
            environ=self._environ(container),
            capabilities=own["capabilities"].get("add", ()),
        )

    def _command(self, container: Spec) -> list[str]:
        if "command" in container:
            return [*container["command"], *container.get("args", ())]
        return ["orbit-metrics", *container.get("args", ["serve"])]

    def _environ(self, container: Spec) -> dict[str, str]:
        environ: dict[str, str] = {}
        if self._spec.get("enableServiceLinks", True):
            for service in self.node.services:
                environ |= service_links(service)
        for variable in container.get("env", ()):
            value = self._value(variable)
            if value is not None:
                environ[variable["name"]] = value.replace(f":{PORT}", f":{self.port}")
        return environ

    def _value(self, variable: Spec) -> str | None:
        if "value" in variable:
            return variable["value"]
        source = variable["valueFrom"]
        if "fieldRef" in source:
            known = {"metadata.name": self.name, "spec.nodeName": "node-1"}
            return known[source["fieldRef"]["fieldPath"]]
        wanted = source["secretKeyRef"]
        secret = self.node.secrets.get(wanted["name"], {})
        return secret.get(wanted["key"]) if wanted.get("optional") else secret[wanted["key"]]

    def _volume(self, volume: Spec) -> Path:
        if "hostPath" in volume:
            return self.node.host_path(volume["hostPath"]["path"])
        assert volume["emptyDir"] == {}, "no other volume is known here"
        group = self._spec.get("securityContext", {}).get("fsGroup")
        folder = self._folder / "volumes" / volume["name"]
        return a_volume(folder, gid=group or 0, mode=0o777 if group is None else 0o2777)

    def _log_file(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def is_sidecar(container: Spec) -> bool:
    return container.get("restartPolicy") == "Always"


def service_links(service: str) -> dict[str, str]:
    """What a Service puts into the pods of its namespace, unless they say no."""
    name, host = service.upper().replace("-", "_"), "10.96.0.7"
    return {
        f"{name}_SERVICE_HOST": host,
        f"{name}_SERVICE_PORT": PORT,
        f"{name}_SERVICE_PORT_HTTP": PORT,
        f"{name}_PORT": f"tcp://{host}:{PORT}",
        f"{name}_PORT_{PORT}_TCP": f"tcp://{host}:{PORT}",
        f"{name}_PORT_{PORT}_TCP_PROTO": "tcp",
        f"{name}_PORT_{PORT}_TCP_PORT": PORT,
        f"{name}_PORT_{PORT}_TCP_ADDR": host,
    }


@contextmanager
def reached_by_tcp(path: Path) -> Iterator[int]:
    """A port that leads to a Unix socket which no container can see."""
    relay = subprocess.Popen(
        [sys.executable, "-c", RELAY, str(path)], stdout=subprocess.PIPE, text=True
    )
    with relay:
        assert relay.stdout is not None
        try:
            yield int(relay.stdout.readline())
        finally:
            relay.kill()


RELAY = """
import asyncio, sys

async def copy(source, target):
    try:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    except OSError:
        pass  # one side has gone, and so the other goes
    target.close()

async def meet(reader, writer):
    there, back = await asyncio.open_unix_connection(sys.argv[1])
    await asyncio.gather(copy(reader, back), copy(there, writer))

async def main():
    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
