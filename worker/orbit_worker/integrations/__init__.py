"""
One line each for the frameworks that execute tasks.

Importing one of these modules changes nothing; its `install`, class or middleware
does. Each wants its framework and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def needs(framework: str, extra: str) -> Iterator[None]:
    """Around the imports of a framework: where it is missing, a sentence says so."""
    try:
        yield
    except ModuleNotFoundError:
        # It may be a library of the framework's that is asked for first.
        if find_spec(framework) is not None:
            raise
        raise ModuleNotFoundError(
            f"{framework} is not installed, which orbit_worker.integrations.{extra} is for: "
            f"pip install 'orbit-metrics[{extra}]'",
            name=framework,
        ) from None
