"""
Families as text: OpenMetrics 1.0 and Prometheus 0.0.4.

prometheus.io/docs/specs/om/open_metrics_spec and
prometheus.io/docs/instrumenting/exposition_formats. The two differ in what a counter
is called, in units and creation times, and in the end. Lines of one sample come in one
piece; what they share is made once and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from orbit_service.exporters.edges import EDGES, cumulative
from orbit_service.exporters.families import Distribution, Family, Sample

# All lines of a histogram's buckets; NUL stands for what they have in common. Filled in at
# once, they take half of the time that a line after the other takes.
_BUCKETS = "".join(f'\0le="{edge}"}} %d\n' for edge in [*map(repr, EDGES), "+Inf"])
# One for each series and family of labels; whoever has more makes some of them anew.
KEPT_LABELS = 20_000


def openmetrics(families: Iterable[Family]) -> Iterator[str]:
    """OpenMetrics, in pieces."""
    for family in families:
        samples = iter(family.samples)
        first = next(samples, None)
        if first is None:
            continue
        name = family.name
        yield f"# TYPE {name} {family.kind}\n"
        if family.unit:
            yield f"# UNIT {name} {family.unit}\n"
        yield f"# HELP {name} {family.help}\n"
        yield from _lines(family, first, samples, created=True)
    yield "# EOF\n"


def plain(families: Iterable[Family]) -> Iterator[str]:
    """The text format that everything reads, in pieces."""
    for family in families:
        samples = iter(family.samples)
        first = next(samples, None)
        if first is None:
            continue
        name = family.name + _SUFFIX[family.kind]
        kind = "gauge" if family.kind == "info" else family.kind
        yield f"# HELP {name} {family.help}\n# TYPE {name} {kind}\n"
        yield from _lines(family, first, samples, created=False)


_SUFFIX = {"counter": "_total", "gauge": "", "histogram": "", "info": "_info"}


def _lines(
    family: Family, first: Sample, others: Iterator[Sample], *, created: bool
) -> Iterator[str]:
    name, names = family.name, family.labels
    full = name + _SUFFIX[family.kind]
    created = created and family.kind in ("counter", "histogram")
    sample: Sample | None = first
    while sample is not None:
        labels = label_text(names, sample.labels)
        braced = f"{{{labels}}}" if labels else ""
        if isinstance(sample.value, Distribution):
            lines = _histogram(name, labels, braced, sample.value)
        else:
            lines = f"{full}{braced} {sample.value!r}\n"
        if created and sample.created_ms:
            lines += f"{name}_created{braced} {sample.created_ms / 1000!r}\n"
        yield lines
        sample = next(others, None)


def _histogram(name: str, labels: str, braced: str, value: Distribution) -> str:
    head = f"{name}_bucket{{{labels}," if labels else f"{name}_bucket{{"
    buckets = (_BUCKETS % (*cumulative(value.histogram), value.count)).replace("\0", head)
    return (
        f"{buckets}"
        f"{name}_count{braced} {value.count}\n"
        f"{name}_sum{braced} {value.sum_us / 1_000_000!r}\n"
    )


@lru_cache(KEPT_LABELS)
def label_text(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """`worker="mailer",pipeline="send"`."""
    return ",".join(
        f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)
    )


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
