"""
What a number is compared with: the same hour of another day, or the version before.

Both are sums of the history's hours, read now and then; rules that look at the same runs
share them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from orbit_service.alerts.fold import Match, Subject
from orbit_service.alerts.rules import Rule
from orbit_service.alerts.sums import Routes, Signal, Sum, signal_of
from orbit_service.core.outbox import Key
from orbit_service.core.rollup import DAY_MS, HOUR_MS
from orbit_service.core.stats import Stats

BACK_MS = {"yesterday": DAY_MS, "last_week": 7 * DAY_MS}
VERSIONS_MS = 7 * DAY_MS  # how far back versions are looked for


class Version(NamedTuple):
    """One version's runs; `first_ms` is when it appeared."""

    first_ms: int
    name: str
    runs: Sum


@dataclass(frozen=True, slots=True)
class Before:
    """What there is to compare with, by rule and match; versions in order of appearance."""

    hours: Mapping[Subject, Sum] = field(default_factory=dict)
    versions: Mapping[Subject, Sequence[Version]] = field(default_factory=dict)

    def version(self, subject: Subject, name: str) -> Sum | None:
        """The runs of the version that came before this one; it may be too new to be known."""
        earlier: Sum | None = None
        for version in self.versions.get(subject, ()):
            if version.name == name:
                break
            earlier = version.runs
        return earlier

    def place(self, subject: Subject, name: str) -> int:
        """Which of the versions it is by appearance; one that is not known yet is the last."""
        names = [version.name for version in self.versions.get(subject, ())]
        return names.index(name) if name in names else len(names)


NOTHING_BEFORE = Before()


class Hours:
    """Takes rows of the history, and sums them by hour, signal and match."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = [rule for rule in rules if rule.compare is not None]
        self._routes = Routes({signal_of(rule) for rule in self._rules})
        self._sums: dict[Signal, dict[int, dict[Match, Sum]]] = defaultdict(dict)

    def add(self, start_ms: int, _node: str, key: Key, stats: Stats) -> None:
        hour_ms = start_ms - start_ms % HOUR_MS
        for signal, match in self._routes.of(key):
            hour = self._sums[signal].setdefault(hour_ms, {})
            if match not in hour:
                hour[match] = Sum()
            hour[match].add(stats, start_ms, stats.first_run_ms)

    def at(self, now_ms: int) -> Before:
        """What there is to compare with at a moment; rows of later hours are passed over."""
        hours: dict[Subject, Sum] = {}
        versions: dict[Subject, Sequence[Version]] = {}
        this_ms = now_ms - now_ms % HOUR_MS
        for rule in self._rules:
            of_signal = self._sums.get(signal_of(rule), {})
            if rule.compare == "version":
                for match, found in _versions(of_signal, this_ms).items():
                    versions[Subject(rule.name, match)] = found
            elif rule.compare is not None:
                hour = of_signal.get(this_ms - BACK_MS[rule.compare], {})
                hours.update((Subject(rule.name, match), total) for match, total in hour.items())
        return Before(hours, versions)


def _versions(
    hours: Mapping[int, Mapping[Match, Sum]], until_ms: int
) -> dict[Match, list[Version]]:
    totals: dict[Match, Sum] = {}
    for hour_ms, sums in hours.items():
        if until_ms - VERSIONS_MS <= hour_ms <= until_ms:
            for match, part in sums.items():
                total = totals.setdefault(match, Sum())
                total.add(part, part.last_ms, part.first_ms)
    found: dict[Match, list[Version]] = defaultdict(list)
    for full, total in totals.items():
        found[full[:-1]].append(Version(total.first_ms, full[-1], total))
    for versions in found.values():
        versions.sort(key=lambda version: (version.first_ms, version.name))
    return found


def ranges_of(rules: Iterable[Rule], now_ms: int) -> list[tuple[int, int]]:
    """From when to when the history is to be read for `Hours.at(now_ms)`; no row is in two."""
    compared = {rule.compare for rule in rules if rule.compare is not None}
    this_ms = now_ms - now_ms % HOUR_MS
    if "version" in compared:  # the others lie within
        return [(this_ms - VERSIONS_MS, now_ms)]
    return [
        (this_ms - back_ms, this_ms - back_ms + HOUR_MS)
        for name, back_ms in BACK_MS.items()
        if name in compared
    ]
