"""What is deployed with us, against a real Prometheus that scrapes a real service."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from builders import until
from processes import House
from prometheus import OPENMETRICS, Prometheus, promtool, scrape

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus"

# Everything that a dashboard can show. Until it is told to stop it goes on, so that each
# rate has something to count.
BUSY = """
import select, time
from orbit_worker import RunStep, default_client
from orbit_worker.host import Waiting

oldest = time.time_ns() // 1_000_000 - 90_000
default_client().describe(slots=2, queue_depths=lambda: {"letters": Waiting(7, oldest)})
record_run(-1, True)  # is dropped
hung = track("video", id="hung")
hung.__enter__()
step()
while not select.select([sys.stdin], [], [], 0.02)[0]:
    with track("mail", wait_ms=12.5) as run:
        with run.step("render"): pass
        with run.step("send"): pass
    record_run(40, True, pipeline="mail", attempt=2)
    record_run(90, False, pipeline="import", error=ValueError("no such row"))
    record_run(800, True, pipeline="import", steps=[RunStep("parse", 600)])
sys.stdin.readline()
hung.__exit__(None, None, None)
flush()
step()
"""

VICTIM = """
os.environ["ORBIT_WORKER_NAME"] = "victim"
record_run(5, True, pipeline="import")
with track("import", id="lost"):
    flush(); step()
"""

BRIEF = """
os.environ["ORBIT_WORKER_NAME"] = "brief"
for n in range(10): record_run(n, n != 3, pipeline="mail")
"""


LOAD = """
import select
while not select.select([sys.stdin], [], [], 0.001)[0]:
    for n in range(5):
        record_run(n, n > 0, pipeline="mail", wait_ms=n, error=None if n else OSError())
        with track("import") as run:
            with run.step("parse"): pass
"""


class OrbitHouse(House):
    """With HTTP, and further settings."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder)
        self.http = "127.0.0.1:0"
        self._settings = settings

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **self._settings}

    @property
    def address(self) -> str:
        return str(self.ask("service.info")["http"])


@pytest.fixture
def house(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OrbitHouse]:
    house = OrbitHouse(tmp_path, **getattr(request, "param", {}))
    yield house
    house.close()


class Scene:
    """Three workers, of which one is busy, one was killed and one has ended; and who watches."""

    def __init__(self, house: OrbitHouse, prometheus: Prometheus) -> None:
        self.prometheus = prometheus
        self._house = house
        self._busy = house.worker(BUSY)
        self._busy.reached()
        victim = house.worker(VICTIM)
        victim.reached()
        house.worker(BRIEF).leave()
        # Seen alive first: only then is its failure an increase.
        until(lambda: prometheus.values('orbit_runs_in_progress{pipeline="import"} > 0'))
        victim.kill()
        self._busy.go_on()

    def rest(self) -> None:
        """Nothing is recorded any more."""
        self._busy.go_on()
        self._busy.reached()

    def totals(self, field: str) -> dict[str, int]:
        """By worker, as the service answers."""
        asked = {w: self._house.ask("worker.metrics", worker=w) for w in WORKERS}
        return {w: (m if m["connected"] else m["lastLife"])[field] for w, m in asked.items()}


WORKERS = ("crew", "victim", "brief")


@pytest.fixture
def scene(house: OrbitHouse, tmp_path: Path) -> Iterator[Scene]:
    house.serve()
    rules = (RULES / "rules.yml").read_text().replace("interval: 1m", "interval: 1s")
    prometheus = Prometheus(tmp_path / "prometheus", house.address, rules=rules)
    yield Scene(house, prometheus)
    prometheus.close()


@pytest.fixture(scope="module")
def dashboard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard", DEPLOY / "grafana/dashboard.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- rules


def test_the_rules_are_valid():
    promtool("check", "rules", RULES / "rules.yml")


def test_the_rules_alarm_when_they_must_and_only_then():
    promtool("test", "rules", RULES / "rules_test.yml")


def test_every_alert_says_how_bad_it_is_and_is_shown_firing():
    rules = (RULES / "rules.yml").read_text()
    alerts = [rule.split("\n", 1) for rule in rules.split("- alert: ")[1:]]
    shown = (RULES / "rules_test.yml").read_text().split("alertname: ")[1:]
    firing = {one.split("\n")[0] for one in shown if one.split("\n")[1].strip() == "exp_alerts:"}

    assert {name for name, _rule in alerts} == firing
    for _name, rule in alerts:
        assert all(part in rule for part in ("severity: ", "summary: ", "description: "))


def test_the_example_of_a_configuration_is_valid(tmp_path):
    for file in RULES.glob("*.yml"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "orbit-token").write_text("a-token-of-the-service")

    promtool("check", "config", tmp_path / "prometheus.yml")


# ---------------------------------------------------------------- what is scraped


def test_promtool_finds_nothing_wrong_with_the_metrics(house):
    house.serve()
    busy = house.worker(BUSY)
    busy.reached()
    busy.go_on()
    until(lambda: "orbit_queue_oldest_timestamp_seconds{" in scrape(house.address))

    promtool("check", "metrics", stdin=scrape(house.address))


