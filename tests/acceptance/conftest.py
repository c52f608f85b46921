"""Fixtures of the tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import House


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A folder with a service in it and workers around it, all ended at the end."""
    house = House(tmp_path)
    yield house
    house.close()
