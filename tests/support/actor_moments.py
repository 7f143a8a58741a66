"""What the tests of test_actor_moments.py run in workers, in a module of its own (why: see custody.py)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import framework as fw
from framework.actor import exit_actor
from support.actor_programs import LIMIT, gate, note, read


class Subject:
    """Writes down what it does. `script` says what its constructor does in each incarnation: "hang" (until
    a file opens the way), "raise", "die"; else nothing."""

    def __init__(self, log: str, script: tuple[str, ...] = (), argument: Any = None) -> None:
        self.log = log
        incarnation = sum(line[0] == "init" for line in read(log))
        note(log, "init", incarnation, os.getpid())
        what = script[incarnation] if incarnation < len(script) else ""
        if what == "hang":
            wait_for(gate(log, "init", incarnation))
        elif what == "raise":
            raise RuntimeError(f"incarnation {incarnation} cannot start")
        elif what == "die":
            os.kill(os.getpid(), signal.SIGKILL)

    def pid(self) -> int:
        return os.getpid()

    def step(self, number: Any) -> Any:
        note(self.log, "call", number, os.getpid())
        return number

    def hold(self, number: int) -> int:
        note(self.log, "call", number, os.getpid())
        wait_for(gate(self.log, number))
        return number

    def strike(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fork(self) -> int:
        """A process that keeps the sockets of this one, and lives on when it dies; its pid."""
        child = os.fork()
        if child == 0:
            time.sleep(LIMIT)
            os._exit(0)
        return child

    def leave(self) -> None:
        exit_actor()

    def stream(self, count: int, die_after: int) -> Iterator[int]:
        """Its process dies once, when so many items are made."""
        for number in range(count):
            path = gate(self.log, "died")
            if number == die_after and not os.path.exists(path):
                open(path, "w").close()
                wait_for(gate(self.log, "taken"))
                os.kill(os.getpid(), signal.SIGKILL)
            note(self.log, "item", number, os.getpid())
            yield number


class AsyncSubject(Subject):
    async def step(self, number: Any) -> Any:
        return Subject.step(self, number)

    async def hold(self, number: int) -> int:
        note(self.log, "call", number, os.getpid())
        while not os.path.exists(gate(self.log, number)):
            await asyncio.sleep(0.002)
        return number


def wait_for(path: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.002)


def open_gate(log: str, *words: object) -> None:
    Path(gate(log, *words)).touch()


class Owner:
    """Makes actors and references, which are its own."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def pid(self) -> int:
        return os.getpid()

    def pending(self, path: str) -> list[Any]:
        return [opened.remote(path)]

    def make(self, log: str, options: dict[str, Any], script: tuple[str, ...] = ()) -> Any:
        actor = fw.remote(num_cpus=0)(Subject).options(**options).remote(log, script)
        self.kept.append(actor)
        return actor

    def make_of(self, log: str, path: str) -> Any:
        """An actor that waits for an argument of its constructor."""
        actor = fw.remote(num_cpus=0)(Subject).remote(log, (), opened.remote(path))
        self.kept.append(actor)
        return actor

    def make_and_hold(self, log: str, box: Any) -> None:
        """As a task's worker that never ends by itself."""
        actor = fw.remote(num_cpus=0)(Subject).remote(log)
        detached = (
            fw.remote(num_cpus=0)(Subject)
            .options(name=log, lifetime="detached", namespace="moments")
            .remote(log + "-detached")
        )
        fw.get(box.put.remote([actor, detached, os.getpid()]))
        wait_for(gate(log, "never"))


class Box:
    """Hands over what is put into it."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()

    async def put(self, value: Any) -> None:
        await self.queue.put(value)

    async def pid(self) -> int:
        return os.getpid()

    async def take(self) -> Any:
        return await self.queue.get()


@fw.remote(num_cpus=0, max_retries=0)
def opened(path: str) -> str:
    """Done when the file is there."""
    wait_for(path)
    return path


@fw.remote(num_cpus=0, max_retries=0)
def use(handle: Any, number: Any, after: Any = None) -> Any:
    return fw.get(handle[0].step.remote(number), timeout=LIMIT)


@fw.remote(num_cpus=0, max_retries=0)
def use_many(handle: Any, log: str, caller: str, count: int) -> list[str]:
    """The names of what its calls have raised, or "value"."""
    refs = [handle.step.remote(f"{caller}{number}") for number in range(count)]
    note(log, "made", caller)
    outcomes = []
    for number, ref in enumerate(refs):
        try:
            assert fw.get(ref, timeout=LIMIT) == f"{caller}{number}"
            outcomes.append("value")
        except BaseException as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    return outcomes


@fw.remote(num_cpus=0, max_retries=0)
def make_and_hold(log: str, box: Any) -> None:
    Owner().make_and_hold(log, box)


@fw.remote(num_cpus=0, max_retries=0)
def contend(log: str, name: str, place: int, options: dict[str, Any]) -> tuple[int, str, int]:
    """One of several processes that want a name at the same time: its pid, what became of it, and the pid of
    the actor."""
    note(log, "here", place)
    wait_for(gate(log, "go"))
    try:
        actor = fw.remote(num_cpus=0)(Subject).options(name=name, **options).remote(log)
        pid = fw.get(actor.pid.remote(), timeout=LIMIT)
    except ValueError as error:
        return os.getpid(), type(error).__name__, 0
    note(log, "met", place)
    wait_for(gate(log, "over"))
    return os.getpid(), "", pid
