"""
A process that keeps a worker's life open where the framework's parent cannot.

Some parents run no code of their user's: they start children, and the children import
everything. When the last child leaves, the life would be over before the next one is
there. So a child starts this, once for its parent: a session without runs that ends
with the parent. A signal to the whole group does not end it.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orbit_worker.client import MetricsClient

OPEN_SECONDS = 5.0  # for the keeper's process to start and connect; some 0.2 s where it is idle


def keep_life_open(client: MetricsClient) -> subprocess.Popen[bytes] | None:
    """From a child of multiprocessing: until its parent has ended, whatever children do.

    None where another child has done it, or no process can be had.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not client.enabled:
        return None
    try:
        path = Path(tempfile.gettempdir()) / f"orbit-metrics-{os.getuid()}-{parent.pid}.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        # The lock goes with the descriptor: it is held for as long as the process lives.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(parent.pid), client.framework or "", path],
            env={
                **os.environ,
                "ORBIT_SOCKET": str(client.socket),
                "ORBIT_WORKER_NAME": client.worker,
                "ORBIT_WORKER_VERSION": client.version or "",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock,),
        )
    except OSError:
        return None
    finally:
        os.close(lock)


def wait_until_open(keeper: subprocess.Popen[bytes]) -> None:
    """Return once the keeper holds its session, or there is no service, or the time is up."""
    assert keeper.stdout is not None
    select.select([keeper.stdout], [], [], OPEN_SECONDS)


def main(parent: int, framework: str, lock: Path) -> None:
    """Hold a session until the process `parent` has ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    client = MetricsClient()
    client.describe(framework=framework)
    client._sender.call("service.info", {}, OPEN_SECONDS)  # connects, and waits for it
    sys.stdout.close()  # which is what wait_until_open waits for
    _wait_for_end(parent)
    lock.unlink(missing_ok=True)
    client.close()


def _wait_for_end(pid: int) -> None:
    try:
        select.select([os.pidfd_open(pid)], [], [])
    except ProcessLookupError:
        pass  # it was quick
    except (AttributeError, OSError):  # another system, or an older one
        while _lives(pid):
            time.sleep(0.2)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
