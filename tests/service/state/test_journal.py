"""Whatever the disk does: runs are counted, nothing is acknowledged before it is written."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, contextmanager

import pytest
from loguru import logger

from builders import MS, SECOND, T0, a_batch, a_record
from orbit_service.state import journal as journal_module
from orbit_service.state import store as store_module
from orbit_service.state.store import FILE, StateInUse


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(journal_module, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(journal_module, "LAST_RETRY", 0.05)
    monkeypatch.setattr(journal_module, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.01)


@contextmanager
def locked(folder):
    """Somebody else has the database."""
    database = sqlite3.connect(folder / FILE, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        database.close()


@contextmanager
def away(node):
    """The state is not where it should be, as with a disk that is mounted late."""
    node.stop()
    elsewhere, there = node.folder.with_name("elsewhere"), node.folder.with_name("there")
    node.folder.rename(elsewhere)
    node.folder.symlink_to("nowhere")
    there.symlink_to(elsewhere)
    try:
        yield
    finally:
        # In one move: a writer that looks while there is nothing would begin anew.
        there.replace(node.folder)


def record(node, *seqs):
    for seq in seqs:
        node.record(a_record(seq, a_batch(MS), recorded=seq))


def counted_after_a_kill(node):
    """What a node finds that starts where this one was killed."""
    killed = node.image()
    killed.stop()
    return killed.collector.ledger.counted


def a_node_with(start, runs):
    node = start()
    node.connect()
    record(node, *range(1, runs + 1))
    node.settle()
    return node


# ---------------------------------------------------------------- while it runs


def test_a_locked_database_is_waited_out_and_nothing_is_acknowledged_meanwhile(start):
    node = a_node_with(start, 1)
    with locked(node.folder):
        record(node, 2, 3)
        node.until(lambda: node.journal.trouble)
        assert "locked" in node.journal.trouble
        assert (node.session().durable, node.collector.ledger.counted) == (1, 3)

    node.settle()
    node.until(lambda: node.journal.trouble is None)
    assert counted_after_a_kill(node) == 3


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_state_that_is_deleted_is_noticed_and_written_anew(start, what):
    node = a_node_with(start, 2)
    if what == "file":
        (node.folder / FILE).unlink()
    else:
        # In one move: the writer would make files anew in what is about to be removed.
        shutil.rmtree(node.folder.rename(node.folder.with_name("deleted")))

    node.until((node.folder / FILE).exists)
    record(node, 3)
    node.settle()
    assert counted_after_a_kill(node) == 3


def test_more_than_may_wait_is_let_go_and_a_checkpoint_holds_it(start, monkeypatch):
    monkeypatch.setattr(journal_module, "MAX_PENDING", 1_000)
    node = a_node_with(start, 1)
    with locked(node.folder):
        record(node, *range(2, 50))
        node.until(lambda: node.journal.waiting <= 1_000)

    node.settle()
    assert counted_after_a_kill(node) == 49


def test_a_journal_that_has_grown_is_replaced_by_a_checkpoint(start, monkeypatch):
    monkeypatch.setattr(journal_module, "CHECKPOINT_BYTES", 500)
    node = a_node_with(start, 20)
    node.until(node.journal.wants_checkpoint)
    node.intake.checkpoint_when_due()

    with closing(sqlite3.connect(node.folder / FILE)) as database:
        node.until(lambda: not database.execute("SELECT * FROM journal").fetchall())
    assert counted_after_a_kill(node) == 20


def test_a_commit_of_unknown_outcome_may_be_made_again(start, monkeypatch):
    node = a_node_with(start, 1)
    write, failed = node.store.write, []

    def written_and_not_known(*what):
        write(*what)
        if not failed:
            failed.append(what)
            raise store_module.StoreFailed("no word of it")

    monkeypatch.setattr(node.store, "write", written_and_not_known)
    record(node, 2, 3)
    node.settle()

    assert failed
    assert counted_after_a_kill(node) == 3


def test_a_mistake_of_ours_in_the_writer_is_no_end_of_it(start, monkeypatch):
    node = a_node_with(start, 1)
    write = node.store.write
    monkeypatch.setattr(node.store, "write", lambda *_: 1 / 0)
    record(node, 2)
    node.until(lambda: node.journal.trouble)
    monkeypatch.setattr(node.store, "write", write)

    node.settle()
    assert counted_after_a_kill(node) == 2


# ---------------------------------------------------------------- at the start


def test_a_state_that_is_not_there_at_the_start_is_gone_on_with_when_it_is(start):
    with away(a_node_with(start, 2)):
        node = start()
        assert "File exists" in node.journal.trouble
        node.connect()
        record(node, 2, 3)  # 2 was counted, and is sent again because nobody knows it
        assert node.collector.ledger.counted == 2

    node.until(lambda: node.journal.trouble is None)
    node.settle()
    assert node.collector.ledger.counted == 3
    assert counted_after_a_kill(node) == 3


def test_a_checkpoint_that_waits_for_the_disk_is_not_said_to_be_written(start, said, monkeypatch):
    monkeypatch.setattr(journal_module, "MAX_PENDING", 1_000)
    node = a_node_with(start, 1)
    with locked(node.folder):
        record(node, 2)
        node.until(lambda: node.journal.trouble)
        record(node, *range(3, 50))
        failures = node.journal.failures
        node.until(lambda: node.journal.failures > failures + 2)
        assert "the state is written again" not in said

    node.until(lambda: node.journal.trouble is None)
    assert said.count("the state is written again") == 1


@pytest.fixture
def said():
    """The lines of the log."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="INFO")
    yield lines
    logger.remove(sink)


