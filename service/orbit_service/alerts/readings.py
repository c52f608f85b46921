"""What each rule reads at a moment: from sums of closed windows, and from what is now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from orbit_service.alerts.before import Before
from orbit_service.alerts.facts import Facts, WorkerFact
from orbit_service.alerts.fold import Match, States, Subject
from orbit_service.alerts.rules import Rule, is_pattern, matcher
from orbit_service.alerts.sums import Sum, Sums, change_of
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
    moment = None if facts is None else _Moment(facts, now_ms)
    for rule in rules:
        mine = held.get(rule.name, ())
        values: Mapping[Match, float | None]
        if rule.about.source == "runs":
            values = _of_runs(rule, sums, before, mine)
        else:
            trouble = _unknown(rule, facts)
            if trouble is not None:
                found.troubles[rule.name] = trouble
                continue
            assert moment is not None
            known = _of_facts(rule, moment, totals)
            if rule.literal is not None:
                _fill_in(rule, known, expected, found, now_ms)
            if rule.metric not in SINCE:
                known.update((match, 0.0) for match in mine if match not in known)
            values = known
        found.matches[rule.name] = len(values)
        for match, value in values.items():
            if everything or (value is not None and rule.breached(value)):
                found.readings[Subject(rule.name, match)] = value
        for match in mine:
            if match in values:
                found.readings[Subject(rule.name, match)] = values[match]
    return found


def _unknown(rule: Rule, facts: Facts | None) -> str | None:
    if facts is None:
        return f"{rule.about.text} was not recorded"
    needed = {"dropped": facts.dropped, "refused": facts.refused, "degraded": facts.troubles}
    return ON_HUB if rule.metric in needed and needed[rule.metric] is None else None


def _of_runs(
    rule: Rule, sums: Sums, before: Before, held: Iterable[Match]
) -> Mapping[Match, float | None]:
    if rule.compare is not None:
        return dict(_changes(rule, sums.of(rule), before))
    values = sums.values(rule)
    if rule.about.guess:
        return values
    # Of what did not run, so often is zero.
    missing = {match for match in held if match not in values}
    if rule.literal is not None and (match := tuple(rule.literal.values())) not in values:
        missing.add(match)
    return {**values, **dict.fromkeys(missing, 0.0)} if missing else values


def _changes(
    rule: Rule, totals: Mapping[Match, Sum], before: Before
) -> Iterator[tuple[Match, float | None]]:
    if rule.compare == "version":
        for (*names, version), total in _newest_versions(rule, totals, before).items():
            match = tuple(names)
            earlier = before.version(Subject(rule.name, match), version)
            yield match, None if earlier is None else change_of(rule, total, earlier)
        return
    for match, total in totals.items():
        earlier = before.hours.get(Subject(rule.name, match))
        yield match, None if earlier is None else change_of(rule, total, earlier)


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
    moment: _Moment,
    totals: Mapping[str, Totals],
) -> dict[Match, float]:
    match rule.metric:
        case "dropped" | "refused":
            return {(): float(totals[rule.metric].since(moment.now_ms - rule.window))}
        case "degraded":
            return {(): float(len(moment.facts.troubles or ()))}
    return dict(moment.of(rule))


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


class _Moment:
    """Facts of one moment as numbers. What is made of them for one rule serves all like it."""

    def __init__(self, facts: Facts, now_ms: int) -> None:
        self.facts = facts
        self.now_ms = now_ms
        self._found: dict[tuple[object, ...], dict[Match, float]] = {}
        self._atoms: dict[tuple[str, str], list[Atom]] = {}
        self._named: dict[tuple[str, str, str], dict[str, list[Atom]]] = {}

    def of(self, rule: Rule) -> Mapping[Match, float]:
        """A rule's number of each match."""
        asked = (rule.metric, rule.dimensions, *rule.scope.values())
        found = self._found.get(asked)
        if found is None:
            join = _JOINS.get(rule.metric, _add)
            found = self._found[asked] = _grouped(rule, self._atoms_of(rule), join)
        return found

    def _atoms_of(self, rule: Rule) -> Iterable[Atom]:
        """All of a metric; of a rule that names one of something, those that are of it."""
        # Workers that tell of one queue tell of the same, unless told apart.
        workers = ""
        if rule.metric == "queue_depth" and "worker" not in rule.dimensions:
            workers = rule.worker if is_pattern(rule.worker) else ""
        kind = (rule.metric, workers)
        atoms = self._atoms.get(kind)
        if atoms is None:
            atoms = self._atoms[kind] = list(_atoms(rule.metric, workers, self.facts, self.now_ms))
        name = next((n for n, pattern in rule.scope.items() if not is_pattern(pattern)), None)
        if name is None:
            return atoms
        named = self._named.get((*kind, name))
        if named is None:
            named = self._named[*kind, name] = defaultdict(list)
            for atom in atoms:
                named[atom.names[name]].append(atom)
        return named.get(rule.scope[name], ())


def _add(one: float, other: float) -> float:
    return one + other


_JOINS: dict[str, Join] = {"since_connected": min, "since_success": min, "oldest_in_flight": max}


def _atoms(metric: str, workers: str, facts: Facts, now_ms: int) -> Iterator[Atom]:
    """Numbers of a metric. `workers`: of a queue's depth, whose are taken together."""

    def by_worker(value: Callable[[WorkerFact], int]) -> Iterator[Atom]:
        return (Atom({"worker": name}, float(value(w))) for name, w in facts.workers.items())

    def by_pair(values: Iterable[tuple[tuple[str, str], int]]) -> Iterator[Atom]:
        return (
            Atom({"worker": worker, "pipeline": pipeline}, float(value))
            for (worker, pipeline), value in values
        )

    match metric:
        case "worker_lost":
            return by_worker(lambda worker: worker.lost)
        case "worker_silent":
            return by_worker(lambda worker: worker.silent)
        case "since_connected":
            return by_worker(lambda worker: max(now_ms - worker.last_ms, 0))
        case "since_success":
            return by_pair((key, max(now_ms - at, 0)) for key, at in facts.successes.items())
        case "stuck_runs":
            return by_pair((key, fact.stuck) for key, fact in facts.in_flight.items())
        case "oldest_in_flight":
            return by_pair(
                (key, max(now_ms - fact.oldest_ms, 0))
                for key, fact in facts.in_flight.items()
                if fact.oldest_ms is not None
            )
        case _:
            return _queues(workers, facts)


def _queues(workers: str, facts: Facts) -> Iterator[Atom]:
    """Depths of queues; of workers that are taken together the deepest."""
    if not workers:
        for (worker, queue), depth in facts.queues.items():
            yield Atom({"worker": worker, "queue": queue}, float(depth))
        return
    wanted = matcher(workers)
    depths: dict[str, int] = {}
    for (worker, queue), depth in facts.queues.items():
        if wanted.match(worker):
            depths[queue] = max(depth, depths.get(queue, 0))
    for queue, depth in depths.items():
        yield Atom({"worker": "", "queue": queue}, float(depth))


def _grouped(rule: Rule, atoms: Iterable[Atom], join: Join) -> dict[Match, float]:
    # A worker of no name stands for those that match.
    patterns = [(n, matcher(p)) for n, p in rule.scope.items() if p != "*"]
    found: dict[Match, float] = {}
    for atom in atoms:
        if all(not atom.names[name] or p.match(atom.names[name]) for name, p in patterns):
            match = tuple(atom.names[name] for name in rule.dimensions)
            found[match] = join(found[match], atom.value) if match in found else atom.value
    return found
