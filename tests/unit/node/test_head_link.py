"""A node's way to the head, over real sockets: joins, comes back, is fenced, gives up."""

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
from framework._net.listener import Listener
from framework._net.tcp import PeerListener
from framework._node.head_link import HeadLink
from framework._wire import messages as m
from framework.exceptions import ConnectionFailedError
from support.connections import Recorder

ACTOR = b"a" * 16


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(10):
        while not (found := condition()):
            await asyncio.sleep(0.002)
        return found


class Head:
    """A head that listens, and can be ended as by kill -9 and begun again."""

    def __init__(self, directory: Path, tcp: bool) -> None:
        (directory / "sockets").mkdir()
        self.directory = directory
        self.tcp = tcp
        self.facts = ClusterFacts(
            cluster_id=b"c" * 16, token=b"t" * 32, head="127.0.0.1:0", host="127.0.0.1", node_id=b""
        )
        self.port = 0
        self.begin()

    def begin(self) -> None:
        loop = asyncio.get_running_loop()
        self.service = ClusterHead(loop, self.facts, Storage(str(self.directory / "head.db")))
        self.service.start()
        common: dict[str, Any] = {
            "on_peer": self.service.peer_joined,
            "on_close": self.service.peer_lost,
            "on_batch": self.service.turn_over,
            "ident": b"c" * 16,
        }
        self.listener: Listener | PeerListener
        if self.tcp:
            self.listener = PeerListener(
                loop, self.facts, self.service.handlers, port=self.port, name="head", **common
            )
            self.port = self.listener.port
        else:
            path = str(self.directory / "sockets" / "head")
            self.listener = Listener(loop, path, self.service.handlers, name="head", **common)

    def end(self) -> None:
        if self.service._closed:
            return
        service = self.service
        for timer in (service._beat_timer, service._check_timer, service._retry_timer, service._tell_timer):
            if timer is not None:
                timer.cancel()
        service._closed = True
        service.storage.close()
        self.listener.close()


class Node:
    """A link, and all that it says."""

    def __init__(self, head: Head, letter: bytes = b"n", **more: Any) -> None:
        self.node_id = letter * 28
        facts = ClusterFacts(
            cluster_id=b"c" * 16,
            token=b"t" * 32,
            head=f"127.0.0.1:{head.port or 1}",
            host="127.0.0.1",
            node_id=self.node_id,
        )
        self.rows: list[dict[str, Any]] = []
        self.gone: list[bytes] = []
        self.ends: list[str] = []
        self.joins = 0
        self.places: list[bytes] = []
        self.actors: list[Any] = []
        self.link = HeadLink(
            asyncio.get_running_loop(),
            facts,
            str(head.directory),
            info=self.info,
            handlers={m.ACTOR_PLACE: lambda c, f: self.places.append(f[1]), m.JOB_END: lambda c, f: None},
            on_rows=self.rows.extend,
            on_gone=lambda node, reason: self.gone.append(node),
            on_end=self.ends.append,
            on_joined=self.joined,
            **more,
        )
        self.link.start()

    def joined(self, reply: dict[str, Any]) -> None:
        self.joins += 1

    def info(self) -> dict[str, Any]:
        return {
            "node_id": self.node_id,
            "host": "127.0.0.1",
            "port": 5,
            "total": {"CPU": 1},
            "actors": self.actors,
        }

    def load(self, cpus: int, busy: int = 0) -> None:
        self.link.cast(m.NODE_LOAD, {"CPU": cpus}, [], None, 0, busy)


@pytest.fixture(params=[False, True], ids=["unix", "tcp"])
async def head(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Head]:
    monkeypatch.setattr(limits, "VIEW_BATCH", 0.01)
    monkeypatch.setattr(limits, "MEMBERSHIP_CHECK", 0.01)
    head = Head(tmp_path, request.param)
    yield head
    head.end()


@pytest.fixture
async def make(head: Head) -> AsyncIterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(*args: Any, **more: Any) -> Node:
        made.append(Node(head, *args, **more))
        return made[-1]

    yield make
    for node in made:
        node.link.stop()


async def test_nodes_know_each_other_with_full_rows(head: Head, make: Callable[..., Node]) -> None:
    one = make(b"1")
    await until(lambda: one.joins)
    two = make(b"2")
    await until(lambda: two.joins and any(row["node_id"] == two.node_id for row in one.rows))
    two.load(7)
    row = await until(
        lambda: next(
            (r for r in one.rows if r["node_id"] == two.node_id and r["available"] == {"CPU": 7}), None
        )
    )
    assert (row["host"], row["port"], row["alive"]) == ("127.0.0.1", 5, True)
    two.link.leave("enough")
    await until(lambda: one.gone == [two.node_id])


async def test_the_head_goes_and_comes(head: Head, make: Callable[..., Node]) -> None:
    node = make()
    await until(lambda: node.joins == 1)
    head.end()
    await until(lambda: node.link.closed)
    with pytest.raises(ConnectionFailedError):
        await node.link.call(m.NODES)
    node.load(3)
    node.link.cast(m.ACTOR_PLACED, ACTOR, 0, b"w", "tcp:w", 1, None)  # the join tells of it
    begin = asyncio.get_running_loop().time()
    head.begin()
    await until(lambda: node.joins == 2)
    assert asyncio.get_running_loop().time() - begin < 1.0
    await until(lambda: head.service.membership.rows()[0]["available"] == {"CPU": 3})
    assert [row["node_id"] for row in await node.link.call(m.NODES)] == [node.node_id]
    assert not node.ends


