"""The programs of docs/trpc.md, compiled and run as they stand there."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest

from orbit_rpc_schema.openrpc import document
from orbit_service.typescript import typescript

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "trpc.md"
PROGRAMS = re.findall(r"```ts\n// (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
PROCESS = "declare const process: { argv: string[]; env: Record<string, string | undefined> };\n"


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def folder(node, service, port):
    """The programs of the page, with the addresses of here."""
    node.bring(HERE / "documented.ts")
    (node.folder / "process.d.ts").write_text(PROCESS)
    (node.folder / "orbit-metrics.ts").write_text(typescript(document("1.2.3")))
    for name, text in PROGRAMS:
        text = text.replace("127.0.0.1:8790", str(service.service.http_address))
        (node.folder / name).write_text(text.replace("127.0.0.1:3000", f"127.0.0.1:{port}"))
    return node


def test_the_three_ways_of_the_page_have_types_and_answers(folder, recorded, port, token):
    modern = ["--target", "es2022", "--module", "nodenext", "--skipLibCheck"]
    folder.tsc("--strict", *modern, "documented.ts", "process.d.ts")
    said = json.loads(folder.run("node", "documented.js", str(port), ORBIT_TOKEN=token))

    assert [name for name, _text in PROGRAMS] == [
        "router.ts",
        "split.ts",
        "orbit-router.ts",
        "all.ts",
    ]
    assert said == {
        "first": 2,
        "greeting": "your own procedures",
        "split": [2, 2, "error", 1],
        "dates": True,
        "all": 2,
        "workers": ["tests"],
        "wrong": "BAD_REQUEST",
    }
