"""
When each rule would have fired: the same fold over windows that the history has kept.

What is looked at is what would have been: windows of a level, one look for each. Of ten
seconds they are kept for some hours, of a minute for some days; a test over longer sees
an hour as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orbit_rpc_schema.alerts import Backtest, Firing, RuleBacktest
from orbit_service.alerts.before import Before, Hours
from orbit_service.alerts.facts import Facts
from orbit_service.alerts.fold import Change, State, Subject, fold
from orbit_service.alerts.readings import look
from orbit_service.alerts.rules import Rule
from orbit_service.alerts.sums import Sums
from orbit_service.core.outbox import Key
from orbit_service.core.rollup import HOUR_MS
from orbit_service.core.stats import Stats

MAX_FIRINGS = 100  # of a rule, that are told
MAX_ROWS = 1_000_000  # held at once; some 2 GB
UNRECORDED = "what it looks at is not in the history"


class TooMuch(Exception):
    """There are more windows than can be held."""


class Recorded:
    """Takes rows of the history, in any order, and keeps them by the start of their window.

    Raises TooMuch.
    """

    def __init__(self) -> None:
        self.windows: dict[int, dict[Key, Stats]] = {}
        self._rows = 0

    def add(self, start_ms: int, _node: str, key: Key, stats: Stats) -> None:
        window = self.windows.setdefault(start_ms, {})
        row = window.get(key)
        if row is None:
            self._rows += 1
            if self._rows > MAX_ROWS:
                raise TooMuch(f"there are more than {MAX_ROWS} windows: take a shorter range")
            window[key] = stats
        else:
            row.merge(stats)


@dataclass(slots=True)
class _Course:
    """What became of one rule."""

    firings: list[tuple[Subject, Change, Change | None]] = field(default_factory=list)
    highest: float | None = None
    matches: int = 0
    trouble: str | None = None


class Backtesting:
    """Rules on their way through the past. Windows come in order of time, part by part.

    One look is made for each window. A rule's window is widened to whole steps: of less
    than that there is no number.
    """

    def __init__(self, rules: Sequence[Rule], hours: Hours, from_ms: int, step_ms: int) -> None:
        self._rules = rules
        self._hours = hours
        self._from_ms = from_ms
        self._step_ms = step_ms
        self._courses = {rule.name: _Course() for rule in rules}
        self._tested: dict[str, Rule] = {}
        for rule in rules:
            if rule.about.source == "runs" or rule.metric == "since_success":
                self._tested[rule.name] = _widened(rule, step_ms)
            else:
                self._courses[rule.name].trouble = UNRECORDED
        self._sums = Sums(self._tested.values())
        self._states: dict[Subject, State] = {}
        self._open: dict[Subject, Change] = {}
        self._facts = Facts()
        self._expected = {
            Subject(rule.name, tuple(rule.literal.values())): from_ms
            for rule in self._tested.values()
            if rule.literal is not None
        }
        self._before, self._hour = Before(), -1
        self._now_ms = from_ms

    def go_on(self, recorded: Recorded, until_ms: int) -> None:
        """Take all windows that began before a moment, and look up to it.

        Windows of before the range fill the sums.
        """
        starts = sorted(recorded.windows)
        place = 0
        for now_ms in range(self._now_ms + self._step_ms, until_ms + 1, self._step_ms):
            while place < len(starts) and starts[place] < now_ms:
                self._add(starts[place], recorded.windows[starts[place]])
                place += 1
            self._look(now_ms)
            self._now_ms = now_ms
        for start_ms in starts[place:]:
            self._add(start_ms, recorded.windows[start_ms])

    def result(self) -> Backtest:
        """What came of it, up to the last look."""
        for subject, change in self._open.items():
            ongoing = change._replace(state=self._states[subject])
            self._courses[subject.rule].firings.append((subject, ongoing, None))
        views = [_view(rule, self._courses[rule.name], self._now_ms) for rule in self._rules]
        return Backtest(from_=self._from_ms, to=self._now_ms, step=self._step_ms, rules=views)

    def _add(self, start_ms: int, window: dict[Key, Stats]) -> None:
        self._sums.add(start_ms, window)
        _saw_successes(self._facts, window)

    def _look(self, now_ms: int) -> None:
        self._sums.advance(now_ms)
        if now_ms // HOUR_MS != self._hour:
            self._before, self._hour = self._hours.at(now_ms), now_ms // HOUR_MS
        looked = look(
            self._tested.values(),
            self._sums,
            self._facts,
            {},
            self._before,
            self._states,
            self._expected,
            now_ms,
            everything=True,
        )
        for name, count in looked.matches.items():
            self._courses[name].matches = max(self._courses[name].matches, count)
        _peaks(self._courses, self._tested, looked.readings.items())
        self._states, changes = fold(self._tested, looked.readings, self._states, now_ms)
        for change in changes:
            course = self._courses[change.subject.rule]
            if change.turn == "firing":
                self._open[change.subject] = change
            elif change.turn == "resolved":
                course.firings.append((change.subject, self._open.pop(change.subject), change))


def _widened(rule: Rule, step_ms: int) -> Rule:
    steps = -(-rule.window // step_ms)
    return rule.model_copy(update={"window": steps * step_ms})


def _saw_successes(facts: Facts, window: dict[Key, Stats]) -> None:
    for key, stats in window.items():
        if stats.last_success_ms is not None and key.pipeline and not (key.step or key.error):
            pair = (key.worker, key.pipeline)
            facts.successes[pair] = max(facts.successes.get(pair, 0), stats.last_success_ms)


def _peaks(
    courses: dict[str, _Course],
    rules: dict[str, Rule],
    readings: Iterable[tuple[Subject, float | None]],
) -> None:
    for subject, value in readings:
        if value is not None:
            course, above = courses[subject.rule], rules[subject.rule].above is not None
            known = course.highest
            if known is None or (value > known if above else value < known):
                course.highest = value


def _view(rule: Rule, course: _Course, to_ms: int) -> RuleBacktest:
    course.firings.sort(key=lambda firing: firing[1].at_ms)
    firings = []
    for subject, began, ended in course.firings[-MAX_FIRINGS:]:
        state = began.state if ended is None else ended.state
        firings.append(
            Firing(
                labels=dict(zip(rule.dimensions, subject.match, strict=True)),
                pending_since=began.state.since_ms,
                from_=began.at_ms,
                until=None if ended is None else ended.at_ms,
                peak=state.peak,
                peak_text=rule.value_text(state.peak),
            )
        )
    return RuleBacktest(
        rule=rule.name,
        condition=rule.condition,
        severity=rule.severity,
        matches=course.matches,
        firings=firings,
        count=len(course.firings),
        firing_ms=sum(
            (to_ms if ended is None else ended.at_ms) - began.at_ms
            for _subject, began, ended in course.firings
        ),
        highest=course.highest,
        highest_text=rule.value_text(course.highest),
        trouble=course.trouble,
    )
