"""One call at a time, awaited on an event loop that reads the answer itself: the same outcomes as otherwise,
whatever becomes of that loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

import framework as fw
from framework._net import takeover
from framework.exceptions import ActorDiedError, ForkedProcessError, NotInitializedError, TaskCancelledError
from support.actors import Counter, Gate, get

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WARM = 20  #: calls after which a loop reads for itself

NewLoop = Callable[[], asyncio.AbstractEventLoop]


def count_hosts() -> list[int]:
    """From now on, in this process: one item for every frame that an application's loop takes."""
    taken: list[int] = []
    original = takeover.Reading.skip

    def skip(reading: takeover.Reading, turn: takeover.Turn, size: int) -> None:
        if turn.host is not None:
            taken.append(size)
        original(reading, turn, size)

    takeover.Reading.skip = skip  # type: ignore[method-assign]
    return taken


class Calls:
    """All kinds of calls."""

    def __init__(self) -> None:
        self.count = 0
        self.seen: list[int] = []
        self.kept: list[Any] = []

    def note(self, number: int) -> int:
        self.seen.append(number)
        return number


@fw.remote(num_cpus=0)
class Worker(Calls):
    """With plain methods."""

    def next(self) -> int:
        self.count += 1
        return self.count

    def same(self, value: Any) -> Any:
        return value

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def waits(self, opened: Any, wanted: Any) -> str:
        fw.get(opened.open.remote())
        fw.get(wanted.wait.remote())
        return "waited"

    def many(self, count: int) -> Iterator[int]:
        yield from range(count)

    def fails(self, text: str) -> None:
        raise ValueError(text)

    def spins(self, gate: Any) -> None:
        fw.get(gate.open.remote())
        while True:
            pass

    def dies(self) -> None:
        os._exit(3)


