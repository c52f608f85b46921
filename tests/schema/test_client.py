"""The Python client: every procedure, typed, over the socket and over HTTP."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any, get_type_hints

import pytest
from pydantic.alias_generators import to_camel

from conftest import RunningService
from orbit_rpc_schema.client import CallFailed, OrbitClient
from orbit_rpc_schema.procedures import PROCEDURES

TOKEN = "correct-horse"
ASKED = [name for name in PROCEDURES if name != "rpc.discover"]  # which is for tools


def method_of(client: OrbitClient, procedure: str) -> Any:
    room, _, name = procedure.partition(".")
    by_camel = {to_camel(n): m for n, m in inspect.getmembers(getattr(client, room))}
    return by_camel[name]


@pytest.mark.parametrize("procedure", ASKED)
def test_every_procedure_has_a_method_of_its_params_and_its_result(procedure):
    method, row = method_of(OrbitClient("http://x"), procedure), PROCEDURES[procedure]

    assert inspect.signature(method).parameters.keys() == row.params.model_fields.keys()
    assert get_type_hints(method)["return"] == row.result


@pytest.fixture
def guarded(tmp_path):
    running = RunningService(tmp_path / "worker.sock", ORBIT_TOKEN=TOKEN)
    running.start()
    yield running
    running.close()


@pytest.fixture(params=["socket", "HTTP"])
def orbit(request, guarded) -> OrbitClient:
    if request.param == "socket":
        return OrbitClient(guarded.socket)
    return OrbitClient(f"http://{guarded.service.http_address}", token=TOKEN)


def test_it_answers_in_models(orbit, client):
    client.record_run(1250, True, pipeline="send")
    client.record_run(10, False, pipeline="send", id="r2", error=ValueError("no"))
    client.flush(5)

    assert orbit.worker.metrics(pipeline="send").total_runs == 2
    assert orbit.worker.metrics(window="1h").max_execution_time == 1250
    [failed] = orbit.worker.recent_runs(status="failed")
    assert (failed.id, failed.error.type) == ("r2", "ValueError")
    assert orbit.worker.history(from_="-1h", step="1m").groups[0].total.runs == 2
    assert orbit.pipelines.metrics("send", from_="-1h").errors[0].type == "ValueError"
    assert orbit.service.ledger(worker="tests").balanced


def test_an_error_that_is_answered_says_what_is_wrong(orbit):
    with pytest.raises(CallFailed, match="Invalid params"):
        orbit.worker.metrics(window="soon")
    with pytest.raises(CallFailed, match="No run can be put in here"):
        orbit.runs.create("send")


def test_without_a_service_or_the_token_it_is_an_os_error(tmp_path, guarded):
    with pytest.raises(OSError, match="No such file"):
        OrbitClient(tmp_path / "nobody.sock").worker.stats()
    with pytest.raises(OSError, match="401"):
        OrbitClient(f"http://{guarded.service.http_address}").worker.stats()


def test_what_a_newer_service_tells_beyond_the_models_is_passed_over(monkeypatch):
    orbit = OrbitClient("http://x")
    monkeypatch.setattr(orbit, "call", lambda _method, _params: {"id": "r1", "news": 1})
    assert orbit.runs.create("send").id == "r1"


def test_it_needs_nothing_but_pydantic():
    ours = {"aiohttp", "msgspec", "loguru", "click", "rich", "sqlalchemy", "jsonrpcserver"}
    code = f"import sys, orbit_rpc_schema.client; print(*{ours} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "\n"
