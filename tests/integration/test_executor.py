"""`PoolExecutor` beyond what CPython's own tests (test_executor_cpython.py) can see of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework.exceptions import ActorDiedError
from framework.util.executor import BrokenWorkerPool, PoolExecutor, RemoteTraceback
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("session")]

PATIENCE = 30.0  # seconds; far above what anything here takes


def square(x: int) -> int:
    return x * x


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def hold(gate: Path) -> int:
    """Says that it has begun, and is done when the gate is removed."""
    (gate.parent / f"{gate.name}.{os.getpid()}").touch()
    while gate.exists():
        time.sleep(0.002)
    return os.getpid()


def begun(gate: Path) -> int:
    return len(list(gate.parent.glob(f"{gate.name}.*")))


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    path = tmp_path / "gate"
    path.touch()
    return path


# ---- the future of a call ----------------------------------------------------------------------------


def test_states(gate: Path) -> None:
    with PoolExecutor(1) as executor:
        running, waiting, doomed = (executor.submit(hold, gate) for _ in range(3))
        wait_until(lambda: begun(gate), PATIENCE, "the first call")
        assert running.running() and not running.cancel()
        assert not waiting.running() and not waiting.done()
        assert doomed.cancel() and doomed.cancelled()
        gate.unlink()
        assert running.result(PATIENCE) == waiting.result(PATIENCE)
        assert waiting.done() and not waiting.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            doomed.result(PATIENCE)
    assert begun(gate) == 1  # (one file per process, and there was one)


def test_what_is_cancelled_is_not_run(gate: Path, tmp_path: Path) -> None:
    with PoolExecutor(1) as executor:
        executor.submit(hold, gate)
        doomed = [executor.submit((tmp_path / f"ran{i}").touch) for i in range(5)]
        assert all(future.cancel() for future in doomed)
        gate.unlink()
    assert not list(tmp_path.glob("ran*"))


def test_shutdown_cancels_what_is_queued(gate: Path) -> None:
    executor = PoolExecutor(1)
    running = executor.submit(hold, gate)
    queued = [executor.submit(square, i) for i in range(10)]
    executor.shutdown(wait=False, cancel_futures=True)
    # wait() counts futures that were cancelled only when they know that nobody will run them.
    done, others = concurrent.futures.wait(queued, timeout=PATIENCE)
    assert done == set(queued) and not others
    assert all(future.cancelled() for future in queued)
    gate.unlink()
    assert running.result(PATIENCE)


def test_remote_traceback() -> None:
    def fail() -> None:
        raise ValueError("wrong") from KeyError("inner")

    with PoolExecutor(1) as executor:
        error = executor.submit(fail).exception(PATIENCE)
    assert type(error) is ValueError
    assert error.args == ("wrong",)
    assert isinstance(error.__cause__, RemoteTraceback)
    text = "".join(traceback.format_exception(error))
    assert 'raise ValueError("wrong") from KeyError("inner")' in text
    assert "KeyError: 'inner'" in text


class Picky(Exception):
    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"{code} at {where}")
        self.code = code


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: sys.exit(3), SystemExit(3)),
        (lambda: next(iter(())), StopIteration()),
        (lambda: exec("raise KeyboardInterrupt"), KeyboardInterrupt()),
    ],
)
def test_unusual_exceptions(call: Callable[[], object], expected: BaseException) -> None:
    with PoolExecutor(1) as executor:
        error = executor.submit(call).exception(PATIENCE)
        assert type(error) is type(expected)
        assert error.args == expected.args
        assert executor.submit(square, 3).result(PATIENCE) == 9  # the worker lives


def test_exception_with_a_demanding_constructor() -> None:
    def fail() -> None:
        raise Picky(7, where="there")

    with PoolExecutor(1) as executor:
        error = executor.submit(fail).exception(PATIENCE)
    assert type(error) is Picky
    assert (error.code, str(error)) == (7, "7 at there")


def test_error_at_pickling() -> None:
    executor = PoolExecutor(1)
    bad = executor.submit(id, threading.Lock())
    executor.shutdown(wait=False)
    assert isinstance(bad.exception(PATIENCE), pickle.PicklingError)
    with PoolExecutor(1) as executor:
        bad = executor.submit(threading.Lock)
        assert isinstance(bad.exception(PATIENCE), pickle.PicklingError)
        assert executor.submit(square, 3).result(PATIENCE) == 9


class Unreadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return (_refuse, ())


def _refuse() -> None:
    raise LookupError("it cannot be read")


def test_what_cannot_be_unpickled() -> None:
    with PoolExecutor(1) as executor:
        for bad in (executor.submit(id, Unreadable()), executor.submit(Unreadable)):
            assert "it cannot be read" in str(bad.exception(PATIENCE))
        assert executor.submit(square, 3).result(PATIENCE) == 9


def test_references_are_replaced_by_values() -> None:
    array = np.ones(200_000)
    with PoolExecutor(1) as executor:
        reference = fw.put(array)
        assert executor.submit(np.sum, reference).result(PATIENCE) == 200_000
        assert executor.submit(dict, a=reference).result(PATIENCE)["a"].sum() == 200_000
        assert list(executor.map(np.sum, [reference] * 3)) == [200_000] * 3


def test_workers_drop_arguments(tmp_path: Path) -> None:
    class Marker:
        def __init__(self, path: Path) -> None:
            self.path = path

        def __del__(self) -> None:
            if os.getpid() != here:
                self.path.touch()

    here = os.getpid()
    with PoolExecutor(1) as executor:
        executor.submit(id, Marker(tmp_path / "gone")).result(PATIENCE)
        wait_until((tmp_path / "gone").exists, PATIENCE, "the end of the argument")


def test_arguments_are_dropped_when_a_worker_has_them(gate: Path) -> None:
    class Argument:
        pass

    argument = Argument()
    gone = weakref.ref(argument)
    with PoolExecutor(1) as executor:
        future = executor.submit(lambda path, _: hold(path), gate, argument)
        del argument
        wait_until(lambda: begun(gate), PATIENCE, "the call")
        assert gone() is None
        gate.unlink()
        assert future.result(PATIENCE)


# ---- asyncio -----------------------------------------------------------------------------------------


async def test_run_in_executor() -> None:
    loop = asyncio.get_running_loop()
    with PoolExecutor(2) as executor:
        results = await asyncio.gather(*(loop.run_in_executor(executor, square, i) for i in range(20)))
        assert results == [i * i for i in range(20)]
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(executor, divmod, 1, 0)


async def test_cancelling_in_asyncio_cancels_what_is_queued(gate: Path) -> None:
    loop = asyncio.get_running_loop()
    with PoolExecutor(1) as executor:
        first = executor.submit(hold, gate)
        queued = executor.submit(square, 2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(queued, loop=loop), 0.01)
        assert queued.cancelled()
        gate.unlink()
        assert await asyncio.wrap_future(first, loop=loop)


# ---- workers -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_calls_that_wait_for_each_other(gate: Path) -> None:
    """As many as there are workers must run at the same time."""
    with PoolExecutor(3) as executor:
        list(executor.map(square, range(50)))
        futures = [executor.submit(hold, gate) for _ in range(3)]
        wait_until(lambda: begun(gate) == 3, PATIENCE, "all three calls")
        gate.unlink()
        assert len({future.result(PATIENCE) for future in futures}) == 3


@pytest.mark.slow
def test_no_more_than_max_workers(gate: Path) -> None:
    with PoolExecutor(2) as executor:
        futures = [executor.submit(hold, gate) for _ in range(20)]
        wait_until(lambda: begun(gate) == 2, PATIENCE, "two calls")
        assert sum(future.running() for future in futures) == 2
        gate.unlink()
        assert len({future.result(PATIENCE) for future in futures}) == 2


def test_workers_are_reused() -> None:
    with PoolExecutor(4) as executor:
        assert len({executor.submit(os.getpid).result(PATIENCE) for _ in range(5)}) == 1


def test_default_is_the_cpus_of_the_cluster() -> None:
    with PoolExecutor() as executor:
        assert executor.max_workers == 2


def test_max_tasks_per_child() -> None:
    with PoolExecutor(1, max_tasks_per_child=3) as executor:
        pids = [executor.submit(os.getpid).result(PATIENCE) for _ in range(7)]
    assert [len(set(pids[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
    assert len(set(pids)) == 3


@pytest.mark.slow
def test_max_tasks_and_early_shutdown() -> None:
    executor = PoolExecutor(2, max_tasks_per_child=1)
    futures = [executor.submit(square, i) for i in range(6)]
    executor.shutdown()
    assert [future.result(0) for future in futures] == [i * i for i in range(6)]


def test_options_of_the_workers() -> None:
    environment = {"runtime_env": {"env_vars": {"EXECUTOR_VARIABLE": "set"}}}
    with PoolExecutor(1, options=environment) as executor:
        assert executor.submit(os.getenv, "EXECUTOR_VARIABLE").result(PATIENCE) == "set"


@pytest.mark.slow
def test_workers_that_wait_for_resources_get_no_calls() -> None:
    """Three workers with a CPU each, of which there are two: the third never starts, and nobody waits for
    it."""
    with PoolExecutor(3, options={"num_cpus": 1}) as executor:
        assert list(executor.map(square, range(30))) == [x * x for x in range(30)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"initializer": 5}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
        ({"max_retries": -1}, ValueError),
        ({"max_workers": 1, "options": {"no_such_option": 1}}, ValueError),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        PoolExecutor(**arguments)


@pytest.mark.slow
def test_an_executor_inside_of_its_own_worker() -> None:
    def outer() -> list[int]:
        with PoolExecutor(2) as inner:
            return list(inner.map(square, range(4)))

    with PoolExecutor(2) as executor:
        assert [executor.submit(outer).result(PATIENCE) for _ in range(2)] == [[0, 1, 4, 9]] * 2


# ---- workers that die --------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_worker_breaks_the_executor(gate: Path) -> None:
    with PoolExecutor(2) as executor:
        pid = executor.submit(os.getpid).result(PATIENCE)
        futures = [executor.submit(hold, gate) for _ in range(2)] + [executor.submit(square, 1)]
        wait_until(lambda: begun(gate) == 2, PATIENCE, "both calls")
        os.kill(pid, signal.SIGKILL)
        for future in futures:
            error = future.exception(PATIENCE)
            assert isinstance(error, BrokenWorkerPool)
            assert isinstance(error, concurrent.futures.process.BrokenProcessPool)
            assert isinstance(error.__cause__, ActorDiedError)
            assert "SIGKILL" in str(error)
        with pytest.raises(BrokenWorkerPool):
            executor.submit(square, 1)


def die_once(mark: Path, value: int) -> int:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return value
    os._exit(1)


@pytest.mark.slow
def test_retries(tmp_path: Path) -> None:
    with PoolExecutor(2, max_retries=1) as executor:
        values = executor.map(die_once, [tmp_path / f"mark{i}" for i in range(4)], range(4))
        assert list(values) == [0, 1, 2, 3]
        assert isinstance(executor.submit(os._exit, 1).exception(PATIENCE), BrokenWorkerPool)
        with pytest.raises(BrokenWorkerPool):
            executor.submit(square, 1)


@pytest.mark.slow
def test_a_new_worker_is_initialized_again(tmp_path: Path) -> None:
    def initialize(value: str) -> None:
        os.environ["INITIALIZED"] = value

    def check(mark: Path) -> str:
        die_once(mark, 0)
        return os.environ["INITIALIZED"]

    with PoolExecutor(1, initialize, ("yes",), max_retries=1) as executor:
        assert executor.submit(check, tmp_path / "mark").result(PATIENCE) == "yes"


def test_failing_initializer() -> None:
    def initialize() -> None:
        raise LookupError("nothing here")

    with PoolExecutor(1, initialize) as executor:
        futures = [executor.submit(square, i) for i in range(3)]
        for future in futures:
            error = future.exception(PATIENCE)
            assert isinstance(error, BrokenWorkerPool)
            assert isinstance(error.__cause__, LookupError)
            assert "nothing here" in str(error)


# ---- the end -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_end() -> None:
    with PoolExecutor(2) as executor:
        pids = set(executor.map(lambda _: os.getpid(), range(10)))
    for pid in pids:
        wait_until(lambda pid=pid: not alive(pid), PATIENCE, "the end of the workers")


@pytest.mark.slow
def test_shutdown_without_waiting(gate: Path) -> None:
    executor = PoolExecutor(1)
    future = executor.submit(hold, gate)
    results = executor.map(square, range(10))
    executor.shutdown(wait=False)
    assert not future.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)
    gate.unlink()
    assert list(results) == [i * i for i in range(10)]
    pid = future.result(PATIENCE)
    wait_until(lambda: not alive(pid), PATIENCE, "the end of the worker")


@pytest.mark.slow
def test_dropped_executor(gate: Path) -> None:
    executor = PoolExecutor(1)
    future = executor.submit(hold, gate)
    queued = [executor.submit(square, i) for i in range(10)]
    gone = weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    gate.unlink()
    assert [future.result(PATIENCE) for future in queued] == [i * i for i in range(10)]
    pid = future.result(PATIENCE)
    wait_until(lambda: not alive(pid), PATIENCE, "the end of the worker")


def test_dropped_idle_executor() -> None:
    executor = PoolExecutor(1)
    pid = executor.submit(os.getpid).result(PATIENCE)
    del executor
    gc.collect()
    wait_until(lambda: not alive(pid), PATIENCE, "the end of the worker")
