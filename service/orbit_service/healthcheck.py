"""The probe of a container: fast, because it is on the standard library alone."""

from __future__ import annotations

import sys

from orbit_rpc_schema.caller import CallFailed, call
from orbit_rpc_schema.wire import default_socket_path


def healthcheck() -> int:
    """0 when the service on the worker socket answers, else 1 with a sentence."""
    path = default_socket_path()
    try:
        info = call(path, "service.info", timeout=3.0)
    except (OSError, ValueError, CallFailed) as error:
        print(f"no service at {path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    print(f"orbit-metrics {info['version']} takes runs at {path}")
    return 0
