"""
Runs by ten seconds: windows that are open, and closed ones that the history lacks.

A window that closes becomes part of a publication, which has a number. The
history takes each number once, so that one may be sent again until it is known
to be there. What comes late opens its window anew: a publication holds what is to
be added, not what is. Two services that call themselves alike have different
`instance`s, and so do one before and after its state was lost. A state that is
copied, or restored from a backup, has the instance of another; by a `token` of each
publication it sees that a number was not made by itself, and goes on as a new one.

While the history is away publications wait. Over a bound of memory they become
coarser, first minutes, then hours: a coarse window stands where its first ten
seconds would, so that sums over it stay exact and its course does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from msgspec import Struct, field

from orbit_service.core.stats import Stats
from orbit_service.core.window import WINDOW_MS

# A worker under load sends what ended in the last 50 ms; one that is busy, later.
GRACE_MS = 2_000
AHEAD_MS = 60_000  # a window further ahead was opened by a clock that was set back since
# The first publications, which the history may have taken without our knowing, are
# sent together and stay as they are: so many, or so few that they are no more than so many
# bytes, and one at least. A release may raise these, and not lower them.
HEAD = 100
HEAD_BYTES = 4 * 1_048_576
MAX_BYTES = 64 * 1_048_576
ROW_BYTES = 500  # of a series in a window, besides its histograms, about
COARSER_MS = (60_000, 3_600_000)
# Names under which the journal marks how far it is, beside those of sessions, which have
# no control characters.
CLOSED = "\0closed"
TAKEN = "\0taken"


class Key(NamedTuple):
    """What a row of a window is about: a run, or a step of it, or an error type.

    The empty string where it is not about that. A key of empty strings alone is
    about all runs of a node together.
    """

    worker: str = ""
    pipeline: str = ""
    step: str = ""
    version: str = ""
    error: str = ""


EVERYTHING = Key()

Window = dict[Key, Stats]


class ErrorText(Struct, array_like=True):
    """The newest error of a type."""

    at_ms: int
    message: str
    traceback: str | None


class Publication(Struct, array_like=True):
    """Windows by their start, to be added to the history once."""

    number: int
    windows: dict[int, Window]
    errors: dict[Key, ErrorText]
    size: int = 0  # bytes, about
    token: str = ""  # by which whoever made it knows it again

    def merge(self, other: Publication, coarseness_ms: int = WINDOW_MS) -> None:
        """Add the other's windows to these; number and token are those of the later one."""
        if other.number > self.number:
            self.number, self.token = other.number, other.token
        for start, window in other.windows.items():
            add_window(self.windows.setdefault(start - start % coarseness_ms, {}), window)
        add_errors(self.errors, other.errors)


