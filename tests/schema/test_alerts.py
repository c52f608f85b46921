"""What the contract of alerts refuses, so that nothing else has to."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from orbit_rpc_schema.alerts import SilenceParams


@pytest.mark.parametrize(
    "matchers",
    [
        pytest.param({"pipeline": "\ud800"}, id="which no disk takes"),
        pytest.param({"\ud800": "send"}, id="a name that none takes"),
        pytest.param({"pipeline": "x" * 601}, id="longer than any pattern"),
        pytest.param({"pipeline": ""}, id="empty"),
        pytest.param({}, id="none"),
    ],
)
def test_a_matcher_is_a_name_and_a_pattern_that_can_be_kept(matchers):
    with pytest.raises(ValidationError):
        SilenceParams(matchers=matchers, reason="known", who="ann")
