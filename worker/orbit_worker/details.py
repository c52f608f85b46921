"""What is told of a run beyond its duration and outcome, in the form of the wire."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple

from orbit_rpc_schema.wire import (
    MAX_DURATION_US,
    MAX_MESSAGE,
    MAX_STEPS,
    Json,
    as_name,
    as_text,
    as_traceback,
)

MAX_ATTEMPTS = 1_000_000

# An exception, its message alone, or {"type", "message", "traceback"} in texts.
ErrorLike = BaseException | str | Mapping[str, str]


class RunStep(NamedTuple):
    """A named part of a run, for record_run; `attempts` counts its tries."""

    name: str
    duration_ms: float
    success: bool = True
    attempts: int = 1


def steps_json(steps: Iterable[RunStep]) -> list[Json]:
    """Measured steps as the wire has them, at most a hundred."""
    return [
        {
            "name": as_name(step.name),
            "durationUs": _micros(step.duration_ms),
            **({} if step.success else {"failed": True}),
            **({} if step.attempts == 1 else {"attempts": clamped(step.attempts)}),
        }
        for step in islice(steps, MAX_STEPS)
    ]


def make_detail(
    *,
    id: str | None = None,
    attempt: int = 1,
    final: bool = True,
    untimed: bool = False,
    wait_ms: float | None = None,
    error: ErrorLike | None = None,
    steps: list[Json] | None = None,
) -> Json:
    """The Detail of the wire, without what is left at its default."""
    detail: Json = {}
    if id is not None:
        detail["id"] = as_name(id)
    if attempt != 1:
        detail["attempt"] = clamped(attempt)
    if not final:
        detail["final"] = False
    if untimed:
        detail["untimed"] = True
    if wait_ms is not None:
        detail["waitUs"] = _micros(wait_ms)
    if error is not None:
        detail["error"] = error_json(error)
    if steps:
        detail["steps"] = steps
    return detail


def error_json(error: ErrorLike) -> Json:
    """Type, message and traceback of an error, in storable texts of bounded length."""
    if isinstance(error, Mapping):
        trace = error.get("traceback")
        return {
            "type": as_name(str(error.get("type", "Error"))),
            "message": as_text(str(error.get("message", "")), MAX_MESSAGE),
            **({"traceback": as_traceback(str(trace))} if trace else {}),
        }
    if isinstance(error, str):
        return {"type": "Error", "message": as_text(error, MAX_MESSAGE)}
    try:
        message = str(error)
        lines = traceback.format_exception(error, limit=-20)
    except Exception as broken:  # noqa: BLE001  # an exception whose own __str__ raises
        message, lines = f"(its text cannot be made: {type(broken).__name__})", []
    return {
        "type": as_name(type(error).__qualname__),
        "message": as_text(message, MAX_MESSAGE),
        "traceback": as_traceback("".join(lines)),
    }


def _micros(milliseconds: float) -> int:
    """Whole microseconds within the wire's bounds: one bad field would refuse a whole message."""
    if not 0 <= milliseconds * 1000 < MAX_DURATION_US:  # NaN is neither
        return MAX_DURATION_US if milliseconds > 0 else 0
    return round(milliseconds * 1000)


def clamped(number: int) -> int:
    """The nearest number of an attempt that the wire takes."""
    return min(max(int(number), 1), MAX_ATTEMPTS)
