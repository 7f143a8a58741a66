"""The head: numbers of jobs, members, and the directory of actors as its peers see it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from framework._base import limits
from framework._head.service import HeadService
from framework._wire import messages as m
from framework.exceptions import ActorAlreadyExistsError
from support.connections import Recorder

ACTOR, OTHER = b"a" * 16, b"b" * 16


def spec(**more: Any) -> dict[str, Any]:
    return {"class_name": "A", "resources": {}, "job": b"j", "lifetime": None, "max_restarts": 0, **more}


class World:
    """A head with one node and two drivers."""

    def __init__(self) -> None:
        self.head = HeadService(asyncio.get_running_loop())
        self.node = Recorder("", b"n")
        self.one, self.two = Recorder("driver", b"1"), Recorder("driver", b"2")
        self.node.ask(
            self.head.handlers,
            m.NODE_JOIN,
            {"node_id": b"n", "total": {"CPU": 20_000, "oven": 10_000}, "pid": 1, "session_dir": "/s"},
        )
        for peer in (self.one, self.two):
            assert self.head.peer_joined(peer) is None

    def ask(self, peer: Recorder, opcode: int, *fields: Any) -> Any:
        return peer.ask(self.head.handlers, opcode, *fields)

    def tell(self, peer: Recorder, opcode: int, *fields: Any) -> None:
        peer.tell(self.head.handlers, opcode, *fields)

    def alive(self, actor: bytes = ACTOR, incarnation: int = 0) -> None:
        self.tell(self.node, m.ACTOR_PLACED, actor, incarnation, b"w", "unix:w", 5, None)

    def gone(self, actor: bytes = ACTOR, incarnation: int = 0) -> None:
        self.tell(self.node, m.ACTOR_GONE, actor, incarnation, "it crashed", False, 0, "")

    def lost(self, peer: Recorder) -> None:
        self.head.peer_lost(peer)


@pytest.fixture
async def world() -> World:
    return World()


def states(peer: Recorder) -> list[str]:
    return [frame[1] for frame in peer.take(m.ACTOR_STATE)]


async def test_every_job_gets_a_number_of_its_own(world: World) -> None:
    numbers = [world.ask(peer, m.JOB_START, {"pid": 1})["job"] for peer in (world.one, world.two, world.one)]
    assert numbers == [1, 2, 3]


async def test_members_and_resources(world: World) -> None:
    assert world.ask(world.one, m.RESOURCES, False) == {"CPU": 20_000, "oven": 10_000}
    world.tell(world.node, m.NODE_LOAD, {"CPU": 5_000, "oven": 0}, [], None, 0, 0)
    assert world.ask(world.one, m.RESOURCES, True) == {"CPU": 5_000, "oven": 0}
    assert world.ask(world.one, m.RESOURCES, False) == {"CPU": 20_000, "oven": 10_000}
    (node,) = world.ask(world.one, m.NODES)
    assert (node["node_id"], node["pid"], node["session_dir"]) == (b"n", 1, "/s")
    world.tell(world.one, m.NODE_LOAD, {"CPU": 1}, [], None, 0, 0)  # of one that is no node
    world.lost(world.node)
    assert world.ask(world.one, m.NODES) == [] and world.ask(world.one, m.RESOURCES, False) == {}


async def test_an_actor_from_creation_to_kill(world: World) -> None:
    world.ask(world.one, m.ACTOR_CREATE, ACTOR, spec(name="n", namespace="s", handle=b"pickled"))
    assert [frame[0] for frame in world.node.take(m.ACTOR_PLACE)] == [ACTOR]
    world.alive()
    assert world.one.take(m.ACTOR_STATE) == [[ACTOR, "ALIVE", "unix:w", 0, None]]
    assert world.ask(world.two, m.ACTOR_FIND, "n", "s") == {"actor": ACTOR, "handle": b"pickled"}
    assert world.ask(world.two, m.ACTOR_FIND, "n", "elsewhere") is None
    assert world.ask(world.two, m.ACTOR_LIST, None) == [["s", "n"]]
    assert world.ask(world.two, m.ACTOR_LIST, "elsewhere") == []
    world.tell(world.two, m.ACTOR_WATCH, ACTOR)
    assert states(world.two) == ["ALIVE"]
    world.ask(world.two, m.ACTOR_KILL, ACTOR, True, "why")
    assert states(world.one) == states(world.two) == ["DEAD"]
    assert [frame[0] for frame in world.node.take(m.ACTOR_END)] == [ACTOR]
    assert world.ask(world.two, m.ACTOR_FIND, "n", "s") is None


async def test_a_name_that_is_taken(world: World) -> None:
    world.ask(world.one, m.ACTOR_CREATE, ACTOR, spec(name="n", namespace="s"))
    with pytest.raises(ActorAlreadyExistsError, match="'n'"):
        world.ask(world.two, m.ACTOR_CREATE, OTHER, spec(name="n", namespace="s"))
    world.ask(world.two, m.ACTOR_CREATE, OTHER, spec(name="n", namespace="s", get_if_exists=True))
    world.alive()
    assert world.two.take(m.ACTOR_STATE)[-1][:2] == [OTHER, "ALIVE"], "under the id that it chose"
    assert len(world.node.take(m.ACTOR_PLACE)) == 1


async def test_actors_end_with_their_driver_unless_detached(world: World) -> None:
    world.ask(world.one, m.ACTOR_CREATE, ACTOR, spec(name="a"))
    world.ask(world.one, m.ACTOR_CREATE, OTHER, spec(name="b", lifetime="detached", max_restarts=1))
    world.alive(ACTOR)
    world.alive(OTHER)
    for actor in (ACTOR, OTHER):
        world.tell(world.two, m.ACTOR_WATCH, actor)
    world.two.said.clear()
    world.lost(world.one)
    assert [(frame[0], frame[1]) for frame in world.two.take(m.ACTOR_STATE)] == [(ACTOR, "DEAD")]
    assert [frame[0] for frame in world.node.take(m.ACTOR_END)] == [ACTOR]
    # Its process ends: it is started again, although nobody who made it is there.
    world.node.take(m.ACTOR_PLACE)
    world.gone(OTHER)
    assert states(world.two) == ["RESTARTING"]
    assert [(frame[0], frame[2]) for frame in world.node.take(m.ACTOR_PLACE)] == [(OTHER, 1)]
    world.alive(OTHER, 1)
    world.gone(OTHER, 1)
    assert states(world.two) == ["ALIVE", "DEAD"]


async def test_a_handle_may_come_before_the_news_of_its_actor(world: World) -> None:
    world.tell(world.two, m.ACTOR_WATCH, ACTOR)
    assert world.two.said == []
    world.ask(world.one, m.ACTOR_CREATE, ACTOR, spec())
    world.alive()
    assert "ALIVE" in states(world.two)


async def test_a_handle_of_an_actor_that_nobody_knows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEATH_VERDICT_TIMEOUT", 0.01)
    world.tell(world.two, m.ACTOR_WATCH, ACTOR)
    async with asyncio.timeout(10):
        while not world.two.said:
            await asyncio.sleep(0.001)
    (frame,) = world.two.take(m.ACTOR_STATE)
    assert frame[1] == "DEAD" and "no such actor" in frame[4]["text"]


async def test_an_actor_whose_last_handle_is_gone_finishes_its_calls(world: World) -> None:
    world.ask(world.one, m.ACTOR_CREATE, ACTOR, spec())
    world.alive()
    world.tell(world.one, m.ACTOR_END, ACTOR, 0, False, "no handle")
    ((_, _, force, reason),) = world.node.take(m.ACTOR_END)
    assert (force, reason) == (False, "no handle")


async def test_who_is_gone_is_told_nothing(world: World) -> None:
    world.ask(world.one, m.ACTOR_CREATE, ACTOR, spec(lifetime="detached"))
    world.one.closed = True
    world.alive()
    assert world.one.said == []


async def test_where_dead_actors_were_is_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_DEAD_KEPT", 3)
    for number in range(50):
        actor = bytes([number]) * 16
        world.ask(world.one, m.ACTOR_CREATE, actor, spec())
        world.ask(world.one, m.ACTOR_KILL, actor, True, "why")
    assert len(world.head._placed_on) <= 8
