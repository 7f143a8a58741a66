"""Placement groups at the head: what is written down, and what is told to whom."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from framework._base.resources import UNIT
from framework._head.groups import HeadGroups
from framework._head.storage import Storage
from framework._state.actors import ActorDirectory
from framework._wire import messages as m

A, B = b"a" * 28, b"b" * 28
G = b"g" * 18


class Peer:
    """A node or a driver."""

    def __init__(self, ident: bytes) -> None:
        self.ident = ident
        self.closed = False
        self.told: list[tuple[Any, ...]] = []
        self.replies: list[Any] = []

    def cast(self, *frame: Any) -> None:
        self.told.append(frame)

    def reply(self, rid: int, value: Any) -> None:
        self.replies.append(value)

    def took(self, opcode: int) -> list[tuple[Any, ...]]:
        found = [frame[1:] for frame in self.told if frame[0] == opcode]
        self.told = [frame for frame in self.told if frame[0] != opcode]
        return found


class Head:
    """As much of the head service as `HeadGroups` uses."""

    def __init__(self, loop: asyncio.AbstractEventLoop, storage: Storage | None = None) -> None:
        self.actors = ActorDirectory()
        self.ran: list[tuple[Any, ...]] = []
        self.nodes: dict[bytes, Peer] = {}
        self.groups = HeadGroups(loop, self, storage)  # type: ignore[arg-type]

    def run(self, commands: list[tuple[Any, ...]]) -> None:
        self.ran += commands

    def node_peer(self, node_id: bytes) -> Any:
        return self.nodes.get(node_id)

    def node_id(self, connection: Any) -> bytes:
        node_id: bytes = connection.ident
        return node_id

    def is_draining(self, node_id: bytes) -> bool:
        return False

    def keep_soon(self) -> None:
        self.groups.persist()

    def join(self, node_id: bytes, held: list[list[Any]] | None = None) -> Peer:
        node = self.nodes[node_id] = Peer(node_id)
        info = {"node_id": node_id, "total": {"CPU": 2 * UNIT}, "bundles": held or []}
        self.groups.node_joined(node_id, info)
        return node

    def ask(self, peer: Peer, opcode: int, *fields: Any) -> Any:
        self.groups.handlers[opcode](peer, [opcode, 7, *fields])  # type: ignore[arg-type]
        return peer.replies.pop()

    def say(self, peer: Peer, opcode: int, *fields: Any) -> None:
        self.groups.handlers[opcode](peer, [opcode, *fields])  # type: ignore[arg-type]

    def agree(self, *nodes: Peer) -> None:
        """The nodes do what they are asked for."""
        for asked, answer in ((m.GROUP_PREPARE, m.GROUP_PREPARED), (m.GROUP_COMMIT, m.GROUP_COMMITTED)):
            for node in nodes:
                for group, attempt, _ in node.took(asked):
                    self.say(node, answer, group, attempt, None)


def spec(*cpus: int, **more: Any) -> dict[str, Any]:
    return {
        "bundles": [{"CPU": n * UNIT} for n in cpus],
        "strategy": "SPREAD",
        "name": "n",
        "namespace": "x",
        "detached": False,
        "job": b"job1",
        "actor": b"",
        **more,
    }


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_from_the_request_to_the_group(loop: asyncio.AbstractEventLoop) -> None:
    head = Head(loop)
    a, b, driver = head.join(A), head.join(B), Peer(b"d")
    head.ask(driver, m.GROUP_CREATE, G, spec(1, 2))
    assert head.ask(driver, m.GROUP_TABLE, G)[0]["state"] == "PENDING"
    head.agree(a, b)
    row = head.ask(driver, m.GROUP_TABLE, G)[0]
    assert (row["state"], set(row["bundles_to_node_id"].values())) == ("CREATED", {A.hex(), B.hex()})
    assert head.ask(driver, m.GROUP_FIND, "n", "x") == {"group": G, "bundles": spec(1, 2)["bundles"]}
    assert head.ask(driver, m.GROUP_FIND, "n", "y") is None
    head.ask(driver, m.GROUP_REMOVE, G)
    assert [len(node.took(m.GROUP_RETURN)) for node in (a, b)] == [1, 1]
    assert head.ask(driver, m.GROUP_TABLE, None)[0]["state"] == "REMOVED"


@pytest.mark.parametrize(
    "wrong",
    [
        {"bundles": []},
        {"bundles": [{}]},
        {"bundles": [{"CPU": -1}]},
        {"bundles": [{"CPU": "1"}]},
        {"bundles": [1]},
        {"bundles": None},
        {"strategy": "TIGHT"},
        {"name": None},
        {"job": "1"},
        {"detached": 1},
        {"selectors": [{}]},
    ],
)
def test_nonsense_is_refused(loop: asyncio.AbstractEventLoop, wrong: dict[str, Any]) -> None:
    head = Head(loop)
    with pytest.raises(ValueError, match="no description"):
        head.ask(Peer(b"d"), m.GROUP_CREATE, G, spec(1, 2, **wrong))
    assert head.groups.state.groups == {}


def test_a_new_head_knows_what_the_old_one_has_written_down(loop: asyncio.AbstractEventLoop) -> None:
    storage = Storage(None)
    head = Head(loop, storage)
    node = head.join(A)
    head.ask(Peer(b"d"), m.GROUP_CREATE, G, spec(1, detached=True))
    head.agree(node)
    storage.commit()
    new = Head(loop, storage)
    new.join(A, [[G, 0, 1, True]])
    row = new.ask(Peer(b"d"), m.GROUP_TABLE, G)[0]
    assert (row["state"], row["bundles_to_node_id"], row["name"]) == ("CREATED", {0: A.hex()}, "n")
    new.ask(Peer(b"d"), m.GROUP_REMOVE, G)
    storage.commit()
    assert storage.all("groups") == {}


def test_actors_wait_for_their_group_and_end_with_it(loop: asyncio.AbstractEventLoop) -> None:
    head = Head(loop)
    node = head.join(A)
    actor, about = b"x" * 16, {"strategy": ["group", G, -1, False], "class_name": "Actor"}
    head.actors.create(actor, about, "owner")
    assert head.groups.keeps(actor, about, 0)  # before anybody has heard of the group
    head.ask(Peer(b"d"), m.GROUP_CREATE, G, spec(1))
    assert head.ran == []
    head.agree(node)
    assert head.ran == [("place", actor, about, 0)]
    assert not head.groups.keeps(actor, about, 0)
    head.ran.clear()
    head.ask(Peer(b"d"), m.GROUP_REMOVE, G)
    assert [command[0] for command in head.ran] == ["end", "unplace", "publish"]
    record = head.actors.records[actor]
    assert record.state == "DEAD"
    assert record.detail is not None
    assert record.detail["error"][2] == "ActorPlacementGroupRemoved"
    assert G.hex() in record.detail["error"][3]
    late = b"y" * 16
    head.actors.create(late, about, "owner")
    assert head.groups.keeps(late, about, 0)
    assert head.actors.records[late].state == "DEAD"


def test_a_group_of_a_detached_actor_ends_with_it(loop: asyncio.AbstractEventLoop) -> None:
    head = Head(loop)
    actor = b"x" * 16
    head.actors.create(actor, {"lifetime": "detached"}, "owner")
    head.ask(Peer(b"d"), m.GROUP_CREATE, G, spec(1, actor=actor))
    head.groups.job_over(b"job1")
    head.groups.actors_changed()
    assert head.groups.state.state_of(G) == "PENDING"
    head.actors.fail(actor, "killed", [2, 2, "ActorDiedError", "killed"])
    head.groups.actors_changed()
    assert head.groups.state.state_of(G) == "REMOVED"
