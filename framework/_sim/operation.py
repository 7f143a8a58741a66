"""One operation of a random program: what it has to work with, and how it waits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import framework as fw
from framework._sim.record import ActorFacts, Expect, Observation, Record, Risk, TaskFacts
from framework._sim.world import World
from framework.exceptions import FrameworkError, GetTimeoutError

T = TypeVar("T")

IDS = 100_000  #: logical ids that each operation has for itself
SMALL = (1, 2_000, 60_000)  #: sizes of values that live with their owner
LARGE = (110_000, 150_000, 400_000)  #: of those that go into the store
RETRIES = (0, 1, 3, 3, -1)

#: what a task or call may end in, whose worker was interrupted
CANCELLED = ("TaskCancelledError",)


class Shelf:
    """References that operations leave for others, by the number of the operation that has left them."""

    def __init__(self) -> None:
        self._items: dict[int, tuple[Any, Expect]] = {}

    def leave(self, op: int, ref: Any, expect: Expect) -> None:
        self._items[op] = ref, expect

    def look(self, op: int) -> tuple[Any, Expect] | None:
        """What that operation has left, if it has."""
        return self._items.get(op)

    def take(self, op: int) -> tuple[Any, Expect] | None:
        """The same, and it is not there any more."""
        return self._items.pop(op, None)

    def clear(self) -> None:
        self._items.clear()


class Operation:
    """`rng` is its own: what it draws changes nothing for others."""

    def __init__(self, index: int, kind: str, world: World, rng: random.Random, shelf: Shelf) -> None:
        self.index = index
        self.kind = kind
        self.world = world
        self.rng = rng
        self.shelf = shelf
        self.record: Record = world.seen
        self._ids = index * IDS

    # ---- choices -------------------------------------------------------------------------------------

    def new_id(self) -> int:
        """A logical id that nobody else has."""
        self._ids += 1
        return self._ids

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def seconds(self, low: float, high: float) -> float:
        """A time to pass, in the world's pace."""
        return self.rng.uniform(low, high) * self.world.pace

    def size(self, large: float = 0.5) -> int:
        return self.rng.choice(LARGE if self.chance(large) else SMALL)

    def retries(self) -> int:
        return self.rng.choice(RETRIES)

    # ---- tasks ---------------------------------------------------------------------------------------

    def task(self, retries: int, *, parent: int = 0, stored: bool = False) -> int:
        """The logical id of a new task."""
        task = self.new_id()
        self.record.tasks[task] = TaskFacts(retries, parent, stored)
        return task

    def actor(
        self, kind: str, restarts: int = 0, retries: int = 0, name: str = "", unordered: bool = False
    ) -> int:
        """The logical id of a new actor."""
        actor = self.new_id()
        self.record.actors[actor] = ActorFacts(kind, restarts, retries, name, unordered)
        return actor

    def risk(self, kind: str, retries: int = 0, **facts: Any) -> Risk:
        """From now on."""
        return Risk(kind, self.world.now(), retries=retries, **facts)

    def task_risks(self, retries: int, stored: bool = False) -> list[Risk]:
        """Of a task of the driver's that is submitted now, and of its result."""
        risks = [self.risk("task", retries)]
        if stored:
            risks.append(self.risk("object", retries, stored=True))
        return risks

    def right(self, value: Any, risks: Sequence[Risk], errors: Iterable[str] = ()) -> Expect:
        from framework._sim.record import digest

        return Expect(digest(value), risks=risks, errors=errors)

    # ---- waiting -------------------------------------------------------------------------------------

    async def blocking(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call what blocks, in a thread."""
        return await asyncio.to_thread(function, *args, **kwargs)

    async def pause(self, low: float, high: float) -> None:
        await self.world.sleep(self.seconds(low, high))

    async def a_moment(self, most: float) -> None:
        """A time before it interferes with what it has begun: often a short one, for that is when things
        are on their way."""
        await self.pause(0, self.rng.choice([0.0003, 0.001, 0.01, most]))

    async def see(
        self, what: str, ref: Any, expect: Expect, *, task: int = 0, blocking: bool = False
    ) -> Observation:
        """Wait for a reference (`blocking`: by `get`), and write down what comes of it."""
        observation, _ = await self.fetch(what, ref, expect, task=task, blocking=blocking)
        return observation

    async def fetch(
        self, what: str, ref: Any, expect: Expect, *, task: int = 0, blocking: bool = False
    ) -> tuple[Observation, Any]:
        """The same, and the value itself; None where there is none."""
        value: Any = None
        world = self.world
        observation = self.record.open(self.index, f"{self.kind}: {what}", expect, world.now(), task)
        try:
            if blocking:
                value = await self.blocking(fw.get, ref, timeout=world.patience)
            else:
                value = await asyncio.wait_for(ref.as_coroutine(), world.patience)
            observation.got(value, world.now())
        except GetTimeoutError:
            observation.hung(world.now())
        except TimeoutError as error:
            if isinstance(error, FrameworkError):
                observation.failed(error, world.now())
            else:
                observation.hung(world.now())
        except asyncio.CancelledError:
            if (current := asyncio.current_task()) is not None and current.cancelling():
                raise
            observation.text = "CancelledError, although nobody cancelled this"
            observation.outcome = "error"
            observation.error = ("CancelledError",)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit) and not isinstance(error, FrameworkError):
                raise
            observation.failed(error, world.now())
        return observation, value

    async def see_all(self, what: str, waits: Sequence[tuple[Any, Expect]]) -> list[Observation]:
        """Several at once."""
        return list(
            await asyncio.gather(
                *(self.see(f"{what} {place}", ref, expect) for place, (ref, expect) in enumerate(waits))
            )
        )

    async def within(self, what: str, work: Awaitable[T], expect: Expect) -> tuple[Observation, T | None]:
        """Wait for something else than a reference, and write down what comes of it. (Only whether it comes:
        its value is the caller's business.)"""
        world = self.world
        observation = self.record.open(self.index, f"{self.kind}: {what}", expect, world.now())
        value: T | None = None
        try:
            value = await asyncio.wait_for(_coroutine(work), world.patience)
            observation.got(None, world.now())
        except TimeoutError as error:
            if isinstance(error, FrameworkError):
                observation.failed(error, world.now())
            else:
                observation.hung(world.now())
        except Exception as error:
            observation.failed(error, world.now())
        return observation, value

    async def alongside(self, *work: Coroutine[Any, Any, Any]) -> list[Any]:
        """Several parts of this operation at once."""
        return list(await asyncio.gather(*work))

    def wrong(self, kind: str, text: str) -> None:
        """It has found something out by itself."""
        self.record.complain(self.index, kind, f"{self.kind}: {text}")


async def _coroutine(work: Awaitable[T]) -> T:
    return await work
