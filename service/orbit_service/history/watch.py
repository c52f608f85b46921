"""Keeps the fleet as it was a moment ago: what other nodes write, read again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from loguru import logger

from orbit_rpc_schema.errors import HistoryUnavailable
from orbit_service.core.fleet import Fleet, NodeLives
from orbit_service.history.port import History, HistoryFailed, Member
from orbit_service.history.presence import load
from orbit_service.threads import start_thread

Known = dict[str, tuple[int, NodeLives]]  # by instance: when it said it, and what

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
        self._known: Known = {}
        self._unreadable: set[str] = set()
        self._read_at = float("-inf")

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        try:
            self._known = await start_thread(self._read, "orbit-fleet-read")
        except Exception as error:  # noqa: BLE001  # the next look may go better
            if not isinstance(error, HistoryFailed):
                logger.opt(exception=error).error("looking at the fleet failed")
            elif str(error) != self.trouble:
                logger.error("the fleet cannot be read: {}", error)
            self.trouble = str(error)
            return
        self._fleet.others = _told(self._known)
        self._read_at = time.monotonic()
        self.trouble = None

    @property
    def fresh(self) -> bool:
        return time.monotonic() - self._read_at <= FRESH_SECONDS

    def fleet(self) -> Fleet:
        """The fleet. Raises HistoryUnavailable where what is known of it is out of date."""
        if not self.fresh:
            raise HistoryUnavailable(why=self.trouble or "no answer")
        return self._fleet

    def _read(self) -> Known:
        """Everybody else, as they last said; what one says that cannot be read is passed over."""
        members = self._history().members({id: at for id, (at, _lives) in self._known.items()})
        known: Known = {}
        for member in members:
            if member.instance == self._own():
                continue
            try:
                lives = self._lives(member)
            except HistoryFailed as error:
                if member.instance not in self._unreadable:
                    logger.error("{}; it is left out", error)
                self._unreadable.add(member.instance)
                continue
            known[member.instance] = (member.at_ms, replace(lives, alive=member.alive))
        return known

    def _lives(self, member: Member) -> NodeLives:
        return self._known[member.instance][1] if member.state is None else load(member)


def _told(known: Known) -> dict[str, NodeLives]:
    """Who is told of: all that are alive, and of a name where none is, the newest."""
    newest = {lives.name: id for id, (_at, lives) in sorted(known.items(), key=lambda k: k[1][0])}
    alive = {lives.name for _at, lives in known.values() if lives.alive}
    return {
        id: lives if lives.alive else lives.lost()
        for id, (_at, lives) in known.items()
        # One that lost its state goes on as another instance.
        if lives.alive or (lives.name not in alive and newest[lives.name] == id)
    }
