"""A collector that has seen nothing."""

from __future__ import annotations

import pytest

from orbit_service.core.collector import Collector


@pytest.fixture
def collector() -> Collector:
    return Collector("node")
