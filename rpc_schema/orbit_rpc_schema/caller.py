"""
One JSON-RPC call, blocking, on the standard library alone: over the worker socket or HTTP.

For whoever only asks: the client's get_metrics, the command line, a health check.
It opens a connection for each call; streaming runs is the client's sender.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from os import PathLike
from time import monotonic
from typing import Any

from orbit_rpc_schema.wire import encode, request


class CallFailed(Exception):
    """The service answered with a JSON-RPC error: its `code`, `message` and `data`."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code = int(error.get("code", 0))
        self.message = str(error.get("message", ""))
        self.data = error.get("data")
        super().__init__(f"{self.message} (code {self.code})")


def call(
    path: str | PathLike[str],
    method: str,
    params: Mapping[str, Any] | Sequence[Any] = (),
    *,
    timeout: float = 5.0,
) -> Any:
    """The result of one call; `timeout` in seconds is for the whole of it.

    Raises OSError (TimeoutError among it) when the service cannot be reached or
    does not answer in time, CallFailed when it answers with an error.
    """
    deadline = monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(str(path))
        try:
            connection.sendall(encode(request(1, method, params)))
        except (BrokenPipeError, ConnectionResetError):
            pass  # turned away at the door; what it said comes next
        received = bytearray()
        while not received.endswith(b"\n"):
            remaining = deadline - monotonic()
            if remaining <= 0:
                raise TimeoutError(f"no answer from {path} within {timeout:g} s")
            connection.settimeout(remaining)
            chunk = connection.recv(65536)
            if not chunk:
                raise ConnectionResetError(f"{path} closed the connection without an answer")
            received += chunk
    return _result(bytes(received), path)


def call_http(
    url: str,
    method: str,
    params: Mapping[str, Any] | Sequence[Any] = (),
    *,
    token: str | None = None,
    timeout: float = 35.0,
) -> Any:
    """The result of one call to the service, or hub, at `http://host:port`.

    `timeout` in seconds is longer than the service takes to give up on its database.
    Raises OSError and CallFailed as `call` does, ValueError for what is no URL.
    """
    # Half of a client's time to start.
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url} does not begin with http:// or https://")
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    asked = Request(f"{url.rstrip('/')}/rpc", encode(request(1, method, params)), headers)
    try:
        with urlopen(asked, timeout=timeout) as answer:  # the scheme is checked
            received = answer.read()
    except HTTPError as refused:
        said = refused.read(1_000).decode(errors="replace").partition("\n")[0]
        raise ConnectionError(f"{refused.code} {refused.reason}: {said}") from None
    except HTTPException as error:
        raise ConnectionError(f"what answers there is not HTTP: {error!r}") from None
    return _result(received, url)


def is_sendable(token: str) -> bool:
    """Whether a header can carry it."""
    return token.isascii() and token.isprintable()


def _result(received: bytes, path: str | PathLike[str]) -> Any:
    """The result in the last line. Another program at the socket is an OSError too."""
    try:
        answer = json.loads(received.splitlines()[-1])
        error = answer.get("error")
        result = None if error is not None else answer["result"]
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError):
        raise ConnectionError(f"what answers at {path} is another program") from None
    if error is not None:
        raise CallFailed(error if isinstance(error, Mapping) else {"message": error})
    return result
