"""HTTP for dashboards and probes: who is let in, and what they are answered."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from io import BytesIO
from typing import Any
from urllib.request import urlopen

import pytest
from aiohttp.test_utils import TestClient
from loguru import logger

from builders import T0
from conftest import RunningService
from orbit_rpc_schema.messages import WRITING
from orbit_rpc_schema.openrpc import document
from orbit_rpc_schema.wire import MAX_LINE
from orbit_service.alerting.answers import make_alert_handlers
from orbit_service.alerting.runner import Alerting
from orbit_service.core.collector import Collector
from orbit_service.core.health import health
from orbit_service.exported import Exported
from orbit_service.past import Archived
from orbit_service.rpc.dispatch import MAX_BATCH, Dispatcher
from orbit_service.rpc.handlers import make_handlers
from orbit_service.rpc.live import Live
from orbit_service.settings import Settings
from orbit_service.state.intake import Intake
from orbit_service.transport.access import Access
from orbit_service.transport.http import PROBES, HttpOptions, _in_time, make_app
from orbit_service.transport.listen import bounds

TOKEN = "correct-horse"
VERSION = "1.2.3"


@pytest.fixture
def serve(aiohttp_client):
    """A client of the application under these options."""

    async def serve(ready: bool = True, hub: bool = False, **options: Any) -> TestClient:
        """The options are those of Access; what was refused is in `client.faults`."""
        faults: list[str] = []
        collector = Collector("box")
        intake = Intake(collector)
        past = Archived(Settings(), intake, lambda: T0)
        alerting = Alerting(None, "box", None, past.archive, (), lambda: None)
        handlers = make_handlers(
            collector,
            lambda: T0,
            version=VERSION,
            info=lambda: None,
            health=lambda: health(collector, 1, T0),
            past=past.answers,
            fleet=past.fleet,
            alerts=make_alert_handlers(alerting),
        )
        app = make_app(
            Dispatcher(handlers),
            HttpOptions(document(VERSION), Access(**options), faults.append),
            ready=lambda: ready,
            health=lambda: health(collector, 1, T0),
            live=Live(handlers["worker.metrics"], lambda: T0, collector),
            scraper=None
            if hub
            else Exported(Settings(), intake, past, alerting, lambda: T0).scraper,
        )
        client = await aiohttp_client(app)
        client.faults = faults
        return client

    return serve


@pytest.fixture
async def http(serve):
    return await serve()


def a_call(method: str, params: Any = (), **more: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params, "id": 1, **more}


METRICS = a_call("worker.metrics")


# ---------------------------------------------------------------- calls


async def test_a_call_is_answered_as_json(http):
    response = await http.post("/rpc", json=METRICS)
    assert (response.status, response.content_type) == (200, "application/json")
    answer = await response.json()
    assert (answer["id"], answer["result"]["totalRuns"]) == (1, 0)


async def test_a_batch_is_answered_together(http):
    response = await http.post("/rpc", json=[METRICS, {**METRICS, "id": 2}])
    assert [answer["id"] for answer in await response.json()] == [1, 2]


async def test_an_error_of_the_call_is_no_error_of_http(http):
    response = await http.post("/rpc", json=a_call("worker.fire"))
    assert response.status == 200
    assert (await response.json())["error"]["code"] == -32601


async def test_a_body_that_is_not_json_is_a_parse_error(http):
    headers = {"Content-Type": "application/json"}
    response = await http.post("/rpc", data=b"{", headers=headers)
    assert (response.status, (await response.json())["error"]["code"]) == (200, -32700)


@pytest.mark.parametrize("count", [1, 3])
async def test_notifications_have_no_answer(http, count):
    note = {"jsonrpc": "2.0", "method": "worker.metrics"}
    response = await http.post("/rpc", json=note if count == 1 else [note] * count)
    assert (response.status, await response.read()) == (204, b"")


@pytest.mark.parametrize("method", sorted(WRITING))
async def test_a_writing_method_is_refused(http, method):
    response = await http.post("/rpc", json=a_call(method, {}))
    error = (await response.json())["error"]
    assert (error["code"], error["data"]["method"]) == (-32020, method)


async def test_a_batch_over_the_bound_is_refused(http):
    response = await http.post("/rpc", json=[METRICS] * (MAX_BATCH + 1))
    assert (await response.json())["error"]["code"] == -32011


async def test_a_body_over_the_bound_is_refused(http):
    body = json.dumps(METRICS).encode().ljust(MAX_LINE + 1)
    headers = {"Content-Type": "application/json"}
    assert (await http.post("/rpc", data=BytesIO(body), headers=headers)).status == 413


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_what_a_form_can_send_is_not_taken_for_a_call(http, content_type):
    headers = {"Content-Type": content_type}
    response = await http.post("/rpc", data=json.dumps(METRICS), headers=headers)
    assert response.status == 415


async def test_a_charset_beside_the_content_type_is_no_trouble(http):
    headers = {"Content-Type": "application/json; charset=utf-8"}
    response = await http.post("/rpc", data=json.dumps(METRICS), headers=headers)
    assert response.status == 200


async def test_rpc_is_post_alone(http):
    assert (await http.get("/rpc")).status == 405


async def test_the_openrpc_document_is_served(http):
    response = await http.get("/openrpc.json")
    assert await response.json() == document(VERSION)


# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:8790", "[::1]:8790"])
async def test_the_names_of_this_machine_are_ours(http, host):
    assert (await http.post("/rpc", json=METRICS, headers={"Host": host})).status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8790", "localhost.evil.example"])
async def test_another_name_is_refused_where_only_loopback_is_listened_on(http, host):
    response = await http.post("/rpc", json=METRICS, headers={"Host": host})
    assert response.status == 403


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://localhost:1", "null", "http://127.0.0.1:8790.evil"]
)
async def test_a_page_from_elsewhere_is_refused(http, origin):
    headers = {"Host": "127.0.0.1:8790", "Origin": origin}
    assert (await http.post("/rpc", json=METRICS, headers=headers)).status == 403


async def test_our_own_page_is_answered(http):
    headers = {"Host": "127.0.0.1:8790", "Origin": "http://127.0.0.1:8790"}
    assert (await http.post("/rpc", json=METRICS, headers=headers)).status == 200


async def test_with_a_token_any_name_will_do(serve):
    http = await serve(local=False, token=TOKEN)
    headers = {"Host": "box.example", "Authorization": f"Bearer {TOKEN}"}
    assert (await http.post("/rpc", json=METRICS, headers=headers)).status == 200


async def test_a_page_of_an_origin_that_is_named_may_ask_and_read(serve):
    http = await serve(origins=frozenset({"https://dash.example"}))
    page = {"Host": "127.0.0.1:8790", "Origin": "https://dash.example"}
    asks = {**page, "Access-Control-Request-Method": "POST"}

    preflight = await http.options("/rpc", headers=asks)
    answer = await http.post("/rpc", json=METRICS, headers=page)

    assert preflight.status == 204
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    for response in (preflight, answer):
        assert response.headers["Access-Control-Allow-Origin"] == "https://dash.example"
        assert response.headers["Vary"] == "Origin"
    assert (await answer.json())["result"]["totalRuns"] == 0


async def test_a_page_that_is_named_reads_why_it_is_refused(serve):
    http = await serve(origins=frozenset({"https://dash.example"}), token=TOKEN)
    page = {"Origin": "https://dash.example"}
    answer = await http.post("/rpc", json=METRICS, headers=page)

    assert answer.status == 401
    assert answer.headers["Access-Control-Allow-Origin"] == "https://dash.example"


async def test_a_page_that_is_not_named_learns_nothing_by_asking_first(http):
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = await http.options("/rpc", headers=headers)

    assert answer.status == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_no_answer_can_be_embedded_or_taken_for_something_else(http):
    for answer in (await http.get("/metrics"), await http.get("/nowhere")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Host": "evil.example"}, "http host"),
        ({"Origin": "https://evil.example"}, "http origin"),
        ({}, "http token"),
    ],
)
async def test_what_is_refused_is_counted_by_reason(serve, headers, reason):
    http = await serve(token=TOKEN)
    await http.get("/openrpc.json", headers=headers)
    assert http.faults == [reason]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong-horse"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
    ],
    ids=["none", "empty", "wrong", "longer", "Basic", "no scheme"],
)
@pytest.mark.parametrize("path", ["/rpc", "/openrpc.json"])
async def test_without_the_token_nobody_is_answered(serve, path, headers):
    http = await serve(token=TOKEN)
    method = "POST" if path == "/rpc" else "GET"
    response = await http.request(method, path, headers=headers)
    assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")


def test_a_token_of_bytes_that_are_no_text_is_wrong_like_any_other(running_with_token):
    with connect(running_with_token) as raw:
        raw.sendall(
            b"GET /openrpc.json HTTP/1.1\r\nHost: localhost\r\n"
            b"Authorization: Bearer \xff\xfe\r\nConnection: close\r\n\r\n"
        )
        assert raw.recv(12) == b"HTTP/1.1 401"


@pytest.fixture
def running_with_token(tmp_path):
    running = RunningService(tmp_path / "guarded.sock", ORBIT_TOKEN=TOKEN)
    running.start()
    yield running
    running.close()


# ---------------------------------------------------------------- probes


@pytest.mark.parametrize("path", PROBES)
@pytest.mark.parametrize("hosts", [frozenset(), frozenset({"metrics.example"})])
async def test_a_probe_from_elsewhere_needs_no_token_and_no_name(serve, path, hosts):
    http = await serve(local=False, token=TOKEN, hosts=hosts)
    assert (await http.get(path, headers={"Host": "10.0.0.7:8790"})).status == 200


async def test_a_probe_on_loopback_is_no_way_around_the_name(http):
    assert (await http.get("/healthz", headers={"Host": "evil.example"})).status == 403


async def test_healthz_names_workers_to_those_alone_who_have_the_token(serve):
    http = await serve(token=TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"}

    assert await (await http.get("/healthz")).json() == {"ready": True, "status": "healthy"}
    assert "message" in await (await http.get("/healthz", headers=headers)).json()


@pytest.mark.parametrize(("path", "status"), [("/livez", 200), ("/readyz", 503), ("/healthz", 503)])
async def test_a_service_that_takes_no_runs_lives_and_is_not_ready(serve, path, status):
    assert (await (await serve(ready=False)).get(path)).status == status


async def test_healthz_says_what_worker_health_says(http):
    asked = await (await http.post("/rpc", json=a_call("worker.health"))).json()
    assert await (await http.get("/healthz")).json() == {"ready": True, **asked["result"]}


# ---------------------------------------------------------------- the service as it runs


def test_the_running_service_listens_where_it_says(service):
    with urlopen(f"http://{service.ask('service.info')['http']}/readyz") as response:
        assert response.read() == b"takes runs\n"


def test_http_and_the_socket_answer_alike(service):
    with urlopen(f"http://{service.ask('service.info')['http']}/openrpc.json") as response:
        assert json.load(response) == service.ask("rpc.discover")


# ---------------------------------------------------------------- GET /metrics


async def test_a_scrape_is_answered_in_the_form_that_it_asks_for(http):
    plain = await http.get("/metrics")
    opened = await http.get("/metrics", headers={"Accept": "application/openmetrics-text"})

    assert plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "orbit_build_info" in await plain.text()
    assert opened.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert (await opened.text()).endswith("# EOF\n")


async def test_a_scrape_is_compressed_for_whoever_takes_that(http):
    page = await http.get("/metrics", headers={"Accept-Encoding": "gzip"})

    assert page.headers["Content-Encoding"] == "gzip"
    assert "orbit_build_info" in await page.text()


async def test_a_scrape_needs_the_token(serve):
    client = await serve(token=TOKEN)

    assert (await client.get("/metrics")).status == 401
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert (await client.get("/metrics", headers=headers)).status == 200


async def test_a_hub_says_that_its_nodes_are_to_be_scraped(serve):
    answer = await (await serve(hub=True)).get("/metrics")

    assert answer.status == 404
    assert "scrape its nodes" in await answer.text()


async def test_a_head_of_the_page_is_no_page(http):
    """aiohttp would send the body with it, and the next answer after that."""
    assert (await http.head("/metrics")).status == 405
    assert (await http.get("/metrics")).status == 200


async def test_more_scrapes_than_can_be_written_at_once_are_told_to_come_again(http, monkeypatch):
    monkeypatch.setattr("orbit_service.exporters.scrape.MAX_PAGES", 0)
    answer = await http.get("/metrics")

    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


# ---------------------------------------------------------------- plain calls
# A plain call is answered before it is routed. The charset below, which says nothing new, sends
# the same call the long way.

LONG_WAY = {"Content-Type": "application/json; charset=utf-8"}


def post(service: RunningService, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers without the time of day, and body."""
    usual = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": len(body)}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**usual, **headers}.items())
    with connect(service) as connection:
        # In one piece: a call is plain only where its body has come with its head.
        connection.sendall(f"POST /rpc HTTP/1.1\r\n{head}\r\n".encode() + body)
        response = HTTPResponse(connection)
        response.begin()
        told = {name: value for name, value in response.getheaders() if name != "Date"}
        return response.status, told, response.read()


