"""The judgement over programs: each planted violation is found, and nothing in clean records."""

from __future__ import annotations

import random
from typing import Any

import pytest

from framework._sim.ledger import DONE, LEDGER, RAISED, Ledger, noted
from framework._sim.oracles import judge
from framework._sim.permits import permitted
from framework._sim.record import ActorFacts, Expect, Record, Risk, TaskFacts, digest, error_names
from framework.exceptions import ObjectLostError, OwnerDiedError, TaskError, WorkerCrashedError


class Scene:
    """A world of which everything is made up."""

    simulated = True

    def __init__(self) -> None:
        self.seen = Record()
        self.seen.finished = True
        self.happened: list[Any] = []
        self.ledger = Ledger()
        self.time = 0.0
        self.ledger.open(lambda: self.time)

    def happens(self, kind: str, when: float, **facts: Any) -> None:
        self.happened.append((when, kind, facts))

    def attempt(self, task: int, began: float, ended: float | None = None, state: str = DONE) -> None:
        self.time = began
        entry = self.ledger.begin(task)
        if ended is not None:
            self.time = ended
            self.ledger.end(entry, state)

    def born(self, actor: int, when: float) -> int:
        self.time = when
        return self.ledger.born(actor)

    def call(
        self, actor: int, life: int, caller: int, number: int, began: float, ended: float | None
    ) -> None:
        self.time = began
        entry = self.ledger.called(actor, life, caller, number)
        if ended is not None:
            self.time = ended
            self.ledger.end(entry, DONE)

    def saw(self, expect: Expect, outcome: Any, *, ended: float = 10.0, task: int = 0) -> None:
        """`outcome`: a value, an exception, or "hung" or "open" as text."""
        observation = self.seen.open(1, "planted", expect, 5.0, task)
        if isinstance(outcome, BaseException):
            observation.failed(outcome, ended)
        elif outcome == "hung":
            observation.hung(ended)
        elif outcome != "open":
            observation.got(outcome, ended)

    def kinds(self) -> list[str]:
        return [violation.kind for violation in judge(self, self.ledger)]  # type: ignore[arg-type]


def test_a_clean_record_has_no_violations() -> None:
    scene = Scene()
    scene.seen.tasks[1] = TaskFacts(0)
    scene.attempt(1, 1.0, 2.0)
    scene.saw(Expect(7), 7, task=1)
    scene.seen.actors[2] = ActorFacts("sync", 0, 0)
    life = scene.born(2, 1.0)
    scene.call(2, life, 0, 0, 1.0, 2.0)
    scene.call(2, life, 1, 0, 2.0, 3.0)
    scene.call(2, life, 0, 1, 3.0, None)
    scene.saw(Expect(errors=["Refused"]), _refused())
    assert scene.kinds() == []


def _refused() -> TaskError:
    from framework._sim.actions import Refused

    return TaskError("f", "text", Refused(1), pid=1, ip="").as_instanceof_cause()


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (8, "wrong value"),
        (True, "wrong value"),
        (WorkerCrashedError("gone"), "error without leave"),
        (_refused(), "error without leave"),
        ("hung", "no answer"),
        ("open", "never ended"),
    ],
)
def test_what_a_wait_may_not_end_in(outcome: Any, kind: str) -> None:
    scene = Scene()
    scene.saw(Expect(1, risks=[Risk("task", 1.0)]), outcome)
    assert scene.kinds() == [kind]


def test_what_is_open_is_nothing_when_the_driver_was_killed() -> None:
    scene = Scene()
    scene.saw(Expect(1), "open")
    scene.seen.finished = False
    assert scene.kinds() == []


def test_complaints_are_violations() -> None:
    scene = Scene()
    scene.seen.complain(3, "order", "the wrong way round")
    assert scene.kinds() == ["order"]


TASK_LOST = WorkerCrashedError("gone")


