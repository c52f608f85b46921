"""
`orbit-metrics alerts ...` as real processes.

Each command asks by its procedure, in params that the contract takes, and tells what came
of it. Who answers here knows the contract alone.
"""

from __future__ import annotations

import getpass
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from builders import T0, command
from orbit_rpc_schema.procedures import PROCEDURES
from orbit_service.alerts import EXAMPLE
from orbit_service.commands.alerts import login_name

ME = getpass.getuser()
ALERT = {
    "id": "a1",
    "rule": "error-rate",
    "severity": "critical",
    "phase": "firing",
    "labels": {"pipeline": "send"},
    "summary": "send: error rate over 5m is 40 %, above 10 %",
    "metric": "error_rate",
    "value": 40.0,
    "valueText": "40 %",
    "threshold": 10.0,
    "thresholdText": "10 %",
    "since": T0,
    "firedAt": T0,
    "clearing": False,
    "silencedBy": [],
    "acknowledged": None,
    "lastNotified": None,
    "recovery": [],
    "error": None,
    "runbook": None,
}
SILENCE = {
    "id": "s1",
    "matchers": {"pipeline": "send"},
    "from": T0,
    "until": T0,
    "reason": "known",
    "who": "ann",
}
LIST = {
    "alerts": [ALERT],
    "silences": [SILENCE],
    "evaluatedAt": T0,
    "evaluates": True,
    "trouble": None,
}
QUIET = {**LIST, "alerts": []}
ANSWERS: dict[str, Any] = {
    "alerts.list": LIST,
    "alerts.rules": {
        "rules": [],
        "channels": [],
        "file": "/etc/alerts.toml",
        "loadedAt": T0,
        "trouble": None,
        "dryRun": True,
    },
    "alerts.history": {"entries": [], "more": False},
    "alerts.backtest": {"from": T0, "to": T0, "step": 10_000, "rules": []},
    "alerts.silence": SILENCE,
    "alerts.unsilence": {"ok": True},
    "alerts.acknowledge": {"ok": True},
    "alerts.sendTest": {"ok": True, "seconds": 0.25},
    "alerts.reload": {"rules": 2, "channels": 1, "changed": ["slow", "errors"]},
}


class Contract:
    """Answers at a worker socket as the contract has it; what was asked last."""

    def __init__(self, path: Path) -> None:
        self.asked: tuple[str, dict[str, Any]] | None = None
        self.answers = dict(ANSWERS)
        contract = self

        class One(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(contract.answer(self.rfile.readline()))

        self.server = socketserver.ThreadingUnixStreamServer(str(path), One)
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def answer(self, line: bytes) -> bytes:
        request = json.loads(line)
        method, params = request["method"], request.get("params") or {}
        procedure, answer = PROCEDURES[method], self.answers[method]
        procedure.params.model_validate(params)
        self.asked = method, params
        if "code" in answer:
            return (
                json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": answer}).encode()
                + b"\n"
            )
        TypeAdapter(procedure.result).validate_python(answer)
        return (
            json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": answer}).encode() + b"\n"
        )

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def contract(tmp_path) -> Iterator[Contract]:
    contract = Contract(tmp_path / "worker.sock")
    yield contract
    contract.close()


@pytest.mark.parametrize(
    ("words", "method", "params", "printed"),
    [
        ("", "alerts.list", {}, "send: error rate over 5m is 40 %, above 10 %"),
        ("list", "alerts.list", {}, "critical  firing"),
        ("--phase firing --rule slow", "alerts.list", {"phase": "firing", "rule": "slow"}, "a1"),
        ("list --severity critical", "alerts.list", {"severity": "critical"}, "a1"),
        ("silences", "alerts.list", {}, "pipeline=send"),
        ("rules", "alerts.rules", {}, "/etc/alerts.toml"),
        ("history", "alerts.history", {"from": "-7d", "limit": 100}, "nothing happened"),
        (
            "history --last 2h --rule slow --alert a1 --limit 5",
            "alerts.history",
            {"from": "-2h", "rule": "slow", "alert": "a1", "limit": 5},
            "nothing happened",
        ),
        ("test", "alerts.backtest", {"from": "-7d"}, "looked at every 10 s"),
        ("test --last 1d --rule slow", "alerts.backtest", {"from": "-1d", "rule": "slow"}, "from"),
        (
            "silence pipeline=imp-* worker=a=b --for 2h --reason known",
            "alerts.silence",
            {
                "matchers": {"pipeline": "imp-*", "worker": "a=b"},
                "duration": "2h",
                "reason": "known",
                "who": ME,
            },
            "silence s1, until 2023-11-14 22:13:20 UTC",
        ),
        ("unsilence s1 --who ann", "alerts.unsilence", {"id": "s1", "who": "ann"}, "ended"),
        (
            "ack a1 --note looking",
            "alerts.acknowledge",
            {"alert": "a1", "note": "looking", "who": ME},
            "acknowledged",
        ),
        ("send-test mail", "alerts.sendTest", {"channel": "mail"}, "sent in 0.2 s"),
        ("reload", "alerts.reload", {}, "rules: 2, channels: 1; changed: slow, errors"),
    ],
)
def test_a_command_asks_by_its_procedure(tmp_path, contract, words, method, params, printed):
    outcome = command(tmp_path, "alerts", *words.split())

    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert contract.asked == (method, params)
    assert printed in outcome.stdout


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--json", LIST),
        ("silences --json", LIST["silences"]),
        ("rules --json", ANSWERS["alerts.rules"]),
        ("history --json", ANSWERS["alerts.history"]),
        ("test --json", ANSWERS["alerts.backtest"]),
    ],
)
def test_as_json_it_is_the_answer(tmp_path, contract, words, answer):
    assert json.loads(command(tmp_path, "alerts", *words.split()).stdout) == answer


