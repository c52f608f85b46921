"""The service is told to stop: it goes on for workers that are still there, or ends at once."""

from __future__ import annotations

import signal
import subprocess

import pytest

from builders import until
from processes import House, Worker


@pytest.fixture
def draining(tmp_path):
    house = House(tmp_path, ORBIT_DRAIN_TIMEOUT="60")
    yield house
    house.close()


def connected_worker(house: House, code: str = "") -> Worker:
    worker = house.worker(f"record_run(1, True); flush(5); step()\n{code}")
    assert worker.reached()
    return worker


def told_to_stop(service: subprocess.Popen[str], house: House) -> None:
    service.send_signal(signal.SIGTERM)
    until(lambda: "going on for 1 processes of 1 workers" in house.log())


def runs_after_a_restart(house: House) -> int:
    house.serve()
    return until(lambda: house.ask("worker.metrics", window="1h"))["totalRuns"]


def test_runs_are_taken_until_the_last_worker_has_said_goodbye(draining):
    service = draining.serve()
    worker = connected_worker(draining, "for _ in range(500): record_run(1, True)")
    told_to_stop(service, draining)

    assert draining.runs() == 1  # it still answers
    worker.go_on()
    worker.leave()
    assert service.wait(20) == 0
    assert runs_after_a_restart(draining) == 501


def test_a_worker_that_is_killed_meanwhile_is_waited_for_no_longer(draining):
    service = draining.serve()
    worker = connected_worker(draining)
    told_to_stop(service, draining)
    worker.kill()

    assert service.wait(20) == 0


def test_with_no_worker_there_it_ends_at_once(draining):
    service = draining.serve()
    service.send_signal(signal.SIGTERM)

    assert service.wait(20) == 0
    assert "going on" not in draining.log()


def test_when_the_time_is_up_it_ends_and_a_worker_keeps_what_it_has(tmp_path):
    house = House(tmp_path, ORBIT_DRAIN_TIMEOUT="1")
    service = house.serve()
    worker = connected_worker(house, "record_run(1, True); step(); print(flush(30)); step()")
    told_to_stop(service, house)
    assert service.wait(20) == 0
    assert "1 processes have not left" in house.log()

    worker.go_on()
    worker.reached()  # recorded, without anybody there
    worker.go_on()
    assert runs_after_a_restart(house) >= 1
    assert worker.reached() == "True"
    assert house.runs() == 2
    house.close()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_waiting_and_loses_nothing_acknowledged(draining, second):
    service = draining.serve()
    connected_worker(draining)
    told_to_stop(service, draining)
    service.send_signal(second)

    assert service.wait(20) == 0
    assert runs_after_a_restart(draining) == 1


def test_a_worker_that_comes_meanwhile_is_served_and_not_waited_for(draining):
    service = draining.serve()
    first = connected_worker(draining)
    told_to_stop(service, draining)
    connected_worker(draining)  # whose first run is acknowledged
    first.go_on()
    first.leave()

    assert service.wait(20) == 0
    assert runs_after_a_restart(draining) == 2


def test_without_the_setting_it_does_not_wait(tmp_path):
    house = House(tmp_path)
    service = house.serve()
    connected_worker(house)
    service.send_signal(signal.SIGTERM)

    assert service.wait(20) == 0
    assert "going on" not in house.log()
    house.close()