@pytest.mark.parametrize(
    ("retries", "events", "allowed"),
    [
        (0, [], False),
        (0, [("crash", 6.0, {"process": "worker"})], True),
        (1, [("crash", 6.0, {"process": "worker"})], False),
        (1, [("crash", 6.0, {"process": "worker"}), ("reset", 7.0, {})], True),
        (1, [("crash", 6.0, {"process": "node"})], True),
        (3, [("crash", 6.0, {"process": "node"})], False),
        (3, [("partition", 6.0, {"until": 9.0})], True),
        (-1, [("partition", 6.0, {})], False),
        (0, [("crash", 6.0, {"process": "head"}), ("head_restart", 6.0, {})], False),
        (0, [("delay", 6.0, {}), ("slow", 6.0, {}), ("clock_jump", 6.0, {}), ("node_added", 6.0, {})], False),
        (0, [("crash", 11.0, {"process": "worker"})], False),  # afterwards
        (0, [("crash", 1.0, {"process": "worker"})], True),  # just found out
        (0, [("stop", 1.0, {})], True),
        (0, [("node_removed", 6.0, {"graceful": True})], True),
        (0, [("worker_exit", 6.0, {})], False),
    ],
)
def test_system_errors_of_tasks(retries: int, events: list[Any], allowed: bool) -> None:
    scene = Scene()
    for kind, when, facts in events:
        scene.happens(kind, when, **facts)
    scene.saw(Expect(1, risks=[Risk("task", 5.0, retries=retries)]), TASK_LOST)
    assert (scene.kinds() == []) == allowed


def test_what_is_long_over_permits_nothing() -> None:
    expect = Expect(1, risks=[Risk("task", 100.0)])
    assert not permitted(expect, [(1.0, "crash", {"process": "worker"})], 110.0)
    assert not permitted(expect, [(1.0, "partition", {"until": 20.0})], 110.0)
    assert permitted(expect, [(1.0, "partition", {"until": 90.0})], 110.0)


@pytest.mark.parametrize(
    ("risk", "event", "names"),
    [
        (Risk("object", 5.0, stored=True), ("crash", {"process": "node"}), {"ObjectLostError"}),
        (Risk("object", 5.0), ("crash", {"process": "node"}), set()),
        (Risk("object", 5.0, stored=True), ("crash", {"process": "worker"}), set()),
        (Risk("object", 5.0, stored=True), ("disk_lost", {"node": "a"}), {"ObjectLostError"}),
        (Risk("object", 5.0, stored=True, retries=3), ("disk_lost", {"node": "a"}), set()),
        (Risk("object", 5.0, owner="worker"), ("worker_exit", {}), {"ObjectLostError"}),
        (Risk("object", 5.0, owner="actor"), ("worker_exit", {}), set()),
        (Risk("call", 5.0), ("crash", {"process": "worker"}), {"ActorDiedError", "ActorUnavailableError"}),
        (Risk("call", 5.0, restarts=1), ("crash", {"process": "worker"}), {"ActorUnavailableError"}),
        (Risk("call", 5.0, restarts=-1, retries=-1), ("partition", {}), set()),
        (Risk("node", 5.0), ("node_removed", {}), {"TaskUnschedulableError"}),
        (Risk("group", 5.0), ("crash", {"process": "node"}), set()),
    ],
)
def test_other_system_errors(risk: Risk, event: tuple[str, Any], names: set[str]) -> None:
    kind, facts = event
    found = permitted(Expect(1, risks=[risk]), [(6.0, kind, facts)], 10.0)
    assert names <= found
    assert bool(found) == bool(names)


def test_a_full_disk_permits_errors_about_room_only() -> None:
    event = (6.0, "disk_full", {"node": "a"})
    assert permitted(Expect(1, risks=[Risk("object", 5.0, stored=True)]), [event], 10.0) == {
        "OutOfDiskError",
        "ObjectStoreFullError",
    }
    assert not permitted(Expect(1, risks=[Risk("task", 5.0)]), [event], 10.0)


def test_a_head_that_dies_too_often_takes_the_cluster_along() -> None:
    expect = Expect(1, risks=[Risk("task", 100.0)])
    deaths: list[Any] = [(float(when), "crash", {"process": "head"}) for when in range(6)]
    assert "LocalNodeDiedError" in permitted(expect, deaths, 110.0)
    assert not permitted(expect, deaths[:5], 110.0)


