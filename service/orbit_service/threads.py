"""Blocking work beside the event loop, in threads that no end of the program waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def start_thread(work: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Do it in a thread of its own, which no end of the program waits for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(act: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            act(value)

    def run() -> None:
        try:
            act, value = done.set_result, work()
        except BaseException as error:  # noqa: BLE001  # it is the caller's
            act, value = done.set_exception, error  # type: ignore[assignment]
        try:
            loop.call_soon_threadsafe(finish, act, value)
        except RuntimeError:
            pass  # the loop has ended, and nobody waits

    threading.Thread(target=run, name=name, daemon=True).start()
    return done
