"""What rules share while they look: numbers of sums, and facts by what they are of."""

from __future__ import annotations

from builders import HOUR, SECOND, T0
from orbit_service.alerts.before import NOTHING_BEFORE
from orbit_service.alerts.facts import Facts, WorkerFact
from orbit_service.alerts.readings import look
from orbit_service.alerts.rules import Rule
from orbit_service.alerts.sums import Sums
from orbit_service.core.outbox import Key
from orbit_service.core.stats import Stats

P95 = Rule(name="slow", metric="p95", above=0, min_runs=1)
LATER = Rule(name="later", metric="p95", above="1h", min_runs=1)
PICKY = Rule(name="picky", metric="p95", above=0, min_runs=2)
SEND = ("send",)


def runs(*durations_us: int) -> dict[Key, Stats]:
    stats = Stats()
    stats.add_runs(durations_us, 0, T0)
    return {Key("mailer", "send"): stats}


def sums_of(*windows: dict[Key, Stats]) -> Sums:
    sums = Sums([P95, LATER, PICKY])
    for window in windows:
        sums.add(T0, window)
    sums.advance(T0 + 10 * SECOND)
    return sums


def test_rules_that_ask_the_same_share_the_answer() -> None:
    sums = sums_of(runs(1_000_000))

    assert sums.values(P95) is sums.values(LATER)
    assert sums.values(PICKY) == {SEND: None}


def test_an_answer_holds_until_something_is_added() -> None:
    sums = sums_of(runs(1_000_000))
    before = sums.values(P95)[SEND]
    sums.add(T0 + 10 * SECOND, runs(9_000_000))
    after = sums.values(P95)[SEND]

    assert before is not None
    assert after is not None
    assert before < 1_020 < 8_900 < after


def test_an_answer_holds_until_something_goes() -> None:
    sums = sums_of(runs(1_000_000))
    assert sums.values(P95)[SEND] is not None

    sums.advance(T0 + HOUR)
    assert sums.values(P95) == {SEND: None}

    sums.advance(T0 + 25 * HOUR)
    assert sums.values(P95) == {}


FACTS = Facts(
    workers={name: WorkerFact(True, False, name == "b", T0) for name in ("a", "b", "c")},
    successes={(worker, p): T0 - 60_000 for worker in ("a", "b") for p in ("send", "other")},
    queues={("a", "mails"): 3, ("b", "mails"): 5, ("a", "files"): 7},
)


def read(**rule: object) -> dict[tuple[str, ...], float | None]:
    """What a rule of these fields reads of FACTS."""
    asked = Rule.model_validate({"name": "r", "above": 0, **rule})
    found = look([asked], Sums(()), FACTS, {}, NOTHING_BEFORE, {}, {}, T0, everything=True)
    return {subject.match: value for subject, value in found.readings.items()}


def test_who_names_one_reads_what_it_is_among_all() -> None:
    for metric, one, all_ in (
        ("since_success", {"pipeline": "send", "worker": "b"}, ("b", "send")),
        ("worker_silent", {"worker": "b"}, ("b",)),
        ("queue_depth", {"queue": "mails", "worker": "a"}, ("a", "mails")),
    ):
        per = [name for name in ("worker", "pipeline", "queue") if name in one]
        everything = read(metric=metric, per=per)

        assert len(everything) > 1
        assert read(metric=metric, per=per, **one) == {all_: everything[all_]}


def test_a_queue_that_several_tell_of_is_as_deep_as_one_says() -> None:
    assert read(metric="queue_depth", queue="mails") == {("mails",): 5}
    assert read(metric="queue_depth", worker="[ac]") == {("mails",): 3, ("files",): 7}
    assert read(metric="queue_depth") == {("mails",): 5, ("files",): 7}
