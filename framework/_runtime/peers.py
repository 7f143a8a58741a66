"""Connections to other processes that run user code: workers that run our tasks, owners whose objects we
borrow.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.address import (
    node_digits,
    node_of,
    parse_tcp,
    socket_path,
    tcp_address,
    unix_address,
)
from framework._net.connection import Connection, Frame
from framework._net.listener import Listener, connect_unix, hello
from framework._wire import messages as m
from framework.exceptions import ConnectionFailedError, NodeDiedError, ProtocolError

if TYPE_CHECKING:
    from framework._net.tcp import PeerListener
    from framework._runtime.config import Config
    from framework._runtime.runtime import Runtime

log = logging.getLogger("framework")


def own_address(config: Config) -> tuple[str, socket.socket | None]:
    """The address of this process. In a cluster, the socket too on which others will reach it: its port must
    be known before the address is made. `ConnectionFailedError` when there can be none."""
    name = config.worker_id.hex()[:12]
    facts = config.cluster
    if facts is None:
        return unix_address(name), None
    from framework._net.tcp import bind_tcp

    try:
        sock = bind_tcp(facts.bind)
    except OSError as error:
        raise ConnectionFailedError(
            f"this process cannot listen at {facts.bind}, the address of its node: {error}"
        ) from None
    return tcp_address(facts.host, sock.getsockname()[1], facts.node_id, name), sock


class PeerState:
    """What is remembered per connection."""

    __slots__ = (
        "address",
        "borrows",
        "functions",
        "incoming",
        "leases",
        "results",
        "sources",
        "stranger",
        "templates",
        "welcome",
    )

    def __init__(self, address: str) -> None:
        self.address = address
        self.borrows = False  #: we have borrowed by it, or asked for what comes borrowed
        self.welcome = False  #: the other side has answered our HELLO
        self.stranger = False  #: it is somebody else, who listens where our peer had listened
        self.templates: set[int] = set()  #: numbers of templates that the peer knows
        self.functions: set[bytes] = set()  #: hashes of functions that it knows
        self.leases: dict[int, Any] = {}
        self.incoming: dict[int, Any] = {}  #: templates that the peer has described to us
        self.results: deque[tuple[int, int, Any]] = deque()  #: for the peer, that wait to be packed
        self.sources: dict[bytes, Any] = {}  #: functions that it has sent, by their hashes


class Peers:
    """One outgoing connection per address, made when first needed; incoming ones by the listeners: a Unix
    socket for processes of this node, and in a cluster TCP for all others.
    """

    def __init__(
        self, runtime: Runtime, on_lost: Callable[[Connection], None], tcp_sock: socket.socket | None = None
    ) -> None:
        self._runtime = runtime
        self._on_lost = on_lost
        self._by_address: dict[str, Connection] = {}
        self._listener: Listener | None = None
        self._tcp_sock = tcp_sock
        self._tcp_listener: PeerListener | None = None
        facts = runtime.config.cluster
        self._node = node_digits(facts.node_id) if facts is not None else ""
        self._gone: dict[str, str] = {}  #: nodes that are dead (digits), and why; those that came last
        self._incoming: dict[str, Connection] = {}  #: the last connection that the process there has made
        #: where connections ended before they were answered: how many in a row, and since when
        self._failing: dict[str, tuple[int, float]] = {}

    def listen(self) -> None:
        """Accept connections of other processes of this session, and of the cluster."""
        runtime = self._runtime
        self._listener = Listener(
            runtime.loop,
            socket_path(runtime.address, runtime.socket_dir, self._node),
            runtime.peer_handlers,
            on_peer=self._joined,
            on_close=self._left,
            on_batch=runtime.after_batch,
            ident=runtime.worker_id,
        )
        facts = runtime.config.cluster
        if facts is not None:
            from framework._net.tcp import PeerListener

            self._tcp_listener = PeerListener(
                runtime.loop,
                facts,
                runtime.peer_handlers,
                on_peer=self._joined,
                on_close=self._left,
                on_batch=runtime.after_batch,
                ident=runtime.worker_id,
                sock=self._tcp_sock,
            )
            self._tcp_sock = None

    def _joined(self, connection: Connection) -> None:
        address = str(connection.peer.get("address", ""))
        if self._gone and node_of(address) in self._gone:
            raise ProtocolError(str(self._died(node_of(address))))
        if connection.peer.get("to", self._runtime.address) != self._runtime.address:
            # It had this port, and has ended: nothing of what follows is for us.
            connection.cast(m.WELCOME, limits.PROTOCOL_VERSION, self._runtime.worker_id, {"stranger": True})
            raise ProtocolError("another process is meant, which has listened here before")
        connection.state = PeerState(address)
        before = self._incoming.get(address)
        if address:
            self._incoming[address] = connection
        if before is not None:
            # It has given that one up, and we have not noticed: what is still read there is out of date.
            before.close(ConnectionFailedError(f"{before.name} has connected again"))
        self._runtime.peer_joined(connection)

    def _left(self, connection: Connection) -> None:
        """A connection that another process had made is gone."""
        address = connection.state.address if connection.state is not None else ""
        if self._incoming.get(address) is connection:
            del self._incoming[address]
        self._on_lost(connection)

    def is_present(self, address: str) -> bool:
        """Whether the process there has a connection to this one."""
        return address in self._incoming

    def is_over(self, connection: Connection) -> bool:
        """Whether the end of this connection is that of the process on its other side, as far as can be
        known. On one machine it is. Between machines connections break while both ends live: then it is when
        nobody listens at its address any more, or its machine is dead, or does not answer for
        `limits.REACH_TIMEOUT`."""
        node = node_of(connection.state.address)
        return (
            not node
            or node == self._node
            or node in self._gone
            or connection.never_opened
            or connection.state.stranger
            or self._runtime.closing
            or self._runtime.dead is not None
        )

    def existing(self, address: str) -> Connection | None:
        """The open connection to this address, if there is one."""
        return self._by_address.get(address)

    def outgoing(self) -> list[Connection]:
        """All connections that were made here."""
        return list(self._by_address.values())

    def connect(self, address: str) -> Connection | None:
        """The connection to this address, made now if need be; None when nobody listens there (any more).

        To a process of another node it is still `opening` then, and ends when nobody is reached."""
        connection = self._by_address.get(address)
        if connection is not None:
            return connection
        runtime = self._runtime
        node = node_of(address)
        if node and node != self._node:
            connection = self._connect_far(address, node)
            if connection is None:
                return None
        else:
            try:
                sock = connect_unix(socket_path(address, runtime.socket_dir, self._node))
            except (OSError, ValueError):
                return None
            connection = Connection(
                runtime.loop,
                sock,
                runtime.peer_handlers,
                on_close=self._closed,
                on_batch=runtime.after_batch,
                name=f"peer {address}",
            )
        connection.state = PeerState(address)
        self._by_address[address] = connection
        info = runtime.job_info()
        if connection.opening:
            info["to"] = address
        connection.cast(*hello("owner", runtime.worker_id, runtime.address, info))
        return connection

    def _connect_far(self, address: str, node: str) -> Connection | None:
        from framework._net.tcp import open_connection

        runtime = self._runtime
        facts = runtime.config.cluster
        if facts is None or node in self._gone:
            return None
        try:
            there = parse_tcp(address)
        except ValueError:
            return None
        failures, since = self._failing.get(address, (0, 0.0))
        if failures and runtime.clock() - since > limits.REACH_TIMEOUT:
            del self._failing[address]
            return None
        return open_connection(
            runtime.loop,
            there.host,
            there.port,
            facts,
            runtime.peer_handlers,
            on_close=self._closed,
            on_batch=runtime.after_batch,
            name=f"peer {address}",
            delay=limits.CONNECT_AGAIN * min(2**failures, 20) if failures else 0.0,
        )

    def _died(self, node: str) -> NodeDiedError:
        return NodeDiedError(f"the node {node} has died: {self._gone[node]}")

    def node_gone(self, node_id: bytes, reason: str) -> None:
        """Our node says that another one is dead: nothing comes from there any more."""
        node = node_digits(node_id)
        if node in self._gone or node == self._node:
            return
        self._gone[node] = reason or "the reason is not known"
        while len(self._gone) > limits.GONE_NODES_KEPT:
            del self._gone[next(iter(self._gone))]
        error = self._died(node)
        incoming = self._tcp_listener.connections if self._tcp_listener is not None else ()
        for peer in [*self._by_address.values(), *incoming]:
            if peer.state is not None and node_of(peer.state.address) == node:
                peer.close(error)

    def _closed(self, connection: Connection) -> None:
        address = connection.state.address
        if self._by_address.get(address) is connection:
            del self._by_address[address]
        if self.is_over(connection):
            self._failing.pop(address, None)
        elif not connection.state.welcome:
            failures, since = self._failing.get(address, (0, self._runtime.clock()))
            self._failing[address] = (failures + 1, since)
        self._on_lost(connection)

    def welcome(self, connection: Connection, frame: Frame) -> None:
        """The answer to our HELLO."""
        connection.state.welcome = True
        connection.state.stranger = bool(frame[3].get("stranger"))
        self._failing.pop(connection.state.address, None)

    def close(self) -> None:
        """End all connections."""
        for listener in (self._listener, self._tcp_listener):
            if listener is not None:
                listener.close()
        if self._tcp_sock is not None:
            self._tcp_sock.close()
        for connection in list(self._by_address.values()):
            connection.close()
