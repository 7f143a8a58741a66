"""Managers of nodes that know each other, over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from framework._base import limits
from framework._net.connection import Connection, Frame
from framework._net.tcp import bind_tcp, open_connection
from framework._node.neighbours import Neighbours
from framework._wire import messages as m
from framework.exceptions import ConnectionFailedError, NodeDiedError
from support.clusters import cluster_facts


def node_id(number: int) -> bytes:
    return bytes([number]) * 28


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class Node:
    """One node's neighbours, and what it has heard of them."""

    def __init__(self, number: int, **options: Any) -> None:
        self.id = node_id(number)
        self.frames: list[tuple[bytes, Frame]] = []
        self.lost: list[Connection] = []
        self.gone: list[tuple[bytes, str]] = []
        self.neighbours = Neighbours(asyncio.get_running_loop(), cluster_facts(node_id=self.id, **options))
        self.neighbours.handlers[m.UNBORROW] = self._frame
        self.neighbours.handlers[m.RESOURCES] = self._asked
        self.neighbours.on_lost.append(self.lost.append)
        self.neighbours.on_gone.append(lambda *dead: self.gone.append(dead))
        assert self.neighbours.port == 0
        self.port = self.neighbours.listen()
        assert self.neighbours.port == self.port

    def _frame(self, connection: Connection, frame: Frame) -> None:
        self.frames.append((connection.ident, frame))

    def _asked(self, connection: Connection, frame: Frame) -> None:
        connection.reply(frame[1], self.id)

    @property
    def row(self) -> dict[str, Any]:
        return {"node_id": self.id, "alive": True, "host": "127.0.0.1", "port": self.port}

    def to(self, other: Node) -> Connection:
        connection = self.neighbours.connection(other.id)
        assert connection is not None
        return connection


async def nodes(count: int, **options: Any) -> list[Node]:
    made = [Node(number, **options) for number in range(count)]
    for node in made:
        node.neighbours.update([other.row for other in made])
    return made


def close(made: list[Node]) -> None:
    for node in made:
        node.neighbours.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_connection_is_opened_when_it_is_needed(tls: bool) -> None:
    one, two, three = made = await nodes(3, tls=tls)
    assert one.neighbours.others() == [two.id, three.id]
    assert one.neighbours.existing(two.id) is None
    connection = one.to(two)
    assert connection.opening and connection.kind == "node" and connection.ident == two.id
    assert one.to(two) is connection is one.neighbours.existing(two.id) and connection.state == {}
    connection.cast(m.UNBORROW, [1])
    assert await connection.call(m.RESOURCES, True) == two.id
    assert two.frames == [(one.id, [m.UNBORROW, [1]])]
    # The other side uses the same connection.
    back = two.neighbours.existing(one.id)
    assert back is not None and two.to(one) is back and back.kind == "node"
    assert await back.call(m.RESOURCES, True) == one.id
    assert not three.neighbours.existing(one.id)
    close(made)
    assert not one.lost and not two.lost


async def test_both_open_at_the_same_time() -> None:
    one, two = made = await nodes(2)
    there, back = one.to(two), two.to(one)
    there.cast(m.UNBORROW, [1])
    back.cast(m.UNBORROW, [2])
    assert await asyncio.gather(there.call(m.RESOURCES, True), back.call(m.RESOURCES, True)) == [
        two.id,
        one.id,
    ]
    assert one.frames == [(two.id, [m.UNBORROW, [2]])] and two.frames == [(one.id, [m.UNBORROW, [1]])]
    assert one.to(two) is there and two.to(one) is back
    there.close()
    await until(lambda: two.lost)
    assert one.to(two) is not there and not one.to(two).closed
    assert await one.to(two).call(m.RESOURCES, True) == two.id
    close(made)


async def test_a_connection_that_was_lost_is_opened_again() -> None:
    one, two = made = await nodes(2)
    first = one.to(two)
    await first.call(m.RESOURCES, True)
    two.neighbours.existing(one.id).close()  # type: ignore[union-attr]
    await until(lambda: one.lost)
    assert one.lost == [first] and len(two.lost) == 1
    assert await one.to(two).call(m.RESOURCES, True) == two.id
    close(made)


async def test_unknown_nodes_and_this_one() -> None:
    one, two = made = await nodes(2)
    assert one.neighbours.connection(node_id(9)) is None
    assert one.neighbours.connection(one.id) is None
    one.neighbours.update([{**two.row, "port": 0}])
    assert one.neighbours.connection(two.id) is None
    close(made)
    assert one.neighbours.connection(two.id) is None


