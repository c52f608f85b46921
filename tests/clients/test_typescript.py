"""What `orbit-metrics typescript` prints: it compiles, and works against a real service."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from builders import command
from orbit_rpc_schema.openrpc import document
from orbit_rpc_schema.procedures import PROCEDURES
from orbit_service.typescript import typescript

HERE = Path(__file__).parent
STRICTEST = [
    *("--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes"),
    *("--noPropertyAccessFromIndexSignature", "--noImplicitOverride", "--noImplicitReturns"),
    *("--noUnusedLocals", "--verbatimModuleSyntax", "--erasableSyntaxOnly"),
]
MODERN = ["--target", "es2022", "--module", "nodenext", "--skipLibCheck"]
# The one of Node that the program names itself, in place of a package with all of Node's types.
PROCESS = "declare const process: { argv: string[] };\n"


def test_every_procedure_stands_in_it_and_nothing_of_the_worker_socket():
    printed = typescript(document("1.2.3"))

    assert [name for name in PROCEDURES if f'  "{name}": {{ params: ' not in printed] == []
    assert "runs.record" not in printed
    assert "1.2.3" in printed


def test_it_is_the_same_whenever_it_is_printed(tmp_path):
    printed = {
        command(tmp_path, "typescript", PYTHONHASHSEED=seed).stdout for seed in ("1", "2", "3")
    }

    assert len(printed) == 1


def test_a_text_cannot_end_the_comment_that_it_stands_in():
    changed = json.loads(json.dumps(document("1.2.3")))
    changed["components"]["schemas"]["Metrics"]["description"] = "of */ all"

    assert "/** of * / all */\nexport interface Metrics {" in typescript(changed)


@pytest.mark.parametrize("options", [["--strict"], [*STRICTEST, *MODERN]], ids=["plain", "modern"])
def test_it_compiles(node, options):
    (node.folder / "orbit-metrics.ts").write_text(typescript(document("1.2.3")))

    assert node.tsc(*options, "--noEmit", "orbit-metrics.ts") == ""


@pytest.fixture
def deaf():
    """The URL of somebody who takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_program_uses_it(node, service, recorded, deaf, token):
    node.bring(HERE / "use.ts")
    (node.folder / "process.d.ts").write_text(PROCESS)
    (node.folder / "orbit-metrics.ts").write_text(typescript(document("1.2.3")))
    node.tsc(*STRICTEST, *MODERN, "use.ts", "process.d.ts")
    said = json.loads(
        node.run("node", "use.js", f"http://{service.service.http_address}", token, deaf)
    )

    assert (said["total"], said["hour"], said["error"]) == (2, 2, "ValueError")
    assert (said["unknown"]["kind"], said["unknown"]["code"]) == ("MethodNotFound", -32601)
    assert said["incomplete"]["message"] == "Invalid params: pipeline: Field required"
    assert said["invalid"]["kind"] == "InvalidParams"
    assert len(said["invalid"]["data"]["problems"]) == 2
    assert (said["refused"]["status"], said["refused"]["timedOut"]) == (401, False)
    assert "ORBIT_TOKEN" in said["refused"]["message"]
    assert said["late"]["timedOut"] is True
    assert said["late"]["message"] == f"no answer from {deaf}: none within 100 ms"
    assert (said["away"]["timedOut"], said["away"]["status"]) == (False, None)
