"""
All figures, each beside its peer, and whether its target is met.

    .venv/bin/python -m benchmarks [--scale quick|full] [--only flood ...] [--write FILE]

A figure that lost a run, or counted one twice, ends it: no table is written.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from benchmarks.harness import PEERS, Lost, say
from benchmarks.machine import described
from benchmarks.scale import SCALES
from benchmarks.suite import GROUPS
from benchmarks.table import Row, markdown, print_row, rewrite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument(
        "--only", nargs="*", choices=GROUPS, metavar="GROUP", help=", ".join(GROUPS)
    )
    parser.add_argument("--write", type=Path, help="the file whose table is replaced")
    options = parser.parse_args()
    if not PEERS.exists():
        sys.exit("the peers are not installed: make .bench/ready")
    # What was started ends with us, whoever ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    scale, began = SCALES[options.scale], time.monotonic()
    rows: list[Row] = []
    for name in options.only or GROUPS:
        started = time.monotonic()
        try:
            for row in GROUPS[name](scale):
                rows.append(row)
                print_row(row)
        except Lost as lost:
            sys.exit(f"{name}: {lost}")
        say(f"  {name}: {time.monotonic() - started:.0f} s")
    missed = [row.figure for row in rows if row.verdict == "MISSED"]
    minutes = (time.monotonic() - began) / 60
    print(f"{len(rows)} rows in {minutes:.1f} minutes, {len(missed)} targets missed")
    for figure in missed:
        print(f"  missed: {figure}")
    if options.write is not None:
        head = described(scale.name, minutes)
        rewrite(options.write, f"{head}\n\n{markdown(rows)}")
        print(f"written to {options.write}")


if __name__ == "__main__":
    main()
