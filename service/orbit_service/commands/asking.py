"""What commands share: where the service is, one question to it, and an end in a sentence."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from orbit_rpc_schema.caller import CallFailed, call, call_http, is_sendable
from orbit_rpc_schema.wire import default_socket_path
from orbit_service.plain import plain


def fail(sentence: str, code: int = 1) -> NoReturn:
    click.echo(f"orbit-metrics: {sentence}", err=True)
    sys.exit(code)


socket_option = click.option(
    "--socket",
    # Whether it can be used is for the commands to find out, doctor above all.
    type=click.Path(path_type=Path, readable=False),
    default=default_socket_path,
    show_default="ORBIT_SOCKET, else where the service is by default",
    help="The worker socket of the service.",
)


def without_secret(
    _context: click.Context, _option: click.Parameter, url: str | None
) -> str | None:
    """The URL, which is shown when something is wrong with it."""
    if url is not None and "@" in url:
        raise click.BadParameter(
            "no user and password in it; the token is read from ORBIT_TOKEN or ORBIT_TOKEN_FILE"
        )
    return url


url_option = click.option(
    "--url",
    callback=without_secret,
    help="A service or hub over HTTP in place of the socket, such as http://127.0.0.1:8790; "
    "the token is read from ORBIT_TOKEN or ORBIT_TOKEN_FILE.",
)


def ask(socket: Path, url: str | None, method: str, params: Any = ()) -> Any:
    """One call to the service, or the end of the command."""
    try:
        if url is None:
            # A question about the past may have to wait for a database.
            return call(socket, method, params, timeout=35.0)
        return call_http(url, method, params, token=token())
    except CallFailed as error:
        problems = (error.data or {}).get("problems") if isinstance(error.data, dict) else None
        if isinstance(problems, str):  # a line for each, of a file
            fail("\n".join((f"{method}: {error.message}", *map(plain, problems.splitlines()))))
        if problems:
            fail(f"{method}: {error.message}: {'; '.join(problems)}")
        details = f"\n{json.dumps(error.data, indent=2)}" if error.data else ""
        fail(f"{method}: {plain(str(error))}{details}")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        if url is not None:
            fail(f"no answer from {url}: {why}")
        fail(f"no service at {socket}: {why}. Is it running? Try: orbit-metrics doctor")


def token() -> str | None:
    """What this environment has for the service over HTTP, or the end of the command."""
    try:
        return read_token()
    except ValueError as error:
        fail(str(error))


def read_token() -> str | None:
    """The token of this environment. Raises ValueError, without what is in it."""
    path = os.environ.get("ORBIT_TOKEN_FILE")
    name, found = "ORBIT_TOKEN", os.environ.get("ORBIT_TOKEN")
    if path:
        name = f"ORBIT_TOKEN_FILE={path}"
        try:
            if Path(path).exists() and not Path(path).is_file():
                raise ValueError(f"{name} is no file")
            found = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{name} cannot be read: {error}") from None
    if found is not None and not is_sendable(found):
        raise ValueError(f"{name} has characters that no header can carry")
    return found


def chosen(params: dict[str, Any]) -> dict[str, Any]:
    """The params that a command was given."""
    return {name: value for name, value in params.items() if value not in (None, False)}
