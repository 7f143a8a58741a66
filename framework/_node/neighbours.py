"""The other nodes of the cluster, for this node's manager: one place that knows their rows and has
connections to them.

A connection to another node's manager is opened when it is first needed, at the host and port of that node's
row; what is sent meanwhile waits in it. Either side may open one, and both directions of it are used. When
both do so at the same time, both connections live, and each side goes on with its own: a service answers on
the connection on which it was asked.

A connection may break without both sides noticing at the same time: what one of them has said into it later
is lost, and only that one is told. So whoever loses a connection to a node that lives says so to that node
(`NEIGHBOUR_MISSED`), which then compares what it knows, as if it had lost a connection itself.

``connection.ident`` is the other node's id, ``connection.kind`` "node", ``connection.state`` a dict for
whatever the services want to remember of this connection (use keys of your own).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._net.connection import Connection, Frame, Handler
from framework._net.listener import hello
from framework._wire import messages as m
from framework.exceptions import NodeDiedError, ProtocolError

log = logging.getLogger("framework.node")

Row = dict[str, Any]


class Neighbours:
    """See above. All methods are for the loop's thread.

    `handlers` (opcode -> ``(connection, frame)``): the services add theirs before `listen`. `on_lost`: called
    with each connection to a node that has ended, whether the node lives or not; `on_gone`: called with
    (node_id, reason) once for each node that is dead, after its connections have been closed; `on_missed`:
    called with the id of a node that has lost a connection to this one, and with it what it had said last.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        facts: ClusterFacts,
        *,
        on_batch: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._facts = facts
        self._node_id = facts.node_id
        self._on_batch = on_batch
        self.handlers: dict[int, Handler] = {m.WELCOME: self._welcome, m.NEIGHBOUR_MISSED: self._has_missed}
        self.on_lost: list[Callable[[Connection], None]] = []
        self.on_gone: list[Callable[[bytes, str], None]] = []
        self.on_missed: list[Callable[[bytes], None]] = []
        self.rows: dict[bytes, Row] = {}  #: of all nodes that are alive, this one too, as last heard
        self._dead: dict[bytes, str] = {}  #: and why; those that came last
        self._open: dict[bytes, list[Connection]] = {}  #: by node, the one to use first
        self._failed_at: dict[bytes, float] = {}
        self._to_tell: dict[bytes, asyncio.TimerHandle] = {}  #: nodes that may have missed something
        self._listener: Any = None  # PeerListener
        self._closing = False

    # ---- life ----------------------------------------------------------------------------------------

    def listen(self, host: str | None = None, port: int = 0) -> int:
        """Accept connections of other nodes at `host` (by default, that of the facts); the port. OSError when
        that cannot be."""
        from framework._net.tcp import PeerListener

        self._listener = PeerListener(
            self._loop,
            self._facts,
            self.handlers,
            on_peer=self._joined,
            on_close=self._lost,
            on_batch=self._on_batch,
            ident=self._node_id,
            host=host,
            port=port,
            name="neighbour",
        )
        port = self._listener.port
        return port

    @property
    def port(self) -> int:
        """Where it listens; 0 before `listen`."""
        return self._listener.port if self._listener is not None else 0

    def close(self) -> None:
        """End everything. `on_lost` is not called any more."""
        self._closing = True
        for timer in self._to_tell.values():
            timer.cancel()
        if self._listener is not None:
            self._listener.close()
        for connections in list(self._open.values()):
            for connection in list(connections):
                connection.close()

    # ---- what the head says --------------------------------------------------------------------------

    def update(self, rows: list[Row]) -> None:
        """Rows that are new or have changed. A row that is not alive is as `gone`."""
        for row in rows:
            node_id = row["node_id"]
            if not row.get("alive", True):
                self.gone(node_id, row.get("reason") or "the head says that it is dead")
            elif node_id not in self._dead:
                self.rows[node_id] = row

    def gone(self, node_id: bytes, reason: str = "") -> None:
        """A node is dead: its connections end, and none is opened any more (its id never comes back)."""
        if node_id in self._dead or node_id == self._node_id:
            return
        self._dead[node_id] = reason
        while len(self._dead) > limits.GONE_NODES_KEPT:
            del self._dead[next(iter(self._dead))]
        self.rows.pop(node_id, None)
        self._failed_at.pop(node_id, None)
        error = NodeDiedError(f"the node {node_id.hex()[:8]} has died: {reason or 'the reason is not known'}")
        for connection in list(self._open.get(node_id, ())):
            connection.close(error)
        for told in self.on_gone:
            told(node_id, reason)

    # ---- connections ---------------------------------------------------------------------------------

    def connection(self, node_id: bytes) -> Connection | None:
        """To the manager of that node; made now if need be, and then still being opened. None: the node is
        dead, not known (yet), this one, or it could not be reached a moment ago (`limits.CONNECT_AGAIN`)."""
        connections = self._open.get(node_id)
        if connections:
            return connections[0]
        row = self.rows.get(node_id)
        if row is None or node_id == self._node_id or self._closing or not row.get("port"):
            return None
        failed = self._failed_at.get(node_id)
        if failed is not None and self._loop.time() - failed < limits.CONNECT_AGAIN:
            return None
        return self._connect(node_id, row["host"], row["port"])

    def existing(self, node_id: bytes) -> Connection | None:
        """The connection to that node if there is one."""
        connections = self._open.get(node_id)
        return connections[0] if connections else None

    def others(self) -> list[bytes]:
        """The ids of all other nodes that are alive."""
        return [node_id for node_id in self.rows if node_id != self._node_id]

    def dead(self, node_id: bytes) -> str | None:
        """Why that node is dead; None when it is not known to be."""
        return self._dead.get(node_id)

    def recently_dead(self) -> list[tuple[bytes, str]]:
        """The nodes that died last, and why: for processes that come later."""
        return list(self._dead.items())[-limits.GONE_NODES_TOLD :]

    def _connect(self, node_id: bytes, host: str, port: int) -> Connection:
        from framework._net.tcp import open_connection

        connection = open_connection(
            self._loop,
            host,
            port,
            self._facts,
            self.handlers,
            on_close=self._lost,
            on_batch=self._on_batch,
            name=f"node {node_id.hex()[:8]}",
        )
        self._keep(connection, node_id)
        connection.cast(*hello("node", self._node_id, info={"to": node_id}))
        return connection

    def _keep(self, connection: Connection, node_id: bytes) -> None:
        connection.kind, connection.ident, connection.state = "node", node_id, {}
        connections = self._open.setdefault(node_id, [])
        connections.append(connection)
        if len(connections) > limits.MAX_NEIGHBOUR_CONNECTIONS:
            connections[0].close(ProtocolError("too many connections from one node"))

    def _joined(self, connection: Connection) -> None:
        node_id = connection.ident
        if connection.kind != "node":
            raise ProtocolError(f"a {connection.kind} does not belong here: this is for nodes")
        if connection.peer.get("to", self._node_id) != self._node_id:
            raise ProtocolError("another node is meant, which has listened here before")
        if node_id in self._dead:
            raise ProtocolError(f"the node {node_id.hex()[:8]} was declared dead: {self._dead[node_id]}")
        if node_id == self._node_id:
            raise ProtocolError("this is the same node")
        self._keep(connection, node_id)

    def _welcome(self, connection: Connection, frame: Frame) -> None:
        if frame[2] != connection.ident:
            raise ProtocolError("another node answers at this address")
        connection.peer["welcome"] = True
        self._failed_at.pop(connection.ident, None)

    def _lost(self, connection: Connection) -> None:
        node_id = connection.ident
        connections = self._open.get(node_id)
        if connections is None or connection not in connections:
            return
        connections.remove(connection)
        if not connections:
            del self._open[node_id]
        if self._closing:
            return
        if node_id not in self._dead:
            if connection.error is not None:
                log.warning("the connection to %s has ended: %s", connection.name, connection.error)
            if node_id in self.rows and not connection.peer:  # neither side has said that all is well
                self._failed_at[node_id] = self._loop.time()
        for told in self.on_lost:
            told(connection)
        self._tell_soon(node_id)

    # ---- what may not have arrived -------------------------------------------------------------------

    def _tell_soon(self, node_id: bytes) -> None:
        if node_id in self.rows and node_id not in self._to_tell:
            self._to_tell[node_id] = self._loop.call_later(limits.FORWARD_AGAIN, self._tell, node_id)

    def _tell(self, node_id: bytes) -> None:
        del self._to_tell[node_id]
        connection = self.connection(node_id)
        if connection is None:
            self._tell_soon(node_id)  # (unless it is dead by now)
        else:
            connection.cast(m.NEIGHBOUR_MISSED)

    def _has_missed(self, connection: Connection, frame: Frame) -> None:
        for told in self.on_missed:
            told(connection.ident)
