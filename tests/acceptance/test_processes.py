"""Real processes, killed and restarted: what was recorded is counted once."""

from __future__ import annotations

import signal
import subprocess

import pytest

from builders import until


def end(service: subprocess.Popen[str]) -> int:
    service.send_signal(signal.SIGTERM)
    return service.wait(10)


# ---------------------------------------------------------------- a life


def test_a_worker_records_and_leaves(house):
    house.serve()
    house.worker("for n in range(100): record_run(n, n % 10 != 0)").leave()

    ended = house.ended()
    assert (ended["totalRuns"], ended["failed"], ended["reason"]) == (100, 10, "exit")


def test_a_killed_worker_loses_the_run_it_was_in_and_nothing_else(house):
    house.serve()
    worker = house.worker("record_run(5, True)\nwith track('job', id='r1'):\n    flush(); step()")
    worker.reached()
    worker.kill()

    ended = house.ended()
    assert (ended["totalRuns"], ended["failed"], ended["reason"]) == (2, 1, "lost")
    [lost] = house.ask("worker.recentRuns", status="failed")
    assert (lost["id"], lost["error"]["type"], lost["durationMs"]) == ("r1", "WorkerLost", None)


def test_what_a_worker_wrote_before_it_was_killed_counts(house):
    service = house.serve()
    worker = house.worker("record_run(1, True); flush(); step()\n"
                          "for n in range(3000): record_run(1, True)\n"
                          "client = orbit_worker.default_client(); sender = client._sender\n"
                          "while client._buffer.open or sender._position < client._buffer.seq \\\n"
                          "        or sender._connection.busy: flush(0.05)\n"
                          "os.kill(os.getpid(), 9)")  # fmt: skip
    worker.reached()
    service.send_signal(signal.SIGSTOP)  # so that nothing is read while the worker lives
    worker.go_on()
    worker.process.wait(20)
    service.send_signal(signal.SIGCONT)

    assert until(lambda: (house.metrics()["lastLife"] or {}).get("totalRuns")) == 3001


# ---------------------------------------------------------------- the service comes and goes


def test_sigterm_ends_the_service_cleanly(house):
    service = house.serve()
    worker = house.worker("record_run(1, True); flush(); step()")
    worker.reached()

    assert end(service) == 0
    assert not house.socket.exists()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_runs_of_the_time_without_a_service_arrive_when_it_is_back(house, signal_number):
    service = house.serve()
    worker = house.worker("record_run(1, True); flush(); step()\n"
                          "for _ in range(50): record_run(1, True)\n"
                          "step()")  # fmt: skip
    worker.reached()
    service.send_signal(signal_number)
    service.wait(10)
    worker.go_on()
    worker.reached()  # recorded, without anybody there
    house.serve()

    until(lambda: house.runs() == 51)
    worker.go_on()
    worker.leave()
    assert house.ended()["totalRuns"] == 51


@pytest.mark.parametrize("service_dies_first", [True, False])
def test_what_a_killed_worker_left_in_its_spool_is_sent_by_the_next(house, service_dies_first):
    spooling = "os.environ['ORBIT_SPOOL_DIR'] = 'spool'\n"
    service = house.serve()
    worker = house.worker(spooling + "record_run(1, True); flush(); step()\n"
                          "for _ in range(100): record_run(1, True)\n"
                          "step(flush(1))")  # fmt: skip
    worker.reached()
    if service_dies_first:
        service.kill()
        service.wait()
    else:
        service.send_signal(signal.SIGSTOP)
    worker.go_on()
    assert worker.reached() == "True"
    worker.kill()
    spool = house.socket.parent / "spool"
    left = set(spool.iterdir())
    service.send_signal(signal.SIGCONT)
    if service_dies_first:
        house.serve()
    heir = house.worker(spooling + "record_run(1, True); flush(); step()")
    heir.reached()

    until(lambda: house.ask("service.ledger")["total"]["counted"] == 102)
    assert house.ask("service.ledger")["total"]["repeated"] == 0
    # The file goes when its messages are acknowledged; an heir that leaves before leaves it.
    until(lambda: not left & set(spool.iterdir()))
    heir.go_on()
    heir.leave()
    assert list(spool.iterdir()) == []


# ---------------------------------------------------------------- forks


FORK = """
def child(runs):
    pid = os.fork()
    if pid == 0:
        {child}
    return pid
"""


