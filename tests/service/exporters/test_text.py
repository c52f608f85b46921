"""The text formats, read back by prometheus-client's own parsers."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from builders import MS, T0, a_batch, a_record, a_result, a_session, an_error
from orbit_rpc_schema.messages import Step
from orbit_service.core.histogram import MICROSECONDS, Histogram
from orbit_service.exporters.edges import EDGES, cumulative
from orbit_service.exporters.families import Distribution, Family, Sample, families
from orbit_service.exporters.text import openmetrics, plain

FORMS = [pytest.param(plain, parse_plain, id="plain")]
FORMS += [pytest.param(openmetrics, parse_openmetrics, id="openmetrics")]


def a_family(kind: str = "counter", *samples: Sample, name: str = "orbit_x", **more) -> Family:
    return Family(name, kind, "What it is.", more.pop("labels", ("worker",)), samples, **more)


def of_durations(*durations_us: int) -> Distribution:
    return Distribution(len(durations_us), sum(durations_us), Histogram.of(durations_us))


def read(write, parse, *told: Family) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by the sample's name and label values, as the parser has them."""
    values: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse("".join(write(told))):
        for sample in family.samples:
            values.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return values


@pytest.mark.parametrize(("write", "parse"), FORMS)
def test_a_counter_reads_back(write, parse):
    samples = Sample(("a",), 3, T0), Sample(("b",), 2**53, T0)

    assert read(write, parse, a_family("counter", *samples))["orbit_x_total"] == {
        ("a",): 3,
        ("b",): 2**53,
    }


