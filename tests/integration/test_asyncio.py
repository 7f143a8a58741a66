"""References in event loops: every way of waiting that asyncio has, on any loop, in any thread, without
blocking it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

PATIENCE = 15.0  # seconds for something that takes milliseconds when it works


@fw.remote
def double(x: int) -> int:
    return 2 * x


@fw.remote
def fail(message: str) -> None:
    raise ValueError(message)


@fw.remote
def wait_for_file(path: str) -> str:
    """Runs until the test makes that file."""
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


@fw.remote
def until_stopped(started: str, stopped: str) -> None:
    """Runs until it is cancelled, and leaves word of both."""
    Path(started).touch()
    try:
        time.sleep(1e6)
    finally:
        Path(stopped).touch()


class Gate:
    """A remote task that the test holds back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ref = wait_for_file.remote(str(path))

    def open(self) -> None:
        self.path.touch()


@pytest.fixture
def gates(session: object, tmp_path: Path) -> Iterator[Any]:
    made: list[Gate] = []

    def make() -> Gate:
        made.append(Gate(tmp_path / f"gate{len(made)}"))
        return made[-1]

    yield make
    for gate in made:
        gate.open()
    fw.wait([gate.ref for gate in made], num_returns=len(made), timeout=PATIENCE) if made else None


def waiters_of(ref: Any) -> int:
    return len(ref._entry.waiters or ())


# ---- awaiting --------------------------------------------------------------------------------------------


async def test_await_gives_the_value_again_and_again(session: object) -> None:
    ref = double.remote(4)
    assert [await ref, await ref, await ref] == [8, 8, 8]
    assert await fw.put({"a": [1]}) == {"a": [1]}


async def test_gather_keeps_the_order_and_takes_one_ref_twice(session: object) -> None:
    refs = [double.remote(i) for i in range(50)]
    assert await asyncio.gather(*refs, refs[0]) == [2 * i for i in range(50)] + [0]


async def test_gather_with_errors(session: object) -> None:
    results = await asyncio.gather(
        double.remote(1), fail.remote("no"), double.remote(2), return_exceptions=True
    )
    assert results[0] == 2
    assert isinstance(results[1], ValueError)
    assert results[2] == 4
    with pytest.raises(ValueError, match="no"):
        await asyncio.gather(double.remote(1), fail.remote("no"))


async def test_await_and_get_raise_the_same(session: object) -> None:
    ref = fail.remote("broken")
    with pytest.raises(ValueError, match="broken") as awaited:
        await ref
    with pytest.raises(ValueError, match="broken") as got:
        fw.get(ref)
    with pytest.raises(ValueError, match="broken") as resulted:
        ref.result()
    assert type(awaited.value) is type(got.value) is type(resulted.value)
    assert isinstance(awaited.value, fw.exceptions.TaskError)
    assert str(awaited.value) == str(got.value) == str(resulted.value) == str(ref.exception())
    assert awaited.value is not got.value, "one exception object raised in several places grows its traceback"


async def test_await_and_get_raise_the_same_when_cancelled(gates: Any) -> None:
    gate = gates()
    fw.cancel(gate.ref)
    with pytest.raises(fw.exceptions.TaskCancelledError) as awaited:
        await gate.ref
    with pytest.raises(fw.exceptions.TaskCancelledError) as got:
        fw.get(gate.ref)
    assert str(awaited.value) == str(got.value)
    assert gate.ref.cancelled()
    assert gate.ref.done()


# ---- asyncio.wait, as_completed, wait_for, timeout ---------------------------------------------------------


async def test_wait_all_completed(session: object) -> None:
    refs = [double.remote(i) for i in range(10)]
    done, pending = await asyncio.wait(refs)
    assert done == set(refs)
    assert pending == set()
    assert sorted(ref.result() for ref in done) == [2 * i for i in range(10)]
    assert all(not ref._callbacks for ref in refs), "callbacks that asyncio.wait has removed are kept"