@pytest.fixture
def at_rest(tmp_path):
    """A service whose clock stands still."""
    running = RunningService(tmp_path / "worker.sock", lambda: T0)
    running.start()
    yield running
    running.close()


@pytest.mark.parametrize(
    "body",
    {
        "a call": METRICS,
        "by position": a_call("worker.metrics", ["a", "b"]),
        "a call that waits": a_call("worker.metrics", {"window": "5m"}),
        "a long answer": a_call("rpc.discover"),
        "a notification": {"jsonrpc": "2.0", "method": "worker.metrics"},
        "a batch": [METRICS, METRICS],
        "an error": a_call("worker.metrics", {"x": 1}),
        "no method": a_call("worker.fire"),
        "no request": {"jsonrpc": "2.0"},
        "no call": 5,
    }.items(),
    ids=lambda case: case[0],
)
def test_a_plain_call_is_answered_as_any_other(at_rest, body):
    sent = json.dumps(body[1]).encode()

    assert post(at_rest, sent) == post(at_rest, sent, **LONG_WAY)


def test_a_plain_call_is_not_routed(service, monkeypatch):
    routed = []

    def spied(request: Any, *rest: Any) -> Any:
        routed.append(request.headers["Content-Type"])
        return _in_time(request, *rest)

    monkeypatch.setattr("orbit_service.transport.http._in_time", spied)
    for headers in ({}, LONG_WAY):
        assert post(service, json.dumps(METRICS).encode(), **headers)[0] == 200

    assert routed == list(LONG_WAY.values())