@pytest.mark.parametrize(
    ("words", "answer", "code"),
    [
        pytest.param("list", LIST, 0, id="nobody asked whether"),
        pytest.param("--check", LIST, 1, id="it fires"),
        pytest.param("--check", QUIET, 0, id="nothing does"),
        pytest.param(
            "--check", {**QUIET, "alerts": [{**ALERT, "phase": "pending"}]}, 0, id="not yet"
        ),
        pytest.param("--check", {**QUIET, "trouble": "a bad file"}, 1, id="nobody looks"),
    ],
)
def test_a_script_can_ask_whether_something_fires(tmp_path, contract, words, answer, code):
    contract.answers["alerts.list"] = answer

    assert command(tmp_path, "alerts", *words.split()).returncode == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("silence pipeline --reason r", "'pipeline' is not name=pattern"),
        ("silence =x --reason r", "'=x' is not name=pattern"),
        ("silence pipeline= --reason r", "'pipeline=' is not name=pattern"),
        ("silence pipeline=a pipeline=b --reason r", "pipeline is given twice"),
        ("silence --reason r", "Missing argument 'NAME=PATTERN...'"),
        ("silence pipeline=a", "Missing option '--reason'"),
        ("history --limit 0", "0 is not in the range"),
        ("fire", "No such command 'fire'"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(tmp_path, words, said):
    outcome = command(tmp_path, "alerts", *words.split())

    assert outcome.returncode == 2
    assert said in outcome.stderr


def test_a_silence_by_a_label_that_no_rule_has_is_said(tmp_path, contract):
    outcome = command(tmp_path, "alerts", "silence", "pipline=x", "--reason", "r")

    assert (outcome.returncode, contract.asked[0]) == (0, "alerts.silence")
    assert outcome.stderr == (
        "it silences nothing now: no rule has the label pipline; "
        "there are pipeline, queue, rule, severity, step, worker\n"
    )


def test_a_bad_file_is_told_a_line_for_each_problem(tmp_path, contract):
    contract.answers["alerts.reload"] = {
        "code": -32032,
        "message": "The file of rules is not taken; those in force stay so.",
        "data": {"problems": "a.toml:1: \x1bno\na.toml:2: nor that"},
    }
    outcome = command(tmp_path, "alerts", "reload")

    assert outcome.returncode == 1
    assert outcome.stderr.splitlines() == [
        "orbit-metrics: alerts.reload: The file of rules is not taken; those in force stay so.",
        "a.toml:1: \N{REPLACEMENT CHARACTER}no",
        "a.toml:2: nor that",
    ]


def test_without_a_service_it_says_where_it_looked(tmp_path):
    outcome = command(tmp_path, "alerts")

    assert outcome.returncode == 1
    assert f"no service at {tmp_path / 'worker.sock'}" in outcome.stderr


def test_the_example_is_printed_as_it_is(tmp_path):
    assert command(tmp_path, "alerts", "example").stdout == EXAMPLE.read_text()


def test_where_a_uid_has_no_name_it_speaks_for_itself(monkeypatch):
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 10001")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert login_name().startswith("uid ")
