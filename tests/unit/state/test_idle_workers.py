"""An idle worker that is asked to end gets nothing to do before it has said no; one that is being killed gets
nothing at all.
"""

from __future__ import annotations

from framework._base.resources import UNIT
from framework._state.node import NodeState, Worker


def test_a_worker_that_may_be_ending_is_not_used() -> None:
    state = NodeState({"CPU": 4 * UNIT})
    worker = Worker(b"w", 1, "", (), None)
    state.prestart(1)
    state.worker_up(worker, 0.0)
    worker.asked_to_end = True
    assert [command[0] for command in state.place_actor(b"a", {}, (), b"job")] == ["start"]
    worker.asked_to_end = False
    [(word, actor, allocation)] = state.place_actor(b"b", {}, (), b"job")
    assert (word, actor, allocation.worker) == ("run_actor", b"b", worker)


def test_a_lease_of_a_worker_that_is_being_killed_is_not_handed_on() -> None:
    state = NodeState({"CPU": UNIT})
    worker = Worker(b"w", 1, "", (), None)
    state.prestart(1)
    state.worker_up(worker, 0.0)
    for owner in ("one", "other"):
        state.describe_key(owner, 1, {"CPU": UNIT}, (), b"job")
    [(word, owner, _, lease)] = state.demand("one", 1, 1, 0)
    assert (word, owner, lease.worker) == ("grant", "one", worker)
    state.worker_ending(b"w")
    assert state.demand("other", 1, 1, 0) == [("pressure", "one")]
    # It has room, but this worker is none any more.
    assert state.lease_returned(lease.lease_id, "one", 1.0) == [("start", ())]
    assert state.worker_gone(b"w") == (None, [])
    [(word, owner, _, granted)] = state.worker_up(Worker(b"v", 2, "", (), None), 2.0)
    assert (word, owner, granted.worker.worker_id) == ("grant", "other", b"v")
    state.worker_ending(b"nobody")


def test_who_waits_for_a_worker_does_not_get_one_that_is_being_killed() -> None:
    state = NodeState({"CPU": 2 * UNIT})
    worker = Worker(b"w", 1, "", (), None)
    state.prestart(1)
    state.worker_up(worker, 0.0)
    state.describe_key("one", 1, {"CPU": UNIT}, (), b"job")
    commands = state.demand("one", 1, 2, 0)
    assert [command[0] for command in commands] == ["grant", "start"]
    state.worker_ending(b"w")
    assert state.lease_returned(commands[0][3].lease_id, "one", 1.0) == []
    [(word, _, _, granted)] = state.worker_up(Worker(b"v", 2, "", (), None), 2.0)
    assert word == "grant" and granted.worker.worker_id == b"v"


def used_worker(state: NodeState, name: bytes = b"w") -> Worker:
    """One that is idle, and has run a task of the job."""
    worker = Worker(name, 1, "", (), None)
    state.prestart(1)
    state.worker_up(worker, 0.0)
    state.describe_key("one", 1, {"CPU": UNIT}, (), b"job")
    [(_, _, _, lease)] = state.demand("one", 1, 1, 0)
    state.demand("one", 1, 0, 1)
    state.lease_returned(lease.lease_id, "one", 1.0)
    assert worker.state == "idle" and worker.job == b"job"
    return worker


def test_an_actor_gets_a_process_that_has_run_nothing() -> None:
    state = NodeState({"CPU": 4 * UNIT})
    used_worker(state)
    assert state.place_actor(b"a", {}, (), b"job") == [("start", ())]
    fresh = Worker(b"fresh", 2, "", (), None)
    [(word, actor, allocation)] = state.worker_up(fresh, 2.0)
    assert (word, actor, allocation.worker) == ("run_actor", b"a", fresh)


def test_a_returned_worker_passes_the_actors_that_wait() -> None:
    state = NodeState({"CPU": 2 * UNIT})
    worker = used_worker(state)
    state.describe_key("one", 2, {"CPU": UNIT}, (), b"job")
    [(_, _, _, lease)] = state.demand("one", 2, 1, 0)
    assert lease.worker is worker
    state.demand("one", 2, 0, 1)
    assert state.place_actor(b"a", {}, (), b"job") == [("start", ())]
    state.describe_key("two", 1, {"CPU": UNIT}, (), b"job")
    assert state.demand("two", 1, 1, 0) == [("start", ())]
    [(word, owner, _, granted)] = state.lease_returned(lease.lease_id, "one", 1.0)
    assert (word, owner, granted.worker) == ("grant", "two", worker)
    fresh = Worker(b"fresh", 2, "", (), None)
    [(word, actor, _)] = state.worker_up(fresh, 2.0)
    assert (word, actor) == ("run_actor", b"a")


def test_a_returned_worker_is_not_handed_on_to_another_job() -> None:
    state = NodeState({"CPU": UNIT})
    worker = used_worker(state)
    state.describe_key("one", 2, {"CPU": UNIT}, (), b"job")
    [(_, _, _, lease)] = state.demand("one", 2, 1, 0)
    state.demand("one", 2, 0, 1)
    state.describe_key("stranger", 1, {"CPU": UNIT}, (), b"other")
    state.demand("stranger", 1, 1, 0)
    assert state.lease_returned(lease.lease_id, "one", 1.0) == [("start", ())]
    assert worker.allocation is None
    [(word, owner, _, _)] = state.worker_up(Worker(b"fresh", 2, "", (), None), 2.0)
    assert (word, owner) == ("grant", "stranger")


def test_workers_that_actors_have_taken_are_replaced() -> None:
    state = NodeState({"CPU": 4 * UNIT})
    state.prestart(2)
    assert state.replenish(2) == [], "both are under way"
    for name in (b"v", b"w"):
        state.worker_up(Worker(name, 1, "", (), None), 0.0)
    assert state.replenish(2) == []
    assert [word for word, *_ in state.place_actor(b"a", {}, (), b"job")] == ["run_actor"]
    assert state.replenish(2) == [("start", ())]
    assert state.replenish(2) == [], "that one is under way"
    assert [word for word, *_ in state.place_actor(b"b", {}, (), b"job")] == ["run_actor"]
    # Whoever waits comes first; the worker that is being started is for it.
    assert state.place_actor(b"c", {}, (), b"job") == []
    assert state.replenish(2) == []
    assert [word for word, *_ in state.worker_up(Worker(b"x", 1, "", (), None), 1.0)] == ["run_actor"]
    assert state.replenish(2) == [("start", ()), ("start", ())]


def test_workers_that_tasks_have_used_are_not_replaced() -> None:
    state = NodeState({"CPU": 4 * UNIT})
    worker = used_worker(state)
    assert state.replenish(1) == []
    state.worker_ending(worker.worker_id)
    assert state.replenish(1) == [("start", ())]
