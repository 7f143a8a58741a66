"""The node's side of a zygote: requests out, forks and exits in."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgpack
import pytest

from framework._node.zygote_client import Zygote, describe_exit, load_time_part


class Peer:
    """A zygote client, and the other end of its socket."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.news: list[tuple[Any, ...]] = []
        self.zygote = Zygote(
            asyncio.get_running_loop(),
            ours,
            0,
            on_forked=lambda *news: self.news.append(("forked", *news)),
            on_exit=lambda *news: self.news.append(("exit", *news)),
            on_lost=lambda zygote: self.news.append(("lost", zygote)),
        )

    async def requests(self, count: int) -> list[Any]:
        unpacker, found = msgpack.Unpacker(max_buffer_size=1 << 30), []
        while len(found) < count:
            unpacker.feed(await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16))
            found += list(unpacker)
        return found

    async def say(self, *messages: list[Any], cut: int | None = None) -> None:
        data = b"".join(map(msgpack.packb, messages))
        self.sock.sendall(data[:cut])

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.news) < count:
                await asyncio.sleep(0.001)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    yield peer
    peer.zygote.close()
    peer.sock.close()


async def test_requests_leave_in_order(peer: Peer) -> None:
    for number in range(3):
        peer.zygote.fork(bytes([number]), (("A", str(number)),), {"n": number})
    assert await peer.requests(3) == [[bytes([n]), {"A": str(n)}, {"n": n}] for n in range(3)]


async def test_a_zygote_that_is_busy_gets_everything_later(peer: Peer) -> None:
    """While it loads modules it does not read; nobody waits for it."""
    for number in range(40):
        peer.zygote.fork(bytes([number]), (), {"filler": "x" * 50_000})
    assert [request[0][0] for request in await peer.requests(40)] == list(range(40))
    peer.zygote.fork(b"last", (), {})
    assert (await peer.requests(1))[0][0] == b"last"


async def test_news_are_passed_on(peer: Peer) -> None:
    await peer.say(["forked", b"a", 11, ""], ["forked", b"b", 0, "no memory"], ["exited", 11, 9])
    await peer.until(3)
    assert peer.news == [("forked", b"a", 11, ""), ("forked", b"b", 0, "no memory"), ("exit", 11, 9)]


async def test_the_end_is_told_once(peer: Peer) -> None:
    peer.sock.close()
    await peer.until(1)
    await asyncio.sleep(0)
    assert peer.news == [("lost", peer.zygote)]
    assert peer.zygote.closed
    peer.zygote.fork(b"a", (), {})  # too late: nobody answers, nobody fails


async def test_our_own_end_is_no_news(peer: Peer) -> None:
    peer.zygote.close()
    peer.zygote.close()
    assert peer.sock.recv(1) == b"", "it sees the end"
    await asyncio.sleep(0)
    assert peer.news == []


def test_reap_ends_and_collects_the_process() -> None:
    loop = asyncio.new_event_loop()
    a, b = socket.socketpair()
    ignore: Callable[..., None] = lambda *_: None  # noqa: E731
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    zygote = Zygote(loop, a, pid, on_forked=ignore, on_exit=ignore, on_lost=ignore)
    zygote.close()
    zygote.reap()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    zygote.reap()
    loop.close()
    b.close()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exited with code 0"),
        (7 << 8, "exited with code 7"),
        (signal.SIGTERM, "killed by signal 15 (SIGTERM)"),
        (signal.SIGKILL, "killed by signal 9 (SIGKILL); something killed it: the out-of-memory killer"),
        (signal.SIGSEGV, "killed by signal 11 (SIGSEGV); a crash in compiled code"),
        (64, "killed by signal 64"),
    ],
)
def test_exits_in_words(status: int, text: str) -> None:
    assert describe_exit(status).startswith(text)


def test_nobody_is_blamed_for_what_we_did() -> None:
    assert describe_exit(signal.SIGKILL, by_us=True) == "killed by signal 9 (SIGKILL)"


def test_variables_that_matter_when_modules_are_loaded() -> None:
    env = (
        ("LD_PRELOAD", "x"),
        ("MINE", "1"),
        ("OMP_NUM_THREADS", "2"),
        ("PYTHONHASHSEED", "0"),
        ("XOMP_", "1"),
    )
    assert [name for name, _ in load_time_part(env)] == ["LD_PRELOAD", "OMP_NUM_THREADS", "PYTHONHASHSEED"]
    assert load_time_part(()) == ()