@pytest.mark.parametrize(("write", "parse"), FORMS)
@given(value=st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\\"\n')))
def test_every_name_reads_back(write, parse, value):
    told = a_family("gauge", Sample((value,), 1))

    assert read(write, parse, told)["orbit_x"] == {(value,): 1}


@pytest.mark.parametrize(("write", "parse"), FORMS)
@given(durations=st.lists(st.integers(0, 10**12), max_size=20))
def test_a_histogram_reads_back_and_its_buckets_are_exact(write, parse, durations):
    name = "orbit_x_seconds"
    told = Sample((), of_durations(*durations), T0)
    family = a_family("histogram", told, labels=(), name=name, unit="seconds")
    values = read(write, parse, family)
    at_most = [sum(d <= edge * MICROSECONDS for d in durations) for edge in EDGES]

    assert list(values[f"{name}_bucket"].values()) == [*at_most, len(durations)]
    assert values[f"{name}_count"] == {(): len(durations)}
    assert values[f"{name}_sum"] == {(): pytest.approx(sum(durations) / MICROSECONDS)}


def test_edges_are_powers_of_two_from_a_millisecond_to_nine_hours():
    assert (EDGES[0], EDGES[-1], len(EDGES)) == (2**-10, 2**15, 26)


@given(durations=st.lists(st.integers(0, 10**12), max_size=20), more=st.integers(1, 10**6))
def test_edges_count_right_wherever_a_histogram_begins(durations, more):
    histogram = Histogram.of(durations)
    again = Histogram.decode(histogram.encode())

    assert cumulative(again) == cumulative(histogram)


def test_openmetrics_tells_types_units_and_creation_times():
    family = a_family(
        "counter", Sample(("a",), 1, T0 + 500), name="orbit_cpu_seconds", unit="seconds"
    )

    assert "".join(openmetrics([family])) == (
        "# TYPE orbit_cpu_seconds counter\n"
        "# UNIT orbit_cpu_seconds seconds\n"
        "# HELP orbit_cpu_seconds What it is.\n"
        'orbit_cpu_seconds_total{worker="a"} 1\n'
        'orbit_cpu_seconds_created{worker="a"} 1700000000.5\n'
        "# EOF\n"
    )


def test_plain_text_names_a_counter_in_full_and_has_no_creation_times():
    assert "".join(plain([a_family("counter", Sample(("a",), 1, T0))])) == (
        "# HELP orbit_x_total What it is.\n"
        "# TYPE orbit_x_total counter\n"
        'orbit_x_total{worker="a"} 1\n'
    )


def test_an_info_is_a_gauge_in_plain_text():
    told = a_family("info", Sample(("1.2",), 1), labels=("version",), name="orbit_build")

    assert "# TYPE orbit_build_info gauge" in "".join(plain([told]))
    assert "# TYPE orbit_build info" in "".join(openmetrics([told]))
    assert read(openmetrics, parse_openmetrics, told) == {"orbit_build_info": {("1.2",): 1}}


@pytest.mark.parametrize("write", [plain, openmetrics])
def test_a_family_without_samples_is_left_out(write):
    assert "orbit_x" not in "".join(write([a_family("gauge")]))


# ---------------------------------------------------------------- all of it


async def everything(collector, reader, **options) -> list[Family]:
    session = a_session(collector)
    steps = [Step(name="parse", duration_us=MS)]
    error = an_error('a "quoted" \\ type')
    failed = a_result("a", 3 * MS, failed=True, error=error, wait_us=MS, steps=steps)
    collector.record(session, a_record(1, failed, a_batch(MS, 5 * MS)), T0)
    one = reader(**options)
    return [
        Family(f.name, f.kind, f.help, f.labels, list(f.samples), f.unit)
        for f in families(await one.read(), one.options)
    ]


def expected(told: Iterable[Family]) -> dict[str, int]:
    """How many samples of each family there are."""
    return {family.name: len(family.samples) for family in told if family.samples}


@pytest.mark.parametrize(("write", "parse"), FORMS)
async def test_everything_reads_back(collector, reader, write, parse):
    told = await everything(collector, reader)
    suffix = {"counter": "_total", "info": "_info"} if write is plain else {}
    lines = {}
    for family in parse("".join(write(told))):
        name = family.name
        samples = [s for s in family.samples if not s.name.endswith("_created")]
        if family.type == "histogram":
            samples = [s for s in samples if s.name.endswith("_count")]
        lines[name] = len(samples)

    def name(family: Family) -> str:
        # The parser of the plain format takes a counter's suffix off, and leaves a gauge's.
        return family.name + (suffix.get(family.kind, "") if family.kind == "info" else "")

    assert lines == {name(f): len(f.samples) for f in told if f.samples}


async def test_both_outcomes_are_there_from_the_start(collector, reader):
    collector.record(a_session(collector), a_record(1, a_batch(MS)), T0)
    one = reader()
    told = list(families(await one.read(), one.options))

    assert read(plain, parse_plain, *told)["orbit_runs_total"] == {
        ("mailer", "send", "success"): 1,
        ("mailer", "send", "failure"): 0,
    }


@pytest.mark.parametrize(
    ("option", "gone"),
    [
        ({"steps": False}, {"orbit_step_duration_seconds"}),
        ({"waits": False}, {"orbit_run_wait_seconds"}),
        (
            {"worker_label": False},
            {
                "orbit_worker_up",
                "orbit_worker_last_heartbeat_timestamp_seconds",
                "orbit_worker_start_time_seconds",
            },
        ),
    ],
)
async def test_what_is_turned_off_is_left_out(collector, reader, option, gone):
    everywhere = expected(await everything(collector, reader))
    without = await everything(collector, reader, **option)

    assert everywhere.keys() - expected(without).keys() == gone
    assert all("worker" not in f.labels for f in without) is ("worker_label" in option)


async def test_no_run_id_and_no_message_is_told(collector, reader):
    session = a_session(collector)
    secret = a_result("id-4711", failed=True, error=an_error("ValueError", "message-4711"))
    collector.record(session, a_record(1, secret), T0)
    one = reader()

    assert "4711" not in "".join(plain(families(await one.read(), one.options)))
