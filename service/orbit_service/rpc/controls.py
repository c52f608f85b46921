"""
Control messages that wait for their answers.

A worker's name may have many sessions, each told and each answering for itself;
one that never answers costs the others nothing but the time-out.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from typing import Literal

from orbit_rpc_schema.errors import Explained

Action = Literal["pause", "resume", "restart"]
# What became of a control message at one session. Gone: its connection ended meanwhile.
Outcome = Literal["done", "refused", "unknown", "no answer", "gone"]

CONTROL_SECONDS = 10.0
MAX_CONTROLS = 100  # each holds the ids of a worker's sessions until its time-out


class TooManyControls(Explained):
    """
    {limit} control messages wait for their answers already.
    Try again when they have been answered or have timed out.
    """


class Control:
    """One control message: who is still to answer, and what became of it at the others."""

    def __init__(self, sessions: Iterable[str]) -> None:
        self.id = uuid.uuid4().hex
        self.outcomes: dict[str, Outcome] = dict.fromkeys(sessions, "no answer")
        self._waiting = set(self.outcomes)
        self._settled = asyncio.Event()

    def settle(self, session: str, outcome: Outcome) -> bool:
        """False for a session that is not, or no longer, waited for."""
        if session not in self._waiting:
            return False
        self._waiting.remove(session)
        self.outcomes[session] = outcome
        if not self._waiting:
            self._settled.set()
        return True

    async def wait(self, seconds: float) -> None:
        """Until all have answered or are gone, `seconds` at most."""
        try:
            await asyncio.wait_for(self._settled.wait(), seconds)
        except TimeoutError:
            pass  # who is still waited for has no answer


class Controls:
    """The control messages that wait, by id."""

    def __init__(self) -> None:
        self._waiting: dict[str, Control] = {}

    def begin(self, sessions: Iterable[str]) -> Control:
        """Raises TooManyControls."""
        if len(self._waiting) >= MAX_CONTROLS:
            raise TooManyControls(limit=MAX_CONTROLS)
        control = Control(sessions)
        self._waiting[control.id] = control
        return control

    def end(self, control: Control) -> None:
        del self._waiting[control.id]

    def answer(self, id: str, session: str, outcome: Outcome) -> bool:
        """False when nobody waits for it: too late, or never asked."""
        control = self._waiting.get(id)
        return control is not None and control.settle(session, outcome)

    def gone(self, session: str) -> None:
        """The session's connection has ended; what it does now nobody will hear."""
        for control in self._waiting.values():
            control.settle(session, "gone")
