"""What importing the client takes, and how soon a service is ready."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.harness import PEERS, ROOT, Sample, Service, environment, take_turns
from benchmarks.scale import Scale
from benchmarks.suite.asking import server
from benchmarks.table import Row, Target

IMPORTS = {
    "orbit_worker": "",
    "prometheus_client": "prometheus-client",
    "opentelemetry.sdk.metrics": "opentelemetry-sdk",
    "datadog": "datadog",
    "statsd": "statsd",
}
# What a bare Python has imported by itself is not counted: before and after, in one process.
IMPORT = """
import time
def mib():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS:")).split()[1]) / 1024
before, began = mib(), time.perf_counter()
import {module}
print((time.perf_counter() - began) * 1000, mib() - before)
"""


def imports(scale: Scale) -> Iterator[Row]:
    subjects: dict[str, Callable[[], tuple[float, float]]] = {
        module: partial(imported, module) for module in IMPORTS
    }
    for first in subjects.values():
        first()  # compiles what is imported
    taken = take_turns("imports", subjects, 2 * scale.starts)
    for which, (what, unit, limit) in enumerate((("time", "ms", 15), ("memory", "MiB", 4))):
        of = {module: Sample.of([r[which] for r in rounds]) for module, rounds in taken.items()}
        for module, name in list(IMPORTS.items())[1:]:
            target = Target(limit) if module == "prometheus_client" else None
            figure = f"import of `orbit_worker` over bare Python, {what}"
            yield Row(figure, unit, of["orbit_worker"], name, of[module], target)


def imported(module: str) -> tuple[float, float]:
    """Milliseconds and MiB."""
    paths = f"{ROOT / 'worker'}:{ROOT / 'rpc_schema'}"
    told = subprocess.run(
        [PEERS, "-c", IMPORT.format(module=module)],
        env=environment(PYTHONPATH=paths),
        capture_output=True,
        text=True,
        check=True,
    )
    ms, mib = map(float, told.stdout.split())
    return ms, mib


def ready(scale: Scale) -> Iterator[Row]:
    """From the command to the first answer; a new state each time."""
    taken = take_turns("ready", {"ours": _serve, "bare": _bare}, scale.starts)
    of = {name: Sample.of(values) for name, values in taken.items()}
    name = "a bare aiohttp server"
    yield Row("from `serve` to ready", "s", of["ours"], name, of["bare"], Target(1.0))


def _serve() -> float:
    with Service() as service:
        return service.ready_seconds


def _bare() -> float:
    began = time.monotonic()
    with server("bare"):
        return time.monotonic() - began
