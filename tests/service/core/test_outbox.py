"""Windows that are open, and publications that wait: nothing twice, nothing forgotten."""

from __future__ import annotations

import pytest

from builders import HOUR, MINUTE, MS, SECOND, T0
from orbit_service.core import outbox as bounds
from orbit_service.core.outbox import EVERYTHING, ErrorText, Key, Outbox, sum_of
from orbit_service.core.stats import Stats, merged

SEND = Key("mailer", "send")
ROW = 508  # bytes of a publication of one run, as they are counted


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


def add(outbox: Outbox, at_ms: int, *durations_us: int, key: Key = SEND) -> None:
    outbox.stats(key, at_ms).add_runs(durations_us, 0, at_ms)


def close(outbox: Outbox, now_ms: int) -> None:
    outbox.close("instance", outbox.over(now_ms))


def fill(outbox: Outbox, windows: int, first_ms: int = T0) -> None:
    """One publication for each of so many windows, of one run each."""
    for number in range(windows):
        at = first_ms + number * 10 * SECOND
        add(outbox, at, MS)
        close(outbox, at + 12 * SECOND)


def on_disk(outbox: Outbox) -> None:
    outbox.committed(outbox.marks())


def starts(outbox: Outbox) -> list[int]:
    return [start for publication in outbox.waiting for start in publication.windows]


# ---------------------------------------------------------------- closing


def test_both_histograms_of_a_row_have_a_size(outbox: Outbox) -> None:
    add(outbox, T0, MS)
    outbox.stats(SEND, T0).add_waits([MS])
    close(outbox, T0 + 12 * SECOND)

    assert outbox.size == ROW + 8


def test_a_window_is_over_two_seconds_after_its_end(outbox: Outbox) -> None:
    add(outbox, T0 + 9_999, MS)

    assert not outbox.over(T0 + 12 * SECOND - 1)
    assert outbox.over(T0 + 12 * SECOND)


def test_a_window_that_a_clock_opened_far_ahead_is_over(outbox: Outbox) -> None:
    add(outbox, T0, MS)

    assert not outbox.over(T0 - MINUTE)
    assert outbox.over(T0 - MINUTE - 10 * SECOND)


def test_only_what_is_over_is_closed(outbox: Outbox) -> None:
    add(outbox, T0, MS)
    add(outbox, T0 + 10 * SECOND, MS)
    close(outbox, T0 + 12 * SECOND)

    assert starts(outbox) == [T0]
    assert list(outbox.windows) == [T0 + 10 * SECOND]


def test_what_comes_late_opens_its_window_anew(outbox: Outbox) -> None:
    fill(outbox, 2)
    add(outbox, T0, 5 * MS)
    close(outbox, T0 + MINUTE)

    assert starts(outbox) == [T0, T0 + 10 * SECOND, T0]
    assert [p.number for p in outbox.waiting] == [1, 2, 3]


def test_the_instance_stays_what_it_was_first(outbox: Outbox) -> None:
    outbox.close("first", [])
    outbox.close("second", [])

    assert outbox.instance == "first"


# ---------------------------------------------------------------- sending


def test_nothing_is_sent_that_is_not_on_the_disk(outbox: Outbox) -> None:
    fill(outbox, 1)
    assert outbox.head() == []

    on_disk(outbox)
    assert [p.number for p in outbox.head()] == [1]


def test_what_was_taken_is_forgotten(outbox: Outbox) -> None:
    fill(outbox, 3)
    outbox.take(2)
    on_disk(outbox)

    assert [p.number for p in outbox.head()] == [3]
    assert outbox.size == outbox.waiting[0].size


def test_nothing_is_sent_while_the_disk_does_not_know_what_was_taken(outbox: Outbox) -> None:
    fill(outbox, 3)
    on_disk(outbox)
    outbox.take(2)

    assert outbox.head() == []


def test_so_many_are_sent_together(outbox: Outbox) -> None:
    fill(outbox, bounds.HEAD + 5)
    on_disk(outbox)

    assert [p.number for p in outbox.head()] == list(range(1, bounds.HEAD + 1))


