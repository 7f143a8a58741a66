"""The zygotes of a node: shared by equal load-time variables, ended when unused for long or too many, never
while they have workers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from framework._base import limits
from framework._node.zygote_client import Zygote
from framework._node.zygotes import Zygotes
from framework._state.node import EnvKey


class Pool:
    """Zygotes whose processes only sleep."""

    def __init__(self) -> None:
        self.started: list[EnvKey] = []
        self.sockets: dict[int, socket.socket] = {}
        self.lost: list[Zygote] = []
        self.fail = False
        self.zygotes = Zygotes(
            asyncio.get_running_loop(),
            on_forked=lambda *_: None,
            on_exit=lambda *_: None,
            on_lost=self.lost.append,
            spawn=self.spawn,
        )
        self.zygotes.adopt(*self.spawn(()))

    def spawn(self, env: EnvKey) -> tuple[socket.socket, int]:
        if self.fail:
            raise OSError("no more processes")
        ours, theirs = socket.socketpair()
        pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
        self.started.append(env)
        self.sockets[pid] = theirs
        return ours, pid

    def alive(self) -> set[int]:
        return {pid for pid in self.sockets if os.path.exists(f"/proc/{pid}")}


@pytest.fixture
async def pool(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pool]:
    monkeypatch.setattr(limits, "MAX_ZYGOTES", 3)
    pool = Pool()
    yield pool
    pool.zygotes.stop()
    assert not pool.alive()
    for sock in pool.sockets.values():
        sock.close()


def omp(number: int, **others: str) -> EnvKey:
    return tuple(sorted({"OMP_NUM_THREADS": str(number), **others}.items()))


async def spin(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_one_per_set_of_load_time_variables(pool: Pool) -> None:
    first = pool.zygotes.use(())
    assert pool.zygotes.use((("MINE", "1"),)) is first, "other variables are set after the fork"
    other = pool.zygotes.use(omp(2))
    assert other is not first
    assert pool.zygotes.use(omp(2, MINE="1")) is other
    assert pool.started == [(), omp(2)]


async def test_the_least_recently_used_one_without_workers_makes_room(pool: Pool) -> None:
    pids = {}
    for number in (1, 2, 3):
        pids[number] = pool.zygotes.use(omp(number)).pid
        pool.zygotes.released(omp(number))
    pool.zygotes.use(omp(1))
    pool.zygotes.released(omp(1))
    pids[4] = pool.zygotes.use(omp(4)).pid
    assert pids[2] not in pool.alive()
    assert {pids[1], pids[3], pids[4]} <= pool.alive()
    assert len(pool.alive()) == limits.MAX_ZYGOTES + 1
    pool.zygotes.use(omp(1))
    assert pool.started.count(omp(1)) == 1


async def test_one_with_workers_stays_however_many_there_are(pool: Pool) -> None:
    for number in range(6):
        pool.zygotes.use(omp(number))
        pool.zygotes.use(omp(number))
    assert len(pool.alive()) == 7
    for number in range(6):
        pool.zygotes.released(omp(number))
    assert len(pool.alive()) == 7, "each has a worker left"
    for number in range(6):
        pool.zygotes.released(omp(number))
    assert len(pool.alive()) == limits.MAX_ZYGOTES + 1, "as soon as they may, those that are too many end"


async def test_an_idle_one_ends_after_a_while_unless_it_is_used(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ZYGOTE_IDLE", 0.02)
    used, idle = pool.zygotes.use(omp(1)).pid, pool.zygotes.use(omp(2)).pid
    pool.zygotes.released(omp(2))
    pool.zygotes.released(omp(1))
    pool.zygotes.use(omp(1))
    await spin(lambda: idle not in pool.alive())
    await asyncio.sleep(0.03)
    assert used in pool.alive()
    assert pool.lost == [], "that was no accident"


async def test_the_first_one_never_ends_for_want_of_work(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ZYGOTE_IDLE", 0.0)
    first = pool.zygotes.use(())
    pool.zygotes.released(())
    for number in range(5):
        pool.zygotes.use(omp(number))
    await asyncio.sleep(0.01)
    assert pool.zygotes.use(()) is first


async def test_one_that_dies_is_reported_and_replaced(pool: Pool) -> None:
    zygote = pool.zygotes.use(omp(1))
    pool.sockets[zygote.pid].close()
    await spin(lambda: pool.lost)
    assert pool.lost == [zygote] and zygote.pid not in pool.alive()
    assert pool.zygotes.use(omp(1)).pid in pool.alive()
    first = pool.zygotes.use(())
    pool.sockets[first.pid].close()
    await spin(lambda: len(pool.lost) == 2)
    pool.zygotes.ensure_first()
    again = pool.zygotes.use(())
    assert again is not first
    pool.zygotes.ensure_first()
    assert pool.zygotes.use(()) is again


async def test_one_that_cannot_be_started(pool: Pool) -> None:
    pool.fail = True
    with pytest.raises(OSError):
        pool.zygotes.use(omp(1))
    pool.fail = False
    pool.zygotes.use(omp(1))
    pool.zygotes.released(omp(1))
    assert len(pool.alive()) == 2