def test_a_head_forgets_what_a_full_disk_did_not_take() -> None:
    expect = Expect(1, risks=[Risk("call", 5.0)])
    died = (8.0, "crash", {"process": "head"})
    full = (6.0, "disk_full", {"home": True, "until": 9.0})
    assert "ActorDiedError" in permitted(expect, [full, died], 10.0)
    assert not permitted(expect, [died], 10.0)
    assert not permitted(expect, [(6.0, "disk_full", {"home": True, "until": 6.4}), died], 10.0)
    assert not permitted(expect, [(6.0, "disk_full", {"home": False, "until": 9.0}), died], 10.0)


@pytest.mark.parametrize(("seconds", "dead"), [(1.0, False), (9.0, True)])
def test_the_session_may_end_with_a_home_that_stood_still(seconds: float, dead: bool) -> None:
    expect = Expect(1, risks=[Risk("task", 500.0)])
    stop = (1.0, "stop", {"process": "node", "home": True, "until": 1.0 + seconds})
    assert bool(permitted(expect, [stop], 510.0)) == dead


def test_bases_of_errors_count() -> None:
    assert "ObjectLostError" in error_names(OwnerDiedError("ab"))
    assert error_names(TaskError("f", "", ObjectLostError("ab"), pid=1, ip=""))[0] == "ObjectLostError"
    assert error_names(KeyError("x"))[0] == "KeyError"


# ---- the ledger --------------------------------------------------------------------------------------


def test_retries_are_kept() -> None:
    scene = Scene()
    scene.seen.tasks[1] = TaskFacts(1)
    scene.attempt(1, 1.0)
    scene.attempt(1, 2.0, 3.0, RAISED)
    assert scene.kinds() == []
    scene.attempt(1, 4.0, 5.0)
    assert scene.kinds() == ["too many attempts"]
    scene.seen.tasks[1].retries = -1
    assert scene.kinds() == []


def test_a_child_has_its_retries_for_each_attempt_of_its_parent() -> None:
    scene = Scene()
    scene.seen.tasks[1], scene.seen.tasks[2] = TaskFacts(3), TaskFacts(0, parent=1)
    for when in (1.0, 2.0):
        scene.attempt(1, when)
        scene.attempt(2, when + 0.1)
    assert scene.kinds() == []
    scene.attempt(2, 3.0)
    assert scene.kinds() == ["too many attempts"]


def test_a_task_does_not_run_twice_at_a_time() -> None:
    scene = Scene()
    scene.seen.tasks[1] = TaskFacts(3)
    scene.attempt(1, 1.0, 4.0)
    scene.attempt(1, 3.0, 5.0)
    assert scene.kinds() == ["a task ran twice at a time"]
    scene.happens("partition", 2.0)
    assert scene.kinds() == []


def test_a_generator_that_has_lost_an_item_runs_beside_itself() -> None:
    scene = Scene()
    scene.seen.tasks[1], scene.seen.tasks[2] = TaskFacts(3, stored=True), TaskFacts(3)
    for task in (1, 2):
        scene.attempt(task, 1.0, 4.0)
        scene.attempt(task, 3.0, 5.0)
    assert scene.kinds() == ["a task ran twice at a time"] * 2
    scene.happens("disk_lost", 2.0)
    assert scene.kinds() == ["a task ran twice at a time"], "what has no items in the store has lost none"


def test_a_value_needs_an_attempt_that_came_to_its_end() -> None:
    scene = Scene()
    scene.seen.tasks[1] = TaskFacts(3)
    scene.attempt(1, 1.0)
    scene.saw(Expect(7), 7, task=1)
    assert scene.kinds() == ["a value out of nothing"]


def test_what_nobody_asked_for() -> None:
    scene = Scene()
    scene.attempt(1, 1.0, 2.0)
    scene.born(2, 1.0)
    assert scene.kinds() == ["unknown task", "unknown actor"]


def _actor(scene: Scene, kind: str = "sync", restarts: int = 0, retries: int = 0, name: str = "") -> int:
    scene.seen.actors[9] = ActorFacts(kind, restarts, retries, name)
    return scene.born(9, 1.0)


