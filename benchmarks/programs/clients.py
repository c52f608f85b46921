"""
One process with many workers, each a client with a connection and a thread of its own.

    clients.py NAME CLIENTS PIPELINES RUNS

Each connects and records so many runs of so many pipelines. When all is acknowledged it says
that it is ready, and keeps them connected until its input ends.
"""

from __future__ import annotations

import random
import sys

from orbit_worker.client import MetricsClient


def main() -> None:
    name, clients, pipelines, runs = sys.argv[1], *map(int, sys.argv[2:])
    number = random.Random(7)
    made = [MetricsClient(worker=f"{name}-{n:03}.example.com") for n in range(clients)]
    for client in made:
        client.connect()
        for pipeline in range(pipelines):
            for _ in range(runs):
                # From a few milliseconds to a second or two.
                duration_ms = number.lognormvariate(4, 1)
                client.record_run(duration_ms, True, pipeline=f"package.module.task_{pipeline:02}")
    for client in made:
        if not client.flush(60):
            sys.exit("not acknowledged within a minute")
    # An empty flush does not wait for the connection; a reset is an answer on it.
    if not runs and not all(client.reset_metrics(10) for client in made):
        sys.exit("not connected")
    print("ready", flush=True)
    sys.stdin.read()
    for client in made:
        client.close(1)


if __name__ == "__main__":
    main()
