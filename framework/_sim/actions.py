"""The remote functions and actors of random programs. Each says in the ledger when it begins and ends; what
it returns follows from its arguments (`framework._sim.values`)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import framework as fw
from framework._sim.ledger import LEDGER, noted
from framework._sim.values import Tree, block, block_sum, item_value, mix
from framework._worker.interruption import open_to_interruption


class Refused(Exception):
    """What is raised by what is to raise. `task`: which one it was."""

    def __init__(self, task: int) -> None:
        super().__init__(f"task {task} was to raise")
        self.task = task


# ---- tasks -------------------------------------------------------------------------------------------


@fw.remote
def leaf(task: int, x: int, seconds: float = 0.0) -> int:
    with noted(LEDGER.begin(task)):
        if seconds:
            time.sleep(seconds)
        return mix(task, x)


@fw.remote
async def leaf_async(task: int, x: int, seconds: float = 0.0) -> int:
    with noted(LEDGER.begin(task)):
        await asyncio.sleep(seconds)
        return mix(task, x)


@fw.remote
def join(task: int, *values: int) -> int:
    """Of several values (given as references)."""
    with noted(LEDGER.begin(task)):
        return mix(task, *values)


@fw.remote
def refuse(task: int, seconds: float = 0.0) -> int:
    with noted(LEDGER.begin(task)):
        if seconds:
            time.sleep(seconds)
        raise Refused(task)


@fw.remote
def refuse_until(task: int, counter: Any, good: int) -> int:
    """Raises until its attempt number `good`."""
    with noted(LEDGER.begin(task)):
        number = fw.get(counter.next.remote(task))
        if number < good:
            raise Refused(task)
        return mix(task, good)


@fw.remote
def several(task: int, x: int, count: int, size: int = 0) -> Any:
    """`count` results: numbers, or blocks."""
    with noted(LEDGER.begin(task)):
        return tuple(item_value(mix(task, x), index, size) for index in range(count))


@fw.remote
def crash(task: int) -> None:
    """Ends its worker."""
    LEDGER.begin(task)
    os._exit(7)


@fw.remote
def crash_until(task: int, counter: Any, good: int) -> int:
    """Ends its worker until its attempt number `good`."""
    with noted(LEDGER.begin(task)):
        if fw.get(counter.next.remote(task)) < good:
            os._exit(7)
        return mix(task, good)


@fw.remote
def grow(tree: Tree, x: int) -> int:
    """A task that starts others, and waits for them as `tree` says."""
    task, how, seconds, _, children = tree
    with noted(LEDGER.begin(task)):
        if seconds:
            time.sleep(seconds)
        if how == "one by one":
            return mix(task, x, *(fw.get(start(child, x + 1)) for child in children))
        refs = [start(child, x + 1) for child in children]
        return mix(task, x, *fw.get(refs))


@fw.remote
async def grow_async(tree: Tree, x: int) -> int:
    """The same, which awaits them."""
    task, _, seconds, _, children = tree
    with noted(LEDGER.begin(task)):
        await asyncio.sleep(seconds)
        refs = [start(child, x + 1) for child in children]
        return mix(task, x, *[await ref for ref in refs])


def start(tree: Tree, x: int, **options: Any) -> Any:
    """Submit the root of a tree."""
    function: Any = grow_async if tree[1] == "await" else grow
    return function.options(max_retries=tree[3], **options).remote(tree, x)


@fw.remote
def where(task: int, seconds: float = 0.0) -> str:
    """The node that it runs on."""
    with noted(LEDGER.begin(task)):
        if seconds:
            time.sleep(seconds)
        return fw.get_runtime_context().get_node_id()


# ---- objects -----------------------------------------------------------------------------------------


@fw.remote
def make(task: int, size: int) -> Any:
    """A block."""
    with noted(LEDGER.begin(task)):
        return block(task, size)


@fw.remote
def measure(task: int, data: Any) -> int:
    """Of a block (given as a reference)."""
    with noted(LEDGER.begin(task)):
        return mix(task, block_sum(data))


@fw.remote
def measure_in(task: int, refs: list[Any], seconds: float = 0.0) -> int:
    """Of blocks whose references are in a list."""
    with noted(LEDGER.begin(task)):
        if seconds:
            time.sleep(seconds)
        return mix(task, *(block_sum(data) for data in fw.get(refs)))


@fw.remote
def hand_back(task: int, refs: list[Any]) -> list[Any]:
    """The same references, in another order."""
    with noted(LEDGER.begin(task)):
        return refs[::-1]


@fw.remote
def make_refs(task: int, sizes: list[int], deep: bool) -> Any:
    """References of values that this task puts; `deep`: a reference to a value that contains them."""
    with noted(LEDGER.begin(task)):
        refs = [fw.put(block(mix(task, index), size)) for index, size in enumerate(sizes)]
        return [fw.put(refs)] if deep else refs


# ---- generators --------------------------------------------------------------------------------------


@fw.remote
def stream(task: int, count: int, size: int, seconds: float, fail_at: int = -1) -> Iterator[Any]:
    attempt = LEDGER.begin(task)
    with noted(attempt):
        for index in range(count):
            if seconds:
                time.sleep(seconds)
            if index == fail_at:
                raise Refused(task)
            LEDGER.item(task, attempt, index)
            yield item_value(task, index, size)


@fw.remote
async def stream_async(
    task: int, count: int, size: int, seconds: float, fail_at: int = -1
) -> AsyncIterator[Any]:
    attempt = LEDGER.begin(task)
    with noted(attempt):
        for index in range(count):
            await asyncio.sleep(seconds)
            if index == fail_at:
                raise Refused(task)
            LEDGER.item(task, attempt, index)
            yield item_value(task, index, size)


@fw.remote
def consume(task: int, generator: Any, most: int) -> list[Any]:
    """Up to `most` items of a generator that it was handed."""
    with noted(LEDGER.begin(task)):
        found = []
        for ref in generator:
            found.append(fw.get(ref))
            if len(found) == most:
                break
        return found


# ---- actors ------------------------------------------------------------------------------------------


class _Base:
    """What all kinds of actors share. `actor`: its logical id."""

    def __init__(self, actor: int, seconds: float = 0.0, refuses: bool = False) -> None:
        self.actor = actor
        self.life = LEDGER.born(actor)
        self.counts: dict[int, int] = {}
        self.kept: dict[str, Any] = {}
        self.done: list[list[int]] = []
        if seconds:
            time.sleep(seconds)
        if refuses:
            raise Refused(actor)

    def next(self, task: int) -> int:
        """1, 2, 3, … for each task by itself."""
        self.counts[task] = self.counts.get(task, 0) + 1
        return self.counts[task]

    def tally(self) -> list[list[int]]:
        """The calls that this life has answered: [caller, number], in order."""
        return list(self.done)

    def keep(self, name: str, refs: list[Any]) -> int:
        """Hold references beyond this call."""
        self.kept[name] = refs
        return len(refs)

    def read(self, name: str) -> int:
        """Of the blocks that are kept under that name."""
        return mix(*(block_sum(data) for data in fw.get(self.kept[name])))

    def drop(self, name: str) -> int:
        return len(self.kept.pop(name))

    def give(self, name: str) -> list[Any]:
        """The references that are kept."""
        return list(self.kept[name])

    def make(self, name: str, seed: int, sizes: list[int]) -> list[Any]:
        """References of values that this actor puts, and keeps."""
        self.kept[name] = [fw.put(block(mix(seed, index), size)) for index, size in enumerate(sizes)]
        return list(self.kept[name])

    def _special(self, what: str, number: int) -> None:
        if what == "raise":
            raise Refused(number)
        if what == "leave":
            from framework.actor import exit_actor

            exit_actor()
        if what == "die" or (
            what == "die once" and not fw.get_runtime_context().was_current_actor_reconstructed
        ):
            os._exit(9)

    def _answer(self, caller: int, number: int, x: int) -> int:
        self.done.append([caller, number])
        return mix(self.actor, caller, number, x)


@fw.remote
class Plain(_Base):
    """One call at a time, or (`max_concurrency`) in threads."""

    def step(self, caller: int, number: int, x: int, seconds: float = 0.0, what: str = "") -> int:
        with noted(LEDGER.called(self.actor, self.life, caller, number)):
            if seconds:
                time.sleep(seconds)
            self._special(what, number)
            return self._answer(caller, number, x)

    def relay(self, caller: int, number: int, x: int, other: Any) -> int:
        """Calls another actor and waits for it."""
        with noted(LEDGER.called(self.actor, self.life, caller, number)):
            value = fw.get(other.step.remote(mix(self.actor, caller), number, x))
            return mix(self._answer(caller, number, x), value)

    def count(self, caller: int, number: int, task: int, items: int, size: int) -> Iterator[Any]:
        """A stream."""
        with noted(LEDGER.called(self.actor, self.life, caller, number)):
            for index in range(items):
                yield item_value(task, index, size)
            self.done.append([caller, number])


@fw.remote
class Async(_Base):
    """Coroutines."""

    async def step(self, caller: int, number: int, x: int, seconds: float = 0.0, what: str = "") -> int:
        with noted(LEDGER.called(self.actor, self.life, caller, number)):
            if seconds:
                await asyncio.sleep(seconds)
            self._special(what, number)
            return self._answer(caller, number, x)

    async def relay(self, caller: int, number: int, x: int, other: Any) -> int:
        with noted(LEDGER.called(self.actor, self.life, caller, number)):
            value = await other.step.remote(mix(self.actor, caller), number, x)
            return mix(self._answer(caller, number, x), value)

    async def count(self, caller: int, number: int, task: int, items: int, size: int) -> AsyncIterator[Any]:
        with noted(LEDGER.called(self.actor, self.life, caller, number)):
            for index in range(items):
                await asyncio.sleep(0)
                yield item_value(task, index, size)
            self.done.append([caller, number])


#: the same, without what type checkers believe of them
PLAIN: Any = Plain
ASYNC: Any = Async


@fw.remote
def call_through(task: int, handle: Any, caller: int, count: int, x: int) -> list[int]:
    """Calls of an actor whose handle it was given."""
    with noted(LEDGER.begin(task)):
        return fw.get([handle.step.remote(caller, number, x) for number in range(count)])


@fw.remote
def find_and_call(task: int, name: str, caller: int, x: int) -> int:
    """A call of an actor that it finds by name."""
    with noted(LEDGER.begin(task)):
        found: int = fw.get(fw.get_actor(name).step.remote(caller, 0, x))
        return found


def _open_all() -> None:
    """All of this is user code, though it lies in our own package: it may be interrupted."""
    for thing in list(globals().values()):
        found = getattr(thing, "__wrapped__", None)
        methods = vars(found).values() if isinstance(found, type) else [found]
        for function in [*methods, *vars(_Base).values()]:
            code = getattr(function, "__code__", None)
            if code is not None and code.co_filename == __file__:
                open_to_interruption(code)


_open_all()
