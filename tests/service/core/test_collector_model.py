"""Whatever workers do, and however often they send it: the totals are a plain recomputation."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from builders import T0, a_batch, a_connect, a_record, a_result, a_start
from orbit_rpc_schema.messages import Batch, Record
from orbit_service.core.checks import Refused
from orbit_service.core.collector import Collector
from orbit_service.core.outbox import Publication, sum_of
from orbit_service.core.stats import merged
from orbit_service.state.checkpoint import dump, load

WORKER_OF = {"a1": "a", "a2": "a", "b1": "b"}

sessions = st.sampled_from(sorted(WORKER_OF))
ids = st.sampled_from(["r1", "r2"])
columns = st.lists(st.tuples(st.integers(0, 10**9), st.booleans()), max_size=4)


class Run:
    """All that has happened to the run of one id since it last began anew."""

    def __init__(self) -> None:
        self.results: dict[int, bool] = {}  # attempt: final
        self.lost_attempt = 0

    @property
    def ended(self) -> int:
        return max([a for a, final in self.results.items() if final] + [self.lost_attempt])


class Workers(RuleBasedStateMachine):
    """The model keeps every run of a life as (duration or None, failed), and sums."""

    def __init__(self) -> None:
        super().__init__()
        self.collector = Collector("node")
        self.sent: list[tuple[str, Record]] = []
        self.seq = dict.fromkeys(WORKER_OF, 0)
        self.recorded = dict.fromkeys(WORKER_OF, 0)
        self.acked = dict.fromkeys(WORKER_OF, 0)
        self.running: dict[str, set[str]] = {}  # of the open sessions
        self.were_lost: set[str] = set()
        self.lives: dict[str, list[tuple[int | None, bool]]] = {}
        self.retries: dict[str, int] = {}
        self.past: dict[str, list[tuple[int | None, bool]]] = {}
        self.runs: dict[str, Run] = {}
        self.every: list[tuple[int | None, bool]] = []
        self.published = Publication(0, {}, {})
        self.counts = {"counted": 0, "repeated": 0, "late": 0, "refused": 0}

    # ------------------------------------------------------------ what workers do

    @rule(session=sessions)
    def connect(self, session: str) -> None:
        hello = a_connect(session=session, worker=WORKER_OF[session])
        answer = self.collector.connect(hello, T0)

        assert answer.acked == self.acked[session]
        self.running[session] = set()
        if WORKER_OF[session] not in self.lives:
            self._begin_life(WORKER_OF[session])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), column=columns, skipped=st.integers(0, 1))
    def record(self, data: st.DataObject, column: list[tuple[int, bool]], skipped: int) -> None:
        session = data.draw(st.sampled_from(sorted(self.running)))
        failed = [i for i, (_us, failed) in enumerate(column) if failed]
        self._send(session, a_batch(*(us for us, _ in column), failed=failed), skipped=skipped)
        for run in column:
            self._run(session, *run)
        self.counts["counted"] += len(column)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), id=ids)
    def start(self, data: st.DataObject, id: str) -> None:
        session = data.draw(st.sampled_from(sorted(self.running)))
        self._send(session, starts=[id])
        self.running[session].add(id)
        run = self.runs.get(id, Run())
        # Told by a session that was given up, it may be of before that: not begun again.
        if run.ended and not (session in self.were_lost and run.lost_attempt):
            del self.runs[id]
            self.retries[WORKER_OF[session]] += 1

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(), id=ids, attempt=st.integers(1, 3), final=st.booleans(), failed=st.booleans()
    )
    def end(self, data: st.DataObject, id: str, attempt: int, final: bool, failed: bool) -> None:
        session = data.draw(st.sampled_from(sorted(self.running)))
        self._send(session, a_result(id, 7, attempt=attempt, final=final, failed=failed))
        self.running[session].discard(id)
        run = self.runs.setdefault(id, Run())
        if attempt in run.results:
            self.counts["repeated"] += 1
            return
        if attempt <= run.lost_attempt:
            self.counts["late"] += 1
            return
        ended_before = run.ended
        run.results[attempt] = final
        if final and attempt < ended_before:
            self.counts["repeated"] += 1
            return
        self.counts["counted"] += 1
        self.retries[WORKER_OF[session]] += bool(ended_before) or not final
        if final:
            self._run(session, 7, failed)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        session, message = data.draw(st.sampled_from(self.sent))
        if session in self.running:
            self.collector.record(self.collector.sessions[session], message, T0)

    @rule()
    def restart(self) -> None:
        """What was saved and read again is the same in everything that comes after."""
        restarted = Collector("node")
        load(dump(self.collector), restarted)
        self.collector = restarted

    @rule(later_ms=st.sampled_from([0, 12_000, 60_000]))
    def close_windows(self, later_ms: int) -> None:
        outbox = self.collector.outbox
        outbox.close("instance", outbox.over(T0 + later_ms))

    @precondition(lambda self: self.collector.outbox.waiting)
    @rule()
    def publish(self) -> None:
        first = self.collector.outbox.waiting[0]
        self.published.merge(first)
        self.collector.outbox.take(first.number)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def send_nonsense(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.running)))
        try:
            self._send(session, a_batch(1, 2, failed=[2]))
        except Refused:
            self.counts["refused"] += 2
            return
        raise AssertionError("a negative duration was taken")

    @precondition(lambda self: self.running)
    @rule(data=st.data(), goodbye=st.booleans())
    def leave(self, data: st.DataObject, goodbye: bool) -> None:
        session = data.draw(st.sampled_from(sorted(self.running)))
        if goodbye:
            self.collector.disconnect(self.collector.sessions[session], "done", T0)
        else:
            self.collector.lose(self.collector.sessions[session], T0)
            self.were_lost.add(session)
        for id in self.running.pop(session):
            run = self.runs.setdefault(id, Run())
            if any(run.results.values()):
                continue  # another process told its end
            run.lost_attempt = max(run.results, default=0) + 1
            self._run(session, None, True)
        worker = WORKER_OF[session]
        if not any(WORKER_OF[other] == worker for other in self.running):
            self.past[worker] = self.lives.pop(worker)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.running)))
        self.collector.reset(self.collector.sessions[session], T0)
        self.past[WORKER_OF[session]] = self.lives[WORKER_OF[session]]
        self._begin_life(WORKER_OF[session])

    # ------------------------------------------------------------ what is true of it

    @invariant()
    def the_totals_of_each_life_are_the_sum_of_its_runs(self) -> None:
        alive = {w.name: w.life.totals() for w in self.collector.workers.values() if w.life}
        assert alive.keys() == self.lives.keys()
        for worker, runs in self.lives.items():
            timed = [us for us, _failed in runs if us is not None]
            stats = alive[worker]
            assert stats.runs == len(runs)
            assert stats.failed == sum(failed for _us, failed in runs)
            assert (stats.timed, stats.total_us) == (len(timed), sum(timed))
            assert (stats.min_us, stats.max_us) == (min(timed, default=0), max(timed, default=0))
            assert stats.histogram.count == len(timed)
            assert stats.retries == self.retries[worker]

    @invariant()
    def a_life_that_ended_is_remembered_by_its_totals(self) -> None:
        for worker, runs in self.past.items():
            last = self.collector.workers[worker].last_life
            assert last is not None
            assert last.total_runs == len(runs)
            assert last.failed == sum(failed for _us, failed in runs)

    @invariant()
    def every_result_handed_over_became_one_thing(self) -> None:
        total = self.collector.ledger
        found = {"counted": total.counted, "repeated": total.repeated, "late": total.late}
        found["refused"] = total.refused.get("invalid", 0)

        assert found == self.counts
        assert sum(found.values()) == sum(self.recorded.values()) == total.recorded

    @invariant()
    def the_book_of_each_session_balances(self) -> None:
        collector = self.collector
        for session in [*collector.sessions.values(), *collector.ended_sessions.values()]:
            assert session.ledger.recorded == self.recorded[session.id]
            assert session.ledger.waiting == 0

    @invariant()
    def the_last_day_holds_all_runs_of_all_lives(self) -> None:
        day = self.collector.last_day.since(0)

        assert day.runs == len(self.every)
        assert day.failed == sum(failed for _us, failed in self.every)
        assert day.total_us == sum(us or 0 for us, _failed in self.every)

    @invariant()
    def windows_and_what_was_published_of_them_hold_all_runs_of_all_lives(self) -> None:
        outbox = self.collector.outbox
        windows = [*self.published.windows.values(), *outbox.windows.values()]
        windows += [w for publication in outbox.waiting for w in publication.windows.values()]
        total = merged(sum_of(window) for window in windows)

        assert total.runs == len(self.every)
        assert total.failed == sum(failed for _us, failed in self.every)
        assert total.total_us == sum(us or 0 for us, _failed in self.every)
        assert total.histogram.count == total.timed

    @invariant()
    def what_runs_is_what_began_and_did_not_end(self) -> None:
        found = {(session.id, run.id) for session, run in self.collector.running()}

        assert found == {(session, id) for session, all in self.running.items() for id in all}

    # ------------------------------------------------------------ inside

    def _send(
        self, session: str, *batches: Batch, starts: Sequence[str] = (), skipped: int = 0
    ) -> None:
        self.seq[session] += 1 + skipped
        self.recorded[session] += sum(len(batch.duration_us) for batch in batches)
        message = a_record(
            self.seq[session],
            *batches,
            started=[a_start(id) for id in starts],
            recorded=self.recorded[session],
        )
        self.acked[session] = self.seq[session]
        self.sent.append((session, message))
        self.collector.record(self.collector.sessions[session], message, T0)

    def _run(self, session: str, duration_us: int | None, failed: bool) -> None:
        self.lives[WORKER_OF[session]].append((duration_us, failed))
        self.every.append((duration_us, failed))

    def _begin_life(self, worker: str) -> None:
        self.lives[worker], self.retries[worker] = [], 0


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
