"""MetricsClient: a guest in someone else's process."""

from __future__ import annotations

import inspect
import json
import socket
import subprocess
import sys
import threading
import time
from decimal import Decimal

import pytest

import orbit_worker
from builders import environment, until
from orbit_rpc_schema.caller import call
from orbit_worker import DerivedMetrics, MetricsSnapshot, RunStep
from orbit_worker import record_run as module_run
from orbit_worker.client import MAX_DURATION_MS, MetricsClient
from orbit_worker.testing import capture

NAN, INF = float("nan"), float("inf")
STALL = 15  # s for which the machine may do something else


def run_python(folder, code, **more):
    """Run a host program to its end; its standard output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment(folder, **more),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# In a host program: what it would wait for at its end, or before a fork, it waits for much longer
# than a test lasts.
PATIENT = """
import orbit_worker.client
orbit_worker.client.FORK_SECONDS = 60.0
orbit_worker.client.MetricsClient.close.__defaults__ = (60.0,)
"""


def elapsed(act):
    began = time.monotonic()
    act()
    return time.monotonic() - began


# ---------------------------------------------------------------- what may be recorded


@pytest.mark.parametrize(
    "arguments",
    [
        {"duration_ms": "5"},
        {"success": 1},
        {"success": "yes"},
        {"pipeline": 5},
        {"pipeline": ["send"]},
        {"queue": 5},
        {"id": 5},
        {"attempt": "2"},
        {"attempt": 2.0},
        {"wait_ms": "5"},
        {"error": 5},
        {"steps": [RunStep(5, 1)]},
    ],
    ids=str,
)
def test_a_wrong_type_is_a_type_error_and_counts_nothing(client, arguments):
    with pytest.raises(TypeError):
        client.record_run(**{"duration_ms": 5, "success": True, **arguments})

    assert client._buffer.empty


@pytest.mark.parametrize(
    "duration_ms",
    [
        *[-1, -0.001, NAN, INF, -INF, MAX_DURATION_MS * 2],
        *[Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("-0.1")],
    ],
    ids=repr,
)
def test_a_duration_that_no_clock_gives_is_counted_as_refused(client, service, duration_ms):
    client.record_run(duration_ms, True)
    client.record_run(5, True)
    client.flush()

    assert service.ask("service.info")["intake"]["dropped"] == {"duration": 1}
    assert service.ask("worker.metrics")["totalRuns"] == 1


def test_what_the_short_way_does_not_take_is_what_it_is_said_to_be(client):
    for way in (client.record_run, orbit_worker.record_run):
        parameters = inspect.signature(way).parameters
        assert list(parameters)[:4] == ["duration_ms", "success", "pipeline", "queue"]
        assert parameters["steps"].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters["attempt"].default == 1
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            way(5, True, colour="red")
        with pytest.raises(TypeError, match="positional arguments"):
            way(5, True, "send")


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({}, ("default", 5, True, None, None)),
        ({"pipeline": "send", "success": False}, ("send", 5, False, None, None)),
        ({"attempt": 1, "queue": None}, ("default", 5, True, None, None)),
        ({"queue": "fast"}, ("default", 5, True, "fast", {})),
        ({"final": False}, ("default", 5, True, None, {"final": False})),
        ({"duration_ms": None}, ("default", 0, True, None, {"untimed": True})),
        ({"duration_ms": Decimal("2.5")}, ("default", Decimal("2.5"), True, None, None)),
    ],
    ids=str,
)
def test_the_short_way_and_the_long_way_keep_the_same(arguments, kept):
    for record_run in (MetricsClient.record_run, lambda _self, *a, **k: module_run(*a, **k)):
        with capture() as client:
            for _ in range(2):  # the first time, names are learnt by the long way
                record_run(client, **{"duration_ms": 5, "success": True, **arguments})

            assert client.runs == [kept, kept]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, "\ud800"])
def test_a_pipeline_name_that_is_none_is_counted_as_refused(client, service, name):
    client.record_run(5, True, pipeline=name)
    client.flush()

    assert service.ask("service.info")["intake"]["dropped"] == {"name": 1}


def test_refusals_are_logged_once(client, caplog):
    for _ in range(3):
        client.record_run(-1, True)

    assert [r.getMessage() for r in caplog.records if "refused" in r.getMessage()] == [
        "a duration of -1 ms cannot be recorded; it is counted as refused, as are others"
    ]


@pytest.mark.parametrize(
    "arguments",
    [{"duration_ms": NAN}, {"duration_ms": Decimal("NaN")}, {"attempt": 0}, {"pipeline": ""}],
    ids=str,
)
def test_under_strict_a_refusal_raises(tmp_path, arguments):
    client = MetricsClient(socket=tmp_path / "s", environ={"ORBIT_STRICT": "1"})
    with pytest.raises(ValueError, match="cannot be recorded"):
        client.record_run(**{"duration_ms": 1, "success": True, **arguments})


# ---------------------------------------------------------------- disabled, absent


def test_disabled_it_does_nothing_at_all(service, tmp_path):
    client = MetricsClient(socket=service.socket, environ={"ORBIT_DISABLED": "1"})
    client.record_run(1, True)
    client.start_metrics_reporting()
    with client.track("job") as run, run.step("part"):
        pass

    assert client.flush()
    assert client.get_metrics() == DerivedMetrics()
    assert not client.reset_metrics()
    assert client.close()
    assert service.ask("worker.list") == []


def test_without_a_service_the_numbers_are_zeroes_within_a_second(client):
    client.record_run(5, True)

    assert elapsed(client.get_metrics) < 1 + STALL
    assert client.get_metrics_snapshot() == MetricsSnapshot()


def test_a_service_that_hangs_costs_a_second(client, tmp_path, monkeypatch):
    monkeypatch.setitem(call.__kwdefaults__, "timeout", 60.0)  # where it is not told its second
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "worker.sock"))
        listener.listen()
        client.record_run(5, True)

        assert elapsed(client.get_metrics) < 1 + STALL
        assert elapsed(lambda: client.reset_metrics(0.2)) < STALL


async def test_the_async_form_leaves_the_event_loop_free(client, service, patient):
    client.record_run(5, True)

    assert (await client.get_metrics_async()).total_runs == 1


def test_recording_without_a_service_never_blocks(client):
    assert elapsed(lambda: [client.record_run(1, True) for _ in range(50_000)]) < STALL
    until(lambda: client._buffer.recorded == 50_000)


def test_a_loop_that_records_faster_than_is_sent_stays_bounded(client):
    most = 0
    for _ in range(400_000):
        client.record_run(1, True)
        most = max(most, len(client._buffer.open))

    assert most < 200_000


@pytest.mark.parametrize("formed", [0, 2], ids=["none formed", "two formed"])
def test_the_last_line_tells_how_many_results_are_left_behind(client, caplog, formed):
    for number in range(5):
        if number == formed:
            client._buffer.form(at_ms=0)
        client.record_run(1, True)

    assert not client.close(timeout=20)  # it is not waited for
    assert caplog.messages[-1].endswith("; results waiting: 5")


def test_a_client_that_left_nothing_behind_says_nothing(client, service, caplog):
    client.record_run(1, True)

    assert client.close(20)
    assert caplog.messages == []


def test_a_socket_path_that_is_too_long_is_said_and_raises_nothing(tmp_path, caplog):
    client = MetricsClient(socket=tmp_path / ("x" * 200))
    client.record_run(1, True)

    assert not client.flush(0.05)
    assert "longer than a socket's may be" in caplog.records[0].getMessage()


@pytest.mark.parametrize("interval", ["soon", "999", "-1", "", "1e4", "6" * 500])
def test_a_bad_interval_in_the_environment_raises_nothing(tmp_path, interval):
    client = MetricsClient(socket=tmp_path / "s", environ={"METRICS_INTERVAL": interval})
    client.start_metrics_reporting()
    client.stop_metrics_reporting()
    client.close(0)


# ---------------------------------------------------------------- names


def test_the_worker_is_named_by_argument_then_environment(tmp_path):
    named = {"ORBIT_WORKER_NAME": "from environment"}

    assert MetricsClient(worker="given", environ=named).worker == "given"
    assert MetricsClient(environ=named).worker == "from environment"


def test_without_a_name_the_worker_is_named_by_host_and_program(tmp_path):
    (tmp_path / "mailer.py").write_text("import orbit_worker as o; print(o.MetricsClient().worker)")
    code = "import runpy, sys; sys.argv[0] = 'mailer.py'; runpy.run_path('mailer.py')"

    assert run_python(tmp_path, code).strip() == f"{socket.gethostname()}:mailer"


def test_the_socket_is_named_by_argument_then_environment(tmp_path):
    given = {"ORBIT_SOCKET": "/from/environment"}

    assert str(MetricsClient(socket="/given", environ=given).socket) == "/given"
    assert str(MetricsClient(environ=given).socket) == "/from/environment"


def test_many_threads_share_a_client(client, service):
    def work():
        for _ in range(2_000):
            client.record_run(1, True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert client.flush()
    assert service.ask("worker.metrics")["totalRuns"] == 8_000


# ---------------------------------------------------------------- the host's process


def test_the_client_needs_the_standard_library_alone(tmp_path):
    code = """
