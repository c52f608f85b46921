"""Bind the worker socket: replace a stale one, refuse a live one, delete nothing else."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orbit_rpc_schema.errors import Explained

BACKLOG = 1_024  # every worker of a host reconnects at once after a restart
MAX_WORKERS = 4_096  # connections at the socket
MAX_HTTP = 2_048
SPARE = 128  # descriptors for files, databases, and whoever is turned away


class SocketPathTaken(Explained):
    """
    {path} exists and is not a socket.
    Move the file away, or set ORBIT_SOCKET to another path.
    """


class SocketInUse(Explained):
    """
    Another process is listening on {path}.
    Stop it, or set ORBIT_SOCKET to another path.
    """


class SocketUnusable(Explained):
    """
    The socket {path} cannot be made: {why}.
    Make its directory writable for this user, or set ORBIT_SOCKET to another path.
    """


def bounds() -> tuple[int, int]:
    """How many connections there may be at the socket and over HTTP; they fit into the limit of
    open files, because who is over it cannot even be told so.
    """
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = MAX_WORKERS + MAX_HTTP if soft == resource.RLIM_INFINITY else max(soft - SPARE, 16)
    http = min(MAX_HTTP, left // 3)
    return min(MAX_WORKERS, left - http), http


def bind(path: Path, mode: int) -> socket.socket:
    """A listening socket at `path`. A directory that is missing is made, for this user alone."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise SocketUnusable(path=path, why=f"{path.parent} is not a directory") from None
    except OSError as error:
        raise SocketUnusable(path=path, why=error.strerror or error) from None
    try:
        with _locked(path):
            _clear(path)
            return _listen(path, mode)
    except OSError as error:
        raise SocketUnusable(path=path, why=error.strerror or error) from None


def path_of(listener: socket.socket) -> Path:
    """Where a socket listens that somebody else has bound; an abstract name begins with @."""
    name = listener.getsockname()
    text = os.fsdecode(name)
    return Path(f"@{text[1:]}" if text.startswith("\0") else text)


def unlink(path: Path, inode: int) -> None:
    """Remove the socket file, unless it is another's by now."""
    try:
        if path.stat().st_ino == inode:
            path.unlink()
    except OSError:
        pass


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two services that start at once do not take one another's new socket for a stale one."""
    # A file of its own, which stays: the directory may be that of the state, which holds a
    # lock on it for as long as a service runs.
    lock = path.with_name(f".{path.name}.lock")
    descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketPathTaken(path=path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(str(path))
    if refused not in (errno.ECONNREFUSED, errno.ENOENT):
        raise SocketInUse(path=path)
    path.unlink(missing_ok=True)


def _listen(path: Path, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mask keeps others out in the moment between bind and chmod.
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    path.chmod(mode)
    listener.listen(BACKLOG)
    return listener