def test_what_is_no_json_is_answered_alike(at_rest):
    assert post(at_rest, b"{") == post(at_rest, b"{", **LONG_WAY)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
        ({}, 401),
        ({"Authorization": "Bearer wrong-horse"}, 401),
        ({"Authorization": f"Bearer {TOKEN}", "Host": "evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "https://evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}", "Content-Type": "text/plain"}, 415),
        ({"Authorization": f"Bearer {TOKEN}", "Content-Encoding": "gzip"}, 415),
    ],
)
def test_no_call_is_plain_enough_to_pass_the_guard(running_with_token, headers, status):
    assert post(running_with_token, json.dumps(METRICS).encode(), **headers)[0] == status


def test_a_long_body_of_a_running_service_is_bounded(service):
    assert post(service, json.dumps(METRICS).encode().ljust(MAX_LINE))[0] == 200
    assert post(service, json.dumps(METRICS).encode().ljust(MAX_LINE + 1))[0] == 413


@pytest.mark.parametrize("method", ["worker.metrics", "rpc.discover"])
def test_whoever_reads_no_answers_is_left(service, monkeypatch, method):
    monkeypatch.setattr("orbit_service.transport.http.REQUEST_SECONDS", 0.1)
    body = json.dumps(a_call(method)).encode()
    call = b"POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    call += b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    with connect(service) as deaf, suppress(ConnectionError):
        while True:  # until it is hung up on
            deaf.sendall(call)

    assert faults(service)["http time-out"] == 1


