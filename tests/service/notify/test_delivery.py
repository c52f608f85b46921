"""Delivery: in order, again until it is taken, and no channel at the cost of another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from builders import HOUR, SECOND, T0, a_message, an_item
from orbit_service.alerts.records import Parcel
from orbit_service.notify import delivery as delivery_
from orbit_service.notify.courier import AppriseCourier, NotSent
from orbit_service.notify.delivery import Delivery, Tally, retry_in_ms

SECRET = "T0PSECRET"


class Shelf:
    """An outbox in memory, as durable as the test."""

    def __init__(self) -> None:
        self.now_ms = T0
        self.parcels: list[Parcel] = []
        self.left: list[str] = []  # keys of what was delivered, in order
        self.given_up: list[tuple[str, str]] = []  # key, why
        self.broken = False  # nothing can be written
        self.looks = 0

    def put(self, key: str, channel: str = "a", **fields) -> None:
        message = a_message(an_item(), key=key)
        made = {"created_ms": self.now_ms, "next_ms": 0, "tries": 0, **fields}
        self.parcels.append(Parcel(key=key, channel=channel, message=message, **made))

    async def due(self, channel, now_ms):
        self.looks += 1
        mine = [p for p in self.parcels if p.channel == channel and p.next_ms <= now_ms]
        return [replace(parcel) for parcel in mine][:20]

    async def delivered(self, parcel, now_ms):
        if self.broken:
            raise OSError("the disk is full")
        self.left.append(parcel.key)
        self._remove(parcel)

    async def failed(self, parcel, why, next_ms):
        for mine in self.parcels:
            if mine.key == parcel.key:
                # The clock stands still: what is to wait for it is tried at the next look.
                mine.tries, mine.next_ms = mine.tries + 1, min(next_ms, self.now_ms)

    async def gave_up(self, parcel, why, now_ms):
        self.given_up.append((parcel.key, why))
        self._remove(parcel)

    def _remove(self, parcel):
        self.parcels = [mine for mine in self.parcels if mine.key != parcel.key]


class Hand:
    """A courier that does what a test wants."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []  # address, key
        self.fails: dict[str, int] = {}  # by key: how often
        self.held: dict[str, threading.Event] = {}  # by address: until then it hangs
        self.fault: Exception | None = None
        self.hanging = 0

    def send(self, address, message):
        if address in self.held:
            self.hanging += 1
            self.held[address].wait(60)
        if self.fault is not None:
            raise self.fault
        if self.fails.get(message.key, 0):
            self.fails[message.key] -= 1
            raise NotSent("HTTP 500")
        self.sent.append((address, message.key))

    @property
    def keys(self):
        return [key for _address, key in self.sent]


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr(delivery_, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(delivery_, "FIRST_RETRY_MS", 10)
    monkeypatch.setattr(delivery_, "LONGEST_RETRY_MS", 20)


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def hand():
    return Hand()


@pytest.fixture
async def delivery(shelf, hand, a_channel):
    delivery = Delivery(shelf, hand, lambda: shelf.now_ms)
    delivery.use({"a": a_channel("json://a/"), "b": a_channel("json://b/")})
    yield delivery
    for event in hand.held.values():
        event.set()
    await delivery.stop()


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(40):
        while not is_so():
            await asyncio.sleep(0.002)  # for threads, of which the loop hears nothing


async def test_what_waits_goes_out_in_order_each_to_its_channel(delivery, shelf, hand):
    for key in ("1", "2", "3"):
        shelf.put(key)
    shelf.put("4", "b")
    delivery.wake("a")

    await until(lambda: not shelf.parcels)
    assert [key for key in shelf.left if key != "4"] == ["1", "2", "3"]
    assert ("json://b/", "4") in hand.sent
    assert delivery.tallies == {"a": Tally(sent=3), "b": Tally(sent=1)}


async def test_more_than_one_handful_goes_out_without_a_pause(delivery, shelf, monkeypatch):
    monkeypatch.setattr(delivery_, "LOOK_SECONDS", 60)
    await until(lambda: delivery.tallies)
    for n in range(45):
        shelf.put(str(n))
    delivery.wake("a")

    await until(lambda: delivery.tallies["a"].sent == 45)


async def test_what_is_not_taken_is_sent_again_and_those_behind_it_wait(delivery, shelf, hand):
    hand.fails = {"1": 2}
    shelf.put("1")
    shelf.put("2")

    await until(lambda: not shelf.parcels)
    assert shelf.left == ["1", "2"]
    assert delivery.tallies["a"] == Tally(sent=2, failed=2, trouble=None)


async def test_trouble_says_why_until_something_is_taken(delivery, shelf, hand):
    hand.fails = {"1": 1_000}
    shelf.put("1")
    await until(lambda: delivery.tallies["a"].failed)
    assert delivery.tallies["a"].trouble == "HTTP 500"

    hand.fails = {}
    await until(lambda: shelf.left)
    assert delivery.tallies["a"].trouble is None


async def test_what_alone_is_refused_lets_others_pass_in_the_end(delivery, shelf, hand):
    hand.fails = {"1": 1_000}
    shelf.put("1")
    shelf.put("2")

    await until(lambda: shelf.left == ["2"])
    assert shelf.parcels[0].tries >= delivery_.TRIES_ALONE


@pytest.mark.parametrize(("age", "given_up"), [(24 * HOUR - SECOND, False), (24 * HOUR, True)])
async def test_after_a_day_it_is_given_up_and_not_before(delivery, shelf, hand, age, given_up):
    hand.fails = {"1": 1_000}
    shelf.put("1", created_ms=T0 - age)

    await until(lambda: delivery.tallies["a"].failed)
    await until(lambda: shelf.given_up or shelf.parcels[0].tries)
    assert shelf.given_up == ([("1", "HTTP 500")] if given_up else [])
    assert delivery.tallies["a"].given_up == given_up


async def test_a_day_passes_and_what_was_tried_all_day_is_given_up(delivery, shelf, hand):
    hand.fails = {"1": 1_000}
    shelf.put("1")
    await until(lambda: shelf.parcels[0].tries > 2)
    assert not shelf.given_up

    shelf.now_ms += 24 * HOUR
    await until(lambda: shelf.given_up)
    shelf.put("2")
    await until(lambda: shelf.left == ["2"])


async def test_a_channel_that_hangs_holds_up_no_other(delivery, shelf, hand):
    hand.held["json://a/"] = threading.Event()
    shelf.put("1", "a")
    shelf.put("2", "b")

    await until(lambda: shelf.left == ["2"])
    assert [parcel.key for parcel in shelf.parcels] == ["1"]


async def test_a_send_that_does_not_come_back_is_left_and_has_no_second_beside_it(
    delivery, shelf, hand, monkeypatch
):
    monkeypatch.setattr(delivery_, "SEND_SECONDS", 0.01)
    hand.held["json://a/"] = threading.Event()
    shelf.put("1")

    await until(lambda: hand.hanging and delivery.tallies["a"].failed >= 3)
    assert hand.hanging == 1
    assert delivery.tallies["a"].trouble == "the send before it has not come back"

    # It was taken after all: that is noted, and it is not sent again.
    hand.held["json://a/"].set()
    await until(lambda: shelf.left == ["1"])
    assert hand.keys == ["1"]


async def test_what_hangs_at_an_old_address_holds_up_nothing_at_the_new_one(
    delivery, shelf, hand, a_channel, monkeypatch
):
    monkeypatch.setattr(delivery_, "SEND_SECONDS", 0.01)
    hand.held["json://a/"] = threading.Event()
    shelf.put("1")
    await until(lambda: delivery.tallies["a"].failed)

    monkeypatch.setattr(delivery_, "SEND_SECONDS", 10)
    delivery.use({"a": a_channel("json://new/")})
    await until(lambda: shelf.left == ["1"])
    assert hand.sent == [("json://new/", "1")]


async def test_threads_that_do_not_come_back_are_bounded(
    delivery, shelf, hand, a_channel, monkeypatch
):
    monkeypatch.setattr(delivery_, "SEND_SECONDS", 0.01)
    monkeypatch.setattr(delivery_, "MAX_LEFT", 2)
    for n in range(4):
        address = f"json://{n}/"
        hand.held[address] = threading.Event()
        delivery.use({"a": a_channel(address)})
        with pytest.raises(NotSent) as refused:
            await delivery.send_now("a", a_message(key=str(n)))

    assert str(refused.value) == "2 sends have not come back"
    await until(lambda: hand.hanging >= 2)
    assert hand.hanging == 2


async def test_what_was_taken_but_could_not_be_marked_is_not_sent_again(delivery, shelf, hand):
    shelf.broken = True
    shelf.put("1")
    await until(lambda: hand.sent)

    shelf.broken = False
    await until(lambda: shelf.left == ["1"])
    assert hand.keys == ["1"]


async def test_after_a_kill_what_was_taken_is_sent_again_under_the_same_key(
    delivery, shelf, hand, a_channel
):
    shelf.broken = True  # it was killed before it could mark it
    shelf.put("1")
    await until(lambda: hand.sent)
    await delivery.stop()

    shelf.broken = False
    after = Delivery(shelf, hand, lambda: shelf.now_ms)
    after.use({"a": a_channel("json://a/")})
    await until(lambda: shelf.left == ["1"])
    await after.stop()
    assert hand.keys == ["1", "1"]


async def test_an_outbox_that_fails_is_logged_once_and_looked_at_again(
    delivery, shelf, hand, logged
):
    def said() -> int:
        return sum("the outbox of a failed" in line for line in logged)

    shelf.broken = True
    shelf.put("1")
    await until(said)
    looks = shelf.looks
    await until(lambda: shelf.looks > looks + 6)
    shelf.broken = False
    await until(lambda: shelf.left)

    assert said() == 1


async def test_a_channel_that_is_gone_is_sent_nothing(delivery, shelf, hand, a_channel):
    delivery.use({"b": a_channel("json://b/")})
    shelf.put("1", "a")
    shelf.put("2", "b")
    delivery.wake("a")

    await until(lambda: shelf.left == ["2"])
    assert hand.keys == ["2"]
    assert delivery.tallies.keys() == {"b"}


async def test_a_test_is_sent_at_once_and_counts_for_nothing(delivery, hand):
    await delivery.send_now("b", a_message(test=True, key="t"))

    assert hand.sent == [("json://b/", "t")]
    assert delivery.tallies["b"] == Tally()


async def test_a_test_that_fails_says_why(delivery, hand):
    hand.fails = {"t": 1}
    with pytest.raises(NotSent, match="HTTP 500"):
        await delivery.send_now("b", a_message(key="t"))
    with pytest.raises(NotSent, match="there is no such channel"):
        await delivery.send_now("c", a_message())


async def test_a_stop_lets_a_send_that_is_under_way_end(delivery, shelf, hand, monkeypatch):
    monkeypatch.setattr(delivery_, "STOP_SECONDS", 60)
    hand.held["json://a/"] = threading.Event()
    shelf.put("1")
    shelf.put("2")
    await until(lambda: hand.hanging)
    stopping = asyncio.create_task(delivery.stop())
    await until(lambda: delivery._stopping)
    hand.held["json://a/"].set()

    await stopping
    assert shelf.left == ["1"]


async def test_a_stop_does_not_wait_for_what_hangs(delivery, shelf, hand, monkeypatch):
    monkeypatch.setattr(delivery_, "STOP_SECONDS", 0.01)
    hand.held["json://a/"] = threading.Event()
    shelf.put("1")
    await until(lambda: hand.hanging)

    await delivery.stop()
    assert not shelf.left


async def test_a_fault_of_the_courier_is_told_by_its_kind_alone(delivery, shelf, hand, logged):
    hand.fault = ValueError(f"json://user:{SECRET}@host")
    shelf.put("1")
    await until(lambda: delivery.tallies["a"].failed)

    assert delivery.tallies["a"].trouble == "it failed with ValueError"
    assert "a message did not reach the channel a: it failed with ValueError" in "".join(logged)
    assert SECRET not in "".join(logged)


async def test_a_webhook_that_fails_once_gets_it_again_under_the_same_key(
    shelf, receiver, a_channel, logged
):
    receiver.statuses = [500]
    delivery = Delivery(shelf, AppriseCourier(), lambda: shelf.now_ms)
    delivery.use({"a": a_channel(f"http://user:{SECRET}@{receiver.address}/{SECRET}")})
    shelf.put("k-7")

    await until(lambda: shelf.left)
    await delivery.stop()
    assert [request.headers["Idempotency-Key"] for request in receiver.requests] == ["k-7"] * 2
    assert receiver.bodies[0] == receiver.bodies[1]
    assert "HTTP 500 Internal Server Error" in "".join(logged)
    assert SECRET not in "".join(logged) + repr(delivery) + repr(delivery.tallies)


@pytest.mark.parametrize(
    ("tries", "most"),
    [(1, 5), (2, 10), (3, 20), (8, 640), (9, 900), (10, 900), (10_000, 900)],
)
def test_each_failure_doubles_the_wait_up_to_a_quarter_of_an_hour(monkeypatch, tries, most):
    monkeypatch.undo()

    assert 0.75 * most * SECOND <= retry_in_ms(tries) <= most * SECOND
