"""Where and when it was measured, and with which versions of the peers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness import PEERS, temporary_folder

PACKAGES = ("prometheus-client", "opentelemetry-sdk", "datadog", "statsd")
VERSIONS = (
    "import sys; from importlib.metadata import version; "
    "print(', '.join(f'{name} {version(name)}' for name in sys.argv[1:]))"
)


def described(scale: str, minutes: float) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    load = os.getloadavg()[2]
    return (
        f"Measured on {now} in {minutes:.0f} minutes, scale `{scale}`: {cpu_model()}, "
        f"{os.cpu_count()} cores, kernel {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"states on {file_system()}; load of the last quarter of an hour {load:.1f}. "
        f"Peers: {peers()}.\n\n"
        "A figure is the median of its rounds, with the least and the greatest. Ours and its "
        "peers took turns; a ratio is the median of the rounds' ratios. Every run of ours was "
        "counted exactly once, by `service.ledger`, or there would be no table."
    )


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system() -> str:
    """What the states of the services lie on: their commits wait for it."""
    if shutil.which("findmnt") is None:
        return "an unknown file system"
    with temporary_folder() as folder:
        asked = ["findmnt", "--noheadings", "--output=FSTYPE", "--target", folder]
        return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def peers() -> str:
    told = subprocess.run(
        [PEERS, "-c", VERSIONS, *PACKAGES], capture_output=True, text=True, check=True
    )
    return ", ".join([told.stdout.strip(), *map(_daemon, ("netdata", "collectd"))])


def _daemon(name: str) -> str:
    if shutil.which(name) is None:
        return f"{name} not installed"
    option = "-v" if name == "netdata" else "-h"  # collectd tells its version with its help
    said = subprocess.run([name, option], capture_output=True, text=True)
    words = (said.stdout + said.stderr).split()
    version = next(
        (word.strip(",v") for word in words if word[:1].isdigit() or word[:2] == "v1"), ""
    )
    return f"{name} {version}".strip()
