"""
The tables of alerts: of a node in a file beside its state, of hubs in the history they share.

    alert_document   what is known of alerts, by kind: states, mailboxes, silences, ...
    alert_audit      what happened, one row each
    alert_outbox     messages that have not been delivered
    alert_lease      which hub evaluates
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

_id = BigInteger().with_variant(Integer, "sqlite")

document = Table(
    "alert_document",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

audit = Table(
    "alert_audit",
    metadata,
    Column("id", _id, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("rule", Text, nullable=False, server_default=""),
    Column("alert", String(64), nullable=False, server_default=""),
    Column("body", LargeBinary, nullable=False),
    Index("alert_audit_at", "at_ms"),
)

outbox = Table(
    "alert_outbox",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

lease = Table(
    "alert_lease",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("until_ms", BigInteger, nullable=False),
)
