"""The network between simulated machines: who can reach whom, and how long it takes."""

from __future__ import annotations

import errno
import os
import socket as real
from collections.abc import Callable
from typing import Any

from framework._sim.descriptors import Descriptors
from framework._sim.sockets import Pipe, SimSocket


class Network:
    """Who can reach whom, and how long it takes."""

    def __init__(self, table: Descriptors) -> None:
        self.table = table
        self.kernel = table.kernel
        self.choices = table.kernel.choices
        self.near = (2e-6, 60e-6)  #: seconds between processes of one machine, from and to
        self.far = (50e-6, 800e-6)  #: and of several
        self.spike = 0.0  #: how often a delivery takes `spike_seconds` at most instead
        self.spike_seconds = 0.05
        self.delayed = 0  #: how many did
        self.partial_sends = 0.02
        self.cut: dict[frozenset[str], None] = {}  #: pairs of machines that do not reach each other
        self.down: dict[str, None] = {}  #: machines without power
        self.held: list[Callable[[], None]] = []
        self._unix: dict[str, SimSocket] = {}
        self._tcp: dict[tuple[str, int], SimSocket] = {}
        self._ports: dict[str, int] = {}
        self.received: Callable[[int], object] = lambda fd: None  #: called with each real descriptor
        self.connections: dict[SimSocket, None] = {}  #: one end of each between machines
        SimSocket.present = self

    # ---- faults --------------------------------------------------------------------------------------

    def latency(self, ends: tuple[str, str], fast: bool) -> float:
        if ends[0] == ends[1]:
            return self.choices.uniform(*self.near)
        if self.choices.chance(self.spike):
            self.delayed += 1
            return self.choices.unit() * self.spike_seconds
        return self.choices.uniform(*self.far)

    def is_cut(self, ends: tuple[str, str]) -> bool:
        if ends[0] in self.down or ends[1] in self.down:
            return True
        return bool(self.cut) and ends[0] != ends[1] and frozenset(ends) in self.cut

    def partition(self, one: str, other: str) -> None:
        """These two machines do not reach each other until `heal`."""
        self.cut[frozenset((one, other))] = None

    def heal(self, one: str, other: str) -> None:
        self.cut.pop(frozenset((one, other)), None)
        held, self.held = self.held, []
        for function in held:
            function()

    # ---- connections ---------------------------------------------------------------------------------

    def bind(self, sock: SimSocket, address: Any) -> None:
        if sock.family == real.AF_UNIX:
            if os.path.lexists(address):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            with open(address, "xb"):
                pass
            sock.address = address
            self._unix[os.path.realpath(address)] = sock
            return
        host, port = address[0], address[1]
        if port == 0:
            port = self._ports[host] = self._ports.get(host, 20_000) + 1
        if (host, port) in self._tcp:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        if host not in (sock.host, "0.0.0.0"):
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        sock.address = (host, port)
        self._tcp[host, port] = sock

    def forget(self, sock: SimSocket) -> None:
        self.connections.pop(sock, None)
        if sock.family == real.AF_UNIX:
            for path in [path for path, found in self._unix.items() if found is sock]:
                del self._unix[path]
        elif self._tcp.get(sock.address) is sock:
            del self._tcp[sock.address]

    def connect(self, sock: SimSocket, address: Any) -> None:
        if sock.family == real.AF_UNIX:
            listener = self._unix.get(os.path.realpath(address))
            if not os.path.lexists(address):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if listener is None or listener.backlog is None or not listener.process.alive:
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            sock.peer_address = address
            self._accept(sock, listener)
            return
        target = (address[0], address[1])
        sock.connecting = True
        sock.peer_address = target
        port = self._ports[sock.host] = self._ports.get(sock.host, 20_000) + 1
        sock.address = (sock.host, port)
        self._try_connect(sock, target)

    def _try_connect(self, sock: SimSocket, target: tuple[str, int]) -> None:
        """A request goes to the other machine, and its answer comes back."""
        self.kernel.call_later(self.latency((sock.host, target[0]), False), self._arrive, sock, target)

    def _arrive(self, sock: SimSocket, target: tuple[str, int]) -> None:
        if sock.closed or not sock.connecting:
            return
        if self.is_cut((sock.host, target[0])):
            self.held.append(lambda: self._try_connect(sock, target))
            return
        listener = self._tcp.get(target)
        self.kernel.call_later(
            self.latency((sock.host, target[0]), False), self._answered, sock, listener, target
        )

    def _answered(self, sock: SimSocket, listener: SimSocket | None, target: tuple[str, int]) -> None:
        if sock.closed or not sock.connecting:
            return
        sock.connecting = False
        if listener is None or listener.closed or listener.backlog is None or not listener.process.alive:
            sock.error = errno.ECONNREFUSED
        else:
            self._accept(sock, listener)
            self.connections[sock] = None
        sock.changed()

    def _accept(self, sock: SimSocket, listener: SimSocket) -> None:
        other: SimSocket = self.kernel.within(listener.process, lambda: SimSocket(sock.family, sock.type))
        other.address = listener.address
        other.peer_address = sock.address
        self._join(sock, other)
        assert listener.backlog is not None
        listener.backlog.append(other)
        listener.changed()

    def _join(self, one: SimSocket, other: SimSocket) -> None:
        fast = one.family == real.AF_UNIX
        there, back = Pipe(self, one.host, other.host, fast), Pipe(self, other.host, one.host, fast)
        one.outgoing, other.incoming = there, there
        one.incoming, other.outgoing = back, back
        there.writer, there.reader = one, other
        back.writer, back.reader = other, one
        one.peer, other.peer = other, one

    def pair(self) -> tuple[SimSocket, SimSocket]:
        """`socket.socketpair`."""
        one, other = SimSocket(real.AF_UNIX), SimSocket(real.AF_UNIX)
        one.peer_address = other.peer_address = ""
        self._join(one, other)
        return one, other

    def close(self) -> None:
        """Nothing runs any more: close the real descriptors that are on their way."""
        for descriptor in self.table:
            if isinstance(descriptor, SimSocket):
                for pipe in (descriptor.incoming, descriptor.outgoing):
                    if pipe is not None:
                        pipe.drop_descriptors()
        self.table.let_go()
        for kept in (self._unix, self._tcp, self.connections, self.held):
            kept.clear()

    # ---- ends of processes ---------------------------------------------------------------------------

    def process_ended(self, process: Any) -> None:
        """The system closes what a process had open."""
        for descriptor in list(process.descriptors.values()):
            if isinstance(descriptor, SimSocket):
                descriptor.close()
            else:
                descriptor.release()
        process.descriptors.clear()
