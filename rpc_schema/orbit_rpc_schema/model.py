"""What all models of the contract share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from orbit_rpc_schema.wire import MAX_NAME

Milliseconds = Annotated[int, Field(ge=0, description="whole milliseconds")]
EpochMs = Annotated[int, Field(description="epoch milliseconds, UTC")]
Percent = Annotated[float, Field(ge=0, le=100, description="0 to 100")]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Status = Literal["pending", "running", "success", "failed"]


class Model(BaseModel):
    """camelCase in JSON, by either name in Python, nothing unknown."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class NoParams(Model):
    pass


Moment = Annotated[
    int | str,
    Field(description='epoch ms, a time ago ("-1h"), "now", or ISO 8601 with an offset'),
]
Duration = Annotated[
    int | str, Field(description='milliseconds, or "30s", "5m", "24h", "7d", "2w"')
]
