"""Sockets and the network of the simulated system.

Streams never corrupt: what is sent arrives, in order, after a delay that the seed decides. A partition holds
the bytes until it heals. A reset ends both sides with `ConnectionResetError`.
"""

from __future__ import annotations

import errno
import os
import socket as real
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from framework._sim.descriptors import Descriptor, Waiting
from framework._sim.kernel import SimulationError

if TYPE_CHECKING:
    from framework._sim.network import Network

#: Bytes that may be on the way in one direction: beyond, a sender finds the socket full.
WINDOW: Final = 256 * 1024
#: The same between machines: larger values take several round trips, and break off in the middle.
FAR_WINDOW: Final = 64 * 1024
#: Seconds of silence after which a system asks whether the other side of a connection lives.
KEEPALIVE: Final = 5.0
_CREDENTIALS = struct.Struct("3i")
_TCP_INFO = struct.Struct("8B13I")
_PEEK: Final = int(real.MSG_PEEK)


class Pipe:
    """One direction of a connection."""

    def __init__(self, network: Network, sender: str, receiver: str, fast: bool) -> None:
        self._network = network
        self._kernel = network.kernel
        self.ends = (sender, receiver)  #: addresses of the machines
        self.window = WINDOW if sender == receiver else FAR_WINDOW
        self._fast = fast
        self.reader: SimSocket | None = None
        self.writer: SimSocket | None = None
        self._on_the_way: deque[tuple[float, bytes, list[int]]] = deque()
        self.arrived = bytearray()
        self.fds: deque[list[int]] = deque()
        self.size = 0  #: on the way, or arrived and not read
        self._last = 0.0
        self._armed = False
        self.silent_since: float | None = None  #: what was sent then has not arrived
        self.finished = False  #: the end is on the way, or here
        self.ended = False  #: the reader has everything that there will be
        self.broken = False

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        kernel = self._kernel
        self.size += len(data)
        due = max(self._last, kernel.now + self._network.latency(self.ends, self._fast))
        self._last = due
        self._on_the_way.append((due, data, fds or []))
        self._arm()

    def finish(self) -> None:
        """The end of the stream, behind what was sent."""
        if not self.finished:
            self.finished = True
            self._last = max(self._last, self._kernel.now + self._network.latency(self.ends, self._fast))
            self._on_the_way.append((self._last, b"", []))
            self._arm()

    def _arm(self) -> None:
        if not self._armed and self._on_the_way:
            self._armed = True
            self._kernel.call_at(self._on_the_way[0][0], self._deliver)

    def _deliver(self) -> None:
        self._armed = False
        if self.broken:
            return
        if self._network.is_cut(self.ends):
            if self.silent_since is None:
                self.silent_since = self._kernel.now
            self._network.held.append(self._healed)
            self._armed = True
            return
        self.silent_since = None
        now = self._kernel.now
        while self._on_the_way and self._on_the_way[0][0] <= now:
            _, data, fds = self._on_the_way.popleft()
            if not data and self.finished and not self._on_the_way:
                self.ended = True
            self.arrived += data
            if fds:
                self.fds.append(fds)
        if self.reader is not None and self.reader.closed:
            self.drop_descriptors()
        if self.reader is not None:
            self.reader.changed()
        self._arm()

    def _healed(self) -> None:
        self._armed = False
        delay = self._network.latency(self.ends, self._fast)
        if self._on_the_way:
            self._armed = True
            self._kernel.call_later(delay, self._deliver)

    def take(self, size: int, peek: bool) -> bytes:
        data = bytes(self.arrived[:size])
        if not peek:
            del self.arrived[:size]
            self.size -= len(data)
            if self.writer is not None:
                self.writer.changed()
        return data

    def drop_descriptors(self) -> None:
        """Close those that nobody will receive."""
        for fds in [*self.fds, *(fds for _, _, fds in self._on_the_way)]:
            for fd in fds:
                os.close(fd)
            fds.clear()
        self.fds.clear()

    def break_off(self) -> None:
        self.broken = True
        self.drop_descriptors()
        self._on_the_way.clear()
        self.size = len(self.arrived)


