"""What to do with an exception that nobody expected: log it, and tell an id for it."""

from __future__ import annotations

from uuid import uuid4

from loguru import logger

from orbit_rpc_schema.errors import InternalError


def incident(method: str, error: Exception) -> InternalError:
    """Log what happened under an id; the error for the caller holds that id and no text."""
    id = uuid4().hex[:12]
    logger.opt(exception=error).error("{} failed; incident {}", method, id)
    return InternalError(incident=id)
