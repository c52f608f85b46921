"""Silences: whom they are for, and until when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from orbit_service.alerts.rules import matcher

MAX_SILENCES = 1_000
MAX_SILENCE_MS = 400 * 86_400_000


class Silence(Struct, frozen=True):
    """Nothing is said and done of what all matchers match."""

    id: str
    matchers: dict[str, str]
    from_ms: int
    until_ms: int
    reason: str
    who: str

    def covers(self, labels: Mapping[str, str]) -> bool:
        return all(
            name in labels and matcher(pattern).match(labels[name]) is not None
            for name, pattern in self.matchers.items()
        )


def silenced_by(silences: Iterable[Silence], labels: Mapping[str, str], now_ms: int) -> list[str]:
    """Ids of those in force that are about it."""
    return [s.id for s in silences if s.from_ms <= now_ms < s.until_ms and s.covers(labels)]
