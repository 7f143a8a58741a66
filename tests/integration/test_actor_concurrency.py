"""Async and threaded actors, concurrency groups, calls out of order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import framework as fw
from framework.exceptions import ActorDiedError, TaskCancelledError
from support.actors import LIMIT, Gate, get, later, wait_for_waiters

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_coroutines_of_an_actor_run_concurrently_and_share_asyncio_objects(session: object) -> None:
    @fw.remote
    class Hub:
        def __init__(self) -> None:
            self.queue: asyncio.Queue[int] = asyncio.Queue()
            self.lock = asyncio.Lock()
            self.inside = self.most = 0

        async def put(self, n: int) -> None:
            await self.queue.put(n)

        async def take(self) -> int:
            return await self.queue.get()

        async def alone(self) -> int:
            async with self.lock:
                self.inside += 1
                self.most = max(self.most, self.inside)
                await asyncio.sleep(0.001)
                self.inside -= 1
            return self.most

        def thread(self) -> int:
            return threading.get_ident()

        async def loop_thread(self) -> int:
            return threading.get_ident()

        async def items(self, n: int) -> AsyncIterator[int]:
            for i in range(n):
                await asyncio.sleep(0)
                yield i

        def plain_items(self, n: int) -> Iterator[int]:
            yield from range(n)

    hub = Hub.remote()
    takers = [hub.take.remote() for _ in range(20)]
    get([hub.put.remote(n) for n in range(20)])
    assert get(takers) == list(range(20))
    assert get([hub.alone.remote() for _ in range(20)]) == [1] * 20
    assert get(hub.thread.remote()) != get(hub.loop_thread.remote())
    assert [get(ref) for ref in hub.items.remote(5)] == [0, 1, 2, 3, 4]
    assert [get(ref) for ref in hub.plain_items.remote(3)] == [0, 1, 2]


def test_max_concurrency_of_an_async_actor(session: object) -> None:
    @fw.remote(max_concurrency=3)
    class Few:
        def __init__(self) -> None:
            self.now = self.most = 0

        async def work(self) -> int:
            self.now += 1
            self.most = max(self.most, self.now)
            for _ in range(20):
                await asyncio.sleep(0)
            self.now -= 1
            return self.most

    few = Few.remote()
    assert max(get([few.work.remote() for _ in range(30)])) == 3


def test_references_as_arguments_do_not_hold_up_the_loop(session: object) -> None:
    gate = Gate.remote()

    @fw.remote
    class Host:
        async def size(self, data: bytes) -> int:
            return len(data)

    @fw.remote(num_cpus=0)
    def big(gate: Any) -> bytes:
        fw.get(gate.wait.remote())
        return bytes(500_000)

    @fw.remote(num_cpus=0)
    def forward(host: Any, box: list[Any]) -> int:
        return fw.get(host.size.remote(box[0]), timeout=LIMIT)  # type: ignore[no-any-return]

    host = Host.remote()
    slow = forward.remote(host, [big.remote(gate)])
    assert get(host.size.remote(bytes(200_000))) == 200_000
    get(gate.open.remote())
    assert get(slow) == 500_000


def test_max_concurrency_runs_plain_methods_in_threads(session: object) -> None:
    @fw.remote(max_concurrency=4)
    class Threaded:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(4)

        def meet(self) -> int:
            self.barrier.wait(LIMIT)
            return threading.get_ident()

        def items(self, n: int) -> Iterator[int]:
            yield from range(n)

        def fail(self) -> None:
            raise ValueError("in a thread")

        def nested(self) -> int:
            return fw.get(later.remote(5))  # type: ignore[no-any-return]

    actor = Threaded.remote()
    assert len(set(get([actor.meet.remote() for _ in range(4)]))) == 4
    assert [get(ref) for ref in actor.items.remote(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="in a thread"):
        get(actor.fail.remote())
    assert get([actor.nested.remote() for _ in range(4)]) == [5] * 4


@pytest.mark.parametrize("kind", ["async", "threads"])
def test_concurrency_groups(session: object, kind: str) -> None:
    @fw.remote(concurrency_groups={"io": 2, "compute": 1})
    class Threads:
        def __init__(self) -> None:
            self.event = threading.Event()

        @fw.method(concurrency_group="io")
        def wait(self) -> bool:
            return self.event.wait(LIMIT)

        @fw.method(concurrency_group="compute")
        def set(self) -> None:
            self.event.set()

        def plain(self) -> str:
            return "default"

    @fw.remote(concurrency_groups={"io": 2, "compute": 1})
    class Async:
        def __init__(self) -> None:
            self.event = asyncio.Event()

        @fw.method(concurrency_group="io")
        async def wait(self) -> bool:
            return await self.event.wait()

        @fw.method(concurrency_group="compute")
        async def set(self) -> None:
            self.event.set()

        async def plain(self) -> str:
            return "default"

    actor: Any = (Threads if kind == "threads" else Async).remote()
    waiting = [actor.wait.remote() for _ in range(3)]
    assert get(actor.plain.remote()) == "default"
    assert fw.wait(waiting, timeout=0.05)[0] == []
    get(actor.set.remote())
    assert get(waiting) == [True] * 3
    assert get(actor.plain.options(concurrency_group="compute").remote()) == "default"
    with pytest.raises(ValueError, match="group 'oi', which the actor class .* has: 'io', 'compute'"):
        get(actor.plain.options(concurrency_group="oi").remote())


# ---- order of calls whose arguments come late --------------------------------------------------------


class Plain:
    """One call at a time."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add(self, item: Any, _other: Any = None) -> list[Any]:
        self.seen.append(item)
        return self.seen


