"""The connection to a service that is slow, absent, forgetful or another program."""

from __future__ import annotations

import logging
import socket
import threading

import pytest

from builders import T0, until
from orbit_worker import host as host_module
from orbit_worker import sender as sender_module
from orbit_worker.buffer import MAX_OPEN
from orbit_worker.client import MetricsClient
from orbit_worker.host import Waiting


@pytest.fixture(autouse=True)
def _log_everything(caplog):
    caplog.set_level(logging.INFO, "orbit_worker")


def record(client, *durations_ms):
    for duration_ms in durations_ms:
        client.record_run(duration_ms, True)


def lines_of(caplog, part=""):
    return [r.getMessage() for r in caplog.records if part in r.getMessage()]


# ---------------------------------------------------------------- the usual way


def test_a_session_says_hello_then_beats_then_records(scripted, client):
    record(client, 1)
    until(lambda: len(scripted.messages) == 3)

    methods = [message["method"] for message in scripted.messages]
    assert methods == ["worker.connect", "worker.heartbeat", "runs.record"] or methods == [
        *["worker.connect", "runs.record", "worker.heartbeat"]
    ]
    assert scripted.params("worker.connect")[0]["worker"] == "tests"


def test_a_heartbeat_tells_what_the_process_needs(scripted, tmp_path, patient):
    client = MetricsClient(socket=tmp_path / "worker.sock", queue_depths=lambda: {"fast": 3})
    client.connect()

    [beat] = until(lambda: scripted.params("worker.heartbeat"))
    assert beat["rssBytes"] > 1_000_000
    assert beat["cpuSeconds"] > 0
    assert beat["queues"] == {"fast": 3}
    client.close()


def test_a_queue_may_tell_since_when_its_oldest_task_waits(scripted, tmp_path, patient):
    micros = Waiting(1, T0 * 1000)  # a mistake, which must not cost the rest
    depths = {"fast": Waiting(3, T0), "slow": Waiting(0), "none": 7, "odd": micros}
    client = MetricsClient(socket=tmp_path / "worker.sock", queue_depths=lambda: depths)
    client.connect()

    [beat] = until(lambda: scripted.params("worker.heartbeat"))
    assert beat["queues"] == {"fast": 3, "slow": 0, "none": 7, "odd": 1}
    assert beat["oldest"] == {"fast": T0}
    client.close()


def test_heartbeats_come_at_their_interval(scripted, client, monkeypatch):
    monkeypatch.setattr(sender_module, "HEARTBEAT_SECONDS", 0.05)
    client.connect()

    until(lambda: len(scripted.params("worker.heartbeat")) >= 3)


def test_a_depth_that_cannot_be_told_leaves_the_heartbeat(scripted, tmp_path):
    client = MetricsClient(socket=tmp_path / "worker.sock", queue_depths=lambda: 1 / 0)
    client.connect()

    [beat] = until(lambda: scripted.params("worker.heartbeat"))
    assert "queues" not in beat
    client.close()


def test_without_poll_which_eventlet_takes_away_it_sends_as_ever(scripted, client, monkeypatch):
    monkeypatch.delattr("select.poll")
    record(client, 1)
    assert client.flush(10)

    record(client, 2)  # the thread has parked, and is woken
    assert client.flush(10)


def test_a_parked_thread_is_woken_without_os_write_which_eventlet_replaces(
    scripted, client, monkeypatch
):
    record(client, 1)
    until(lambda: client._sender.parked and client._sender._thread)
    monkeypatch.setattr("os.write", lambda *_: 1 / 0)

    record(client, 2)
    assert client.flush(10)


def test_flush_waits_for_the_acknowledgement(scripted, client):
    scripted.acknowledges = False
    record(client, 1)
    assert not client.flush(0.1)

    until(scripted.seqs)
    scripted.notify("runs.acked", seq=2)
    assert client.flush(20)


