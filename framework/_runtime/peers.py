"""Connections to other processes that run user code: workers that run our tasks, owners whose objects we
borrow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from framework._net.address import socket_path
from framework._net.connection import Connection, Frame
from framework._net.listener import Listener, connect_unix, hello

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class PeerState:
    """What is remembered per connection."""

    __slots__ = ("address", "functions", "incoming", "leases", "templates")

    def __init__(self, address: str) -> None:
        self.address = address
        self.templates: set[int] = set()  #: numbers of templates that the peer knows
        self.functions: set[bytes] = set()
        self.leases: dict[int, Any] = {}
        self.incoming: dict[int, Any] = {}  #: templates that the peer has described to us


class Peers:
    """One outgoing connection per address, made when first needed; incoming ones by the listener."""

    def __init__(self, runtime: Runtime, on_lost: Callable[[Connection], None]) -> None:
        self._runtime = runtime
        self._on_lost = on_lost
        self._by_address: dict[str, Connection] = {}
        self._listener: Listener | None = None

    def listen(self, path: str) -> None:
        """Accept connections of other processes of this session."""
        runtime = self._runtime
        self._listener = Listener(
            runtime.loop,
            path,
            runtime.peer_handlers,
            on_peer=self._joined,
            on_close=self._on_lost,
            on_batch=runtime.after_batch,
            ident=runtime.worker_id,
        )

    def _joined(self, connection: Connection) -> None:
        connection.state = PeerState(str(connection.peer.get("address", "")))
        self._runtime.peer_joined(connection)

    def existing(self, address: str) -> Connection | None:
        """The open connection to this address, if there is one."""
        return self._by_address.get(address)

    def connect(self, address: str) -> Connection | None:
        """The connection to this address, made now if need be; None when nobody listens there (any more)."""
        connection = self._by_address.get(address)
        if connection is not None:
            return connection
        runtime = self._runtime
        try:
            sock = connect_unix(socket_path(address, runtime.socket_dir))
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
        connection.cast(*hello("owner", runtime.worker_id, runtime.address, runtime.job_info()))
        return connection

    def _closed(self, connection: Connection) -> None:
        address = connection.state.address
        if self._by_address.get(address) is connection:
            del self._by_address[address]
        self._on_lost(connection)

    def welcome(self, connection: Connection, frame: Frame) -> None:
        """The answer to our HELLO."""

    def close(self) -> None:
        """End all connections."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._by_address.values()):
            connection.close()
