"""A connection whose reading passes between its loop, threads and other loops."""

from __future__ import annotations

import asyncio
import random
import select
import socket
import threading
from collections.abc import Callable

from framework._net.connection import Connection, Frame
from framework._net.takeover import Readers, Reading, Turn
from framework._wire import messages as m
from framework._wire.codec import DECODE_ERRORS, new_packer, unpack_frame

ITEM = m.UNBORROW  # a message with one list


class Shared:
    """A connection on a loop in a thread of its own, and the socket at its other end."""

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop = new_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.frames: list[int] = []  #: numbers in the frames that were dealt with, by anybody
        self.by_loop = 0
        self.closed = threading.Event()
        self.sock, theirs = socket.socketpair()
        self.pack = new_packer()
        self.connection: Connection = self.on_loop(lambda: self._connect(theirs))
        self.readers: Readers = self.on_loop(lambda: Readers(self.loop))
        self.on_loop(lambda: self.connection.share(self.readers))
        assert self.connection.shared is not None
        self.reading: Reading = self.connection.shared

    def _connect(self, sock: socket.socket) -> Connection:
        return Connection(
            self.loop, sock, {ITEM: self._frame}, on_close=lambda _: self.closed.set(), name="test"
        )

    def _frame(self, connection: Connection, frame: Frame) -> None:
        self.frames.extend(frame[1])
        self.by_loop += 1

    def on_loop(self, function: Callable[[], object]) -> object:
        """What it returns, called on the loop: after all that was posted before."""

        async def call() -> object:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)

    def stop_reading(self) -> None:
        """On the loop: as if its peer took no more answers."""
        self.connection._serves = self.connection.full = True
        self.connection._stop_reading()

    def turns(self, count: int = 3) -> None:
        """Let the loop run through, so that it has seen what had come before this."""
        for _ in range(count):
            self.on_loop(lambda: None)

    def send(self, *numbers: int) -> None:
        self.sock.sendall(b"".join(self.pack([ITEM, [number]]) for number in numbers))

    def send_in_pieces(self, count: int, dice: random.Random) -> None:
        """The numbers up to `count`, cut anywhere, with pauses; returns when all were dealt with."""
        data = b"".join(self.pack([ITEM, [number]]) for number in range(count))
        while data:
            size = dice.choice((1, len(self.pack([ITEM, [count]])), dice.randrange(1, 400)))
            self.sock.sendall(data[:size])
            data = data[size:]
            if dice.random() < 0.3:
                threading.Event().wait(0.0001)
        wait_for(lambda: len(self.frames) >= count)

    def read_one(self, turn: Turn) -> bool:
        """As a thread does that waits for a frame, or a loop of the application."""
        try:
            data = self.reading.peek()
            frame = unpack_frame(data)
        except (OSError, *DECODE_ERRORS):
            return False
        if not self.reading.claim(turn):
            return False
        self.frames.extend(frame[1])
        self.reading.skip(turn, len(data))
        return True

    def stop(self) -> None:
        self.on_loop(self.connection.close)
        self.on_loop(self.readers.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
        self.sock.close()


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(10_000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it has not come about")


def readable(reading: Reading) -> bool:
    return bool(select.select([reading.fileno()], [], [], 0)[0])
