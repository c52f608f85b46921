"""The handlers of alerts.*."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from orbit_rpc_schema.alerts import (
    Acknowledged,
    AcknowledgeParams,
    AlertList,
    AlertsHistoryParams,
    AlertsListParams,
    AuditLog,
    Backtest,
    BacktestParams,
    ChannelView,
    Phase,
    Reloaded,
    RuleList,
    RuleView,
    SendTestParams,
    SilenceParams,
    SilenceView,
    TestSent,
    Unsilenced,
    UnsilenceParams,
)
from orbit_rpc_schema.errors import InvalidParams, NoRules, NoSuchChannel, NotSent
from orbit_rpc_schema.model import NoParams
from orbit_rpc_schema.wire import MAX_INT
from orbit_service.alerting.runner import Alerting
from orbit_service.alerts.backtest import Backtesting, Recorded, TooMuch
from orbit_service.alerts.before import Hours, ranges_of
from orbit_service.alerts.rules import Rule
from orbit_service.alerts.silences import MAX_SILENCE_MS
from orbit_service.core.rollup import (
    BadRange,
    Level,
    Segment,
    check_range,
    duration_text,
    parse_duration,
    segments,
)
from orbit_service.history.port import Wanted
from orbit_service.notify.courier import NotSent as NotTaken
from orbit_service.notify.delivery import Tally
from orbit_service.rpc.handlers import Handler
from orbit_service.rpc.past import explained
from orbit_service.rpc.times import parse_time
from orbit_service.threads import start_thread

PART = 100  # windows that are read at once in a test
MAX_LOOKS = 50_000  # of a test: 11,000 are a week of minutes


def make_alert_handlers(alerting: Alerting) -> Mapping[str, Handler]:
    """The handlers by procedure name."""
    answers = _Answers(alerting)
    return {
        "alerts.list": answers.list,
        "alerts.rules": answers.rules,
        "alerts.history": answers.history,
        "alerts.silence": answers.silence,
        "alerts.unsilence": answers.unsilence,
        "alerts.acknowledge": answers.acknowledge,
        "alerts.backtest": answers.backtest,
        "alerts.reload": answers.reload,
        "alerts.sendTest": answers.send_test,
    }


class _Answers:
    def __init__(self, alerting: Alerting) -> None:
        self._alerting = alerting
        self._testing = asyncio.Lock()  # one test at a time: each may hold much of the history

    async def list(self, params: AlertsListParams) -> AlertList:
        alerting = self._alerting
        await alerting.settled()
        board = alerting.desk.board
        return AlertList(
            alerts=[
                alert
                for alert in board.alerts
                if params.phase in (None, alert.phase)
                and params.rule in (None, alert.rule)
                and params.severity in (None, alert.severity)
            ],
            silences=list(board.silences),
            evaluated_at=board.evaluated_at,
            evaluates=alerting.evaluates,
            trouble=alerting.trouble,
        )

    def rules(self, _params: NoParams) -> RuleList:
        alerting, file = self._alerting, self._alerting.desk.file
        phases = Counter((alert.rule, alert.phase) for alert in alerting.desk.board.alerts)
        return RuleList(
            rules=[self._rule(rule, phases) for rule in file.rules],
            channels=[self._channel(name) for name in file.channels],
            file=None if alerting.path is None else str(alerting.path),
            loaded_at=alerting.loaded_ms,
            trouble=alerting.file_trouble,
            dry_run=file.recovery.dry_run,
        )

    def _rule(self, rule: Rule, phases: Counter[tuple[str, Phase]]) -> RuleView:
        desk = self._alerting.desk
        left_out = desk.sums.left_out(rule)
        full = f"{left_out} rows of further matches had no place" if left_out else None
        return RuleView(
            name=rule.name,
            metric=rule.metric,
            scope={name: pattern for name, pattern in rule.scope.items() if pattern != "*"},
            per=list(rule.dimensions),
            condition=rule.condition,
            severity=rule.severity,
            for_=rule.for_,
            keep_firing_for=rule.keep_firing_for,
            window=None if rule.about.source == "now" else rule.window,
            min_runs=rule.least_runs,
            labels=rule.labels,
            channels=desk.file.channels_of(rule),
            actions=[action.text for action in rule.actions],
            runbook=rule.runbook,
            matches=desk.board.matches.get(rule.name, 0),
            pending=phases[rule.name, "pending"],
            firing=phases[rule.name, "firing"],
            trouble=desk.board.troubles.get(rule.name, full),
        )

    def _channel(self, name: str) -> ChannelView:
        alerting = self._alerting
        channel, counts = (
            alerting.desk.file.channels[name],
            alerting.delivery.tallies.get(name, Tally()),
        )
        return ChannelView(
            name=name,
            kind=channel.kind,
            severities=list(channel.severities),
            sent=counts.sent,
            failed=counts.failed,
            given_up=counts.given_up,
            held_back=alerting.desk.held_back(name),
            waiting=alerting.desk.shelf.waiting(name),
            trouble=counts.trouble,
        )

    async def history(self, params: AlertsHistoryParams) -> AuditLog:
        alerting, now_ms = self._alerting, self._alerting.clock()
        with explained():
            from_ms, to_ms = parse_time(params.from_, now_ms), parse_time(params.to, now_ms)
            if from_ms > to_ms:
                raise BadRange(f"from ({from_ms}) has to be before to ({to_ms})")
        if params.to == "now":
            to_ms = MAX_INT  # what was written before the clock was set back too
        if alerting.path is None:
            return AuditLog(entries=[], more=False)
        found = await alerting.ask(
            lambda desk: desk.history(
                from_ms,
                to_ms,
                params.limit + 1,
                rule=params.rule,
                alert=params.alert,
                kind=params.kind,
            )
        )
        return AuditLog(entries=found[: params.limit], more=len(found) > params.limit)

    async def silence(self, params: SilenceParams) -> SilenceView:
        alerting, now_ms = self._alerting, self._alerting.clock()
        with explained():
            length_ms = parse_duration(params.duration)
            if not 0 < length_ms <= MAX_SILENCE_MS:
                raise BadRange(f"a silence lasts up to {duration_text(MAX_SILENCE_MS)}")
        return await alerting.change(
            lambda desk: desk.silence(
                params.matchers, now_ms + length_ms, params.reason, params.who, now_ms
            )
        )

    async def unsilence(self, params: UnsilenceParams) -> Unsilenced:
        now_ms = self._alerting.clock()
        await self._alerting.change(lambda desk: desk.unsilence(params.id, params.who, now_ms))
        return Unsilenced()

    async def acknowledge(self, params: AcknowledgeParams) -> Acknowledged:
        now_ms = self._alerting.clock()
        await self._alerting.change(
            lambda desk: desk.acknowledge(params.alert, params.who, params.note, now_ms)
        )
        return Acknowledged()

    async def reload(self, _params: NoParams) -> Reloaded:
        changed = await self._alerting.reload()
        file = self._alerting.desk.file
        return Reloaded(rules=len(file.rules), channels=len(file.channels), changed=changed)

    async def send_test(self, params: SendTestParams) -> TestSent:
        alerting = self._alerting
        if alerting.path is None:
            raise NoRules
        channels = alerting.desk.file.channels
        if params.channel not in channels:
            raise NoSuchChannel(channel=params.channel, known=", ".join(channels) or "none")
        began = time.monotonic()
        try:
            await alerting.delivery.send_now(
                params.channel, alerting.desk.test_message(alerting.clock())
            )
        except NotTaken as error:
            raise NotSent(channel=params.channel, why=str(error)) from None
        return TestSent(seconds=round(time.monotonic() - began, 3))

    async def backtest(self, params: BacktestParams) -> Backtest:
        alerting, now_ms = self._alerting, self._alerting.clock()
        if alerting.path is None:
            raise NoRules
        rules = [r for r in alerting.desk.file.rules if params.rule in (None, r.name)]
        if params.rule is not None and not rules:
            raise InvalidParams(problems=[f"there is no rule {params.rule!r}"])
        with explained():
            from_ms, to_ms = parse_time(params.from_, now_ms), parse_time(params.to, now_ms)
            check_range(from_ms, to_ms, now_ms)
            back_ms = max((rule.window for rule in rules if rule.about.source != "now"), default=0)
            level = _level(alerting.kept, from_ms, now_ms)
            step_ms = alerting.kept[level].window_ms
            from_ms -= from_ms % step_ms
            to_ms = min(to_ms, now_ms)
            to_ms -= to_ms % step_ms
            if to_ms <= from_ms:
                raise BadRange(f"the range is shorter than a window of {alerting.kept[level].name}")
            if (to_ms - from_ms) // step_ms > MAX_LOOKS:
                raise BadRange("the range is too long: take a shorter one")
        first_ms = from_ms - back_ms
        first_ms -= first_ms % step_ms
        steps = any(rule.step is not None for rule in rules)
        try:
            async with self._testing:
                hours = Hours(rules)
                if earlier := [start_ms for start_ms, _end_ms in ranges_of(rules, from_ms)]:
                    parts = segments(min(earlier), to_ms, now_ms, alerting.kept)
                    compared = Wanted(parts, node=alerting.history_of)
                    hours = await alerting.archive.read(compared, lambda: Hours(rules), lambda h: h)
                testing = Backtesting(rules, hours, from_ms, step_ms)
                for part in _parts(Segment(level, first_ms, to_ms), from_ms, step_ms):
                    wanted = Wanted([part], node=alerting.history_of, steps=steps)
                    recorded = await alerting.archive.read(wanted, Recorded, lambda found: found)
                    await start_thread(
                        partial(testing.go_on, recorded, part.end_ms), "orbit-alerts"
                    )
                return testing.result()
        except TooMuch as error:
            raise InvalidParams(problems=[str(error)]) from None


def _parts(whole: Segment, from_ms: int, step_ms: int) -> Iterator[Segment]:
    """What is read at once: all that fills the sums before the range, then so many windows."""
    start_ms, end_ms = whole.start_ms, from_ms
    while start_ms < whole.end_ms:
        if end_ms > start_ms:
            yield Segment(whole.level, start_ms, end_ms)
        start_ms, end_ms = end_ms, min(end_ms + PART * step_ms, whole.end_ms)


def _level(kept: Sequence[Level], from_ms: int, now_ms: int) -> int:
    """The finest level that is kept for all of it, the first window excepted."""
    for number, level in enumerate(kept):
        if from_ms >= now_ms - level.kept_ms - level.window_ms:
            return number
    raise BadRange(f"windows are kept for {duration_text(kept[-1].kept_ms)}: test a later range")