# ---------------------------------------------------------------- bounds


def read_all(connection: socket.socket) -> bytes:
    """Until the other side hangs up, which it does in time."""
    connection.settimeout(30)
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def connect(service: RunningService) -> socket.socket:
    return socket.create_connection(service.service.http_address, timeout=30)


def faults(service: RunningService) -> dict[str, int]:
    return service.ask("service.info")["intake"]["faults"]


def test_over_the_bound_a_connection_is_told_so_and_ended(bounded_to_one):
    service = bounded_to_one
    with connect(service) as first:
        first.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert first.recv(15) == b"HTTP/1.1 200 OK"
        with connect(service) as second:
            assert read_all(second).startswith(b"HTTP/1.1 503 ")

    assert faults(service)["http connections"] == 1


@pytest.fixture
def bounded_to_one(tmp_path, monkeypatch):
    """A service that takes one connection over HTTP at a time."""
    monkeypatch.setattr("orbit_service.transport.listen.MAX_HTTP", 1)
    running = RunningService(tmp_path / "worker.sock")
    running.start()
    yield running
    running.close()


def test_bounds_fit_into_the_limit_of_open_files(monkeypatch):
    for soft, at_most in ((256, 128), (1_024, 896), (65_536, 6_144)):
        monkeypatch.setattr("resource.getrlimit", lambda _which, soft=soft: (soft, soft))
        workers, http = bounds()
        assert workers + http <= at_most
        assert workers > http > 0


