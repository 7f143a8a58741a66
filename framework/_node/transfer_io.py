"""The bytes of an object between two nodes: blocking functions for the threads of the transfer service. The
only place that reads and writes the sockets of transfers.

Sockets are non-blocking (they may be encrypted, see `framework._net.tls`); a thread waits for them by
polling, and looks now and then whether anybody still wants what it does. Bytes go from socket to arena and
from arena to socket by one system call each, without the interpreter's lock: the loop is not held up.

On the wire, both ways: four bytes of length and a msgpack array. Request: ``[object id, requester, offset,
version, [nodes not to name], forced]``. Answer: ``["data", size, owner, version, offset]`` followed by
the bytes from `offset` on; or ``["ask", node]``, ``["gone"]``.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import msgpack

from framework._base import limits
from framework._net.tls import StreamSocket, TlsSocket
from framework._store.arena import Arena

_LENGTH = struct.Struct("<I")


class Stopped(Exception):
    """Nobody wants it any more."""


class Channel:
    """A data connection, in the hands of one thread at a time. Errors are `OSError`, `Stopped` when the flag
    is set."""

    def __init__(self, sock: StreamSocket) -> None:
        self.sock = sock
        self.stop = False  #: set from anywhere: the thread leaves off within `limits.TRANSFER_POLL`
        self.used_at = 0.0
        self._poll = select.poll()
        self._fd = sock.fileno()

    def _wait(self, event: int) -> None:
        """Until the socket can be read (written)."""
        end = time.monotonic() + limits.TRANSFER_SILENCE
        self._poll.register(self._fd, event)
        while not self._poll.poll(limits.TRANSFER_POLL * 1000):
            self.check()
            if time.monotonic() > end:
                raise TimeoutError("the other side has been silent for too long")

    def check(self) -> None:
        """`Stopped` if it is."""
        if self.stop:
            raise Stopped

    def read_some(self, memory: memoryview) -> int:
        """Some bytes into `memory`, at least one."""
        self.check()
        while True:
            try:
                count = self.sock.recv_into(memory)
            except (BlockingIOError, InterruptedError):
                self._wait(select.POLLIN)
                continue
            if not count:
                raise ConnectionResetError("the other side has closed the connection")
            return count

    def write_all(self, memory: memoryview | bytes) -> None:
        """All of it."""
        memory = memoryview(memory)
        while memory:
            self.check()
            try:
                memory = memory[self.sock.send(memory[: limits.TRANSFER_CHUNK]) :]
            except (BlockingIOError, InterruptedError):
                self._wait(select.POLLOUT)

    def write_file(self, fd: int, offset: int, end: int) -> None:
        """The bytes of a file from `offset` to `end`."""
        if isinstance(self.sock, TlsSocket):
            while offset < end:
                data = os.pread(fd, min(limits.TRANSFER_CHUNK, end - offset), offset)
                if not data:
                    raise OSError("the file is shorter than the object")
                self.write_all(data)
                offset += len(data)
            return
        while offset < end:
            self.check()
            try:
                count = os.sendfile(self._fd, fd, offset, min(limits.TRANSFER_CHUNK, end - offset))
            except (BlockingIOError, InterruptedError):
                self._wait(select.POLLOUT)
                continue
            if not count:
                raise OSError("the file is shorter than the object")
            offset += count

    def write_message(self, message: list[Any]) -> None:
        """One message."""
        self.write_all(packed(message))

    def read_message(self) -> list[Any]:
        """One message. `OSError` for what is none."""
        (length,) = _LENGTH.unpack(self._read_exactly(_LENGTH.size))
        if length > limits.TRANSFER_FRAME:
            raise OSError(f"a message of {length} bytes")
        return unpacked(self._read_exactly(length))

    def _read_exactly(self, size: int) -> bytes:
        data = bytearray(size)
        done = 0
        with memoryview(data) as view:
            while done < size:
                done += self.read_some(view[done:])
        return bytes(data)

    def close(self) -> None:
        """End it. Only when no thread uses it."""
        with contextlib.suppress(OSError):
            self.sock.close()


class Progress:
    """How much of an object has arrived, for those who send it on meanwhile."""

    def __init__(self, begun: Callable[[Progress], object]) -> None:
        """`begun(this)` is called by the receiving thread when the first bytes are here."""
        self._begun = begun
        self.done = 0
        self.version = b""
        self.owner = b""
        self._failed = False
        self._watched = False
        self._changed = threading.Condition()
        self.on_begin: list[Callable[[], object]] = []  #: for the loop: who waits for that, or the failure

    def advance(self, done: int) -> None:
        """Receiving thread: so many bytes are here."""
        first, self.done = not self.done, done
        if first:
            self._begun(self)
        if self._watched:
            with self._changed:
                self._changed.notify_all()

    def fail(self) -> None:
        """It will not be completed, or with other content."""
        with self._changed:
            self._failed = True
            self._changed.notify_all()

    def beyond(self, offset: int, check: Callable[[], object]) -> int:
        """Sending thread: wait for more bytes than `offset`; how many there are. `OSError` when there will
        not be any."""
        end = time.monotonic() + limits.TRANSFER_SILENCE
        self._watched = True
        with self._changed:
            while self.done <= offset:
                check()
                if self._failed:
                    raise ConnectionAbortedError("what was sent on has broken off itself")
                if time.monotonic() > end:
                    raise TimeoutError("nothing more has arrived to be sent on")
                self._changed.wait(limits.TRANSFER_POLL)
        if self._failed:
            raise ConnectionAbortedError("what was sent on has broken off itself")
        return self.done


# ---- receiving -----------------------------------------------------------------------------------------


def fetch(
    channel: Channel, request: list[Any], size: int, place: int, arena: Arena, progress: Progress
) -> tuple[Any, ...]:
    """Ask for an object, and receive it into its place in the arena. Returns ``("arrived",)``,
    ``("redirected", node)``, ``("missing",)``, ``("differs", size)`` (then the connection is of no more use)
    or ``("broken", text)``; `progress` tells how far it came."""
    try:
        channel.write_message(request)
        answer = channel.read_message()
        word = answer[0]
        if word == "ask":
            return ("redirected", answer[1])
        if word == "gone":
            return ("missing",)
        _, there, owner, version, offset = answer
        if there != size:
            return ("differs", there)
        progress.owner = owner
        if version != progress.version:
            if progress.done:
                return (
                    "differs",
                    there,
                )  # what is here is of another making: not even for those we send it to
            progress.version = version
        if offset != progress.done:
            raise OSError(f"bytes from {offset} on, not from {progress.done}")
        _receive(channel, size, place, arena, progress)
        return ("arrived",)
    except (OSError, Stopped, ValueError, TypeError, IndexError) as error:
        return ("broken", f"{type(error).__name__}: {error}")


def _receive(channel: Channel, size: int, place: int, arena: Arena, progress: Progress) -> None:
    done = progress.done
    memory = arena.memory(place, size)
    ready = done
    with memory:
        while done < size:
            if done >= ready:
                ready = min(size, done + limits.STORE_WARM_STEP)
                arena.prepare(place + done, ready - done)
            done += channel.read_some(memory[done : min(ready, done + limits.TRANSFER_CHUNK)])
            progress.advance(done)


# ---- sending -------------------------------------------------------------------------------------------


def send_memory(
    channel: Channel, answer: list[Any], memory: memoryview, offset: int, progress: Progress | None
) -> str:
    """Send a block from `offset` on: all of it, or, with `progress`, as it comes in. "" or what went
    wrong."""
    try:
        with memory:
            channel.write_message(answer)
            size = len(memory)
            while offset < size:
                end = size if progress is None else progress.beyond(offset, channel.check)
                channel.write_all(memory[offset:end])
                offset = end
        return ""
    except (OSError, Stopped) as error:
        return f"{type(error).__name__}: {error}"


def send_spilled(channel: Channel, answer: list[Any], open_file: Callable[[], Any], offset: int) -> str:
    """The same, from where it was spilled to."""
    size = answer[1]
    try:
        with open_file() as file:
            channel.write_message(answer)
            try:
                fd = file.fileno()
            except (OSError, AttributeError):
                file.seek(offset)
                while offset < size:
                    data = file.read(min(limits.TRANSFER_CHUNK, size - offset))
                    if not data:
                        raise OSError("the file is shorter than the object") from None
                    channel.write_all(data)
                    offset += len(data)
            else:
                channel.write_file(fd, offset, size)
        return ""
    except (OSError, Stopped) as error:
        return f"{type(error).__name__}: {error}"


# ---- messages ------------------------------------------------------------------------------------------


def packed(message: list[Any]) -> bytes:
    """A message as bytes."""
    data: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(data)) + data


def complete_message(received: bytearray) -> list[Any] | None:
    """The message that has been received, if it is complete. `OSError` for what is none."""
    if len(received) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(received)
    if length > limits.TRANSFER_FRAME:
        raise OSError(f"a message of {length} bytes")
    if len(received) < _LENGTH.size + length:
        return None
    return unpacked(bytes(received[_LENGTH.size : _LENGTH.size + length]))


def unpacked(data: bytes) -> list[Any]:
    """A message from its bytes. `OSError` for what is none."""
    try:
        message = msgpack.unpackb(
            data, max_array_len=limits.MAX_HANDSHAKE_ITEMS, max_map_len=0, max_ext_len=0
        )
    except (ValueError, TypeError) as error:
        raise OSError(f"not a message: {error}") from None
    if type(message) is not list or not message:
        raise OSError("not a message")
    return message
