"""The head of a cluster, between its nodes and owners: what it tells whom, and what it knows after a restart.

Time is real here, with short limits; what depends on time alone is tested with `framework._state.membership`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._head.cluster import ClusterHead
from framework._head.storage import Storage
from framework._wire import messages as m
from framework.exceptions import LocalNodeDiedError, NodeFencedError
from support.connections import Recorder

ONE, TWO = b"1" * 28, b"2" * 28
ACTOR, OTHER = b"a" * 16, b"b" * 16
CPU = 10_000


def spec(cpus: float = 0, **more: Any) -> dict[str, Any]:
    units = {"CPU": int(cpus * CPU)} if cpus else {}
    return {
        "class_name": "A",
        "resources": units,
        "placement": units or {"CPU": CPU},
        "job": b"\1\0\0\0",
        "lifetime": None,
        "max_restarts": 0,
        **more,
    }


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(10):
        while not (found := condition()):
            await asyncio.sleep(0.002)
        return found


class World:
    """A head, and whoever speaks to it."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "head.db")
        self.stopped: list[str] = []
        self.begin()

    def begin(self) -> None:
        facts = ClusterFacts(cluster_id=b"c" * 16, token=b"t", head="h:1", host="h", node_id=b"")
        loop = asyncio.get_running_loop()
        self.head = ClusterHead(loop, facts, Storage(self.path), on_stop=self.stopped.append)
        self.head.start()

    def restart(self) -> None:
        """As by kill -9: what was not written down is lost, and nobody is connected any more."""
        self.head.turn_over()  # (as it is after each batch of messages)
        self.head._closed = True
        for timer in (self.head._beat_timer, self.head._check_timer, self.head._retry_timer):
            if timer is not None:
                timer.cancel()
        self.head.storage.close()
        self.begin()

    def node(self, node_id: bytes = ONE, cpus: int = 2, **more: Any) -> Recorder:
        node = Recorder("node", node_id)
        self.head.peer_joined(node)
        total = {"CPU": cpus * CPU, **more.pop("resources", {})}
        info = {"node_id": node_id, "host": "127.0.0.1", "port": 1, "total": total, **more}
        assert self.ask(node, m.NODE_JOIN, info) == {}
        return node

    def driver(self, ident: bytes = b"d" * 28, node: bytes = ONE) -> Recorder:
        driver = Recorder("driver", ident, node=node)
        self.head.peer_joined(driver)
        return driver

    def ask(self, peer: Recorder, opcode: int, *fields: Any) -> Any:
        answer = peer.ask(self.head.handlers, opcode, *fields)
        self.head.turn_over()
        return answer

    def tell(self, peer: Recorder, opcode: int, *fields: Any) -> None:
        peer.tell(self.head.handlers, opcode, *fields)
        self.head.turn_over()

    def load(self, node: Recorder, cpus: float, seen: int = 0, busy: int = 0, pending: Any = ()) -> None:
        self.tell(node, m.NODE_LOAD, {"CPU": int(cpus * CPU)}, list(pending), None, seen, busy)

    def up(self, node: Recorder, actor: bytes = ACTOR, incarnation: int = 0) -> None:
        self.tell(node, m.ACTOR_PLACED, actor, incarnation, b"w", "tcp:w", 5, None)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(limits, "VIEW_BATCH", 0.01)
    monkeypatch.setattr(limits, "PLACE_PATIENCE", 0.02)
    monkeypatch.setattr(limits, "MEMBERSHIP_CHECK", 0.01)
    world = World(tmp_path)
    yield world
    world.head.close("over")


def placed(node: Recorder) -> list[tuple[bytes, int]]:
    return [(frame[0], frame[2]) for frame in node.take(m.ACTOR_PLACE)]


def states(peer: Recorder) -> list[str]:
    return [frame[1] for frame in peer.take(m.ACTOR_STATE)]


# ---- nodes -----------------------------------------------------------------------------------------------


