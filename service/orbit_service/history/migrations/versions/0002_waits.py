"""Windows hold how long their runs waited, as a histogram; what is there already has none."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

LEVELS = ("10s", "1m", "1h")


def upgrade() -> None:
    for level in LEVELS:
        # Without a default: PostgreSQL then touches no row, and services of the release
        # before, which do not know the column, go on inserting.
        op.add_column(f"window_{level}", sa.Column("waits", sa.LargeBinary))
