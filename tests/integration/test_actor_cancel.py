"""Cancelling calls of actors, and their timeouts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import framework as fw
from framework.exceptions import (
    TaskCancelledError,
    TaskTimeoutError,
)
from support.actors import LIMIT, Counter, Gate, Recorder, get, later, wait_for_waiters

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_cancel_of_a_queued_call(session: object) -> None:
    gate, recorder = Gate.remote(), Recorder.remote()
    blocker = recorder.__ray_call__.remote(lambda self: fw.get(gate.wait.remote()))
    calls = [recorder.add.remote(n) for n in range(3)]
    wait_for_waiters(gate, 1)
    fw.cancel(calls[1])
    with pytest.raises(TaskCancelledError):
        get(calls[1])
    get(gate.open.remote())
    get([blocker, calls[0], calls[2]])
    assert get(recorder.all.remote()) == [0, 2]


def test_cancel_before_the_actor_is_alive(session: object) -> None:
    gate = Gate.remote()
    counter = Counter.remote(later.remote(1, gate))
    first, second = counter.inc.remote(), counter.inc.remote()
    fw.cancel(first)
    with pytest.raises(TaskCancelledError):
        get(first)
    get(gate.open.remote())
    assert get(second) == 2


def test_cancel_of_running_calls(session: object) -> None:
    @fw.remote
    class Sleeper:
        def sleep(self, gate: Any) -> None:
            fw.get(gate.wait.remote())
            time.sleep(1e6)

        def spin(self, gate: Any) -> None:
            fw.get(gate.wait.remote())
            while True:
                pass

        def wait(self, gate: Any) -> None:
            fw.get([gate.wait.remote(), Gate.remote().wait.remote()])

        def alive(self) -> bool:
            return True

    sleeper = Sleeper.remote()
    for method in (sleeper.sleep, sleeper.spin, sleeper.wait):
        gate = Gate.remote()
        ref = method.remote(gate)
        wait_for_waiters(gate, 1)
        get(gate.open.remote())
        fw.cancel(ref)
        with pytest.raises(TaskCancelledError):
            get(ref)
        assert get(sleeper.alive.remote())


def test_cancel_of_coroutines_lets_them_clean_up(session: object) -> None:
    @fw.remote
    class Sleeper:
        def __init__(self) -> None:
            self.begun = self.cleaned = 0

        async def sleep(self) -> None:
            self.begun += 1
            try:
                await asyncio.sleep(1e6)
            finally:
                self.cleaned += 1

        async def counts(self) -> tuple[int, int]:
            return self.begun, self.cleaned

    sleeper = Sleeper.remote()
    refs = [sleeper.sleep.remote() for _ in range(5)]
    assert get(sleeper.counts.remote()) == (5, 0)
    for ref in refs:
        fw.cancel(ref)
    for ref in refs:
        with pytest.raises(TaskCancelledError):
            get(ref)
    assert get(sleeper.counts.remote()) == (5, 5)


def test_cancel_at_once_never_leaves_a_caller_waiting(session: object) -> None:
    """Every moment of a call's life must be good for a cancel."""

    class Sync:
        def work(self) -> int:
            return sum(range(200))

    class Async:
        async def work(self) -> int:
            await asyncio.sleep(0.001)
            return 1

        def plain(self) -> int:
            return sum(range(200))

    threaded = fw.remote(Sync).options(max_concurrency=3).remote()
    actor = fw.remote(Async).remote()
    sync = fw.remote(Sync).remote()
    for handle_method in (threaded.work, actor.work, actor.plain, sync.work):
        refs = []
        for n in range(150):
            ref = handle_method.remote()
            refs.append(ref)
            if n % 2:
                fw.cancel(ref)
            if n % 10 == 0:
                fw.wait([ref], timeout=LIMIT)
        done, rest = fw.wait(refs, num_returns=len(refs), timeout=LIMIT)
        assert rest == []
        assert all(ref.exception() is None or isinstance(ref.exception(), TaskCancelledError) for ref in done)
        assert all(ref.exception() is None for ref in refs[::2])
        assert get(handle_method.remote())


def test_cancel_of_a_threaded_call_and_a_plain_call_of_an_async_actor(session: object) -> None:
    class Spinner:
        def spin(self, gate: Any) -> None:
            fw.get(gate.wait.remote())
            while True:
                pass

        def alive(self) -> bool:
            return True

    class AsyncSpinner(Spinner):
        async def nothing(self) -> None: ...

    for actor in (fw.remote(Spinner).options(max_concurrency=2).remote(), fw.remote(AsyncSpinner).remote()):
        gate = Gate.remote()
        ref = actor.spin.remote(gate)
        wait_for_waiters(gate, 1)
        get(gate.open.remote())
        fw.cancel(ref)
        with pytest.raises(TaskCancelledError):
            get(ref)
        assert get(actor.alive.remote())


def test_timeout_of_a_call(session: object) -> None:
    @fw.remote
    class Slow:
        async def slow(self) -> None:
            await asyncio.sleep(1e6)

        @fw.method(timeout=0.1)
        async def marked(self) -> None:
            await asyncio.sleep(1e6)

        async def quick(self) -> int:
            return 1

    slow = Slow.remote()
    with pytest.raises(TaskTimeoutError, match="slow"):
        get(slow.slow.options(timeout=0.1).remote())
    with pytest.raises(TaskTimeoutError):
        get(slow.marked.remote())
    assert get(slow.quick.options(timeout=LIMIT).remote()) == 1


def test_timeout_of_a_call_that_cannot_be_interrupted(
    session: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("framework._base.limits.CANCEL_GRACE", 0.2)
    gate = Gate.remote()

    @fw.remote(max_concurrency=2)
    class Deaf:
        def wait(self, gate: Any) -> bool:
            while True:
                try:
                    return fw.get(gate.wait.remote())  # type: ignore[no-any-return]
                except KeyboardInterrupt:
                    continue

        def quick(self) -> int:
            return 1

    deaf = Deaf.remote()
    get(deaf.quick.remote())
    ref = deaf.wait.options(timeout=0.1).remote(gate)
    with pytest.raises(TaskTimeoutError):
        get(ref)
    assert get(deaf.quick.remote()) == 1
    get(gate.open.remote())
