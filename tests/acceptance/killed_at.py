"""
`orbit-metrics serve` that kills itself at a point with a name.

    python killed_at.py POINT N      at the N-th time that it gets there; 0: never

Nothing of it is in the product: functions are wrapped from outside, and `kill -9` is
what strikes. What is told to `main` apart from the point stands in the environment.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

from orbit_service.entry import main
from orbit_service.state import journal, store
from orbit_service.state.intake import Intake
from orbit_service.transport.unix import Connection


class Countdown:
    """Dies when it has been called so often."""

    def __init__(self, times: int) -> None:
        self._left = times

    def __call__(self) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def between_reading_and_committing(die: Countdown) -> None:
    """What was read is counted in memory, and the writer has not begun."""
    _wrap(store.Store, "write", before=die)


def in_the_middle_of_the_commit(die: Countdown) -> None:
    """The row is in the transaction, and the transaction is open."""
    _at_statement("COMMIT", die)


def in_the_middle_of_a_checkpoint(die: Countdown) -> None:
    """The old checkpoint and the journal are deleted, in a transaction that is open."""
    journal.CHECKPOINT_BYTES = 0
    _at_statement("INSERT INTO checkpoint", die)


def between_commit_and_acknowledging(die: Countdown) -> None:
    """It is on the disk, and the worker has not been told."""
    _wrap(Intake, "committed", before=die)


def after_acknowledging(die: Countdown) -> None:
    """The worker has been told, and forgets."""
    acknowledge = Connection._acknowledge

    def acknowledge_and_die(self: Connection) -> None:
        before = self._acked_sent
        acknowledge(self)
        if self._acked_sent > before:
            die()

    Connection._acknowledge = acknowledge_and_die  # type: ignore[method-assign]


POINTS: dict[str, Callable[[Countdown], None]] = {
    act.__name__: act
    for act in (
        between_reading_and_committing,
        in_the_middle_of_the_commit,
        in_the_middle_of_a_checkpoint,
        between_commit_and_acknowledging,
        after_acknowledging,
    )
}


def _wrap(owner: type, name: str, before: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        before()
        return original(*arguments, **named)

    setattr(owner, name, wrapped)


def _at_statement(beginning: str, die: Countdown) -> None:
    class Deadly(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql.startswith(beginning):
                die()
            return super().execute(sql, *parameters)

    connect = sqlite3.connect

    def connect_deadly(*arguments: Any, **named: Any) -> sqlite3.Connection:
        return connect(*arguments, **named, factory=Deadly)

    sqlite3.connect = connect_deadly  # type: ignore[assignment]


if __name__ == "__main__":
    point, times = sys.argv[1], int(sys.argv[2])
    POINTS[point](Countdown(times))
    sys.argv[1:] = ["serve"]
    main()
