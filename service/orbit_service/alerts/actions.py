"""
Performing what recovery has decided on, and saying what came of it.

A command gets a list of arguments as it stands in the file, no shell, and an environment
of its own: what the alert is about is in variables, so that no pipeline's name becomes an
argument, and none of the service's tokens is among them. It leads a process group, which
is ended as a whole when its time is over; a process that has left the group is not found.
What a command that ends in time leaves running goes on, as a restarted program must.

Whatever happens is an outcome; nothing is raised. Whoever stops the service cancels what
is under way: a command is then ended too.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import aiohttp
from loguru import logger
from msgspec import Struct

from orbit_rpc_schema.alerts import Severity
from orbit_rpc_schema.errors import OrbitError
from orbit_rpc_schema.wire import as_text
from orbit_service.alerts.recovery import Act
from orbit_service.alerts.rules import Action
from orbit_service.threads import start_thread

AT_ONCE = 4  # acts; so many slow ones hold the next up, and not the machine
END_SECONDS = 2.0  # from SIGTERM to SIGKILL, and from there until it is given up
POLL_SECONDS = 0.05
MAX_OUTPUT = 4_096  # bytes of a command's output that are kept: its end, where the error is
READ_SIZE = 65_536  # bytes; what a pipe holds
# Between two reads: a command that writes without end gets 6 MB/s, and not our loop.
READ_PAUSE = 0.01
# For what the rest of a command still writes when it has ended; that may hold the pipe open.
OUTPUT_SECONDS = 0.5
MAX_LABEL = 1_000  # characters
INHERITED = ("PATH", "HOME", "LANG")

Result = Literal["done", "failed", "refused", "unknown", "timed out", "dry run"]
# Pipeline, input -> the id of a pending run, as `runs.create` has it. It may take long.
Create = Callable[[str, Any], str]
# Worker, pause|resume|restart, pipeline -> by session: done, refused, unknown, no answer, gone.
Control = Callable[[str, str, "str | None"], Awaitable[Mapping[str, str]]]


class Outcome(Struct, frozen=True):
    """What came of an act; a storable text, without what is secret."""

    outcome: Result
    text: str


class Context(Struct, frozen=True):
    """What is told of an alert to whoever acts on it."""

    severity: Severity
    labels: Mapping[str, str]
    value: float | None = None  # in the metric's unit


class Performer:
    """Performs acts, a few at once. Without `create` or `control` it refuses what needs them."""

    def __init__(
        self,
        create: Create | None = None,
        control: Control | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._create = create
        self._control = control
        self._environ = environ
        self._places = asyncio.Semaphore(AT_ONCE)

    async def perform(self, act: Act, action: Action, context: Context) -> Outcome:
        """Perform it and wait for its end, at most as long as the action allows."""
        if act.dry:
            return Outcome("dry run", act.text)
        async with self._places:
            try:
                return await self._perform(act, action, context)
            except Exception as error:  # noqa: BLE001  # ours to mend; others are still to be done
                logger.opt(exception=error).error("an action could not be performed: {}", act.text)
                return Outcome("failed", f"it could not be performed: {type(error).__name__}")

    async def _perform(self, act: Act, action: Action, context: Context) -> Outcome:
        seconds = action.timeout / 1000
        match action.kind:
            case "command":
                environ = environment(act, context, self._environ)
                return await _run(action.command, environ, seconds)
            case "webhook":
                return await _post(action.address, act, context, seconds)
            case "run-pipeline":
                return await self._start_run(act, action.input, seconds)
            case _:
                return await self._ask_worker(act, seconds)

    async def _start_run(self, act: Act, input: Any, seconds: float) -> Outcome:
        assert act.pipeline is not None
        if self._create is None:
            return Outcome(
                "refused",
                "no pipelines database is set: start the service with ORBIT_PIPELINES_DATABASE",
            )
        try:
            async with asyncio.timeout(seconds):
                id = await start_thread(partial(self._create, act.pipeline, input), "orbit-alerts")
        except TimeoutError:
            why = "the run may be put in yet"
            return Outcome("timed out", f"no answer within {seconds:g} s; {why}")
        except OrbitError as error:
            return Outcome("failed", as_text(str(error), MAX_OUTPUT))
        return Outcome("done", f"the run {id} of {act.pipeline} is put in")

    async def _ask_worker(self, act: Act, seconds: float) -> Outcome:
        assert act.worker is not None
        if self._control is None:
            return Outcome("refused", "a hub has no workers; put the rule in the node's file")
        try:
            async with asyncio.timeout(seconds):
                answers = await self._control(act.worker, act.kind, act.pipeline)
        except TimeoutError:
            return Outcome("timed out", f"no answer within {seconds:g} s")
        return combined(act.worker, answers)


def combined(worker: str, answers: Mapping[str, str]) -> Outcome:
    """One outcome for all processes of a worker: the worst, and how many said what."""
    if not answers:
        return Outcome("failed", f"no process of the worker {worker} is connected")
    counted = Counter(answers.values())
    said = ", ".join(f"{n} {answer}" for answer, n in sorted(counted.items()))
    if counted["unknown"]:
        return Outcome("unknown", f"the worker does not know this action: {said}")
    if counted["refused"]:
        return Outcome("refused", f"the worker refused: {said}")
    if counted["no answer"]:
        return Outcome("timed out", f"not all processes answered: {said}")
    if counted["done"] == len(answers):
        return Outcome("done", f"by all processes: {said}")
    return Outcome("failed", f"not by all processes: {said}")


# ---------------------------------------------------------------- commands


def environment(act: Act, context: Context, environ: Mapping[str, str]) -> dict[str, str]:
    """A command's whole environment. What an alert is not told by is empty."""
    labels = {name: as_text(value, MAX_LABEL) for name, value in context.labels.items()}
    return {
        **{name: environ[name] for name in INHERITED if name in environ},
        "ORBIT_ALERT_ID": act.alert,
        "ORBIT_ALERT_RULE": act.rule,
        "ORBIT_ALERT_SEVERITY": context.severity,
        "ORBIT_ALERT_PHASE": act.when,
        "ORBIT_ALERT_VALUE": "" if context.value is None else f"{context.value:.15g}",
        "ORBIT_ALERT_WORKER": labels.get("worker", ""),
        "ORBIT_ALERT_PIPELINE": labels.get("pipeline", ""),
        "ORBIT_ALERT_STEP": labels.get("step", ""),
        "ORBIT_ALERT_QUEUE": labels.get("queue", ""),
    }


