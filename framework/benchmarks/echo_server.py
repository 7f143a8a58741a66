"""The far end of the socket floor: unpickles an argument, pickles it again, and sends it back.

A script of its own (``python echo_server.py SOCKET``), so that nothing of the framework is in the floor.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Callable
from typing import cast

import msgpack


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's loop where it is installed, else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class Echo(asyncio.Protocol):
    """Answers every frame `[number, pickle]` with `[number, pickle of the same value]`."""

    def __init__(self, closed: asyncio.Event) -> None:
        self._closed = closed
        self._unpacker = msgpack.Unpacker()
        self._pack: Callable[[object], bytes] = msgpack.Packer().pack
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's are no subclasses of it

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._unpacker.feed(data)
        pack = self._pack
        replies = [pack((number, pickle.dumps(pickle.loads(value), 5))) for number, value in self._unpacker]
        if replies:
            self._transport.write(b"".join(replies))

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()


async def serve(path: str) -> None:
    """Serve one connection at `path`; print a line when it can be made; end when it closes."""
    closed = asyncio.Event()
    server = await asyncio.get_running_loop().create_unix_server(lambda: Echo(closed), path)
    print("ready", flush=True)
    await closed.wait()
    server.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(sys.argv[1]))