async def test_wait_first_completed(gates: Any) -> None:
    slow, fast = gates(), gates()
    fast.open()
    done, pending = await asyncio.wait([slow.ref, fast.ref], return_when=asyncio.FIRST_COMPLETED)
    assert (done, pending) == ({fast.ref}, {slow.ref})
    assert waiters_of(slow.ref) == 0


async def test_wait_first_exception(gates: Any) -> None:
    slow = gates()
    bad = fail.remote("first")
    done, pending = await asyncio.wait([slow.ref, bad], return_when=asyncio.FIRST_EXCEPTION)
    assert bad in done
    assert pending == {slow.ref}
    assert isinstance(bad.exception(), ValueError)


async def test_wait_first_exception_without_any(session: object) -> None:
    refs = [double.remote(i) for i in range(5)]
    done, pending = await asyncio.wait(refs, return_when=asyncio.FIRST_EXCEPTION)
    assert (done, pending) == (set(refs), set())


async def test_wait_with_timeout(gates: Any) -> None:
    slow = gates()
    ready = double.remote(1)
    await ready
    done, pending = await asyncio.wait([slow.ref, ready], timeout=0.05)
    assert (done, pending) == ({ready}, {slow.ref})
    assert waiters_of(slow.ref) == 0
    slow.open()
    assert await slow.ref == str(slow.path)


async def test_wait_for_what_is_done(session: object) -> None:
    ref = double.remote(1)
    await ref
    done, _ = await asyncio.wait([ref, fw.put(3)])
    assert len(done) == 2


async def test_as_completed_in_order_of_completion(gates: Any) -> None:
    first, second = gates(), gates()
    results = []
    second.open()
    for coming in asyncio.as_completed([first.ref, second.ref], timeout=PATIENCE):
        results.append(await coming)
        first.open()
    assert results == [str(second.path), str(first.path)]


async def test_wait_for_times_out_and_the_ref_stays_usable(gates: Any) -> None:
    gate = gates()
    for _ in range(20):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gate.ref, timeout=0.001)
    assert waiters_of(gate.ref) == 0, "waiters that gave up are kept"
    gate.open()
    assert await asyncio.wait_for(gate.ref, timeout=PATIENCE) == str(gate.path)


async def test_timeout_block(gates: Any) -> None:
    gate = gates()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await gate.ref
    gate.open()
    async with asyncio.timeout(PATIENCE):
        assert await gate.ref == str(gate.path)


async def test_shield_and_ensure_future(gates: Any) -> None:
    gate = gates()
    task = asyncio.ensure_future(gate.ref)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(gate.ref), 0.01)
    gate.open()
    assert await task == str(gate.path)


async def test_plain_task_group_takes_coroutines_of_refs(session: object) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(double.remote(i).as_coroutine()) for i in range(5)]
    assert [task.result() for task in tasks] == [0, 2, 4, 6, 8]
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail.remote("in a group").as_coroutine())
    assert isinstance(raised.value.exceptions[0], ValueError)


async def test_plain_task_group_says_what_it_takes(session: object) -> None:
    """A type that `create_task` takes for a coroutine is one that `asyncio.wait` refuses: a reference cannot
    be both."""
    async with asyncio.TaskGroup() as group:
        with pytest.raises(TypeError, match=r"a coroutine was expected, got ObjectRef\("):
            group.create_task(double.remote(1))  # type: ignore[arg-type]


async def test_cancelling_the_awaiting_task_leaves_the_remote_one_alone(gates: Any) -> None:
    gate = gates()
    task = asyncio.ensure_future(gate.ref)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waiters_of(gate.ref) == 0
    gate.open()
    assert await gate.ref == str(gate.path)


async def test_not_ready_is_an_invalid_state(gates: Any) -> None:
    gate = gates()
    assert not gate.ref.done()
    assert not gate.ref.cancelled()
    with pytest.raises(asyncio.InvalidStateError, match="await"):
        gate.ref.result()
    with pytest.raises(asyncio.InvalidStateError, match="await"):
        gate.ref.exception()


