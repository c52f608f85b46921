"""What waits outlives its process: on the disk while it waits, sent by the next process."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from builders import HOUR, SECOND, environment, until
from interruption import interrupted_at
from orbit_rpc_schema.caller import call
from orbit_rpc_schema.wire import connect_params
from orbit_worker import spool as spool_module
from orbit_worker.adoption import Adopter, _is_left, read_spool
from orbit_worker.buffer import Buffer, Refused
from orbit_worker.client import MetricsClient
from orbit_worker.spool import Spool, file_name


def now_ms() -> int:
    return int(time.time() * SECOND)


def a_hello(session: str = "old", worker: str = "tests") -> dict[str, Any]:
    return connect_params(session=session, worker=worker, started_at_ms=now_ms())


def a_spool(folder: Path, buffer: Buffer, session: str = "old", **options: Any) -> Spool:
    return Spool(folder, "tests", session, buffer, lambda: a_hello(session), **options)


def record(buffer: Buffer, *durations_ms: float, at_ms: int | None = None) -> None:
    """One message of these runs."""
    buffer.open += [("send", duration_ms, True) for duration_ms in durations_ms]
    buffer.form_all(at_ms or now_ms())


def left_behind(
    folder: Path, *messages: tuple[float, ...], node: str | None = "n", at_ms: int | None = None
) -> Path:
    """The spool of a process that was killed, of one message for each tuple of durations."""
    buffer = Buffer()
    spool = a_spool(folder, buffer)
    spool.met(node)
    for durations_ms in messages:
        record(buffer, *durations_ms, at_ms=at_ms)
        spool.keep(0)
    spool.abandon()
    return spool.path


class Successor:
    """An adopter that is connected to the node `n`, and what it has dropped."""

    def __init__(self, socket: Path, folder: Path, worker: str = "tests") -> None:
        self.dropped: dict[str, int] = {}
        self.adopter = Adopter(folder, worker, socket, self.dropped.__setitem__)
        self.adopter.met("n")
        self.look = self.adopter.look


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def successor(tmp_path, folder) -> Successor:
    return Successor(tmp_path / "worker.sock", folder)


@pytest.fixture
def spooling(tmp_path, folder):
    """Makes clients of the worker `tests` that have a spool; closes them at the end."""
    clients = []

    def make(**options: Any) -> MetricsClient:
        client = MetricsClient(
            socket=tmp_path / "worker.sock", worker="tests", spool_dir=folder, **options
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close(timeout=1.0)


@pytest.fixture(autouse=True)
def _log_everything(caplog):
    caplog.set_level(logging.INFO, "orbit_worker")


def lines_of(caplog, part: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if part in r.getMessage()]


def messages_in(path: Path) -> list[int]:
    """The numbers of the messages in it that are not settled."""
    file = os.open(path, os.O_RDONLY)
    try:
        return [line.seq for line in read_spool(file).lines]
    finally:
        os.close(file)


def durations_us(messages: list[dict[str, Any]]) -> list[int]:
    records = [m["params"] for m in messages if m["method"] == "runs.record"]
    return [us for r in records for batch in r["batches"] for us in batch["durationUs"]]


def run(tmp_path: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """A process of the worker `tests` to its end."""
    prelude = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "import orbit_worker\nfrom orbit_worker import flush, record_run, track\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code)],
        env=environment(tmp_path, ORBIT_SPOOL_DIR=str(folder), ORBIT_WORKER_NAME="tests"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---------------------------------------------------------------- the file


def test_without_a_setting_there_is_no_spool(client):
    assert client._spool is None
    assert client._sender._adopter is None


def test_the_environment_names_the_directory(tmp_path, folder):
    environ = {"ORBIT_SPOOL_DIR": str(folder), "ORBIT_WORKER_NAME": "tests"}
    client = MetricsClient(environ=environ)

    assert client.spool_dir == folder
    assert not folder.exists()  # before the first run


def test_each_message_is_in_the_file_while_it_waits(spooling, folder):
    client = spooling()
    client.record_run(1.5, True)
    client.flush()

    [path] = folder.iterdir()
    header, *lines = path.read_bytes().splitlines()
    assert json.loads(header[9:])["hello"]["session"] == client.session
    assert [json.loads(line[9:])["params"]["recorded"] for line in lines] == [1]


def test_directory_and_file_are_their_owners_alone(spooling, folder):
    client = spooling()
    client.record_run(1, True)
    client.flush()

    modes = [stat.S_IMODE(p.stat().st_mode) for p in (folder, *folder.iterdir())]
    assert modes == [0o700, 0o600]


def test_a_worker_of_any_name_has_a_file(folder):
    assert file_name("a/b ../ü\n", "s1") == "a_b_..___-s1.spool"


def test_what_is_acknowledged_leaves_the_file(scripted, spooling):
    client = spooling()
    client.record_run(1, True)
    client.flush()

    until(lambda: client._spool.path.read_bytes().count(b"\n") == 1)  # the header


def test_heartbeats_are_not_spooled(scripted, spooling):
    scripted.acknowledges = False
    client = spooling()
    client.record_run(1, True)
    until(lambda: scripted.params("worker.heartbeat") and scripted.seqs())

    assert messages_in_a_copy(client) == scripted.seqs()


def messages_in_a_copy(client: MetricsClient) -> list[int]:
    """Closing the file itself here would end the owner's lock."""
    copy = client._spool.path.with_suffix(".copy")
    copy.write_bytes(client._spool.path.read_bytes())
    return messages_in(copy)