async def test_last_words_are_said_again(head: Head, make: Callable[..., Node]) -> None:
    node = make()
    await until(lambda: node.joins)
    spec = {"class_name": "A", "resources": {}, "placement": {}, "job": b"", "max_restarts": 0}
    head.service._run(head.service.actors.create(ACTOR, spec, b"owner", watcher=Recorder("driver", b"d")))
    await until(lambda: node.places == [ACTOR])
    head.service._actor_placed(
        head.service._peers[node.node_id], [m.ACTOR_PLACED, ACTOR, 0, b"w", "tcp:w", 1, None]
    )
    head.service.turn_over()
    head.end()
    await until(lambda: node.link.closed)
    node.link.cast(m.ACTOR_GONE, ACTOR, 0, "it fell over", False, 7, "")
    head.begin()
    await until(lambda: node.joins == 2)
    record = head.service.actors.records[ACTOR]
    assert record.detail is not None and record.detail["text"] == "it fell over"


async def test_last_words_are_forgotten_when_a_head_that_is_there_has_heard_them(
    head: Head, make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT", 0.01)
    node = make()
    await until(lambda: node.joins)
    for number in range(100):
        node.link.cast(m.OWNER_GONE, number.to_bytes(28, "big"), "worker", b"")
    assert len(node.link._last_words) == 100, "it may not have read them yet"
    monkeypatch.setattr(limits, "LAST_WORDS_AGE", 0.02)
    await until(lambda: not node.link._last_words)
    head.end()
    await until(lambda: node.link.closed)
    node.link.cast(m.OWNER_GONE, b"o" * 28, "worker", b"")
    ticked = node.link._ticked
    await until(lambda: node.link._ticked > ticked + 2 * limits.LAST_WORDS_AGE)
    assert len(node.link._last_words) == 1, "they get no older while nobody hears them"
    head.begin()
    await until(lambda: node.joins == 2 and not node.link._last_words)


async def test_a_fenced_node_ends(head: Head, make: Callable[..., Node]) -> None:
    node, other = make(b"n"), make(b"o")
    await until(lambda: node.joins and other.joins)
    head.service._judge(head.service.membership.leave(node.node_id, "it was silent"))
    await until(lambda: node.ends)
    assert "it was silent" in node.ends[0] and len(node.ends) == 1
    await until(lambda: other.gone == [node.node_id])


async def test_deaths_that_were_missed_are_told(head: Head, make: Callable[..., Node]) -> None:
    node, other = make(b"n"), make(b"o")
    await until(lambda: node.joins and any(row["node_id"] == other.node_id for row in node.rows))
    head.end()
    other.link.stop()
    await until(lambda: node.link.closed)
    head.begin()
    for member in head.service.membership.members.values():
        if member.node_id == other.node_id:
            member.deadline = 0.0
    await until(lambda: node.gone == [other.node_id])


@pytest.mark.parametrize("lives", [True, False])
async def test_a_head_that_has_forgotten_who_had_joined(
    head: Head, make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    """Its disk had not taken it. Whom it does not know (yet) is not dead for that."""
    node, other = make(b"n"), make(b"o")
    await until(lambda: node.joins and any(row["node_id"] == other.node_id for row in node.rows))
    monkeypatch.setattr(limits, "HEARTBEAT", 0.01)
    monkeypatch.setattr(limits, "NODE_BACK_AFTER_RESTART", 5.0 if lives else 0.01)
    if not lives:
        other.link.stop()
    head.end()
    storage = Storage(str(head.directory / "head.db"))
    storage.delete("node", other.node_id)
    storage.close()
    head.begin()
    if lives:
        await until(lambda: other.node_id in node.link._known and head.service.count_nodes() == 2)
        node.link._late([other.node_id])
        assert node.gone == []
    else:
        await until(lambda: node.gone == [other.node_id])


async def test_a_head_that_never_answers_is_given_up(head: Head, make: Callable[..., Node]) -> None:
    head.end()
    node = make(join_timeout=0.1)
    await until(lambda: node.ends)
    assert "cannot be reached" in node.ends[0]


async def test_a_head_that_falls_silent_is_reconnected(
    head: Head, make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT", 0.02)
    monkeypatch.setattr(limits, "NODE_SILENCE", 0.2)
    node = make()
    await until(lambda: node.joins)
    monkeypatch.setattr(head.service, "_tell_nodes", lambda rows: None)
    await until(lambda: node.joins == 2)


async def test_the_end_of_the_cluster(head: Head, make: Callable[..., Node]) -> None:
    node = make()
    await until(lambda: node.joins)
    head.service.close("enough")
    await until(lambda: node.ends)
    assert "enough" in node.ends[0]


async def test_how_many_placements_a_load_reckons_in(head: Head, make: Callable[..., Node]) -> None:
    node = make()
    await until(lambda: node.joins)
    spec = {
        "class_name": "A",
        "resources": {"CPU": 1},
        "placement": {"CPU": 1},
        "job": b"",
        "max_restarts": 0,
    }
    head.service._run(head.service.actors.create(ACTOR, spec, b"owner", watcher=Recorder("driver", b"d")))
    await until(lambda: node.places)
    view = head.service.placing.view.nodes[node.node_id]
    assert view.available == {"CPU": 0}
    node.load(0)
    await until(lambda: not head.service.placing._nodes[node.node_id].claims)
    assert view.available == {"CPU": 0}
