"""
The tables of the history; `migrations/` makes them.

    node          a service by name, and how far its windows are rolled up
    instance      a state directory of a node: its publications, its lease, its lives
    series        what a window's row is about; empty strings where it is not
    window_*      runs by series and start, one table for each level
    error_text    the newest error of a series that is an error type

Starts are epoch seconds; the other times epoch milliseconds, durations whole
microseconds. A row of 60 buckets takes some 200 bytes in SQLite and 320 in PostgreSQL, and
100 to 360 more where its runs tell how long they waited.
"""

from __future__ import annotations

from hashlib import sha256

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from orbit_rpc_schema.wire import MAX_NAME
from orbit_service.core.outbox import Key
from orbit_service.core.rollup import LEVELS

metadata = MetaData()

# SQLite numbers rows by itself for INTEGER alone.
_id = BigInteger().with_variant(Integer, "sqlite")


def _number(name: str, default: str = "0") -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=default)


node = Table(
    "node",
    metadata,
    Column("id", _id, primary_key=True),
    Column("name", String(MAX_NAME), nullable=False, unique=True),
    _number("newest"),  # start of its newest window
    _number("horizon"),  # where time is for its expiry
    _number("maintained_at"),  # ms
    *(_number(f"rolled_{level.name}") for level in LEVELS[1:]),  # every start before it is
)

instance = Table(
    "instance",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("node", _id, ForeignKey("node.id"), nullable=False),
    _number("taken"),  # publications
    Column("token", String(32), nullable=False, server_default=""),  # of the newest of them
    Column("process", String(32), nullable=False, server_default=""),  # which wrote last
    _number("at"),  # ms
    _number("lease_until"),  # ms
    Column("state", LargeBinary),
)

series = Table(
    "series",
    metadata,
    Column("id", _id, primary_key=True),
    Column("node", _id, ForeignKey("node.id"), nullable=False),
    Column("digest", LargeBinary, nullable=False),
    *(
        Column(name, String(MAX_NAME), nullable=False, server_default="")
        for name in ("worker", "pipeline", "step", "version", "error")
    ),
    # The names themselves may be longer than an index of PostgreSQL takes.
    UniqueConstraint("node", "digest"),
)


def digest_of(key: Key) -> bytes:
    """What stands for the five names of a series where one is looked for."""
    # No name has a control character.
    return sha256("\0".join(key).encode()).digest()[:16]


windows = [
    Table(
        f"window_{level.name}",
        metadata,
        Column("series", _id, ForeignKey("series.id"), primary_key=True),
        Column("start", BigInteger, primary_key=True),
        *map(
            _number,
            (
                "runs",
                "failed",
                "attempts",
                "retries",
                "timed",
                "total_us",
                "min_us",
                "max_us",
                "waited",
                "total_wait_us",
                "max_wait_us",
            ),
        ),
        Column("first_run_ms", BigInteger),
        Column("last_run_ms", BigInteger),
        Column("last_success_ms", BigInteger),
        Column("histogram", LargeBinary, nullable=False),
        Column("waits", LargeBinary),
        # Rows of a series lie side by side, and need no second index.
        sqlite_with_rowid=False,
    )
    for level in LEVELS
]

error_text = Table(
    "error_text",
    metadata,
    Column("series", _id, ForeignKey("series.id"), primary_key=True),
    _number("at_ms"),
    Column("message", Text, nullable=False),
    Column("traceback", Text),
)