def test_a_clean_end_leaves_nothing(scripted, spooling, folder):
    client = spooling()
    client.record_run(1, True)

    assert client.close(20)
    assert list(folder.iterdir()) == []


def test_the_header_names_the_node_once_it_is_known(folder):
    buffer = Buffer()
    spool = a_spool(folder, buffer)
    record(buffer, 1)
    spool.keep(0)
    spool.met("n")
    spool.keep(0)
    spool.abandon()

    header = spool.path.read_bytes().splitlines()[0]
    assert json.loads(header[9:])["node"] == "n"
    assert messages_in(spool.path) == [1]


def test_it_is_synced_at_most_once_a_second(folder, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    buffer = Buffer()
    spool = a_spool(folder, buffer)
    for tenth in range(35):
        record(buffer, 1)
        spool.keep(tenth / 10)
    spool.abandon()

    assert len(synced) == 3


def test_a_long_absence_grows_the_file_to_its_bound_and_no_further(folder):
    buffer = Buffer(max_runs=20)
    spool = a_spool(folder, buffer, max_file=10_000)
    sizes = []
    for n in range(500):
        record(buffer, n)
        spool.keep(n)
        sizes.append(spool.path.stat().st_size)
    spool.abandon()

    assert max(sizes) < 10_000 + 1_000
    assert messages_in(spool.path) == list(range(481, 501))
    assert [path.name for path in folder.iterdir()] == [spool.path.name]


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: the file holds what the buffer keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.buffer = Buffer(max_runs=12)
        self.spool = a_spool(self.folder, self.buffer, session=f"s{id(self)}", max_file=3_000)

    @rule(runs=st.integers(1, 6))
    def record(self, runs: int) -> None:
        record(self.buffer, *range(runs))

    @rule()
    def beat(self) -> None:
        self.buffer.beat(0.1, 1)

    @rule(seq=st.integers(0, 40))
    def acknowledge(self, seq: int) -> None:
        self.buffer.acknowledge(min(seq, self.buffer.seq))

    @rule(node=st.sampled_from(["a", "b"]))
    def reconnect(self, node: str) -> None:
        self.spool.met(node)
        self.buffer.resume(0)

    @rule()
    def delete(self) -> None:
        self.spool.path.unlink(missing_ok=True)
        assert not self.spool.holds(0, 0)  # it notices

    @invariant()
    def the_file_holds_what_is_kept(self) -> None:
        self.spool._retry_at = 0
        self.spool.keep(0)
        kept = [message.seq for message in self.buffer.kept(0)]
        if self.spool.path.exists():
            copy = self.spool.path.with_suffix(".copy")
            copy.write_bytes(self.spool.path.read_bytes())
            assert messages_in(copy) == kept
            assert copy.stat().st_size < 3_000 + 2_000
        else:
            assert kept == []

    def teardown(self) -> None:
        self.spool.abandon()
        shutil.rmtree(self.folder)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_an_exception_at_any_instruction_leaves_a_file_that_the_next_step_mends(folder):
    for instruction in range(1, 100_000):
        buffer = Buffer()
        spool = a_spool(folder, buffer, session=f"s{instruction}")
        record(buffer, 1)
        spool.keep(0)
        record(buffer, 2)
        spool.met("n")
        interrupted = interrupted_at(instruction, spool_module, lambda s=spool: s.keep(0))
        spool.keep(0)
        record(buffer, 3)
        spool.keep(0)
        spool.abandon()

        assert sorted(set(messages_in(spool.path))) == [1, 2, 3], instruction
        if not interrupted:
            break
    assert instruction > 100


# ---------------------------------------------------------------- flush and close


def test_a_flush_is_content_with_the_spool_while_the_service_is_away(spooling):
    client = spooling()
    client.record_run(1, True)

    assert client.flush(20)


def test_a_flush_is_content_with_the_spool_when_the_service_is_silent(scripted, spooling, patient):
    scripted.acknowledges = False
    client = spooling()
    client.record_run(1, True)

    assert client.flush(0.3)


def test_a_flush_waits_for_a_service_that_answers(scripted, spooling):
    client = spooling()
    client.record_run(1, True)

    assert client.flush(20)
    assert scripted.durations_us() == [1000]


def test_an_answer_is_not_waited_for_while_the_service_is_away(spooling, tmp_path):
    client = spooling()
    client.record_run(1, True)

    assert client.reset_metrics(0.2) is False
    assert client._sender._lines == []  # nor does the question go out later


def test_who_leaves_without_the_service_says_where_the_results_are(spooling, caplog):
    client = spooling()
    client.record_run(1, True)

    assert client.close(20)
    assert client.close(20)  # as at the end of the process
    assert set(lines_of(caplog, "waiting")) == {
        f"left without an answer of the metrics service; results waiting in {client._spool.path}: 1"
    }
    assert client._spool.path.exists()


def test_what_is_recorded_after_close_is_not_said_to_be_in_the_spool(spooling):
    client = spooling()
    client.record_run(1, True)
    client.close()
    client.record_run(2, True)

    assert not client.flush(0.1)


# ---------------------------------------------------------------- a host in need


def test_a_spool_that_cannot_be_written_costs_one_line_and_no_result(
    scripted, tmp_path, folder, caplog, monkeypatch
):
    monkeypatch.setattr(spool_module, "RETRY_SECONDS", 0.0)
    folder.write_text("a file in its place")
    client = MetricsClient(socket=tmp_path / "worker.sock", worker="tests", spool_dir=folder)
    for n in range(3):
        client.record_run(n, True)
        assert client.flush(20)

    assert scripted.durations_us() == [0, 1000, 2000]
    assert len(lines_of(caplog, "cannot be written")) == 1
    assert client.close(20)


def test_without_the_disk_and_the_service_a_flush_is_false(tmp_path, folder):
    folder.write_text("a file in its place")
    client = MetricsClient(socket=tmp_path / "worker.sock", worker="tests", spool_dir=folder)
    client.record_run(1, True)

    assert not client.flush(0.2)
    assert not client.close(0.2)


def test_a_deleted_directory_is_made_again_with_what_waits(spooling, folder, caplog, monkeypatch):
    monkeypatch.setattr(spool_module, "RETRY_SECONDS", 0.0)
    client = spooling()
    client.record_run(1, True)
    client.flush()
    client._spool.path.unlink()
    folder.rmdir()
    client.record_run(2, True)

    until(lambda: client.flush(0.5) and client._spool.path.exists())
    assert messages_in_a_copy(client) == [1, 2]
    until(lambda: lines_of(caplog, "written again"))
    assert len(lines_of(caplog, "it was deleted")) == 1


def test_a_full_disk_does_no_harm_and_the_rest_of_the_file_is_whole(tmp_path, folder, scripted):
    ended = run(tmp_path, folder, """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
        from orbit_worker import default_client
        default_client()._sender._retry_at = 1e12  # away at first
        for n in range(20):
            record_run(n, True)
            said = flush(0.1)
        print(said, next(Path(os.environ["ORBIT_SPOOL_DIR"]).iterdir()).stat().st_size)
        default_client()._sender._retry_at = 0
        print(flush(20), flush())
    """)  # fmt: skip

    first, second = ended.stdout.splitlines()
    assert (first.split()[0], second) == ("False", "True True"), ended.stderr
    assert int(first.split()[1]) <= 2_000
    assert scripted.durations_us() == [n * 1000 for n in range(20)]


def test_without_a_free_descriptor_results_wait_and_arrive(tmp_path, folder, scripted):
    ended = run(tmp_path, folder, """
        held = []
        try:
            while True: held.append(os.dup(0))
        except OSError: pass
        record_run(1, True)
        print(flush(0.1))
        for descriptor in held: os.close(descriptor)
        print(flush(20))
    """)  # fmt: skip

    assert ended.stdout.split() == ["False", "True"], ended.stderr
    assert scripted.durations_us() == [1000]


# ---------------------------------------------------------------- forks


def test_a_forked_child_leaves_the_parents_spool_and_has_its_own(tmp_path, folder):
    ended = run(tmp_path, folder, """
        record_run(1, True); flush()
        before = set(os.listdir(os.environ["ORBIT_SPOOL_DIR"]))
        pid = os.fork()
        if pid == 0:
            record_run(2, True); flush()
            os._exit(0)
        os.waitpid(pid, 0)
        print(len(before), len(set(os.listdir(os.environ["ORBIT_SPOOL_DIR"])) - before))
        os.kill(os.getpid(), signal.SIGKILL)
    """)  # fmt: skip

    assert ended.stdout.split() == ["1", "1"], ended.stderr
    assert [messages_in(path) for path in folder.iterdir()] == [[1], [1]]


def test_a_forked_child_does_not_end_the_parents_lock(tmp_path, folder, successor, scripted):
    buffer = Buffer()
    spool = a_spool(folder, buffer)
    record(buffer, 1)
    spool.keep(0)
    pid = os.fork()
    if pid == 0:
        spool.abandon()
        os._exit(0)
    os.waitpid(pid, 0)

    assert not can_be_locked_by_another_process(spool.path)
    spool.abandon()
    assert can_be_locked_by_another_process(spool.path)


def can_be_locked_by_another_process(path: Path) -> bool:
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    process = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    return process.returncode == 0


# ---------------------------------------------------------------- adoption


def test_a_successor_sends_under_the_old_session_and_the_file_is_gone(
    scripted, successor, folder, caplog
):
    path = left_behind(folder, (1, 2), (3,))
    successor.look()

    [hello] = scripted.params("worker.connect")
    assert (hello["session"], hello["resume"], hello["running"]) == ("old", True, [])
    assert durations_us(scripted.sessions["old"]) == [1000, 2000, 3000]
    assert until(lambda: scripted.params("worker.disconnect")) == [{"reason": "spool"}]
    assert not path.exists()
    assert lines_of(caplog, "sent 3 results of an ended process")


def test_what_a_killed_worker_left_is_sent_by_the_next(scripted, spooling, tmp_path, folder):
    scripted.stop()
    run(tmp_path, folder, """
        for n in range(1000): record_run(n, True)
        assert flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """)  # fmt: skip
    [path] = folder.iterdir()
    scripted.start()
    spooling().connect()

    until(lambda: not path.exists())
    assert sorted(scripted.durations_us()) == [n * 1000 for n in range(1000)]


def test_what_a_worker_left_that_ended_without_the_service_is_sent_by_the_next(
    scripted, spooling, folder
):
    scripted.stop()
    first = spooling()
    first.record_run(1, True)
    first.close(20)  # whose thread has ended then, and let go of the file
    scripted.start()
    spooling().connect()

    until(lambda: not first._spool.path.exists())
    assert durations_us(scripted.sessions[first.session]) == [1000]


def test_what_the_service_has_counted_is_not_sent_again(scripted, successor, folder):
    left_behind(folder, (1,), (2,), (3,))
    scripted.counted["old"] = 2
    successor.look()

    assert scripted.durations_us() == [3000]


def test_what_the_buffer_has_dropped_and_told_is_not_sent(scripted, successor, folder):
    buffer = Buffer(max_runs=2)
    spool = a_spool(folder, buffer)
    for n in range(4):
        record(buffer, n)
        spool.keep(0)
    spool.abandon()
    successor.look()

    assert scripted.durations_us() == [2000, 3000]
    # The last message was formed before it was clear that the second had to go.
    assert scripted.params("runs.record")[-1]["dropped"] == {"buffer full": 1}
    assert losses_told(scripted) == (4, {"buffer full": 2})


def test_the_spool_of_a_live_owner_is_left_alone(scripted, successor, tmp_path, folder):
    owner = subprocess.Popen(
        [sys.executable, "-c", "import sys, orbit_worker as o; o.record_run(1, True)\n"
                               "print(o.flush(), flush=True); sys.stdin.read()"],
        env=environment(tmp_path, ORBIT_SPOOL_DIR=str(folder), ORBIT_WORKER_NAME="tests",
                        ORBIT_SOCKET=str(tmp_path / "none.sock")),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert owner.stdout.readline() == "True\n"
    successor.look()
    assert scripted.messages == []

    owner.kill()
    owner.communicate()
    successor.look()
    assert scripted.durations_us() == [1000]


def test_a_look_in_the_middle_of_a_rewrite_leaves_the_owner_its_lock(
    successor, folder, monkeypatch
):
    look_before_replacing(successor, monkeypatch)
    buffer = Buffer()
    spool = a_spool(folder, buffer, "mine")
    record(buffer, 1)
    spool.keep(0.0)

    assert not can_be_locked_by_another_process(spool.path)
    spool.close()


def look_before_replacing(successor: Successor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the adopter of the same process look while the file has not got its name yet."""
    replace = Path.replace

    def looked_at(path: Path, target: Path) -> Path:
        successor.look()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", looked_at)


def test_two_clients_of_one_process_leave_each_other_alone(scripted, spooling, folder):
    scripted.acknowledges = False
    first, second = spooling(), spooling()
    first.record_run(1, True)
    until(scripted.seqs)
    second.record_run(2, True)
    until(lambda: len(scripted.seqs()) == 2)
    until(lambda: second._sender._adopter._looking is None)

    assert scripted.greeted == 2
    assert not can_be_locked_by_another_process(first._spool.path)


def test_the_spool_of_another_worker_is_left_alone(scripted, tmp_path, folder):
    path = left_behind(folder, (1,))
    Successor(tmp_path / "worker.sock", folder, worker="others").look()

    assert scripted.messages == []
    assert path.exists()


def test_a_worker_whose_name_looks_alike_in_a_file_is_another(scripted, tmp_path, folder):
    path = left_behind(folder, (1,))
    path = path.rename(path.with_name(file_name("te/ts", "old")))
    Successor(tmp_path / "worker.sock", folder, worker="te:ts").look()

    assert scripted.messages == []
    assert path.exists()


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        pytest.param({"node": "elsewhere"}, "spool of another node", id="another node"),
        pytest.param({"at_ms": now_ms() - 25 * HOUR}, "spool too old", id="too old"),
    ],
)
def test_what_cannot_be_sent_is_dropped_by_reason(scripted, successor, folder, left, reason):
    path = left_behind(folder, (1, 2), (3,), **left)
    successor.look()

    assert scripted.messages == []
    assert successor.dropped == {reason: 3}
    assert not path.exists()


def test_what_was_lost_is_told_in_the_adopters_own_session(scripted, spooling, folder):
    left_behind(folder, (1, 2), node="elsewhere")
    client = spooling()
    client.connect()
    until(lambda: list(folder.iterdir()) == [])
    client.record_run(3, True)

    # The file goes before what was in it is told.
    until(lambda: scripted.seqs() and scripted.params("runs.record")[-1]["recorded"] == 3)
    assert scripted.params("runs.record")[-1]["dropped"] == {"spool of another node": 2}


def test_a_spool_that_never_met_a_service_goes_to_any(scripted, successor, folder):
    left_behind(folder, (1,), node=None)
    successor.look()

    assert scripted.durations_us() == [1000]


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(lambda service: service.stop(), id="away"),
        pytest.param(lambda service: setattr(service, "refuses", "no"), id="it refuses"),
        pytest.param(lambda service: setattr(service, "answers", False), id="no answer"),
        pytest.param(lambda service: setattr(service, "acknowledges", False), id="not counted"),
        pytest.param(lambda service: setattr(service, "node", "m"), id="another node by now"),
    ],
)
def test_what_could_not_be_sent_waits_for_the_next_look(
    scripted, successor, folder, trouble, caplog, monkeypatch
):
    monkeypatch.setattr("orbit_worker.adoption.SILENCE_SECONDS", 0.1)
    path = left_behind(folder, (1,))
    trouble(scripted)
    successor.look()
    successor.look()

    assert path.exists()
    assert successor.dropped == {}
    assert len(lines_of(caplog, "of an ended process waits")) == 1


def test_an_empty_spool_is_removed_without_a_word(scripted, successor, folder):
    path = left_behind(folder, (1,))
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    successor.look()

    assert scripted.messages == []
    assert list(folder.iterdir()) == []


def test_who_comes_second_to_a_file_that_is_gone_leaves_it(scripted, successor, folder):
    path = left_behind(folder, (1,))
    first = os.open(path, os.O_RDWR)
    fcntl.lockf(first, fcntl.LOCK_EX)
    waiting = os.open(path, os.O_RDWR)
    path.unlink()

    assert not _is_left(waiting, path)
    os.close(first)
    os.close(waiting)


def test_two_successors_at_once_send_it_once(tmp_path, folder, scripted):
    left_behind(folder, *[(n,) for n in range(50)])
    code = "import orbit_worker as o; o.default_client().connect()\nimport sys; sys.stdin.read()"
    crew = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment(tmp_path, ORBIT_SPOOL_DIR=str(folder), ORBIT_WORKER_NAME="tests"),
            stdin=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    until(lambda: scripted.greeted >= 3 and list(folder.iterdir()) == [])
    for process in crew:
        process.communicate()

    assert durations_us(scripted.sessions["old"]) == [n * 1000 for n in range(50)]


def test_what_an_owner_left_unfinished_goes_once_it_is_old(scripted, successor, folder):
    path = left_behind(folder, (1,))
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_bytes(b"half")
    successor.look()
    assert unfinished.exists()

    os.utime(unfinished, (0, 0))
    successor.look()
    assert not unfinished.exists()


# ---------------------------------------------------------------- damage


def losses_told(scripted) -> tuple[int, dict[str, int]]:
    """The totals in the old session's last heartbeat: recorded and dropped."""
    [beat] = scripted.params("worker.heartbeat")
    return beat["recorded"], beat["dropped"]


def cut(path: Path, *lines: slice | int) -> None:
    """Put garbage in the place of these lines of the file; 0 is the header."""
    all_lines = path.read_bytes().splitlines(keepends=True)
    for line in lines:
        all_lines[line] = all_lines[line][:30] + b"#" + all_lines[line][31:]
    path.write_bytes(b"".join(all_lines))


def test_a_damaged_line_is_skipped_and_its_neighbours_tell_what_was_in_it(
    scripted, successor, folder
):
    path = left_behind(folder, (1,), (2, 3, 4), (5,), (6, 7))
    cut(path, 2, 3)
    successor.look()

    assert scripted.durations_us() == [1000, 6000, 7000]
    assert losses_told(scripted) == (7, {"spool damaged": 4})
    assert not path.exists()


def test_a_damaged_line_that_the_service_had_counted_is_no_loss(scripted, successor, folder):
    cut(left_behind(folder, (1,), (2, 3), (4,)), 2)
    scripted.counted["old"] = 2
    successor.look()

    assert scripted.durations_us() == [4000]
    assert scripted.params("worker.heartbeat") == []


def test_refused_results_in_a_damaged_line_were_told_before(scripted, successor, folder):
    buffer = Buffer()
    spool = a_spool(folder, buffer)
    record(buffer, 1)
    buffer.open.append(Refused("duration", 5))
    record(buffer, 2, 3)
    record(buffer, 4)
    spool.keep(0)
    spool.abandon()
    cut(spool.path, 2)
    successor.look()

    assert losses_told(scripted) == (9, {"duration": 5, "spool damaged": 2})


def test_a_spool_without_its_header_is_dropped_whole(scripted, successor, folder):
    path = left_behind(folder, (1, 2), (3,))
    cut(path, 0)
    successor.look()

    assert scripted.messages == []
    assert successor.dropped == {"spool damaged": 3}
    assert not path.exists()


def test_a_file_that_ends_at_any_byte_is_adopted_up_to_there(scripted, successor, folder):
    path = left_behind(folder, (1,), (2, 3), (4, 5, 6))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        scripted.sessions.clear()
        successor.dropped.clear()
        successor.look()

        whole_ones = sum(size >= sum(map(len, lines[: n + 1])) for n in (1, 2, 3))
        sent = durations_us(scripted.sessions.get("old", []))
        assert sent == [n * 1000 for n in range(1, [0, 1, 3, 6][whole_ones] + 1)]
        # The line that was cut tells how much was in it, if it reaches so far; else it counts one.
        assert successor.dropped.get("spool damaged", 0) in (0, 1, whole_ones + 1)
        assert not path.exists()


def test_the_head_of_a_line_that_was_cut_off_tells_what_was_in_it(scripted, successor, folder):
    path = left_behind(folder, (1,), (2, 3, 4))
    path.write_bytes(path.read_bytes()[:-20])
    successor.look()

    assert successor.dropped == {"spool damaged": 3}


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 30)),
        min_size=1,
        max_size=4,
    )
)
def test_no_damage_makes_a_message_of_what_was_none(tmp_path_factory, wounds):
    folder = tmp_path_factory.mktemp("damage")
    path = left_behind(folder, (1,), (2, 3), (4, 5, 6))
    data = path.read_bytes()
    for where, put, taken in wounds:
        at = int(where * len(data))
        data = data[:at] + put + data[at + taken :]
    path.write_bytes(data)

    file = os.open(path, os.O_RDONLY)
    contents = read_spool(file)
    os.close(file)
    assert [line.seq for line in contents.lines] == sorted({line.seq for line in contents.lines})
    assert all((line.seq, line.results) in {(1, 1), (2, 2), (3, 3)} for line in contents.lines)


