"""The real @trpc/client, 10 and 11, against a real service: as with a router of its own."""

from __future__ import annotations

from typing import Any

import pytest

from builders import T0

WORKER_PAGE = ["worker.metrics"], ["worker.stats"], ["worker.health"], ["worker.recentRuns"]
STARTED = "2023-11-14T22:13:20.000Z"  # T0


class Asked:
    """What calls that were made at once came to, and by which requests."""

    def __init__(self, printed: dict[str, Any]) -> None:
        self.outcomes: list[dict[str, Any]] = printed["outcomes"]
        self.requests = [(request["method"], request["status"]) for request in printed["requests"]]

    @property
    def results(self) -> list[Any]:
        assert all("data" in outcome for outcome in self.outcomes), self.outcomes
        return [outcome["data"] for outcome in self.outcomes]

    @property
    def result(self) -> Any:
        (result,) = self.results
        return result

    @property
    def error(self) -> dict[str, Any]:
        (outcome,) = self.outcomes
        return outcome["error"]


@pytest.fixture(params=["10", "11"])
def version(request):
    return request.param


@pytest.fixture(params=["plain", "superjson"])
def form(request):
    return request.param


@pytest.fixture
def trpc(node_of, version, form, service, token, recorded):
    """Asks by the client of this version in this form."""
    node = node_of(version)

    def ask(
        *calls: list[Any], link: str = "batch", prefix: str = "/trpc", token: str = token
    ) -> Asked:
        url = f"http://{service.service.http_address}{prefix}"
        return Asked(node.ask(link, form, url, token, calls))

    return ask


# ---------------------------------------------------------------- what is answered


def test_a_query_without_input_is_answered(trpc):
    asked = trpc(["worker.metrics"], link="single")

    assert (asked.result["totalRuns"], asked.result["errorRate"]) == (2, 50.0)
    assert asked.requests == [("GET", 200)]


@pytest.mark.parametrize("prefix", ["/trpc", "/api/trpc", "/trpc/"])
def test_a_query_with_input_is_answered_under_either_prefix(trpc, prefix):
    asked = trpc(["worker.recentRuns", {"limit": 1}], link="single", prefix=prefix)

    assert [run["status"] for run in asked.result] == ["failed"]


@pytest.mark.parametrize("link", ["batch", "stream"])
def test_the_worker_page_is_answered_in_one_request(trpc, link):
    asked = trpc(*WORKER_PAGE, link=link)

    metrics, stats, health, runs = asked.results
    assert metrics["totalRuns"] == stats["runsLast24Hours"] == len(runs) == 2
    assert health["status"] in ("healthy", "warning", "error")
    assert asked.requests == [("GET", 200)]


def test_times_are_dates_under_superjson_and_epoch_ms_else(trpc, form):
    (metrics, runs) = trpc(["worker.metrics"], ["worker.recentRuns"]).results

    now = {"date": STARTED} if form == "superjson" else T0
    assert metrics["timestamp"] == now
    assert [run["finishedAt"] for run in runs] == [now, now]
    assert metrics["lastLife"] is None


def test_a_stream_has_dates_as_well(trpc, form):
    (metrics, runs) = trpc(["worker.metrics"], ["worker.recentRuns"], link="stream").results

    now = {"date": STARTED} if form == "superjson" else T0
    assert [metrics["timestamp"], runs[1]["finishedAt"]] == [now, now]


def test_what_is_left_out_of_an_input_has_its_default(trpc):
    asked = trpc(
        ["worker.recentRuns", {"limit": "undefined", "status": "failed"}],
        ["worker.recentRuns", "undefined"],
    )

    assert [len(runs) for runs in asked.results] == [1, 2]


@pytest.mark.parametrize("form", ["superjson"])
def test_a_date_may_be_asked_by(trpc):
    asked = trpc(["pipelines.list", {"from": {"date": "2023-11-14T00:00:00Z"}}])

    assert asked.result["from"] == {"date": "2023-11-14T00:00:00.000Z"}


@pytest.mark.parametrize("version", ["11"])  # 10 has neither
@pytest.mark.parametrize(
    ("link", "method"), [("post", "POST"), ("single post", "POST"), ("slashes", "GET")]
)
def test_the_ways_of_a_newer_client_are_understood(trpc, link, method):
    asked = trpc(["worker.recentRuns", {"limit": 1}], link=link)

    assert len(asked.result) == 1
    assert asked.requests == [(method, 200)]


# ---------------------------------------------------------------- what is not


@pytest.mark.parametrize("link", ["single", "batch", "stream"])
def test_an_unknown_procedure_is_not_found(trpc, link):
    error = trpc(["worker.fire"], link=link).error

    assert error["message"] == 'No procedure found on path "worker.fire"'
    assert error["code"] == -32004
    assert error["data"] == {"code": "NOT_FOUND", "httpStatus": 404, "path": "worker.fire"}


@pytest.mark.parametrize("link", ["single", "batch", "stream"])
def test_an_input_that_is_wrong_is_a_bad_request_with_its_problems(trpc, link):
    error = trpc(["worker.recentRuns", {"limit": 0}], link=link).error

    problem = "limit: Input should be greater than or equal to 1"
    assert error["message"] == f"Invalid params: {problem}"
    assert error["code"] == -32600
    assert error["data"] == {
        "code": "BAD_REQUEST",
        "httpStatus": 400,
        "path": "worker.recentRuns",
        "problems": [problem],
    }


def test_one_that_fails_leaves_the_others_of_its_batch_alone(trpc):
    asked = trpc(["worker.metrics"], ["worker.fire"])

    assert asked.outcomes[0]["data"]["totalRuns"] == 2
    assert asked.outcomes[1]["error"]["code"] == -32004
    assert asked.requests == [("GET", 207)]


@pytest.mark.parametrize("link", ["single", "batch"])
def test_without_the_token_an_error_says_what_to_send(trpc, link):
    error = trpc(["worker.metrics"], link=link, token="").error

    assert "ORBIT_TOKEN" in error["message"]
    assert error["data"] == {"code": "UNAUTHORIZED", "httpStatus": 401}


@pytest.mark.parametrize("form", ["plain"])  # of superjson's longer inputs the address is too long
def test_a_batch_over_the_bound_is_an_error_of_each(trpc):
    asked = trpc(*[["worker.stats"]] * 101)

    assert {outcome["error"]["data"]["code"] for outcome in asked.outcomes} == {"PAYLOAD_TOO_LARGE"}
    assert asked.requests == [("GET", 413)]


@pytest.mark.parametrize("version", ["11"])  # 10 has no POST, and its stream reads no refusal
@pytest.mark.parametrize("link", ["post", "stream"])
def test_without_the_token_the_other_links_are_told_so_too(trpc, link):
    assert trpc(["worker.metrics"], link=link, token="").error["code"] == -32001
