"""
What the service asks of a history, whichever database it is.

Windows are added once, by number of publication; reading gives rows and the number
up to which they are in them, in one snapshot, so that a caller can add what it
holds itself and count nothing twice. Every method connects if it has to, may take
long, and raises HistoryFailed when the database does not do its work.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from orbit_service.core.outbox import ErrorText, Key, Publication
from orbit_service.core.rollup import Segment
from orbit_service.core.stats import Stats


class HistoryFailed(Exception):
    """The database cannot be used now; the text says why."""


# Takes one row: the start of its window (ms), the node, the key, the runs.
Add = Callable[[int, str, Key, Stats], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows: None is all of them. `total` asks for the sums that nodes keep of all runs."""

    segments: Sequence[Segment]
    total: bool = False
    node: str | None = None
    worker: str | None = None
    pipeline: str | None = None
    runs: bool = True
    steps: bool = False
    errors: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """One service that writes to this history, as it last said."""

    node: str
    instance: str
    at_ms: int  # when it said so, by the database's clock
    alive: bool  # its lease has not ended
    state: bytes | None


class HistoryRefused(HistoryFailed):
    """The database works, and does not take this; it would not take it again either."""


class AnotherIsWriting(HistoryFailed):
    """Somebody else writes as this instance; `number` is the newest publication of it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"publication {number} is there, and was not made here")


class History(Protocol):
    """A database of windows. `unreadable` rows were passed over, and the log tells why."""

    unreadable: int

    def apply(
        self, node: str, instance: str, publications: Sequence[Publication], ours: Container[str]
    ) -> int:
        """Add publications that are not there yet, in one transaction; the highest number.

        Raises AnotherIsWriting where the newest that is there has none of our tokens.
        """

    def maintain(self, node: str) -> bool:
        """Roll up and expire some of a node's windows; True while there is more to do."""

    def abandoned(self) -> list[str]:
        """Nodes that nobody writes for: their windows are anybody's to look after."""

    def renew(self, node: str, instance: str, state: bytes, ours: Container[str]) -> list[Member]:
        """Renew this instance's lease, with its state; the others that call themselves alike.

        Raises AnotherIsWriting as `apply` does, and where somebody else renews it too.
        """

    def leave(self, instance: str) -> None:
        """End the lease: this instance stops, and is not lost."""

    def members(self, known: Mapping[str, int]) -> list[Member]:
        """Every instance, as it last said; no state of one of which that `at_ms` is known."""

    def read(self, wanted: Wanted, add: Add) -> dict[str, tuple[int, str]]:
        """Give each row to `add`; by instance, the newest publication in them and its token."""

    def error_texts(self, wanted: Wanted) -> dict[tuple[str, Key], ErrorText]:
        """The newest error of each error type, by node and key."""

    def close(self) -> None:
        """Give back what is open."""