async def test_nodes_hear_of_each_other(world: World) -> None:
    one = world.node(ONE)
    ((rows,),) = one.take(m.NODE_VIEW)
    assert [row["node_id"] for row in rows] == [ONE]
    two = world.node(TWO, labels={"zone": "b"})
    ((rows,),) = two.take(m.NODE_VIEW)
    assert [row["node_id"] for row in rows] == [ONE, TWO]
    frames = await until(lambda: one.take(m.NODE_VIEW))
    rows = [row for (part,) in frames for row in part]
    assert {"zone": "b"} in [row.get("labels") for row in rows]
    world.load(two, 1)
    await until(
        lambda: any(row.get("available") == {"CPU": CPU} for (p,) in one.take(m.NODE_VIEW) for row in p)
    )
    listed = world.ask(world.driver(), m.NODES)
    assert [(row["node_id"], row["alive"]) for row in listed] == [(ONE, True), (TWO, True)]
    assert world.ask(world.driver(), m.RESOURCES, True) == {"CPU": 3 * CPU}


async def test_loads_are_told_in_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VIEW_BATCH", 0.05)
    one = world.node(ONE)
    begin = world.head._loop.time()
    for number in range(200):
        world.load(one, number % 3 / 2)
        await asyncio.sleep(0.001)
    batches = (world.head._loop.time() - begin) / limits.VIEW_BATCH
    assert len(one.take(m.NODE_VIEW)) <= batches + 3


async def test_a_node_that_ends_in_order_is_gone_at_once(world: World) -> None:
    one, two = world.node(ONE), world.node(TWO)
    world.tell(two, m.NODE_LEAVE, "it was stopped")
    assert one.take(m.NODE_GONE) == [[TWO, "it was stopped"]] and two.closed
    assert [row["alive"] for row in world.ask(world.driver(), m.NODES)] == [True, False]
    assert world.ask(world.driver(), m.RESOURCES, False) == {"CPU": 2 * CPU}
    with pytest.raises(NodeFencedError):
        world.node(TWO)


async def test_a_lost_connection_is_a_verdict_after_a_moment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "NODE_BACK", 0.05)
    one, two = world.node(ONE), world.node(TWO)
    world.head.peer_lost(two)
    assert not one.take(m.NODE_GONE)
    await until(lambda: one.take(m.NODE_GONE))
    world.restart()  # and it stays one
    with pytest.raises(NodeFencedError):
        world.node(TWO)


async def test_only_a_node_joins(world: World) -> None:
    with pytest.raises(ValueError, match="only a node"):
        world.ask(world.driver(), m.NODE_JOIN, {"node_id": ONE, "total": {}})
    with pytest.raises(ValueError, match="only a node"):
        world.ask(Recorder("node", TWO), m.NODE_JOIN, {"node_id": ONE, "total": {}})


# ---- actors ----------------------------------------------------------------------------------------------


async def test_actors_go_where_there_is_room(world: World) -> None:
    one, two = world.node(ONE, 1), world.node(TWO, 2)
    driver = world.driver()
    for number in range(3):
        world.ask(driver, m.ACTOR_CREATE, bytes([number]) * 16, spec(1))
    assert len(placed(one)) == 1 and len(placed(two)) == 2
    # A load that does not know of them yet does not free what they will take.
    world.load(two, 2, seen=0)
    world.ask(driver, m.ACTOR_CREATE, ACTOR, spec(1))
    assert not placed(two)
    world.load(two, 1, seen=2)
    await until(lambda: placed(two) == [(ACTOR, 0)])