def test_a_flush_in_the_middle_of_a_step_waits_for_the_next(scripted, client, monkeypatch):
    formed, go_on = threading.Event(), threading.Event()
    form_all = client._buffer.form_all

    def form_and_stop(*said, **more):
        form_all(*said, **more)
        formed.set()
        go_on.wait()

    monkeypatch.setattr(client._buffer, "form_all", form_and_stop)
    record(client, 1)
    assert formed.wait(10)
    record(client, 2)  # after the step under way has formed
    threading.Thread(target=lambda: until(lambda: client._sender._waiters) and go_on.set()).start()

    assert client.flush(20)
    assert scripted.durations_us() == [1000, 2000]


def test_under_steady_load_acknowledgements_are_still_taken(scripted, client):
    until(lambda: record(client, 1) or client._buffer.settled >= 10)


def test_close_says_goodbye(scripted, client):
    record(client, 1)
    assert client.close(20)

    assert until(lambda: scripted.params("worker.disconnect")) == [{"reason": "exit"}]


def test_what_is_recorded_after_close_stays_bounded_and_a_flush_sends_it(scripted, client):
    record(client, 1)
    client.close(20)
    record(client, 2)
    assert client.flush(20)

    assert scripted.durations_us() == [1000, 2000]


# ---------------------------------------------------------------- absence


def test_without_a_service_runs_wait_and_one_line_says_so(client, caplog):
    record(client, 1, 2)
    assert not client.flush(0.5)  # in which it tries several times
    until(lambda: lines_of(caplog))

    assert len(lines_of(caplog)) == 1
    assert "no metrics service at" in lines_of(caplog)[0]


def test_what_was_recorded_before_the_service_came_arrives(client, scripted):
    scripted.stop()
    record(client, 1)
    client.flush(0.1)
    scripted.start()

    assert client.flush(20)
    assert scripted.durations_us() == [1000]


def test_each_change_of_state_is_one_line(scripted, client, caplog):
    record(client, 1)
    client.flush()
    scripted.stop()
    until(lambda: lines_of(caplog, "no metrics service"))
    scripted.start()
    record(client, 2)
    client.flush()

    assert [line.split(" ")[0] for line in lines_of(caplog)] == ["connected", "no", "connected"]


def test_a_service_that_never_answers_is_left_and_tried_again(
    scripted, client, caplog, monkeypatch
):
    monkeypatch.setattr(sender_module, "GREETING_SECONDS", 0.05)
    scripted.answers = False
    record(client, 1)
    until(lambda: scripted.greeted >= 2)
    assert "does not answer" in lines_of(caplog)[0]

    monkeypatch.setattr(sender_module, "GREETING_SECONDS", 30.0)
    scripted.answers = True
    assert client.flush(20)


def test_a_service_that_refuses_is_asked_again_later(scripted, client, caplog, monkeypatch):
    monkeypatch.setattr(sender_module, "REFUSED_RETRY", 0.05)
    scripted.refuses = "protocol 1 is not spoken here"
    record(client, 1)
    until(lambda: scripted.greeted >= 2)
    assert "it refuses: protocol 1 is not spoken here" in lines_of(caplog)[0]

    scripted.refuses = None
    assert client.flush()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"method": "runs.acked"}',
        b'{"method": "runs.acked", "params": {"seq": "1"}}',
        b'{"method": "worker.control", "params": 1}',
        b'{"id": "hello", "result": {}}',
        b'{"id": "hello", "result": {"acked": -1}}',
        b'{"id": ["hello"]}',
        b'{"error": "no"}',
    ],
)
def test_another_program_at_the_socket_never_raises_in_the_host(scripted, client, caplog, said):
    scripted.answers = False
    record(client, 1)
    until(lambda: scripted.greeted)
    scripted.say(said)

    assert not client.flush(0.2)
    until(lambda: lines_of(caplog, "another program"))


def test_a_full_backlog_is_waited_out(client, tmp_path, caplog):
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as neighbour:
        listener.bind(str(tmp_path / "worker.sock"))
        listener.listen(0)
        neighbour.connect(str(tmp_path / "worker.sock"))
        record(client, 1)
        assert not client.flush(0.1)
        assert "temporarily unavailable" in until(lambda: lines_of(caplog))[0]

        listener.accept()[0].close()
        record(client, 2)
        listener.settimeout(30)
        with listener.accept()[0] as accepted:
            assert b"worker.connect" in accepted.recv(65536)


