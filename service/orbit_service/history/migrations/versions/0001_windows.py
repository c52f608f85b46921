"""Windows of three levels, their series, and who writes them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LEVELS = ("10s", "1m", "1h")
NUMBERS = (
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
)


def upgrade() -> None:
    id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

    def number(name: str) -> sa.Column[int]:
        return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")

    op.create_table(
        "node",
        sa.Column("id", id, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, unique=True),
        number("newest"),
        number("horizon"),
        number("maintained_at"),
        number("rolled_1m"),
        number("rolled_1h"),
    )
    op.create_table(
        "instance",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("node", id, sa.ForeignKey("node.id"), nullable=False),
        number("taken"),
        sa.Column("token", sa.String(32), nullable=False, server_default=""),
        sa.Column("process", sa.String(32), nullable=False, server_default=""),
        number("at"),
        number("lease_until"),
        sa.Column("state", sa.LargeBinary),
    )
    op.create_table(
        "series",
        sa.Column("id", id, primary_key=True),
        sa.Column("node", id, sa.ForeignKey("node.id"), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        *(
            sa.Column(name, sa.String(200), nullable=False, server_default="")
            for name in ("worker", "pipeline", "step", "version", "error")
        ),
        sa.UniqueConstraint("node", "digest"),
    )
    for level in LEVELS:
        op.create_table(
            f"window_{level}",
            sa.Column("series", id, sa.ForeignKey("series.id"), primary_key=True),
            sa.Column("start", sa.BigInteger, primary_key=True),
            *map(number, NUMBERS),
            sa.Column("first_run_ms", sa.BigInteger),
            sa.Column("last_run_ms", sa.BigInteger),
            sa.Column("last_success_ms", sa.BigInteger),
            sa.Column("histogram", sa.LargeBinary, nullable=False),
            sqlite_with_rowid=False,
        )
    op.create_table(
        "error_text",
        sa.Column("series", id, sa.ForeignKey("series.id"), primary_key=True),
        number("at_ms"),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("traceback", sa.Text),
    )
