"""What a pipeline is: a name and its steps, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from orbit_rpc_schema.wire import MAX_STEPS, is_name

Function = Callable[[Any], Any]


class CannotStart(Exception):
    """A worker cannot start, or a run not be put in; the text says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: a plain or async function of one argument.

    A try that raises is repeated `retries` times, after `backoff` seconds and
    twice as long each further time. A try that takes longer than `timeout`
    seconds fails; an async function is cancelled, a plain one cannot be
    interrupted and goes on in its thread with its result discarded.
    """

    name: str
    function: Function
    retries: int = 0
    backoff: float = 0.1
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError("a step's name is 1 to 200 characters without control characters")
        if self.retries < 0 or self.backoff < 0 or (self.timeout or 1) <= 0:
            raise ValueError(f"step {self.name}: retries, backoff and timeout are not negative")

    def __call__(self, value: Any) -> Any:
        return self.function(value)


@overload
def step(function: Function) -> Step: ...
@overload
def step(
    *,
    name: str | None = None,
    retries: int = 0,
    backoff: float = 0.1,
    timeout: float | None = None,
) -> Callable[[Function], Step]: ...
def step(
    function: Function | None = None,
    *,
    name: str | None = None,
    retries: int = 0,
    backoff: float = 0.1,
    timeout: float | None = None,
) -> Step | Callable[[Function], Step]:
    """Make a function a step; it can still be called as the function that it is."""

    def make(function: Function) -> Step:
        return Step(name or _name_of(function), function, retries, backoff, timeout)

    return make if function is None else make(function)


class Pipeline:
    """A named list of steps; plain functions among them become steps of their own name."""

    def __init__(
        self, name: str, *, steps: Sequence[Step | Function], description: str = ""
    ) -> None:
        if not is_name(name):
            raise ValueError("a pipeline's name is 1 to 200 characters without control characters")
        self.name = name
        self.description = description
        self.steps = tuple(s if isinstance(s, Step) else step(s) for s in steps)
        names = [s.name for s in self.steps]
        if not names or len(names) > MAX_STEPS:
            raise ValueError(f"pipeline {name} has {len(names)} steps; it takes 1 to {MAX_STEPS}")
        if len(set(names)) < len(names):
            raise ValueError(f"pipeline {name} has two steps of one name")


def _name_of(function: Function) -> str:
    return getattr(function, "__name__", type(function).__name__)
