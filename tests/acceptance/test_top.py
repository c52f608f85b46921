"""`orbit-metrics top` in a terminal of its own, against a real service."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from select import POLLIN, poll
from typing import Any

import pytest

from builders import ENTRY, command, environment, until

# Of a session of its own, so that Ctrl-C and Ctrl-Z come from the terminal as they do.
IN_TERMINAL = (
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "from orbit_service.entry import main; main()"
)
ALTERNATE, NORMAL = "\x1b[?1049h", "\x1b[?1049l"
HOME = "\x1b[H"
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


class Terminal:
    """A terminal with a program in it: what it shows, and keys for it."""

    def __init__(self, folder: Path, *arguments: str, size: tuple[int, int], **env: str) -> None:
        self._ours, self._theirs = pty.openpty()
        self._readable = poll()  # and not select, which takes descriptors below 1,024 alone
        self._readable.register(self._ours, POLLIN)
        self.resize(*size)
        self.before = termios.tcgetattr(self._theirs)
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", IN_TERMINAL, "top", *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=environment(folder, TERM="xterm-256color", **env),
            cwd=folder,
            start_new_session=True,
        )

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self._size = width, height

    def press(self, typed: str) -> None:
        os.write(self._ours, typed.encode())

    def written(self) -> str:
        """All that came until now."""
        while self._readable.poll(0):
            self.output += os.read(self._ours, 65536).decode(errors="replace")
        return self.output

    def screen(self) -> str:
        """The newest frame that is whole, as text: a terminal takes it in pieces."""
        *_, before, newest = ("", *self.written().split(HOME))
        return _text(newest) if _size(_text(newest)) == self._size else _text(before)

    def until(self, holds: Callable[[str], bool]) -> bool:
        """Wait until it holds of the screen; that it goes on meanwhile is asserted."""
        return until(lambda: holds(self.screen()) or self._ended())

    def shows(self, text: str) -> bool:
        return self.until(lambda screen: text in screen)

    def _ended(self) -> bool:
        assert self.process.poll() is None, self.written()
        return False

    def ends(self) -> int:
        """Its exit code; what it wrote last is read on, so that it can end."""
        until(lambda: (self.written(), self.process.poll())[1] is not None)
        self.written()
        return self.process.returncode

    def is_as_before(self) -> bool:
        """The modes, the normal screen and the cursor are what they were."""
        last = self.written().rpartition(NORMAL)[2]
        return (
            termios.tcgetattr(self._theirs) == self.before
            and ALTERNATE not in last
            and self.output.rfind("\x1b[?25h") > self.output.rfind("\x1b[?25l")
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self._ours)
        os.close(self._theirs)


def _text(written: str) -> str:
    return CONTROLS.sub("", written).replace("\r", "")


def _size(screen: str) -> tuple[int, int]:
    """Of a frame, which is filled with blanks."""
    lines = screen.split("\n")
    return len(lines[-1]), len(lines)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Any]:
    """Opens terminals, and closes them at the end."""
    opened: list[Terminal] = []

    def open_terminal(*arguments: str, size: tuple[int, int] = (100, 30), **env: str) -> Terminal:
        opened.append(Terminal(tmp_path, *arguments, size=size, **env))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


@pytest.fixture
def runs(service, client):
    """Three runs of `send`, and one of `report` that failed."""
    for _ in range(3):
        client.record_run(1250, True, pipeline="send")
    client.record_run(30, False, pipeline="report", error=ValueError("disk [red]full\x1b[2J"))
    assert client.flush(5)


@pytest.mark.parametrize("key", ["q", "\x1b", "\x03"], ids=["q", "Esc", "Ctrl-C"])
def test_it_shows_what_runs_and_a_key_ends_it(terminal, runs, key):
    top = terminal()
    for text in ("runs 4", "send", "report", "tests", "disk [red]full"):
        assert top.shows(text)

    top.press(key)
    assert top.ends() == 0
    until(top.is_as_before)
    assert "Traceback" not in top.output


def test_it_moves_when_runs_arrive(terminal, runs, client):
    top = terminal("--interval", "0.2")
    assert top.shows("runs 4")

    client.record_run(10, True, pipeline="send")
    assert client.flush(5)
    assert top.shows("runs 5")


def test_keys_filter_sort_scroll_and_switch(terminal, runs):
    top = terminal()
    assert top.shows("failed▼")

    top.press("n")
    assert top.shows("pipeline▲")
    top.press("/send")
    top.until(lambda screen: "report" not in screen)
    assert top.shows("/send")
    top.press("\x1b")
    assert top.shows("report")
    top.press("\x1b[Z\r")
    top.until(lambda screen: "Workers" not in screen)
    assert top.shows("Last failures")
    top.press("?")
    assert top.shows("any key goes back")


def test_paused_it_stays_as_it_is(terminal, runs, client):
    top = terminal("--interval", "0.2")
    assert top.shows("runs 4")
    top.press(" ")
    assert top.shows("paused")

    client.record_run(10, True, pipeline="send")
    assert client.flush(5)
    top.press("n")
    assert top.shows("pipeline▲")
    assert "runs 4" in top.screen()
    top.press(" ")
    assert top.shows("runs 5")


def test_it_follows_the_size_of_its_terminal(terminal, runs):
    top = terminal(size=(160, 40), COLUMNS="80", LINES="24")  # as some shells export them
    assert top.shows("runs/h")

    for width, height in ((40, 12), (10, 3), (80, 24)):
        top.resize(width, height)
        top.until(lambda screen, size=(width, height): _size(screen) == size)


def test_a_service_that_goes_away_is_told_of_and_comes_back(terminal, service, client):
    client.record_run(10, True, pipeline="send")
    assert client.flush(5)
    top = terminal("--interval", "0.2")
    assert top.shows("runs 1")

    service.stop()
    assert top.shows("trying again")
    assert "runs 1" in top.screen()
    service.start()
    top.until(lambda screen: "trying again" not in screen)
    assert top.shows("healthy")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_when_it_is_ended(terminal, runs, number):
    top = terminal()
    assert top.shows("runs 4")

    top.process.send_signal(number)
    assert top.ends() == 128 + number
    until(top.is_as_before)


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(terminal, runs):
    top = terminal()
    assert top.shows("runs 4")

    top.press("\x1a")
    until(lambda: _state(top.process.pid) == "T")
    until(top.is_as_before)
    top.process.send_signal(signal.SIGCONT)
    until(lambda: not top.is_as_before())
    top.press("q")
    assert top.ends() == 0


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_it_has_no_colours_where_none_are_wanted(terminal, runs):
    plain, coloured = terminal(NO_COLOR="1"), terminal()
    assert plain.shows("ValueError")
    assert coloured.shows("ValueError")

    assert COLOUR.search(coloured.output)
    assert not COLOUR.search(plain.output)


@pytest.mark.parametrize("arguments", [["--once"], []], ids=["--once", "no terminal"])
def test_in_a_pipe_it_is_one_frame_without_control_characters(tmp_path, runs, arguments):
    outcome = command(tmp_path, "top", *arguments, FORCE_COLOR="1")

    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert "runs 4" in outcome.stdout
    assert "report" in outcome.stdout
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", outcome.stdout) is None


def test_one_worker_or_pipeline_can_be_chosen(tmp_path, runs):
    of_one = command(tmp_path, "top", "--once", "--pipeline", "send").stdout
    of_worker = command(tmp_path, "top", "--once", "--worker", "tests").stdout

    assert "runs 3" in of_one
    assert "report" not in of_one
    assert "report" in of_worker


def test_over_http_it_shows_the_same(tmp_path, runs, service):
    url = f"http://{service.ask('service.info')['http']}"

    assert "runs 4" in command(tmp_path, "top", "--once", "--url", url).stdout


def test_of_a_hub_it_shows_what_that_can_answer(tmp_path, postgres_url):
    log = tmp_path / "hub.log"
    with log.open("w") as said:
        environ = environment(tmp_path, ORBIT_HISTORY_URL=postgres_url)
        hub = subprocess.Popen([*ENTRY, "serve", "--hub"], env=environ, stderr=said)
    try:
        [address] = until(lambda: re.findall(r"a hub: http at ([^,]+),", log.read_text()))
        url = f"http://{address}"
        until(lambda: "Pipelines" in command(tmp_path, "top", "--once", "--url", url).stdout)
        outcome = command(tmp_path, "top", "--once", "--url", url)
    finally:
        hub.kill()
        hub.wait(10)

    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert "worker.recentRuns is answered by each node" in outcome.stdout


def test_without_a_service_it_ends_with_a_sentence(tmp_path):
    outcome = command(tmp_path, "top")

    assert outcome.returncode == 1
    assert "no service at" in outcome.stderr
    assert "Traceback" not in outcome.stderr
