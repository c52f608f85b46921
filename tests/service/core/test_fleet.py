"""The workers of many nodes, as these last told."""

from __future__ import annotations

import pytest

from builders import MS, T0, a_batch, a_record, a_session
from orbit_rpc_schema.procedures import Selection
from orbit_service.core import snapshot
from orbit_service.core.collector import Collector
from orbit_service.core.fleet import Fleet, NodeLives
from orbit_service.history.port import HistoryFailed, Member
from orbit_service.history.presence import dump, load


def a_node(name: str, *durations_us: int, worker: str = "mailer") -> Collector:
    """A node with one worker that has run so much."""
    collector = Collector(name)
    session = a_session(collector, worker=worker, slots=4, version="1.1")
    collector.record(session, a_record(1, a_batch(*durations_us)), T0)
    return collector


def told(collector: Collector, *, alive: bool = True) -> NodeLives:
    """What the fleet knows of a node."""
    lives = load(Member(collector.node, f"i{collector.node}", T0, alive, dump(collector)))
    return lives if alive else lives.lost()


def a_fleet(*nodes: NodeLives, here: Collector | None = None) -> Fleet:
    return Fleet(here, {f"i{node.name}": node for node in nodes})


def test_what_a_node_tells_is_what_it_answers_itself() -> None:
    node = a_node("n", MS, 5 * MS)
    fleet = a_fleet(told(node))

    assert snapshot.metrics(fleet, Selection(), T0) == snapshot.metrics(node, Selection(), T0)
    assert snapshot.worker_list(fleet) == snapshot.worker_list(node)


def test_a_hub_answers_what_three_answer_together() -> None:
    nodes = [a_node("a", MS), a_node("b", 2 * MS, 3 * MS), a_node("c", 9 * MS, worker="other")]
    together = Collector("together")
    for n, durations in enumerate(([MS], [2 * MS, 3 * MS], [9 * MS])):
        session = a_session(together, str(n), worker=str(n))
        together.record(session, a_record(1, a_batch(*durations)), T0)
    answer = snapshot.metrics(a_fleet(*map(told, nodes)), Selection(), T0)

    assert answer == snapshot.metrics(together, Selection(), T0)
    assert answer.workers_connected == 3


def test_one_name_at_two_nodes_is_two_workers() -> None:
    fleet = a_fleet(told(a_node("a", MS)), told(a_node("b", MS, MS)))

    assert [(w.name, w.node) for w in snapshot.worker_list(fleet)] == [
        ("mailer", "a"),
        ("mailer", "b"),
    ]
    assert snapshot.metrics(fleet, Selection(worker="mailer"), T0).total_runs == 3


def test_with_no_node_everything_is_zero() -> None:
    answer = snapshot.metrics(Fleet(), Selection(), T0)

    assert (answer.total_runs, answer.connected, answer.uptime) == (0, False, "0s")


def test_the_workers_of_a_node_that_is_lost_are_lost_with_it() -> None:
    fleet = a_fleet(told(a_node("n", MS, MS), alive=False))
    [worker] = snapshot.worker_list(fleet)

    assert not worker.connected
    assert worker.last_life is not None
    assert (worker.last_life.reason, worker.last_life.total_runs) == ("node lost", 2)
    assert snapshot.metrics(fleet, Selection(), T0).total_runs == 0


def test_a_lost_node_may_come_back() -> None:
    lives = told(a_node("n", MS))
    lives.lost()

    assert lives.workers[0].life is not None


def test_what_a_pipeline_is_known_by_is_told_too() -> None:
    fleet = a_fleet(told(a_node("n", MS)))

    assert snapshot.metrics(fleet, Selection(pipeline="send"), T0).known
    assert not snapshot.metrics(fleet, Selection(pipeline="unheard of"), T0).known


def test_the_fleet_of_a_node_has_the_node_itself_in_it() -> None:
    here = a_node("here", MS)
    found = a_fleet(told(a_node("there", MS, MS)), here=here).metrics(T0)

    assert [(n.name, n.alive, n.total_runs) for n in found.nodes] == [
        ("here", True, 1),
        ("there", True, 2),
    ]
    assert (found.nodes_alive, found.total.total_runs) == (2, 3)


@pytest.mark.parametrize("state", [None, b"", b"nonsense"])
def test_what_cannot_be_read_is_an_error(state: bytes | None) -> None:
    with pytest.raises(HistoryFailed, match="node n says cannot be read"):
        load(Member("n", "i", T0, True, state))
