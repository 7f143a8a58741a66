"""The floor of transfers between nodes: bytes sent by one process and received by another, over TCP, with
asyncio alone, into memory that is there already.

A script of its own (``python tcp_copy.py``), so that nothing of the framework is in the floor: it prints its
port, and sends as many bytes as each request (eight bytes, a number) asks for.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import Callable
from typing import cast

NUMBER = struct.Struct("<Q")
_CHUNK = 1024 * 1024


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's loop where it is installed, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    data = memoryview(bytearray(b"x") * _CHUNK)
    try:
        while True:
            (left,) = NUMBER.unpack(await reader.readexactly(NUMBER.size))
            while left:
                writer.write(data[: min(left, _CHUNK)])
                left -= min(left, _CHUNK)
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        asyncio.get_running_loop().stop()


class Receiver(asyncio.BufferedProtocol):
    """Receives into memory of its own."""

    def __init__(self, size: int) -> None:
        self._memory = memoryview(bytearray(size))
        self._spare = memoryview(bytearray(1))  #: nobody sends so much, but room is asked for all the same
        self._done = 0
        self._left = 0
        self._future: asyncio.Future[None] | None = None
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's are no subclasses of it

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._memory[self._done : self._done + _CHUNK] or self._spare

    def buffer_updated(self, nbytes: int) -> None:
        self._done += nbytes
        if self._done == self._left and self._future is not None:
            self._future.set_result(None)

    async def receive(self) -> None:
        """Fill the memory once."""
        assert self._transport is not None
        self._done, self._left = 0, len(self._memory)
        self._future = asyncio.get_running_loop().create_future()
        self._transport.write(NUMBER.pack(self._left))
        await self._future


async def _serve() -> None:
    server = await asyncio.start_server(_send, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    loop = loop_factory()()
    try:
        loop.run_until_complete(_serve())
    except RuntimeError:
        pass  # the client has gone
    sys.stdout.flush()
