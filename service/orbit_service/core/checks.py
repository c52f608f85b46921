"""
What a message must hold beyond its types, checked before anything of it is counted.

A message is counted whole or refused whole. Texts are mended, not refused: an
exception's text holds whatever bytes the program had in hand.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from orbit_rpc_schema.messages import Batch, Connect, Detail, Error, Record, Start
from orbit_rpc_schema.wire import (
    MAX_MESSAGE,
    MAX_NAME,
    MAX_STEPS,
    as_name,
    as_text,
    as_traceback,
    is_name,
)


class Refused(Exception):
    """The message cannot be counted; `problem` says why."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(problem)


def check_connect(message: Connect) -> None:
    """Raise Refused unless every name in it is one."""
    _check_name("worker name", message.worker)
    _check_name("session id", message.session)
    _check_starts(message.running)


def check_record(message: Record, known: Iterable[str]) -> None:
    """Raise Refused unless every part of the message can be counted.

    `known` are pipelines that were checked before; looking a name up is cheaper
    than reading its characters.
    """
    for batch in message.batches:
        if batch.pipeline not in known:
            _check_name("pipeline name", batch.pipeline)
        if batch.queue is not None:
            _check_name("queue name", batch.queue)
        _check_batch(batch)
    _check_starts(message.started)


def _check_batch(batch: Batch) -> None:
    count = len(batch.duration_us)
    if batch.failed:
        if max(batch.failed) >= count:
            raise Refused(f"failed names run {max(batch.failed)} of {count}")
        if len(set(batch.failed)) != len(batch.failed):
            raise Refused("failed names a run twice")
    for index, detail in batch.details.items():
        if not 0 <= index < count:
            raise Refused(f"details name run {index} of {count}")
        _check_detail(detail)


def _check_detail(detail: Detail) -> None:
    if detail.id is not None:
        _check_name("run id", detail.id)
    if len(detail.steps) > MAX_STEPS:
        raise Refused(f"a run has {len(detail.steps)} steps; at most {MAX_STEPS}")
    for step in detail.steps:
        _check_name("step name", step.name)


def _check_starts(starts: Iterable[Start]) -> None:
    for start in starts:
        _check_name("run id", start.id)
        _check_name("pipeline name", start.pipeline)


def _check_name(what: str, text: str) -> None:
    if not is_name(text):
        raise Refused(f"a {what} is 1 to {MAX_NAME} characters without control characters")


def mended_hello(hello: Connect) -> Connect:
    """The same greeting, what it says about its program in storable texts."""
    return replace(
        hello,
        host=as_name(hello.host),
        version=hello.version and as_name(hello.version),
        runtime=hello.runtime and as_name(hello.runtime),
        queues=[as_name(queue) for queue in hello.queues],
    )


def mended(detail: Detail) -> Detail:
    """The same detail with storable texts of bounded length."""
    if detail.error is None:
        return detail
    error = detail.error
    return replace(
        detail,
        error=Error(
            type=as_name(error.type),
            message=as_text(error.message, MAX_MESSAGE),
            traceback=None if error.traceback is None else as_traceback(error.traceback),
        ),
    )