@pytest.mark.parametrize("by_row", [False, True])
async def test_the_death_of_a_node(by_row: bool) -> None:
    one, two = made = await nodes(2)
    connection = one.to(two)
    await connection.call(m.RESOURCES, True)
    incoming = two.neighbours.existing(one.id)
    call = incoming.call(m.NODES)  # type: ignore[union-attr]
    for node, other in ((one, two), (two, one)):
        if by_row:
            node.neighbours.update([{**other.row, "alive": False, "reason": "no heartbeat"}])
        else:
            node.neighbours.gone(other.id, "no heartbeat")
    assert connection.closed and isinstance(connection.error, NodeDiedError)
    assert "has died: no heartbeat" in str(connection.error)
    with pytest.raises(ConnectionFailedError, match="has died: no heartbeat"):
        await call
    assert one.gone == [(two.id, "no heartbeat")] and one.lost == [connection]
    assert one.neighbours.connection(two.id) is None and one.neighbours.dead(two.id) == "no heartbeat"
    # It does not come back, whatever a late row says, and it hears of it only once.
    one.neighbours.update([two.row])
    one.neighbours.gone(two.id, "again")
    assert one.neighbours.connection(two.id) is None and not one.neighbours.others() and len(one.gone) == 1
    close(made)


async def test_the_death_of_a_node_that_is_being_reached() -> None:
    one = Node(1)
    with bind_tcp("127.0.0.1") as silent:
        row = {"node_id": node_id(2), "alive": True, "host": "127.0.0.1", "port": silent.getsockname()[1]}
        one.neighbours.update([row])
        connection = one.neighbours.connection(node_id(2))
        assert connection is not None and connection.opening
        call = connection.call(m.NODES)
        one.neighbours.gone(node_id(2), "its machine is gone")
        with pytest.raises(ConnectionFailedError, match="has died: its machine is gone"):
            await call
    one.neighbours.close()


async def test_a_dead_node_that_connects_is_refused() -> None:
    one, two = made = await nodes(2)
    two.neighbours.gone(one.id, "it was silent")
    connection = one.to(two)
    await until(lambda: connection.closed)
    assert one.lost == [connection] and not two.lost
    close(made)


async def test_a_node_that_cannot_be_reached_is_not_tried_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "CONNECT_AGAIN", 0.05)
    one = Node(1)
    with bind_tcp("127.0.0.1") as sock:
        port = sock.getsockname()[1]
    one.neighbours.update([{"node_id": node_id(2), "alive": True, "host": "127.0.0.1", "port": port}])
    connection = one.neighbours.connection(node_id(2))
    assert connection is not None
    await until(lambda: connection.closed)
    assert one.lost == [connection] and "cannot be reached" in str(connection.error)
    assert one.neighbours.connection(node_id(2)) is None
    await until(lambda: one.neighbours.connection(node_id(2)) is not None)
    one.neighbours.close()


async def test_another_node_answers_at_its_address() -> None:
    one, two, three = made = await nodes(3)
    one.neighbours.update([{**two.row, "port": three.port}])
    connection = one.to(two)
    connection.cast(m.UNBORROW, [1])
    await until(lambda: connection.closed)
    assert one.lost == [connection] and not three.frames and not three.neighbours.existing(one.id)
    close(made)


async def test_only_nodes_may_connect() -> None:
    from framework._net.listener import hello

    one = Node(1)
    for kind, ident in (("owner", b"me"), ("node", one.id)):
        ended: list[Connection] = []
        connection = open_connection(
            asyncio.get_running_loop(), "127.0.0.1", one.port, cluster_facts(), {}, on_close=ended.append
        )
        connection.cast(*hello(kind, ident))
        await until(lambda ended=ended: ended)  # type: ignore[misc]
    assert not one.lost and one.neighbours.existing(one.id) is None
    one.neighbours.close()


async def test_one_node_does_not_hold_many_connections() -> None:
    from framework._net.listener import hello

    one = Node(1)
    loop = asyncio.get_running_loop()
    ended: list[Connection] = []
    made = []
    for _ in range(3 * limits.MAX_NEIGHBOUR_CONNECTIONS):
        connection = open_connection(
            loop,
            "127.0.0.1",
            one.port,
            cluster_facts(),
            {m.WELCOME: lambda c, f: None},
            on_close=ended.append,
        )
        connection.cast(*hello("node", node_id(2)))
        made.append(connection)
    await until(lambda: len(ended) == 2 * limits.MAX_NEIGHBOUR_CONNECTIONS)
    one.neighbours.close()
    await until(lambda: len(ended) == len(made))
