"""One connection: a non-blocking socket that a loop reads and any thread may write.

Why not an asyncio transport: those may be written from the loop's thread only, so every reply of a worker
and every call of a driver would cost a hop between threads. Here the outgoing bytes are a deque, and whoever
holds the lock sends all of it; a thread that finds the lock taken leaves its bytes to the holder, who looks
again after letting go. When the socket is full, the loop takes over until it is writable again.

Writing
    `send`    any thread: append and write now
    `post`    loop thread: append, written once at the end of this turn of the loop
    `buffer`  any thread: append only; the caller calls `flush` later

None of them ever blocks. What the peer does not take piles up here, and is counted as soon as the socket is
full. Above `limits.SEND_HIGH_WATER` bytes the connection is `full`, until it is down to
`limits.SEND_LOW_WATER`: senders that can wait do so (`when_drained`), and a connection that `serves` reads no
more requests, so that answers do not pile up either. (Only the side that was connected to does that: if both
did, they could wait for each other.) A peer for which more than `limits.SEND_MAX` bytes wait is cut off.

A connection to another machine takes time to open. It is made without a socket, and all that is sent is kept
as behind a full socket, in order and within the same bounds, until `adopt` brings one, or `close` ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.takeover import Readers, Reading
from framework._wire import messages as m
from framework._wire.codec import DECODE_ERRORS, Decoder, new_packer
from framework.exceptions import ConnectionFailedError, FrameworkError, ProtocolError

if TYPE_CHECKING:
    from framework._net.tls import StreamSocket

log = logging.getLogger("framework.net")

_AF_UNIX = socket.AF_UNIX

Frame = list[Any]
Handler = Callable[["Connection", Frame], object]


class Connection:
    """A peer that frames are exchanged with.

    `handlers` maps opcodes to plain functions ``(connection, frame)``. An exception of a handler of a call is
    answered with FAIL; any other is logged, and the connection lives on, except after `ProtocolError`, which
    closes it. `on_batch` is called after all frames of one read. `on_close` is called exactly once, on the
    loop.
    """

    __slots__ = (
        "_backlog",
        "_calls",
        "_decoder",
        "_drain_waiters",
        "_flush_scheduled",
        "_far",
        "_fd",
        "_handlers",
        "_lock",
        "_loop",
        "_next_rid",
        "_on_batch",
        "_on_close",
        "_out",
        "_reading",
        "_received",
        "_rest",
        "_serves",
        "_sock",
        "_writer_armed",
        "closed",
        "error",
        "full",
        "greeted",
        "kind",
        "ident",
        "name",
        "opener",
        "pack",
        "peer",
        "shared",
        "shy",
        "state",
        "__weakref__",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: StreamSocket | None,
        handlers: Mapping[int, Handler],
        *,
        on_close: Callable[[Connection], None],
        on_batch: Callable[[], None] | None = None,
        name: str = "peer",
        trusted: bool = True,
        serves: bool = False,
    ) -> None:
        self._loop = loop
        self._handlers = handlers
        self._on_close = on_close
        self._on_batch = on_batch
        self._decoder = Decoder(limits.MAX_FRAME if trusted else limits.MAX_HANDSHAKE_FRAME)
        self._out: deque[bytes] = deque()
        self._rest: memoryview | None = None
        self._lock = threading.Lock()
        self._flush_scheduled = False
        self._writer_armed = True  #: somebody else writes: the loop, or `adopt` will
        self._serves = serves
        self._reading = True
        self._backlog = 0  #: bytes that wait; counted while the socket is full, and only nearly exact then
        self._drain_waiters: deque[Callable[[], object]] = deque()
        self.full = False  #: more waits than should: whoever can do without sending should
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._next_rid = 0
        self._received = 0
        self.pack = new_packer()  #: for the loop's thread only
        self.closed = False
        self.error: BaseException | None = None
        self.greeted = trusted  #: false until the peer has said HELLO; then its frames are bounded in size
        self.name = name
        self.kind = ""  #: what the peer said it is
        self.ident = b""
        self.peer: dict[str, Any] = {}  #: the facts of its HELLO
        self.state: Any = None  #: whatever the owning service keeps per connection
        self.shared: Reading | None = None  #: for other threads, once they may take the reading over
        self.shy = limits.DIRECT_AFTER  #: so many times more they had better not
        self.opener: asyncio.Task[None] | None = None  #: what will call `adopt`; cancelled by `close`
        self._sock: StreamSocket = _NONE
        self._fd = -1
        self._far = False
        if sock is not None:
            self._take_socket(sock)
            self._writer_armed = False

    def _take_socket(self, sock: StreamSocket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._far = getattr(sock, "family", None) != _AF_UNIX
        self._watch()
        pending = getattr(sock, "pending", None)
        if pending is not None and pending():
            self._loop.call_soon(self._read_pending)

    def _read_pending(self) -> None:
        """What was decrypted before the socket came here: polling does not tell."""
        if self._reading and not self.closed:
            self._on_readable()

    @property
    def opening(self) -> bool:
        """Whether the other side has not been reached yet."""
        return self._fd < 0 and not self.closed

    @property
    def never_opened(self) -> bool:
        """Whether it has ended without having reached the other side."""
        return self._fd < 0 and self.closed

    def adopt(self, sock: StreamSocket) -> None:
        """Loop thread: the other side has been reached. What was sent meanwhile goes out first."""
        self.opener = None
        if self.closed:
            sock.close()
            return
        self._take_socket(sock)
        self._loop.add_writer(self._fd, self._on_writable)

    # ---- receiving -----------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self.shared is not None:
            self.shared.watch()
        else:
            self._loop.add_reader(self._fd, self._on_readable)

    def _unwatch(self) -> None:
        if self.shared is not None:
            self.shared.unwatch()
        else:
            self._loop.remove_reader(self._fd)

    def share(self, readers: Readers) -> None:
        """Loop thread: from now on other threads may take the reading over, see `takeover`."""
        sock = self._sock
        if type(sock) is not socket.socket and not getattr(sock, "plain", False):
            return  # what is wrapped may hold data that poll() does not see
        if self.shared is None and self.greeted and self._reading and not self.closed:
            self._unwatch()
            self.shared = Reading(readers, sock, self._decoder, self._on_readable)  # type: ignore[arg-type]
            self._watch()

    def read_by_loop(self) -> None:
        """Loop thread: what is sent now is answered to the loop: it reads, if an application's did so."""
        if self.shared is not None and self.shared.recall():
            self.shy = limits.DIRECT_AGAIN

    def _on_readable(self) -> None:
        greeted = self.greeted
        try:
            data = self._sock.recv(limits.RECV_CHUNK if greeted else limits.MAX_HANDSHAKE_FRAME)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(error)
            return
        if not data:
            self.close(None)
            return
        try:
            if not greeted:
                self._received += len(data)
                self._take(data)
                if self.greeted:
                    # What came right behind HELLO may be larger than that was allowed to be.
                    rest = self._decoder.rest()
                    self._decoder = Decoder(limits.MAX_FRAME)
                    self._take(rest)
                elif self._received >= limits.MAX_HANDSHAKE_FRAME:
                    raise ProtocolError("too much data before HELLO")
            else:
                self._take(data)
        except (ProtocolError, MemoryError) as error:
            log.warning("%s: closed after a protocol error: %s", self.name, error)
            self.close(error)
        if self._on_batch is not None:
            self._on_batch()
        if self._far and self.shared is None and not self.closed:
            # The peer's machine may have refused what we sent last (RST) after it had said what was just
            # read. uvloop tells of both at once and never again (libuv stops a poll handle with an error):
            # without a second look the end of the connection would go unnoticed. (Of what is `shared`, the
            # epoll of its own tells again.)
            self._loop.call_soon(self._read_pending)

    def _take(self, data: bytes) -> None:
        handlers = self._handlers
        check = m.check
        frames = self._decoder.feed(data)
        greeted = self.greeted
        first = True
        while not self.closed and greeted == self.greeted:
            try:
                frame = next(frames)
            except StopIteration:
                return
            except DECODE_ERRORS as error:
                raise ProtocolError(f"not a frame: {type(error).__name__}: {error}") from None
            if first:
                first = False
                self._decoder.first()
            opcode = check(frame)
            if not self.greeted and opcode != m.HELLO:
                raise ProtocolError(f"{m.CATALOGUE[opcode].name} before HELLO")
            handler = handlers.get(opcode)
            try:
                if handler is not None:
                    handler(self, frame)
                elif opcode == m.REPLY or opcode == m.FAIL:
                    self._answered(opcode, frame)
                else:
                    raise ProtocolError(f"{m.CATALOGUE[opcode].name} is not for this peer")
            except ProtocolError:
                raise
            except Exception as error:
                self._handler_failed(opcode, frame, error)

    def _handler_failed(self, opcode: int, frame: Frame, error: Exception) -> None:
        message = m.CATALOGUE[opcode]
        m.blame(frame)
        if message.is_call:
            if not isinstance(error, FrameworkError | ValueError):
                log.exception("%s: call %s failed", self.name, message.name)
            self.fail(frame[1], error)
        else:
            log.exception("%s: message %s failed", self.name, message.name)

    # ---- calls ---------------------------------------------------------------------------------------

    def call(self, opcode: int, *fields: object) -> asyncio.Future[Any]:
        """Send a call from the loop's thread; the future gets the reply's value, the peer's error, or
        `ConnectionFailedError` when the connection ends before the answer."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closed:
            future.set_exception(ConnectionFailedError(f"the connection to {self.name} is closed"))
            return future
        self._next_rid += 1
        self._calls[self._next_rid] = future
        self.post(self.pack((opcode, self._next_rid, *fields)))
        return future

    def reply(self, rid: int, value: object) -> None:
        """Answer call `rid` (loop thread)."""
        self.post(self.pack((m.REPLY, rid, value)))

    def fail(self, rid: int, error: BaseException) -> None:
        """Answer call `rid` with an error (loop thread). It travels as class name and text: nothing is
        pickled here.
        """
        text = getattr(error, "reason", None) or str(error)
        self.post(self.pack((m.FAIL, rid, [type(error).__name__, text])))

    def _answered(self, opcode: int, frame: Frame) -> None:
        future = self._calls.pop(frame[1], None)
        if future is None or future.done():
            return
        if opcode == m.REPLY:
            future.set_result(frame[2])
        else:
            future.set_exception(_remote_failure(frame[2]))

    # ---- sending -------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Any thread: write now, as far as the socket takes it."""
        self._out.append(data)
        if self._writer_armed:
            self._grown(len(data))
        self.flush()

    def buffer(self, data: bytes) -> None:
        """Any thread: keep until somebody calls `flush`."""
        self._out.append(data)
        if self._writer_armed:
            self._grown(len(data))

    def post(self, data: bytes) -> None:
        """Loop thread: written at the end of this turn, together with all else that was posted."""
        self._out.append(data)
        if self._writer_armed:
            self._grown(len(data))
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_turn)

    def cast(self, *frame: object) -> None:
        """Loop thread: `post` a message without an answer."""
        self.post(self.pack(frame))

    def _flush_turn(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def flush(self, wait: bool = False) -> None:
        """Any thread: write what is buffered. Returns at once when another thread is at it (unless `wait`:
        then that one is waited for), or the socket is full."""
        out, lock = self._out, self._lock
        while out and not self._writer_armed and lock.acquire(wait):
            try:
                if self.closed:
                    out.clear()
                if self._writer_armed or self.closed:
                    return
                full = self._write()
            finally:
                lock.release()
            if full:
                with contextlib.suppress(RuntimeError):  # the loop is closed: so is everything
                    self._loop.call_soon_threadsafe(self._arm_writer)
                return
        if wait:
            with lock:
                pass  # somebody may have taken the last bytes out and not handed them to the system yet

    @property
    def written(self) -> bool:
        """Whether the system has taken all that was sent (or nobody ever will)."""
        return self.closed or not (self._out or self._rest is not None)

    def _write(self, counted: bool = False) -> bool:
        """With the lock held: one write. True when the socket took less than there was. `counted`: the
        backlog is known already."""
        out = self._out
        rest = self._rest
        data: bytes | memoryview
        if rest is not None:
            data = rest
        elif not out:
            return False  # the holder before us has written it
        else:
            data = out.popleft()
            if out and len(data) < limits.SEND_CHUNK:
                chunks = [data]
                size = len(data)
                while out and size < limits.SEND_CHUNK:
                    chunk = out.popleft()
                    size += len(chunk)
                    chunks.append(chunk)
                data = b"".join(chunks)
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            # The reading side sees the end of the connection, after what the peer has still said, and closes
            # it, on the loop: unless it does not read at present.
            out.clear()
            self._rest = None
            if not self._reading:
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self.close, error)
            return False
        if sent == len(data):
            self._rest = None
            return False
        self._rest = memoryview(data)[sent:]
        self._writer_armed = True
        if counted:
            self._backlog -= sent
        else:
            self._backlog = len(self._rest) + sum(map(len, out.copy()))
        if self._backlog >= limits.SEND_HIGH_WATER:
            self._fill()
        return True

    def _arm_writer(self) -> None:
        if not self.closed:
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        with self._lock:
            if self.closed:
                return
            self._writer_armed = False
            armed = (self._rest is not None or bool(self._out)) and self._write(counted=True)
        if self.full and (not armed or self._backlog <= limits.SEND_LOW_WATER):
            self._drain()
        if armed:
            return  # the writer is still there
        self._loop.remove_writer(self._fd)
        self.flush()

    # ---- flow control --------------------------------------------------------------------------------

    def _grown(self, size: int) -> None:
        """Any thread: more waits behind a full socket."""
        # Not at any price: a signal handler may be sending on top of somebody who holds the lock. What is
        # not counted is missed until the socket is full for the next time.
        if not self._lock.acquire(False):
            return
        behind = 0
        try:
            armed = self._writer_armed
            if armed:
                self._backlog += size
                if self._backlog >= limits.SEND_HIGH_WATER:
                    self._fill()
                    # One frame may be as long as it likes; what piles up behind it may not.
                    behind = self._backlog - (len(self._rest) if self._rest is not None else 0)
        finally:
            self._lock.release()
        if not armed:
            self.flush()  # somebody may have found the lock taken, and relies on us
        elif behind > limits.SEND_MAX:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cut_off)

    def _fill(self) -> None:
        """With the lock held, any thread: the high mark is reached."""
        if not self.full:
            self.full = True
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop_reading)

    def _stop_reading(self) -> None:
        if self.full and self._serves and self._reading and not self.closed:
            self._reading = False
            self._unwatch()

    def _drain(self) -> None:
        """Loop: the low mark is reached, or it is all over."""
        self.full = False
        if not self._reading and not self.closed:
            self._reading = True
            self._watch()
        self._tell_drained()

    def when_drained(self, callback: Callable[[], object]) -> None:
        """Any thread: have `callback()` called on the loop, later, when the connection is not `full` any more
        (or closed)."""
        self._drain_waiters.append(callback)
        if not self.full:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._tell_drained)

    def _tell_drained(self) -> None:
        waiters = self._drain_waiters
        for _ in range(len(waiters)):  # not those that come again at once
            if self.full:
                return
            waiters.popleft()()

    async def drained(self) -> None:
        """On the connection's loop: until it is not `full`."""
        while self.full:
            future: asyncio.Future[None] = self._loop.create_future()
            self.when_drained(lambda future=future: future.done() or future.set_result(None))  # type: ignore[misc]
            await future

    def _cut_off(self) -> None:
        if not self.closed:
            error = ConnectionFailedError(
                f"{self.name} does not take what is sent to it: {self._backlog >> 20} MiB wait"
            )
            log.warning("%s", error)
            self.close(error)

    # ---- the end -------------------------------------------------------------------------------------

    def close(self, error: BaseException | None = None) -> None:
        """Loop thread: end the connection, after one more attempt to write what is buffered."""
        if self.closed:
            return
        opener, self.opener = self.opener, None
        if opener is not None:
            opener.cancel()
        if self._fd >= 0:
            self._writer_armed = False
            with contextlib.suppress(OSError):
                self.flush()
        self.closed = True
        if error is not None:
            # Its traceback leads to frames that know this connection: a circle, which would keep the buffers
            # of all connections that were lost until the next garbage collection.
            self.error = error.with_traceback(None)
            if error.__cause__ is not None:
                error.__cause__ = error.__cause__.with_traceback(None)
            error.__context__ = None
        if self._fd >= 0:
            self._unwatch()
            self._loop.remove_writer(self._fd)
        with self._lock:
            if self.shared is not None:
                self.shared.close()
            else:
                self._sock.close()
            self._out.clear()
            self._rest = None
            self._writer_armed = False
        self._drain()
        calls, self._calls = self._calls, {}
        for future in calls.values():
            if not future.done():
                why = f": {error}" if error is not None and str(error) else ""
                future.set_exception(ConnectionFailedError(f"the connection to {self.name} was lost{why}"))
                future.exception()  # whoever waits gets it; nobody waiting is no news
        self._on_close(self)

    @property
    def congested(self) -> bool:
        """Whether the peer does not take what is sent to it, for the moment: whoever can wait should."""
        return self._writer_armed

    def __repr__(self) -> str:
        return f"<Connection {self.name}{' closed' if self.closed else ''}>"


class _NoSocket:
    """The socket of a connection that is being opened: never touched but to be closed."""

    family = -1

    def recv(self, size: int) -> bytes:
        raise BlockingIOError

    def recv_into(self, buffer: Any, size: int = 0) -> int:
        raise BlockingIOError

    def send(self, data: Any) -> int:
        raise BlockingIOError

    def fileno(self) -> int:
        return -1

    def getsockname(self) -> Any:
        raise OSError("not connected yet")

    def close(self) -> None: ...

    def setblocking(self, flag: bool) -> None: ...


_NONE = _NoSocket()


def _remote_failure(error: list[Any]) -> Exception:
    """The exception that a FAIL stands for: the same class where it is one of ours or a common builtin."""
    from framework import exceptions

    name = error[0] if error and isinstance(error[0], str) else ""
    text = str(error[1]) if len(error) > 1 else "the peer gave no reason"
    cls = getattr(exceptions, name, None)
    if isinstance(cls, type) and issubclass(cls, FrameworkError):
        try:
            if issubclass(cls, exceptions.ObjectLostError):
                return cls(reason=text)
            return cls(text)
        except TypeError:
            return FrameworkError(text)
    if name == "ValueError":
        return ValueError(text)
    return FrameworkError(f"{name}: {text}")
