"""What a look at a thousand rules over two thousand series takes, by benchmarks/alerts.py."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.harness import Lost, Sample, say
from benchmarks.scale import Scale
from benchmarks.table import Row

ALERTS = "benchmarks.alerts"
CASE = "1000 rules"


def rows(scale: Scale) -> Iterator[Row]:
    figure, unit = "a look at 1,000 rules over 2,000 series", "ms"
    if find_spec(ALERTS) is None:
        yield Row(figure, unit, notes=["benchmarks/alerts.py is not here."])
    elif not scale.rule_seconds:
        yield Row(
            figure, unit, notes=["The looks are left out of a quick run: rules settle first."]
        )
    else:
        alerts: Any = import_module(ALERTS)
        case = next(case for case in alerts.CASES if case.name == CASE)
        say(f"  rules: {alerts.SETTLE_SECONDS + scale.rule_seconds:.0f} s")
        try:
            measured = alerts.measure(case, alerts.SETTLE_SECONDS, scale.rule_seconds)
        except SystemExit as lost:
            raise Lost(str(lost)) from None
        lengths = Sample.of([(look.ended - look.began) * 1000 for look in measured.looks])
        notes = [f"{len(lengths.values)} looks, while 2,000 series run 40 times in ten seconds."]
        yield Row(figure, unit, lengths, notes=notes)
