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
MAX_ROWS = 3_000_000
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


def backtest(
    rules: Sequence[Rule],
    recorded: Recorded,
    hours: Hours,
    from_ms: int,
    to_ms: int,
    step_ms: int,
) -> Backtest:
    """Look once for each window of the range. Windows before it fill the sums.

    A rule's window is widened to whole steps: of less than that there is no number.
    """
    courses = {rule.name: _Course() for rule in rules}
    tested = []
    for rule in rules:
        if rule.about.source == "runs" or rule.metric == "since_success":
            tested.append(_widened(rule, step_ms))
        else:
            courses[rule.name].trouble = UNRECORDED
    by_name = {rule.name: rule for rule in tested}
    sums = Sums(tested)
    states: dict[Subject, State] = {}
    open_: dict[Subject, Change] = {}
    facts = Facts()
    expected = {
        Subject(rule.name, tuple(rule.literal.values())): from_ms
        for rule in tested
        if rule.literal is not None
    }
    before, before_hour = Before(), -1
    starts = sorted(recorded.windows)
    place = 0
    for now_ms in range(from_ms + step_ms, to_ms + 1, step_ms):
        while place < len(starts) and starts[place] < now_ms:
            window = recorded.windows[starts[place]]
            sums.add(starts[place], window)
            _saw_successes(facts, window)
            place += 1
        sums.advance(now_ms)
        if now_ms // HOUR_MS != before_hour:
            before, before_hour = hours.at(now_ms), now_ms // HOUR_MS
        looked = look(tested, sums, facts, {}, before, states, expected, now_ms, everything=True)
        for name, count in looked.matches.items():
            courses[name].matches = max(courses[name].matches, count)
        _peaks(courses, by_name, looked.readings.items())
        states, changes = fold(by_name, looked.readings, states, now_ms)
        for change in changes:
            course = courses[change.subject.rule]
            if change.turn == "firing":
                open_[change.subject] = change
            elif change.turn == "resolved":
                course.firings.append((change.subject, open_.pop(change.subject), change))
    for subject, change in open_.items():
        ongoing = change._replace(state=states[subject])
        courses[subject.rule].firings.append((subject, ongoing, None))
    views = [_view(rule, courses[rule.name], to_ms) for rule in rules]
    return Backtest(from_=from_ms, to=to_ms, step=step_ms, rules=views)


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