# ---------------------------------------------------------------- a host in need


@pytest.fixture
def no_threads(monkeypatch):
    """Our threads cannot be started, as at a limit on processes; call it to end that."""

    def start(thread):
        if thread.name.startswith("orbit-worker"):
            raise RuntimeError("can't start new thread")
        original(thread)

    original = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(sender_module, "START_RETRY", 0.0)
    return monkeypatch.undo


def test_without_a_thread_a_flush_sends(scripted, client, no_threads):
    record(client, 1, 2)

    assert client.flush()
    assert client.reset_metrics() is False  # asked, and this service does not know it
    assert scripted.durations_us() == [1000, 2000]
    assert client.close(20)
    assert until(lambda: scripted.params("worker.disconnect")) == [{"reason": "exit"}]


def test_without_a_thread_what_waits_stays_bounded(scripted, client, no_threads):
    client._buffer._max_runs = 10_000
    record(client, *[1] * 100_000)

    waiting = len(client._buffer.open) + client._buffer.unacknowledged
    assert waiting <= MAX_OPEN + 10_000
    assert waiting + client._buffer.dropped["buffer full"] == 100_000


def test_a_thread_that_starts_at_last_sends_what_waits(scripted, client, no_threads):
    record(client, 1)
    no_threads()
    record(client, 2)

    until(lambda: scripted.durations_us() == [1000, 2000])


