"""Silences: whom they are for, and until when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from orbit_service.alerts.rules import matcher

MAX_SILENCES = 1_000
MAX_COVERED = 20_000  # alerts of which it is kept
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


class Silences:
    """Those that have not ended. Which of them an alert is covered by is kept until they change."""

    def __init__(self, silences: Iterable[Silence] = ()) -> None:
        self._by_id = {silence.id: silence for silence in silences}
        self._covering: dict[frozenset[tuple[str, str]], list[Silence]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Silence]:
        return iter(self._by_id.values())

    def add(self, silence: Silence) -> None:
        self._by_id[silence.id] = silence
        self._covering.clear()

    def end(self, id: str, now_ms: int) -> Silence | None:
        """Take one away; None where none of that id is in force."""
        silence = self._by_id.get(id)
        if silence is None or silence.until_ms <= now_ms:
            return None
        self._covering.clear()
        return self._by_id.pop(id)

    def expire(self, now_ms: int) -> None:
        for id in [s.id for s in self if s.until_ms <= now_ms]:
            del self._by_id[id]

    def shift(self, by_ms: int) -> None:
        """The clock was set: what lasts for an hour lasts for an hour."""
        moved = [replace(s, from_ms=s.from_ms + by_ms, until_ms=s.until_ms + by_ms) for s in self]
        self._by_id = {silence.id: silence for silence in moved}
        self._covering.clear()

    def covering(self, labels: Mapping[str, str], now_ms: int) -> list[str]:
        """Ids of those in force that are about it."""
        if not self._by_id:
            return []
        key = frozenset(labels.items())
        found = self._covering.get(key)
        if found is None:
            if len(self._covering) >= MAX_COVERED:
                self._covering.clear()
            found = self._covering[key] = [s for s in self if s.covers(labels)]
        return [s.id for s in found if s.from_ms <= now_ms < s.until_ms]
