"""What a channel is told: once, never too often, and the end where it was told the beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from builders import HOUR, MINUTE, SECOND, T0, an_item
from orbit_rpc_schema.alerts import Severity
from orbit_service.alerts import messages as bounds
from orbit_service.alerts.messages import Firing, Item, Mailbox, is_quiet, plan
from orbit_service.alerts.rules import Channel, Quiet

NOON = T0 - T0 % (24 * HOUR) + 12 * HOUR
LOOK = 10 * SECOND
NIGHT = {"from": "22:00", "to": "07:00"}


def a_channel(**fields: Any) -> Channel:
    return Channel.model_validate({"url": "log://", **fields})


def fires(alert: str = "a1", fired_ms: int = NOON, **fields: Any) -> Firing:
    """An alert that fires since then, for the channel "team" unless said otherwise."""
    about = {
        name: fields.pop(name)
        for name in ("channels", "silenced", "acknowledged")
        if name in fields
    }
    item = an_item(**{"alert": alert, "fired_ms": fired_ms, "severity": "warning", **fields})
    return Firing(item, **{"channels": ["team"], "silenced": False, "acknowledged": False, **about})


@dataclass
class People:
    """A channel, and whoever reads it; `sent` is all that they were told."""

    channel: Channel = field(default_factory=a_channel)
    mailbox: Mailbox = field(default_factory=Mailbox)
    sent: list[tuple[int, Item]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    messages_ms: list[int] = field(default_factory=list)
    _before: dict[str, Firing] = field(default_factory=dict)

    def look(
        self, now_ms: int, *firing: Firing, muted: Sequence[str] = (), lost: bool = False
    ) -> list[str]:
        """What they are told at a look at which this fires; `lost`: ends are not known."""
        now = {fire.item.alert: fire for fire in firing}
        ended = {
            alert: replace(fire.item, saying="resolved", at_ms=now_ms)
            for alert, fire in self._before.items()
            if alert not in now or now[alert].item.fired_ms != fire.item.fired_ms
        }
        self._before = now
        items, held = plan(
            "team", self.channel, self.mailbox, now, {} if lost else ended, now_ms, muted
        )
        # It is on the disk between two looks.
        self.mailbox = msgspec.msgpack.decode(msgspec.msgpack.encode(self.mailbox), type=Mailbox)
        self.sent += [(now_ms, item) for item in items]
        if items:
            self.messages_ms.append(now_ms)
            self.held.append(held)
        return [f"{item.alert} {item.saying}" for item in items]


@pytest.fixture
def people() -> People:
    return People()


# ---------------------------------------------------------------- beginnings and ends


def test_a_firing_is_told_once_and_so_is_its_end(people: People) -> None:
    assert people.look(NOON, fires()) == ["a1 firing"]
    assert people.look(NOON + LOOK, fires()) == []
    assert people.look(NOON + 2 * LOOK) == ["a1 resolved"]
    assert people.look(NOON + 3 * LOOK) == []


def test_one_message_holds_all_that_has_changed(people: People) -> None:
    people.look(NOON, fires("a"))

    assert people.look(NOON + LOOK, fires("b"), fires("c")) == [
        "b firing",
        "c firing",
        "a resolved",
    ]


def test_the_next_firing_is_told_again(people: People) -> None:
    people.look(NOON, fires())
    people.look(NOON + LOOK)

    assert people.look(NOON + MINUTE, fires(fired_ms=NOON + MINUTE)) == ["a1 firing"]


def test_a_firing_right_after_another_is_a_beginning_and_no_end(people: People) -> None:
    people.look(NOON, fires())

    assert people.look(NOON + LOOK, fires(fired_ms=NOON + LOOK)) == ["a1 firing"]
    assert people.look(NOON + 2 * LOOK) == ["a1 resolved"]


def test_a_channel_that_is_not_meant_is_told_nothing(people: People) -> None:
    assert people.look(NOON, fires(channels=["other"])) == []
    assert people.look(NOON + LOOK) == []
    assert people.mailbox == Mailbox()


def test_a_channel_that_is_not_meant_any_more_is_told_the_end(people: People) -> None:
    people.look(NOON, fires())

    assert people.look(NOON + LOOK, fires(channels=[])) == []
    assert people.look(NOON + 2 * LOOK) == ["a1 resolved"]


def test_a_channel_that_does_not_want_the_end_is_not_told() -> None:
    people = People(a_channel(resolved=False))
    people.look(NOON, fires())

    assert people.look(NOON + LOOK) == []
    assert people.look(NOON + MINUTE, fires(fired_ms=NOON + MINUTE)) == ["a1 firing"]


def test_an_end_that_nobody_knows_more_of_is_told_as_it_was(people: People) -> None:
    people.look(NOON, fires(summary="as it was"))
    people.look(NOON + LOOK, lost=True)

    at_ms, item = people.sent[-1]
    assert (item.saying, item.summary, item.at_ms) == ("resolved", "as it was", at_ms)


# ---------------------------------------------------------------- again, and worse


def test_what_still_fires_is_said_again_so_often() -> None:
    people = People(a_channel(repeat_every="1h"))
    people.look(NOON, fires())

    assert people.look(NOON + HOUR - 1, fires()) == []
    assert people.look(NOON + HOUR, fires()) == ["a1 still firing"]
    assert people.look(NOON + HOUR + LOOK, fires()) == []
    assert people.look(NOON + 2 * HOUR, fires()) == ["a1 still firing"]


def test_what_is_acknowledged_is_not_said_again_and_its_end_is() -> None:
    people = People(a_channel(repeat_every="1h"))
    people.look(NOON, fires())

    assert people.look(NOON + 9 * HOUR, fires(acknowledged=True)) == []
    assert people.look(NOON + 10 * HOUR) == ["a1 resolved"]


def test_nothing_is_said_again_where_that_is_not_wanted() -> None:
    people = People(a_channel(repeat_every=0))
    people.look(NOON, fires())

    assert people.look(NOON + 1_000 * HOUR, fires()) == []


@pytest.mark.parametrize("acknowledged", [False, True])
def test_what_gets_worse_is_said_once(people: People, acknowledged: bool) -> None:
    people.look(NOON, fires(severity="warning"))
    worse = fires(severity="critical", acknowledged=acknowledged)

    assert people.look(NOON + LOOK, worse) == ["a1 escalated"]
    assert people.look(NOON + 2 * LOOK, worse) == []


def test_what_gets_better_has_not_escalated(people: People) -> None:
    people.look(NOON, fires(severity="critical"))

    assert people.look(NOON + LOOK, fires(severity="info")) == []
    assert people.look(NOON + 2 * LOOK) == ["a1 resolved"]


# ---------------------------------------------------------------- silences


def test_of_what_is_silenced_nothing_is_said(people: People) -> None:
    assert people.look(NOON, fires(silenced=True)) == []
    assert people.look(NOON + 9 * HOUR, fires(silenced=True, severity="critical")) == []
    assert people.look(NOON + 10 * HOUR, muted=["a1"]) == []


def test_what_fires_when_the_silence_ends_is_said_then(people: People) -> None:
    people.look(NOON, fires(silenced=True))

    assert people.look(NOON + HOUR, fires()) == ["a1 firing"]


def test_an_end_in_a_silence_is_not_said_and_not_later(people: People) -> None:
    people.look(NOON, fires())

    assert people.look(NOON + LOOK, muted=["a1"]) == []
    assert people.look(NOON + 2 * LOOK) == []


# ---------------------------------------------------------------- quiet hours


def local(hour: int, minute: int = 0, second: int = 0, day: int = 10, month: int = 1) -> int:
    return int(datetime(2024, month, day, hour, minute, second, tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("quiet", "now_ms", "severity", "expected"),
    [
        pytest.param(NIGHT, local(21, 59, 59), "info", False, id="before"),
        pytest.param(NIGHT, local(22), "info", True, id="from"),
        pytest.param(NIGHT, local(0), "warning", True, id="over midnight"),
        pytest.param(NIGHT, local(6, 59, 59), "info", True, id="to the end"),
        pytest.param(NIGHT, local(7), "info", False, id="and not at it"),
        pytest.param(NIGHT, local(0), "critical", False, id="critical"),
        pytest.param({**NIGHT, "severities": ["critical"]}, local(0), "info", False, id="others"),
        pytest.param({"from": "09:00", "to": "17:00"}, local(9), "info", True, id="by day"),
        pytest.param({"from": "09:00", "to": "17:00"}, local(17), "info", False, id="until then"),
        pytest.param({"from": "09:00", "to": "17:00"}, local(8, 59), "info", False, id="not yet"),
        pytest.param(
            {**NIGHT, "timezone": "Europe/Berlin"}, local(21), "info", True, id="elsewhere, winter"
        ),
        pytest.param(
            {**NIGHT, "timezone": "Europe/Berlin"},
            local(20, month=7),
            "info",
            True,
            id="elsewhere, summer",
        ),
        pytest.param(
            {**NIGHT, "timezone": "Europe/Berlin"}, local(6), "info", False, id="they are up"
        ),
        pytest.param(
            {**NIGHT, "timezone": "Asia/Kathmandu"}, local(16, 15), "info", True, id="a quarter"
        ),
    ],
)
def test_a_channel_is_quiet_from_then_to_then_where_it_is(
    quiet: dict[str, Any], now_ms: int, severity: Severity, expected: bool
) -> None:
    assert is_quiet(Quiet.model_validate(quiet), severity, now_ms) is expected


def test_without_quiet_hours_none_is_quiet() -> None:
    assert not is_quiet(None, "info", NOON)


@pytest.fixture
def sleepers() -> People:
    return People(a_channel(quiet=NIGHT))


def test_what_fires_at_night_and_still_in_the_morning_is_told_then(sleepers: People) -> None:
    assert sleepers.look(local(23), fires(fired_ms=local(23))) == []
    assert sleepers.look(local(7), fires(fired_ms=local(23))) == ["a1 firing"]
    assert (sleepers.held, sleepers.mailbox.held_back) == ([0], 1)


def test_what_came_and_went_at_night_is_counted(sleepers: People) -> None:
    for minute in (0, 10, 20):
        sleepers.look(local(23, minute), fires(fired_ms=local(23, minute)))
        sleepers.look(local(23, minute + 5))

    assert sleepers.look(local(7), fires("a2", local(7))) == ["a2 firing"]
    assert sleepers.mailbox.held_back == 3


def test_an_end_at_night_is_told_in_the_morning_as_it_was(sleepers: People) -> None:
    sleepers.look(local(21), fires(fired_ms=local(21)))

    assert sleepers.look(local(23)) == []
    assert sleepers.look(local(7)) == ["a1 resolved"]
    assert sleepers.sent[-1][1].at_ms == local(23)


def test_what_is_critical_wakes_and_the_rest_is_told_with_the_number_held_back(
    sleepers: People,
) -> None:
    low, high = fires("low", local(23)), fires("high", local(23), severity="critical")
    sleepers.look(local(23), low)

    assert sleepers.look(local(23, 1), low, high) == ["high firing"]
    assert sleepers.held == [1]


def test_what_is_held_back_is_counted_once_whoever_is_told_meanwhile(sleepers: People) -> None:
    low = fires("low", local(23))
    for minute in range(10):
        sleepers.look(local(23, minute), low, fires(f"c{minute}", severity="critical"))

    assert sleepers.mailbox.held_back == 1


def test_what_is_due_again_at_night_is_said_in_the_morning() -> None:
    people = People(a_channel(quiet=NIGHT, repeat_every="1h"))
    people.look(local(21, 30), fires())

    assert people.look(local(23), fires()) == []
    assert people.look(local(31 - 24, day=11), fires()) == ["a1 still firing"]
    assert people.mailbox.held_back == 0


# ---------------------------------------------------------------- the bound


def test_no_more_messages_are_sent_in_an_hour_than_the_channel_takes() -> None:
    people = People(a_channel(max_per_hour=2))
    for minute in range(6):
        people.look(NOON + minute * MINUTE, *(fires(f"a{n}") for n in range(minute + 1)))
    assert people.messages_ms == [NOON, NOON + MINUTE]

    all_six = [fires(f"a{n}") for n in range(6)]
    assert people.look(NOON + HOUR - 1, *all_six) == []
    assert people.look(NOON + HOUR, *all_six) == [f"a{n} firing" for n in range(2, 6)]
    assert people.mailbox.held_back == 4


def test_an_end_that_has_no_place_is_told_when_there_is_one() -> None:
    people = People(a_channel(max_per_hour=1))
    people.look(NOON, fires())

    assert people.look(NOON + MINUTE) == []
    assert people.look(NOON + HOUR) == ["a1 resolved"]
    assert people.sent[-1][1].at_ms == NOON + MINUTE


def test_the_end_of_a_later_firing_that_had_no_place_is_not_told_for_it() -> None:
    people = People(a_channel(max_per_hour=1))
    people.look(NOON, fires())
    people.look(NOON + MINUTE)
    people.look(NOON + 2 * MINUTE, fires(fired_ms=NOON + 2 * MINUTE))
    people.look(NOON + 3 * MINUTE)

    assert people.look(NOON + HOUR) == ["a1 resolved"]
    assert people.sent[-1][1].fired_ms == NOON


def test_of_a_beginning_that_had_no_place_the_end_is_not_told() -> None:
    people = People(a_channel(max_per_hour=1))
    people.look(NOON, fires("a"))
    people.look(NOON + MINUTE, fires("a"), fires("b"))

    assert people.look(NOON + HOUR, fires("a")) == []
    assert people.look(NOON + HOUR + LOOK, fires("a"), fires("c")) == ["c firing"]
    assert people.held == [0, 1]


def test_what_is_held_back_has_a_bound_and_is_counted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "MAX_HELD", 3)
    people = People(a_channel(quiet=NIGHT))
    for number in range(10):
        firing = fires(f"a{number}", local(23))
        people.look(local(23, number), firing)
        people.look(local(23, number, 30), firing)

    assert people.mailbox.held_back == 10
    assert len(people.mailbox.held) <= 3


# ---------------------------------------------------------------- what always holds


class World(NamedTuple):
    """A course of looks at three alerts that come and go: when, what fires, what is muted."""

    looks: list[tuple[int, dict[str, Firing], list[str]]]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    now_ms, fired, looks = local(20), dict[str, int](), []
    severities: dict[str, Severity] = {}
    for _ in range(draw(st.integers(1, 25))):
        now_ms += draw(st.sampled_from([LOOK, MINUTE, 20 * MINUTE, HOUR, 3 * HOUR]))
        muted = []
        firing = {}
        for alert in "abc":
            turn = draw(st.sampled_from(["stay", "stay", "turn", "again", "worse"]))
            silenced, acknowledged = draw(st.booleans()), draw(st.booleans())
            if turn == "turn" and alert in fired:
                del fired[alert]
                muted += [alert] * silenced
            elif turn == "turn" or (turn == "again" and alert in fired):
                fired[alert] = now_ms
                severities[alert] = draw(st.sampled_from(["info", "warning"]))
            elif turn == "worse" and alert in fired:
                severities[alert] = "critical"
            if alert in fired:
                firing[alert] = fires(
                    alert,
                    fired[alert],
                    severity=severities[alert],
                    silenced=silenced,
                    acknowledged=acknowledged,
                )
        looks.append((now_ms, firing, muted))
    return World(looks)


channels = st.builds(
    a_channel,
    max_per_hour=st.integers(1, 4),
    repeat_every=st.sampled_from([0, MINUTE, HOUR]),
    resolved=st.booleans(),
    quiet=st.sampled_from([None, NIGHT, {**NIGHT, "severities": ["info"]}]),
)
told = settings(max_examples=40, deadline=None, derandomize=True)


def told_of(channel: Channel, world: World) -> People:
    people = People(channel)
    for now_ms, firing, muted in world.looks:
        people.look(now_ms, *firing.values(), muted=muted)
    return people


def by_look(people: People) -> Mapping[int, list[Item]]:
    found: dict[int, list[Item]] = {}
    for at_ms, item in people.sent:
        found.setdefault(at_ms, []).append(item)
    return found


@told
@given(channels, worlds())
def test_no_firing_begins_twice(channel: Channel, world: World) -> None:
    begun = [(i.alert, i.fired_ms) for _, i in told_of(channel, world).sent if i.saying == "firing"]

    assert len(begun) == len(set(begun))


@told
@given(channels, worlds())
def test_no_end_is_told_without_its_beginning_and_none_twice(
    channel: Channel, world: World
) -> None:
    open_: dict[str, int] = {}
    for _, item in told_of(channel, world).sent:
        if item.saying == "firing":
            open_[item.alert] = item.fired_ms
        else:
            assert open_[item.alert] == item.fired_ms
        if item.saying == "resolved":
            assert channel.resolved
            del open_[item.alert]


@told
@given(channels, worlds())
def test_in_any_hour_are_no_more_messages_than_it_takes(channel: Channel, world: World) -> None:
    sent = told_of(channel, world).messages_ms
    for at_ms in sent:
        assert sum(at_ms - HOUR < other <= at_ms for other in sent) <= channel.max_per_hour


@told
@given(channels, worlds())
def test_in_quiet_hours_nothing_is_told_that_is_to_be_held_back(
    channel: Channel, world: World
) -> None:
    for at_ms, item in told_of(channel, world).sent:
        assert item.saying == "resolved" or not is_quiet(channel.quiet, item.severity, at_ms)


@told
@given(channels, worlds())
def test_of_what_is_silenced_nothing_is_ever_said(channel: Channel, world: World) -> None:
    said = by_look(told_of(channel, world))
    for now_ms, firing, muted in world.looks:
        silent = {*muted, *(alert for alert, fire in firing.items() if fire.silenced)}
        assert not silent & {item.alert for item in said.get(now_ms, ())}


@told
@given(channels, worlds())
def test_nothing_is_repeated_too_soon_or_after_somebody_is_at_it(
    channel: Channel, world: World
) -> None:
    said = by_look(told_of(channel, world))
    last: dict[str, int] = {}
    for now_ms, firing, _muted in world.looks:
        for item in said.get(now_ms, ()):
            if item.saying == "still firing":
                assert now_ms - last[item.alert] >= channel.repeat_every > 0
                assert not firing[item.alert].acknowledged
            last[item.alert] = now_ms


@told
@given(channels, worlds())
def test_an_escalation_is_said_once_of_a_firing(channel: Channel, world: World) -> None:
    known: dict[tuple[str, int], Severity] = {}
    for _, item in told_of(channel, world).sent:
        firing = (item.alert, item.fired_ms)
        if item.saying == "escalated":
            assert bounds.RANKS[item.severity] > bounds.RANKS[known[firing]]
        known[firing] = item.severity


@told
@given(channels, worlds())
def test_when_the_channel_may_be_told_all_that_fires_has_been_told(
    channel: Channel, world: World
) -> None:
    people = told_of(channel, world)
    noon_ms = world.looks[-1][0] // (24 * HOUR) * 24 * HOUR + 36 * HOUR  # not quiet, nothing sent
    firing = {
        alert: Firing(fire.item, fire.channels, False, False)
        for alert, fire in world.looks[-1][1].items()
    }
    people.look(noon_ms, *firing.values())

    assert {a: t.fired_ms for a, t in people.mailbox.told.items()} == {
        alert: fire.item.fired_ms for alert, fire in firing.items()
    }
    assert {a: t.severity for a, t in people.mailbox.told.items()} == {
        alert: fire.item.severity for alert, fire in firing.items()
    }
