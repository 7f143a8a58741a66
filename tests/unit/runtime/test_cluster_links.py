"""How a process of a cluster reaches others: on its node, on other nodes, and the head, which may be away."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from framework._base import limits
from framework._boot import make_runtime
from framework._net.address import node_of, parse_tcp, tcp_address
from framework._net.connection import Connection, Frame
from framework._net.listener import Listener
from framework._net.tcp import PeerListener, bind_tcp
from framework._runtime.config import Config
from framework._runtime.runtime import Runtime
from framework._wire import messages as m
from framework.exceptions import (
    ConnectionFailedError,
    FrameworkError,
    LocalNodeDiedError,
    NodeDiedError,
    OwnerDiedError,
)
from support.clusters import cluster_facts


def node_id(number: int) -> bytes:
    return bytes([number]) * 28


class Processes:
    """Processes of a cluster: runtimes in this one, in a session directory per node."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: list[Runtime] = []

    def start(self, node: int, name: str, *, head: str = "127.0.0.1:1", listen: bool = True) -> Runtime:
        session = self._directory / str(node)
        (session / "sockets").mkdir(parents=True, exist_ok=True)
        config = Config(session_dir=str(session), worker_id=name.encode().ljust(28, b"."), is_driver=False)
        config.join(cluster_facts(node_id=node_id(node), head=head))
        runtime = make_runtime(config)
        self._made.append(runtime)
        runtime.start()
        if listen:
            on_loop(runtime, runtime.listen)
        return runtime

    def end(self, runtime: Runtime) -> None:
        self._made.remove(runtime)
        runtime.stop()

    def stop(self) -> None:
        while self._made:
            self._made.pop().stop()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.stop()


def on_loop(runtime: Runtime, function: Callable[..., Any], *args: Any) -> Any:
    async def run() -> Any:
        return function(*args)

    return runtime.run_sync(run())


def ask(runtime: Runtime, address: str, opcode: int = m.LIST_OBJECTS) -> Any:
    async def run() -> Any:
        connection = runtime.peers.connect(address)
        assert connection is not None
        return await asyncio.wait_for(connection.call(opcode), 10)

    return runtime.run_sync(run())


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# ---- peers -----------------------------------------------------------------------------------------------


def test_the_address_of_a_process(processes: Processes) -> None:
    runtime = processes.start(1, "one")
    there = parse_tcp(runtime.address)
    assert there.host == "127.0.0.1" and there.node == node_id(1).hex()[:16]
    assert os.path.exists(os.path.join(runtime.socket_dir, there.name))
    assert runtime.config.node_ip == "127.0.0.1" and runtime.config.node_id == node_id(1)


def test_processes_reach_each_other(processes: Processes) -> None:
    one, neighbour, far = (processes.start(*who) for who in ((1, "one"), (1, "two"), (2, "three")))
    for address, family in ((neighbour.address, socket.AF_UNIX), (far.address, socket.AF_INET)):
        assert ask(one, address) == []
        connection = one.peers.existing(address)
        assert connection is not None and connection._sock.family == family  # type: ignore[attr-defined]
        assert on_loop(one, one.peers.connect, address) is connection
    assert ask(far, one.address) == []


def test_addresses_that_cannot_be_reached(processes: Processes) -> None:
    runtime = processes.start(1, "one")
    lost: list[Connection] = []
    runtime.on_peer_lost = lost.append
    connect = runtime.peers.connect
    for address in ("tcp:127.0.0.1/1/nonsense/x", "tcp:h", "unix:nobody", "nonsense", ""):
        assert on_loop(runtime, connect, address) is None
    assert on_loop(runtime, connect, tcp_address("127.0.0.1", 1, node_id(1), "nobody")) is None
    with bind_tcp("127.0.0.1") as sock:
        port = sock.getsockname()[1]
    connection = on_loop(runtime, connect, tcp_address("127.0.0.1", port, node_id(2), "nobody"))
    until(lambda: lost)
    assert lost == [connection] and "cannot be reached" in str(connection.error)
    assert runtime.peers.existing(connection.state.address) is None


def test_a_process_that_had_this_port_before_is_not_meant(processes: Processes) -> None:
    one, far = processes.start(1, "one"), processes.start(2, "two")
    there = parse_tcp(far.address)
    before = tcp_address(there.host, there.port, node_id(2), "before")
    with pytest.raises(ConnectionFailedError):
        ask(one, before)
    assert ask(one, far.address) == []


