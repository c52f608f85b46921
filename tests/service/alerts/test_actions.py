"""Acts against real processes, a real server, and what stands for workers and pipelines."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from builders import T0
from orbit_rpc_schema.errors import RunNotCreated
from orbit_service.alerts import actions
from orbit_service.alerts.actions import (
    AT_ONCE,
    MAX_OUTPUT,
    Context,
    Outcome,
    Performer,
    combined,
    environment,
)
from orbit_service.alerts.recovery import Act
from orbit_service.alerts.rules import Action

CONTEXT = Context("critical", {"worker": "crew", "pipeline": "mail; rm -rf /"}, 40.0)


def an_act(kind: str = "command", **fields: Any) -> Act:
    usual = {"id": "act1", "alert": "a1", "rule": "late", "action": 0, "when": "firing"}
    times = {"at_ms": T0, "fired_ms": T0, "target": "t", "dry": False, "text": "do it"}
    return Act(**{**usual, **times, "kind": kind, **fields})


async def perform(*command: str, timeout: str = "60s") -> Outcome:
    action = Action(kind="command", command=command, timeout=timeout)
    return await Performer().perform(an_act(), action, CONTEXT)


async def run(code: str, timeout: str = "60s") -> Outcome:
    """What comes of a command that is a Python program."""
    return await perform(sys.executable, "-c", code, timeout=timeout)


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that nobody has waited for has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
async def pass_time(monkeypatch) -> Callable[[float], Awaitable[None]]:
    """Lets so many seconds pass at once for the loop, and not for the machine."""
    passed = 0.0

    async def pass_time(seconds: float) -> None:
        nonlocal passed
        for _ in range(10):  # turns, in which what has begun comes to wait for its time
            await asyncio.sleep(0)
        passed += seconds

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda: time.monotonic() + passed)
    return pass_time


async def test_a_dry_act_does_nothing(tmp_path):
    action = Action(kind="command", command=["/usr/bin/touch", str(tmp_path / "touched")])

    outcome = await Performer().perform(an_act(dry=True, text="would touch"), action, CONTEXT)

    assert outcome == Outcome("dry run", "would touch")
    assert not (tmp_path / "touched").exists()


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", Outcome("done", "exit status 0")),
        ("print('mended')", Outcome("done", "exit status 0\nmended")),
        ("import sys; sys.exit('no such unit')", Outcome("failed", "exit status 1\nno such unit")),
        (
            "import os; os.kill(os.getpid(), 9)",
            Outcome("failed", "it was ended by signal 9"),
        ),
        (
            r"import sys; sys.stdout.buffer.write(b'a\0b\xff')",
            Outcome("done", "exit status 0\na\ufffdb\ufffd"),
        ),
        ("print(input())", Outcome("failed", "")),
    ],
)
async def test_a_commands_outcome_is_its_exit_status_and_what_it_wrote(code, expected):
    outcome = await run(code)

    assert outcome.outcome == expected.outcome
    assert expected.text in outcome.text
    assert "EOFError" in outcome.text if "input" in code else outcome.text == expected.text


@pytest.mark.parametrize(
    ("mode", "why"),
    [(None, "No such file or directory"), (0o600, "Permission denied"), (0o700, "Exec format")],
)
async def test_a_command_that_cannot_be_started_has_failed(tmp_path, mode, why):
    program = tmp_path / "mend"
    if mode is not None:
        program.write_bytes(b"\x7fnot a program")
        program.chmod(mode)

    outcome = await perform(str(program), "--token=secret")

    assert outcome.outcome == "failed"
    assert outcome.text.startswith(f"mend cannot be started: {why}")


async def test_a_command_gets_its_arguments_as_they_are():
    code = "import sys; print(sys.argv[1:])"
    arguments = ["$HOME", "a b", "; echo no", "{pipeline}"]

    outcome = await perform(sys.executable, "-c", code, *arguments)

    assert outcome.text == f"exit status 0\n{arguments}"


async def test_a_command_sees_its_alert_and_no_secret_of_the_service(monkeypatch):
    monkeypatch.setenv("ORBIT_TOKEN", "secret")
    monkeypatch.setenv("SLACK_URL", "secret")

    outcome = await run("import os; print(sorted(set(os.environ) - {'LC_CTYPE'}), os.getcwd())")

    names = ["ID", "PHASE", "PIPELINE", "QUEUE", "RULE", "SEVERITY", "STEP", "VALUE", "WORKER"]
    inherited = [name for name in ("HOME", "LANG", "PATH") if name in os.environ]
    seen = sorted([*inherited, *(f"ORBIT_ALERT_{name}" for name in names)])
    assert outcome.text == f"exit status 0\n{seen} /"


def test_the_environment_tells_the_alert_and_is_empty_for_what_it_is_not_told_by():
    context = Context("warning", {"pipeline": "a\0b\ud800"}, None)

    assert environment(an_act(when="resolved"), context, {"PATH": "/bin", "ORBIT_TOKEN": "x"}) == {
        "PATH": "/bin",
        "ORBIT_ALERT_ID": "a1",
        "ORBIT_ALERT_RULE": "late",
        "ORBIT_ALERT_SEVERITY": "warning",
        "ORBIT_ALERT_PHASE": "resolved",
        "ORBIT_ALERT_VALUE": "",
        "ORBIT_ALERT_WORKER": "",
        "ORBIT_ALERT_PIPELINE": "a\ufffdb\ufffd",
        "ORBIT_ALERT_STEP": "",
        "ORBIT_ALERT_QUEUE": "",
    }


@pytest.fixture
def begin(tmp_path):
    """Begins a command of the shell, and waits until it stands where it says `begun`."""

    async def begin(code: str) -> asyncio.Task[Outcome]:
        begun = tmp_path / "begun"
        code = code.replace("begun;", f"echo > {begun};")
        task = asyncio.create_task(perform("/bin/sh", "-c", code, timeout="60s"))
        await eventually(begun.exists)
        return task

    return begin


# The shell and its child both ignore what asks them to end.
STUBBORN = "trap '' TERM; sleep 600 & echo $$ $!; begun; wait"


async def test_a_command_that_does_not_end_is_ended_with_its_children(begin, pass_time):
    task = await begin(STUBBORN)
    await pass_time(60)

    outcome = await task
    how, pids = outcome.text.split("\n")
    assert (outcome.outcome, how) == ("timed out", "it was ended after 60 s")
    await eventually(lambda: not any(is_running(int(pid)) for pid in pids.split()))


async def test_a_command_that_is_asked_to_end_may_still_say_something(
    begin, pass_time, monkeypatch
):
    monkeypatch.setattr(actions, "END_SECONDS", 60)
    task = await begin("trap 'echo bye; exit' TERM; begun; while :; do :; done")
    await pass_time(60)

    assert await task == Outcome("timed out", "it was ended after 60 s\nbye")


async def test_a_stop_of_the_service_ends_a_command(begin, tmp_path):
    told = tmp_path / "pids"
    task = await begin(STUBBORN.replace("$!;", f"$! > {told};"))

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    pids = told.read_text().split()
    await eventually(lambda: not any(is_running(int(pid)) for pid in pids))


async def test_a_stop_while_a_command_is_being_ended_leaves_nothing_that_reads_from_it(
    begin, pass_time, tmp_path, monkeypatch
):
    monkeypatch.setattr(actions, "END_SECONDS", 60)
    told = tmp_path / "told"
    before = asyncio.all_tasks()
    task = await begin(f"trap 'echo > {told}' TERM; begun; while :; do sleep 0.1; done")
    await pass_time(60)
    await eventually(told.exists)

    task.cancel()
    await pass_time(60)
    with pytest.raises(asyncio.CancelledError):
        await task

    assert asyncio.all_tasks() == before


async def test_what_floods_is_read_and_its_end_is_kept():
    code = "import os\nfor _ in range(100): os.write(1, b'x' * 65536)\nprint('the end')"

    outcome = await run(code)

    assert outcome.outcome == "done"
    assert outcome.text.endswith("xxxthe end")
    assert len(outcome.text) <= MAX_OUTPUT + 20


async def test_what_a_command_wrote_is_told_however_late_it_is_read(monkeypatch):
    async def too_late(*_output: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(actions, "_keep_end", too_late)
    monkeypatch.setattr(actions, "OUTPUT_SECONDS", 0)

    assert await run("print('mended')") == Outcome("done", "exit status 0\nmended")


async def test_what_floods_without_end_is_ended_in_its_time(begin, pass_time):
    task = await begin("echo flood; echo flood; begun; while :; do echo flood; done")
    await pass_time(60)

    outcome = await task
    assert outcome.outcome == "timed out"
    assert "flood\nflood\n" in outcome.text


async def test_what_a_command_leaves_running_goes_on_and_is_not_waited_for():
    code = (
        "import subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    )
    outcome = await run(code)

    pid = int(outcome.text.split("\n")[1])
    assert outcome.outcome == "done"
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)


async def test_a_few_acts_are_performed_at_once_and_others_wait():
    begun: list[str] = []
    go_on = asyncio.Event()

    async def control(worker: str, _action: str, _pipeline: str | None) -> dict[str, str]:
        begun.append(worker)
        await go_on.wait()
        return {"s1": "done"}

    performer, action = Performer(control=control), Action(kind="restart")
    tasks = [
        asyncio.create_task(performer.perform(an_act("restart", worker=str(n)), action, CONTEXT))
        for n in range(AT_ONCE + 2)
    ]
    await eventually(lambda: len(begun) == AT_ONCE)
    assert len(begun) == AT_ONCE
    go_on.set()

    assert {outcome.outcome for outcome in await asyncio.gather(*tasks)} == {"done"}
    assert len(begun) == AT_ONCE + 2


# ---------------------------------------------------------------- webhooks


class Hooks:
    """A server that answers what a test wants, under an address with a secret in it."""

    def __init__(self) -> None:
        self.requests: list[tuple[web.Request, Any]] = []
        self.status = 200
        self.hang = False

    async def take(self, request: web.Request) -> web.Response:
        self.requests.append((request, await request.json()))
        if self.hang:
            await asyncio.Event().wait()
        return web.Response(status=self.status, headers={"Location": "/elsewhere"})

    def action(self, url: str, timeout: str = "30s") -> Action:
        action = Action(kind="webhook", url=url, timeout=timeout)
        assert action.found({}) is None
        return action


@pytest.fixture
def hooks() -> Hooks:
    return Hooks()


@pytest.fixture
async def url(hooks, aiohttp_server):
    app = web.Application()
    app.router.add_post("/{path:.*}", hooks.take)
    server = await aiohttp_server(app, shutdown_timeout=0.1)
    return str(server.make_url("/secret?token=secret"))


async def test_a_webhook_is_told_the_alert_under_the_acts_key(hooks, url):
    outcome = await Performer().perform(an_act("webhook"), hooks.action(url), CONTEXT)

    assert outcome == Outcome("done", "HTTP 200")
    [(request, body)] = hooks.requests
    assert request.headers["Idempotency-Key"] == "act1"
    assert body == {
        "key": "act1",
        "alert": "a1",
        "rule": "late",
        "severity": "critical",
        "labels": {"worker": "crew", "pipeline": "mail; rm -rf /"},
        "value": 40.0,
        "phase": "firing",
        "dry": False,
    }


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (204, Outcome("done", "HTTP 204")),
        (307, Outcome("failed", "HTTP 307; a redirect is not followed")),
        (404, Outcome("failed", "HTTP 404")),
        (503, Outcome("failed", "HTTP 503")),
    ],
)
async def test_a_webhooks_outcome_is_its_status_and_a_redirect_is_not_followed(
    hooks, url, status, expected
):
    hooks.status = status

    assert await Performer().perform(an_act("webhook"), hooks.action(url), CONTEXT) == expected
    assert len(hooks.requests) == 1


async def test_a_webhook_that_hangs_has_timed_out(hooks, url):
    hooks.hang = True

    outcome = await Performer().perform(an_act("webhook"), hooks.action(url, "1s"), CONTEXT)

    assert outcome == Outcome("timed out", "no answer within 1 s")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/secret",
        "http://127.0.0.1:99999/secret",
        "https://secret:secret@nowhere.invalid/secret",
        "http://[secret",
    ],
)
async def test_a_webhook_that_cannot_be_reached_has_failed_without_a_word_of_its_address(
    hooks, url
):
    outcome = await Performer().perform(an_act("webhook"), hooks.action(url, "60s"), CONTEXT)

    assert outcome.outcome == "failed"
    assert outcome.text.startswith("no answer: ")
    assert "secret" not in outcome.text


# ---------------------------------------------------------------- pipelines and workers


async def put_in(create: Any, timeout: str = "30s") -> Outcome:
    action = Action(kind="run-pipeline", pipeline="mend", input={"n": 1}, timeout=timeout)
    return await Performer(create).perform(an_act("run-pipeline", pipeline="mend"), action, CONTEXT)


async def test_a_run_is_put_in_with_its_input_in_a_thread():
    seen = []

    def create(pipeline: str, input: Any) -> str:
        seen.append((pipeline, input, threading.current_thread() is threading.main_thread()))
        return "r1"

    assert await put_in(create) == Outcome("done", "the run r1 of mend is put in")
    assert seen == [("mend", {"n": 1}, False)]


async def test_a_run_that_cannot_be_put_in_says_why():
    def refusing(_pipeline: str, _input: Any) -> str:
        raise RunNotCreated(why="the database is away")

    def broken(_pipeline: str, _input: Any) -> str:
        raise ValueError("secret")

    ended = threading.Event()
    outcomes = [await put_in(refusing), await put_in(broken), await put_in(None)]
    slow = await put_in(lambda _pipeline, _input: str(ended.wait()), "1s")
    ended.set()

    assert [outcome.outcome for outcome in outcomes] == ["failed", "failed", "refused"]
    assert "the database is away" in outcomes[0].text
    assert outcomes[1].text == "it could not be performed: ValueError"
    assert slow == Outcome("timed out", "no answer within 1 s; the run may be put in yet")


async def ask(control: Any, kind: str = "pause", timeout: str = "30s") -> Outcome:
    pipeline = None if kind == "restart" else "mail"
    action = Action(kind=kind, timeout=timeout)
    act = an_act(kind, worker="crew", pipeline=pipeline)
    return await Performer(control=control).perform(act, action, CONTEXT)


@pytest.mark.parametrize(("kind", "pipeline"), [("pause", "mail"), ("restart", None)])
async def test_a_worker_is_asked_for_the_action(kind, pipeline):
    asked = []

    async def control(*what: Any) -> dict[str, str]:
        asked.append(what)
        return {"s1": "done"}

    assert await ask(control, kind) == Outcome("done", "by all processes: 1 done")
    assert asked == [("crew", kind, pipeline)]


async def test_a_hub_asks_no_worker_and_one_that_never_answers_has_timed_out():
    async def never(*_what: Any) -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    assert (await ask(None)).outcome == "refused"
    assert await ask(never, timeout="1s") == Outcome("timed out", "no answer within 1 s")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], "failed: no process of the worker crew is connected"),
        (["done", "done"], "done: by all processes: 2 done"),
        (["done", "unknown"], "unknown: the worker does not know this action: 1 done, 1 unknown"),
        (["refused", "done", "gone"], "refused: the worker refused: 1 done, 1 gone, 1 refused"),
        (["no answer", "gone"], "timed out: not all processes answered: 1 gone, 1 no answer"),
        (["done", "gone"], "failed: not by all processes: 1 done, 1 gone"),
    ],
)
def test_the_answers_of_all_processes_are_one_outcome(answers, expected):
    outcome = combined("crew", {f"s{n}": answer for n, answer in enumerate(answers)})

    assert f"{outcome.outcome}: {outcome.text}" == expected
