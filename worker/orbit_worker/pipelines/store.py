"""
Where pending runs wait: DBOS's system database, SQLite by default, PostgreSQL by URL.

This is the producer's side; the worker's is in `engine.py`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSClient, WorkflowStatus
from sqlalchemy import event

from orbit_worker.pipelines.definition import CannotStart

# It tells of every migration of its tables.
logging.getLogger("dbos").setLevel(logging.WARNING)

APPLICATION = "orbit-metrics"
QUEUE = "orbit"
WORKFLOW = "orbit_pipeline"
PIPELINE = "pipeline"  # the attribute of a run by which a pause finds it
# Pinned: by default DBOS hashes the code, and runs of another version are stranded.
APPLICATION_VERSION = "1"


_files: set[str] = set()  # of SQLite, in which runs wait


@event.listens_for(sqlalchemy.Engine, "do_connect")
def _prepare(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    """DBOS makes its engines itself; every engine of the process comes by here, the host's too."""
    if arguments and arguments[0] in _files:
        options["factory"] = _Connection


class _Connection(sqlite3.Connection):
    """With write-ahead logging: twice the runs a second of the rollback journal, as measured."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA busy_timeout=30000")
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")
        if sqlite3.sqlite_version_info < (3, 42):
            # DBOS takes it from the version of Python, not of SQLite, whether
            # unixepoch knows 'subsec'. Where it does not, the answer was NULL.
            self.create_function("unixepoch", 1, _unixepoch)


def _unixepoch(_subsec: str) -> float:
    """Seconds since the epoch with their fraction, which is all that DBOS asks for."""
    return time.time()


def database_url(given: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The URL of the database: what is given, a path or a URL, else a file in the state directory.

    Makes the directory of a SQLite file.
    """
    given = given or environ.get("ORBIT_PIPELINES_DATABASE")
    if given and "://" in given:
        return given
    path = Path(given).absolute() if given else _state_directory(environ) / "pipelines.db"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"the database {path} cannot be made: {error.strerror}") from None
    return f"sqlite:///{path}"


def _checked(url: str) -> sqlalchemy.URL:
    """Raises CannotStart for what is no URL, or one of a database that does not last."""
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        parsed = None
    if (
        parsed is None
        or parsed.drivername not in ("sqlite", "postgresql", "postgresql+psycopg")
        or (parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"))
    ):
        raise CannotStart("the database is a path, or a URL of sqlite:///FILE or postgresql://")
    return parsed


def _state_directory(environ: Mapping[str, str]) -> Path:
    system = Path("/var/lib/orbit-metrics")
    if os.access(system, os.W_OK):
        return system
    home = environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(home) / "orbit-metrics"


class Store:
    """Puts pending runs in and asks what became of them."""

    def __init__(self, url: str) -> None:
        parsed = _checked(url)
        if parsed.drivername == "sqlite":
            # As SQLAlchemy does it, which follows no symbolic links.
            _files.add(os.path.abspath(str(parsed.database)))  # noqa: PTH100
        try:
            # The client does not make its tables; this does, at once in many processes too.
            DBOS.migrate(url)
        except sqlalchemy.exc.SQLAlchemyError as error:
            # Of a driver's several lines the first says it; the others give advice.
            why = str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0]
            raise CannotStart(f"the database cannot be used: {why}") from None
        self.client = DBOSClient(system_database_url=url, application_name=APPLICATION)

    def enqueue(self, pipeline: str, inputs: Iterable[Any]) -> list[str]:
        """Put in one pending run for each input; their ids."""
        return [
            self.client.enqueue(
                {
                    "queue_name": QUEUE,
                    "workflow_name": WORKFLOW,
                    "attributes": {PIPELINE: pipeline},
                },
                pipeline,
                value,
                time.time_ns() // 1_000_000,
            ).workflow_id
            for value in inputs
        ]

    def wait(self, id: str) -> Any:
        """The Outcome of a run, when it has ended."""
        return self.client.retrieve_workflow(id).get_result(polling_interval_sec=0.1)

    def pending(self, limit: int) -> int:
        """How many runs wait, counted up to `limit`."""
        return len(self._list("ENQUEUED", limit=limit))

    def begun(self, executor_id: str | None = None) -> list[WorkflowStatus]:
        """Runs that some worker, or the one of this executor id, has taken and not ended."""
        return self._list("PENDING", executor_id=executor_id)

    def put_back(self, id: str) -> None:
        """Make an interrupted run pending again; its finished steps stay finished."""
        self.client.resume_workflow(id, queue_name=QUEUE)

    def cancelled(self, id: str) -> bool:
        return self.client.retrieve_workflow(id).get_status().status == "CANCELLED"

    def attempt(self, id: str) -> int:
        """Which execution of a run this is: 1, or more after an interruption."""
        # Asked through the client: inside a workflow the same question to DBOS
        # itself is stored as a step, and answered from there after a crash.
        status = self.client.retrieve_workflow(id).get_status()
        begun = bool(self.client.list_workflow_steps(id))
        return max(status.recovery_attempts or 1, 2 if begun else 1)

    def _list(
        self, status: str, *, limit: int | None = None, executor_id: str | None = None
    ) -> list[WorkflowStatus]:
        # Without inputs and outputs it is three times as fast.
        return self.client.list_workflows(
            queue_name=QUEUE,
            status=status,
            limit=limit,
            executor_id=executor_id,
            load_input=False,
            load_output=False,
        )

    def close(self) -> None:
        self.client.destroy()