class Outbox(Struct):
    """What is not in the history yet.

    `number` is that of the newest publication, `taken` that of the newest that is
    known to be in the history; `number_on_disk` and `taken_on_disk` follow.
    """

    instance: str = ""  # given with the first window that closes
    number: int = 0
    taken: int = 0
    taken_token: str = ""
    begun: int = 0  # the number with which it has this instance
    number_on_disk: int = 0
    taken_on_disk: int = 0
    windows: dict[int, Window] = field(default_factory=dict)  # open, by their start
    errors: dict[Key, ErrorText] = field(default_factory=dict)  # of open windows
    waiting: list[Publication] = field(default_factory=list)  # the oldest first
    size: int = 0  # bytes of what waits, about
    dropped: int = 0  # runs, for want of memory

    def stats(self, key: Key, at_ms: int) -> Stats:
        """The open row of the key at that moment."""
        start = at_ms - at_ms % WINDOW_MS
        window = self.windows.get(start)
        if window is None:
            window = self.windows[start] = {}
        row = window.get(key)
        if row is None:
            row = window[key] = Stats()
        return row

    def over(self, now_ms: int) -> list[int]:
        """The starts of the windows that are to be closed."""
        return [start for start in self.windows if _is_over(start, now_ms)]

    def close(self, instance: str, starts: Iterable[int], token: str = "") -> None:
        """Make a publication of these windows.

        Told again, it has to be the same: which windows are over is the caller's to say,
        not that of a rule which another release may change.
        """
        self.instance = self.instance or instance
        windows = {start: self.windows.pop(start, {}) for start in starts}
        # The others are of windows that are open still, and go with these.
        told = {key for window in windows.values() for key in window} & self.errors.keys()
        texts = {key: self.errors.pop(key) for key in told}
        self.number += 1
        closed = Publication(self.number, windows, texts, token=token)
        closed.size = _size_of(closed)
        self.waiting.append(closed)
        self.size += closed.size
        for coarseness_ms in COARSER_MS:
            if self.size > MAX_BYTES:
                self._coarsen(coarseness_ms)
        head = self._head_length()
        while self.size > MAX_BYTES and len(self.waiting) > head + 1:
            oldest = self.waiting.pop(head)
            self.size -= oldest.size
            self.dropped += sum(sum_of(window).runs for window in oldest.windows.values())

    def begin_anew(self, instance: str) -> None:
        """Go on as another: the history has a number of this one that was not made here.

        What waits stays: the other may have published it too, and twice is said where
        never would not be. Nothing is sent before the disk knows who it is from.
        """
        self.instance = instance
        self.number += 1
        self.begun = self.number

    def add_error(self, key: Key, text: ErrorText) -> None:
        """Keep the newest error of a type."""
        if key not in self.errors or text.at_ms >= self.errors[key].at_ms:
            self.errors[key] = text

    def take(self, number: int) -> None:
        """The history has everything up to this number."""
        self.taken = max(self.taken, number)
        while self.waiting and self.waiting[0].number <= number:
            taken = self.waiting.pop(0)
            self.size -= taken.size
            self.taken_token = taken.token

    def head(self) -> list[Publication]:
        """What may be sent now, the oldest first.

        Only what is on the disk, or it would be made and counted again after a
        crash; and nothing while the disk does not know what was taken, or more than the
        head could have been, or who it is from.
        """
        if self.taken_on_disk < self.taken or self.number_on_disk < self.begun:
            return []
        head = self.waiting[: self._head_length()]
        return [publication for publication in head if publication.number <= self.number_on_disk]

    def _head_length(self) -> int:
        size = 0
        for length, publication in enumerate(self.waiting[:HEAD]):
            size += publication.size
            if size > HEAD_BYTES:
                return max(length, 1)
        return min(len(self.waiting), HEAD)

    def tokens(self) -> set[str]:
        """Of every publication that the history may have got from here last."""
        return {self.taken_token, *(publication.token for publication in list(self.waiting))}

    def marks(self) -> dict[str, int]:
        return {CLOSED: self.number, TAKEN: self.taken}

    def committed(self, marks: Mapping[str, int]) -> None:
        """The disk has got this far."""
        self.number_on_disk = max(self.number_on_disk, marks.get(CLOSED, 0))
        self.taken_on_disk = max(self.taken_on_disk, marks.get(TAKEN, 0))

    def unpublished(self, wanted: Callable[[int, Key], bool]) -> Unpublished:
        """Rows that are wanted, by start and key, as they are now."""
        open_rows = [
            (start, key, stats.copy())  # they change while others read what we give
            for start, window in self.windows.items()
            for key, stats in window.items()
            if wanted(start, key)
        ]
        return Unpublished(self.instance, self.number, list(self.waiting), open_rows, wanted)

    def _coarsen(self, coarseness_ms: int) -> None:
        head = self._head_length()
        merged = self.waiting[:head]
        for _, group in groupby(
            self.waiting[head:], lambda p: min(p.windows, default=0) // coarseness_ms
        ):
            first, *others = group
            coarse = Publication(0, {}, {})
            for part in (first, *others):
                coarse.merge(part, coarseness_ms)
            coarse.size = _size_of(coarse)
            merged.append(coarse)
        self.waiting = merged
        self.size = sum(publication.size for publication in merged)


@dataclass(frozen=True, slots=True)
class Unpublished:
    """What an outbox held at a moment; publications do not change any more."""

    instance: str
    number: int
    waiting: list[Publication]
    open_rows: list[tuple[int, Key, Stats]]
    wanted: Callable[[int, Key], bool]

    def after(self, number: int) -> Iterator[tuple[int, Key, Stats]]:
        """Start, key and runs of what a history lacks that has taken this number."""
        for publication in self.waiting:
            if publication.number > number:
                for start, window in publication.windows.items():
                    for key, stats in window.items():
                        if self.wanted(start, key):
                            yield start, key, stats
        yield from self.open_rows


def add_window(total: Window, other: Window) -> None:
    for key, stats in other.items():
        if (row := total.get(key)) is None:
            row = total[key] = Stats()
        row.merge(stats)


def add_errors(total: dict[Key, ErrorText], other: dict[Key, ErrorText]) -> None:
    for key, error in other.items():
        if key not in total or error.at_ms >= total[key].at_ms:
            total[key] = error


def sum_of(window: Window) -> Stats:
    """All runs of a window together; its rows of steps and errors tell of the same runs."""
    total = Stats()
    for key, stats in window.items():
        if not (key.step or key.error):
            total.merge(stats)
    return total


def _is_over(start_ms: int, now_ms: int) -> bool:
    return start_ms + WINDOW_MS + GRACE_MS <= now_ms or start_ms > now_ms + AHEAD_MS


def _size_of(publication: Publication) -> int:
    rows = (stats for window in publication.windows.values() for stats in window.values())
    texts = (len(e.message) + len(e.traceback or "") for e in publication.errors.values())
    return sum(_row_sizes(rows)) + sum(texts)


def _row_sizes(rows: Iterable[Stats]) -> Iterator[int]:
    for stats in rows:
        lanes = stats.histogram.lanes.bit_length()
        if stats.waits is not None:
            lanes += stats.waits.lanes.bit_length()
        yield ROW_BYTES + lanes // 8