@pytest.mark.parametrize(
    "head",
    [
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer correct-horse\x00\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nHost: y\r\nX: correct-horse\r\n\r\n",
        b"correct-horse\r\n\r\n",
    ],
)
def test_what_is_not_http_is_counted_and_nothing_of_it_is_logged(service, said, caplog, head):
    with connect(service) as wire:
        wire.sendall(head)
        assert wire.recv(12).endswith(b"400")

    assert faults(service)["http malformed"] == 1
    assert "correct-horse" not in "".join(said) + caplog.text


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the service logs."""
    lines: list[str] = []
    sink = logger.add(lines.append, level="TRACE")
    yield lines
    logger.remove(sink)


def test_a_compressed_body_is_refused_before_it_grows(service):
    body = gzip.compress(b" " * 10_000_000)
    head = b"POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(service) as wire:
        wire.sendall(head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body))
        wire.sendall(body)
        assert wire.recv(12) == b"HTTP/1.1 415"


def test_a_path_makes_no_lines_in_the_log(service, said):
    with connect(service) as wire:
        wire.sendall(b"GET /x%0aforged%1b[31m HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert wire.recv(12) == b"HTTP/1.1 403"

    [line] = [line for line in said if "forged" in line]
    assert "\\nforged" in line


def test_a_request_whose_body_does_not_come_ends(service, monkeypatch):
    monkeypatch.setattr("orbit_service.transport.http.REQUEST_SECONDS", 0.1)
    head = b"POST /rpc HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connect(service) as slow:
        slow.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert read_all(slow) == b""

    assert faults(service)["http time-out"] == 1


@pytest.mark.parametrize(
    "sent", [b"", b"GET /livez HTTP/1.1\r\nHo"], ids=["nothing", "half a head"]
)
def test_a_connection_that_does_not_ask_ends(tmp_path, monkeypatch, sent):
    monkeypatch.setattr("orbit_service.transport.http.IDLE_SECONDS", 0.1)
    service = RunningService(tmp_path / "worker.sock")
    service.start()
    with connect(service) as silent:
        silent.sendall(sent)
        assert read_all(silent) == b""
    service.close()
