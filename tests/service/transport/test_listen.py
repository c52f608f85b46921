"""Where the worker socket is made: a stale one gives way, and nothing else is touched."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from builders import until
from conftest import RunningService
from orbit_service.transport import listen
from orbit_service.transport.listen import SocketInUse, SocketPathTaken, SocketUnusable, unlink


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "worker.sock"


@pytest.fixture
def bind() -> Iterator[object]:
    """`listen.bind` whose sockets are closed when the test is over."""
    with ExitStack() as stack:
        yield lambda path, mode=0o600: stack.enter_context(listen.bind(path, mode))


def stale(path: Path) -> int:
    """Leave the file of a socket on which nobody listens; its inode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    return path.stat().st_ino


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666], ids=oct)
def test_the_socket_has_the_mode_that_was_asked_for(bind, path, mode):
    bind(path, mode)
    assert mode_of(path) == mode
    assert can_connect(path)


def test_a_mask_does_not_change_the_mode_and_is_left_as_it_was(bind, path):
    before = os.umask(0o077)
    bind(path, 0o660)
    assert os.umask(before) == 0o077
    assert mode_of(path) == 0o660


def test_a_directory_that_is_missing_is_made_for_this_user_alone(bind, path):
    bind(path)
    assert mode_of(path.parent) == 0o700


def test_a_directory_that_exists_is_used_as_it_is(bind, path):
    path.parent.mkdir(mode=0o755)
    bind(path)
    assert mode_of(path.parent) == 0o755


def test_a_stale_socket_is_replaced(bind, path):
    stale(path)
    bind(path)
    assert can_connect(path)


def test_a_live_socket_is_refused_and_goes_on(bind, path):
    bind(path)
    with pytest.raises(SocketInUse, match=f"listening on {path}") as refused:
        bind(path)
    assert "ORBIT_SOCKET" in refused.value.advice
    assert can_connect(path)


def test_a_live_socket_whose_backlog_is_full_is_not_taken_for_a_stale_one(path):
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(SocketInUse):
            listen.bind(path, 0o600)
    assert path.exists()


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_directory(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_a_socket(path: Path) -> None:
    stale(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("make", [a_file, a_directory, a_pipe, a_link_to_a_socket])
def test_what_is_no_socket_is_never_deleted(path, make):
    path.parent.mkdir()
    make(path)
    before = path.lstat()

    with pytest.raises(SocketPathTaken, match=f"{path} exists and is not a socket"):
        listen.bind(path, 0o600)
    assert path.lstat() == before


@pytest.mark.parametrize(
    ("below", "why"), [(".", "{file} is not a directory"), ("deeper", "Not a directory")]
)
def test_a_directory_that_cannot_be_made_is_said_in_a_sentence(tmp_path, below, why):
    file = tmp_path / "file"
    file.write_text("")
    path = file / below / "worker.sock"
    with pytest.raises(SocketUnusable) as refused:
        listen.bind(path, 0o600)
    said = f"The socket {path} cannot be made: {why.format(file=file)}."
    assert refused.value.message == said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_said_in_a_sentence(path):
    path.parent.mkdir(mode=0o500)
    with pytest.raises(SocketUnusable, match="Permission denied"):
        listen.bind(path, 0o600)


def test_the_file_is_removed_at_the_end(bind, path):
    bind(path)
    unlink(path, path.stat().st_ino)
    assert not path.exists()


def test_the_file_of_another_service_is_left_alone(bind, path):
    bind(path)
    mine = path.stat().st_ino
    path.rename(path.with_name("mine"))
    bind(path)
    unlink(path, mine)
    assert can_connect(path)


def test_a_file_that_is_gone_already_is_no_trouble(path):
    unlink(path, 1)


def test_socket_and_state_may_be_in_one_directory(tmp_path, bind):
    running = RunningService(tmp_path / "worker.sock", ORBIT_STATE=tmp_path)
    running.start()
    assert running.ask("service.info")["state"]["path"] == str(tmp_path)
    with pytest.raises(SocketInUse):
        bind(tmp_path / "worker.sock", 0o600)
    running.close()


def test_a_socket_whose_file_is_deleted_is_made_anew(service, client):
    client.record_run(1, True)
    assert client.flush(5)
    service.socket.unlink()

    until(lambda: can_connect(service.socket))  # its file is there a moment before it listens
    assert service.ask("worker.metrics")["totalRuns"] == 1  # those who were there stay
    assert service.service.ready


def test_while_its_place_is_taken_it_is_not_ready(service):
    taken = service.socket.with_name("taken")
    taken.write_text("not a socket")
    taken.replace(service.socket)  # in one move: a place that is free is taken at once
    until(lambda: not service.service.ready)
    assert service.socket.read_text() == "not a socket"

    service.socket.unlink()
    until(lambda: service.service.ready)
    assert service.ask("worker.metrics")["totalRuns"] == 0