# ---------------------------------------------------------------- the real service


def test_the_service_counts_what_a_killed_process_left(service, tmp_path, folder, spooling):
    service.stop()
    run(tmp_path, folder, """
        for n in range(100): record_run(n, True)
        flush(); os.kill(os.getpid(), signal.SIGKILL)
    """)  # fmt: skip
    service.start()
    client = spooling()
    client.connect()

    until(lambda: not any(path != client._spool.path for path in folder.iterdir()))
    assert call(service.socket, "service.info")["intake"]["counted"] == 100


FLUSHING = """
import itertools, orbit_worker as o
for n in itertools.count(1):
    o.record_run(1, True)
    if n % 10 == 0 and o.flush(): print(n, flush=True)
"""


def test_a_kill_at_any_moment_loses_nothing_that_was_flushed(service, tmp_path, folder, spooling):
    service.stop()
    flushed = 0
    for lines in (1, 2, 5, 9):
        worker = subprocess.Popen(
            [sys.executable, "-c", FLUSHING],
            env=environment(tmp_path, ORBIT_SPOOL_DIR=str(folder), ORBIT_WORKER_NAME="tests"),
            stdout=subprocess.PIPE,
            text=True,
        )
        said = [worker.stdout.readline() for _ in range(lines)]
        worker.kill()
        flushed += int([*said, *worker.communicate()[0].splitlines(keepends=True)][-1])
    left = sum(results_in(path) for path in folder.iterdir())
    service.start()
    spooling().connect()

    assert left >= flushed
    until(lambda: list(folder.iterdir()) == [])
    assert call(service.socket, "service.info")["intake"]["counted"] == left


def results_in(path: Path) -> int:
    file = os.open(path, os.O_RDONLY)
    try:
        return read_spool(file).results
    finally:
        os.close(file)
