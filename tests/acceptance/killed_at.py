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

from orbit_service.core import outbox
from orbit_service.entry import main
from orbit_service.history import publisher, sql, upkeep
from orbit_service.history.sql import SqlHistory
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


def close_windows_at_once() -> None:
    """Half a second after they open, so that a kill finds them on their way to the history.

    Minutes are rolled up as they begin, so that all that follows comes late.
    """
    outbox.GRACE_MS = 500 - outbox.WINDOW_MS
    publisher.MAINTAIN_SECONDS = 0.5
    upkeep.SETTLED_S = -60


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


def before_the_history_takes_a_publication(die: Countdown) -> None:
    """It is on the disk as waiting, and nobody else has it."""
    _wrap(SqlHistory, "apply", before=die)


def in_the_middle_of_publishing(die: Countdown) -> None:
    """Its rows are in the history's transaction, and the transaction is open."""
    _wrap(sql, "add_rows", before=lambda: None, after=die)


def after_the_history_has_taken_a_publication(die: Countdown) -> None:
    """The history has it, and the state does not know."""
    _wrap(SqlHistory, "apply", before=lambda: None, after=die)


def in_the_middle_of_rolling_up(die: Countdown) -> None:
    """Minutes are made, and the mark that says so is not."""
    _wrap(upkeep, "add_rows", before=lambda: None, after=die)


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
        before_the_history_takes_a_publication,
        in_the_middle_of_publishing,
        after_the_history_has_taken_a_publication,
        in_the_middle_of_rolling_up,
        after_acknowledging,
    )
}


def _wrap(
    owner: Any, name: str, before: Callable[[], None], after: Callable[[], None] = lambda: None
) -> None:
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        before()
        result = original(*arguments, **named)
        after()
        return result

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
    close_windows_at_once()
    POINTS[point](Countdown(times))
    sys.argv[1:] = ["serve"]
    main()
