"""What each rule reads at a moment: from sums of closed windows, and from what is now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from orbit_service.alerts.before import Before
from orbit_service.alerts.facts import Facts
from orbit_service.alerts.fold import Match, States, Subject
from orbit_service.alerts.rules import Rule, is_pattern, matcher
from orbit_service.alerts.sums import Sum, Sums, change_of, value_of
from orbit_service.core.window import WINDOW_MS

MAX_CHANGES = 10_000  # of totals, kept to say how many there were over a window

# Of what is not there any more these go on; the others are at zero.
SINCE = ("since_success", "since_connected")
ON_HUB = "it is known to each node, and this is a hub: put the rule into the nodes' file"


@dataclass(frozen=True, slots=True)
class Atom:
    """A number of something that names tell apart."""

    names: Mapping[str, str]
    value: float


@dataclass(slots=True)
class Looked:
    """What came of a look."""

    readings: dict[Subject, float | None] = field(default_factory=dict)
    matches: dict[str, int] = field(default_factory=dict)  # by rule
    troubles: dict[str, str] = field(default_factory=dict)  # why a rule says nothing
    last: dict[Subject, int] = field(default_factory=dict)  # when what is expected was so last


class Totals(Struct, array_like=True):
    """How much a sum over all time has grown in the last minutes; durable."""

    last: int | None = None
    grown: dict[int, int] = msgspec.field(default_factory=dict)  # by window

    def saw(self, total: int | None, now_ms: int) -> None:
        if total is None:
            return
        if self.last is not None and total > self.last:
            start_ms = now_ms - now_ms % WINDOW_MS
            self.grown[start_ms] = self.grown.get(start_ms, 0) + total - self.last
            while len(self.grown) > MAX_CHANGES:
                self.grown.pop(next(iter(self.grown)))
        self.last = total

    def since(self, from_ms: int) -> int:
        """By how much since then, and in the window in which that lies."""
        first_ms = from_ms - from_ms % WINDOW_MS
        return sum(grown for start, grown in self.grown.items() if start >= first_ms)

    def shift(self, by_ms: int) -> None:
        """The clock was set: what lies some minutes back lies some minutes back."""
        self.grown = {start + by_ms: grown for start, grown in self.grown.items()}


def look(
    rules: Iterable[Rule],
    sums: Sums,
    facts: Facts | None,
    totals: Mapping[str, Totals],
    before: Before,
    states: States,
    expected: Mapping[Subject, int],
    now_ms: int,
    *,
    everything: bool = False,
) -> Looked:
    """Readings of what breaches its threshold, or has a state; of what is well if asked.

    `facts` of None: of a past that was not recorded. `expected` holds since when a match
    is missed that a rule names: since the rule is there, or the match was there last.
    """
    found = Looked()
    held: dict[str, list[Match]] = defaultdict(list)
    for subject in states:
        held[subject.rule].append(subject.match)
    for rule in rules:
        values: Iterable[tuple[Match, float | None]]
        if rule.about.source == "runs":
            values = _of_runs(rule, sums, before, held[rule.name])
        else:
            trouble = _unknown(rule, facts)
            if trouble is not None:
                found.troubles[rule.name] = trouble
                continue
            assert facts is not None
            known = _of_facts(rule, facts, totals, now_ms)
            if rule.literal is not None:
                _fill_in(rule, known, expected, found, now_ms)
            if rule.metric not in SINCE:
                known.update((match, 0.0) for match in held[rule.name] if match not in known)
            values = known.items()
        count = 0
        for match, value in values:
            count += 1
            subject = Subject(rule.name, match)
            breached = value is not None and rule.breached(value)
            if breached or everything or subject in states:
                found.readings[subject] = value
        found.matches[rule.name] = count
    return found


def _unknown(rule: Rule, facts: Facts | None) -> str | None:
    if facts is None:
        return f"{rule.about.text} was not recorded"
    needed = {"dropped": facts.dropped, "refused": facts.refused, "degraded": facts.troubles}
    return ON_HUB if rule.metric in needed and needed[rule.metric] is None else None


def _of_runs(
    rule: Rule, sums: Sums, before: Before, held: Iterable[Match]
) -> Iterator[tuple[Match, float | None]]:
    totals = sums.of(rule)
    if rule.compare == "version":
        for (*names, version), total in _newest_versions(rule, totals, before).items():
            match = tuple(names)
            earlier = before.version(Subject(rule.name, match), version)
            yield match, None if earlier is None else change_of(rule, total, earlier)
        return
    for match, total in totals.items():
        if rule.compare is None:
            yield match, value_of(rule, total)
        else:
            earlier = before.hours.get(Subject(rule.name, match))
            yield match, None if earlier is None else change_of(rule, total, earlier)
    if rule.about.guess:
        return
    # Of what did not run, so often is zero.
    missing = {match for match in held if match not in totals}
    if rule.literal is not None and (match := tuple(rule.literal.values())) not in totals:
        missing.add(match)
    for match in missing:
        yield match, 0.0


def _newest_versions(rule: Rule, totals: Mapping[Match, Sum], before: Before) -> dict[Match, Sum]:
    """Of each match the version that appeared last; its name is the last of a match.

    Two may run side by side for longer than the sums reach back: then the days before
    tell which of them is the newer one.
    """
    newest: dict[Match, tuple[tuple[int, int], Match]] = {}
    for full, total in totals.items():
        match, version = full[:-1], full[-1]
        if total.runs:
            known = before.place(Subject(rule.name, match), version)
            when = (known, total.first_ms)
            if match not in newest or when > newest[match][0]:
                newest[match] = (when, full)
    return {full: totals[full] for _when, full in newest.values()}


def _of_facts(
    rule: Rule,
    facts: Facts,
    totals: Mapping[str, Totals],
    now_ms: int,
) -> dict[Match, float]:
    match rule.metric:
        case "dropped" | "refused":
            return {(): float(totals[rule.metric].since(now_ms - rule.window))}
        case "degraded":
            return {(): float(len(facts.troubles or ()))}
    atoms, join = _atoms(rule, facts, now_ms)
    return _grouped(rule, atoms, join)


def _fill_in(
    rule: Rule,
    known: dict[Match, float],
    expected: Mapping[Subject, int],
    found: Looked,
    now_ms: int,
) -> None:
    """Of the one match that a rule names there is always a number."""
    assert rule.literal is not None
    match = tuple(rule.literal.values())
    subject = Subject(rule.name, match)
    if rule.metric not in SINCE:
        known.setdefault(match, 0.0)
    elif match in known:
        found.last[subject] = now_ms - int(known[match])
    else:
        known[match] = float(max(now_ms - expected.get(subject, now_ms), 0))


Join = Callable[[float, float], float]


def _atoms(rule: Rule, facts: Facts, now_ms: int) -> tuple[Iterator[Atom], Join]:
    def by_worker(value: Callable[[str], float]) -> Iterator[Atom]:
        return (Atom({"worker": name}, value(name)) for name in facts.workers)

    def by_pair(pairs: Mapping[tuple[str, str], float]) -> Iterator[Atom]:
        return (
            Atom({"worker": worker, "pipeline": pipeline}, value)
            for (worker, pipeline), value in pairs.items()
        )

    workers = facts.workers
    match rule.metric:
        case "worker_lost":
            return by_worker(lambda name: float(workers[name].lost)), _add
        case "worker_silent":
            return by_worker(lambda name: float(workers[name].silent)), _add
        case "since_connected":
            return by_worker(lambda name: float(max(now_ms - workers[name].last_ms, 0))), min
        case "since_success":
            return by_pair(
                {k: float(max(now_ms - at, 0)) for k, at in facts.successes.items()}
            ), min
        case "stuck_runs":
            return by_pair({key: float(f.stuck) for key, f in facts.in_flight.items()}), _add
        case "oldest_in_flight":
            oldest = {k: f.oldest_ms for k, f in facts.in_flight.items() if f.oldest_ms is not None}
            return by_pair({k: float(max(now_ms - at, 0)) for k, at in oldest.items()}), max
        case _:
            return _queues(rule, facts), _add


def _queues(rule: Rule, facts: Facts) -> Iterator[Atom]:
    """A queue's depth. Workers that tell of one queue tell of the same, unless told apart."""
    if "worker" in rule.dimensions or not is_pattern(rule.worker):
        for (worker, queue), depth in facts.queues.items():
            yield Atom({"worker": worker, "queue": queue}, float(depth))
        return
    wanted = matcher(rule.worker)
    depths: dict[str, int] = {}
    for (worker, queue), depth in facts.queues.items():
        if wanted.match(worker):
            depths[queue] = max(depth, depths.get(queue, 0))
    for queue, depth in depths.items():
        yield Atom({"worker": "", "queue": queue}, float(depth))


def _add(one: float, other: float) -> float:
    return one + other


def _grouped(rule: Rule, atoms: Iterator[Atom], join: Join) -> dict[Match, float]:
    # A worker of no name stands for those that match.
    patterns = [(n, matcher(p)) for n, p in rule.scope.items() if p != "*"]
    found: dict[Match, float] = {}
    for atom in atoms:
        if all(not atom.names[name] or p.match(atom.names[name]) for name, p in patterns):
            match = tuple(atom.names[name] for name in rule.dimensions)
            found[match] = join(found[match], atom.value) if match in found else atom.value
    return found
