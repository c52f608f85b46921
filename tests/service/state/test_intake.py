"""What was acknowledged is answered again after a kill, and nothing is counted twice."""

from __future__ import annotations

import sqlite3

import pytest

from builders import (
    HOUR,
    MS,
    SECOND,
    T0,
    a_batch,
    a_heartbeat,
    a_record,
    a_result,
    a_start,
    an_error,
)
from orbit_rpc_schema.messages import Step
from orbit_rpc_schema.procedures import RecentRunsParams, Selection
from orbit_service.core import outbox, snapshot
from orbit_service.core.checks import Refused
from orbit_service.state.checkpoint import dump
from orbit_service.state.events import Uncounted


def answers(collector, now_ms=T0 + SECOND):
    """All that is answered from the state."""
    return [
        snapshot.metrics(collector, Selection(), now_ms),
        snapshot.snapshot(collector, Selection(), now_ms),
        snapshot.stats(collector, now_ms),
        snapshot.recent_runs(collector, RecentRunsParams(limit=100), now_ms),
        snapshot.worker_list(collector),
        snapshot.intake(collector),
    ]


def a_busy_node(node):
    """Runs, starts, attempts, refusals, a lost session and one that left."""
    for session in ("s1", "s2", "s3"):
        node.connect(session)
    node.record(a_record(1, a_batch(MS, 2 * MS, failed=[1]), started=[a_start("r1")]))
    node.record(a_record(2, a_result("r2", attempt=1, final=False), recorded=3))
    node.record(a_record(1, a_batch(8 * MS, pipeline="other"), started=[a_start("r9")]), "s2")
    with pytest.raises(Refused):
        node.record(a_record(2, a_batch(MS, failed=[1]), recorded=2), "s2")
    node.intake.refuse(node.session("s2"), Uncounted(3, 4, {"buffer full": 1}, "invalid"), T0)
    node.intake.lose(node.session("s2"), T0)
    node.intake.disconnect(node.session("s3"), "done", T0)
    node.intake.heartbeat(node.session("s1"), a_heartbeat(3, recorded=4, dropped={"late": 1}), T0)
    return node


def test_after_a_kill_the_answers_are_what_they_were(node):
    a_busy_node(node).settle()
    killed = node.image()

    assert answers(killed.collector) == answers(node.collector)
    killed.stop()


def test_after_a_clean_stop_the_answers_are_what_they_were(start):
    node = a_busy_node(start())
    before = answers(node.collector)
    node.stop()

    assert answers(start().collector) == before


def test_a_session_goes_on_where_the_disk_stands(node):
    a_busy_node(node).settle()
    killed = node.image()
    answer = killed.connect("s1")
    killed.record(a_record(2, a_result("r2", attempt=1, final=False)))  # sent again
    killed.record(a_record(4, a_result("r1"), recorded=5, dropped={"late": 1}))

    assert (answer.acked, answer.known) == (3, True)
    assert (killed.collector.ledger.counted, killed.collector.ledger.waiting) == (5, 0)
    killed.stop()


def test_what_is_counted_and_not_on_the_disk_is_asked_for_again_and_passed_over(node):
    node.connect()
    node.settle()
    node.record(a_record(1, a_batch(MS)))  # what the writer says of it is not heard yet

    assert node.connect().acked == 0
    node.record(a_record(1, a_batch(MS)))
    assert node.collector.ledger.counted == 1
    node.settle()
    assert node.connect().acked == 1


def test_a_number_is_durable_when_it_is_on_the_disk(node):
    node.connect()
    node.record(a_record(1, a_batch(MS)))
    assert node.session().durable == 0

    node.settle()
    killed = node.image()
    assert killed.session().acked == 1
    killed.stop()


def test_an_idle_worker_writes_nothing(node):
    node.connect()
    node.record(a_record(1, a_batch(MS)))
    node.settle()
    commits = node.journal.commits
    for seq in range(2, 50):
        node.intake.heartbeat(node.session(), a_heartbeat(seq, recorded=1), T0)

    node.settle()
    assert (node.session().durable, node.journal.commits) == (49, commits)


def test_a_heartbeat_is_not_acknowledged_before_what_it_follows(node):
    node.connect()
    node.settle()
    node.record(a_record(1, a_batch(MS)))
    node.intake.heartbeat(node.session(), a_heartbeat(2, recorded=1), T0)
    assert node.session().durable == 0

    node.settle()
    assert node.session().durable == 2


def test_what_the_journal_holds_is_told_again_over_a_checkpoint(node):
    node.connect()
    node.record(a_record(1, a_batch(MS)))
    node.intake.checkpoint()
    node.record(a_record(2, a_batch(MS), recorded=2))
    node.settle()
    killed = node.image()

    assert answers(killed.collector) == answers(node.collector)
    killed.stop()


def test_a_part_of_the_journal_that_cannot_be_read_is_counted_and_the_rest_goes_on(start):
    node = start()
    node.connect()
    node.settle()
    node.record(a_record(1, a_batch(MS)))
    node.settle()
    broken = node.image()
    broken.stop()
    with sqlite3.connect(broken.store.path) as database:
        database.execute("INSERT INTO journal VALUES (99, ?)", (b"\x93nonsense",))
    database.close()
    again = type(node)(broken.folder)

    assert (again.collector.ledger.counted, again.collector.faults["journal"]) == (1, 1)
    again.stop()


