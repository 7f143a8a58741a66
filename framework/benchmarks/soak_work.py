"""The mixed work of the soak. Every result is compared with what it must be: `AssertionError` when it is not.

A *round* does some of everything; each kind is a method of `Work` that returns how many operations it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median, quantiles
from typing import Any

import numpy as np

import framework as fw
from framework._base import limits
from framework._worker.interruption import open_to_interruption
from framework.util.placement_group import placement_group, remove_placement_group
from framework.util.queue import Queue
from framework.util.scheduling_strategies import PlacementGroupSchedulingStrategy

_LARGE = 250_000  #: numbers in a large array: 2 MB
_STORED = 20_000  #: in the smallest that goes into the store
_PATIENCE = 60.0  #: seconds for a result
_LONG = 3600.0  #: of a task that is to be cancelled


def check(found: object, expected: object) -> None:
    """`AssertionError` when the two differ."""
    if found != expected:
        raise AssertionError(f"got {found!r}, expected {expected!r}")


@contextlib.contextmanager
def raising(*kinds: type[BaseException]) -> Iterator[None]:
    """`AssertionError` when the block raises none of these."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"raised none of {kinds}")


# ---- what runs in workers ----------------------------------------------------------------------------


@fw.remote
def add(a: int, b: int) -> int:
    return a + b


@fw.remote
def same(value: Any) -> Any:
    return value


@fw.remote
def total(array: Any) -> float:
    return float(array.sum())


@fw.remote
def filled(value: int, length: int) -> Any:
    return np.full(length, value, dtype=np.float64)


@fw.remote
def pair(value: int) -> tuple[int, int]:
    return value, value + 1


@fw.remote
def sum_of(refs: list[Any]) -> int:
    return sum(fw.get(refs))


@fw.remote
def spread(count: int) -> int:
    """Tasks of a task."""
    return sum(fw.get([add.remote(index, 1) for index in range(count)]))


@fw.remote
def made_there(value: int) -> list[Any]:
    """References to objects of another owner."""
    return [fw.put(value), fw.put(np.full(_STORED, value, dtype=np.float64))]


@fw.remote
def counting(count: int) -> Iterator[int]:
    yield from range(count)


@fw.remote
def failing(value: int) -> int:
    raise ValueError(f"as asked: {value}")


