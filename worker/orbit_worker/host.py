"""
The host's own callbacks, in threads of their own.

They may be slow, raise or never return: the sender goes on meanwhile, and at
most one thread of each kind waits for them. A fork waits too, for a moment: the child
would inherit the locks that such a thread holds, and nobody to release them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from orbit_rpc_schema.wire import MAX_INT, Json, as_name

LAST_MS = 253_402_300_799_999  # the end of the year 9999, and of what the wire takes
MAX_CONTROLS = 100  # commands that wait for the one before them


class Waiting(NamedTuple):
    """What waits in a queue: how many, and since when (epoch ms) the oldest of it."""

    depth: int
    oldest_at_ms: int | None = None


QueueDepths = Callable[[], Mapping[str, "int | Waiting"]]
Control = Callable[[str, "str | None"], "bool | None"]

log = logging.getLogger("orbit_worker")


class HostCalls:
    """Asks for queue depths and hands over commands.

    `on_told` is called when a question has ended, `on_obeyed` with the id and the
    outcome (done, refused or unknown) of each command; both in such a thread.
    """

    def __init__(
        self,
        queue_depths: QueueDepths | None,
        control: Control | None,
        on_told: Callable[[], None],
        on_obeyed: Callable[[str, str], None],
    ) -> None:
        self.queue_depths = queue_depths
        self._control = control
        self._on_told = on_told
        self._on_obeyed = on_obeyed
        # Held while queue depths are asked; of one thread several times, should it fork.
        self.asking = threading.RLock()
        self._asking = False
        self._depths: dict[str, Waiting] | None = None
        self._lock = threading.Lock()
        self._controls: deque[Json] = deque()
        self._obeying = False

    # ------------------------------------------------------------ queue depths

    def ask_depths(self) -> bool:
        """Ask, unless the last question is still open; False when there is none to wait for."""
        if self.queue_depths is None or self._asking:
            return False
        self._asking = True
        if not _in_thread(self._ask):
            self._asking = False
            return False
        return True

    @property
    def told(self) -> bool:
        """True when the question has ended, with an answer or without."""
        return not self._asking

    def take_depths(self) -> dict[str, Waiting] | None:
        depths, self._depths = self._depths, None
        return depths

    def _ask(self) -> None:
        assert self.queue_depths is not None
        try:
            with self.asking:
                told = self.queue_depths()
            self._depths = {as_name(name): _waiting(queue) for name, queue in told.items()}
        except Exception:
            log.exception("queue_depths failed; depths are left out")
        self._asking = False
        self._on_told()

    # ------------------------------------------------------------ control

    def obey(self, command: Json) -> None:
        """Hand over one worker.control; the outcome goes to `on_obeyed`, in their order."""
        with self._lock:
            taken = len(self._controls) < MAX_CONTROLS
            if taken:
                self._controls.append(command)
                if not self._obeying:
                    self._obeying = taken = _in_thread(self._obey_all)
                    if not taken:
                        self._controls.clear()
        if not taken:
            self._on_obeyed(str(command.get("id")), "refused")

    def _obey_all(self) -> None:
        while True:
            with self._lock:
                if not self._controls:
                    self._obeying = False
                    return
                command = self._controls.popleft()
            outcome = self._outcome(str(command.get("action")), command.get("pipeline"))
            self._on_obeyed(str(command.get("id")), outcome)

    def _outcome(self, action: str, pipeline: str | None) -> str:
        if self._control is None:
            return "unknown"
        try:
            done = self._control(action, pipeline)
        except Exception:
            log.exception("the control callback failed")
            return "refused"
        return "unknown" if done is None else "done" if done else "refused"


def _waiting(told: int | Waiting) -> Waiting:
    depth, oldest_at_ms = told if isinstance(told, Waiting) else (told, None)
    if oldest_at_ms is not None and not 0 < oldest_at_ms <= LAST_MS:
        oldest_at_ms = None  # in other units, perhaps; a heartbeat is refused whole
    return Waiting(
        min(max(int(depth), 0), MAX_INT), None if oldest_at_ms is None else int(oldest_at_ms)
    )


def _in_thread(act: Callable[[], None]) -> bool:
    """False where no thread can be had: at the limit of the system, or while leaving."""
    thread = threading.Thread(target=act, name="orbit-worker-host", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return False
    return True