@fw.remote(num_cpus=0)
class Server(Calls):
    """With coroutine methods."""

    async def next(self) -> int:
        self.count += 1
        return self.count

    async def same(self, value: Any) -> Any:
        return value

    async def sleep(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "slept"

    async def waits(self, opened: Any, wanted: Any) -> str:
        await opened.open.remote()
        await wanted.wait.remote()
        return "waited"

    async def many(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async def fails(self, text: str) -> None:
        raise ValueError(text)

    async def ordered(self, number: int) -> int:
        return self.note(number)

    async def order(self) -> list[int]:
        return self.seen

    async def relay(self, other: Any, count: int) -> int:
        return sum([await other.next.remote() for _ in range(count)])

    async def count_hosts(self) -> None:
        self.taken = count_hosts()

    async def hosts(self) -> int:
        return len(self.taken)

    async def dies(self) -> None:
        os._exit(3)


@fw.remote
def same(value: Any) -> Any:
    return value


@fw.remote
async def same_async(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def warm(worker: Any) -> None:
    for _ in range(WARM):
        await worker.same.remote(1)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> NewLoop:
    made: NewLoop = request.param
    return made


def run(new_loop: NewLoop, coroutine: Coroutine[Any, Any, Any], debug: bool = False) -> Any:
    with asyncio.Runner(loop_factory=new_loop, debug=debug) as runner:
        return runner.run(asyncio.wait_for(coroutine, 60))


@pytest.mark.skipif(not takeover.AVAILABLE, reason="needs epoll")
def test_loops_read_for_themselves(
    session: object, new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 300
    monkeypatch.setattr(takeover.Reading, "skip", takeover.Reading.skip)  # to be put back
    here = count_hosts()

    async def main() -> None:
        worker, server = Worker.remote(), Server.remote()
        for number in range(1, calls):
            assert await worker.next.remote() == number
        assert len(here) > calls / 3
        here.clear()
        for number in range(calls):
            assert await same.remote(number) == number
        assert len(here) > calls / 3
        await server.count_hosts.remote()
        for number in range(1, calls):
            assert await server.next.remote() == number
        assert await server.hosts.remote() > calls / 3

    run(new_loop, main())


@pytest.mark.filterwarnings("ignore:blocking get")
@pytest.mark.parametrize("cls", [Worker, Server])
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_values_of_all_kinds(session: object, new_loop: NewLoop, cls: Any, debug: bool) -> None:
    async def main() -> None:
        worker, ref = cls.remote(), fw.put("inside")
        await warm(worker)
        sizes = (0, 100, 16_300, 16_384, 50_000, 99_000, 300_000)
        kinds = [None, 7, -1.5, "text", b"bytes", [1, [2]], {"a": {1, 2}}, *(b"x" * size for size in sizes)]
        for _ in range(3):
            for kind in kinds:
                assert await worker.same.remote(kind) == kind
                assert await same.remote(kind) == kind
                assert await same_async.remote(kind) == kind
                assert await (await worker.same.remote([ref]))[0] == "inside"
                with pytest.raises(ValueError, match="wrong"):
                    await worker.fails.remote("wrong")
                stream = worker.many.options(num_returns="streaming").remote(3)
                assert [await item async for item in stream] == [0, 1, 2]
                assert fw.get(worker.same.remote(1)) == 1, "blocking the loop that reads"

    run(new_loop, main(), debug)


@pytest.mark.parametrize("how", ["get", "list", "wait", "future", "dependent", "stream", "loop"])
@pytest.mark.parametrize("cls", [Worker, Server])
def test_a_loop_that_is_closed_with_a_call_outstanding(
    session: object, new_loop: NewLoop, how: str, cls: Any
) -> None:
    worker = cls.remote()
    opened, wanted = (Gate.options(num_cpus=0).remote() for _ in range(2))

    async def main() -> Any:
        await warm(worker)
        ref = worker.waits.remote(opened, wanted)
        assert await asyncio.wait([asyncio.ensure_future(ref.as_coroutine())], timeout=0.05)
        return ref

    with asyncio.Runner(loop_factory=new_loop) as runner:
        ref = runner.run(main())
    get(opened.wait.remote())
    get(wanted.open.remote())
    if how == "get":
        assert get(ref) == "waited"
    elif how == "list":
        assert get([ref, same.remote(1)]) == ["waited", 1]
    elif how == "wait":
        assert fw.wait([ref], timeout=20) == ([ref], [])
    elif how == "future":
        assert ref.future().result(20) == "waited"
    elif how == "dependent":
        assert get(same.remote(ref)) == "waited"
    elif how == "stream":
        assert [get(item) for item in worker.many.options(num_returns="streaming").remote(3)] == [0, 1, 2]
    else:
        assert run(new_loop, ref.as_coroutine()) == "waited"
    assert get(worker.next.remote()) == 1


@pytest.mark.parametrize("cls", [Worker, Server])
def test_loops_in_two_threads(session: object, new_loop: NewLoop, cls: Any) -> None:
    worker = cls.remote()

    async def calls(count: int, dice: random.Random) -> list[int]:
        found = []
        for _ in range(count):
            found.append(await worker.next.remote())
            if dice.random() < 0.1:
                await asyncio.sleep(0.001)
        return found

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(run, new_loop, calls(150, random.Random(seed))) for seed in range(2)]
        futures.append(pool.submit(lambda: [get(worker.next.remote()) for _ in range(150)]))
        found = [future.result(60) for future in futures]
    assert all(numbers == sorted(numbers) for numbers in found)
    assert sorted(number for numbers in found for number in numbers) == list(range(1, 451))


@pytest.mark.parametrize("how", ["get", "list", "wait", "future", "dependent", "stream", "polls", "loop"])
def test_a_loop_that_is_blocked(session: object, new_loop: NewLoop, how: str) -> None:
    """It waits for what another thread asks of the very worker whose connection it reads."""
    worker = Worker.remote()

    def asks(ref: Any) -> Any:
        if how == "get":
            return get(worker.next.remote())
        if how == "list":
            return get([worker.next.remote()])[0]
        if how == "wait":
            return get(fw.wait([worker.next.remote()], timeout=20)[0][0])
        if how == "future":
            return ref.future().result(20)
        if how == "dependent":
            return get(same.remote(ref))
        if how == "stream":
            return [get(item) for item in worker.many.options(num_returns="streaming").remote(2)][1]
        if how == "polls":
            while not fw.wait([ref], timeout=0)[0]:
                time.sleep(0.001)
            return get(ref)
        return run(asyncio.new_event_loop, ref.as_coroutine())

    async def main() -> None:
        await warm(worker)
        for _ in range(3):
            for _ in range(WARM):
                await worker.same.remote(1)
            ref = worker.same.remote(1) if how in ("future", "dependent", "polls", "loop") else None
            found = pool.submit(asks, ref).result(30)  # blocks
            assert found >= 1

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        run(new_loop, main())


@pytest.mark.parametrize("end", ["kill", "exit"])
@pytest.mark.parametrize("blocked", [False, True], ids=["", "blocked"])
def test_the_actor_dies_while_a_loop_reads(
    session: object, new_loop: NewLoop, end: str, blocked: bool
) -> None:
    async def main() -> None:
        worker, gate = Worker.remote(), Gate.options(num_cpus=0).remote()
        await warm(worker)
        ref = worker.spins.remote(gate) if end == "kill" else worker.dies.remote()
        waiting = asyncio.ensure_future(ref.as_coroutine())
        if end == "kill":
            await gate.wait.remote()
            fw.kill(worker)
        else:
            await asyncio.sleep(0)
        if blocked:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                assert isinstance(pool.submit(outcome, ref).result(30), ActorDiedError)
        with pytest.raises(ActorDiedError):
            await waiting
        with pytest.raises(ActorDiedError):
            await worker.next.remote()

    def outcome(ref: Any) -> Any:
        try:
            return get([ref])
        except Exception as error:
            return error

    run(new_loop, main())


def test_a_restarted_actor_is_called_on(session: object, new_loop: NewLoop) -> None:
    async def main() -> None:
        counter: Any = Counter.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        for _ in range(3):
            for number in range(1, WARM):
                assert await counter.inc.remote() == number
            os.kill(await counter.pid.remote(), signal.SIGKILL)
            while await counter.inc.remote() != 1:
                pass
            await counter.inc.remote(-1)

    run(new_loop, main())


@pytest.mark.parametrize("cls", [Worker, Server])
def test_an_await_that_is_cancelled(session: object, new_loop: NewLoop, cls: Any) -> None:
    async def main() -> None:
        worker = cls.remote()
        await warm(worker)
        for number in range(1, 6):
            slow = worker.sleep.remote(0.1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(slow.as_coroutine(), 0.01)
            behind = worker.next.remote()
            assert await slow == "slept"
            assert await behind == number
            again = worker.same.remote(2)
            task = asyncio.ensure_future(again.as_coroutine())
            await asyncio.sleep(0)
            task.cancel()
            assert await worker.same.remote(3) == 3
            assert await again == 2

    run(new_loop, main())


@pytest.mark.parametrize("cls", [Worker, Server])
def test_a_call_that_is_cancelled(session: object, new_loop: NewLoop, cls: Any) -> None:
    async def main() -> None:
        worker = cls.remote()
        opened, wanted = (Gate.options(num_cpus=0).remote() for _ in range(2))
        await warm(worker)
        ref = worker.waits.remote(opened, wanted)
        waiting = asyncio.ensure_future(ref.as_coroutine())
        await opened.wait.remote()
        fw.cancel(ref)
        with pytest.raises(TaskCancelledError):
            await waiting
        assert await worker.next.remote() == 1

    run(new_loop, main())


def test_calls_of_one_caller_keep_their_order(session: object, new_loop: NewLoop) -> None:
    """One at a time, in bursts, and not waited for: read by the actor's loop or by its runtime."""

    async def main() -> None:
        dice, server, number = random.Random(3), Server.remote(), 0
        while number < 1500:
            size = dice.choice([1, 1, 1, 1, 1, 2, 20])
            refs = [server.ordered.remote(number + place) for place in range(size)]
            number += size
            if dice.random() < 0.9:
                await asyncio.gather(*refs)
        assert await server.order.remote() == list(range(number))

    run(new_loop, main())


def test_actors_that_await_each_other(session: object, new_loop: NewLoop) -> None:
    async def main() -> None:
        servers, counters = [Server.remote() for _ in range(3)], [Server.remote() for _ in range(3)]
        for _ in range(3):
            refs = [
                server.relay.remote(counter, 30) for server, counter in zip(servers, counters, strict=True)
            ]
            assert len(set(await asyncio.gather(*refs))) == 1
        assert await servers[0].relay.remote(servers[1], 30) == 465

    run(new_loop, main())


def test_nobody_starves(session: object, new_loop: NewLoop) -> None:
    """Some with short calls, some with long ones, and one whose connection the runtime reads."""

    async def calls(worker: Any, count: int) -> None:
        for number in range(1, count):
            assert await worker.next.remote() == number

    async def bursts(worker: Any) -> None:
        for _ in range(20):
            await asyncio.gather(*(worker.same.remote(n) for n in range(20)))

    async def main() -> None:
        workers = [Worker.remote() for _ in range(4)]
        await asyncio.gather(*(calls(worker, 200) for worker in workers), bursts(Worker.remote()))

    run(new_loop, main())


def test_a_fork_while_a_loop_reads(session: object, new_loop: NewLoop) -> None:
    """The child shares the descriptors, and disturbs nobody, not even with a loop of its own."""

    async def main() -> None:
        worker = Worker.remote()
        await warm(worker)
        slow = worker.sleep.remote(0.2)
        waiting = asyncio.ensure_future(slow.as_coroutine())
        await asyncio.sleep(0)
        pid = os.fork()
        if pid == 0:
            os._exit(child(slow))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert await waiting == "slept"
        for number in range(1, WARM):
            assert await worker.next.remote() == number

    def child(ref: Any) -> int:
        found: list[int] = []

        async def theirs() -> None:
            try:
                await ref
            except ForkedProcessError:
                found.append(1)

        def in_a_thread() -> None:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(theirs())

        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join(10)
        return 0 if found else 1

    run(new_loop, main())


class Strike(KeyboardInterrupt):
    """As Ctrl-C."""


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_ctrl_c_anywhere(session: object) -> None:
    """It ends the run of the loop. What was asked for is there at the next one, and all goes on as before."""
    armed = False

    def strike(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Strike

    loop = asyncio.new_event_loop()
    dice, worker, server = random.Random(4), Worker.remote(), Server.remote()
    strikes = 0
    calls = {worker: 0, server: 0}

    def await_or_be_struck(ref: Any) -> Any:
        nonlocal armed
        task = loop.create_task(ref.as_coroutine())
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 300e-6))
        try:
            try:
                armed = True
                return loop.run_until_complete(task)
            except RuntimeError:  # it was still to stop: see below
                return None
            finally:
                armed = False
        except Strike:
            if task.done() and not task.cancelled():
                task.exception()
            return None

    def awaited(ref: Any) -> Any:
        # It may have struck when the loop was about to stop: so it still does, once or twice.
        for _ in range(3):
            with contextlib.suppress(RuntimeError):
                return loop.run_until_complete(asyncio.wait_for(ref.as_coroutine(), 20))
        raise AssertionError("the loop does not run")

    before = signal.signal(signal.SIGALRM, strike)
    try:
        while strikes < 300:
            which = dice.choice([worker, server, same])
            if which is same:
                wanted = dice.randrange(1000)
                ref = same.remote(wanted)
            else:
                calls[which] += 1
                wanted, ref = calls[which], which.next.remote()
            found = await_or_be_struck(ref)
            if found is None:
                strikes += 1
                found = awaited(ref)
            assert found == wanted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        loop.close()
    everything = fw.cluster_resources()["CPU"]
    deadline = time.monotonic() + 20
    while fw.available_resources().get("CPU") != everything:
        assert time.monotonic() < deadline, "a lease was lost"
        time.sleep(0.01)


def test_shutdown_while_a_loop_reads(session: object, new_loop: NewLoop) -> None:
    """(The last one of this module.) The loop serves the next session, too."""

    async def main() -> None:
        for _ in range(2):
            fw.init(num_cpus=2, ignore_reinit_error=True)
            worker, gate = Worker.remote(), Gate.options(num_cpus=0).remote()
            await warm(worker)
            waiting = asyncio.ensure_future(worker.spins.remote(gate).as_coroutine())
            await gate.wait.remote()
            await asyncio.to_thread(fw.shutdown)
            with pytest.raises(NotInitializedError):
                await waiting

    run(new_loop, main())