@fw.remote
def sleeping(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


# A task that runs is ended by an exception, which strikes in users' code, and not in this package otherwise.
open_to_interruption(sleeping.__wrapped__.__code__)  # type: ignore[attr-defined]


@fw.remote(resources={"mortal": 0.1}, max_retries=3)
def dying(marker: str) -> int:
    """Ends its process the first time."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        os.unlink(marker)
        return 7
    os._exit(1)


@fw.remote
def printing(line: str) -> None:
    print(line)


class CounterActor:
    """An actor."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    def pid(self) -> int:
        return os.getpid()

    def end_process(self) -> None:
        os._exit(1)

    def count(self, count: int) -> Iterator[int]:
        yield from range(count)


class WaiterActor:
    """An async actor."""

    async def later(self, value: int) -> int:
        await asyncio.sleep(0)
        return value

    async def forever(self) -> None:
        await asyncio.sleep(_LONG)


Counter: Any = fw.remote(CounterActor)
Waiter: Any = fw.remote(WaiterActor)


# ---- what the driver does ----------------------------------------------------------------------------


class Work:
    """Of one driver. `scratch`: a directory for files of its own. The first actors live on the node with the
    resource ``steady``, as long as this does."""

    def __init__(self, scratch: str) -> None:
        self._scratch = scratch
        self._round = 0
        self.probe = Counter.options(resources={"steady": 0.1}, num_cpus=0).remote()
        self._waiter = Waiter.options(resources={"steady": 0.1}, num_cpus=0).remote()
        self._queue: Queue[int] = Queue(actor_options={"num_cpus": 0, "resources": {"steady": 0.1}})
        self.kinds: tuple[Callable[[], int], ...] = (
            self.tasks_one_at_a_time,
            self.bursts,
            self.small_objects,
            self.large_objects,
            self.nested_references,
            self.options_at_each_call,
            self.functions_defined_anew,
            self.generators,
            self.failures,
            self.timeouts,
            self.cancels,
            self.waits,
            self.queues,
            self.coroutines,
            self.actors,
            self.named_actors,
            self.actor_restarts,
            self.placement_groups,
            self.output,
            self.worker_deaths,
        )

    def round(self) -> dict[str, int]:
        """Some of everything: operations by kind."""
        self._round += 1
        return {kind.__name__: kind() for kind in self.kinds}

    def probes(self, count: int) -> dict[str, float]:
        """Seconds per call, one at a time: the median and the slowest of a hundred, of an actor call and of
        a task."""
        found: dict[str, float] = {}
        probe = self.probe
        calls: dict[str, Callable[[], Any]] = {
            "actor call": lambda: fw.get(probe.add.remote(0)),
            "task": lambda: fw.get(add.remote(1, 2)),
        }
        for name, call in calls.items():
            times = []
            for _ in range(count):
                begin = time.perf_counter()
                call()
                times.append(time.perf_counter() - begin)
            found[f"{name} p50"] = median(times)
            found[f"{name} p99"] = quantiles(times, n=100)[98]
        return found

    def fill(self) -> int:
        """Whatever is remembered of what is over, up to its bound: objects freed, groups removed, actors.
        It would grow for longer than a soak takes."""
        for _ in range(100):
            refs = [fw.put(np.zeros(_STORED)) for _ in range(100)]
            del refs
        for resource in ("steady", "mortal"):
            remote = filled.options(resources={resource: 0.1})
            for _ in range(110):
                fw.get([total.remote(ref) for ref in [remote.remote(1, _STORED) for _ in range(100)]])
        for _ in range(limits.GROUPS_REMOVED_KEPT // 10):
            groups = [placement_group([{"CPU": 0.1}, {"CPU": 0.1}], strategy="SPREAD") for _ in range(11)]
            for group in groups:
                group.wait(_PATIENCE)
                remove_placement_group(group)
        for _ in range(limits.MAX_DEAD_KEPT // 100):
            crew = [Counter.options(resources={"nowhere": 1}).remote() for _ in range(102)]
            for actor in crew:
                fw.kill(actor)
            del crew, actor
        for self._round in range(-limits.FUNCTIONS_KEPT, 0):
            self.functions_defined_anew()
            self.options_at_each_call()
        self._round = 0
        return 35_000 + limits.GROUPS_REMOVED_KEPT + limits.MAX_DEAD_KEPT

    # ---- tasks ---------------------------------------------------------------------------------------

    def tasks_one_at_a_time(self) -> int:
        for index in range(50):
            check(fw.get(add.remote(index, 1)), index + 1)
        return 50

    def bursts(self) -> int:
        check(fw.get([add.remote(index, 1) for index in range(500)]), list(range(1, 501)))
        chain = add.remote(0, 1)
        for _ in range(20):
            chain = add.remote(chain, 1)
        check(fw.get(chain), 21)
        both: Any = pair.options(num_returns=2).remote(4)
        check(fw.get(both), [4, 5])
        return 522

    def options_at_each_call(self) -> int:
        named = [add.options(name=f"add {self._round}.{index}").remote(index, 1) for index in range(5)]
        check(fw.get(named), [1, 2, 3, 4, 5])
        probe = self.probe
        calls = [probe.add.options(name=f"call {self._round}.{index}").remote(0) for index in range(5)]
        check(len(set(fw.get(calls))), 1)
        return 10

    def functions_defined_anew(self) -> int:
        for index in range(2):
            ballast = f"{self._round}.{index}" * 100

            @fw.remote
            def fresh(value: int, ballast: str = ballast) -> int:
                return value + len(ballast)

            check(fw.get([fresh.remote(one) for one in range(3)])[2], 2 + len(ballast))
        return 6

    def failures(self) -> int:
        for index in range(3):
            with raising(ValueError):
                fw.get(failing.remote(index))
        with raising(ValueError):
            fw.get(failing.options(max_retries=2, retry_exceptions=True).remote(1))
        with raising(ValueError):
            fw.get(add.remote(failing.remote(1), 1))
        return 6

    def timeouts(self) -> int:
        slow = sleeping.remote(0.3)
        with raising(TimeoutError):
            fw.get(slow, timeout=0.001)
        check(fw.get(slow), 0.3)
        with raising(fw.exceptions.FrameworkError):
            fw.get(sleeping.options(timeout=0.02, max_retries=0).remote(_LONG))
        return 2

    def cancels(self) -> int:
        refs = [sleeping.remote(_LONG) for _ in range(3)]
        ready, _ = fw.wait(refs, timeout=0.01)
        check(ready, [])
        for ref in refs:
            fw.cancel(ref)
        for ref in refs:
            with raising(fw.exceptions.TaskCancelledError):
                fw.get(ref, timeout=_PATIENCE)
        return 3

    def waits(self) -> int:
        refs = [add.remote(index, 1) for index in range(20)]
        while refs:
            done, refs = fw.wait(refs, num_returns=min(5, len(refs)), timeout=_PATIENCE)
            fw.get(done)
        return 20

    def generators(self) -> int:
        check([fw.get(ref) for ref in counting.remote(50)], list(range(50)))
        abandoned = iter(counting.remote(1_000))
        check(fw.get(next(abandoned)), 0)
        del abandoned
        probe = self.probe
        stream = probe.count.options(num_returns="streaming").remote(10)
        check([fw.get(ref) for ref in stream], list(range(10)))
        return 62

    def worker_deaths(self) -> int:
        if self._round % 8:
            return 0
        check(fw.get(dying.remote(os.path.join(self._scratch, f"died {self._round}")), timeout=_PATIENCE), 7)
        return 1

    def output(self) -> int:
        fw.get([printing.remote(f"round {self._round}: line {index}") for index in range(5)])
        return 5

    # ---- objects -------------------------------------------------------------------------------------

    def small_objects(self) -> int:
        for index in range(50):
            value = {"index": index, "text": "x" * index, "list": [index] * 10}
            check(fw.get(fw.put(value)), value)
        check(fw.get([same.remote(fw.put(index)) for index in range(50)]), list(range(50)))
        return 150

    def large_objects(self) -> int:
        arrays = [np.full(_LARGE, index, dtype=np.float64) for index in range(4)]
        refs = [fw.put(array) for array in arrays]
        there = [total.options(resources={"mortal": 0.1}).remote(ref) for ref in refs]
        check(fw.get(there), [float(_LARGE * index) for index in range(4)])
        made = [filled.remote(index, _LARGE) for index in range(4)]
        check(fw.get([total.remote(ref) for ref in made]), [float(_LARGE * index) for index in range(4)])
        check(float(fw.get(made[3])[5]), 3.0)
        return 17

    def nested_references(self) -> int:
        refs = [fw.put(index) for index in range(20)]
        check(fw.get(sum_of.remote(refs)), 190)
        check(fw.get(sum_of.remote([add.remote(index, 1) for index in range(10)])), 55)
        inner, large = fw.get(made_there.remote(self._round))
        check((fw.get(inner), float(fw.get(total.remote(large)))), (self._round, _STORED * self._round))
        outer = fw.put({"refs": [inner, fw.put([inner])]})
        check(fw.get(fw.get(fw.get(outer)["refs"][1])[0]), self._round)
        check(fw.get(spread.remote(10)), 55)
        return 50

    # ---- actors --------------------------------------------------------------------------------------

    def actors(self) -> int:
        crew = [Counter.options(num_cpus=0).remote() for _ in range(2)]
        for actor in crew:
            check(fw.get([actor.add.remote(1) for _ in range(20)]), list(range(1, 21)))
        fw.kill(crew[0])
        with raising(fw.exceptions.ActorDiedError):
            fw.get(crew[0].add.remote(1), timeout=_PATIENCE)
        return 45

    def named_actors(self) -> int:
        name = f"counter of round {self._round}"
        kept = Counter.options(name=name, num_cpus=0, lifetime="detached").remote()
        found: Any = fw.get_actor(name)
        check(fw.get(found.add.remote(2)), 2)
        again = Counter.options(name=name, num_cpus=0, get_if_exists=True).remote()
        check(fw.get(again.add.remote(2)), 4)
        check(fw.get(kept.add.remote(2)), 6)
        fw.kill(found)
        return 6

    def actor_restarts(self) -> int:
        if self._round % 4:
            return 0
        actor = Counter.options(num_cpus=0, max_restarts=2, max_task_retries=1).remote()
        first = fw.get(actor.pid.remote())
        with raising(fw.exceptions.ActorError):
            fw.get(actor.end_process.options(max_task_retries=0).remote(), timeout=_PATIENCE)
        if fw.get(actor.pid.remote(), timeout=_PATIENCE) == first:
            raise AssertionError("the same process")
        return 4

    def queues(self) -> int:
        for index in range(10):
            self._queue.put(index)
        check(self._queue.get_nowait_batch(5), list(range(5)))
        check([self._queue.get(timeout=_PATIENCE) for _ in range(5)], list(range(5, 10)))
        return 16

    def placement_groups(self) -> int:
        group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="SPREAD")
        check(group.wait(_PATIENCE), True)
        inside = [
            add.options(
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=index
                )
            )
            for index in range(2)
        ]
        check(fw.get([one.remote(1, 2) for one in inside], timeout=_PATIENCE), [3, 3])
        remove_placement_group(group)
        return 4

    def coroutines(self) -> int:
        return asyncio.run(self._coroutines())

    async def _coroutines(self) -> int:
        waiter = self._waiter
        refs = [waiter.later.remote(index) for index in range(100)]
        check([await ref for ref in refs], list(range(100)))
        check(await asyncio.gather(*(add.remote(index, 1) for index in range(10))), list(range(1, 11)))
        check([await ref async for ref in counting.remote(20)], list(range(20)))
        never = waiter.forever.remote()
        with raising(TimeoutError):
            await asyncio.wait_for(never, 0.01)
        fw.cancel(never)
        with raising(fw.exceptions.TaskCancelledError, asyncio.CancelledError):
            await never
        return 132


def visit() -> int:
    """What a second driver does, that comes and goes: operations."""
    check(fw.get([add.remote(index, 1) for index in range(20)]), list(range(1, 21)))
    guest = Counter.options(num_cpus=0).remote()
    check(fw.get(guest.add.remote(3)), 3)
    check(float(fw.get(total.remote(fw.put(np.ones(_STORED))))), float(_STORED))
    print("a visit", file=sys.stderr)
    return 24
