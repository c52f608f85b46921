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
def listener():
    """Where the page's own server listens; a port that was let go could be another's by then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def folder(node, service, listener):
    """The programs of the page, with the addresses of here."""
    node.bring(HERE / "documented.ts")
    (node.folder / "process.d.ts").write_text(PROCESS)
    (node.folder / "orbit-metrics.ts").write_text(typescript(document("1.2.3")))
    port = listener.getsockname()[1]
    for name, text in PROGRAMS:
        text = text.replace("127.0.0.1:8790", str(service.service.http_address))
        (node.folder / name).write_text(text.replace("127.0.0.1:3000", f"127.0.0.1:{port}"))
    return node


def test_the_three_ways_of_the_page_have_types_and_answers(folder, recorded, listener, token):
    modern = ["--target", "es2022", "--module", "nodenext", "--skipLibCheck"]
    folder.tsc("--strict", *modern, "documented.ts", "process.d.ts")
    handed = listener.fileno()
    run = folder.run("node", "documented.js", str(handed), pass_fds=[handed], ORBIT_TOKEN=token)
    said = json.loads(run)

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
