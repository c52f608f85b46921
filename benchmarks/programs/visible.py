"""
How long a run takes to be seen: recorded here, and asked for until it is in worker.metrics.

    visible.py RUNS GAP_MS

After each run it is quiet for GAP_MS and a little more, so that everything has come to rest.
It tells as JSON the milliseconds of each run.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import time

import orbit_worker
from orbit_rpc_schema.wire import encode, request


def main() -> None:
    runs, gap = int(sys.argv[1]), float(sys.argv[2])
    number = random.Random(7)
    client = orbit_worker.default_client()
    asking = socket.socket(socket.AF_UNIX)
    asking.connect(os.environ["ORBIT_SOCKET"])
    answers = asking.makefile("rb")
    ask = encode(request(1, "worker.metrics", {"worker": client.worker}))
    client.record_run(5.0, True)
    client.flush(10)
    print("ready", flush=True)
    sys.stdin.readline()
    took = []
    for run in range(2, runs + 2):
        time.sleep((gap + number.uniform(0, 50)) / 1000)  # the quiet that is told of above
        began = time.perf_counter()
        client.record_run(5.0, True)
        seen = 0
        while seen < run:
            asking.sendall(ask)
            seen = json.loads(answers.readline())["result"]["totalRuns"]
        took.append((time.perf_counter() - began) * 1000)
        if seen > run:
            sys.exit(f"{seen} runs are seen of {run}")
    client.flush(10)
    print(json.dumps(took), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
