"""
What a service manager and the service tell one another, as systemd has it.

It may hand over sockets that it listens on (sd_listen_fds(3)): then their permissions,
their order and their life are its own, and workers that connect while the service starts
again wait in the backlog. The service tells it when it is ready and when it stops
(sd_notify(3)), and that its loop still turns.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from orbit_rpc_schema.errors import Explained

FIRST_DESCRIPTOR = 3


class UnusableSocket(Explained):
    """
    The service manager handed over a socket that cannot be used: {why}.
    One Unix stream socket (ListenStream=/run/...) is for workers, one TCP socket for HTTP.
    """


@dataclass(frozen=True, slots=True)
class Handed:
    """The sockets that were handed over, already listening; None where there is none."""

    workers: socket.socket | None = None
    http: socket.socket | None = None


NOTHING_HANDED = Handed()


def handed_over(environ: MutableMapping[str, str] = os.environ) -> Handed:
    """Take over what LISTEN_FDS tells of; once, because it is taken out of the environment.

    Raises UnusableSocket.
    """
    told = {name: environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES")}
    if told["PID"] != str(os.getpid()) or not told["FDS"].isdecimal():
        return Handed()
    if len(told["FDS"]) > 3:
        raise UnusableSocket(why="LISTEN_FDS is too large a number")
    found: dict[str, socket.socket] = {}
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(told["FDS"])):
        try:
            os.set_inheritable(descriptor, False)
            taken = socket.socket(fileno=descriptor)
        except OSError as error:
            raise UnusableSocket(why=f"descriptor {descriptor}: {error.strerror}") from None
        use = "workers" if taken.family == socket.AF_UNIX else "http"
        if taken.family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
            raise UnusableSocket(why=f"its family is {taken.family}")
        if taken.type != socket.SOCK_STREAM:
            raise UnusableSocket(why="it is no stream")
        if not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise UnusableSocket(why="it does not listen; Accept= has to be no")
        if use in found:
            raise UnusableSocket(why=f"it is the second one for {use}")
        found[use] = taken
    return Handed(**found)


def notify(*lines: str, patience: float = 0.0, environ: Mapping[str, str] = os.environ) -> None:
    """Tell the manager, if there is one, such as `notify("READY=1")`.

    It may not listen, and then it is waited for so many seconds and no more.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(patience)
        try:
            channel.sendto("\n".join(lines).encode(), address)
        except OSError:
            pass  # it is its business whether it hears us


def watchdog_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often the manager wants to hear `WATCHDOG=1`: twice in the time that it waits.

    None where it does not (sd_watchdog_enabled(3)).
    """
    microseconds = environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environ.get("WATCHDOG_PID", "") not in (
        "",
        str(os.getpid()),
    ):
        return None
    return int(microseconds) / 2_000_000 or None