def test_prefork_children_record_under_their_own_sessions_of_one_worker(house):
    house.serve()
    code = FORK.format(
        child="[record_run(1, True) for _ in range(runs)]; flush(); os.read(r, 1); os._exit(0)"
    )
    worker = house.worker("record_run(1, True); flush(); r, w = os.pipe()\n" + code
                          + "pids = [child(n) for n in (10, 20, 30)]; step()\n"
                          "os.write(w, b'...'); [os.waitpid(pid, 0) for pid in pids]\n"
                          "record_run(1, True); flush(); step()")  # fmt: skip
    worker.reached()
    until(lambda: house.runs() == 61)
    assert house.ask("worker.list")[0]["sessions"] == 4

    worker.go_on()
    worker.reached()
    until(lambda: house.ask("worker.list")[0]["sessions"] == 1)
    assert house.runs() == 62


def test_a_pool_whose_children_come_and_go_keeps_its_totals(house):
    house.serve()
    code = FORK.format(child="record_run(1, True); flush(); os._exit(0)")
    worker = house.worker("orbit_worker.default_client().connect(); step()\n" + code
                          + "for n in range(12): os.waitpid(child(n), 0)\nstep()")  # fmt: skip
    worker.reached()
    until(lambda: house.metrics()["connected"])  # or the first child would begin the life
    worker.go_on()
    worker.reached()

    until(lambda: house.ask("worker.list")[0]["sessions"] == 1)
    assert (house.runs(), house.metrics()["lastLife"]) == (12, None)


def test_a_fork_in_the_middle_of_a_run_leaves_the_run_to_the_parent(house):
    house.serve()
    house.worker("with track('job'):\n"
                 "    pid = os.fork()\n"
                 "    if pid: os.waitpid(pid, 0)").leave()  # fmt: skip

    ended = house.ended()
    assert (ended["totalRuns"], ended["failed"]) == (1, 0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_send_what_waits_when_they_end(house, method, tmp_path):
    (tmp_path / "jobs.py").write_text("from orbit_worker import MetricsClient, record_run\n"
                                      "MetricsClient.close.__defaults__ = (30.0,)\n"
                                      "def work(n): record_run(n, True)\n")  # fmt: skip
    house.serve()
    worker = house.worker("record_run(1, True); flush()\n"
                          "sys.path.insert(0, os.getcwd()); import jobs\n"
                          "context = multiprocessing.get_context(sys.argv[1])\n"
                          "crew = [context.Process(target=jobs.work, args=(1,)) for _ in '1234']\n"
                          "[p.start() for p in crew]; [p.join() for p in crew]; step()",
                          method)  # fmt: skip
    worker.reached()

    assert until(lambda: house.runs() == 5)


# ---------------------------------------------------------------- a host in need


def test_a_host_without_a_free_descriptor_goes_on_and_its_runs_wait(house):
    house.serve()
    worker = house.worker("""
held = []
try:
    while True: held.append(os.dup(0))
except OSError: pass
record_run(1, True)
with track('job'): pass
said = flush(0.1)
for descriptor in held: os.close(descriptor)
step(f"{said} {flush(20)}")
""")

    assert worker.reached() == "False True"
    assert house.runs() == 2


# ---------------------------------------------------------------- signals


def test_a_signal_handler_may_record_and_flush(house):
    house.serve()
    worker = house.worker("""
handled = 0
def handle(*_):
    global handled
    handled += 1
    record_run(1, True); flush(0.01)
    if handled < 300: signal.setitimer(signal.ITIMER_REAL, 0.001)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
recorded = 0
while handled < 300:
    record_run(1, True); recorded += 1
    if recorded % 50 == 0: flush(0.01)
step(f"{flush(20)} {recorded + handled}")
""")
    flushed, recorded = worker.reached().split()

    assert (flushed, house.runs()) == ("True", int(recorded))


STORM = """
class Limit({error}): pass
def strike(*_): raise Limit("time limit")
signal.signal(signal.SIGALRM, strike)
orbit_worker.default_client().connect()
returned = struck = tried = 0
while struck < 500:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002 + struck % 7 / 10_000)
        while True:
            tried += 1
            record_run(1, True)
            returned += 1
            if tried % 50 == 0: flush(0.01)
    except Limit:
        struck += 1
step(f"{{flush(20)}} {{returned}} {{tried}}")
"""


@pytest.mark.parametrize("error", ["BaseException", "Exception", "TimeoutError"])
def test_a_storm_of_time_limits_loses_and_doubles_nothing(house, error):
    house.serve()
    worker = house.worker(STORM.format(error=error))
    flushed, returned, tried = worker.reached().split()
    intake = house.ask("service.info")["intake"]

    # A call that was struck has recorded its run or has not; what returned has.
    assert flushed == "True"
    assert int(returned) <= house.runs() <= int(tried)
    assert (house.runs(), intake["refused"], intake["dropped"]) == (intake["counted"], {}, {})
    assert (intake["repeated"], intake["late"], intake["faults"].get("not connected")) == (
        0,
        0,
        None,
    )
    worker.go_on()
    worker.leave()
