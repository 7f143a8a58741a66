"""Scale on one node: many arguments, returns, objects, references, queued tasks.

Seconds depend on the machine, so they are printed (``-s``) and not compared. What is asserted is the *shape*:
four times the items may cost at most eight times as much, each size measured as the best of equally many
runs; and that every value is right.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework._net.connection import Connection
from framework._runtime.current import current
from framework._wire import messages as m
from framework.benchmarks.queue_once import resident_bytes
from framework.util.state import list_objects, store_stats
from support.leaks import wait_until
from support.scale import STORED, arrays_of_a_worker, firsts, nothing, numbered, stored_arrays, use_together

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.slow]

STORE = 2 * 1024**3  #: sparse
SHAPE = 8  #: four times the items may cost so many times as much
RUNS = 3
AT_LEAST = 0.05  #: seconds of measuring
BEYOND_KEPT = 1100  #: more objects than a process keeps views of, or the smaller size would be flattered


@pytest.fixture(scope="module")
def _session(session_root: Path) -> Iterator[None]:
    """One for all tests that need no store of their own: its memory is warm after the first."""
    with fw.init(num_cpus=2, object_store_memory=STORE, log_to_driver=False):
        fw.get([nothing.remote() for _ in range(1000)])  # workers run, caches are filled
        yield


@pytest.fixture
def scale_session(_session: None) -> Iterator[None]:
    """Every test leaves it as it was. What other tests have left in this process is no part of what is
    measured: the garbage collector does not look at it meanwhile."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()
    wait_until(lambda: store_stats()["objects"] == 0, 10, "the end of all objects")
    assert store_stats()["pins"] == 0


@pytest.fixture
def no_session(request: pytest.FixtureRequest) -> None:
    """For tests with sessions of their own, which come last: the shared one has ended."""
    if fw.is_initialized():
        fw.shutdown()


def best(operations: list[Callable[[], object]]) -> list[float]:
    """Seconds of the fastest run of each. They take turns and all run equally often, so that whatever else
    the machine does meanwhile meets them alike."""
    times: list[list[float]] = [[] for _ in operations]
    while len(times[0]) < RUNS or sum(times[0]) < AT_LEAST:
        for taken, operation in zip(times, operations, strict=True):
            begin = time.perf_counter()
            operation()
            taken.append(time.perf_counter() - begin)
    return [min(taken) for taken in times]


def check_shape(
    what: str, few: int, prepare: Callable[[int], Callable[[], object]], limit: int = SHAPE
) -> None:
    """`prepare(n)` checks that n items come out right, and returns what to time, for `few` and 4 * few."""
    before = resident_bytes()
    operations = [prepare(few), prepare(4 * few)]
    small, large = best(operations)
    for _ in range(4):  # a busy machine: what it costs is what the fastest of all runs takes
        if large <= limit * small:
            break
        small, large = map(min, zip(best(operations), (small, large), strict=True))
    grown = max(0, resident_bytes() - before)
    print(
        f"\n{what}: {few} in {small * 1e3:.1f} ms, {4 * few} in {large * 1e3:.1f} ms, "
        f"{large / small:.1f} times as much; {large / 4 / few * 1e6:.1f} us each; "
        f"the driver grew by {grown / 1e6:.0f} MB, pages of the store included"
    )
    assert large <= limit * small, f"{what}: 4 times the items took {large / small:.1f} times as long"


