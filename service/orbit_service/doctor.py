"""What stands between a client and the service, found from the client's side."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib.metadata import version
from pathlib import Path
from socket import SHUT_RDWR
from threading import Timer
from urllib.parse import urlsplit

from orbit_rpc_schema.caller import CallFailed, call
from orbit_rpc_schema.wire import MAX_SOCKET_PATH, PROTOCOL, Json

PROBE_SECONDS = 3.0
# What to do about what was refused since the state began; the log says whom it met.
ADVICE = {
    "uid": "ORBIT_ALLOW_UIDS names further users",
    "connections": "more than the socket takes: end what is connected and records nothing",
    "idle": "connections that were silent for minutes and spoke for no worker were ended",
    "line too long": "a line has at most a megabyte; is it our client?",
    "http host": "ORBIT_ALLOWED_HOSTS names further names of the service",
    "http origin": "ORBIT_CORS_ORIGINS names pages that may ask",
    "http token": "somebody asked without the token of ORBIT_TOKEN, or with another",
    "http connections": "more than HTTP takes at once: is there a client that never closes?",
    "http malformed": "something that is no HTTP came to the port of HTTP",
    "live connections": "more WebSockets than are taken at once",
    "http time-out": "a request or the reading of its answer took longer than a minute",
}


@dataclass(frozen=True, slots=True)
class Finding:
    good: bool
    text: str


def examine(socket: Path, url: str | None, origin: str | None, token: str | None) -> list[Finding]:
    """Findings in the order in which one would look; of each way in up to the first bad one.

    The ways in are the worker socket, and HTTP at `url`, or where the service at the socket
    says that it listens. `origin` is that of a web page that is to ask.
    """
    me = f"uid {os.geteuid()} ({_user(os.geteuid())})"
    findings = [Finding(True, f"client: orbit-metrics {version('orbit-metrics')}, {me}")]
    info: Json = {}
    if url is None:
        _follow(_worker_socket(socket, info), findings)
    if url is not None or info.get("http"):
        _follow(
            _http(url or _local_url(info["http"]), origin, token, asked=url is not None), findings
        )
    return findings


def _follow(looks: Iterator[Finding], findings: list[Finding]) -> None:
    try:
        for finding in looks:
            findings.append(finding)
            if not finding.good:
                break
    except (HTTPException, OSError, ValueError) as error:
        findings.append(Finding(False, f"no answer that can be read: {_plain(str(error))}"))
    except (AttributeError, KeyError, TypeError):
        findings.append(Finding(False, "what answers is another program, or another version"))


def _worker_socket(socket: Path, told: Json) -> Iterator[Finding]:
    """What service.info says of itself is put into `told`."""
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
        advice = (error.data or {}).get("advice", "") if isinstance(error.data, dict) else ""
        yield Finding(False, f"the service turns this client away: {error} {advice}".strip())
        return
    except ConnectionRefusedError:
        yield Finding(False, f"nobody listens on {socket}: the service is not running")
        return
    except (OSError, ValueError) as error:
        yield Finding(False, f"the service does not answer: {error}")
        return
    told.update(info)
    yield from _service(info, workers)


def _http(url: str, origin: str | None, token: str | None, *, asked: bool) -> Iterator[Finding]:
    """What a dashboard or Prometheus meets; `asked` where somebody wants to come in that way."""
    try:
        live, said = _get(url, "/livez")
    except (OSError, ValueError, HTTPException) as error:
        why = getattr(error, "strerror", None) or error
        yield Finding(False, f"http: no answer from {url}: {why}; does ORBIT_HTTP say so?")
        return
    if live != HTTPStatus.OK:
        yield Finding(False, f"http: {url} answers {live}: {said}")
        return
    ready, said = _get(url, "/readyz")
    yield Finding(ready == HTTPStatus.OK, f"http: {url} {said}")
    key = {} if token is None else {"Authorization": f"Bearer {token}"}
    status, said = _get(url, "/openrpc.json", **key)
    if status == HTTPStatus.OK:
        yield Finding(True, f"http: answers {'with the' if key else 'without a'} token")
    elif status == HTTPStatus.UNAUTHORIZED and token is None:
        text = "http: a token is needed, and none is here: set ORBIT_TOKEN or ORBIT_TOKEN_FILE"
        yield Finding(not asked, text)
        return
    elif status == HTTPStatus.UNAUTHORIZED:
        yield Finding(False, "http: the token of this environment is not the service's")
    else:
        yield Finding(False, f"http: answers {status}: {said}")
    if origin is not None:
        status, said = _get(url, "/livez", Origin=origin)
        good = status == HTTPStatus.OK
        yield Finding(good, f"http: pages of {origin} may ask" if good else f"http: {said}")


def _get(url: str, path: str, **headers: str) -> tuple[int, str]:
    """Status and first line, within PROBE_SECONDS. Raises OSError, ValueError, HTTPException."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is no http:// or https:// URL")
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    with closing(kind(parts.hostname, parts.port, timeout=PROBE_SECONDS)) as connection:
        # For all of it: the time-out alone is that of a byte.
        late = Timer(PROBE_SECONDS, lambda: connection.sock and connection.sock.shutdown(SHUT_RDWR))
        late.daemon = True
        late.start()
        try:
            connection.request("GET", f"{parts.path.rstrip('/')}{path}", headers=headers)
            answer = connection.getresponse()
            text = answer.read(1_000).decode(errors="replace").strip()
        finally:
            late.cancel()
        return answer.status, _plain(text.partition("\n")[0])


def _plain(text: str) -> str:
    """For a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _local_url(address: str) -> str:
    """How this machine reaches what listens on all addresses."""
    host, _, port = address.rpartition(":")
    loopback = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  # asked, not listened on
    return f"http://{loopback.get(host, host)}:{port}"


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
        cure = f"start the service with ORBIT_ALLOW_UIDS={os.geteuid()}"
        if state.st_mode & stat.S_IWGRP:
            cure = f"let this user join group {_group(state.st_gid)}"
        return Finding(False, f"{text}: this user may not write; {cure}")
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
            advice = f"; {ADVICE[reason]}" if reason in ADVICE else ""
            yield Finding(True, f"{kind}: {count} × {reason}{advice}")
    for kind, count in info["folded"].items():
        yield Finding(True, f"counted among others, over a bound: {count} × {kind}")


def _owner(state: os.stat_result) -> str:
    return f"owner uid {state.st_uid} ({_user(state.st_uid)}), gid {state.st_gid}"


def _group(gid: int) -> str:
    try:
        return f"{grp.getgrgid(gid).gr_name} ({gid})"
    except KeyError:
        return str(gid)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "no name"
