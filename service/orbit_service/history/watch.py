"""Keeps the fleet as it was a moment ago: what other nodes write, read again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from loguru import logger

from orbit_rpc_schema.errors import HistoryUnavailable
from orbit_service.core.fleet import Fleet, NodeLives
from orbit_service.history.archive import in_thread
from orbit_service.history.port import History, HistoryFailed, Member
from orbit_service.history.presence import load

LOOK_SECONDS = 2.0
FRESH_SECONDS = 15.0  # what is older is not told as if it were now


class Watch:
    """Looks at the members every two seconds; `own` is the instance that is left out."""

    def __init__(
        self, history: Callable[[], History], fleet: Fleet, own: Callable[[], str]
    ) -> None:
        self.trouble: str | None = "the fleet has not been read yet"
        self._history = history
        self._fleet = fleet
        self._own = own
        self._known: dict[str, tuple[int, NodeLives]] = {}
        self._read_at = float("-inf")

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        try:
            members = await in_thread(self._read)
            self._take(members)
        except HistoryFailed as error:
            if str(error) != self.trouble:
                logger.error("the fleet cannot be read: {}", error)
            self.trouble = str(error)

    @property
    def fresh(self) -> bool:
        return time.monotonic() - self._read_at <= FRESH_SECONDS

    def fleet(self) -> Fleet:
        """The fleet. Raises HistoryUnavailable where what is known of it is out of date."""
        if not self.fresh:
            raise HistoryUnavailable(why=self.trouble or "no answer")
        return self._fleet

    def _read(self) -> list[Member]:
        return self._history().members({id: at for id, (at, _lives) in self._known.items()})

    def _take(self, members: list[Member]) -> None:
        known = {}
        for member in members:
            if member.instance == self._own():
                continue
            lives = load(member) if member.state is not None else self._known[member.instance][1]
            lives.alive = member.alive
            known[member.instance] = (member.at_ms, lives)
        self._known = known
        alive = {lives.name for _at, lives in known.values() if lives.alive}
        self._fleet.others = {
            id: lives if lives.alive else lives.lost()
            for id, (_at, lives) in known.items()
            # One that lost its state goes on as another instance.
            if lives.alive or lives.name not in alive
        }
        self._read_at = time.monotonic()
        self.trouble = None
