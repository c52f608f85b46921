"""Texts of someone else's on a terminal: what a worker calls itself moves no cursor."""

from __future__ import annotations

from unicodedata import category

MOST_SHOWN = 400  # characters of one text; more is never on one line


def plain(text: str) -> str:
    """A text of someone else's in one line: no control character, nothing that turns direction."""
    if text.isascii() and text.isprintable():
        return text[:MOST_SHOWN]
    return "".join(map(_harmless, text[:MOST_SHOWN]))


def _harmless(character: str) -> str:
    if character in "\n\r\t\v\f\u2028\u2029":
        return " "
    kind = category(character)
    if kind == "Cf" or "\ufe00" <= character <= "\ufe0f":
        return ""  # joins or turns what is beside it; terminals do not agree how wide that is
    return "\N{REPLACEMENT CHARACTER}" if kind[0] == "C" else character
