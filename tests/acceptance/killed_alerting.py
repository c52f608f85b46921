"""
`orbit-metrics serve` that kills itself at a point on an alert's way to people.

    python killed_alerting.py POINT N     at the N-th time that it gets there; 0: never

As in killed_at.py nothing of it is in the product. Windows close at once, and rules are
looked at twice a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from killed_at import Countdown, close_windows_at_once

from orbit_service.alerting import runner
from orbit_service.alerts.actions import Performer
from orbit_service.alerts.records import Entry, Unwritten
from orbit_service.alerts.store import AlertStore
from orbit_service.entry import main
from orbit_service.notify.courier import AppriseCourier


def before_the_firing_is_written(die: Countdown) -> None:
    """It is decided on in memory alone."""
    _at_writing(lambda entry: entry.kind == "firing", before=die)


def after_the_firing_is_written(die: Countdown) -> None:
    """State, audit, message and action are on the disk, and nothing else knows."""
    _at_writing(lambda entry: entry.kind == "firing", after=die)


def before_it_is_sent(die: Countdown) -> None:
    """It was taken from the outbox."""
    _wrap_send(before=die)


def after_it_is_sent(die: Countdown) -> None:
    """The receiver has it, and nobody here does know."""
    _wrap_send(after=die)


def before_it_is_marked_as_sent(die: Countdown) -> None:
    """It is known in memory."""
    _at_writing(lambda entry: entry.kind == "notified", before=die)


def after_it_is_marked_as_sent(die: Countdown) -> None:
    """It has left the outbox."""
    _at_writing(lambda entry: entry.kind == "notified", after=die)


def before_the_action_is_performed(die: Countdown) -> None:
    """It is on the disk as begun."""
    _wrap_perform(before=die)


def after_the_action_is_performed(die: Countdown) -> None:
    """It was done, and is on the disk as begun."""
    _wrap_perform(after=die)


def before_the_action_is_marked_as_done(die: Countdown) -> None:
    """It is known in memory."""
    _at_writing(lambda entry: entry.details.get("outcome") == "done", before=die)


POINTS: dict[str, Callable[[Countdown], None]] = {
    act.__name__: act
    for act in (
        before_the_firing_is_written,
        after_the_firing_is_written,
        before_it_is_sent,
        after_it_is_sent,
        before_it_is_marked_as_sent,
        after_it_is_marked_as_sent,
        before_the_action_is_performed,
        after_the_action_is_performed,
        before_the_action_is_marked_as_done,
    )
}


def _nothing() -> None:
    """Where it goes on."""


def _at_writing(
    what: Callable[[Entry], bool],
    before: Callable[[], None] = _nothing,
    after: Callable[[], None] = _nothing,
) -> None:
    write = AlertStore.write

    def wrapped(self: AlertStore, unwritten: Unwritten) -> None:
        there = any(what(entry) for entry in unwritten.entries)
        if there:
            before()
        write(self, unwritten)
        if there:
            after()

    AlertStore.write = wrapped  # type: ignore[method-assign]


def _wrap_send(before: Callable[[], None] = _nothing, after: Callable[[], None] = _nothing) -> None:
    send = AppriseCourier.send

    def wrapped(*arguments: Any) -> None:
        before()
        send(*arguments)
        after()

    AppriseCourier.send = wrapped  # type: ignore[method-assign]


def _wrap_perform(
    before: Callable[[], None] = _nothing, after: Callable[[], None] = _nothing
) -> None:
    perform = Performer.perform

    async def wrapped(*arguments: Any) -> Any:
        before()
        outcome = await perform(*arguments)
        after()
        return outcome

    Performer.perform = wrapped  # type: ignore[method-assign]


if __name__ == "__main__":
    point, times = sys.argv[1], int(sys.argv[2])
    close_windows_at_once()
    runner.LOOK_SECONDS = 0.5
    POINTS[point](Countdown(times))
    sys.argv[1:] = ["serve"]
    main()
