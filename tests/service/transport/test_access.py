"""Who may ask over HTTP, as a table."""

from __future__ import annotations

import pytest

from orbit_service.transport.access import Access

HOSTS = frozenset({"metrics.example", "[fd00::1]"})
ORIGINS = frozenset({"https://dash.example", "http://localhost:3000"})


@pytest.mark.parametrize(
    ("local", "hosts", "host", "ours"),
    [
        (True, frozenset(), "localhost:8790", True),
        (True, frozenset(), "LocalHost", True),
        (True, frozenset(), "127.0.0.1", True),
        (True, frozenset(), "[::1]:8790", True),
        (True, frozenset(), "localhost.:8790", True),
        (True, frozenset(), "metrics.example", False),
        (True, frozenset(), "127.0.0.1.evil.example", False),
        (True, frozenset(), "evil.example:127.0.0.1", False),
        (True, frozenset(), "", False),
        (True, HOSTS, "metrics.example:443", True),
        (True, HOSTS, "localhost", True),
        (True, HOSTS, "evil.example", False),
        (True, frozenset("*"), "evil.example", True),
        (False, frozenset(), "10.0.0.7:8790", True),
        (False, frozenset(), "", True),
        (False, HOSTS, "10.0.0.7:8790", False),
        (False, HOSTS, "[fd00::1]:8790", True),
    ],
)
def test_a_host_is_a_name_of_ours(local, hosts, host, ours):
    assert Access(local, "a token", hosts).is_called(host) is ours


@pytest.mark.parametrize(
    ("origin", "host", "may"),
    [
        ("http://127.0.0.1:8790", "127.0.0.1:8790", True),
        ("https://metrics.example", "metrics.example", True),
        ("http://127.0.0.1:3000", "127.0.0.1:8790", False),
        ("https://dash.example", "127.0.0.1:8790", True),
        ("http://dash.example", "127.0.0.1:8790", False),
        ("https://dash.example.evil", "127.0.0.1:8790", False),
        ("http://localhost:3000", "localhost:8790", True),
        ("null", "127.0.0.1:8790", False),
        ("", "127.0.0.1:8790", False),
    ],
)
def test_a_page_may_ask_if_it_is_ours_or_named(origin, host, may):
    assert Access(origins=ORIGINS).admits(origin, host) is may


def test_any_page_may_ask_where_all_are_let_in():
    everybody = Access(token="correct-horse", origins=frozenset("*"))
    assert everybody.cors("https://any.example")["Access-Control-Allow-Origin"] == (
        "https://any.example"
    )


def test_caches_are_told_that_answers_differ_by_origin_where_they_do():
    assert Access().cors("https://dash.example") == {}
    assert Access(origins=ORIGINS).cors(None) == {"Vary": "Origin"}
