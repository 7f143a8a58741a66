"""`framework.util.multiprocessing.Pool`, by itself and side by side with the standard library's."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework.exceptions import TaskCancelledError, WorkerCrashedError
from framework.util.executor import BrokenWorkerPool, RemoteTraceback
from framework.util.multiprocessing import Pool, TimeoutError
from support.leaks import wait_until
from support.pool_functions import add, fail_at_three, square

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("session")]

PATIENCE = 30.0  # seconds; far above what anything here takes


@pytest.fixture(scope="module")
def pool(session: object) -> Iterator[Pool]:
    with Pool(2) as found:
        yield found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def numbers_then_error() -> Iterator[int]:
    yield 1
    yield 2
    raise KeyError("the source")


# ---- the same programs on both pools -----------------------------------------------------------------


def outcome(program: Callable[[Any], object], pool: Any) -> object:
    """What a program returns, or the class and the arguments of what it raises."""
    try:
        return program(pool)
    except Exception as error:
        return type(error), error.args


def consumed(iterator: Any) -> list[object]:
    """All that comes out of an imap, exceptions included."""
    found: list[object] = []
    while True:
        try:
            found.append(next(iterator))
        except StopIteration:
            return found
        except Exception as error:
            found.append((type(error), error.args))


PROGRAMS: dict[str, Callable[[Any], object]] = {
    "apply": lambda pool: pool.apply(add, (1, 2), {"c": 3}),
    "apply, exception": lambda pool: pool.apply(fail_at_three, (3,)),
    "apply_async": lambda pool: pool.apply_async(add, [1], {"b": 2}).get(PATIENCE),
    "wrong arguments": lambda pool: pool.apply(square, ()),
    "map": lambda pool: pool.map(square, range(37)),
    "map of nothing": lambda pool: pool.map(square, []),
    "map of an iterator": lambda pool: pool.map(square, iter(range(5))),
    "map, chunks": lambda pool: pool.map(square, range(37), chunksize=5),
    "map, one chunk": lambda pool: pool.map(square, range(7), chunksize=100),
    "map, exception": lambda pool: pool.map(fail_at_three, range(9)),
    "imap, bad chunksize": lambda pool: pool.imap(square, [1], chunksize=0),
    "map of what cannot be iterated": lambda pool: pool.map(square, 5),
    "map, exception of the iterable": lambda pool: pool.map(square, numbers_then_error()),
    "map_async": lambda pool: pool.map_async(square, range(9)).get(PATIENCE),
    "starmap": lambda pool: pool.starmap(add, [(1, 2), (3, 4)]),
    "starmap, chunks": lambda pool: pool.starmap(add, zip(range(9), range(9), strict=True), chunksize=4),
    "starmap_async": lambda pool: pool.starmap_async(add, [(1, 2)]).get(PATIENCE),
    "imap": lambda pool: consumed(pool.imap(square, range(50))),
    "imap, chunks": lambda pool: consumed(pool.imap(square, range(50), chunksize=7)),
    "imap, exception": lambda pool: consumed(pool.imap(fail_at_three, range(6))),
    "imap, exception in a chunk": lambda pool: consumed(pool.imap(fail_at_three, range(6), chunksize=2)),
    "imap, exception of the iterable": lambda pool: consumed(pool.imap(square, numbers_then_error())),
    "imap_unordered": lambda pool: sorted(pool.imap_unordered(square, range(50))),
    "imap_unordered, chunks": lambda pool: sorted(pool.imap_unordered(square, range(50), chunksize=7)),
    "imap_unordered, exception": lambda pool: sorted(
        map(str, consumed(pool.imap_unordered(fail_at_three, range(6))))
    ),
    "successful": lambda pool: [
        [result.wait(PATIENCE), result.ready(), result.successful()]
        for result in (pool.apply_async(square, (2,)), pool.apply_async(fail_at_three, (3,)))
    ],
    "join too early": lambda pool: pool.join(),
    "pickled": lambda pool: pickle.dumps(pool),
}


@pytest.fixture(scope="module")
def stdlib_pool() -> Iterator[Any]:
    # By spawn: a fork of a process with threads may lock up. Its children cannot import this module by name,
    # but those in tests/support.
    with multiprocessing.get_context("spawn").Pool(2) as found:
        yield found


@pytest.mark.slow  # the first has to start the standard library's processes
@pytest.mark.parametrize("name", PROGRAMS)
def test_as_the_standard_library(pool: Pool, stdlib_pool: Any, name: str) -> None:
    program = PROGRAMS[name]
    assert outcome(program, pool) == outcome(program, stdlib_pool)


@pytest.mark.parametrize(
    "arguments", [{"processes": 0}, {"processes": -1}, {"maxtasksperchild": 0}, {"initializer": 5}]
)
def test_bad_arguments_as_the_standard_library(arguments: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        multiprocessing.Pool(**arguments)
    with pytest.raises(type(expected.value)) as found:
        Pool(**arguments)
    assert str(found.value) == str(expected.value)


# ---- exceptions and callbacks ------------------------------------------------------------------------


def test_remote_traceback_is_the_cause(pool: Pool) -> None:
    with pytest.raises(ValueError, match="not 3") as caught:
        pool.map(fail_at_three, range(5))
    assert type(caught.value) is ValueError
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert 'raise ValueError(f"not {x}")' in "".join(traceback.format_exception(caught.value))


def test_callbacks(pool: Pool) -> None:
    results: list[object] = []
    errors: list[BaseException] = []
    pool.apply_async(square, (3,), callback=results.append, error_callback=errors.append).get(PATIENCE)
    pool.map_async(square, range(4), callback=results.append, error_callback=errors.append).get(PATIENCE)
    failing = pool.map_async(fail_at_three, range(5), 1, results.append, errors.append)
    failing.wait(PATIENCE)
    assert results == [9, [0, 1, 4, 9]]
    assert [str(error) for error in errors] == ["not 3"]
    assert not failing.successful()


def test_a_failing_callback_does_no_harm(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    def bad(value: int) -> None:
        raise RuntimeError("bad callback")

    assert pool.apply_async(square, (3,), callback=bad).get(PATIENCE) == 9
    assert pool.apply(square, (4,)) == 16
    assert "bad callback" in caplog.text


def test_get_with_a_timeout(pool: Pool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def wait_for_gate() -> str:
        while not gate.exists():
            time.sleep(0.005)
        return "open"

    result = pool.apply_async(wait_for_gate)
    with pytest.raises(TimeoutError):
        result.get(timeout=0.02)
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    items = pool.imap_unordered(lambda _: wait_for_gate(), [None])
    with pytest.raises(multiprocessing.TimeoutError):
        items.next(timeout=0.02)
    gate.touch()
    assert result.get(PATIENCE) == "open"
    assert items.next(PATIENCE) == "open"


# ---- what multiprocessing cannot do ------------------------------------------------------------------


def test_closures_and_lambdas(pool: Pool) -> None:
    offset = 10
    assert pool.map(lambda x: x + offset, range(3)) == [10, 11, 12]


def test_references_are_replaced_by_values(pool: Pool) -> None:
    big = np.ones(200_000)
    total = pool.apply(lambda array, scale: float(array.sum() * scale), (fw.put(big),), {"scale": fw.put(2)})
    assert total == 400_000.0


@pytest.mark.slow
def test_pools_inside_of_pools() -> None:
    def inner(x: int) -> int:
        with Pool(2) as inside:
            return sum(inside.map(lambda y: x * y, range(4)))

    with Pool(2) as outside:  # more processes than CPUs, all waiting for others
        assert outside.map(inner, range(4), chunksize=1) == [0, 6, 12, 18]


# ---- imap --------------------------------------------------------------------------------------------


def test_imap_reads_a_bounded_number_of_items(pool: Pool) -> None:
    read = itertools.count()
    source = (next(read) for _ in itertools.repeat(None))  # without an end
    items = pool.imap(square, source)
    assert [next(items) for _ in range(100)] == [x * x for x in range(100)]
    assert next(read) < 200


@pytest.mark.slow
def test_join_reads_the_rest() -> None:
    pool = Pool(2)
    items = pool.imap(square, range(500))
    others = pool.imap_unordered(square, range(500), chunksize=3)
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.map(square, [1])
    pool.join()
    assert list(items) == [x * x for x in range(500)]
    assert sorted(others) == [x * x for x in range(500)]


def test_imap_goes_on_after_close() -> None:
    pool = Pool(2)
    items = pool.imap(square, range(200))
    pool.close()
    assert list(items) == [x * x for x in range(200)]
    pool.join()


def test_imap_keeps_its_pool(session: object) -> None:
    items = Pool(2).imap(square, range(100))
    gc.collect()
    assert list(items) == [x * x for x in range(100)]


# ---- processes ---------------------------------------------------------------------------------------


def test_initializer_runs_once_in_each_process(tmp_path: Path) -> None:
    def initialize(directory: Path, text: str) -> None:
        (directory / str(os.getpid())).write_text(text)
        os.environ["POOL_TEXT"] = text

    with Pool(2, initialize, (tmp_path, "hello")) as pool:
        assert pool.map(lambda _: os.environ["POOL_TEXT"], range(10), chunksize=1) == ["hello"] * 10
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, PATIENCE, "both processes")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["hello", "hello"]


def test_failing_initializer_breaks_the_pool() -> None:
    def initialize() -> None:
        raise LookupError("no such thing")

    with Pool(2, initialize) as pool:
        with pytest.raises(BrokenWorkerPool, match="no such thing") as caught:
            pool.map(square, range(10))
        assert isinstance(caught.value.__cause__, LookupError)


def test_maxtasksperchild() -> None:
    with Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(os.getpid) for _ in range(6)]
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]
        assert len(set(pids)) == 3
        wait_until(lambda: not alive(pids[0]), PATIENCE, "the end of the first process")


@pytest.mark.slow
def test_a_dead_process_is_replaced() -> None:
    with Pool(1) as pool:
        with pytest.raises(WorkerCrashedError):
            pool.apply(os.kill, (pool.apply(os.getpid), signal.SIGKILL))
        assert pool.apply(square, (3,)) == 9
        results = [pool.apply_async(f, (x,)) for f, x in ((square, 2), (os._exit, 3), (square, 4))]
        assert results[0].get(PATIENCE) == 4
        with pytest.raises(WorkerCrashedError):
            results[1].get(PATIENCE)
        assert results[2].get(PATIENCE) == 16


def test_terminate_ends_what_is_under_way(tmp_path: Path) -> None:
    pool = Pool(1)
    pid = pool.apply(os.getpid)

    def hang() -> None:
        (tmp_path / "begun").touch()
        threading.Event().wait()

    running = pool.apply_async(hang)
    queued = pool.apply_async(square, (1,))
    items = pool.imap(square, itertools.count())
    wait_until((tmp_path / "begun").exists, PATIENCE, "the beginning of the call")
    pool.terminate()
    pool.join()
    for result in (running, queued):
        with pytest.raises(TaskCancelledError, match="terminated"):
            result.get(PATIENCE)
    with pytest.raises(TaskCancelledError):
        items.next(PATIENCE)
    with pytest.raises(ValueError, match="not running"):
        pool.apply_async(square, (1,))
    with pytest.raises(ValueError, match="not running"), pool:
        pass
    wait_until(lambda: not alive(pid), PATIENCE, "the end of the process")


def test_processes_end_after_close_and_join() -> None:
    pool = Pool(2)
    result = pool.map_async(lambda _: os.getpid(), range(20), chunksize=1)
    pool.close()
    pool.join()
    assert result.ready()
    for pid in set(result.get()):
        wait_until(lambda pid=pid: not alive(pid), PATIENCE, "the end of the processes")


def test_a_dropped_pool_finishes_its_work_and_ends() -> None:
    pool = Pool(2)
    pid = pool.apply(os.getpid)
    gone = weakref.ref(pool)
    result = pool.map_async(square, range(100))
    del pool
    assert result.get(PATIENCE) == [x * x for x in range(100)]
    gc.collect()
    assert gone() is None
    wait_until(lambda: not alive(pid), PATIENCE, "the end of the processes")


def test_default_size_is_that_of_the_cluster() -> None:
    with Pool() as pool:
        assert "pool_size=2" in repr(pool)


def test_options_of_the_workers() -> None:
    with Pool(1, ray_remote_args={"runtime_env": {"env_vars": {"POOL_VARIABLE": "set"}}}) as pool:
        assert pool.apply(os.getenv, ("POOL_VARIABLE",)) == "set"
