"""What every history does, whichever database it is in."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, update

from builders import HOUR, MINUTE, MS, SECOND, T0
from histories import ANY, SEND, Place, a_publication, runs
from orbit_rpc_schema.wire import MAX_INT
from orbit_service.core.histogram import Histogram
from orbit_service.core.outbox import ErrorText, Key
from orbit_service.core.rollup import LEVELS
from orbit_service.core.stats import Stats, merged
from orbit_service.history import engines
from orbit_service.history.port import AnotherIsWriting, HistoryFailed, HistoryRefused, Wanted
from orbit_service.history.sql import SqlHistory
from orbit_service.history.tables import windows

DAY = 24 * HOUR
TODAY = T0 - T0 % DAY  # a whole day, so that minutes and hours begin where they seem to


class HistoryContract:
    """`place` is what each database supplies."""

    # ------------------------------------------------------------ adding

    def test_what_was_added_is_read(self, place: Place) -> None:
        place.add(TODAY, 5 * MS, 7 * MS, failed=1)

        assert place.read() == {SEND: _stats(5 * MS, 7 * MS, failed=1)}

    def test_a_publication_that_comes_twice_counts_once(self, place: Place) -> None:
        publication = a_publication(3, {TODAY: {SEND: runs(MS)}})

        assert place.history.apply("n", "i", [publication], ANY) == 3
        assert place.history.apply("n", "i", [publication], ANY) == 3
        assert place.total().runs == 1

    def test_of_several_only_those_that_are_news_are_added(self, place: Place) -> None:
        first, second = (a_publication(n, {TODAY: {SEND: runs(MS)}}) for n in (1, 2))
        place.history.apply("n", "i", [first], ANY)
        place.history.apply("n", "i", [first, second], ANY)

        assert place.total().runs == 2

    def test_what_is_added_later_joins_what_was_there(self, place: Place) -> None:
        place.add(TODAY, 3 * MS)
        place.add(TODAY, 9 * MS)

        assert place.read() == {SEND: runs(3 * MS, 9 * MS)}

    def test_waits_that_were_added_are_read(self, place: Place) -> None:
        place.add(TODAY, MS, waits=[2 * MS])
        place.add(TODAY, MS, waits=[9 * MS])
        place.add(TODAY, MS)

        assert place.read() == {SEND: runs(MS, MS, MS, waits=[2 * MS, 9 * MS])}

    def test_adding_leaves_the_publication_as_it_was(self, place: Place) -> None:
        publication = a_publication(1, {TODAY: {SEND: runs(MS)}})
        place.add(TODAY, MS)
        place.history.apply("n", "another", [publication], ANY)

        assert publication.windows == {TODAY: {SEND: runs(MS)}}

    def test_a_publication_that_was_not_made_here_is_noticed(self, place: Place) -> None:
        """Whatever its number; of one that was, the word of it may have been lost."""
        first, second = (a_publication(n, {TODAY: {SEND: runs(MS)}}) for n in (1, 2))
        first.token, second.token = "first", "second"
        place.history.apply("n", "i", [first], {""})
        place.history.apply("n", "i", [first, second], {"", "first", "second"})
        place.history.apply("n", "i", [first, second], {"", "first", "second"})
        assert place.total().runs == 2

        for newest in (1, 2, 3):
            with pytest.raises(AnotherIsWriting):
                place.history.apply("n", "i", [a_publication(newest)], {"", "mine"})
        with pytest.raises(AnotherIsWriting):
            place.history.renew("another", "i", b"", {"", "mine"})
        assert place.history.members({}) == []

    def test_who_is_renewed_by_another_process_notices(self, place: Place) -> None:
        place.history.renew("n", "i", b"one", ANY)
        place.clock.now_ms += SECOND
        copy = SqlHistory(place.history.database, clock=place.clock)
        copy.renew("m", "i", b"other", ANY)
        place.clock.now_ms += SECOND

        with pytest.raises(AnotherIsWriting):
            place.history.renew("n", "i", b"one", ANY)
        copy.renew("m", "i", b"other", ANY)

    def test_names_that_no_index_takes_are_kept(self, place: Place) -> None:
        chance = random.Random(1)
        names = [
            "".join(chr(chance.randrange(0x20000, 0x2A6D0)) for _ in range(200)) for _ in "1234"
        ]
        key = Key(names[0], names[1], "", names[2], names[3])
        place.add(TODAY, MS, key=key)

        assert place.read(runs=False, errors=True) == {key: runs(MS)}

    def test_a_series_that_somebody_else_forgot_is_made_again(self, place: Place) -> None:
        place.add(TODAY, MS)
        with place.history.database.writing() as connection:
            for table in ("window_10s", "series"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
        place.add(TODAY, MS, MS)

        assert place.total().runs == 2

    def test_an_instance_goes_with_its_node_when_that_is_renamed(self, place: Place) -> None:
        place.history.renew("old", "i", b"", ANY)
        place.history.renew("new", "i", b"", ANY)

        assert [member.node for member in place.history.members({})] == ["new"]

    @pytest.mark.parametrize("column", ["histogram", "waits"])
    def test_a_row_that_cannot_be_read_hides_no_other(self, place: Place, column: str) -> None:
        other = Key("fetcher", "fetch")
        place.add(TODAY, MS)
        place.add(TODAY + HOUR, MS, key=other)
        with place.history.database.writing() as connection:
            spoil = update(windows[0]).where(windows[0].c.start == TODAY // 1000)
            connection.execute(spoil.values({column: b"\x63"}))
        place.clock.now_ms = TODAY + 3 * HOUR
        place.maintain()

        assert [place.read(level).keys() for level in (0, 2)] == [{other}, {other}]
        assert place.history.unreadable > 0

    def test_who_leaves_is_not_lost(self, place: Place) -> None:
        place.history.renew("n", "i", b"", ANY)
        place.history.leave("i")

        assert place.history.members({}) == []

    def test_the_number_is_kept_while_its_instance_publishes(self, place: Place) -> None:
        """On SQLite, where no lease is ever renewed."""
        place.add(TODAY, MS)
        place.clock.now_ms = TODAY + 401 * DAY
        place.add(place.clock.now_ms, MS)
        place.maintain()

        assert place.history.read(Wanted([]), lambda *_: None) == {"instance of n": (2, "")}

    def test_of_a_node_that_is_gone_nothing_is_left_in_the_end(self, place: Place) -> None:
        place.add(TODAY, MS, node="gone")
        self._live_until(place, TODAY + 402 * DAY, step=10 * DAY)
        with place.history.database.writing() as connection:
            connection.exec_driver_sql("UPDATE instance SET at = 0 WHERE id = 'instance of gone'")
        for _ in range(2):
            place.maintain("gone")
            place.clock.now_ms += 6 * MINUTE

        assert place.history.abandoned() == ["n"]

    def test_expiry_is_at_most_twice_as_fast_as_time(self, place: Place) -> None:
        """So a clock that is a day ahead for an hour takes two hours of detail, and no day."""
        for hour in range(0, 24, 2):
            place.add(TODAY + hour * HOUR, MS)
            place.clock.now_ms = TODAY + hour * HOUR
            place.maintain()
        before = len(place.starts(0))
        place.clock.now_ms += 10 * DAY
        place.add(place.clock.now_ms, MS)
        for _ in range(6):
            place.clock.now_ms += 10 * MINUTE
            place.maintain()

        assert len(place.starts(0)) >= before - 1

    def test_two_that_call_themselves_alike_both_count(self, place: Place) -> None:
        for instance in ("one", "other"):
            place.history.apply("n", instance, [a_publication(1, {TODAY: {SEND: runs(MS)}})], ANY)

        assert place.total().runs == 2

    def test_reading_tells_up_to_which_number_it_knows(self, place: Place) -> None:
        place.history.apply("n", "one", [a_publication(4)], ANY)
        place.history.apply("n", "other", [a_publication(7)], ANY)

        assert place.history.read(Wanted([]), lambda *_: None) == {"one": (4, ""), "other": (7, "")}

    def test_the_largest_numbers_and_the_oddest_names_are_kept(self, place: Place) -> None:
        key = Key("größe 🐘", "a'b\"c%s:x", "", "v\\1", "")
        large = Stats(MAX_INT, MAX_INT, MAX_INT, 0, MAX_INT, MAX_INT, 0, MAX_INT)
        place.history.apply("ñ'", "i", [a_publication(1, {TODAY: {key: large}})], ANY)

        assert place.read() == {key: large}

    def test_what_the_database_refuses_is_said_to_be_refused(self, place: Place) -> None:
        over = Stats(runs=MAX_INT + 1)
        with pytest.raises(HistoryRefused):
            place.history.apply("n", "i", [a_publication(1, {TODAY: {SEND: over}})], ANY)

        place.add(TODAY, MS)
        assert place.total().runs == 1

    def test_nodes_write_at_once(self, place: Place) -> None:
        place.add(TODAY, MS)  # the tables are there

        def write(node: str) -> None:
            for number in range(1, 6):
                window = {TODAY + number * 10 * SECOND: {SEND: runs(MS)}}
                place.history.apply(node, node, [a_publication(number, window)], ANY)
                place.history.maintain(node)

        threads = [threading.Thread(target=write, args=(node,)) for node in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert place.total().runs == 1 + 4 * 5

    # ------------------------------------------------------------ rolling up

    def test_a_minute_is_the_sum_of_its_windows(self, place: Place) -> None:
        for second in range(0, 60, 10):
            place.add(TODAY + second * SECOND, (second + 1) * MS)
        place.add(TODAY + MINUTE, 99 * MS)
        place.clock.now_ms = TODAY + MINUTE + 30 * SECOND
        place.maintain()

        minute = (TODAY, TODAY + MINUTE)
        assert place.starts(1, minute) == [TODAY]
        assert place.read(1, minute) == {SEND: runs(*(s * MS for s in range(1, 61, 10)))}

    def test_an_hour_is_made_of_minutes(self, place: Place) -> None:
        for minute in range(0, 60, 7):
            place.add(TODAY + minute * MINUTE, MS)
        place.clock.now_ms = TODAY + HOUR + MINUTE
        place.maintain()

        assert place.starts(2) == [TODAY]
        assert place.total(2).runs == 9

    def test_waits_of_before_they_were_kept_are_missing_in_the_sum_and_no_others(
        self, place: Place
    ) -> None:
        for minute, waits in enumerate(([5 * MS], [7 * MS], [90 * MS])):
            place.add(TODAY + minute * MINUTE, MS, waits=waits)
        with place.history.database.writing() as connection:
            connection.execute(
                update(windows[0]).where(windows[0].c.start == TODAY // 1000).values(waits=None)
            )
        place.add(TODAY, MS, waits=[3 * MS])
        place.clock.now_ms = TODAY + HOUR + MINUTE
        place.maintain()

        assert place.starts(2) == [TODAY]
        for level in (0, 1, 2):
            total = place.total(level)
            assert total.waits == Histogram.of([3 * MS, 7 * MS, 90 * MS])
            assert (total.waited, total.max_wait_ms) == (4, 90)

    def test_what_is_not_rolled_up_yet_is_answered_from_below(self, place: Place) -> None:
        place.add(TODAY, MS)
        place.add(TODAY + HOUR, MS)
        place.add(TODAY + HOUR + MINUTE, MS)
        place.clock.now_ms = TODAY + HOUR + MINUTE
        place.maintain()

        assert place.starts(2) == [TODAY, TODAY + HOUR, TODAY + HOUR + MINUTE]
        assert [place.total(level).runs for level in (0, 1, 2)] == [3, 3, 3]

    def test_what_comes_late_is_added_to_every_level(self, place: Place) -> None:
        place.add(TODAY, MS)
        place.add(TODAY + 2 * HOUR, MS)
        place.clock.now_ms = TODAY + 2 * HOUR + MINUTE
        place.maintain()
        place.add(TODAY + 20 * SECOND, 5 * MS)

        hour = (TODAY, TODAY + HOUR)
        assert [place.starts(level, hour) for level in (1, 2)] == [[TODAY], [TODAY]]
        for level in (0, 1, 2):
            assert place.read(level, hour) == {SEND: runs(MS, 5 * MS)}

    def test_levels_agree_whatever_comes_in_whatever_order(self, place: Place) -> None:
        chance = random.Random(7)
        expected = Stats()
        for _ in range(60):
            at = TODAY + chance.randrange(3 * 360) * 10 * SECOND
            duration = chance.randrange(1, 10_000_000)
            waits = [duration // 2] if chance.random() < 0.5 else []
            place.add(at, duration, key=SEND._replace(version=chance.choice("ab")), waits=waits)
            expected.merge(runs(duration, waits=waits))
            place.clock.now_ms = max(place.clock.now_ms, at) + chance.randrange(MINUTE)
            if chance.random() < 0.5:
                place.history.maintain("n")
            if chance.random() < 0.1:
                place.restart()
        place.maintain()

        assert [place.total(level) for level in (0, 1, 2)] == [expected] * 3
        assert [place.total(level, total=True) for level in (0, 1, 2)] == [expected] * 3

    def test_rolling_up_may_end_anywhere_and_be_begun_again(self, place: Place) -> None:
        for minute in range(0, 130, 10):
            place.add(TODAY + minute * MINUTE, MS)
        place.clock.now_ms = TODAY + 3 * HOUR
        statements = 0
        while self._fails_at(place, statements):
            assert [place.total(level).runs for level in (0, 1, 2)] == [13, 13, 13]
            statements += 1

        assert statements > 10
        assert place.starts(2, (TODAY, TODAY + 2 * HOUR)) == [TODAY, TODAY + HOUR]
        assert [place.total(level).runs for level in (0, 1, 2)] == [13, 13, 13]

    def _fails_at(self, place: Place, number: int) -> bool:
        """Whether maintenance fails when its statement of this number does."""
        left = number

        def fail(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("the power is gone")

        engine = place.history.database.engine
        event.listen(engine, "before_cursor_execute", fail)
        try:
            place.maintain()
        except HistoryFailed:
            return True
        finally:
            event.remove(engine, "before_cursor_execute", fail)
        return False

    def test_anybody_rolls_up_what_a_dead_node_left(self, place: Place) -> None:
        place.add(TODAY, MS, node="dead")
        place.add(TODAY + HOUR, MS, node="dead")
        place.history.renew("dead", "instance of dead", b"", ANY)
        place.history.renew("alive", "instance of alive", b"", ANY)
        place.clock.now_ms += 29 * SECOND
        assert place.history.abandoned() == []

        place.clock.now_ms += 2 * SECOND
        place.history.renew("alive", "instance of alive", b"", ANY)
        assert place.history.abandoned() == ["dead"]

        place.clock.now_ms = TODAY + 2 * HOUR
        place.maintain("dead")
        assert place.starts(2, (TODAY, TODAY + HOUR)) == [TODAY]

    def test_a_node_that_returns_goes_on_where_others_rolled_up(self, place: Place) -> None:
        place.add(TODAY, MS)
        place.add(TODAY + HOUR, MS)
        place.clock.now_ms = TODAY + 2 * HOUR
        place.maintain()
        place.restart()
        place.add(TODAY, MS)
        place.maintain()

        assert [place.total(level).runs for level in (0, 1, 2)] == [3, 3, 3]

    # ------------------------------------------------------------ letting go

    def test_each_level_is_kept_for_its_time(self, place: Place) -> None:
        place.add(TODAY, MS)
        self._live_until(place, TODAY + 8 * DAY)

        assert place.starts(0, (TODAY, TODAY + MINUTE)) == []
        assert place.starts(1, (TODAY, TODAY + MINUTE)) == []
        assert place.starts(2, (TODAY, TODAY + HOUR)) == [TODAY]

    def test_what_comes_late_for_windows_that_are_gone_is_kept_where_it_can_be(
        self, place: Place
    ) -> None:
        place.add(TODAY, MS)
        self._live_until(place, TODAY + 8 * DAY)
        place.add(TODAY, 5 * MS)

        assert place.read(2, (TODAY, TODAY + HOUR)) == {SEND: runs(MS, 5 * MS)}

    def test_nothing_is_let_go_before_it_is_rolled_up(self, place: Place) -> None:
        """As when a node was away for longer than its windows are kept."""
        place.add(TODAY, MS, node="away")
        self._live_until(place, TODAY + DAY)
        assert place.total(0, node="away").runs == 1

        for _ in range(3):
            place.maintain("away")
        assert place.total(2, node="away").runs == 1

    def test_an_idle_history_lets_nothing_go(self, place: Place) -> None:
        place.add(TODAY, MS)
        place.maintain()
        place.clock.now_ms = TODAY + 500 * DAY
        place.maintain()

        assert place.total().runs == 1

    @pytest.mark.parametrize("step", [500 * DAY, -500 * DAY], ids=["ahead", "back"])
    def test_a_clock_that_jumps_lets_nothing_go(self, place: Place, step: int) -> None:
        place.add(TODAY, MS)
        place.clock.now_ms = TODAY + MINUTE
        place.maintain()
        place.clock.now_ms += step
        place.add(place.clock.now_ms - place.clock.now_ms % MINUTE, MS)
        place.maintain()
        place.clock.now_ms -= step
        place.add(TODAY + MINUTE, MS)
        place.maintain()

        assert [place.total(level).runs for level in (0, 1, 2)] == [3, 3, 3]

    def test_a_series_without_windows_is_forgotten(self, place: Place) -> None:
        place.add(TODAY, MS, key=Key("gone", "send"))
        place.clock.now_ms = TODAY
        place.maintain()
        self._live_until(place, TODAY + 402 * DAY, step=10 * DAY)

        with place.history.database.reading() as connection:
            names = connection.exec_driver_sql("SELECT DISTINCT worker FROM series").scalars().all()
        assert set(names) == {"", "mailer"}

    def _live_until(self, place: Place, until: int, step: int = DAY) -> None:
        """Time passes, with runs in it; expiry follows at its own speed."""
        at = place.clock.now_ms = max(place.clock.now_ms, TODAY)
        while at < until:
            at = min(at + step, until)
            place.add(at, MS)
            place.clock.now_ms = at + 10 * SECOND
            # As if it had been looked after every ten minutes of the step.
            with place.history.database.writing() as connection:
                connection.exec_driver_sql(f"UPDATE node SET horizon = {at // 1000 - 1}")
            place.maintain()
            place.clock.now_ms += 6 * MINUTE
            place.maintain()

    # ------------------------------------------------------------ who is there

    def test_a_lease_ends_after_thirty_seconds(self, place: Place) -> None:
        place.history.renew("n", "i", b"state", ANY)
        [member] = place.history.members({})
        assert (member.node, member.instance, member.alive, member.state) == (
            "n",
            "i",
            True,
            b"state",
        )

        place.clock.now_ms += 30 * SECOND
        [member] = place.history.members({})
        assert not member.alive

    def test_a_state_that_is_known_is_not_read_again(self, place: Place) -> None:
        place.history.renew("n", "i", b"state", ANY)
        known = {"i": place.clock.now_ms}

        assert [m.state for m in place.history.members(known)] == [None]
        place.clock.now_ms += SECOND
        place.history.renew("n", "i", b"newer", ANY)
        assert [m.state for m in place.history.members(known)] == [b"newer"]

    def test_who_renews_is_told_of_others_with_its_name(self, place: Place) -> None:
        assert place.history.renew("n", "one", b"", ANY) == []
        assert [o.instance for o in place.history.renew("n", "other", b"", ANY)] == ["one"]
        assert place.history.renew("another", "third", b"", ANY) == []

    # ------------------------------------------------------------ reading

    def test_rows_are_chosen_by_what_they_are_about(self, place: Place) -> None:
        step, error = SEND._replace(step="parse"), SEND._replace(error="ValueError")
        other = Key("fetcher", "fetch")
        for key in (SEND, step, error, other):
            place.add(TODAY, MS, key=key)
        place.add(TODAY, MS, node="m")

        assert place.read().keys() == {SEND, other}
        assert place.read(worker="mailer").keys() == {SEND}
        assert place.read(pipeline="fetch").keys() == {other}
        assert place.read(steps=True, runs=False).keys() == {step}
        assert place.read(errors=True, worker="mailer").keys() == {SEND, error}
        assert place.total(node="m").runs == 1
        assert place.total(total=True).runs == 3, "steps and errors tell of the same runs"

    def test_a_range_holds_the_windows_that_begin_in_it(self, place: Place) -> None:
        for second in (0, 10, 20, 30):
            place.add(TODAY + second * SECOND, MS)

        times = (TODAY + 10 * SECOND, TODAY + 30 * SECOND)
        assert place.starts(0, times) == [TODAY + 10 * SECOND, TODAY + 20 * SECOND]

    def test_of_an_error_type_the_newest_text_is_kept(self, place: Place) -> None:
        key = SEND._replace(error="ValueError")
        for number, at_ms in enumerate((5, 9, 7), start=1):
            text = ErrorText(at_ms, f"at {at_ms}", "Traceback ...")
            publication = a_publication(number, {TODAY: {key: runs(MS)}})
            publication.errors[key] = text
            place.history.apply("n", "i", [publication], ANY)

        texts = place.history.error_texts(Wanted([], pipeline="send", errors=True))
        assert texts == {("n", key): ErrorText(9, "at 9", "Traceback ...")}

    # ------------------------------------------------------------ the whole of it

    def test_percentiles_of_a_range_are_those_of_a_plain_sort(self, place: Place) -> None:
        """Across a restart, a roll-up, a late batch and a merge of three nodes."""
        chance = random.Random(11)
        durations = [int(chance.lognormvariate(11, 1.5)) + 50 for _ in range(3_000)]
        late = durations[::10]
        for number, duration in enumerate(d for i, d in enumerate(durations) if i % 10):
            if number % 30 == 0:
                at = TODAY + number // 30 * 2 * MINUTE
                batch: list[int] = []
            batch.append(duration)
            if len(batch) == 30:
                place.add(at, *batch, node=chance.choice("abc"))
                place.clock.now_ms = at + MINUTE
        for node in "abc":
            place.maintain(node)
        place.restart()
        for at, duration in enumerate(late):
            place.add(TODAY + at % 90 * 2 * MINUTE, duration, node=chance.choice("abc"))

        exact = sorted(durations)
        for level in range(len(LEVELS)):
            found = place.total(level, total=True)
            assert found.runs == len(durations)
            for q in (0.5, 0.95, 0.99):
                [value] = found.histogram.quantiles([q], found.min_us, found.max_us)
                assert value == pytest.approx(exact[int(q * len(exact))], rel=0.011)


class TestSqlite(HistoryContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        place = Place(lambda: engines.sqlite_file(tmp_path / "state" / "history.sqlite"))
        yield place
        place.history.close()

    def test_nothing_is_written_while_nothing_happens(self, place: Place, tmp_path: Path) -> None:
        place.add(TODAY, MS)
        for _ in range(3):
            place.clock.now_ms += 10 * MINUTE
            place.maintain()
        # Its index of the log apart, which is memory by another name.
        files = [path for path in (tmp_path / "state").iterdir() if not path.match("*-shm")]
        before = [path.read_bytes() for path in files]
        for _ in range(20):
            place.clock.now_ms += 10 * MINUTE
            place.maintain()

        assert [path.read_bytes() for path in files] == before


class TestMemory(HistoryContract):
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        database = engines.sqlite_memory()
        place = Place(lambda: database)
        place.restart = lambda: None  # type: ignore[method-assign]  # it ends with the process
        yield place
        place.history.close()


class TestPostgres(HistoryContract):
    @pytest.fixture
    def place(self, postgres_url: str) -> Iterator[Place]:
        place = Place(lambda: engines.postgres(engines.checked_url(postgres_url)))
        yield place
        place.history.close()


def _stats(*durations_us: int, failed: int) -> Stats:
    stats = merged([runs(*durations_us)])
    stats.failed = failed
    return stats