class Async(Plain):
    async def nothing(self) -> None: ...


ORDERS = {
    "sync": (Plain, {}, True),
    "sync, allowed": (Plain, {"allow_out_of_order_execution": True}, False),
    "threads": (Plain, {"max_concurrency": 2}, False),
    "groups": (Plain, {"concurrency_groups": {"io": 1}}, False),
    "async": (Async, {}, False),
    "async, refused": (Async, {"allow_out_of_order_execution": False}, True),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_whether_a_call_may_overtake_one_that_waits_for_its_arguments(session: object, kind: str) -> None:
    cls, options, ordered = ORDERS[kind]
    gate = Gate.remote()
    actor: Any = fw.remote(cls).options(**options).remote()
    get(actor.__ray_ready__.remote())
    slow = actor.add.remote(later.remote("slow", gate))
    # Another process knows it too.
    foreign = add_two.remote([actor], [later.remote("foreign", gate)])
    quick = [actor.add.remote(n) for n in range(3)]
    wait_for_waiters(gate, 2)
    if ordered:
        assert fw.wait([*quick, foreign], timeout=0.1)[0] == []
    else:
        get(quick)
        assert fw.wait([slow, foreign], timeout=0.1)[0] == []
    get(gate.open.remote())
    assert get(foreign) == ("late" if ordered else "quick")
    get(slow)
    seen = get(actor.add.remote("end"))
    assert [seen.index(n) > seen.index("slow") for n in range(3)] == [ordered] * 3


@fw.remote(num_cpus=0)
def add_two(box: list[Any], late: list[Any]) -> str:
    """Which of two calls is done first."""
    actor = box[0]
    calls = [actor.add.remote("late", late[0]), actor.add.remote("quick")]
    seen = max(fw.get(calls, timeout=LIMIT), key=len)
    return min("late", "quick", key=seen.index)


def test_calls_that_wait_for_arguments_end_as_others_do(session: object) -> None:
    """Cancelled, failed by their argument, or with their actor."""

    @fw.remote
    def broken(gate: Any) -> None:
        fw.get(gate.wait.remote())
        raise KeyError("broken")

    gate, actor = Gate.remote(), fw.remote(Async).remote()
    cancelled, failed = actor.add.remote(later.remote(1, gate)), actor.add.remote(broken.remote(gate))
    forever = actor.add.remote(later.remote(2, Gate.remote()))
    assert get(actor.add.remote(3)) == [3]
    fw.cancel(cancelled)
    with pytest.raises(TaskCancelledError):
        get(cancelled)
    get(gate.open.remote())
    with pytest.raises(KeyError, match="broken"):
        get(failed)
    fw.kill(actor)
    with pytest.raises(ActorDiedError, match="kill"):
        get(forever)


def test_order_is_kept_among_calls_that_wait_for_nothing(session: object) -> None:
    actor = fw.remote(Plain).options(allow_out_of_order_execution=True).remote()
    calls: list[Any] = []
    for n in range(200):
        if n % 10 == 0:
            calls.append(actor.add.remote(("late", n), later.remote(n)))
        else:
            calls.append(actor.add.remote(("now", n)))
    seen = max(get(calls), key=len)
    assert len(seen) == 200
    assert [n for kind, n in seen if kind == "now"] == [n for n in range(200) if n % 10]
