"""Databases of the tests' own on a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from databases import Postgres
from orbit_service.history import engines, schema


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server for the tests of this process, with an empty history to copy."""
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    template = engines.postgres(engines.checked_url(server.make("empty")))
    schema.migrate(template)
    template.close()
    yield server
    server.close()


_numbers = iter(range(1_000_000))
_naming = threading.Lock()


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A database of the test's own, with the tables of a history."""
    with _naming:
        name = f"history-{next(_numbers)}"
    yield postgres.make(name, template="empty")
    postgres.drop(name)
