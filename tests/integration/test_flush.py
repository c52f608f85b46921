"""Who waits for the acknowledgement gets it soon, whatever the service does with others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from builders import until
from conftest import RunningService


@pytest.fixture
def resting(tmp_path, monkeypatch):
    """A service whose journal rests for a minute where nobody waits."""
    monkeypatch.setattr("orbit_service.state.journal.UNHURRIED_REST", 60.0)
    running = RunningService(tmp_path / "worker.sock", ORBIT_STATE=tmp_path / "state")
    running.start()
    yield running
    running.close()


def test_a_flush_does_not_wait_for_the_long_rest_of_the_journal(resting, client):
    for number in range(3):
        client.record_run(number, True)
        assert client.flush(20)


def test_a_flush_takes_no_message_of_its_own_where_it_has_results_to_send(
    resting, client, monkeypatch
):
    monkeypatch.setattr("orbit_worker.sender.HEARTBEAT_SECONDS", 3600.0)  # none after the first
    client.record_run(1, True)
    assert client.flush(20)
    before = client._buffer.seq
    with ThreadPoolExecutor(1) as pool:
        with client._sender._lock:  # so that it is not sent before somebody waits for it
            client.record_run(2, True)
            flushed = pool.submit(client.flush, 20)
            until(lambda: client._sender._waiters)
        assert flushed.result()

    assert client._buffer.seq == before + 1


def test_nor_does_one_for_what_was_sent_before(resting, client):
    client.record_run(1, True)
    assert client.flush(20)
    client.record_run(2, True)
    until(lambda: resting.ask("worker.metrics")["totalRuns"] == 2)
    assert client.flush(20)
