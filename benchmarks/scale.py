"""How much is measured: a look in two minutes, or the table."""

from __future__ import annotations

from dataclasses import dataclass

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


@dataclass(frozen=True)
class Scale:
    """Sizes of the figures; seconds are those of one measurement in one round."""

    name: str
    rounds: int
    settle_seconds: float  # after the start of a service: what it puts off is over
    calls: int  # of record_run
    rates: tuple[int, ...]  # runs a second of one worker
    paced_seconds: float
    quiet_rounds: int
    quiet_seconds: float  # for what is hardly to be measured; a heartbeat falls into it
    flood_runs: int
    message_seconds: float
    message_workers: int  # that send a run a message together; 0 leaves it out
    asked_seconds: float  # of requests over HTTP
    visible: int  # runs that somebody waits to see
    window_seconds: float  # until memory is looked at; with 13, a window is closed and stored
    history_kept_ms: tuple[int, int, int]  # windows of 10 s, 1 min and 1 h
    history_rounds: int
    scrapes: int
    later: tuple[int, ...]  # so many runs later
    starts: int
    rule_seconds: float  # of looks at alert rules; 0 leaves them out


QUICK = Scale(
    name="quick",
    rounds=2,
    settle_seconds=1.0,
    calls=20_000,
    rates=(10_000,),
    paced_seconds=0.6,
    quiet_rounds=1,
    quiet_seconds=10.5,
    flood_runs=200_000,
    message_seconds=1.0,
    message_workers=0,
    asked_seconds=0.5,
    visible=16,
    window_seconds=3.0,
    history_kept_ms=(HOUR, DAY, 31 * DAY),
    history_rounds=4,
    scrapes=2,
    later=(100_000, 1_000_000),
    starts=2,
    rule_seconds=0.0,
)
FULL = Scale(
    name="full",
    rounds=5,
    settle_seconds=5.0,
    calls=200_000,
    rates=(10_000, 100_000),
    paced_seconds=4.0,
    quiet_rounds=5,
    quiet_seconds=15.0,
    flood_runs=1_000_000,
    message_seconds=5.0,
    message_workers=50,
    asked_seconds=3.0,
    visible=400,
    window_seconds=13.0,
    history_kept_ms=(6 * HOUR, 7 * DAY, 400 * DAY),
    history_rounds=20,
    scrapes=20,
    later=(1_000_000, 10_000_000, 100_000_000),
    starts=9,
    rule_seconds=60.0,
)
SCALES = {scale.name: scale for scale in (QUICK, FULL)}
