"""What a node remembers of the actors that it is to have: nothing of those that it never will."""

from __future__ import annotations

import types
from typing import Any

from framework._node.actors import NodeActors
from framework._state.node import NodeState, Worker
from framework._wire import messages as m

ACTOR = b"a" * 16
SPEC = {"class_name": "C", "resources": {}, "job": b"\1\0\0\0", "env": None, "placement": {}}


class Node:
    """As much of a `NodeService` as actors need."""

    def __init__(self) -> None:
        self.state = NodeState({"CPU": 10_000}, "ab" * 28)
        self.told: list[tuple[Any, ...]] = []
        self.ended: list[bytes] = []
        self.processes: Any = types.SimpleNamespace(by_id={}, end=self._end)
        self.forwarding = object()
        self.actors = NodeActors(self)  # type: ignore[arg-type]

    def _end(self, worker_id: bytes, reason: str, *, intended: bool) -> None:
        self.ended.append(worker_id)

    def run(self, commands: list[tuple[Any, ...]]) -> None:
        self.commands = commands

    def tell_head(self, *frame: Any) -> None:
        self.told.append(frame)

    def set_active(self, worker_id: bytes) -> None: ...

    def gpus_of(self, allocation: Any) -> list[int]:
        return []

    def place(self, incarnation: int) -> None:
        self.actors.head_handlers[m.ACTOR_PLACE](None, [0, ACTOR, SPEC, incarnation])  # type: ignore[arg-type]

    def end(self, incarnation: int) -> None:
        self.actors.head_handlers[m.ACTOR_END](None, [0, ACTOR, incarnation, True, "why"])  # type: ignore[arg-type]

    def recall(self, incarnation: int) -> list[tuple[Any, ...]]:
        """What is answered."""
        answers: list[tuple[Any, ...]] = []
        head = types.SimpleNamespace(cast=lambda *frame: answers.append(frame))
        self.actors.head_handlers[m.ACTOR_RECALL](head, [0, ACTOR, incarnation])  # type: ignore[arg-type]
        return answers

    def up(self, error: Any) -> None:
        """Its process has come, runs it, and says so."""
        peer = types.SimpleNamespace(cast=lambda *_: None, ident=b"w", peer={"address": "x"})
        for command in self.state.worker_up(Worker(b"w", 1, "x", (), peer), 0.0):
            self.processes.by_id[b"w"] = types.SimpleNamespace(
                actor=None, incarnation=0, pid=1, worker_id=b"w", intended=False, kind=""
            )
            self.actors.run(*command[1:])
        self.actors.handlers[m.ACTOR_UP](peer, [0, ACTOR, error])  # type: ignore[arg-type]


def test_one_that_could_not_be_constructed_is_forgotten() -> None:
    node = Node()
    node.place(0)
    assert node.actors.report() == [[ACTOR, 0, b"", "", 0]]
    node.up([2, "error"])
    assert node.ended == [b"w"]
    assert node.actors.specs == {} and node.actors.report() == []


def test_one_that_is_ended_before_it_has_a_process_is_forgotten() -> None:
    node = Node()
    node.place(0)
    node.end(0)
    assert node.actors.specs == {} and not node.state.leases


def test_its_next_life_is_not() -> None:
    node = Node()
    node.place(0)
    node.place(1)
    node.end(0)
    assert node.actors.report() == [[ACTOR, 1, b"", "", 0]]


def test_one_that_runs_is_forgotten_with_its_process() -> None:
    node = Node()
    node.place(0)
    node.up(None)
    node.end(0)
    assert node.ended == [b"w"] and ACTOR in node.actors.specs
    node.actors.process_gone(node.processes.by_id[b"w"], "it was killed", 0)
    assert node.actors.specs == {}


def test_one_that_waits_for_room_may_be_had_elsewhere() -> None:
    node = Node()
    node.state.place_actor(b"b" * 16, {"CPU": 10_000}, None, b"\1\0\0\0")
    node.actors.head_handlers[m.ACTOR_PLACE](
        None,  # type: ignore[arg-type]
        [0, ACTOR, {**SPEC, "resources": {"CPU": 10_000}}, 1],
    )
    assert node.recall(0) == [], "that is another life of it"
    assert node.recall(1) == [(m.ACTOR_REFUSED, ACTOR, 1, node.state.available)]
    assert node.actors.specs == {} and node.actors.report() == []
    assert node.recall(1) == []


def test_one_that_has_room_stays() -> None:
    node = Node()
    node.place(0)  # its worker is being started
    assert node.recall(0) == []
    node.up(None)
    assert node.recall(0) == []
    assert ACTOR in node.actors.specs
