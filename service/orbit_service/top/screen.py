"""
The terminal: its keys, its size, and that it is as it was at the end.

The service is asked in a thread, so that a key does what it says while an answer is
awaited. Everything that wakes the loop is a byte in a pipe: an answer, a key, a signal.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from codecs import getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from select import select
from threading import Event, Thread
from time import monotonic
from types import FrameType
from typing import Any

from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live

from orbit_rpc_schema.caller import CallFailed
from orbit_service.top.answers import Answers, Questions
from orbit_service.top.state import State, keys, press
from orbit_service.top.view import Frame, frame

KEYS = 0  # the file descriptor that they come from
REST_OF_A_KEY = 0.05  # seconds in which it follows an escape
Attributes = list[Any]  # of a terminal, as termios has them
LOOK = 1.0  # seconds after which ages are drawn anew


def once(answers: Answers) -> None:
    """Print one frame with every row; a pipe gets no control character."""
    console = Console(force_terminal=sys.stdout.isatty(), highlight=False, soft_wrap=True)
    for line in frame(answers, State(), console.width, None).lines:
        console.print(line, no_wrap=True, crop=True)


def is_terminal() -> bool:
    """Whether there are keys to read and a screen to draw on."""
    dumb = os.environ.get("TERM", "") in ("", "dumb", "unknown")
    return not dumb and sys.stdin.isatty() and sys.stdout.isatty()


class Asker(Thread):
    """Asks at an interval; the newest answers are in `newest`."""

    def __init__(self, questions: Questions, first: Answers, interval: float, wake: int) -> None:
        super().__init__(daemon=True)  # may hang in an answer that nobody waits for
        self.newest = first
        self._questions = questions
        self._interval = interval
        self._wake = wake
        self._over = Event()

    def run(self) -> None:
        while not self._over.wait(self._interval):
            try:
                self.newest = self._questions.ask()
            except CallFailed as error:
                self.newest = replace(self.newest, trouble=error.message)
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or str(error)
                self.newest = replace(self.newest, trouble=why)
            except (LookupError, TypeError):
                self.newest = replace(self.newest, trouble="the service is of another version")
            if not self._over.is_set():
                _write(self._wake)

    def stop(self) -> None:
        self._over.set()


def show(questions: Questions, first: Answers, interval: float) -> None:
    """Until a key ends it; the terminal is as it was whatever ends it."""
    with _waking() as (woken, wake), _keys() as before:
        asker = Asker(questions, first, interval, wake)
        asker.start()
        try:
            _Screen(asker, woken, before).run()
        except KeyboardInterrupt:
            pass
        finally:
            asker.stop()


class _Screen:
    def __init__(self, asker: Asker, woken: int, before: Attributes) -> None:
        self._asker = asker
        self._woken = woken
        self._before = before
        self._state = State()
        self._answers = asker.newest
        self._console = Console(highlight=False)
        self._decoder = getincrementaldecoder("utf-8")("ignore")

    def run(self) -> None:
        with Live(console=self._console, screen=True, auto_refresh=False) as live:
            while not self._state.quit:
                drawn = self._draw(live)
                ready, _, _ = select([KEYS, self._woken], [], [], LOOK)
                if self._woken in ready and signal.SIGTSTP in os.read(self._woken, 4096):
                    self._stop(live)
                if KEYS in ready:
                    self._press(drawn.most_offset)

    def _draw(self, live: Live) -> Frame:
        if not self._state.paused:
            self._answers = self._asker.newest
        silent = None if self._answers.trouble is None else monotonic() - self._answers.at
        width, height = _size()
        # Of its own accord it heeds COLUMNS and LINES, which do not follow a resize.
        self._console.size = ConsoleDimensions(width, height)
        drawn = frame(self._answers, self._state, width, height, silent)
        live.update(Group(*drawn.lines), refresh=True)
        return drawn

    def _press(self, most_offset: int) -> None:
        typed = os.read(KEYS, 4096)
        if not typed:  # the terminal is gone
            self._state = replace(self._state, quit=True)
        if typed.endswith(b"\x1b") and select([KEYS], [], [], REST_OF_A_KEY)[0]:
            typed += os.read(KEYS, 4096)
        for key in keys(self._decoder.decode(typed)):
            self._state = press(self._state, key, most_offset)

    def _stop(self, live: Live) -> None:
        """Ctrl-Z: give the terminal back, stop, and take it again when told to go on."""
        ours = termios.tcgetattr(KEYS)
        live.stop()
        termios.tcsetattr(KEYS, termios.TCSADRAIN, self._before)
        os.kill(os.getpid(), signal.SIGSTOP)
        termios.tcsetattr(KEYS, termios.TCSADRAIN, ours)
        live.start(refresh=True)


def _size() -> tuple[int, int]:
    """Width and height now; a terminal that does not know them is taken for a usual one."""
    width, height = os.get_terminal_size(sys.stdout.fileno())
    return width or 80, height or 24


@contextmanager
def _keys() -> Iterator[Attributes]:
    """Keys come one at a time and are not shown."""
    before = termios.tcgetattr(KEYS)
    try:
        tty.setcbreak(KEYS)
        yield before
    finally:
        termios.tcsetattr(KEYS, termios.TCSAFLUSH, before)


@contextmanager
def _waking() -> Iterator[tuple[int, int]]:
    """A pipe into which every signal is written; those that end us do so by an exception."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    handlers = {
        signal.SIGWINCH: _noted,
        signal.SIGTSTP: _noted,
        signal.SIGTERM: _leave,
        signal.SIGHUP: _leave,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    waking_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        yield woken, wake
    finally:
        signal.set_wakeup_fd(waking_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        # The pipe stays open: the asker may still write to it, and the program ends now.


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The byte in the pipe is enough."""


def _leave(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _write(wake: int) -> None:
    try:
        os.write(wake, b"\0")
    except BlockingIOError:
        pass  # it is awake
