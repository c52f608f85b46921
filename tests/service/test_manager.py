"""What systemd and the service tell one another, by its protocols and without it."""

from __future__ import annotations

import os
import socket

import pytest

from builders import until
from managers import Manager
from orbit_service.manager import Handed, UnusableSocket, handed_over, notify, watchdog_seconds
from processes import House


@pytest.fixture
def manager(tmp_path):
    manager = Manager(tmp_path)
    yield manager
    manager.close()


# ---------------------------------------------------------------- readiness


def test_it_says_that_it_is_ready_and_that_it_stops(manager, tmp_path):
    service = manager.start()
    assert manager.heard() == ["READY=1", "STATUS=takes runs"]
    assert House(tmp_path).ask("service.info")  # and so it is

    service.terminate()
    assert manager.heard() == ["STOPPING=1", "STATUS=stopping"]
    assert service.wait(20) == 0


def test_it_says_that_its_loop_turns_twice_in_the_time_that_is_waited(manager):
    service = manager.start(WATCHDOG_USEC="200000")
    assert [manager.heard() for _ in range(3)][1:] == [["WATCHDOG=1"]] * 2

    service.terminate()
    assert service.wait(20) == 0


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_where_it_is_ours(told, seconds):
    assert watchdog_seconds(told) == seconds


@pytest.mark.parametrize("address", ["", "/nowhere", "relative", "@no one"])
def test_without_a_manager_that_hears_nothing_is_said(address):
    notify("READY=1", environ={"NOTIFY_SOCKET": address})


# ---------------------------------------------------------------- sockets


def test_workers_of_the_managers_socket_are_served_and_it_stays_when_the_service_ends(
    manager, tmp_path
):
    path = manager.listen_for_workers()
    service = manager.start()
    house = House(tmp_path)
    assert until(lambda: house.ask("service.info"))["socket"] == str(path)
    service.terminate()
    service.wait(20)
    assert path.is_socket()

    worker = house.worker("record_run(1, True); print(flush(20)); step()")  # nobody is there
    manager.start()
    assert worker.reached() == "True"
    assert house.runs() == 1
    house.close()


def test_http_answers_on_the_managers_socket(manager):
    port = manager.listen_for_http()
    manager.start()
    until(lambda: manager.heard() and True)

    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        wire.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert wire.recv(15) == b"HTTP/1.1 200 OK"


def test_a_socket_of_the_manager_that_all_can_reach_needs_a_token_too(manager):
    manager.listen_for_http("0.0.0.0")
    service = manager.start()

    assert service.wait(20) == 1
    assert "set ORBIT_TOKEN" in manager.said()


@pytest.mark.parametrize(
    ("sockets", "why"),
    [
        ([(socket.AF_UNIX, socket.SOCK_STREAM)] * 2, "the second one for workers"),
        ([(socket.AF_INET, socket.SOCK_DGRAM)], "it is no stream"),
        ([(socket.AF_UNIX, socket.SOCK_SEQPACKET)], "it is no stream"),
    ],
)
def test_a_socket_that_cannot_be_used_is_named(manager, tmp_path, sockets, why):
    for number, (family, type) in enumerate(sockets):
        made = socket.socket(family, type)
        made.bind(str(tmp_path / str(number)) if family == socket.AF_UNIX else ("127.0.0.1", 0))
        if type == socket.SOCK_STREAM:
            made.listen()
        manager.hand_over(made)
    service = manager.start()

    assert service.wait(20) == 1
    assert why in manager.said()


def test_a_manager_that_does_not_listen_holds_up_nothing(manager, tmp_path):
    service = manager.start(WATCHDOG_USEC="2000")  # its messages soon fill the queue
    house = House(tmp_path)
    until(lambda: house.ask("service.info"))
    until(lambda: (house.ask("service.info") or {}).get("uptimeSeconds", 0) >= 2)
    service.terminate()

    assert service.wait(20) == 0


def test_a_number_of_sockets_that_cannot_be_is_named():
    with pytest.raises(UnusableSocket, match="too large"):
        handed_over({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "9" * 5_000})


def test_what_was_told_to_another_process_is_not_for_this_one():
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "OTHER": "y"}
    assert handed_over(environ) == Handed()
    assert environ == {"OTHER": "y"}