# ---------------------------------------------------------------- the bound


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for two hundred windows or so."""
    monkeypatch.setattr(bounds, "MAX_BYTES", 200 * ROW)


def test_over_the_bound_windows_become_coarser_and_lose_no_run(small: None, outbox: Outbox) -> None:
    fill(outbox, 500)

    assert outbox.size <= bounds.MAX_BYTES
    assert merged(sum_of(w) for p in outbox.waiting for w in p.windows.values()).runs == 500
    assert outbox.dropped == 0


def test_a_coarse_window_stands_where_its_minute_begins(small: None, outbox: Outbox) -> None:
    fill(outbox, 500)

    coarse = [at for p in outbox.waiting[bounds.HEAD :][:10] for at in p.windows]
    assert len(coarse) == 10
    assert all(at % MINUTE == 0 for at in coarse[1:])


def test_what_may_have_been_sent_stays_as_it_is(small: None, outbox: Outbox) -> None:
    fill(outbox, 500)

    head = outbox.waiting[: bounds.HEAD]
    assert [p.number for p in head] == list(range(1, bounds.HEAD + 1))
    assert all(list(p.windows) == [T0 + i * 10 * SECOND] for i, p in enumerate(head))


def test_a_head_of_large_publications_is_short(
    monkeypatch: pytest.MonkeyPatch, outbox: Outbox
) -> None:
    """Else what may not become coarser would be over the bound by itself."""
    monkeypatch.setattr(bounds, "HEAD_BYTES", 3 * ROW)
    fill(outbox, 10)
    on_disk(outbox)
    assert [p.number for p in outbox.head()] == [1, 2, 3]

    monkeypatch.setattr(bounds, "HEAD_BYTES", 1)
    assert [p.number for p in outbox.head()] == [1]


def test_what_finds_no_memory_as_hours_either_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, outbox: Outbox
) -> None:
    monkeypatch.setattr(bounds, "HEAD_BYTES", 3 * ROW)
    monkeypatch.setattr(bounds, "MAX_BYTES", 8 * ROW)
    for hour in range(20):
        fill(outbox, 3, T0 + hour * HOUR)

    held = merged(sum_of(w) for p in outbox.waiting for w in p.windows.values()).runs
    assert outbox.size <= bounds.MAX_BYTES
    assert outbox.dropped > 0
    assert held + outbox.dropped == 60, "runs, whatever publications they are in"


# ---------------------------------------------------------------- sums


def test_rows_of_steps_and_errors_are_not_runs() -> None:
    window = {SEND: Stats(runs=3), SEND._replace(step="parse"): Stats(runs=3)}
    window[SEND._replace(error="ValueError")] = Stats(runs=1, failed=1)

    assert sum_of(window).runs == 3


def test_rows_that_are_given_out_do_not_change(outbox: Outbox) -> None:
    add(outbox, T0, MS)
    noted = outbox.unpublished(lambda _start, _key: True)
    add(outbox, T0, MS)
    close(outbox, T0 + MINUTE)

    assert [(start, key, stats.runs) for start, key, stats in noted.after(0)] == [(T0, SEND, 1)]
    assert noted.number == 0


def test_what_a_history_has_is_not_given_to_it_again(outbox: Outbox) -> None:
    fill(outbox, 3)
    noted = outbox.unpublished(lambda start, _key: start > T0)

    assert [start for start, _key, _stats in noted.after(0)] == [T0 + 10_000, T0 + 20_000]
    assert [start for start, _key, _stats in noted.after(2)] == [T0 + 20_000]


def test_a_text_waits_for_the_window_of_its_error(outbox: Outbox) -> None:
    key = SEND._replace(error="ValueError")
    add(outbox, T0, MS)
    add(outbox, T0 + 10 * SECOND, MS, key=key)
    outbox.add_error(key, ErrorText(T0 + 10 * SECOND, "no", None))
    close(outbox, T0 + 12 * SECOND)
    close(outbox, T0 + 22 * SECOND)

    assert [list(p.errors) for p in outbox.waiting] == [[], [key]]


def test_of_two_texts_the_newer_one_stays_in_whatever_order(outbox: Outbox) -> None:
    for at_ms in (5, 9, 7):
        outbox.add_error(SEND, ErrorText(at_ms, f"at {at_ms}", None))

    assert outbox.errors[SEND].message == "at 9"


def test_who_begins_anew_keeps_all_that_waits_and_sends_nothing_before_the_disk_knows(
    outbox: Outbox,
) -> None:
    fill(outbox, 3)
    on_disk(outbox)
    before = outbox.marks()
    outbox.begin_anew("another")
    outbox.committed(before)
    assert outbox.head() == [], "the word of what was written before it"

    on_disk(outbox)
    assert (outbox.instance, [p.number for p in outbox.head()]) == ("another", [1, 2, 3])


def test_a_token_is_known_while_its_publication_waits_and_when_it_is_the_newest_taken(
    outbox: Outbox,
) -> None:
    for token in ("one", "two", "three"):
        outbox.close("instance", [], token)
    outbox.take(2)

    assert outbox.tokens() == {"two", "three"}


def test_the_newest_error_of_a_type_is_kept() -> None:
    key = SEND._replace(error="ValueError")
    texts = {key: ErrorText(5, "older", None)}
    bounds.add_errors(texts, {key: ErrorText(4, "oldest", None)})
    bounds.add_errors(texts, {key: ErrorText(6, "newest", None)})

    assert texts == {key: ErrorText(6, "newest", None)}


def test_everything_is_the_key_of_nothing_in_particular() -> None:
    assert EVERYTHING == ("", "", "", "", "")
