"""Who is at the other end of a Unix socket, whether it may be, and whether it still lives."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

_PEERCRED = struct.Struct("3i")  # pid, uid, gid: unix(7)


@dataclass(frozen=True, slots=True)
class Admission:
    """Who may connect: the service's own user, root, and whom the settings name."""

    uids: Collection[int] | None  # None: everybody

    def admits(self, uid: int | None) -> bool:
        # Without SO_PEERCRED (macOS) the mode of the socket file is the guard.
        return uid is None or self.uids is None or uid in {0, os.geteuid(), *self.uids}


def peer_of(accepted: socket.socket) -> tuple[int | None, int | None]:
    """The pid and uid of the other side, where the system tells them."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None, None
    credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    pid, uid, _gid = _PEERCRED.unpack(credentials)
    return pid or None, uid


def open_pidfd(pid: int | None) -> int | None:
    """A descriptor that becomes readable when the process ends.

    None where there is no such thing: another system, or a peer whose pid cannot
    be seen from this container. A session is then lost by its absence alone.
    """
    if pid is None or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def has_exited(pidfd: int | None) -> bool:
    if pidfd is None:
        return False
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