def test_a_state_that_could_not_be_read_in_time_is_put_aside(start, monkeypatch):
    monkeypatch.setattr(journal_module, "MAX_PENDING", 1_000)
    with away(a_node_with(start, 2)):
        node = start()
        node.connect()
        record(node, *range(1, 50))

    node.until(lambda: node.journal.trouble is None)
    node.settle()
    assert counted_after_a_kill(node) == 49
    assert list(node.folder.glob("*.unread-*"))


def test_a_newer_state_is_left_alone(start):
    node = a_node_with(start, 2)
    node.stop()
    with sqlite3.connect(node.folder / FILE) as database:
        database.execute("PRAGMA user_version=99")
    database.close()
    before = (node.folder / FILE).read_bytes()
    older = start()
    older.connect()
    record(older, 1)

    assert "newer release" in older.journal.trouble
    assert older.session().durable == 0
    older.stop()
    assert (node.folder / FILE).read_bytes() == before


@pytest.mark.parametrize("garbage", [b"garbage" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_put_aside_and_kept(start, garbage):
    node = start()
    node.stop()
    for file in node.folder.iterdir():
        file.unlink()
    (node.folder / FILE).write_bytes(garbage)
    again = a_node_with(start, 1)

    [aside] = again.folder.glob("*.damaged-*")
    assert aside.read_bytes() == garbage
    assert counted_after_a_kill(again) == 1


def test_a_checkpoint_of_another_version_is_put_aside_and_kept(start):
    node = a_node_with(start, 1)
    node.stop()
    with sqlite3.connect(node.folder / FILE) as database:
        database.execute("UPDATE checkpoint SET state = ?", (b"\x80",))
    database.close()

    assert start().collector.ledger.counted == 0
    assert list(node.folder.glob("*.unreadable-*"))


def test_two_services_do_not_share_a_state(start):
    node = start()

    with pytest.raises(StateInUse, match="is used by another service"):
        type(node)(node.folder)


def test_a_state_that_could_not_be_opened_at_the_start_knows_later_what_it_had_published(start):
    node = a_node_with(start, 1)
    node.intake.close_windows(T0 + 12 * SECOND)
    node.intake.taken(1, T0 + 12 * SECOND)
    node.settle()
    before = node.collector.outbox
    with away(node):
        later = start()
        later.connect("s2")
        later.record(a_record(1, a_batch(MS)), "s2")
        later.intake.close_windows(T0 + 12 * SECOND)

    later.until(lambda: later.journal.trouble is None)
    outbox = later.collector.outbox
    assert (outbox.instance, [p.number for p in outbox.waiting]) == (before.instance, [2])
    assert before.tokens() <= outbox.tokens()