@pytest.fixture
def node_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Counts the calls that this process makes, by opcode."""
    calls: Counter[int] = Counter()
    original = Connection.call

    def counted(self: Connection, opcode: int, *fields: object) -> Any:
        calls[opcode] += 1
        return original(self, opcode, *fields)

    monkeypatch.setattr(Connection, "call", counted)
    return calls


# ---- objects ---------------------------------------------------------------------------------------------


def test_get_of_10k_stored_objects(scale_session: None, node_calls: Counter[int]) -> None:
    def prepare(count: int) -> Callable[[], object]:
        refs = stored_arrays(count)
        node_calls.clear()
        got = fw.get(refs)
        assert [array[0] for array in got] == list(range(count))
        assert not any(array.flags.owndata for array in got)
        assert node_calls[m.STORE_PIN] <= 2, "each object was asked for by itself"
        del got
        return lambda: fw.get(refs)

    check_shape("get of stored objects", 2500, prepare)


def test_get_of_stored_objects_that_were_borrowed(scale_session: None) -> None:
    def prepare(count: int) -> Callable[[], object]:
        refs = fw.get(arrays_of_a_worker.remote(count))
        assert [array[0] for array in fw.get(refs)] == list(range(count))
        return lambda: fw.get(refs)

    check_shape("get of borrowed stored objects", BEYOND_KEPT, prepare)


def test_one_reference_many_times_in_one_get(scale_session: None) -> None:
    ref, other = stored_arrays(2)
    got = fw.get([ref, other] * 2000)
    assert [array[0] for array in got] == [0.0, 1.0] * 2000
    assert len({array.__array_interface__["data"][0] for array in got}) == 2


def test_an_object_that_contains_10k_references(scale_session: None) -> None:
    @fw.remote
    def make(count: int) -> list[fw.ObjectRef[int]]:
        return [fw.put(number) for number in range(count)]

    def prepare(count: int) -> Callable[[], object]:
        container = make.remote(count)
        refs = fw.get(container)
        assert fw.get(refs) == list(range(count))
        again = fw.put(refs)
        assert fw.get(fw.get(again)) == list(range(count))
        return lambda: fw.get(container)

    check_shape("get of an object that contains references", 2500, prepare)
    wait_until(lambda: not list_objects(limit=100_000), 10, "the end of all objects, here and in the workers")


# ---- arguments and returns -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["puts", "results", "stored"])
def test_10k_object_arguments(scale_session: None, kind: str) -> None:
    def prepare(count: int) -> Callable[[], object]:
        if kind == "stored":
            refs = stored_arrays(count)
        elif kind == "puts":
            refs = [fw.put(number) for number in range(count)]
        else:
            refs = [numbered.remote(number) for number in range(count)]
        expected = float(sum(range(count)))
        assert fw.get(firsts.remote(*refs)) == expected
        return lambda: fw.get(firsts.remote(*refs))

    check_shape(f"arguments ({kind})", 2500, prepare)


def test_arguments_that_were_borrowed(scale_session: None) -> None:
    """The worker that submits the task owns none of its arguments."""

    @fw.remote
    def middle(refs: list[fw.ObjectRef[Any]]) -> float:
        return fw.get(firsts.remote(*refs))

    def prepare(count: int) -> Callable[[], object]:
        refs = stored_arrays(count)
        assert fw.get(middle.remote(refs)) == sum(range(count))
        return lambda: fw.get(middle.remote(refs))

    check_shape("borrowed stored arguments", BEYOND_KEPT, prepare)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_10k_stored_arguments_of_an_actor(scale_session: None, kind: str) -> None:
    @fw.remote
    class Sync:
        def firsts(self, *arguments: Any) -> float:
            return float(sum(a[0] for a in arguments))

    @fw.remote
    class Async:
        async def firsts(self, *arguments: Any) -> float:
            return float(sum(a[0] for a in arguments))

    actor: Any = Async.remote() if kind == "async" else Sync.remote()

    def prepare(count: int) -> Callable[[], object]:
        refs = stored_arrays(count)
        assert fw.get(actor.firsts.remote(*refs)) == sum(range(count))
        return lambda: fw.get(actor.firsts.remote(*refs))

    check_shape(f"stored arguments of a call to an actor ({kind})", BEYOND_KEPT, prepare)


def test_arguments_of_every_kind_keep_their_places(scale_session: None) -> None:
    @fw.remote
    def shown(*arguments: Any, **keywords: Any) -> list[Any]:
        return [
            int(a[0]) if isinstance(a, np.ndarray) else len(a) if isinstance(a, list) else a
            for a in [*arguments, *keywords.values()]
        ]

    big = stored_arrays(6)
    nested = [fw.put([fw.put(0)] * count) for count in (2, 3)]  # hold references: fetched by the worker
    refs = [big[5], nested[0], fw.put(10), big[1], big[5], fw.put("x")]
    answer = fw.get(shown.remote(*refs, 11, b=big[3], a=nested[1], c=12, d=big[3]))
    assert answer == [5, 2, 10, 1, 5, "x", 11, 3, 3, 12, 3]


@pytest.mark.parametrize("kind", ["small", "stored"])
def test_3k_returns_of_one_task(scale_session: None, kind: str) -> None:
    @fw.remote
    def many(count: int, stored: bool) -> list[Any]:
        return [np.full(STORED // 8, float(n)) for n in range(count)] if stored else list(range(count))

    def run(count: int) -> None:
        refs: Any = many.options(num_returns=count).remote(count, kind == "stored")
        got = fw.get(refs)
        assert [value if kind == "small" else value[0] for value in got] == list(range(count))

    def prepare(count: int) -> Callable[[], object]:
        run(count)
        return lambda: run(count)

    check_shape(f"returns ({kind})", 750, prepare)


# ---- waiting ---------------------------------------------------------------------------------------------


def test_wait_for_1k_references(scale_session: None) -> None:
    def prepare(count: int) -> Callable[[], object]:
        refs = [numbered.remote(number) for number in range(count)]
        assert fw.wait(refs, num_returns=count) == (refs, [])
        return lambda: [fw.wait(refs, num_returns=count) for _ in range(20)]

    check_shape("wait for all of many", 250, prepare)

    def one_by_one(count: int) -> None:
        pending = [numbered.remote(number) for number in range(count)]
        seen = set()
        while pending:
            done, pending = fw.wait(pending)
            seen.update(fw.get(done))
        assert seen == set(range(count))

    # Each call returns a list of what is left: n calls that list n references each, and not more than that.
    check_shape("wait, one by one", 250, lambda count: lambda: one_by_one(count), limit=2 * 4 * 4)


def test_waiting_again_and_again_for_1k_references_leaves_nothing(
    scale_session: None, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    @fw.remote
    def behind(gate: str, number: int) -> int:
        while not os.path.exists(gate):
            time.sleep(0.005)
        return number

    refs = [behind.remote(str(gate), number) for number in range(1000)]

    def waits() -> None:
        for _ in range(20):
            assert fw.wait(refs, num_returns=1000, timeout=0.0005)[0] == []

    (early,) = best([waits])
    for _ in range(10):
        waits()
    (late,) = best([waits])
    each = (f"{seconds / 20 * 1e3:.2f} ms" for seconds in (early, late))
    print(f"\nwait for 1000 that are not ready: {next(each)}, 200 calls later {next(each)}")
    assert late <= 3 * early
    assert not any(ref._entry.waiters for ref in refs), "waiters that gave up are still registered"
    gate.touch()
    assert fw.get(refs) == list(range(1000))


# ---- memory ----------------------------------------------------------------------------------------------


def _queue_figures(count: int) -> dict[str, float]:
    """In a process of its own: memory that one run has freed would hide what the next one takes."""
    done = subprocess.run(
        [sys.executable, "-m", "framework.benchmarks.queue_once", str(count), "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"\nqueue of {count} tasks: {done.stdout.splitlines()[-1]}")
    return figures


def test_a_queue_of_100k_tasks(session_root: Path, no_session: None) -> None:
    stages = ("submit", "drain")
    small, large = dict.fromkeys(stages, 0.0), dict.fromkeys(stages, 0.0)
    for _ in range(RUNS):  # the best of equally many, but no more than it takes
        for best_of, figures in ((small, _queue_figures(25_000)), (large, _queue_figures(100_000))):
            assert figures["bytes"] <= 2000
            for stage in stages:
                best_of[stage] = max(best_of[stage], figures[stage])
        if all(large[stage] >= small[stage] / 2 for stage in stages):
            break
    for stage in stages:
        assert large[stage] >= small[stage] / 2, f"{stage}: slower per task in a longer queue"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc/self/smaps_rollup")
def test_20_workers_share_one_frame(session_root: Path, no_session: None, tmp_path: Path) -> None:
    """Twenty processes that all use one 100 MB frame at the same time hold it once between them."""
    workers = 20

    with fw.init(num_cpus=workers, object_store_memory=STORE, log_to_driver=False):
        frame = {f"column {number}": np.full(1_250_000, float(number)) for number in range(10)}
        size = sum(column.nbytes for column in frame.values())
        ref = fw.put(frame)
        tasks = [use_together.remote([ref], str(tmp_path), number, workers) for number in range(workers)]
        rows = fw.get(tasks, timeout=60)
        assert len({pid for pid, *_ in rows}) == workers
        assert {total for *_, total in rows} == {45 * 1_250_000.0}
        shared, own = sum(row[1] for row in rows), sum(row[2] for row in rows)
        used = store_stats()["used"]
        print(
            f"\n{size / 1e6:.0f} MB frame in {workers} workers: {shared / 1e6:.1f} MB shared between them, "
            f"{own / 1e6:.1f} MB of their own more than before, {used / 1e6:.1f} MB of the store"
        )
        assert shared <= 1.1 * size
        assert own <= 0.5 * size
        assert used <= 1.1 * size


def test_get_of_more_than_the_store_holds(session_root: Path, no_session: None) -> None:
    """Values that are copied on the way need no more room than one batch: what was spilled comes back."""
    with fw.init(num_cpus=2, object_store_memory=32 * 1024**2, log_to_driver=False):

        @fw.remote
        def size(*arguments: bytes) -> list[int]:
            return [len(a) + a[0] for a in arguments]

        refs = [fw.put(bytes([number % 251]) * STORED) for number in range(400)]
        expected = [STORED + number % 251 for number in range(400)]
        assert store_stats()["spilled_objects"] > 0
        assert [len(value) + value[0] for value in fw.get(refs)] == expected
        assert fw.get(size.remote(*refs)) == expected
        assert [len(value) + value[0] for value in fw.get(refs[::-1])] == expected[::-1]
        log = Path(current().session_dir, "logs", "node.log")
    # (A log without a line goes with the session.)
    assert not log.exists() or "Traceback" not in log.read_text(), "it ends in order, and need not be killed"


def test_an_array_as_large_as_the_store(session_root: Path, no_session: None) -> None:
    capacity = 64 * 1024**2
    room = capacity - 4096
    with fw.init(num_cpus=2, object_store_memory=capacity, log_to_driver=False):

        @fw.remote
        def total(array: Any) -> tuple[float, bool]:
            return float(array.sum()), bool(array.flags.owndata)

        array = np.ones(room // 8)
        array[-1] = 7.0
        expected = float(array.sum())
        begin = time.perf_counter()
        ref = fw.put(array)
        assert fw.get(total.remote(ref)) == (expected, False)
        print(f"\nput of all of a store, sum in a worker: {(time.perf_counter() - begin) * 1e3:.1f} ms")
        assert store_stats()["used"] == capacity
        # The next one of that size makes the first go to disk and come back.
        other = fw.put(array * 2)
        assert fw.get(total.remote(other)) == (expected * 2, False)
        assert fw.get(total.remote(ref)) == (expected, False)
        assert store_stats()["spilled_objects"] >= 1
        with pytest.raises(fw.exceptions.ObjectStoreFullError, match="does not fit"):
            fw.put(np.ones(capacity // 8))