async def test_done_callbacks(gates: Any) -> None:
    gate = gates()
    called: list[Any] = []
    both = asyncio.Event()
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    variable.set(7)

    def note(ref: Any) -> None:
        called.append((ref, variable.get(), threading.current_thread()))
        both.set()

    def unwanted(ref: Any) -> None:
        called.append("unwanted")

    gate.ref.add_done_callback(note)
    gate.ref.add_done_callback(unwanted)
    gate.ref.add_done_callback(unwanted)
    variable.set(8)  # the callback runs in the context in which it was added
    assert gate.ref.remove_done_callback(unwanted) == 2
    assert gate.ref.remove_done_callback(unwanted) == 0
    gate.open()
    await asyncio.wait_for(both.wait(), PATIENCE)
    assert called == [(gate.ref, 7, threading.current_thread())]
    assert not gate.ref._callbacks, "a callback that was called keeps its reference alive"


# ---- loops and threads -------------------------------------------------------------------------------------


def run_on(loop_factory: Any, coroutine: Any) -> Any:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(coroutine)


def loop_factories() -> list[Any]:
    factories = [asyncio.new_event_loop]
    try:
        import uvloop

        factories.append(uvloop.new_event_loop)
    except ImportError:
        pass
    return factories


@pytest.mark.parametrize("factory", loop_factories(), ids=lambda f: f.__module__)
def test_every_kind_of_loop(session: object, factory: Any) -> None:
    async def use() -> list[int]:
        done, _ = await asyncio.wait([double.remote(1), double.remote(2)])
        return sorted(ref.result() for ref in done) + await asyncio.gather(double.remote(3), double.remote(4))

    for _ in range(5):
        assert run_on(factory, use()) == [2, 4, 6, 8]


