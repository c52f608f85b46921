"""The probe of a container: fast, because it is on the standard library alone."""

from __future__ import annotations

import sys
from http.client import HTTPException

from orbit_rpc_schema.caller import CallFailed, call
from orbit_rpc_schema.wire import default_socket_path

PROBE_SECONDS = 3.0


def healthcheck(url: str | None = None) -> int:
    """0 when the service answers, else 1 with a sentence.

    On the worker socket; or at `url` over HTTP, which is all that a hub has.
    """
    return _over_http(url) if url is not None else _over_the_socket()


def _over_the_socket() -> int:
    path = default_socket_path()
    try:
        info = call(path, "service.info", timeout=PROBE_SECONDS)
    except (OSError, ValueError, CallFailed) as error:
        print(f"no service at {path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    print(f"orbit-metrics {info['version']} takes runs at {path}")
    return 0


def _over_http(url: str) -> int:
    from urllib.request import urlopen  # not for the one above: half of its time

    if not url.startswith(("http://", "https://")):
        print(f"{url} does not begin with http:// or https://", file=sys.stderr)
        return 1
    if "@" in url:
        print("no user and password in the URL: probes need none", file=sys.stderr)
        return 1
    try:
        with urlopen(f"{url.rstrip('/')}/readyz", timeout=PROBE_SECONDS) as answer:  # checked
            print(f"{url}: {answer.read().decode().strip()}")
            return 0
    except (OSError, ValueError, HTTPException) as error:
        print(f"{url} is not ready: {error}", file=sys.stderr)
        return 1
