"""A connection that has ended goes at once, with its buffers: it is in no circle that waits for the garbage
collector."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import Iterator

import pytest

from framework._net.connection import Connection
from framework._net.silence import watch
from framework._net.takeover import Readers
from framework._wire import messages as m


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def ended(connection: weakref.ref[Connection]) -> bool:
    for _ in range(100):
        if connection() is None:
            return True
        await asyncio.sleep(0.001)
    return False


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\xcd\xff\xff"], ids=["end", "no frame", "no message"])
@pytest.mark.parametrize("shared", [False, True])
async def test_when_the_peer_ends_it(no_collector: None, data: bytes, shared: bool) -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    readers = Readers(loop)
    connection = Connection(loop, ours, {}, on_close=lambda connection: None)
    if shared:
        connection.share(readers)
        assert connection.shared is not None
    weak = weakref.ref(connection)
    del connection
    if data:
        theirs.sendall(data)
    else:
        theirs.close()
    assert await ended(weak)
    theirs.close()
    readers.close()


async def test_when_it_is_reset(no_collector: None) -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = Connection(loop, ours, {}, on_close=lambda connection: None)
    weak = weakref.ref(connection)
    connection.cast(m.BLOCKED)  # which nobody reads: the system reports a reset
    connection.flush()
    del connection
    theirs.close()
    assert await ended(weak)


async def test_when_its_machine_is_watched(no_collector: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework._base.limits.MACHINE_SILENCE", 0.01)
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = Connection(loop, ours, {}, on_close=lambda connection: None)
    watch(loop, connection, ours)
    weak = weakref.ref(connection)
    del connection
    theirs.close()
    assert await ended(weak)