def test_a_callback_that_never_returns_holds_up_nothing(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(sender_module, "DEPTHS_SECONDS", 0.05)
    asked, end = threading.Event(), threading.Event()
    client = MetricsClient(
        socket=tmp_path / "worker.sock",
        queue_depths=lambda: [asked.set(), end.wait(), {}][-1],
        on_control=lambda *_: end.wait(),
    )
    client.connect()
    assert asked.wait(10)
    scripted.notify("worker.control", id="c1", action="pause")
    record(client, 1)

    assert client.flush(20)
    until(lambda: scripted.params("worker.heartbeat"))
    assert client.close(20)
    end.set()


def test_commands_that_nobody_obeys_are_refused_beyond_a_bound(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(host_module, "MAX_CONTROLS", 2)
    busy, end = threading.Event(), threading.Event()
    client = MetricsClient(
        socket=tmp_path / "worker.sock", on_control=lambda *_: busy.set() or end.wait()
    )
    client.connect()
    until(lambda: scripted.params("worker.heartbeat"))
    scripted.notify("worker.control", id="c0", action="pause")
    assert busy.wait(10)
    for n in (1, 2, 3):
        scripted.notify("worker.control", id=f"c{n}", action="pause")

    assert until(lambda: scripted.params("worker.controlled")) == [
        {"id": "c3", "outcome": "refused"}
    ]
    end.set()
    until(lambda: len(scripted.params("worker.controlled")) == 4)
    client.close()


def test_a_flood_that_the_thread_leaves_waiting_is_counted(scripted, client, monkeypatch):
    monkeypatch.setattr(sender_module, "ROOM_SECONDS", 0.05)
    record(client, 1)
    client.flush()
    with client._sender._lock:  # as if the thread hung in a handler of the host's logging
        record(client, *[1] * (MAX_OPEN + 1_000))

    assert client.flush(20)
    assert client._buffer.dropped.keys() == {"overload"}
    dropped = client._buffer.dropped["overload"]
    assert len(scripted.durations_us()) + dropped == client._buffer.recorded == MAX_OPEN + 1_001


def test_a_client_that_is_closed_does_not_come_back(scripted, tmp_path):
    for _ in range(50):
        client = MetricsClient(socket=tmp_path / "worker.sock")
        record(client, 1)
        client.close(20)

    until(lambda: len(scripted.params("worker.disconnect")) == 50)
    assert scripted.greeted == 50


# ---------------------------------------------------------------- again, after a cut


def test_after_a_cut_what_is_not_acknowledged_is_sent_again(scripted, client):
    scripted.acknowledges = False
    record(client, 1)
    until(lambda: scripted.durations_us() == [1000])
    scripted.cut()

    assert until(lambda: len(scripted.durations_us()) == 2)
    assert len(set(scripted.seqs())) == 1


def test_after_a_cut_what_the_service_has_counted_is_not_sent_again(scripted, client):
    scripted.acknowledges = False
    record(client, 1)
    until(scripted.seqs)
    scripted.acked = scripted.seqs()[0]
    scripted.cut()
    until(lambda: scripted.greeted == 2)
    record(client, 2)

    until(lambda: 2000 in scripted.durations_us())
    assert scripted.durations_us() == [1000, 2000]


def test_a_session_that_the_service_does_not_know_sends_all_that_waits(scripted, client):
    scripted.acknowledges = False
    record(client, 1)
    until(lambda: scripted.durations_us() == [1000])
    scripted.acknowledges, scripted.known = True, False
    scripted.cut()

    assert client.flush()
    assert scripted.durations_us() == [1000, 1000]


def test_a_session_keeps_its_identity_over_reconnects(scripted, client):
    record(client, 1)
    client.flush()
    scripted.cut()
    until(lambda: scripted.greeted == 2)

    first, second = scripted.params("worker.connect")
    assert first["session"] == second["session"] == client.session


def test_a_reconnect_tells_which_runs_are_under_way(scripted, client):
    with client.track("long", id="r1"):
        until(lambda: scripted.greeted == 1)
        scripted.cut()
        until(lambda: scripted.greeted == 2)

    running = scripted.params("worker.connect")[1]["running"]
    assert [(run["id"], run["pipeline"]) for run in running] == [("r1", "long")]


def test_a_service_that_does_not_read_delays_and_garbles_nothing(scripted, client, patient):
    record(client, 0)
    client.flush()
    scripted.reading.clear()
    record(client, *range(1, 200_000))  # some MB: the socket takes a part of a line
    assert not client.flush(0.3)
    scripted.reading.set()

    assert client.flush(20)
    assert sorted(scripted.durations_us()) == [n * 1000 for n in range(200_000)]


# ---------------------------------------------------------------- control


@pytest.mark.parametrize(
    ("obeys", "outcome"),
    [
        pytest.param(lambda *_: True, "done", id="done"),
        pytest.param(lambda *_: False, "refused", id="refused"),
        pytest.param(lambda *_: None, "unknown", id="unknown"),
        pytest.param(lambda *_: 1 / 0, "refused", id="a callback that fails"),
        pytest.param(None, "unknown", id="no callback"),
    ],
)
def test_control_is_answered_with_what_the_host_did(scripted, tmp_path, obeys, outcome):
    client = MetricsClient(socket=tmp_path / "worker.sock", on_control=obeys)
    client.connect()
    until(lambda: scripted.params("worker.heartbeat"))
    scripted.notify("worker.control", id="c1", action="pause")

    answer = until(lambda: scripted.params("worker.controlled"))
    assert answer == [{"id": "c1", "outcome": outcome}]
    client.close()


def test_an_answer_that_was_not_sent_yet_goes_before_the_goodbye(scripted, client):
    client.connect()
    until(lambda: scripted.params("worker.heartbeat"))
    with client._sender._lock:  # no step comes in between
        client._sender._stopping = True
        client._sender._obeyed("c1", "done")
    until(lambda: scripted.params("worker.disconnect"))

    methods = [message["method"] for message in scripted.messages]
    assert methods[-2:] == ["worker.controlled", "worker.disconnect"]


def test_control_reaches_the_host_with_action_and_pipeline_in_a_thread_of_ours(scripted, tmp_path):
    heard = []
    client = MetricsClient(
        socket=tmp_path / "worker.sock",
        on_control=lambda *said: heard.append((*said, threading.current_thread().name)),
    )
    client.connect()
    until(lambda: scripted.params("worker.heartbeat"))
    scripted.notify("worker.control", id="c1", action="restart", pipeline="send")

    assert until(lambda: heard) == [("restart", "send", "orbit-worker-host")]
    client.close()