import sys, json
before = set(sys.modules)
import orbit_worker, orbit_worker.testing
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(tops - set(sys.stdlib_module_names))))
"""
    assert json.loads(run_python(tmp_path, code)) == ["orbit_rpc_schema", "orbit_worker"]


def test_an_import_leaves_out_what_only_some_need(tmp_path):
    code = """
import sys
import orbit_worker
dear = {"asyncio", "dataclasses", "inspect", "uuid", "orbit_worker.spool"}
assert dear.isdisjoint(sys.modules), dear & set(sys.modules)
"""
    run_python(tmp_path, code)


def test_an_import_opens_starts_and_handles_nothing(tmp_path):
    code = """
import os, threading, signal, logging, atexit
before = set(os.listdir("/proc/self/fd"))
import orbit_worker
assert set(os.listdir("/proc/self/fd")) == before
assert threading.active_count() == 1
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert not logging.getLogger("orbit_worker").handlers and not logging.root.handlers
assert orbit_worker._client is None
"""
    run_python(tmp_path, code)
    assert list(tmp_path.iterdir()) == []


RECORD_AND_LEAVE = "import orbit_worker; orbit_worker.record_run(5, True); "


@pytest.mark.parametrize(
    "leave",
    ["pass", "import sys; sys.exit(0)", "orbit_worker.flush(); orbit_worker.record_run(6, True)"],
)
def test_at_exit_what_waits_is_sent(service, tmp_path, leave):
    run_python(tmp_path, PATIENT + RECORD_AND_LEAVE + leave, ORBIT_WORKER_NAME="brief")

    ended = service.ask("worker.metrics", {"worker": "brief"})["lastLife"]
    assert (ended["totalRuns"], ended["reason"]) == (2 if "flush" in leave else 1, "exit")


def test_at_exit_nothing_is_waited_for_without_a_service(tmp_path):
    run_python(tmp_path, PATIENT + RECORD_AND_LEAVE)


# ---------------------------------------------------------------- for integrations


def test_a_run_that_nobody_measured_counts_and_has_no_duration(client, service, patient):
    client.record_run(None, False, error="killed")
    client.record_run(20, True)
    metrics = client.get_metrics()

    assert (metrics.total_runs, metrics.total_failed, metrics.avg_execution_time) == (2, 1, 20)


def test_a_start_that_is_taken_back_is_in_flight_no_more(client, service, patient):
    client.start_run("r1")
    client.start_run("r2")
    client.flush()
    assert service.ask("worker.stats")["running"] == 2
    client.withdraw_run("r1")
    client.withdraw_run("never begun")
    client.flush()

    assert service.ask("worker.stats")["running"] == 1
    assert client.get_metrics().total_runs == 0


def test_a_description_is_told_with_the_next_connection(client, service):
    client.describe(version="1.2", framework="celery 5.6", slots=8, queue_depths=lambda: {"q": 4})
    client.connect()
    [worker] = until(lambda: [w for w in service.ask("worker.list") if w["queues"]])

    assert (worker["versions"], worker["slots"], worker["queues"]) == (["1.2"], 8, {"q": 4})
    assert worker["runtimes"][0].endswith(", celery 5.6")


def test_the_version_is_named_by_argument_then_environment(tmp_path):
    environ = {"ORBIT_WORKER_VERSION": "2"}

    assert MetricsClient(environ=environ).version == "2"
    assert MetricsClient(version="3", environ=environ).version == "3"


def test_the_modules_function_records_in_a_forked_childs_own_session(service, tmp_path):
    code = """if True:
        import os
        from orbit_worker import default_client, flush, record_run
        record_run(5, True)
        if os.fork() == 0:
            record_run(6, True)
            record_run(7, True)
            flush(20)
            os._exit(0)
        record_run(8, True)
        os.wait()
    """
    run_python(tmp_path, PATIENT + code, ORBIT_WORKER_NAME="forks")

    ledger = service.ask("service.ledger")
    assert sorted(session["counted"] for session in ledger["sessions"]) == [2, 2]


def test_a_forked_child_tells_of_no_slots_and_no_queues(tmp_path):
    code = """if True:
        import os
        from orbit_worker import default_client
        client = default_client()
        client.describe(version="1", slots=8, queue_depths=dict)
        if os.fork() == 0:
            print(client.version, client.slots, client._sender.host.queue_depths, flush=True)
            os._exit(0)
        os.wait()
    """

    assert run_python(tmp_path, code) == "1 None None\n"


def test_a_fork_waits_until_queue_depths_are_told(tmp_path):
    """Or the child would find a lock held for ever, such as that of a module under import."""
    code = """if True:
        import os, threading
        from orbit_worker import default_client
        lock, asked, told = threading.Lock(), threading.Event(), threading.Event()
        def depths():
            with lock:
                asked.set()
                told.wait(0.2)
            return {}
        client = default_client()
        client.describe(queue_depths=depths)
        threading.Thread(target=client._sender.host._ask).start()
        asked.wait()
        if os.fork() == 0:
            print(lock.acquire(timeout=0), flush=True)
            os._exit(0)
        os.wait()
    """

    assert run_python(tmp_path, PATIENT + code) == "True\n"


def test_a_callback_may_fork_itself(tmp_path):
    code = """if True:
        import os
        from orbit_worker import default_client
        def depths():
            if os.fork() == 0:
                os._exit(0)
            os.wait()
            return {}
        client = default_client()
        client.describe(queue_depths=depths)
        client._sender.host._ask()
        print("and goes on")
    """

    assert run_python(tmp_path, PATIENT + code) == "and goes on\n"


@pytest.mark.parametrize("attempt", [0, -1, 10**9])
def test_a_start_with_an_attempt_that_makes_no_sense_holds_up_nothing(
    client, service, patient, attempt
):
    client.start_run("r1", attempt=attempt)
    client.record_run(5, True)

    assert client.get_metrics().total_runs == 1
    assert service.ask("worker.stats")["running"] == 1


def test_what_the_constructor_was_given_is_also_the_forked_childs(tmp_path):
    code = """if True:
        import os
        from orbit_worker import MetricsClient
        client = MetricsClient(slots=4, queue_depths=dict)
        if os.fork() == 0:
            print(client.slots, client._sender.host.queue_depths is dict, flush=True)
            os._exit(0)
        os.wait()
    """

    assert run_python(tmp_path, code) == "4 True\n"