def put(runtime: Runtime, value: Any) -> tuple[Any, bytes]:
    ref = runtime.put(value)
    return ref, ref._entry.id


def borrow(runtime: Runtime, object_id: bytes, owner: Runtime) -> Any:
    """A reference of which the owner knows."""
    ref = runtime.make_ref(object_id, owner.address)
    until(lambda: owner.objects.table.entries[object_id].borrowers)
    return ref


def lose(runtime: Runtime, address: str) -> None:
    """Its connection to that process breaks."""
    connection = runtime.peers.existing(address)
    assert connection is not None
    on_loop(runtime, connection.close, ConnectionResetError("reset"))


def test_what_is_borrowed_outlives_a_connection(processes: Processes) -> None:
    owner, borrower = processes.start(1, "owner"), processes.start(2, "borrower")
    kept, kept_id = put(owner, "kept")
    dropped, dropped_id = put(owner, "dropped")
    theirs = borrow(borrower, kept_id, owner)
    goes = borrow(borrower, dropped_id, owner)
    del kept, dropped
    with mock.patch.object(borrower.objects, "_send_unborrows"):  # it says so, and that is lost
        del goes
        until(lambda: dropped_id not in borrower.objects.table.entries)
    borrower.objects._releasing.clear()
    lose(borrower, owner.address)
    until(lambda: dropped_id not in owner.objects.table.entries)
    assert kept_id in owner.objects.table.entries
    entry = theirs._entry
    on_loop(borrower, borrower.objects.need, entry)
    until(lambda: entry.state)
    assert borrower.value(entry) == "kept"
    del theirs
    until(lambda: kept_id not in owner.objects.table.entries)


def test_an_answer_that_a_connection_has_taken_along(processes: Processes) -> None:
    owner, borrower = processes.start(1, "owner"), processes.start(2, "borrower")
    mine = owner.ref_of(owner.objects.new(b"p" * 28))
    theirs = borrow(borrower, b"p" * 28, owner)
    on_loop(borrower, borrower.objects.need, theirs._entry)
    lose(borrower, owner.address)
    on_loop(owner, owner.objects.complete, mine._entry, 5)
    until(lambda: theirs._entry.state)
    assert borrower.value(theirs._entry) == 5


def test_ends_of_processes_are_not_taken_for_lost_connections(processes: Processes) -> None:
    owner, borrower, other = processes.start(1, "a"), processes.start(2, "b"), processes.start(3, "c")
    _mine, object_id = put(owner, "value")
    theirs, lent = borrow(borrower, object_id, owner), borrow(other, object_id, owner)
    processes.end(other)
    until(lambda: owner.objects.table.entries[object_id].borrowers == {borrower.address})
    processes.end(owner)
    begun = time.monotonic()
    on_loop(borrower, borrower.objects.need, theirs._entry)
    until(lambda: theirs._entry.state)
    with pytest.raises(OwnerDiedError):
        borrower.value(theirs._entry)
    assert time.monotonic() - begun < limits.NODE_SILENCE
    del lent


def test_another_process_where_an_owner_was(processes: Processes) -> None:
    borrower, stranger = processes.start(1, "b"), processes.start(2, "s")
    there = parse_tcp(stranger.address)
    ref = borrower.make_ref(b"x" * 28, tcp_address(there.host, there.port, node_id(2), "gone"))
    until(lambda: ref._entry.state)
    with pytest.raises(OwnerDiedError):
        borrower.value(ref._entry)


def test_a_connection_that_takes_the_place_of_one_that_is_lost_ends_it(processes: Processes) -> None:
    owner, borrower = processes.start(1, "owner"), processes.start(2, "borrower")
    _mine, object_id = put(owner, "value")
    theirs = borrow(borrower, object_id, owner)
    before = owner.peers._incoming[borrower.address]
    connection = borrower.peers.existing(owner.address)
    assert connection is not None
    sock = connection._sock
    # The other side does not hear of its end.
    connection._sock = mock.Mock(wraps=sock, close=mock.Mock())
    lose(borrower, owner.address)
    until(lambda: owner.peers._incoming[borrower.address] is not before)
    assert before.closed and "connected again" in str(before.error)
    assert owner.objects.table.entries[object_id].borrowers == {borrower.address}
    sock.close()
    del theirs