async def queued(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Two busy nodes: that in whose queue an actor waits, and the other one, which has room now."""
    monkeypatch.setattr(limits, "PLACE_ELSEWHERE", 0.05)
    one, two = world.node(ONE, 1), world.node(TWO, 1)
    world.load(one, 0)
    world.load(two, 0)
    world.ask(world.driver(), m.ACTOR_CREATE, ACTOR, spec(1))
    assert world.ask(world.driver(), m.HEAD_DEMAND)["pending"] == [[{"CPU": CPU}, None, 1]]
    queue = await until(lambda: (placed(one) and one) or (placed(two) and two))
    other = two if queue is one else one
    world.load(other, 1)
    return queue, other


async def test_when_all_are_busy_it_waits_in_the_queue_of_a_node(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, other = await queued(world, monkeypatch)
    await until(lambda: queue.take(m.ACTOR_RECALL) == [[ACTOR, 0]])
    assert not placed(other), "not before that node has given it up"
    world.tell(queue, m.ACTOR_REFUSED, ACTOR, 0, {"CPU": 0})
    await until(lambda: placed(other) == [(ACTOR, 0)])
    world.up(other)
    assert world.ask(world.driver(), m.HEAD_DEMAND)["pending"] == []
    assert not queue.take(m.ACTOR_END)


async def test_what_was_begun_in_the_queue_of_a_node_stays_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its constructor runs when another node has room: it is not run twice."""
    queue, other = await queued(world, monkeypatch)
    for _ in range(2):  # (it asks again, for it may wait there for long)
        await until(lambda: queue.take(m.ACTOR_RECALL) == [[ACTOR, 0]])
    world.up(queue)
    assert not placed(other)
    assert not queue.take(m.ACTOR_END)


async def test_what_nobody_has_is_told_once_and_waited_for(world: World) -> None:
    world.node(ONE)
    driver = world.driver()
    world.ask(driver, m.ACTOR_CREATE, ACTOR, spec(0, placement={"oven": CPU}, resources={"oven": CPU}))
    ((actor, text),) = driver.take(m.ACTOR_WARNING)
    assert actor == ACTOR and "oven" in text
    await asyncio.sleep(0.1)
    assert not driver.take(m.ACTOR_WARNING)
    two = world.node(TWO, resources={"oven": CPU})
    await until(lambda: placed(two) == [(ACTOR, 0)])


async def test_on_a_node_that_is_dead_it_can_never_be(world: World) -> None:
    world.node(ONE)
    two = world.node(TWO)
    world.tell(two, m.NODE_LEAVE, "stopped")
    driver = world.driver()
    world.ask(driver, m.ACTOR_CREATE, ACTOR, spec(strategy=["node", TWO.hex(), False]))
    ((_, state, _, _, detail),) = driver.take(m.ACTOR_STATE)
    assert state == "DEAD" and "ActorUnschedulableError" in str(detail["error"])


async def test_the_death_of_a_node_moves_its_actors(world: World) -> None:
    one, two = world.node(ONE), world.node(TWO)
    driver = world.driver(node=ONE)
    for actor, restarts in ((ACTOR, 1), (OTHER, 0)):
        where = ["node", TWO.hex(), True]
        world.ask(driver, m.ACTOR_CREATE, actor, spec(max_restarts=restarts, strategy=where))
        world.up(two, actor)
    driver.take(m.ACTOR_STATE)
    world.tell(two, m.NODE_LEAVE, "cable")
    told = {frame[0]: frame for frame in driver.take(m.ACTOR_STATE)}
    assert told[ACTOR][1] == "RESTARTING" and told[OTHER][1] == "DEAD"
    assert TWO.hex()[:8] in told[OTHER][4]["text"] and "cable" in told[OTHER][4]["text"]
    await until(lambda: placed(one) == [(ACTOR, 1)])


async def test_late_news_of_another_node_does_not_count(world: World) -> None:
    one, two = world.node(ONE), world.node(TWO)
    driver = world.driver()
    world.ask(driver, m.ACTOR_CREATE, ACTOR, spec(strategy=["node", ONE.hex(), True]))
    world.up(one)
    world.tell(two, m.ACTOR_GONE, ACTOR, 0, "not mine", False, 0, "")
    assert states(driver) == ["ALIVE"]


# ---- owners ----------------------------------------------------------------------------------------------


async def test_an_owner_whose_node_is_back_is_left_to_that(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "OWNER_BACK", 0.02)
    driver = world.driver()
    world.head.peer_lost(driver)
    assert world.head._leaving  # (its node is not here)
    world.node(ONE, processes=[driver.ident])
    await until(lambda: not world.head._leaving)
    assert driver.ident in world.head._owner_nodes


async def test_an_owner_may_come_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OWNER_BACK", 0.05)
    one = world.node(ONE)
    driver = world.driver(node=b"")  # one whose node is not known
    world.ask(driver, m.ACTOR_CREATE, ACTOR, spec())
    world.up(one)
    world.head.peer_lost(driver)
    driver = world.driver(node=b"")
    await asyncio.sleep(0.1)
    assert not one.take(m.ACTOR_END)
    world.head.peer_lost(driver)
    await until(lambda: one.take(m.ACTOR_END))


async def test_an_owner_lives_as_long_as_its_node_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is held up, for example in a debugger, and whatever becomes of the head."""
    monkeypatch.setattr(limits, "OWNER_BACK", 0.05)
    monkeypatch.setattr(limits, "OWNER_BACK_AFTER_RESTART", 0.05)
    one = world.node(ONE)
    driver = world.driver()
    world.ask(driver, m.JOB_START, {})
    world.ask(driver, m.ACTOR_CREATE, ACTOR, spec())
    world.up(one)
    world.head.peer_lost(driver)
    world.restart()
    here = [[ACTOR, 0, b"w", "tcp:w", 5]]
    one = world.node(ONE, actors=here, processes=[driver.ident])
    await asyncio.sleep(0.15)
    assert not one.take(m.ACTOR_END) and not one.take(m.JOB_END)
    world.restart()
    one = world.node(ONE, actors=here, processes=[])  # it has ended meanwhile
    assert [frame[0] for frame in one.take(m.ACTOR_END)] == [ACTOR] and one.take(m.JOB_END)


async def test_the_end_of_an_owner_ends_its_actors_and_its_job(world: World) -> None:
    one, two = world.node(ONE), world.node(TWO)
    driver = world.driver()
    job = world.ask(driver, m.JOB_START, {})["job"]
    assert world.ask(driver, m.JOB_START, {})["job"] == job  # a call that is made again
    wire = job.to_bytes(4, "little")
    assert world.ask(two, m.JOB_NODE, wire) == ONE
    world.ask(driver, m.ACTOR_CREATE, ACTOR, spec())
    world.ask(driver, m.ACTOR_CREATE, OTHER, spec(lifetime="detached"))
    for actor in (ACTOR, OTHER):
        node = one if any(frame[1] == actor for frame in one.said if frame[0] == m.ACTOR_PLACE) else two
        world.up(node, actor)
    for _ in range(2):
        world.tell(one, m.OWNER_GONE, driver.ident, "driver", wire)
    ended = [frame[0] for node in (one, two) for frame in node.take(m.ACTOR_END)]
    assert ended == [ACTOR]
    assert one.take(m.JOB_END) == two.take(m.JOB_END) == [[wire]]
    assert world.ask(two, m.JOB_NODE, wire) is None
    three = world.node(b"3" * 28)
    assert three.take(m.JOB_END) == [[wire]]


async def test_the_death_of_a_node_is_the_end_of_its_owners(world: World) -> None:
    one, two = world.node(ONE), world.node(TWO)
    driver = world.driver(node=TWO)
    world.ask(driver, m.ACTOR_CREATE, ACTOR, spec(strategy=["node", ONE.hex(), True]))
    world.up(one)
    world.tell(two, m.NODE_LEAVE, "cable")
    assert [frame[0] for frame in one.take(m.ACTOR_END)] == [ACTOR]


async def test_who_has_ended_with_his_node_and_does_not_know_makes_nothing(world: World) -> None:
    """Nobody would end it: he is gone already."""
    one, two = world.node(ONE), world.node(TWO)
    driver = world.driver(node=TWO)
    world.tell(two, m.NODE_LEAVE, "cable")
    group = {"strategy": "PACK", "bundles": [{"CPU": CPU}], "name": "", "namespace": ""}
    group |= {"job": b"\1\0\0\0", "actor": b"", "detached": False}
    for asked in (m.ACTOR_CREATE, ACTOR, spec()), (m.GROUP_CREATE, b"g" * 18, group):
        with pytest.raises(LocalNodeDiedError, match="declared dead: cable"):
            world.ask(driver, *asked)
        world.ask(world.driver(b"e" * 28), *asked)
    assert len(placed(one)) == 1


# ---- drains ----------------------------------------------------------------------------------------------


async def test_a_drain_is_answered_when_nothing_is_left(world: World) -> None:
    one, two = world.node(ONE), world.node(TWO)
    driver, tool = world.driver(), Recorder("tool", b"t")
    world.ask(driver, m.ACTOR_CREATE, ACTOR, spec(max_restarts=1, strategy=["node", TWO.hex(), True]))
    world.up(two)
    assert placed(two)
    world.tell(tool, m.NODE_DRAIN, 0, TWO, "maintenance")
    assert [frame[:3] for frame in two.take(m.ACTOR_END)] == [[ACTOR, 0, False]]
    await until(lambda: any(row.get("draining") for (part,) in two.take(m.NODE_VIEW) for row in part))
    world.load(two, 1, busy=0)
    assert tool.answers == [], "it may not have known yet that it drains"
    world.load(two, 1, busy=1)
    two.calls[two.take(m.NODE_DRAIN)[0][0]].set_result(None)
    assert tool.answers == []
    world.tell(two, m.ACTOR_GONE, ACTOR, 0, "drained", True, 0, "")
    await until(lambda: placed(one) == [(ACTOR, 1)])
    await asyncio.sleep(0)
    world.load(two, 2, busy=0)
    assert tool.answers == [{"drained": True, "reason": "maintenance"}]
    world.ask(driver, m.ACTOR_CREATE, OTHER, spec())
    assert placed(one) and not placed(two)


async def test_a_drain_of_nobody(world: World) -> None:
    with pytest.raises(ValueError, match="no node"):
        world.ask(Recorder("tool", b"t"), m.NODE_DRAIN, TWO, "")


# ---- restarts of the head --------------------------------------------------------------------------------


async def test_owners_are_not_late_when_the_head_was_held_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped, and goes on: those who had no answer meanwhile get the time to come."""
    monkeypatch.setattr(limits, "OWNER_BACK", 0.02)
    monkeypatch.setattr(limits, "OWNER_BACK_AFTER_RESTART", 0.02)
    held_up: list[bool] = [True] * 3
    one = world.node(ONE)
    driver = world.driver(node=TWO)  # whose node is not there to tell of it
    world.ask(driver, m.ACTOR_CREATE, ACTOR, spec())
    world.up(one)
    world.restart()
    monkeypatch.setattr(world.head.membership, "held_up", lambda now: bool(held_up and held_up.pop()))
    one = world.node(ONE, actors=[[ACTOR, 0, b"w", "tcp:w", 5]])
    await until(lambda: len(held_up) < 2)
    assert not one.take(m.ACTOR_END)
    await until(lambda: one.take(m.ACTOR_END))
    assert not held_up


async def test_after_a_restart_it_goes_on(world: World) -> None:
    one = world.node(ONE)
    driver = world.driver()
    job = world.ask(driver, m.JOB_START, {})["job"]
    world.ask(driver, m.ACTOR_CREATE, ACTOR, spec(name="n", namespace="s", lifetime="detached"))
    world.ask(driver, m.ACTOR_CREATE, OTHER, spec())
    world.up(one)
    world.up(one, OTHER)
    world.restart()
    found = world.ask(world.driver(b"e" * 28), m.ACTOR_FIND, "n", "s")
    assert found["actor"] == ACTOR
    assert world.ask(world.driver(b"e" * 28), m.JOB_START, {})["job"] == job + 1
    assert [row["alive"] for row in world.ask(world.driver(), m.NODES)] == [True]
    one = world.node(ONE, actors=[[ACTOR, 0, b"w", "tcp:w", 5], [OTHER, 0, b"w", "tcp:w", 5]])
    assert not one.take(m.ACTOR_END) and not placed(one)
    driver = world.driver()
    world.tell(driver, m.ACTOR_WATCH, OTHER)
    assert states(driver) == ["ALIVE"]


async def test_a_verdict_that_the_disk_did_not_take_stays_one(world: World) -> None:
    """The others have heard of it: it must not come back for some of them."""
    three = b"3" * 28
    world.node(ONE), world.node(TWO)
    world.restart()
    two = world.node(TWO)
    world.node(ONE, gone=[[TWO, "silence"], [three, "silence"], [ONE, "never of oneself"]])
    assert two.closed
    world.restart()
    for node_id in (TWO, three):
        with pytest.raises(NodeFencedError):
            world.node(node_id)
    world.node(ONE)


async def test_what_happened_while_the_head_was_away(world: World) -> None:
    one = world.node(ONE)
    driver = world.driver()
    for actor in (ACTOR, OTHER):
        world.ask(driver, m.ACTOR_CREATE, actor, spec(max_restarts=1))
    world.up(one)
    world.restart()
    driver = world.driver()
    world.tell(driver, m.ACTOR_WATCH, ACTOR)
    driver.take(m.ACTOR_STATE)
    # One has ended, and its node remembers how; the other, which was on its way, never arrived.
    words = [[m.ACTOR_GONE, ACTOR, 0, "it crashed", False, 42, ""]]
    one = world.node(ONE, actors=[], last_words=words)
    ((_, state, _, incarnation, detail),) = driver.take(m.ACTOR_STATE)
    assert (state, incarnation, detail["text"], detail["running"]) == ("RESTARTING", 1, "it crashed", 42)
    await until(lambda: len(one.said) and {(ACTOR, 1), (OTHER, 0)} <= set(placed(one)))


async def test_owners_that_do_not_come_back_are_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OWNER_BACK_AFTER_RESTART", 0.1)
    one = world.node(ONE)
    for ident, actor in ((b"d" * 28, ACTOR), (b"e" * 28, OTHER)):
        world.ask(world.driver(ident), m.ACTOR_CREATE, actor, spec())
        world.up(one, actor)
    world.restart()
    here = [[actor, 0, b"w", "tcp:w", 5] for actor in (ACTOR, OTHER)]
    one = world.node(ONE, actors=here)
    world.driver(b"e" * 28)
    await until(lambda: [frame[0] for frame in one.take(m.ACTOR_END)] == [ACTOR])
    await asyncio.sleep(0.1)
    assert not one.take(m.ACTOR_END)


async def test_the_end_of_the_cluster_is_told(world: World) -> None:
    one = world.node(ONE)
    world.ask(Recorder("tool", b"t"), m.HEAD_STOP, "enough")
    assert world.stopped == ["enough"]
    world.head.close("enough")
    assert "enough" in one.take(m.NODE_STOP)[0][0]
    assert world.head.count_nodes() == 1


@pytest.mark.parametrize("times", [1, 2])
async def test_every_request_may_arrive_twice(world: World, times: int) -> None:
    """The same story, told once or with every message doubled, ends the same."""

    def tell(peer: Recorder, opcode: int, *fields: Any) -> None:
        for _ in range(times):
            world.tell(peer, opcode, *fields)

    def ask(peer: Recorder, opcode: int, *fields: Any) -> Any:
        return [world.ask(peer, opcode, *fields) for _ in range(times)][-1]

    one = world.node(ONE)
    info = {"node_id": ONE, "host": "h", "port": 1, "total": {"CPU": 2 * CPU}}
    ask(one, m.NODE_JOIN, info)
    driver = world.driver()
    assert ask(driver, m.JOB_START, {})["job"] == 1
    ask(driver, m.ACTOR_CREATE, ACTOR, spec(name="n", max_restarts=2))
    tell(one, m.ACTOR_PLACED, ACTOR, 0, b"w", "tcp:w", 5, None)
    ask(driver, m.ACTOR_SAVE, ACTOR, 0, b"state", None)
    tell(one, m.ACTOR_GONE, ACTOR, 0, "crash", False, 1, "")
    tell(one, m.ACTOR_PLACED, ACTOR, 1, b"v", "tcp:v", 6, None)
    tell(driver, m.ACTOR_WATCH, ACTOR)
    ask(driver, m.ACTOR_CREATE, OTHER, spec())
    ask(driver, m.ACTOR_KILL, OTHER, True, "enough")
    tell(one, m.ACTOR_GONE, OTHER, 0, "it was killed", False, 0, "")
    tell(one, m.NODE_LOAD, {"CPU": CPU}, [], None, 1, 1)
    record = world.head.actors.records[ACTOR]
    assert (record.state, record.incarnation, record.restarts, record.saved) == ("ALIVE", 1, 1, [b"state"])
    detail = world.head.actors.records[OTHER].detail
    assert detail is not None and detail["text"] == "enough"
    assert states(driver)[-1] == "DEAD" and world.head.placing.pending() == []
    assert [frame[2] for frame in one.take(m.ACTOR_PLACE) if frame[0] == ACTOR] == [0, 1]
    tell(one, m.OWNER_GONE, driver.ident, "driver", b"\1\0\0\0")
    assert record.state == "DEAD" and one.take(m.JOB_END) == [[b"\1\0\0\0"]]
    tell(one, m.NODE_LEAVE, "over")
    assert world.head.count_nodes() == 0 and list(world.head.membership.fenced) == [ONE]
