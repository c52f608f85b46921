"""
The books: what became of every result that was handed to a client.

    recorded = counted + repeated + late + refused + dropped + waiting

`recorded` and `dropped` are the worker's own figures, which each of its messages
carries; the others are ours. `waiting` is what is left: recorded, and not
arrived. It is never below zero, or something was counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_REASONS = 50  # for dropping; they are the workers' own words


@dataclass(slots=True)
class Ledger:
    """Results by what became of them; of one session, or of all."""

    recorded: int = 0
    counted: int = 0
    repeated: int = 0
    late: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    # Counted by a service whose state is lost; not part of the sum above.
    forgotten: int = 0

    @property
    def waiting(self) -> int:
        settled = self.counted + self.repeated + self.late
        return self.recorded - settled - sum(self.refused.values()) - sum(self.dropped.values())

    def refuse(self, reason: str, results: int) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + results

    def drop(self, reason: str, results: int) -> None:
        """`results` may be negative: what seemed dropped had been counted."""
        if reason not in self.dropped and len(self.dropped) >= MAX_REASONS:
            reason = "other"
        self.dropped[reason] = self.dropped.get(reason, 0) + results
        if not self.dropped[reason]:
            del self.dropped[reason]