def test_the_death_of_a_node(processes: Processes) -> None:
    one, near, far, other = (
        processes.start(*who) for who in ((1, "one"), (1, "near"), (2, "far"), (3, "other"))
    )
    lost: list[Connection] = []
    one.on_peer_lost = lost.append
    for runtime in (near, far, other):
        ask(one, runtime.address)
        ask(runtime, one.address)
    with bind_tcp("127.0.0.1") as silent:
        opening = on_loop(
            one, one.peers.connect, tcp_address("127.0.0.1", silent.getsockname()[1], node_id(2), "slow")
        )
        assert opening.opening
        gone = one.node_handlers[m.NODE_GONE]
        on_loop(one, gone, mock.Mock(), [m.NODE_GONE, node_id(2), "it was silent for 4 s"])
    until(lambda: len(lost) == 3)
    assert opening in lost
    for connection in lost:
        assert node_of(connection.state.address) == node_id(2).hex()[:16]
        assert isinstance(connection.error, NodeDiedError)
        assert "has died: it was silent for 4 s" in str(connection.error)
    assert on_loop(one, one.peers.connect, far.address) is None
    with pytest.raises(ConnectionFailedError):  # it does not know that it is dead
        ask(far, one.address)
    assert ask(one, near.address) == ask(one, other.address) == []


def test_deaths_from_before_this_process_began(processes: Processes) -> None:
    one, far = processes.start(1, "one"), processes.start(2, "far")
    facts = {"gone": [[node_id(2), "it was silent for 4 s"]], "node_id": node_id(1)}
    on_loop(one, one.node_handlers[m.WELCOME], mock.Mock(), [m.WELCOME, 1, b"", facts])
    assert on_loop(one, one.peers.connect, far.address) is None


def test_a_local_session_has_no_part_in_this(tmp_path: Path) -> None:
    config = Config(session_dir=str(tmp_path), worker_id=b"w" * 28, is_driver=False)
    runtime = make_runtime(config)
    assert runtime.address == f"unix:{(b'w' * 6).hex()}"
    runtime.start()
    assert on_loop(runtime, runtime.peers.connect, tcp_address("127.0.0.1", 1, node_id(1), "x")) is None
    assert on_loop(runtime, runtime.connect_head) is None
    with pytest.raises(LocalNodeDiedError):
        runtime.head_call(m.NODES)
    runtime.stop()


# ---- the head ----------------------------------------------------------------------------------------------


class Head:
    """A head that can go away and come back. It lives on the loop of the process that asks it."""

    def __init__(self, runtime: Runtime, port: int, unix: bool = False) -> None:
        self._runtime = runtime
        self._port = port
        self._unix = unix
        self.frames: list[Frame] = []
        self.joined: list[Connection] = []
        self.silent = False
        self.ident = b"c" * 16
        self._listener: Any = None

    def _asked(self, connection: Connection, frame: Frame) -> None:
        self.frames.append(frame)
        if not self.silent:
            connection.reply(frame[1], ["a node"])

    def come(self) -> None:
        on_loop(self._runtime, self._come)

    def _come(self) -> None:
        loop = self._runtime.loop
        handlers: Any = {m.NODES: self._asked, m.ACTOR_WATCH: lambda c, frame: self.frames.append(frame)}
        options: Any = {"on_peer": self.joined.append, "on_close": lambda c: None, "ident": self.ident}
        if self._unix:
            path = os.path.join(self._runtime.socket_dir, "head")
            self._listener = Listener(loop, path, handlers, **options)
        else:
            facts = cluster_facts()
            self._listener = PeerListener(loop, facts, handlers, port=self._port, **options)

    def go(self) -> None:
        on_loop(self._runtime, self._listener.close)


@pytest.fixture(params=["tcp", "unix"])
def headed(
    processes: Processes, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Runtime, Head]]:
    """A process and its head, which is not there yet."""
    with bind_tcp("127.0.0.1") as sock:
        port = sock.getsockname()[1]
    runtime = processes.start(1, "one", head=f"127.0.0.1:{port}", listen=False)
    head = Head(runtime, port, unix=request.param == "unix")
    runtime.actors = mock.Mock(wraps=runtime.actors, dirty=set())
    yield runtime, head


