"""Questions about thirty days, and a scrape of all that a node may have."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from benchmarks.harness import Lost, Sample, Service, say, take_turns, temporary_folder
from benchmarks.history import NODE, RUNS, Filled, Rows, p95
from benchmarks.scale import DAY, HOUR, Scale
from benchmarks.scrape import FORMS, fill, peer, timed
from benchmarks.scrape import RUNS as SCRAPED_RUNS
from benchmarks.table import Row, Target
from orbit_rpc_schema.caller import call_http
from orbit_service.core.rollup import LEVELS, Segment, levels
from orbit_service.history.late import LateHistory
from orbit_service.history.sql import SqlHistory

SERIES = 50
SCRAPED = 2_000


def history(scale: Scale) -> Iterator[Row]:
    """Over HTTP of a service whose history has been filled beforehand."""
    with temporary_folder() as name:
        folder = Path(name)
        kept = scale.history_kept_ms
        made = LateHistory(None, folder / "state", levels(kept))()
        assert isinstance(made, SqlHistory)
        filled = Filled(made, Rows(SERIES), kept, now_ms=time.time_ns() // 10**6)
        filled.fill()
        made.close()
        say(f"  history: {filled.count:,} rows made")
        with Service(folder=folder, ORBIT_NODE=NODE) as service:
            time.sleep(scale.settle_seconds)  # what a start puts off is over then
            one = filled.rows.keys[0].pipeline
            asked: dict[str, Callable[[], float]] = {
                "one": partial(ask, service, filled, 1, pipeline=one),
                "all": partial(ask, service, filled, SERIES, groupBy="pipeline"),
            }
            for first in asked.values():
                first()
            taken = take_turns("history", asked, scale.history_rounds)
    notes = [
        f"p95 of {scale.history_rounds} questions over HTTP, of {filled.count:,} rows in SQLite: "
        f"{kept[2] // DAY} days of hours, {kept[1] // DAY} of minutes, "
        f"{kept[0] // HOUR} h of ten seconds."
    ]
    for series, of, limit in (("one series", "one", 50), (f"{SERIES} series", "all", 500)):
        sample = Sample.of([p95(taken[of])])
        figure = f"`worker.history` of 30 d, {series}, p95"
        yield Row(figure, "ms", sample, target=Target(limit), notes=notes)


def ask(service: Service, filled: Filled, series: int, **params: Any) -> float:
    """Milliseconds of one answer, which has to tell of every run."""
    began = time.perf_counter()
    view = call_http(service.http, "worker.history", {"from": "-30d", **params})
    took = (time.perf_counter() - began) * 1000
    level = [level.name for level in LEVELS].index(view["level"])
    stored = filled.stored([Segment(level, view["from"], view["to"])])
    counted = sum(group["total"]["runs"] for group in view["groups"])
    if counted != stored * series * RUNS:
        raise Lost(f"{counted:,} runs of {stored} rows of {series} series")
    return took


def scrape(scale: Scale) -> Iterator[Row]:
    with Service() as service:
        workers = fill(service.socket, SCRAPED)
        service.expect(SCRAPED * SCRAPED_RUNS)
        time.sleep(scale.settle_seconds)  # what a start puts off is over then
        by_hand = peer(SCRAPED, waits=True)

        def once(headers: Mapping[str, str]) -> bytes:
            asked = Request(f"{service.http}/metrics", headers=dict(headers))
            with urlopen(asked) as answer:
                page: bytes = answer.read()
            return page

        acts: dict[str, Callable[[], bytes]] = {
            form: partial(once, headers) for form, headers in FORMS.items()
        }
        acts["prometheus-client"] = by_hand
        taken = take_turns(
            "scrape", {n: partial(milliseconds, a) for n, a in acts.items()}, scale.scrapes
        )
        for worker in workers:
            worker.__exit__()
    notes = [
        f"p95 of {scale.scrapes} scrapes over HTTP. Two histograms a series, durations and waits; "
        "prometheus-client writes as many of as many buckets, in its own process, without HTTP."
    ]
    theirs = Sample.of([p95(taken["prometheus-client"])])
    for form in FORMS:
        sample = Sample.of([p95(taken[form])])
        figure = f"a scrape of {SCRAPED:,} series, {form}, p95"
        target = Target(100) if form == "text" else None
        yield Row(figure, "ms", sample, "prometheus-client, text", theirs, target, notes)


def milliseconds(act: Callable[[], bytes]) -> float:
    took, _size = timed(act, 1, rest=0.2)
    return took[0]