class SimSocket(Descriptor):
    """`socket.socket` of the simulated system. `present` is set when a simulation begins."""

    present: ClassVar[Network]
    #: Whether threads and other loops may take over what the runtime's loop reads. Mostly they do not: each
    #: process has one reader then, and seeds stand for the same runs however that is done.
    plain: ClassVar[bool] = False

    def __new__(cls, *args: Any, fileno: int | None = None, **options: Any) -> SimSocket:
        if fileno is not None:
            found = cls.present.table[fileno]
            assert isinstance(found, SimSocket)
            return found
        return super().__new__(cls)

    def __init__(
        self,
        family: int = real.AF_INET,
        type: int = real.SOCK_STREAM,
        proto: int = 0,
        fileno: int | None = None,
    ) -> None:
        if fileno is not None:
            return
        self.network = self.present
        kernel = self.network.kernel
        if kernel.process is None:
            raise SimulationError("a socket is made outside of the simulated processes")
        super().__init__(self.network.table)
        self.family = family
        self.type = type
        self.proto = proto
        self.process = kernel.process
        self.host = kernel.process.host
        self._timeout: float | None = None
        self._waiting: Waiting | None = None
        self.address: Any = "" if family == real.AF_UNIX else ("0.0.0.0", 0)
        self.peer_address: Any = None
        self.incoming: Pipe | None = None
        self.outgoing: Pipe | None = None
        self.peer: SimSocket | None = None
        self.backlog: deque[SimSocket] | None = None  #: of a listening one
        self.connecting = False
        self.error = 0
        self.closed = False
        self.was_reset = False
        self.shares = 1  #: how many processes have it open

    # ---- readiness -----------------------------------------------------------------------------------

    def readable(self) -> bool:
        if self.backlog is not None:
            return bool(self.backlog)
        if self.error:
            return True
        pipe = self.incoming
        return pipe is not None and (bool(pipe.arrived) or pipe.ended)

    def writable(self) -> bool:
        if self.error:
            return True
        if self.connecting or self.outgoing is None:
            return False
        return self.outgoing.size < self.outgoing.window or self.outgoing.broken

    def hung_up(self) -> bool:
        return self.error != 0

    def _wait(self, look: Callable[[], bool], what: str) -> None:
        """For blocking sockets; `BlockingIOError` for others."""
        if look():
            return
        if self._timeout == 0.0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        waiting = Waiting(self.network.kernel)
        self.watchers[waiting] = None
        try:
            if not waiting.wait(look, self._timeout, what):
                raise TimeoutError("timed out")
        finally:
            self.watchers.pop(waiting, None)

    # ---- options -------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return -1 if self.closed else self.fd

    def setblocking(self, flag: bool) -> None:
        self._timeout = None if flag else 0.0

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        return self._timeout

    def getblocking(self) -> bool:
        return self._timeout != 0.0

    def setsockopt(self, *args: Any) -> None:
        pass

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        if level == real.SOL_SOCKET and option == real.SO_ERROR:
            error, self.error = self.error, 0
            return error
        if level == real.SOL_SOCKET and option == getattr(real, "SO_PEERCRED", -1):
            return _CREDENTIALS.pack(self.peer.process.pid if self.peer else 0, os.getuid(), os.getgid())
        if level == real.IPPROTO_TCP and option == getattr(real, "TCP_INFO", -1):
            since = self.outgoing.silent_since if self.outgoing is not None else None
            silent = 0 if since is None else int((self.network.kernel.now - since) * 1000)
            numbers = [0] * 13
            numbers[12] = silent
            return _TCP_INFO.pack(0, 0, 9 if since is not None else 0, 0, 0, 0, 0, 0, *numbers)
        return 0

    def getsockname(self) -> Any:
        return self.address

    def getpeername(self) -> Any:
        if self.peer_address is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self.peer_address

    def detach(self) -> int:
        return self.fd

    # ---- making connections --------------------------------------------------------------------------

    def bind(self, address: Any) -> None:
        self.network.bind(self, address)

    def listen(self, backlog: int = 128) -> None:
        self.backlog = deque()

    def accept(self) -> tuple[SimSocket, Any]:
        self._check()
        if self.backlog is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._wait(self.readable, "a connection")
        found = self.backlog.popleft()
        found.adopt(self.process)
        return found, found.peer_address

    def adopt(self, process: Any) -> None:
        """It belongs to this process from now on."""
        self.process.descriptors.pop(self.fd, None)
        self.process = process
        process.descriptors[self.fd] = self

    def connect(self, address: Any) -> None:
        self._check()
        self.network.connect(self, address)
        if self.connecting:
            if self._timeout == 0.0:
                raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
            self._wait(lambda: not self.connecting, "being connected")
            if self.error:
                error, self.error = self.error, 0
                raise OSError(error, os.strerror(error))

    def connect_ex(self, address: Any) -> int:
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    # ---- bytes ---------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def _raise_error(self) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))

    def send(self, data: Any, flags: int = 0) -> int:
        return self._send(data, None)

    def _send(self, data: Any, fds: list[int] | None) -> int:
        self._check()
        self._raise_error()
        if self.outgoing is None or self.connecting:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if self.outgoing.broken and not self.was_reset:  # the other side knows nothing of this connection
            ends = self.outgoing.ends
            self.network.kernel.call_later(2 * self.network.latency(ends, False), self.be_reset)
            return len(memoryview(data).cast("B"))
        if self.outgoing.finished or self.outgoing.broken:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if self.peer is not None and self.peer.closed and self.family == real.AF_UNIX:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self._wait(self.writable, "room to send")
        self._raise_error()
        view = memoryview(data).cast("B")
        size = min(len(view), max(1, self.outgoing.window - self.outgoing.size))
        if size > 64 and fds is None and self.network.choices.chance(self.network.partial_sends):
            size = 1 + self.network.choices.below(size)
        self.outgoing.send(bytes(view[:size]), fds)
        return size

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view) :]

    def sendmsg(self, buffers: Any, ancillary: Any = (), flags: int = 0, address: Any = None) -> int:
        data = b"".join(bytes(buffer) for buffer in buffers)
        fds: list[int] = []
        for level, kind, content in ancillary:
            if level == real.SOL_SOCKET and kind == real.SCM_RIGHTS:
                raw = bytes(content)
                fds += [os.dup(fd) for (fd,) in struct.iter_unpack("i", raw[: len(raw) // 4 * 4])]
        return self._send(data, fds)

    def recv(self, size: int, flags: int = 0) -> bytes:
        self._check()
        if self.error:
            error, self.error = self.error, 0
            if self.incoming is not None:
                self.incoming.ended = True
                self.incoming.arrived.clear()
            raise OSError(error, os.strerror(error))
        pipe = self.incoming
        if pipe is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        self._wait(self.readable, "something to receive")
        if self.hung_up():
            return self.recv(size, flags)
        return pipe.take(size, bool(flags & _PEEK))

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(size or len(view), flags)
        view[: len(data)] = data
        return len(data)

    def recvmsg(self, size: int, ancillary_size: int = 0, flags: int = 0) -> tuple[Any, ...]:
        data = self.recv(size, flags)
        found = []
        if self.incoming is not None and self.incoming.fds:
            fds = self.incoming.fds.popleft()
            for fd in fds:
                self.network.received(fd)
            found.append((real.SOL_SOCKET, real.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds)))
        return data, found, 0, self.peer_address

    # ---- the end -------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        if self.outgoing is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if how in (real.SHUT_WR, real.SHUT_RDWR):
            self.outgoing.finish()
        if how in (real.SHUT_RD, real.SHUT_RDWR) and self.incoming is not None:
            self.incoming.ended = True
            self.changed()

    def close(self) -> None:
        if self.closed:
            return
        self.shares -= 1
        if self.shares:
            return
        self.closed = True
        self.network.forget(self)
        if self.backlog is not None:
            for waiting in self.backlog:
                waiting.reset()
        unread = self.incoming is not None and bool(self.incoming.arrived)
        if unread and self.peer is not None:  # whoever closes with something unread resets
            self.peer.be_reset()
        if self.incoming is not None:
            self.incoming.drop_descriptors()
        if self.outgoing is not None:
            self.outgoing.finish()
        self.release()

    def reset(self, only_here: bool = False) -> None:
        """Both ends of the connection fail; or one, and the other when it says something next: at the latest
        when its system asks whether this side lives."""
        if self.peer is not None:
            if only_here:
                self.network.kernel.call_later(KEEPALIVE, self.peer.be_reset)
            else:
                self.peer.be_reset()
        self.be_reset()

    def be_reset(self) -> None:
        """As if the other side's machine had answered with RST."""
        if self.closed or self.was_reset:
            return
        self.was_reset = True
        for pipe in (self.incoming, self.outgoing):
            if pipe is not None:
                pipe.break_off()
        self.error = errno.ECONNRESET
        self.changed()

    def __enter__(self) -> SimSocket:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SimSocket {self.fd} of {self.process.name}>"
