"""What stands between a client and the service, found from the client's side."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from orbit_rpc_schema.caller import CallFailed, call
from orbit_rpc_schema.wire import MAX_SOCKET_PATH, PROTOCOL, Json


@dataclass(frozen=True, slots=True)
class Finding:
    good: bool
    text: str


def examine(socket: Path) -> list[Finding]:
    """Findings in the order in which one would look; the first bad one is the last."""
    findings = []
    for finding in _looks(socket):
        findings.append(finding)
        if not finding.good:
            break
    return findings


def _looks(socket: Path) -> Iterator[Finding]:
    me = f"uid {os.geteuid()} ({_user(os.geteuid())})"
    yield Finding(True, f"client: orbit-metrics {version('orbit-metrics')}, {me}")
    length = len(os.fsencode(socket))
    yield Finding(
        length <= MAX_SOCKET_PATH,
        f"path: {socket} ({length} bytes; at most {MAX_SOCKET_PATH})",
    )
    yield _directory(socket.parent)
    yield _file(socket)
    try:
        info = call(socket, "service.info", timeout=3.0)
        workers = call(socket, "worker.list", timeout=3.0)
    except CallFailed as error:
        yield Finding(False, f"the service turns this client away: {error}")
        return
    except ConnectionRefusedError:
        yield Finding(False, f"nobody listens on {socket}: the service is not running")
        return
    except (OSError, ValueError) as error:
        yield Finding(False, f"the service does not answer: {error}")
        return
    yield from _service(info, workers)


def _directory(directory: Path) -> Finding:
    try:
        state = directory.stat()
    except OSError as error:
        return Finding(False, f"directory: {directory}: {error.strerror}; is the service running?")
    text = f"directory: {directory}, mode {stat.S_IMODE(state.st_mode):04o}, {_owner(state)}"
    if not os.access(directory, os.X_OK):
        return Finding(False, f"{text}: this user may not enter it")
    return Finding(True, text)


def _file(socket: Path) -> Finding:
    try:
        state = socket.stat()
    except OSError as error:
        return Finding(False, f"socket: {socket}: {error.strerror}; is the service running?")
    if not stat.S_ISSOCK(state.st_mode):
        return Finding(False, f"socket: {socket} is not a socket; ORBIT_SOCKET names another path?")
    text = f"socket: mode {stat.S_IMODE(state.st_mode):04o}, {_owner(state)}"
    if not os.access(socket, os.W_OK):
        return Finding(
            False,
            f"{text}: this user may not write; start the service "
            f"with ORBIT_ALLOW_UIDS={os.geteuid()}",
        )
    return Finding(True, text)


def _service(info: Json, workers: list[Json]) -> Iterator[Finding]:
    yield Finding(
        info["protocol"] == PROTOCOL,
        f"service: orbit-metrics {info['version']} on node {info['node']}, pid {info['pid']}, "
        f"protocol {info['protocol']} (here {PROTOCOL}), http {info['http'] or 'none'}",
    )
    if state := info["state"]:
        trouble = state["trouble"]
        text = f"state: {state['path']}"
        yield Finding(trouble is None, text if trouble is None else f"{text}: {trouble}")
    else:
        yield Finding(True, "state: memory only")
    history = info["history"]
    text = f"history: {history['database']}"
    if history["trouble"] is not None:
        text += f": {history['trouble']}; {history['waiting']} publications wait"
    yield Finding(history["trouble"] is None, text)
    if history["twin"] is not None:
        yield Finding(False, f"another service calls itself {info['node']} too; set ORBIT_NODE")
    connected = [worker["name"] for worker in workers if worker["connected"]]
    yield Finding(True, f"connected workers: {', '.join(connected) or 'none'}")
    for kind in ("refused", "dropped", "faults"):
        for reason, count in info["intake"][kind].items():
            yield Finding(True, f"{kind}: {count} × {reason}")
    for kind, count in info["folded"].items():
        yield Finding(True, f"counted among others, over a bound: {count} × {kind}")


def _owner(state: os.stat_result) -> str:
    return f"owner uid {state.st_uid} ({_user(state.st_uid)}), gid {state.st_gid}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "no name"
