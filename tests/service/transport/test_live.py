"""GET /ws: calls and subscriptions over a WebSocket, of a real service."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from conftest import RunningService
from orbit_service.transport import live
from orbit_worker.client import MetricsClient

TOKEN = "correct-horse"


class Wire:
    """A WebSocket, and what has come over it that was not waited for yet."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self._told: list[dict[str, Any]] = []

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer; notifications in between are kept."""
        call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        await self.socket.send_json(call)
        while "id" not in (message := await self._read()):
            self._told.append(message)
        return message

    async def told(self, method: str) -> dict[str, Any]:
        """The params of the next notification of this name."""
        while True:
            message = self._told.pop(0) if self._told else await self._read()
            if message.get("method") == method:
                return message["params"]

    async def _read(self) -> dict[str, Any]:
        return await self.socket.receive_json(timeout=20)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def wire(session, service) -> AsyncIterator[Wire]:
    async with session.ws_connect(url(service)) as socket:
        yield Wire(socket)


@pytest.fixture
def guarded(tmp_path):
    running = RunningService(tmp_path / "guarded.sock", ORBIT_TOKEN=TOKEN)
    running.start()
    yield running
    running.close()


def url(service: RunningService) -> str:
    return f"http://{service.service.http_address}/ws"


def a_subprotocol(token: str) -> str:
    return "bearer." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


async def test_it_answers_what_rpc_answers(wire, service):
    answer = await wire.ask("service.ledger")
    assert answer["result"] == service.ask("service.ledger")
    assert (await wire.ask("worker.fire"))["error"]["code"] == -32601
    assert (await wire.ask("runs.record"))["error"]["code"] == -32020


async def test_totals_and_runs_are_told_as_they_come(wire, client: MetricsClient):
    await wire.ask("worker.subscribe", interval=250, pipeline="send")
    await wire.ask("runs.subscribe", status="failed")
    client.record_run(20, True, pipeline="send")
    client.record_run(30, False, pipeline="send", id="r2", error=ValueError("no"))
    await asyncio.to_thread(client.flush, 5)

    [run] = (await wire.told("runs.ended"))["runs"]
    assert (run["id"], run["error"]["type"], run["durationMs"]) == ("r2", "ValueError", 30)
    while (await wire.told("worker.update"))["metrics"]["totalRuns"] != 2:
        pass


async def test_what_is_unsubscribed_from_is_told_no_more(wire):
    name = (await wire.ask("worker.subscribe", interval=250))["result"]["subscription"]
    other = (await wire.ask("worker.subscribe", interval=251))["result"]["subscription"]
    await wire.told("worker.update")
    assert (await wire.ask("unsubscribe", subscription=name))["result"] == {"ok": True}
    wire._told.clear()

    assert {(await wire.told("worker.update"))["subscription"] for _ in range(3)} == {other}


@pytest.mark.parametrize("interval", [0, 249, 60_001, "soon"])
async def test_an_interval_out_of_bounds_is_refused(wire, interval):
    answer = await wire.ask("worker.subscribe", interval=interval)
    assert answer["error"]["code"] == -32602


async def test_over_http_a_subscription_says_where_to_go(session, service):
    call = {"jsonrpc": "2.0", "id": 1, "method": "worker.subscribe"}
    async with session.post(url(service).replace("/ws", "/rpc"), json=call) as answer:
        error = (await answer.json())["error"]
    assert (error["code"], error["data"]["advice"]) == (-32027, "Connect to /ws.")


async def test_a_batch_is_answered_together(wire):
    call = {"jsonrpc": "2.0", "id": 1, "method": "worker.subscribe"}
    await wire.socket.send_json([call, {**call, "id": 2, "method": "worker.metrics"}])
    answers = await wire._read()
    assert [answer["id"] for answer in answers] == [1, 2]


@pytest.mark.parametrize(
    "how",
    [
        {"headers": {"Authorization": f"Bearer {TOKEN}"}},
        {"protocols": (live.PROTOCOL, a_subprotocol(TOKEN))},
    ],
    ids=["header", "subprotocol"],
)
async def test_with_the_token_one_is_let_in(session, guarded, how):
    async with session.ws_connect(url(guarded), **how) as socket:
        assert (await Wire(socket).ask("worker.metrics"))["result"]["totalRuns"] == 0


@pytest.mark.parametrize(
    "protocols",
    [(), (live.PROTOCOL,), (live.PROTOCOL, a_subprotocol("another")), ("bearer.!", live.PROTOCOL)],
)
async def test_without_it_one_is_not(session, guarded, protocols):
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await session.ws_connect(url(guarded), protocols=protocols)
    assert refused.value.status == 401


async def test_a_page_from_elsewhere_is_refused(session, service):
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await session.ws_connect(url(service), headers={"Origin": "https://evil.example"})
    assert refused.value.status == 403


async def test_over_the_bound_one_is_told_to_go(session, service, monkeypatch):
    monkeypatch.setattr(live, "MAX_LISTENERS", 0)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await session.ws_connect(url(service))
    assert refused.value.status == 503
    assert service.ask("service.info")["intake"]["faults"] == {"live connections": 1}


@pytest.mark.parametrize("sent", ["{", '"x"', "[]", '{"jsonrpc":"2.0","method":1}'])
async def test_what_is_no_call_is_an_error_and_the_connection_goes_on(wire, sent):
    await wire.socket.send_str(sent)
    assert "error" in await wire._read()
    assert "result" in await wire.ask("worker.metrics")


async def test_a_message_that_is_too_large_or_not_text_ends_the_connection(session, service):
    for send in ("send_bytes", "send_str"):
        async with session.ws_connect(url(service)) as socket:
            await getattr(socket, send)(b"x" if send == "send_bytes" else "x" * 1_100_000)
            assert (await socket.receive(timeout=20)).type is not aiohttp.WSMsgType.TEXT


async def test_a_service_that_stops_says_goodbye(session, service):
    async with session.ws_connect(url(service)) as socket:
        await Wire(socket).ask("worker.subscribe")
        stopping = asyncio.to_thread(service.stop)
        ended, _ = await asyncio.gather(last_of(socket), stopping)
    assert ended == 1001


async def last_of(socket: aiohttp.ClientWebSocketResponse) -> int | None:
    async for message in socket:
        json.loads(message.data)
    return socket.close_code
