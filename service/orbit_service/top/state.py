"""What the person at the terminal has chosen, and what a key makes of it; pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

Pane = Literal["pipelines", "workers", "failures"]
PANES: tuple[Pane, ...] = get_args(Pane)
Sort = Literal["name", "runs", "failed", "errors", "p95", "last"]

SORTS: dict[str, Sort] = {
    "n": "name",
    "r": "runs",
    "f": "failed",
    "e": "errors",
    "p": "p95",
    "l": "last",
}
LARGEST_FIRST = frozenset({"runs", "failed", "errors", "p95", "last"})
SCROLLS = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -10, "page down": 10}
MOST_TYPED = 100  # characters of a filter

SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\x1b\[O])|\x1b|[^\x1b]", re.DOTALL)
NAMED = {
    "\x1b": "escape",
    "\x03": "interrupt",
    "\t": "tab",
    "\x1b[Z": "back tab",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x15": "erase",
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1bOH": "home",
    "\x1b[1~": "home",
    "\x1b[F": "end",
    "\x1bOF": "end",
    "\x1b[4~": "end",
}


@dataclass(frozen=True, slots=True)
class State:
    pane: Pane = "pipelines"
    alone: bool = False  # the pane has the terminal to itself
    sort: Sort = "failed"
    reverse: bool = False
    filter: str = ""
    typing: bool = False  # keys go into the filter
    offset: int = 0  # rows of the pane that are above its first
    paused: bool = False
    help: bool = False
    quit: bool = False


def keys(typed: str) -> Iterator[str]:
    """The keys in what a terminal sent, by name or as their character; without unknown ones."""
    for sequence in SEQUENCE.findall(typed):
        if sequence in NAMED:
            yield NAMED[sequence]
        elif len(sequence) == 1 and sequence.isprintable():
            yield sequence


def press(state: State, key: str, most_offset: int = 0) -> State:
    """What a key makes of the state; `most_offset` is as far as the pane can be scrolled."""
    if key == "interrupt":
        return replace(state, quit=True)
    if state.typing:
        return _typed(state, key)
    if state.help:
        return replace(state, help=False)
    if key in SORTS:
        again = state.sort == SORTS[key]
        return replace(state, sort=SORTS[key], reverse=again and not state.reverse, offset=0)
    if key in SCROLLS:
        return _scrolled(state, state.offset + SCROLLS[key], most_offset)
    match key:
        case "q" | "escape":
            return replace(state, quit=True)
        case "/":
            return replace(state, typing=True)
        case " ":
            return replace(state, paused=not state.paused)
        case "?" | "h":
            return replace(state, help=True)
        case "tab":
            return _looking_at(state, PANES.index(state.pane) + 1)
        case "back tab":
            return _looking_at(state, PANES.index(state.pane) - 1)
        case "1" | "2" | "3":
            return _looking_at(state, int(key) - 1)
        case "enter" | "z":
            return replace(state, alone=not state.alone)
        case "home" | "g":
            return _scrolled(state, 0, most_offset)
        case "end" | "G":
            return _scrolled(state, most_offset, most_offset)
    return state


def _typed(state: State, key: str) -> State:
    match key:
        case "enter":
            return replace(state, typing=False)
        case "escape":
            return replace(state, typing=False, filter="", offset=0)
        case "backspace":
            return replace(state, filter=state.filter[:-1], offset=0)
        case "erase":
            return replace(state, filter="", offset=0)
    if len(key) > 1:
        return state
    return replace(state, filter=(state.filter + key)[:MOST_TYPED], offset=0)


def _looking_at(state: State, number: int) -> State:
    return replace(state, pane=PANES[number % len(PANES)], offset=0)


def _scrolled(state: State, offset: int, most: int) -> State:
    return replace(state, offset=max(0, min(offset, most)))