def test_one_ref_in_many_loops_in_many_threads(gates: Any) -> None:
    gate = gates()
    waiting = threading.Barrier(9)
    outcomes: list[Any] = []

    async def use() -> None:
        tasks = [asyncio.ensure_future(gate.ref) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.to_thread(waiting.wait, PATIENCE)
        outcomes.append(await asyncio.gather(*tasks, gate.ref.as_future()))

    factories = loop_factories()
    threads = [
        threading.Thread(target=run_on, args=(factories[i % len(factories)], use()), daemon=True)
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    waiting.wait(PATIENCE)
    gate.open()
    for thread in threads:
        thread.join(PATIENCE)
    assert outcomes == [[str(gate.path)] * 6] * 8


def test_asyncio_run_several_times_with_one_ref(session: object) -> None:
    async def use(ref: Any) -> int:
        value: int = await ref
        return value

    ref = double.remote(5)
    assert [asyncio.run(use(ref)) for _ in range(5)] == [10] * 5
    assert [asyncio.run(use(double.remote(i))) for i in range(5)] == [0, 2, 4, 6, 8]


def test_a_loop_that_closed_while_a_ref_was_awaited_harms_nobody(gates: Any) -> None:
    gate = gates()
    loop = asyncio.new_event_loop()
    task = loop.create_task(gate.ref.as_coroutine())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    gate.open()
    assert asyncio.run(gate.ref.as_coroutine()) == str(gate.path)


def test_debug_mode_has_nothing_to_say_about_us(session: object, caplog: pytest.LogCaptureFixture) -> None:
    async def use() -> None:
        asyncio.get_running_loop().slow_callback_duration = 0.25
        assert await asyncio.gather(*[double.remote(i) for i in range(100)]) == [2 * i for i in range(100)]
        done, _ = await asyncio.wait([double.remote(1), double.remote(2)])
        assert len(done) == 2
        async for ref in count.remote(50):
            await ref
        async with fw.task_group() as group:
            group.create_task(double.remote(1))

    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(use(), debug=True)
        gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


@fw.remote
def count(n: int) -> Iterator[int]:
    yield from range(n)


# ---- futures -----------------------------------------------------------------------------------------------


def test_concurrent_future(gates: Any) -> None:
    gate = gates()
    future = gate.ref.future()
    assert isinstance(future, concurrent.futures.Future)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(timeout=0.01)
    names: list[str] = []
    called = threading.Event()

    def note(done: Any) -> None:
        names.append(threading.current_thread().name)
        called.set()

    future.add_done_callback(note)
    gate.open()
    assert future.result(timeout=PATIENCE) == str(gate.path)
    assert called.wait(PATIENCE)
    assert names[0] != "framework-runtime", "user code must not run on the runtime's loop"
    assert gate.ref.future().result(timeout=PATIENCE) == str(gate.path)


def test_concurrent_future_with_an_error(session: object) -> None:
    ref = fail.remote("in a future")
    future = ref.future()
    with pytest.raises(ValueError, match="in a future") as raised:
        future.result(timeout=PATIENCE)
    with pytest.raises(ValueError, match="in a future") as got:
        fw.get(ref)
    assert type(raised.value) is type(got.value)
    assert str(raised.value) == str(got.value)


def test_concurrent_future_that_is_cancelled_leaves_the_task_alone(gates: Any) -> None:
    gate = gates()
    future = gate.ref.future()
    assert future.cancel()
    gate.open()
    assert fw.get(gate.ref, timeout=PATIENCE) == str(gate.path)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(timeout=PATIENCE)


def test_concurrent_futures_as_completed(gates: Any) -> None:
    first, second = gates(), gates()
    second.open()
    done = concurrent.futures.as_completed([first.ref.future(), second.ref.future()], timeout=PATIENCE)
    assert next(done).result() == str(second.path)
    first.open()
    assert next(done).result() == str(first.path)


def test_a_future_keeps_the_object(session: object) -> None:
    future = double.remote(21).future()
    gc.collect()
    assert future.result(timeout=PATIENCE) == 42


async def test_as_future(gates: Any) -> None:
    gate = gates()
    future = gate.ref.as_future()
    assert asyncio.isfuture(future)
    other = gate.ref.as_future()
    other.cancel()
    gate.open()
    assert await future == str(gate.path)
    assert await asyncio.wrap_future(gate.ref.future()) == str(gate.path)


# ---- blocking calls inside a loop --------------------------------------------------------------------------


async def test_blocking_get_in_a_loop_warns_once_per_line(gates: Any, tmp_path: Path) -> None:
    def opened_soon() -> Any:
        gate = gates()
        threading.Timer(0.02, gate.open).start()
        return gate.ref

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            ref = opened_soon()
            fw.get(ref, timeout=PATIENCE)
            line = fw_line() - 1
        ready, _ = fw.wait([opened_soon()], timeout=PATIENCE)
        assert ready
        for first in count.remote(1):
            assert fw.get(first) == 0
    ours = [w for w in caught if issubclass(w.category, RuntimeWarning)]
    texts = [str(w.message) for w in ours]
    gets = [text for text in texts if "get()" in text]
    assert len(gets) == 1
    assert "await ref" in gets[0]
    assert f"{__file__}:{line}" in gets[0]
    assert (ours[0].filename, ours[0].lineno) == (__file__, line)
    assert len([text for text in texts if "wait()" in text and "asyncio.wait" in text]) == 1
    assert all("async for" in text for text in texts if "next()" in text)


def fw_line() -> int:
    import inspect

    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


async def test_get_of_what_is_there_does_not_warn(session: object) -> None:
    ref = double.remote(1)
    await ref
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fw.get(ref) == 2
        assert fw.get(fw.put(1)) == 1


# ---- async remote functions --------------------------------------------------------------------------------


@fw.remote
async def slept(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


@fw.remote
async def in_parts() -> list[str]:
    async def part(name: str) -> str:
        await asyncio.sleep(0)
        return name + fw.get_runtime_context().get_task_name()

    return list(await asyncio.gather(part("a:"), part("b:")))


async def test_async_functions(session: object) -> None:
    pids = await asyncio.gather(*[slept.remote(0.01) for _ in range(4)])
    assert all(pid != os.getpid() for pid in pids)
    assert await in_parts.remote() == ["a:in_parts", "b:in_parts"]


async def test_an_async_function_that_raises(session: object) -> None:
    @fw.remote
    async def broken() -> None:
        await asyncio.sleep(0)
        raise KeyError("in a coroutine")

    with pytest.raises(KeyError, match="in a coroutine"):
        await broken.remote()


def test_context_variables_of_a_task_end_with_it(session: object) -> None:
    """Two tasks of one worker, which runs them in one thread, must not see each other's context variables."""

    @fw.remote
    def make() -> Any:
        import sys
        import types

        module = sys.modules.get("variables_of_test") or types.ModuleType("variables_of_test")
        sys.modules["variables_of_test"] = module
        if not hasattr(module, "variable"):
            module.variable = contextvars.ContextVar("v", default=0)  # type: ignore[attr-defined]
        return module.variable  # type: ignore[attr-defined, no-any-return]

    def bumped(variable: Any) -> int:
        value = int(variable.get())
        variable.set(value + 1)
        return value

    make_here = make.__wrapped__

    @fw.remote(num_cpus=2)
    def plain() -> tuple[int, int]:
        return bumped(make_here()), os.getpid()

    @fw.remote(num_cpus=2)
    async def coroutine() -> tuple[int, int]:
        return bumped(make_here()), os.getpid()

    for function in (plain, coroutine):
        seen = fw.get([function.remote() for _ in range(6)], timeout=PATIENCE)  # type: ignore[attr-defined]
        assert [value for value, _ in seen] == [0] * 6


def test_what_a_coroutine_leaves_running_ends_with_its_task(session: object, tmp_path: Path) -> None:
    ended = tmp_path / "ended"

    @fw.remote(num_cpus=2)
    async def careless() -> int:
        async def background() -> None:
            try:
                await asyncio.sleep(1e6)
            finally:
                ended.touch()

        import __main__

        __main__.kept = asyncio.create_task(background())
        await asyncio.sleep(0)
        return os.getpid()

    fw.get(careless.remote(), timeout=PATIENCE)
    wait_until(ended.exists, PATIENCE, "the end of a background task")


async def test_nested_async_tasks_on_one_cpu(session: object) -> None:
    """A coroutine that awaits other tasks lends its CPUs, as a blocking get does: else it waits for
    itself."""

    @fw.remote(num_cpus=2)
    async def outer() -> list[int]:
        first = await double.remote(1)
        rest = await asyncio.gather(*[double.remote(i) for i in range(5)])
        done, _ = await asyncio.wait([double.remote(7)])
        return [first, *rest, *(ref.result() for ref in done)]

    @fw.remote
    async def factorial(n: int) -> int:
        return 1 if n <= 1 else n * await factorial.remote(n - 1)

    @fw.remote(num_cpus=2)
    async def streams() -> int:
        return sum([await ref async for ref in count.remote(10)])

    assert await asyncio.wait_for(outer.remote(), PATIENCE) == [2, 0, 2, 4, 6, 8, 14]
    assert await asyncio.wait_for(factorial.remote(8), 2 * PATIENCE) == 40320
    assert await asyncio.wait_for(streams.remote(), PATIENCE) == 45


async def test_cancelling_an_async_function(session: object, tmp_path: Path) -> None:
    started, cancelled = tmp_path / "started", tmp_path / "cancelled"

    @fw.remote
    async def sleeper() -> None:
        started.touch()
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            cancelled.touch()
            raise

    ref = sleeper.remote()
    await asyncio.to_thread(wait_until, started.exists, PATIENCE)
    fw.cancel(ref)
    with pytest.raises(fw.exceptions.TaskCancelledError):
        await asyncio.wait_for(ref, PATIENCE)
    assert cancelled.exists()


# ---- task groups -------------------------------------------------------------------------------------------


async def test_task_group_gives_results(session: object) -> None:
    async with fw.task_group() as group:
        refs = [group.create_task(double.remote(i)) for i in range(5)]
        local = group.create_task(asyncio.sleep(0, "local"))
    assert [task.result() for task in refs] == [0, 2, 4, 6, 8]
    assert local.result() == "local"


async def test_a_failure_in_a_task_group_cancels_the_remote_siblings(session: object, tmp_path: Path) -> None:
    started, stopped = tmp_path / "started", tmp_path / "stopped"
    ref = until_stopped.remote(str(started), str(stopped))
    with pytest.raises(ExceptionGroup) as raised:
        async with fw.task_group() as group:
            group.create_task(ref)
            await asyncio.to_thread(wait_until, started.exists, PATIENCE)
            group.create_task(fail.remote("sibling"))
    assert [str(e).splitlines()[0] for e in raised.value.exceptions if isinstance(e, ValueError)]
    assert len(raised.value.exceptions) == 1
    assert stopped.exists(), "the block has ended before its remote tasks"
    assert ref.cancelled()


async def test_an_error_in_the_body_cancels_the_remote_tasks(session: object, tmp_path: Path) -> None:
    started, stopped = tmp_path / "started", tmp_path / "stopped"
    ref = until_stopped.remote(str(started), str(stopped))
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        async with fw.task_group() as group:
            group.create_task(ref)
            await asyncio.to_thread(wait_until, started.exists, PATIENCE)
            raise LookupError("in the body")
    assert ref.cancelled()


async def test_cancelling_a_task_group_from_outside(session: object, tmp_path: Path) -> None:
    started, stopped = tmp_path / "started", tmp_path / "stopped"
    ref = until_stopped.remote(str(started), str(stopped))

    async def work() -> None:
        async with fw.task_group() as group:
            group.create_task(ref)

    task = asyncio.create_task(work())
    await asyncio.to_thread(wait_until, started.exists, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped.exists()
    assert ref.cancelled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), fw.task_group() as group:
            ref = group.create_task(until_stopped.remote(str(started), str(stopped)))  # type: ignore[assignment]


async def test_nested_task_groups(session: object, tmp_path: Path) -> None:
    started, stopped = tmp_path / "started", tmp_path / "stopped"
    outer_ref = until_stopped.remote(str(started), str(stopped))
    with pytest.raises(ExceptionGroup) as raised:
        async with fw.task_group() as outer:
            outer.create_task(outer_ref)
            await asyncio.to_thread(wait_until, started.exists, PATIENCE)
            async with fw.task_group() as inner:
                inner.create_task(double.remote(1))
                inner.create_task(fail.remote("inner"))
    inner_error = raised.value.exceptions[0]
    assert isinstance(inner_error, ExceptionGroup)
    assert inner_error.subgroup(ValueError) is not None
    assert outer_ref.cancelled()


async def test_a_task_group_that_has_ended_takes_nothing(session: object) -> None:
    async with fw.task_group() as group:
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that is never awaited
        with pytest.raises(RuntimeError):
            group.create_task(double.remote(1))
        gc.collect()


# ---- sessions and loops ------------------------------------------------------------------------------------


def test_no_signal_handlers_are_installed(session_root: Path) -> None:
    def handlers() -> dict[int, Any]:
        return {number: signal.getsignal(number) for number in signal.valid_signals()}

    fw.shutdown()
    before = handlers()
    wakeup = signal.set_wakeup_fd(-1)
    with fw.init(num_cpus=1, log_to_driver=False):
        assert fw.get(double.remote(1), timeout=PATIENCE) == 2
        assert handlers() == before
        assert signal.set_wakeup_fd(-1) == wakeup == -1
    assert handlers() == before


class Ticker:
    """Measures for how long the loop does nothing else."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self._run())
        await asyncio.sleep(0.02)
        self.longest = 0.0
        return self

    async def _run(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            self.longest = max(self.longest, now - last)
            last = now

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()


@pytest.mark.slow
async def test_a_session_as_an_async_context(session_root: Path) -> None:
    fw.shutdown()
    async with Ticker() as ticker:
        begin = time.perf_counter()
        async with fw.init(num_cpus=2, log_to_driver=False) as context:
            started = time.perf_counter() - begin
            assert fw.is_initialized()
            assert os.path.isdir(context.session_dir)
            assert await double.remote(3) == 6
            assert await asyncio.gather(*[double.remote(i) for i in range(200)]) == [
                2 * i for i in range(200)
            ]
        assert not fw.is_initialized()
    assert ticker.longest < max(0.1, started), f"the loop stood still for {ticker.longest:.3f} s"


@pytest.mark.slow
async def test_auto_init_in_a_loop_does_not_block_it(session_root: Path) -> None:
    fw.shutdown()
    fw.init(num_cpus=1, log_to_driver=False)  # forgets that there was a shutdown
    fw.shutdown()
    from framework._runtime.current import forget_shutdown

    forget_shutdown()
    try:
        begin = time.perf_counter()
        refs = [double.remote(i) for i in range(10)]  # starts a session, and waits in a queue until it is up
        took = time.perf_counter() - begin
        assert not refs[0].done(), "nothing was queued: the node was up already"
        assert took < 0.15, f".remote() took {took:.3f} s"
        assert await asyncio.wait_for(asyncio.gather(*refs), PATIENCE) == [2 * i for i in range(10)]
    finally:
        await asyncio.to_thread(fw.shutdown)


@pytest.mark.slow
def test_auto_init_in_a_loop_loads_nothing_there(session_root: Path, tmp_path: Path) -> None:
    """Loading the runtime takes 0.1 s and more, for which the loop would stand still."""
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, sys\n"
        "import framework as fw\n"
        "@fw.remote\n"
        "def double(x): return 2 * x\n"
        "async def main():\n"
        "    before = set(sys.modules)\n"
        "    ref = double.remote(2)\n"
        "    print(sorted(name for name in set(sys.modules) - before if name.startswith('framework')))\n"
        "    print(await ref)\n"
        "asyncio.run(main())\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, str(program)], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n4\n"), done.stderr


@pytest.mark.slow
async def test_a_start_that_fails_surfaces(session_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fw.shutdown()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(fw.exceptions.LocalNodeDiedError, match="did not start"):
        async with fw.init(num_cpus=1, log_to_driver=False):
            pytest.fail("it has started")
    assert not fw.is_initialized()
    with pytest.raises(fw.exceptions.LocalNodeDiedError, match=r"did not start.*its log is in .*logs"):
        async with asyncio.timeout(PATIENCE):
            fw.init(num_cpus=1, log_to_driver=False)
            await double.remote(1)
    await asyncio.to_thread(fw.shutdown)
    monkeypatch.undo()
    async with fw.init(num_cpus=1, log_to_driver=False):
        assert await double.remote(1) == 2


@pytest.mark.slow
async def test_a_start_that_takes_too_long_surfaces(
    session_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from framework._base import limits

    fw.shutdown()
    monkeypatch.setattr(limits, "NODE_START_TIMEOUT", 0.0001)
    with pytest.raises(fw.exceptions.LocalNodeDiedError, match=r"did not come up within .* s; its log is in"):
        async with fw.init(num_cpus=1, log_to_driver=False):
            pytest.fail("it was too fast")
    assert not fw.is_initialized()


@pytest.mark.slow
async def test_a_start_that_is_cancelled_leaves_no_session(session_root: Path) -> None:
    fw.shutdown()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            async with fw.init(num_cpus=1, log_to_driver=False):
                pytest.fail("it was too fast")
    assert not fw.is_initialized()


@pytest.mark.slow
async def test_shutdown_while_a_ref_is_awaited(session_root: Path) -> None:
    fw.shutdown()
    async with fw.init(num_cpus=1, log_to_driver=False):
        ref = until_stopped.remote(os.devnull, os.devnull)
        task = asyncio.ensure_future(ref)
        future = ref.future()
        await asyncio.sleep(0)
    with pytest.raises(fw.exceptions.NotInitializedError):
        await asyncio.wait_for(task, PATIENCE)
    with pytest.raises(fw.exceptions.NotInitializedError):
        future.result(timeout=PATIENCE)
