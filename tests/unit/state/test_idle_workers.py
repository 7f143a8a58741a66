"""An idle worker that is asked to end gets nothing to do before it has said no."""

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
