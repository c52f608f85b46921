"""Builders of rules, and of what rules look at; every field has a sensible value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from builders import MS, SECOND, T0
from orbit_service.alerts.rules import Rule, RuleFile, parse_rules
from orbit_service.alerts.sums import Sums
from orbit_service.core.outbox import Key
from orbit_service.core.stats import Stats

DAY = 86_400_000
WINDOW = 10 * SECOND


def a_rule(**fields: Any) -> Rule:
    """One on the error rate, above 10 %, unless said otherwise."""
    usual: dict[str, Any] = {"name": "r", "metric": "error_rate"}
    if "below" not in fields:
        usual["above"] = 10
    return Rule.model_validate({**usual, **fields})


def the_rules(text: str, **environ: str) -> RuleFile:
    """The rules of a file that holds this."""
    return parse_rules(text, Path("alerts.toml"), environ)


def some_runs(
    runs: int = 1, failed: int = 0, duration_us: int = MS, at_ms: int = T0, **fields: Any
) -> Stats:
    """Runs that ended at one moment, all of one duration."""
    stats = Stats()
    stats.add_runs([duration_us] * runs, failed, at_ms)
    for name, value in fields.items():
        setattr(stats, name, value)
    return stats


def a_key(pipeline: str = "send", worker: str = "mailer", **fields: str) -> Key:
    return Key(worker, pipeline, **fields)


def sums_of(rule: Rule, *windows: tuple[int, dict[Key, Stats]], end_ms: int) -> Sums:
    """The sums of one rule after these windows, by their start."""
    sums = Sums([rule])
    for start_ms, window in windows:
        sums.add(start_ms, window)
    sums.advance(end_ms)
    return sums