def test_a_head_that_comes_late(headed: tuple[Runtime, Head]) -> None:
    runtime, head = headed
    connection = on_loop(runtime, runtime.connect_head)
    assert connection.opening and on_loop(runtime, runtime.connect_head) is connection is runtime.head
    on_loop(runtime, connection.cast, m.ACTOR_WATCH, b"a")
    head.come()
    assert runtime.head_call(m.NODES) == ["a node"]
    assert [frame[0] for frame in head.frames] == [m.ACTOR_WATCH, m.NODES]
    assert head.joined[0].kind == "worker" and head.joined[0].peer["address"] == runtime.address
    runtime.actors.head_returned.assert_not_called()


def test_a_head_that_goes_and_returns(headed: tuple[Runtime, Head]) -> None:
    runtime, head = headed
    head.come()
    assert runtime.head_call(m.NODES) == ["a node"]
    for times in (1, 2):
        head.silent = True
        before = len(head.frames)
        call = asyncio.run_coroutine_threadsafe(runtime.head_link.call(m.NODES), runtime.loop)
        until(lambda before=before: len(head.frames) > before)
        head.go()
        until(lambda: runtime.head.opening)
        # What is sent meanwhile waits for it, and so does the call that had no answer.
        later = asyncio.run_coroutine_threadsafe(runtime.head_link.call(m.NODES), runtime.loop)
        on_loop(runtime, runtime.connect_head().cast, m.ACTOR_WATCH, b"a")
        assert not call.done() and not later.done()
        head.silent = False
        head.come()
        assert call.result(10) == later.result(10) == ["a node"]
        assert [m.ACTOR_WATCH, b"a"] in head.frames[before:]
        assert len(runtime.actors.head_returned.mock_calls) == times
        assert runtime.actors.head_returned.mock_calls[-1].args == (runtime.head,)
    runtime.actors.head_lost.assert_not_called()


def test_a_head_that_does_not_return(headed: tuple[Runtime, Head], monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, head = headed
    monkeypatch.setattr(limits, "HEAD_RETURN_TIMEOUT", 0.1)
    head.come()
    assert runtime.head_call(m.NODES) == ["a node"]
    head.go()
    with pytest.raises(LocalNodeDiedError, match="has not come back within"):
        runtime.head_call(m.NODES)
    runtime.actors.head_lost.assert_called_once()
    assert on_loop(runtime, runtime.connect_head) is None
    with pytest.raises(LocalNodeDiedError, match="has not come back within"):
        runtime.head_call(m.NODES)


def test_a_head_that_lets_in_and_says_nothing(
    headed: tuple[Runtime, Head], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again with pauses, not in a busy loop, and not for ever."""
    runtime, head = headed
    monkeypatch.setattr(limits, "HEAD_RETURN_TIMEOUT", 0.3)
    head.come()
    refused = mock.Mock(side_effect=ZeroDivisionError)
    head._listener._on_peer = refused
    with pytest.raises(LocalNodeDiedError):
        runtime.head_call(m.NODES)
    assert 2 <= len(refused.mock_calls) <= 20


def test_another_process_listens_where_the_head_was(headed: tuple[Runtime, Head]) -> None:
    runtime, head = headed
    head.ident = b"not the head"
    head.come()
    call = asyncio.run_coroutine_threadsafe(runtime.head_link.call(m.NODES), runtime.loop)
    until(lambda: len(head.joined) == 2)
    assert not call.done()
    head.go()
    head.ident = b"c" * 16
    head.come()
    assert call.result(10) == ["a node"]


def test_a_head_of_another_cluster(
    processes: Processes, headed: tuple[Runtime, Head], request: pytest.FixtureRequest
) -> None:
    runtime, head = headed
    if head._unix:
        pytest.skip("a session directory belongs to one cluster")
    head.come()
    assert runtime.config.cluster is not None
    runtime.config.cluster.token = b"another token for another cluster"
    with pytest.raises(LocalNodeDiedError, match="token"):
        runtime.head_call(m.NODES)


def test_the_end_of_a_process_whose_head_is_away(processes: Processes, headed: tuple[Runtime, Head]) -> None:
    runtime, _ = headed
    call = asyncio.run_coroutine_threadsafe(runtime.head_link.call(m.NODES), runtime.loop)
    until(lambda: runtime.head is not None)
    started = time.monotonic()
    processes.stop()
    assert time.monotonic() - started < 1
    with pytest.raises(FrameworkError):
        call.result(1)
