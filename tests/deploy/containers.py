"""
What an engine would make of a container, without an engine: its user and groups, its
mounts, a read-only root, no capability, processes of its own.

By bubblewrap, for root alone, because only root can be another user. What it cannot
show: the pulling of images, cgroups (memory, CPU), network namespaces.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TMP = Path("/tmp")
NOTHING_HANDED_ON = ("--inh-caps=-all", "--ambient-caps=-all")


@dataclass
class Container:
    """One container: `mounts` are folders outside by their paths inside.

    Its root is this machine's, or that of an image; either way nothing of it can be
    written. `/tmp` is there only where it is mounted.
    """

    uid: int
    gid: int
    groups: Sequence[int] = ()  # such as a pod's fsGroup
    mounts: Mapping[str, Path] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    image: Path | None = None  # an image's root, mounted
    read_only: Collection[str] = ()  # which of the mounts cannot be written
    capabilities: Collection[str] = ()  # what root keeps, such as chown; others have none

    def start(self, *command: str, log: Path) -> subprocess.Popen[str]:
        """Start a command; what it says goes to the end of `log`."""
        with log.open("a") as out:
            return self.popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """subprocess.Popen, in the container."""
        return subprocess.Popen(self._line(command), env=self._environ(), **options)

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with both streams in `stdout`."""
        return subprocess.run(
            self._line(command),
            env=self._environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def _environ(self) -> dict[str, str]:
        own = f"{Path(sys.executable).parent}:" if self.image is None else ""
        return {"PATH": f"{own}/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **self.environ}

    def _line(self, command: Sequence[str]) -> list[str]:
        groups = ",".join(map(str, self.groups))
        kept = ",".join(["-all", *(f"+{name.lower()}" for name in self.capabilities)])
        return [
            "bwrap",
            *("--ro-bind", str(self.image or "/"), "/"),
            *("--dev", "/dev", "--proc", "/proc"),
            *("--perms", "1777", "--tmpfs", "/dev/shm"),  # where semaphores of a pool are
            *self._folders(),
            # The command is process 1, as in a container: what it does not handle it ignores.
            *("--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts", "--die-with-parent"),
            *("--chdir", "/"),
            "setpriv",
            # A change of the user takes away what lets the command die with bubblewrap.
            "--pdeathsig=KILL",
            *(f"--reuid={self.uid}", f"--regid={self.gid}", "--no-new-privs"),
            *(f"--bounding-set={kept}", *NOTHING_HANDED_ON),
            f"--groups={groups}" if groups else "--clear-groups",
            *command,
        ]

    def _folders(self) -> Iterator[str]:
        if self.image is None:
            # Places for the mounts, and nothing of this machine's in them.
            yield from (
                "--tmpfs",
                "/run",
                "--tmpfs",
                "/var/lib",
                "--tmpfs",
                "/tmp",
                "--tmpfs",
                "/srv",
            )
            yield from _reachable(Path(sys.base_prefix), Path(sys.prefix), ROOT)
        for inside, outside in self.mounts.items():
            if self.image is None:
                # Else it is made for root alone, such as /run/secrets.
                yield from ("--perms", "0755", "--dir", str(Path(inside).parent))
            bind = "--ro-bind" if inside in self.read_only else "--bind"
            yield from (bind, str(outside), inside)
        if self.image is None:
            for made in ("/run", "/var/lib", "/tmp", "/srv"):
                if made not in self.mounts:
                    yield from ("--remount-ro", made)


def _reachable(*folders: Path) -> Iterator[str]:
    """Show what stands in a folder that others may not enter, or in /tmp, which is hidden."""
    shown: set[Path] = {TMP}
    for folder in folders:
        hidden = [p for p in folder.parents if p == TMP or not p.stat().st_mode & 0o001]
        if not hidden:
            continue
        if hidden[-1] not in shown:
            shown.add(hidden[-1])
            yield from ("--tmpfs", str(hidden[-1]))
        for parent in reversed(folder.parents):
            if hidden[-1] in parent.parents:
                yield from ("--perms", "0755", "--dir", str(parent))
        yield from ("--ro-bind", str(folder), str(folder))


def send_signal(process: subprocess.Popen[str], number: int) -> None:
    """Tell the command itself; bubblewrap around it would only die."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), number)


def end(process: subprocess.Popen[str]) -> None:
    """Kill the command. To kill bubblewrap would leave it behind: as another user than the
    one who started it, it is not told of its parent's death."""
    if process.poll() is None:
        send_signal(process, signal.SIGKILL)
    process.wait(10)


def a_volume(folder: Path, *, uid: int = 0, gid: int = 0, mode: int = 0o2775) -> Path:
    """A folder as an engine gives it: of an fsGroup it is 2775, of nobody in particular 755."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, uid, gid)
    folder.chmod(mode)
    return folder


def need_containers() -> None:
    """Skip where another user cannot be had, with the reason; fail there in CI."""
    why = None
    if os.geteuid() != 0:
        why = "only root can run a process as another user"
    elif missing := [name for name in ("bwrap", "setpriv") if shutil.which(name) is None]:
        why = f"{missing[0]} is not installed (Debian: bubblewrap, util-linux)"
    if why is not None:
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
