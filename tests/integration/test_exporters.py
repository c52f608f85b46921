"""Exporters of a service that runs: a disk that fails, a collector that is told."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from builders import until
from conftest import RunningService
from orbit_service.state.store import StoreFailed


def scrape(running: RunningService) -> dict[str, float]:
    """The sum of the samples of each name."""
    with urlopen(f"http://{running.service.http_address}/metrics") as page:
        text = page.read().decode()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[RunningService]:
    """A service with a state directory."""
    running = RunningService(tmp_path / "worker.sock", ORBIT_STATE=tmp_path / "state")
    running.start()
    yield running
    running.close()


def test_a_scrape_tells_what_was_acknowledged(durable, client):
    client.record_run(5, True)
    assert client.flush()

    assert scrape(durable)["orbit_runs_total"] == 1


def test_counters_go_on_after_a_restart(durable, client):
    client.record_run(5, True)
    assert client.flush()
    durable.stop()
    durable.start()
    client.record_run(5, True)
    assert client.flush(20)

    assert scrape(durable)["orbit_runs_total"] == 2


def test_while_the_disk_takes_nothing_counters_stand_still_and_it_is_said(durable, client):
    client.record_run(5, True)
    assert client.flush()
    assert scrape(durable)["orbit_runs_total"] == 1
    store = durable.service.intake.journal._store
    write, store.write = store.write, _fails
    client.record_run(5, True)
    told = until(lambda: (page := scrape(durable))["orbit_degraded"] and page)
    assert durable.service.collector.ledger.counted == 2
    assert told["orbit_runs_total"] == 1

    store.write = write
    assert until(lambda: scrape(durable)["orbit_runs_total"] == 2)


def _fails(*_arguments: object) -> None:
    raise StoreFailed("no space left on device")


class Collecting(BaseHTTPRequestHandler):
    """Takes what is pushed."""

    pushed: list[int]

    def do_POST(self) -> None:
        body = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
        message = ExportMetricsServiceRequest.FromString(body)
        for metric in message.resource_metrics[0].scope_metrics[0].metrics:
            if metric.name == "orbit.runs":
                self.pushed.append(sum(point.as_int for point in metric.sum.data_points))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def collecting() -> Iterator[ThreadingHTTPServer]:
    Collecting.pushed = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collecting)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_when_the_service_stops_the_collector_has_everything(tmp_path, collecting, client):
    url = f"http://127.0.0.1:{collecting.server_port}"
    running = RunningService(tmp_path / "worker.sock", ORBIT_OTLP_URL=url, ORBIT_OTLP_INTERVAL=3600)
    running.start()
    client.record_run(5, True)
    assert client.flush()
    running.close()

    assert Collecting.pushed == [1]


def test_a_collector_that_is_away_is_said_and_holds_up_nothing(tmp_path, client):
    running = RunningService(
        tmp_path / "worker.sock", ORBIT_OTLP_URL="http://127.0.0.1:1", ORBIT_OTLP_INTERVAL=1
    )
    running.start()
    client.record_run(5, True)
    assert client.flush()
    health = until(lambda: (h := running.ask("worker.health"))["status"] == "warning" and h)
    running.close()

    assert "OpenTelemetry" in health["message"]
