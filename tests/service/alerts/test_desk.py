"""A desk over a file: what looks lead to, and what is left of it after a restart."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from builders import HOUR, SECOND
from orbit_rpc_schema.errors import AlertsUnavailable, NoSuchAlert, NoSuchSilence
from orbit_service.alerts import desk as desks
from orbit_service.alerts import shelf as shelves
from orbit_service.alerts.desk import Desk, Seen
from orbit_service.alerts.facts import Facts
from orbit_service.alerts.records import StoreFailed, Unwritten
from orbit_service.alerts.rules import NO_RULES
from orbit_service.alerts.store import AlertStore
from orbit_service.core.outbox import GRACE_MS, ErrorText
from orbit_service.history import engines
from watched import RULES, Watched

LOST = """
[recovery]
dry_run = false

[channels.hook]
url = "json://localhost"

[[rules]]
name = "lost"
metric = "worker_lost"
above = 0
labels = { team = "mail" }

[[rules.actions]]
kind = "restart"
cooldown = "20s"
max_tries = 1

[[rules.actions]]
kind = "command"
command = ["true"]
on = "resolved"
"""


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path)
    yield watched
    watched.store.close()


@pytest.fixture
def with_actions(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path, LOST)
    yield watched
    watched.store.close()


# ---------------------------------------------------------------- a look


def test_a_firing_is_in_the_audit_on_the_board_and_on_its_way(watched):
    watched.fire()

    [alert] = watched.desk.board.alerts
    assert (alert.phase, alert.labels, alert.value) == ("firing", {"pipeline": "send"}, 3)
    assert alert.summary == "send: failures over 1m is 3, above 2"
    assert watched.kinds() == ["pending", "firing"]
    assert watched.said() == ["firing failures"]


def test_what_was_sent_is_in_the_audit_and_waits_no_more(watched):
    watched.fire()
    [key] = watched.send()

    assert watched.said() == []
    [newest, *_] = watched.desk.history(0, watched.now_ms, 1, kind="notified")
    assert newest.details == {"channel": "hook", "key": key}


def test_an_end_is_told_with_the_same_id(watched):
    watched.fire()
    [alert] = watched.desk.board.alerts
    [key] = watched.send()
    told = [change for _ in range(4) for change in watched.look()]

    assert (told, watched.desk.board.alerts) == (["notified", "resolved"], [])
    assert watched.said() == ["resolved failures"]
    [parcel] = watched.desk.shelf.due("hook", watched.now_ms, 9)
    assert (parcel.message.items[0].alert, parcel.key != key) == (alert.id, True)


def test_nothing_may_be_sent_before_it_is_written(tmp_path):
    class Slow(AlertStore):
        def write(self, unwritten: Unwritten) -> None:
            seen.append(watched.said())
            super().write(unwritten)

    seen: list[list[str]] = []
    watched = Watched(tmp_path)
    watched.desk.shelf._store = Slow(watched.store._database)
    watched.fire()

    assert ["firing failures"] not in seen
    assert watched.said() == ["firing failures"]


SELDOM = """
[[rules]]
name = "seldom"
metric = "runs_per_hour"
window = "10s"
pipeline = "send"
below = 1
"""


def test_what_is_over_and_may_not_be_published_yet_does_not_pass_for_nothing_ran(tmp_path):
    watched = Watched(tmp_path, SELDOM)
    watched.look()
    watched.now_ms += 10 * SECOND
    late = Seen(watched.windows, Facts(), all_of_it=True, grace_ms=GRACE_MS + 5 * SECOND)

    assert watched.desk.look(late, watched.now_ms) == []
    [fired] = watched.desk.look(late, watched.now_ms + 5 * SECOND)
    assert fired.kind == "firing"
    watched.store.close()


def test_what_ran_before_is_known_though_all_windows_are_given_anew(tmp_path):
    watched = Watched(tmp_path, SELDOM.replace('"send"', '"s*"'))
    watched.look()
    watched.take(SELDOM.replace('"send"', '"s*"'))
    later = Seen([], Facts(), all_of_it=True)  # as a hub gives them at each look

    told = [watched.desk.look(later, watched.now_ms + n * 10 * SECOND) for n in (1, 2)]
    assert [entry.kind for entry in told[0]] == ["firing"]
    assert watched.desk.board.matches == {"seldom": 1}
    watched.store.close()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("", "newest"),
        ('pipeline = "send"', "of send"),
        ('pipeline = "s*"', None),
        ('worker = "m*"', None),
    ],
)
def test_an_error_is_told_that_is_the_alerts_own(tmp_path, fields, told):
    watched = Watched(tmp_path, f"{RULES}per = []\n{fields}\n")
    errors = {
        ("send", "mailer"): ("ValueError", ErrorText(1, "of send", None)),
        ("import", "other"): ("KeyError", ErrorText(2, "newest", None)),
    }
    watched.look(3, errors=errors)

    [alert] = watched.desk.board.alerts
    assert (alert.error.message if alert.error else None) == told
    watched.store.close()


def test_a_look_that_changes_nothing_writes_nothing(watched):
    log = Path(f"{watched.path}-wal")
    watched.look()
    before = log.stat()
    watched.look()

    assert log.stat() == before


def test_a_thousand_rules_look_at_two_thousand_series(tmp_path):
    rule = '[[rules]]\nname = "r{0}"\nmetric = "failures"\npipeline = "p{0}*"\nabove = {1}\n'
    watched = Watched(tmp_path, "".join(rule.format(n, 2 + n % 2) for n in range(1_000)))
    watched.look(3, pipelines=[f"p{n}{end}" for n in range(1_000) for end in ("a", "b")])

    # "p1*" is of p1a and p1b, and of p10a to p199b and p100a to p199b; half the rules fire.
    expected = sum(2 for n in range(0, 1_000, 2) for m in range(1_000) if str(m).startswith(str(n)))
    assert len(watched.desk.board.alerts) == expected
    watched.store.close()


# ---------------------------------------------------------------- restarts


def test_restarts_between_all_looks_change_nothing(tmp_path):
    def course(folder: Path, restarting: bool) -> list[object]:
        folder.mkdir()
        watched = Watched(folder)
        told: list[object] = []
        for failed in (0, 3, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0):
            told.append(watched.look(failed))
            if restarting:
                watched.restart()
        told += [watched.audit(), watched.said()]
        watched.store.close()
        return told

    usual = course(tmp_path / "usual", False)
    assert course(tmp_path / "restarted", True) == usual
    assert usual[-1] == ["firing failures", "resolved failures", "firing failures"]


def test_a_restart_finds_what_waits_under_its_key(watched):
    watched.fire()
    [before] = watched.desk.shelf.due("hook", watched.now_ms, 9)
    watched.restart()
    watched.look()

    assert watched.send() == [before.key]
    watched.restart()
    watched.look()
    assert watched.said() == []


def test_a_try_that_failed_is_remembered_with_its_time(watched):
    watched.fire()
    [parcel] = watched.desk.shelf.due("hook", watched.now_ms, 9)
    watched.desk.failed(parcel, watched.now_ms + 5 * SECOND)
    watched.restart()

    assert watched.said() == []
    [again] = watched.desk.shelf.due("hook", watched.now_ms + 5 * SECOND, 9)
    assert (again.key, again.tries) == (parcel.key, 1)


def test_what_was_dropped_before_a_restart_is_not_forgotten_by_it(tmp_path):
    rule = '[[rules]]\nname = "dropped"\nmetric = "dropped"\nwindow = "1m"\nabove = 0\n'
    watched = Watched(tmp_path, rule)
    watched.look(dropped=7)  # who knows when
    watched.look(dropped=9)
    watched.restart()

    assert watched.look(dropped=9) == []
    assert [alert.value for alert in watched.desk.board.alerts] == [2]
    watched.restart()
    assert watched.look(dropped=10) == []  # dropped meanwhile
    assert [alert.value for alert in watched.desk.board.alerts] == [3]
    watched.store.close()


def test_what_cannot_be_delivered_is_given_up_with_a_word(watched):
    watched.fire()
    [parcel] = watched.desk.shelf.due("hook", watched.now_ms, 9)
    watched.desk.gave_up(parcel, "away", watched.now_ms)
    watched.restart()

    assert watched.said() == []
    assert watched.audit()[-1] == (
        "undelivered",
        "firing: given up after 0 tries through hook: away",
    )


def test_what_was_done_at_a_kill_is_not_known_and_not_done_again_within_its_cool_down(with_actions):
    with_actions.look(lost=["mailer"])
    [(act, _action)] = with_actions.desk.acts
    with_actions.restart()

    said = [with_actions.look(seconds=5, lost=["mailer"]) for _ in range(3)]
    assert (said, with_actions.desk.acts) == ([["action"], [], []], [])
    assert with_actions.audit()[1:] == [
        ("action", act.text),
        ("action", "interrupted by the end of the service"),
    ]
    [alert] = with_actions.desk.board.alerts
    assert [tried.outcome for tried in alert.recovery] == ["unknown", "started"]


# ---------------------------------------------------------------- actions


def test_a_failure_of_all_tries_raises_the_severity_and_is_told(with_actions):
    with_actions.look(lost=["mailer"])
    [(act, _action)] = with_actions.desk.acts
    with_actions.desk.acted(act, "done", "by all processes", with_actions.now_ms)
    with_actions.look(seconds=19, lost=["mailer"])
    assert with_actions.said() == ["firing lost"]
    told = with_actions.look(seconds=1, lost=["mailer"])

    assert (told, with_actions.said()) == (["escalated"], ["firing lost", "escalated lost"])
    assert [alert.severity for alert in with_actions.desk.board.alerts] == ["critical"]
    assert with_actions.desk.about(act)[0] == "critical"
    with_actions.restart()
    with_actions.look(lost=["mailer"])
    assert [alert.severity for alert in with_actions.desk.board.alerts] == ["critical"]
    assert len(with_actions.said()) == 2


def test_who_acts_on_an_end_is_told_what_has_ended(with_actions):
    with_actions.look(lost=["mailer"])
    with_actions.desk.acts.clear()
    with_actions.look(here=["mailer"])
    [(act, action)] = with_actions.desk.acts

    assert action.on == "resolved"
    assert with_actions.desk.about(act) == ("warning", {"team": "mail", "worker": "mailer"}, None)
    newest = with_actions.desk.history(0, with_actions.now_ms, 1)[0]
    assert (newest.kind, newest.labels) == ("action", {"team": "mail", "worker": "mailer"})


def test_a_silence_of_what_has_escalated_holds_its_actions_off_too(tmp_path):
    second = LOST + '\n[[rules.actions]]\nkind = "command"\ncommand = ["true"]\nafter = "1m"\n'
    watched = Watched(tmp_path, second)
    watched.look(lost=["mailer"])
    [(act, _action)] = watched.desk.acts
    watched.desk.acted(act, "done", "by all processes", watched.now_ms)
    watched.look(seconds=20, lost=["mailer"])
    watched.desk.silence(
        {"severity": "critical"}, watched.now_ms + HOUR, "known", "ann", watched.now_ms
    )
    watched.desk.acts.clear()
    watched.look(seconds=60, lost=["mailer"])

    [alert] = watched.desk.board.alerts
    assert (len(alert.silenced_by), watched.desk.acts) == (1, [])
    assert watched.audit()[-1] == ("action", "did not run the command true: silenced")
    watched.store.close()


MISSED = """
[[rules]]
name = "nightly"
metric = "since_connected"
worker = "nightly"
above = "26h"
"""


def test_who_is_expected_is_missed_since_it_was_there_and_not_since_there_is_a_rule(tmp_path):
    watched = Watched(tmp_path, MISSED)
    for _ in range(3):
        watched.look(seconds=20 * HOUR // SECOND)
        watched.look(here=["nightly"])
        watched.restart()
    assert watched.look(seconds=26 * HOUR // SECOND - 60) == []

    assert watched.look(seconds=60) == ["firing"]
    watched.store.close()


# ---------------------------------------------------------------- people


def test_a_silence_holds_through_a_restart_and_ends_by_itself(watched):
    view = watched.desk.silence(
        {"pipeline": "s*"}, watched.now_ms + 45 * SECOND, "known", "ann", watched.now_ms
    )
    watched.restart()
    watched.fire()

    [alert] = watched.desk.board.alerts
    assert (alert.silenced_by, watched.said()) == ([view.id], [])
    watched.restart()
    watched.look()
    watched.look()
    assert (watched.said(), watched.desk.board.silences) == (["firing failures"], [])


def test_a_silence_that_is_ended_stays_so(watched):
    until_ms = watched.now_ms + HOUR
    view = watched.desk.silence({"rule": "*"}, until_ms, "known", "ann", watched.now_ms)
    watched.desk.unsilence(view.id, "bob", watched.now_ms)
    watched.restart()

    assert watched.kinds() == ["silenced", "unsilenced"]
    with pytest.raises(NoSuchSilence):
        watched.desk.unsilence(view.id, "bob", watched.now_ms)


def test_an_acknowledgement_holds_through_a_restart_until_the_end(watched):
    watched.fire()
    [alert] = watched.desk.board.alerts
    watched.desk.acknowledge(alert.id, "ann", "looking", watched.now_ms)
    watched.restart()
    watched.look()

    [alert] = watched.desk.board.alerts
    assert alert.acknowledged.who == "ann"
    for _ in range(6):
        watched.look()
    with pytest.raises(NoSuchAlert):
        watched.desk.acknowledge(alert.id, "ann", "", watched.now_ms)


# ---------------------------------------------------------------- other rules


def test_other_thresholds_leave_states_as_they_are(watched):
    watched.fire()
    watched.send()
    changed = watched.take(RULES.replace("above = 2", "above = 1"))

    assert (changed, watched.look(), watched.said()) == (["failures"], ["notified"], [])


def test_an_alert_whose_rule_is_gone_ends_as_it_was_told(watched):
    watched.fire()
    [alert] = watched.desk.board.alerts
    watched.send()
    watched.take('[channels.hook]\nurl = "json://localhost"')
    watched.desk.acknowledge(alert.id, "ann", "meanwhile", watched.now_ms)
    assert watched.desk.board.alerts == []
    watched.look()

    [parcel] = watched.desk.shelf.due("hook", watched.now_ms, 9)
    [item] = parcel.message.items
    assert (item.saying, item.labels) == ("resolved", {"pipeline": "send"})
    assert item.summary == f"{alert.summary}; the rule is gone"


@pytest.mark.parametrize("restarting", [False, True])
def test_a_rule_that_tells_others_apart_begins_anew(watched, restarting):
    """Whether it is noticed at a reload, or was changed while the service was away."""
    watched.fire()
    watched.send()
    watched.take(RULES + 'per = ["worker"]')
    if restarting:
        watched.restart()
    watched.desk.show(watched.now_ms)
    assert watched.desk.board.alerts == []

    assert watched.look()[-2:] == ["resolved", "pending"]
    [alert] = watched.desk.board.alerts
    assert alert.labels == {"worker": "mailer"}
    [parcel] = watched.desk.shelf.due("hook", watched.now_ms, 9)
    assert [(i.saying, i.labels) for i in parcel.message.items] == [
        ("resolved", {"pipeline": "send"})
    ]
    watched.restart()
    assert watched.look() == []


def test_what_waits_for_a_channel_that_is_gone_is_given_up(watched):
    watched.fire()
    watched.take(RULES.replace("hook", "other"))
    watched.look()

    assert watched.desk.shelf.waiting("hook") == 0
    assert watched.audit()[-1] == ("undelivered", "firing: the channel hook is gone")
    assert watched.said() == ["firing failures"]


def test_a_desk_that_was_loaded_shows_what_it_keeps_before_it_looks(watched):
    watched.fire()
    watched.restart()
    watched.desk.show(watched.now_ms)

    assert [alert.phase for alert in watched.desk.board.alerts] == ["firing"]
    assert watched.desk.board.evaluated_at is None


def test_without_rules_what_was_kept_stays_kept(watched):
    """As at a start with a bad file: nobody looks, and people may still silence."""
    watched.fire()
    watched.desk.use(NO_RULES)
    watched.desk.silence({"rule": "*"}, watched.now_ms + HOUR, "known", "ann", watched.now_ms)
    watched.restart()

    assert watched.look() == []
    assert [alert.phase for alert in watched.desk.board.alerts] == ["firing"]


# ---------------------------------------------------------------- a disk in trouble


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Somebody else writes, and does not end."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.close()


@contextmanager
def no_folder(path: Path) -> Iterator[None]:
    """Another disk is not there: a file stands where the folder was."""
    aside = path.parent.with_suffix(".aside")
    path.parent.rename(aside)
    path.parent.touch()
    yield
    path.parent.unlink()
    aside.rename(path.parent)


@contextmanager
def deleted(path: Path) -> Iterator[None]:
    """Somebody cleared up; a folder in its place keeps a new file from being made."""
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    path.mkdir()
    yield
    path.rmdir()


Trouble = Callable[[Path], AbstractContextManager[None]]


@pytest.fixture(params=[locked, no_folder, deleted])
def trouble(request, monkeypatch) -> Trouble:
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.01)
    return request.param


@pytest.fixture
def in_folder(tmp_path: Path, trouble: Trouble) -> Iterator[Watched]:
    """In a folder of its own, which can be put away."""
    folder = tmp_path / "state"
    folder.mkdir()
    watched = Watched(folder)
    yield watched
    watched.store.close()


def test_while_nothing_can_be_written_rules_are_looked_at_and_all_is_sent(in_folder, trouble):
    in_folder.look()
    with trouble(in_folder.path):
        in_folder.fire()
        assert in_folder.desk.shelf.trouble is not None
        assert [alert.phase for alert in in_folder.desk.board.alerts] == ["firing"]
        assert (in_folder.said(), len(in_folder.send())) == (["firing failures"], 1)
    in_folder.look()

    assert in_folder.desk.shelf.trouble is None
    assert in_folder.kinds() == ["pending", "firing", "notified"]
    in_folder.restart()
    assert (in_folder.look(), in_folder.said()) == ([], [])
    assert [alert.phase for alert in in_folder.desk.board.alerts] == ["firing"]


def test_what_was_written_before_is_there_afterwards_too(in_folder, trouble):
    """In a file that was made anew there is nothing of it, until all is written again."""
    in_folder.fire()
    in_folder.desk.silence({"rule": "x"}, in_folder.now_ms + HOUR, "known", "ann", in_folder.now_ms)
    with trouble(in_folder.path), suppress(AlertsUnavailable):
        in_folder.desk.history(0, in_folder.now_ms, 9)
    in_folder.look()
    in_folder.restart()

    assert (in_folder.look(), in_folder.said()) == ([], ["firing failures"])
    assert len(in_folder.desk.board.silences) == 1


def test_a_promise_that_the_disk_does_not_take_is_refused_and_in_force(in_folder, trouble):
    in_folder.fire()
    [alert] = in_folder.desk.board.alerts
    until_ms = in_folder.now_ms + HOUR
    with trouble(in_folder.path):
        with pytest.raises(AlertsUnavailable, match="it holds until the service ends"):
            in_folder.desk.silence({"rule": "*"}, until_ms, "known", "ann", in_folder.now_ms)
        with pytest.raises(AlertsUnavailable):
            in_folder.desk.acknowledge(alert.id, "ann", "", in_folder.now_ms)
        [alert] = in_folder.desk.board.alerts
        assert (len(alert.silenced_by), alert.acknowledged.who) == (1, "ann")
    in_folder.look()
    in_folder.restart()
    in_folder.look()

    [alert] = in_folder.desk.board.alerts
    assert (len(alert.silenced_by), alert.acknowledged.who) == (1, "ann")


def test_nothing_is_done_that_cannot_be_written_down_first(tmp_path, monkeypatch):
    """And what was not done is no try: it does not escalate for that."""
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.01)
    watched = Watched(tmp_path, LOST)
    watched.look()
    with locked(watched.path):
        for _ in range(3):
            watched.look(seconds=30, lost=["mailer"])
            assert watched.desk.acts == []
    watched.look(seconds=30, lost=["mailer"])

    assert [act.kind for act, _action in watched.desk.acts] == ["restart"]
    entries = watched.desk.history(0, watched.now_ms, 9, kind="action")
    outcomes = [entry.details["outcome"] for entry in reversed(entries)]
    assert outcomes == 3 * ["started", "refused"] + ["started"]
    assert watched.said() == ["firing lost"]
    watched.store.close()


GARBAGE = b"not a database, but long enough to be read as one. " * 400


@pytest.mark.parametrize("whole", [0, 100, 8_192])
def test_a_damaged_file_is_put_aside_and_alerts_begin_anew(watched, whole):
    """Whatever is left of it: nothing, its header, the names of its tables."""
    watched.fire()
    watched.store.close()
    left = watched.path.read_bytes()[:whole]
    watched.path.write_bytes(left + GARBAGE[: watched.path.stat().st_size - whole])
    with suppress(StoreFailed):  # where it is only found out by reading
        watched.begin()
    watched.begin()

    assert len(list(watched.path.parent.glob("alerts.damaged-*"))) == 1
    assert (watched.look(), watched.kinds()) == (["pending"], ["pending"])
    watched.restart()
    assert watched.look() == []


# ---------------------------------------------------------------- clocks


@pytest.mark.parametrize("by_ms", [HOUR, -HOUR, 90 * SECOND, -90 * SECOND])
@pytest.mark.parametrize("at", range(12))
def test_a_clock_that_is_set_changes_nothing(tmp_path, by_ms, at):
    """At whichever look; and a restart some time after it."""
    courses = []
    for name, set_by in (("usual", 0), ("set", by_ms)):
        (tmp_path / name).mkdir()
        watched = Watched(tmp_path / name)
        told: list[object] = []
        for n, failed in enumerate((0, 3, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0)):
            if n == at:
                watched.set_clock(set_by)
            if n == at + 2:
                watched.restart()
            told.append(watched.look(failed))
        courses.append([told, watched.audit(), watched.said()])
        watched.store.close()

    assert courses[0] == courses[1]


@pytest.mark.parametrize("by_ms", [HOUR, -HOUR])
def test_what_waits_does_not_wait_longer_for_a_clock_that_was_set(watched, by_ms):
    watched.fire()
    [parcel] = watched.desk.shelf.due("hook", watched.now_ms, 9)
    watched.desk.failed(parcel, watched.now_ms + 5 * SECOND)
    watched.set_clock(by_ms)
    watched.look(seconds=4)
    watched.restart()

    assert watched.said() == []
    watched.now_ms += SECOND
    assert watched.said() == ["firing failures"]


# ---------------------------------------------------------------- bounds


def test_alerts_for_which_there_is_no_place_are_counted(watched, monkeypatch):
    monkeypatch.setattr(desks, "MAX_ALERTS", 2)
    for _ in range(3):
        watched.look(3, pipelines=["a", "b", "c", "d"])

    assert len(watched.desk.board.alerts) == 2
    assert watched.desk.board.left_out == 2


def test_messages_for_which_there_is_no_place_push_out_the_oldest_and_are_counted(
    watched, monkeypatch
):
    monkeypatch.setattr(shelves, "MAX_PARCELS", 1)
    watched.fire()
    for _ in range(4):
        watched.look()

    assert watched.said() == ["resolved failures"]
    assert ("undelivered", "firing: dropped: too many messages wait") in watched.audit()
    watched.restart()
    assert watched.said() == ["resolved failures"]


def test_without_a_folder_alerts_are_in_memory_and_say_so():
    desk = Desk("box", None)
    desk.silence({"rule": "*"}, HOUR, "known", "ann", 0)

    assert len(desk.board.silences) == 1
    with pytest.raises(AlertsUnavailable, match="ORBIT_STATE is none"):
        desk.history(0, HOUR, 9)
