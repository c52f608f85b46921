"""The error tree, its codes and its texts."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from orbit_rpc_schema import errors
from orbit_rpc_schema.errors import (
    BatchTooLarge,
    InvalidParams,
    LineTooLong,
    MethodNotFound,
    NotConnected,
    OrbitError,
    ParseError,
    SocketOnly,
    TooManyConnections,
    UnsupportedProtocol,
    all_errors,
)

OURS = list(all_errors())


def test_the_tree_drawn_at_the_top_of_the_file_is_the_tree() -> None:
    drawn = re.findall(r"^    ([│├└─ ]*)(\w+)(?: +(-\d+).*)?$", errors.__doc__ or "", re.MULTILINE)
    depths = {name: len(branch) // 4 for branch, name, _code in drawn}

    assert depths == {error.__name__: error.__mro__.index(OrbitError) for error in OURS}
    assert all(getattr(errors, name).code == int(code) for _, name, code in drawn if code)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        ("ParseError", -32700, "Parse error"),
        ("InvalidRequest", -32600, "Invalid Request"),
        ("MethodNotFound", -32601, "Method not found"),
        ("InvalidParams", -32602, "Invalid params"),
        ("InternalError", -32603, "Internal error"),
    ],
)
def test_the_errors_of_json_rpc_are_said_in_its_words(error: str, code: int, message: str) -> None:
    assert getattr(errors, error)().to_json() == {"code": code, "message": message}


def test_no_two_errors_share_a_code() -> None:
    codes = [error.code for error in OURS if "code" in vars(error)]

    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(
    ("error", "fields", "message"),
    [
        (LineTooLong, {"limit": 9}, "The line is over 9 bytes and was skipped."),
        (BatchTooLarge, {"limit": 5, "size": 6}, "A batch holds at most 5 calls; this one has 6."),
        (SocketOnly, {"method": "m"}, "m is for workers, on the Unix socket."),
        (NotConnected, {"method": "m"}, "m needs a worker.connect first on this connection."),
        (
            UnsupportedProtocol,
            {"asked": 9, "supported": 1},
            "Protocol 9 is not spoken here; 1 is.",
        ),
        (TooManyConnections, {"limit": 5}, "The service holds 5 connections already."),
    ],
)
def test_the_message_is_the_first_line_with_its_fields(
    error: type[OrbitError], fields: dict[str, Any], message: str
) -> None:
    assert error(**fields).message == message


def test_the_advice_is_in_the_data_beside_the_fields() -> None:
    assert LineTooLong(limit=9).to_json()["data"] == {
        "limit": 9,
        "advice": "Send runs in more than one message.",
    }


def test_an_error_without_fields_and_advice_has_no_data() -> None:
    assert "data" not in ParseError().to_json()


def test_fields_that_the_text_does_not_name_are_data_too() -> None:
    assert InvalidParams(problems=["no"]).to_json()["data"] == {"problems": ["no"]}


def test_the_whole_text_is_what_a_log_shows() -> None:
    assert str(MethodNotFound()) == "Method not found"
    assert str(LineTooLong(limit=9)).splitlines()[1] == "Send runs in more than one message."


def test_without_docstrings_the_name_stands_in() -> None:
    code = "from orbit_rpc_schema.errors import LineTooLong; print(LineTooLong(limit=9))"
    run = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, check=True)

    assert run.stdout == b"LineTooLong\n"