def test_calls_of_one_caller_keep_their_order() -> None:
    scene = Scene()
    life = _actor(scene)
    scene.call(9, life, 0, 1, 1.0, 2.0)
    scene.call(9, life, 1, 0, 2.0, 3.0)
    assert scene.kinds() == []
    scene.call(9, life, 0, 0, 3.0, 4.0)
    assert scene.kinds() == ["order of calls"]
    scene.seen.actors[9].kind = "async"
    assert scene.kinds() == []


def test_calls_run_once_without_leave_to_repeat_them() -> None:
    scene = Scene()
    _actor(scene, restarts=1)
    scene.call(9, 1, 0, 0, 1.0, None)
    scene.born(9, 2.0)
    scene.call(9, 2, 0, 0, 3.0, 4.0)
    assert scene.kinds() == ["a call ran too often"]
    scene.seen.actors[9].retries = 1
    assert scene.kinds() == []


def test_a_sync_actor_runs_one_call_at_a_time() -> None:
    scene = Scene()
    life = _actor(scene)
    scene.call(9, life, 0, 0, 1.0, 3.0)
    scene.call(9, life, 1, 0, 2.0, 4.0)
    assert scene.kinds() == ["two calls at a time"]
    scene.seen.actors[9].kind = "threads"
    assert scene.kinds() == []


def test_restarts_are_kept() -> None:
    scene = Scene()
    _actor(scene)
    scene.born(9, 2.0)
    assert scene.kinds() == ["too many restarts"]
    scene.happens("node_removed", 1.5)
    assert scene.kinds() == [], "it was moved, at no cost"


def test_what_is_lost_with_its_node_while_it_is_started_is_no_restart() -> None:
    scene = Scene()
    _actor(scene)
    scene.born(9, 2.0)
    scene.happens("crash", 1.5, process="node", node="another")
    assert scene.kinds() == ["too many restarts"]
    scene.happens("crash", 1.5, process="node", node="")
    assert scene.kinds() == []
    scene.call(9, 1, 1, 1, 1.6, 1.7)
    assert scene.kinds() == ["too many restarts"], "the first life was known: somebody has called it"


def test_one_life_at_a_time() -> None:
    scene = Scene()
    _actor(scene, restarts=1)
    scene.born(9, 2.0)
    scene.call(9, 1, 0, 0, 3.0, 4.0)
    assert scene.kinds() == ["two lives at a time"]
    scene.happens("stop", 1.0)
    assert scene.kinds() == []


def test_one_actor_of_a_name() -> None:
    scene = Scene()
    _actor(scene, name="x")
    scene.seen.actors[10] = ActorFacts("sync", 0, 0, "x")
    scene.born(10, 2.0)
    assert scene.kinds() == []
    scene.call(9, 1, 0, 0, 3.0, 4.0)
    assert scene.kinds() == ["two actors of one name"]


def test_real_sessions_have_no_ledger() -> None:
    scene = Scene()
    scene.simulated = False
    scene.attempt(1, 1.0)
    assert scene.kinds() == []


# ---- what is written down ----------------------------------------------------------------------------


def test_the_ledger_is_closed_by_default() -> None:
    LEDGER.clear()  # (what a simulation in this process has written stays to be read)
    assert LEDGER.begin(1) is None and LEDGER.born(1) == 0 and LEDGER.called(1, 1, 1, 1) is None
    with noted(LEDGER.begin(1)):
        pass
    assert not LEDGER.attempts


def test_what_is_noted() -> None:
    time = iter(range(100))
    ledger = Ledger()
    ledger.open(lambda: float(next(time)))
    first = ledger.begin(1)
    assert first is not None and first.state == "running"
    ledger.end(first, DONE)
    assert (first.number, first.began, first.ended) == (1, 0.0, 1.0)
    second = ledger.begin(1)
    assert second is not None and second.number == 2
    ledger.close()
    ledger.end(second, DONE)
    assert second.state == "running", "nothing is written any more"
    assert len(ledger.attempts[1]) == 2


def test_digests_keep_nothing_alive() -> None:
    class Thing:
        pass

    assert digest([Thing(), (1, "a")]) == ["a Thing", [1, "a"]]
    assert digest(random.Random(1).randbytes(100)) == digest(random.Random(1).randbytes(100))
    assert digest(bytes(100)) != digest(bytes(101))