def test_every_query_of_the_dashboard_has_data(scene, dashboard):
    assert without_data(scene.prometheus, set(dashboard.queries(dashboard.build()))) == set()


@pytest.mark.parametrize("house", [{"ORBIT_EXPORT_WORKERS": "false"}], indirect=True)
def test_without_workers_only_what_tells_of_them_by_name_has_no_data(scene, dashboard):
    named = {"Up", "Last heard of", "Began"}
    queries = set(dashboard.queries(dashboard.build()))

    assert {panel for panel, query in queries if "orbit_worker_" in query} == named
    others = {(panel, query) for panel, query in queries if panel not in named}
    assert without_data(scene.prometheus, others) == set()


Query = tuple[str, str]  # title of its panel, expression


def without_data(prometheus: Prometheus, queries: set[Query], seconds: float = 60) -> set[Query]:
    """Which of them have never had a number in this time, with every variable at All."""
    assert len(queries) > 30
    left = set(queries)

    def all_have_data() -> bool:
        left.intersection_update(q for q in queries if not prometheus.values(substituted(q[1])))
        return not left

    with contextlib.suppress(AssertionError):
        until(all_have_data, seconds)
    return left


def substituted(query: str) -> str:
    return re.sub(r"\$(job|instance|worker|pipeline)\b", ".*", query).replace(
        "$__rate_interval", "10s"
    )


def test_every_rule_can_be_evaluated_over_what_a_service_tells(scene):
    prometheus = scene.prometheus
    recorded = {rule["name"] for rule in until(prometheus.rules) if rule["type"] == "recording"}

    until(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"})
    until(lambda: all(prometheus.query(name) for name in recorded))
    assert {rule["health"] for rule in prometheus.rules()} == {"ok"}


def test_prometheus_has_the_numbers_that_the_service_has(scene):
    until(lambda: scene.totals("totalRuns")["crew"] > 100)
    scene.rest()
    runs, failed = scene.totals("totalRuns"), scene.totals("failed")
    prometheus = scene.prometheus

    until(lambda: prometheus.by("worker", "sum by (worker) (orbit_runs_total)") == runs)
    until(lambda: prometheus.by("worker", "sum by (worker) (orbit_run_failures_total)") == failed)
    assert (runs["victim"], runs["brief"]) == (2, 10)


def test_the_run_of_a_killed_worker_is_an_error_of_its_own_type(scene):
    lost = 'orbit_run_errors_total{worker="victim",pipeline="import",error_type="WorkerLost"}'
    until(lambda: scene.prometheus.value(lost) == 1)

    until(lambda: scene.prometheus.value('orbit_worker_up{worker="victim"}') == 0)
    assert scene.prometheus.value('sum(increase(orbit_run_failures_total{worker="victim"}[1m]))')


def test_a_native_histogram_has_the_percentiles_of_the_service(house, tmp_path):
    house.serve()
    worker = house.worker("for n in range(1, 1001): record_run(37 * n, True)\nflush(); step()")
    worker.reached()
    told = house.metrics()
    prometheus = Prometheus(
        tmp_path / "prometheus", house.address, "--enable-feature=native-histograms"
    )
    try:
        seen = until(
            lambda: prometheus.value("histogram_quantile(0.95, orbit_run_duration_seconds)")
        )
        assert prometheus.query("orbit_run_duration_seconds_bucket") == []
    finally:
        prometheus.close()

    assert seen * 1000 == pytest.approx(told["p95"], rel=0.011)
    assert seen * 1000 == pytest.approx(37 * 950, rel=0.022)


# ---------------------------------------------------------------- kill -9


def test_no_counter_goes_back_when_the_service_is_killed(house):
    service = house.serve()
    worker = house.worker(LOAD)
    seen: dict[Counter, float] = {}

    def counted(runs: float) -> bool:
        now = counters(house)
        assert {c: n for c, n in now.items() if n < seen.get(c, 0)} == {}
        seen.update(now)
        return sum(n for (name, _labels), n in seen.items() if name == "orbit_runs_total") >= runs

    for kill in range(1, 6):
        until(lambda kill=kill: counted(300 * kill))
        assert len(seen) > 100
        service.kill()
        service.wait(10)
        service = house.serve()
    worker.go_on()
    worker.leave()
    until(lambda: counted(house.ended()["totalRuns"]))


Counter = tuple[str, tuple[tuple[str, str], ...]]  # name, labels

OF_THE_PROCESS = ("process_", "orbit_state_commit", "orbit_ingest_faults", "orbit_otlp_")


def counters(house: OrbitHouse) -> dict[Counter, float]:
    """What only grows, of the state and not of the process."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(scrape(house.address, OPENMETRICS))
        for sample in family.samples
        if sample.name.endswith(("_total", "_count", "_bucket"))
        if not sample.name.startswith(OF_THE_PROCESS)
    }
