"""
The table of figures: each beside its peer, with its target; on a terminal and in RESULTS.md.

The ratio is that of the rounds, one by one, so that it is steadier than either figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import Sample

BEGIN = "<!-- made by `make bench`: what stands from here to the next mark is replaced -->"
END = "<!-- written by hand from here on -->"
STORY = "\n## What made the difference\n"


@dataclass(frozen=True)
class Target:
    """At most so much, or at least; of the ratio to the peer, or of the figure itself."""

    limit: float
    ambition: float | None = None
    at_least: bool = False
    of_ratio: bool = False
    # What is aimed at where another size was measured.
    said: str = ""

    def __str__(self) -> str:
        sign, unit = ("≥" if self.at_least else "≤"), (" ×" if self.of_ratio else "")
        aimed = f"{sign} {number(self.limit)}{unit}"
        return f"{aimed} {self.said}" if self.said else aimed

    def verdict(self, value: float) -> str:
        if not self._holds(value, self.limit):
            return "MISSED"
        if self.ambition is None:
            return "met"
        ambition = number(self.ambition)
        return (
            f"met, {ambition} too" if self._holds(value, self.ambition) else f"met, not {ambition}"
        )

    def _holds(self, value: float, limit: float) -> bool:
        return value >= limit if self.at_least else value <= limit


@dataclass(frozen=True)
class Row:
    """One comparison: a figure of ours, that of a peer, and what is to be said of either."""

    figure: str
    unit: str
    ours: Sample | None = None
    peer: str = ""
    theirs: Sample | None = None
    target: Target | None = None
    notes: Sequence[str] = field(default=())

    @property
    def ratio(self) -> Sample | None:
        both = self.ours is not None and self.theirs is not None
        return self.ours.over(self.theirs) if both else None  # type: ignore[union-attr, arg-type]

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        measured = self.ratio if self.target.of_ratio else self.ours
        return "not measured" if measured is None else self.target.verdict(measured.median)

    @property
    def cells(self) -> list[str]:
        return [
            f"{self.figure}, {self.unit}",
            spread(self.ours),
            self.peer or "–",
            spread(self.theirs),
            spread(self.ratio),
            str(self.target or "–"),
            self.verdict or "–",
        ]


def number(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def spread(sample: Sample | None) -> str:
    """The median, and the least and the greatest of the rounds."""
    if sample is None:
        return "–"
    middle = number(sample.median)
    if len(sample.values) == 1:
        return middle
    return f"{middle} ({number(min(sample.values))} to {number(max(sample.values))})"


def print_row(row: Row) -> None:
    figure, ours, peer, theirs, ratio, target, verdict = row.cells
    print(f"{figure:<58} {ours}", flush=True)
    if row.peer:
        print(f"{'    ' + peer:<58} {theirs}   ratio {ratio}", flush=True)
    if row.target is not None:
        print(f"{'    target':<58} {target}: {verdict}", flush=True)
    for note in row.notes:
        print(f"    {note}", flush=True)


def markdown(rows: Sequence[Row]) -> str:
    heads = ["figure", "ours", "peer", "its figure", "ours ÷ its", "target", ""]
    notes: list[str] = []
    lines = [_line(heads), _line(["---"] * len(heads))]
    for row in rows:
        cells = row.cells
        for note in row.notes:
            if note not in notes:
                notes.append(note)
            cells[0] += f" [{notes.index(note) + 1}]"
        if "MISSED" in cells[-1]:
            cells[-1] = f"**{cells[-1]}**"
        lines.append(_line(cells))
    said = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, "", *said])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rewrite(path: Path, made: str) -> None:
    """Put the table into the file; what was written by hand below it stays."""
    before = path.read_text() if path.exists() else ""
    by_hand = before.partition(END)[2] or STORY
    path.write_text(f"# What it costs\n\n{BEGIN}\n\n{made.strip()}\n\n{END}\n\n{by_hand.lstrip()}")
