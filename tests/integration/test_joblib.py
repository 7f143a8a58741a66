"""The backend for joblib."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from support.leaks import wait_until

joblib = pytest.importorskip("joblib", minversion="1.5", reason="joblib 1.5 or newer is not installed")

from framework.util.joblib import FrameworkBackend, register_framework, register_ray  # noqa: E402
from framework.util.state import list_objects  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("session")]

PATIENCE = 30.0
MEGABYTE = 1024 * 1024


@pytest.fixture(autouse=True)
def backend() -> Iterator[None]:
    register_framework()
    with joblib.parallel_config(backend="framework"):
        yield


def square(x: int) -> int:
    return x * x


def pid_of(_: object) -> int:
    return os.getpid()


def run(calls: Any, **options: Any) -> list[Any]:
    found: list[Any] = joblib.Parallel(**options)(calls)
    return found


def test_results_in_order() -> None:
    assert run(joblib.delayed(square)(i) for i in range(200)) == [i * i for i in range(200)]


def test_runs_in_workers_that_are_kept() -> None:
    first = set(run((joblib.delayed(pid_of)(i) for i in range(20)), batch_size=1))
    second = set(run((joblib.delayed(pid_of)(i) for i in range(20)), batch_size=1))
    assert os.getpid() not in first
    assert len(first | second) <= 2


def test_number_of_jobs() -> None:
    with joblib.parallel_config(backend="framework", n_jobs=-1):
        assert joblib.effective_n_jobs() == fw.cluster_resources()["CPU"] == 2
    assert joblib.effective_n_jobs(-1) == 2
    assert joblib.effective_n_jobs(-2) == 1
    assert joblib.effective_n_jobs(5) == 5
    with pytest.raises(ValueError, match="n_jobs == 0"):
        joblib.effective_n_jobs(0)


def test_as_many_at_a_time_as_asked(tmp_path: Path) -> None:
    def meet(i: int) -> int:
        """Returns when three of these are under way."""
        (tmp_path / str(i)).touch()
        deadline = time.monotonic() + PATIENCE
        while len(list(tmp_path.iterdir())) < 3 and time.monotonic() < deadline:
            time.sleep(0.002)
        return len(list(tmp_path.iterdir()))

    calls = (joblib.delayed(meet)(i) for i in range(3))
    assert run(calls, n_jobs=3, batch_size=1) == [3, 3, 3]


def test_one_job_runs_here() -> None:
    assert run((joblib.delayed(pid_of)(i) for i in range(3)), n_jobs=1) == [os.getpid()] * 3


def test_chosen_by_name_for_one_call() -> None:
    with joblib.parallel_config(backend="sequential"):
        pids = run((joblib.delayed(pid_of)(i) for i in range(4)), n_jobs=2, backend="framework")
    assert os.getpid() not in pids


def test_parallel_backend() -> None:
    with joblib.parallel_backend("framework", n_jobs=2):
        assert run(joblib.delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]


def test_name_of_ray() -> None:
    register_ray()
    with joblib.parallel_config(backend="ray"):
        assert os.getpid() not in run(joblib.delayed(pid_of)(i) for i in range(5))


def test_exception() -> None:
    def fail(i: int) -> int:
        if i == 5:
            raise LookupError(f"not {i}")
        return i

    with pytest.raises(LookupError, match="not 5") as caught:
        run(joblib.delayed(fail)(i) for i in range(100))
    assert type(caught.value) is LookupError
    assert "in fail" in str(caught.value.__cause__)
    assert run(joblib.delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]  # it can go on


def test_a_dead_worker_is_an_error_and_no_hang() -> None:
    with pytest.raises(Exception, match="exited with code 7"):
        run(joblib.delayed(os._exit)(7) for _ in range(3))
    assert run(joblib.delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_nested(depth: int) -> None:
    def tree(levels: int) -> int:
        if not levels:
            return 1
        calls = (joblib.delayed(tree)(levels - 1) for _ in range(3))
        return sum(joblib.Parallel(n_jobs=2)(calls))

    assert sum(run(joblib.delayed(tree)(depth) for _ in range(4))) == 4 * 3**depth


def test_nested_with_this_backend() -> None:
    def inner(i: int) -> int:
        register_framework()
        with joblib.parallel_config(backend="framework"):
            return sum(joblib.Parallel(n_jobs=2)(joblib.delayed(square)(j) for j in range(i)))

    assert run(joblib.delayed(inner)(i) for i in range(4)) == [0, 0, 1, 5]


def test_results_as_a_generator() -> None:
    calls = (joblib.delayed(square)(i) for i in range(50))
    items = joblib.Parallel(return_as="generator")(calls)
    assert next(items) == 0
    assert list(items) == [i * i for i in range(1, 50)]
    calls = (joblib.delayed(square)(i) for i in range(50))
    unordered = joblib.Parallel(return_as="generator_unordered")(calls)
    assert sorted(unordered) == [i * i for i in range(50)]


def test_timeout() -> None:
    with pytest.raises(multiprocessing.TimeoutError):
        run((joblib.delayed(time.sleep)(PATIENCE) for _ in range(2)), timeout=0.05)


def test_options_of_the_workers() -> None:
    options = {"runtime_env": {"env_vars": {"JOBLIB_VARIABLE": "set"}}}
    with joblib.parallel_config(backend="framework", options=options):
        assert run(joblib.delayed(os.getenv)("JOBLIB_VARIABLE") for _ in range(2)) == ["set", "set"]


def test_inner_threads() -> None:
    with joblib.parallel_config(backend="framework", inner_max_num_threads=1):
        assert run(joblib.delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(2)) == ["1", "1"]


# ---- arrays ------------------------------------------------------------------------------------------


def part(array: Any, i: int, *, other: Any = None) -> tuple[float, bool]:
    total = float(array[i]) + (0 if other is None else float(other[i]))
    return total, bool(array.flags.writeable)


def large_objects() -> set[str]:
    """All objects of the size of an array that the driver owns."""
    rows = list_objects(filters=[("reference_type", "=", "OWNED"), ("pid", "=", os.getpid())])
    return {row["object_id"] for row in rows if row["object_size"] >= 8 * MEGABYTE}


def test_large_arrays_are_in_the_store_once() -> None:
    array = np.arange(MEGABYTE, dtype=np.float64)  # 8 MiB
    seen: set[str] = set()

    def calls() -> Iterator[Any]:
        for i in range(40):
            seen.update(large_objects())
            yield joblib.delayed(part)(array, i, other=array)

    results = run(calls(), batch_size=1)
    assert results == [(2.0 * i, False) for i in range(40)]
    assert len(seen) == 1
    wait_until(lambda: not large_objects(), PATIENCE, "the end of the copy")


def test_an_array_may_be_changed_between_calls() -> None:
    array = np.zeros(MEGABYTE)
    assert run([joblib.delayed(part)(array, 0)])[0][0] == 0.0
    array[0] = 5.0
    assert run([joblib.delayed(part)(array, 0)])[0][0] == 5.0


def test_an_array_per_call_is_not_kept() -> None:
    """40 arrays of 8 MiB: the cache of a call must not hold them all."""
    backend = FrameworkBackend(nesting_level=0)
    backend.configure(n_jobs=2, parallel=None)
    for i in range(40):
        array = np.full(MEGABYTE, float(i))
        calls = [(part, (array, 0), {})]
        future = backend.submit(joblib.parallel.BatchedCalls(calls, backend.get_nested_backend()))
        del array, calls
        assert future.result(PATIENCE) == [(float(i), False)]
    assert len(backend._arrays._refs) <= 2