async def _run(command: tuple[str, ...], environ: Mapping[str, str], seconds: float) -> Outcome:
    read, write = os.pipe()
    with os.fdopen(read, "rb", 0) as reading:
        with os.fdopen(write, "wb", 0) as writing:
            try:
                # A pipe of our own: of asyncio's, some versions wait for the end of what a
                # command left running.
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=DEVNULL,
                    stdout=writing,
                    stderr=writing,
                    env=environ,
                    cwd="/",
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or type(error).__name__
                name = Path(command[0]).name
                return Outcome("failed", as_text(f"{name} cannot be started: {why}", MAX_OUTPUT))
        kept = bytearray()
        os.set_blocking(read, False)
        output = asyncio.create_task(_keep_end(reading, kept))
        try:
            async with asyncio.timeout(seconds):
                await process.wait()
            outcome, how = _ended(process)
        except TimeoutError:
            outcome, how = "timed out", f"it was ended after {seconds:g} s"
        finally:
            ending = asyncio.create_task(_leave(process, output))
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                # Who stops the service may do so now; a process that is being ended is waited
                # for, and nobody reads from a closed pipe.
                await asyncio.wait({ending})
                raise
        # All that the command wrote is here, or in the pipe yet, however late we are to read it.
        _keep(kept, reading.read(READ_SIZE) or b"")
    if process.returncode is None:
        how = f"it has not ended within {seconds:g} s, not even when it was killed"
    text = as_text(kept.decode(errors="replace"), MAX_OUTPUT).strip()
    return Outcome(outcome, f"{how}\n{text}" if text else how)


async def _leave(process: Process, output: asyncio.Task[None]) -> None:
    """End what is still there, and read no more of it."""
    if process.returncode is None:
        await _end(process)
    await asyncio.wait({output}, timeout=OUTPUT_SECONDS)
    output.cancel()
    await asyncio.wait({output})


def _ended(process: Process) -> tuple[Result, str]:
    status = process.returncode
    assert status is not None
    if status < 0:
        return "failed", f"it was ended by signal {-status}"
    return "failed" if status else "done", f"exit status {status}"


async def _keep_end(reading: IO[bytes], kept: bytearray) -> None:
    """Read to the end, and keep the last of it."""
    loop, come = asyncio.get_running_loop(), asyncio.Event()
    while (data := reading.read(READ_SIZE)) != b"":
        if data is not None:
            _keep(kept, data)
            await asyncio.sleep(READ_PAUSE)
            continue
        come.clear()
        loop.add_reader(reading, come.set)
        try:
            await come.wait()
        finally:
            loop.remove_reader(reading)


def _keep(kept: bytearray, data: bytes) -> None:
    kept += data
    del kept[:-MAX_OUTPUT]


async def _end(process: Process) -> None:
    """End the process and all of its group."""
    try:
        async with asyncio.timeout(END_SECONDS):
            sign: int = signal.SIGTERM
            while _signal(process, sign):
                sign = 0
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        pass
    finally:
        _signal(process, signal.SIGKILL)
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        pass  # it hangs in the kernel, as on a disk that is away


def _signal(process: Process, sign: int) -> bool:
    """Send it to the group, or with 0 only look; whether there is one."""
    try:
        os.killpg(process.pid, sign)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # one that has taken another user's rights; there is one
    return True


# ---------------------------------------------------------------- webhooks


async def _post(url: str, act: Act, context: Context, seconds: float) -> Outcome:
    body = {
        "key": act.id,
        "alert": act.alert,
        "rule": act.rule,
        "severity": context.severity,
        "labels": {name: as_text(value, MAX_LABEL) for name, value in context.labels.items()},
        "value": context.value,
        "phase": act.when,
        "dry": False,
    }
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.post(
                url, json=body, headers={"Idempotency-Key": act.id}, allow_redirects=False
            ) as answer,
        ):
            status = answer.status
    except TimeoutError:
        return Outcome("timed out", f"no answer within {seconds:g} s")
    except (aiohttp.ClientError, OSError) as error:
        # Their own texts may hold the address, and with it what is secret.
        why = getattr(error, "strerror", None) or type(error).__name__
        return Outcome("failed", f"no answer: {why}")
    if 200 <= status < 300:
        return Outcome("done", f"HTTP {status}")
    hint = "; a redirect is not followed" if 300 <= status < 400 else ""
    return Outcome("failed", f"HTTP {status}{hint}")