# ---------------------------------------------------------------- a successor


def test_a_successor_grows_the_life_that_goes_on(node):
    node.connect("s1")
    node.connect("s2")
    node.intake.lose(node.session("s2"), T0)
    answer = node.connect("s2", resume=True)
    node.record(a_record(1, a_batch(MS)), "s2")
    node.intake.disconnect(node.session("s2"), "spool", T0)

    metrics = snapshot.metrics(node.collector, Selection(), T0)
    assert (answer.known, metrics.total_runs, node.collector.lives) == (True, 1, 1)


@pytest.mark.parametrize("known", [True, False])
def test_a_successor_opens_no_life_and_its_runs_count_in_the_day(node, known):
    if known:
        node.connect("s1")
        node.intake.lose(node.session("s1"), T0)
    node.connect("s1", resume=True)
    node.record(a_record(1, a_batch(MS)), "s1")
    node.intake.disconnect(node.session("s1"), "spool", T0)

    metrics = snapshot.metrics(node.collector, Selection(), T0)
    assert (metrics.connected, metrics.total_runs) == (False, 0)
    assert snapshot.stats(node.collector, T0).runs_last_hour == 1
    assert node.collector.ledger.counted == 1


def test_a_successor_comes_before_the_session_was_given_up(node):
    node.connect("s1")
    node.record(a_record(1, started=[a_start("r1"), a_start("r2")]))
    node.connect("s1", resume=True)
    node.record(a_record(2, a_result("r1"), recorded=1))
    node.intake.disconnect(node.session("s1"), "spool", T0)

    stats = snapshot.stats(node.collector, T0)
    assert (stats.success_count, stats.failed_count) == (1, 1)  # r2 was running when it died


# ---------------------------------------------------------------- bounds


def test_a_year_of_forked_children_does_not_grow_the_state_without_end(node):
    sizes = []
    for n in range(40_000):
        now = T0 + n * HOUR // 1000
        node.intake.journal = None  # the disk is not what is looked at
        node.connect(f"{n:032x}")
        node.intake.disconnect(node.session(f"{n:032x}"), "exit", now)
        if n % 10_000 == 9_999:
            node.collector.forget(now)
            sizes.append(len(dump(node.collector)))
    node.intake.journal = node.journal

    assert sizes[-1] < 1.1 * sizes[1]
    assert len(node.collector.ended_sessions) <= 20_000


# ---------------------------------------------------------------- windows and publications


def windows(node):
    """What the outbox holds, in a form that can be compared."""
    outbox = node.collector.outbox
    return (
        outbox.instance,
        outbox.number,
        outbox.taken,
        outbox.windows,
        [(p.number, p.windows, p.errors, p.size, p.token) for p in outbox.waiting],
        outbox.tokens(),
    )


def a_node_with_windows(node):
    """One window published, one closed, one open; with steps, an error and versions."""
    node.connect(version="1.0")
    node.record(a_record(1, a_batch(MS, at=T0)))
    node.intake.close_windows(T0 + 12 * SECOND)
    node.intake.taken(1, T0 + 13 * SECOND)
    failed = a_result("r1", failed=True, error=an_error(), steps=[Step("parse", 7)])
    node.record(a_record(2, failed, a_batch(2 * MS, at=T0 + 20 * SECOND), recorded=3))
    node.intake.close_windows(T0 + 23 * SECOND)
    return node


def test_after_a_kill_the_same_windows_are_open_and_the_same_publications_wait(node):
    a_node_with_windows(node).settle()
    killed = node.image()

    assert windows(killed) == windows(node)
    assert [number for number, *_ in windows(node)[4]] == [2]
    killed.stop()


def test_after_a_clean_stop_likewise(start):
    node = a_node_with_windows(start())
    before = windows(node)
    node.stop()

    assert windows(start()) == before


def test_a_publication_may_be_sent_when_it_is_on_the_disk(node):
    node.connect()
    node.record(a_record(1, a_batch(MS)))
    node.intake.close_windows(T0 + 12 * SECOND)
    assert node.collector.outbox.head() == []

    node.until(lambda: [p.number for p in node.collector.outbox.head()] == [1])


def test_windows_do_not_depend_on_when_this_release_would_close_them(node, monkeypatch):
    """Else the runs of one that was published would be open again after a restart."""
    a_node_with_windows(node).settle()
    monkeypatch.setattr(outbox, "GRACE_MS", 3_600_000)
    killed = node.image()

    assert windows(killed) == windows(node)
    killed.stop()


def test_a_state_that_goes_on_as_another_does_so_after_a_kill_too(node):
    a_node_with_windows(node).settle()
    copy = node.image()
    copy.record(a_record(3, a_batch(MS, at=T0 + 40 * SECOND), recorded=4))
    copy.intake.close_windows(T0 + 60 * SECOND)
    copy.intake.begin_anew(9, T0 + 61 * SECOND)
    copy.settle()
    killed = copy.image()

    assert windows(killed) == windows(copy)
    assert windows(copy)[0] != windows(node)[0]
    assert [number for number, *_ in windows(copy)[4]] == [2, 3], "nothing is lost over it"
    for one in (copy, killed):
        one.stop()


def test_nothing_is_written_while_no_window_closes(node):
    node.connect()
    node.settle()
    commits = node.journal.commits
    for second in range(60):
        node.intake.close_windows(T0 + second * SECOND)
    node.settle()

    assert node.journal.commits == commits
