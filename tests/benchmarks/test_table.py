"""The table of figures: its verdicts, and what a new one leaves as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.harness import Sample
from benchmarks.table import END, Row, Target, rewrite


@pytest.mark.parametrize(
    ("target", "ours", "verdict"),
    [
        (Target(1 / 3, of_ratio=True), 30.0, "met"),
        (Target(1 / 3, of_ratio=True), 40.0, "MISSED"),
        (Target(0.6, ambition=0.5, of_ratio=True), 55.0, "met, not 0.5"),
        (Target(0.6, ambition=0.5, of_ratio=True), 45.0, "met, 0.5 too"),
        (Target(0.6, at_least=True, of_ratio=True), 55.0, "MISSED"),
        (Target(60.0), 55.0, "met"),
    ],
)
def test_a_target_is_of_the_ratio_or_of_the_figure(target: Target, ours: float, verdict: str):
    row = Row("figure", "ms", Sample.of([ours]), "peer", Sample.of([100.0]), target)

    assert row.verdict == verdict


def test_a_ratio_is_that_of_the_rounds_and_not_of_their_medians():
    row = Row("figure", "ms", Sample.of([1.0, 10.0, 4.0]), "peer", Sample.of([2.0, 20.0, 2.0]))

    assert row.ratio == Sample.of([0.5, 0.5, 2.0])


def test_a_new_table_leaves_what_was_written_by_hand(tmp_path: Path):
    file = tmp_path / "RESULTS.md"
    rewrite(file, "| first |")
    file.write_text(file.read_text() + "\nColumns instead of rows.\n")

    rewrite(file, "| second |")

    table, _, by_hand = file.read_text().partition(END)
    assert "first" not in table
    assert "| second |" in table
    assert by_hand == "\n\n## What made the difference\n\nColumns instead of rows.\n"
