"""Cancelling: queued, waiting, running, finished; force and recursion; and nobody else is hit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.exceptions import TaskCancelledError, WorkerCrashedError
from framework.util.multiprocessing import Pool
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class Signs:
    """Files by which tasks tell what they have come to."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)

    def set(self, name: str) -> None:
        part = os.path.join(self.directory, f".{name}-{os.getpid()}")
        Path(part).write_text(str(os.getpid()))
        os.rename(part, os.path.join(self.directory, name))

    def __contains__(self, name: str) -> bool:
        return os.path.exists(os.path.join(self.directory, name))

    def pid(self, name: str) -> int:
        return int(Path(self.directory, name).read_text())

    def wait(self, name: str, timeout: float = 20.0) -> None:
        wait_until(lambda: name in self, timeout, f"the sign {name!r}")


@pytest.fixture
def signs(tmp_path: Path) -> Signs:
    return Signs(tmp_path)


@fw.remote
def quick(value: int = 1) -> int:
    return value


def assert_cancelled(ref: Any, timeout: float = 5.0) -> TaskCancelledError:
    with pytest.raises(TaskCancelledError) as caught:
        fw.get(ref, timeout=timeout)
    assert ref.task_id().hex() in str(caught.value)
    return caught.value


@pytest.fixture
def occupied(session: object, signs: Signs) -> Iterator[None]:
    """Both CPUs are busy."""

    @fw.remote(num_cpus=2)
    def hold() -> None:
        signs.set("held")
        while "release" not in signs:
            time.sleep(0.005)

    ref = hold.remote()
    signs.wait("held")
    yield
    signs.set("release")
    fw.get(ref, timeout=20)


# ---- not running yet ---------------------------------------------------------------------------------


def test_queued(occupied: None, signs: Signs) -> None:
    @fw.remote
    def never() -> None:
        signs.set("ran")

    refs = [never.remote() for _ in range(20)]
    for ref in refs:
        fw.cancel(ref)
    for ref in refs:
        assert "never()" in str(assert_cancelled(ref))
    assert "ran" not in signs


def test_cancelled_in_the_moment_of_submission(session: object) -> None:
    for _ in range(300):
        ref = quick.remote()
        fw.cancel(ref)
        try:
            assert fw.get(ref, timeout=10) == 1
        except TaskCancelledError:
            pass
    assert fw.get([quick.remote(i) for i in range(100)], timeout=20) == list(range(100))


def test_waiting_for_a_dependency(occupied: None) -> None:
    first = quick.remote()
    second = quick.remote(first)
    third = quick.remote(second)
    fw.cancel(second)
    assert_cancelled(second)
    with pytest.raises(TaskCancelledError):  # it cannot have its argument
        fw.get(third, timeout=5)


def test_sent_ahead_to_a_busy_worker(session: object, signs: Signs) -> None:
    @fw.remote
    def work(block: bool) -> int:
        if block:
            signs.set("blocked")
            while "go" not in signs:
                time.sleep(0.005)
        return 1

    fw.get([work.remote(False) for _ in range(200)], timeout=20)
    refs = [work.remote(i < 2) for i in range(60)]
    signs.wait("blocked")
    for ref in refs[2:40]:
        fw.cancel(ref)
    signs.set("go")
    outcomes = []
    for ref in refs:
        try:
            outcomes.append(fw.get(ref, timeout=20))
        except TaskCancelledError:
            outcomes.append(0)
    assert outcomes[:2] + outcomes[40:] == [1] * 22, "nobody else was hit"


def test_done_already(session: object) -> None:
    ref = quick.remote(5)
    assert fw.get(ref, timeout=20) == 5
    fw.cancel(ref)
    fw.cancel(ref, force=True)
    assert fw.get([ref, quick.remote(6)], timeout=20) == [5, 6]


# ---- running -----------------------------------------------------------------------------------------


def test_sleeping(session: object, signs: Signs) -> None:
    @fw.remote
    def sleep() -> None:
        signs.set("started")
        try:
            time.sleep(1e7)
        finally:
            signs.set("cleaned up")

    ref = sleep.remote()
    signs.wait("started")
    fw.cancel(ref)
    assert_cancelled(ref)
    assert "cleaned up" in signs


def test_busy(session: object, signs: Signs) -> None:
    @fw.remote
    def spin() -> None:
        signs.set("started")
        while True:
            pass

    ref = spin.remote()
    signs.wait("started")
    fw.cancel(ref)
    assert_cancelled(ref)


def test_in_a_blocking_get(session: object, signs: Signs) -> None:
    @fw.remote
    def forever() -> None:
        signs.set("inner")
        time.sleep(1e7)

    @fw.remote
    def outer() -> None:
        fw.get(forever.remote())

    ref = outer.remote()
    signs.wait("inner")
    fw.cancel(ref)
    assert_cancelled(ref)
    assert fw.get([quick.remote(i) for i in range(20)], timeout=20) == list(range(20))


def test_except_exception_does_not_swallow_it(session: object, signs: Signs) -> None:
    @fw.remote
    def careless() -> str:
        signs.set("started")
        while True:
            try:
                time.sleep(1e7)
            except Exception:
                continue

    ref = careless.remote()
    signs.wait("started")
    fw.cancel(ref)
    assert_cancelled(ref)


def test_an_exception_of_its_own_on_the_way_out(session: object, signs: Signs) -> None:
    @fw.remote(retry_exceptions=True)
    def translate() -> None:
        signs.set("started")
        try:
            time.sleep(1e7)
        except BaseException as error:
            raise ValueError("translated") from error

    ref = translate.remote()
    signs.wait("started")
    fw.cancel(ref)
    assert_cancelled(ref)


def test_printing_all_the_time(session: object, signs: Signs) -> None:
    @fw.remote
    def chatter() -> None:
        signs.set("started")
        while True:
            print("x" * 100)

    ref = chatter.remote()
    signs.wait("started")
    fw.cancel(ref)
    assert_cancelled(ref)


@pytest.mark.parametrize("how", ["get", "get several", "wait", "wait, with a timeout", "next", "a pool"])
def test_waiting_for_what_does_not_come(session: object, signs: Signs, how: str) -> None:
    @fw.remote(num_cpus=0)
    def slow() -> None:
        while "release" not in signs:
            time.sleep(0.005)

    @fw.remote(num_cpus=0)
    def item() -> Iterator[None]:
        while "release" not in signs:
            time.sleep(0.005)
        yield None

    @fw.remote
    def waits() -> None:
        ref: Any = slow.remote()
        stream: Any = item.remote()
        signs.set("waits")
        if how == "get":
            fw.get(ref)
        elif how == "get several":
            fw.get([ref, slow.remote()])
        elif how == "wait":
            fw.wait([ref])
        elif how == "wait, with a timeout":
            fw.wait([ref], timeout=1e6)
        elif how == "next":
            next(stream)
        else:
            Pool(1).apply_async(time.sleep, (1e6,)).get()

    ref = waits.remote()
    signs.wait("waits")
    fw.cancel(ref)
    assert_cancelled(ref)
    signs.set("release")


def test_submitting_and_getting_all_the_time(session: object, signs: Signs) -> None:
    """Interrupted anywhere in our own code as well, where nothing may be left half done."""

    @fw.remote
    def busy(name: str) -> None:
        signs.set(name)
        while True:
            fw.get([quick.remote(fw.put(1)) for _ in range(3)])

    for round_ in range(12):
        ref = busy.remote(str(round_))
        signs.wait(str(round_))
        fw.cancel(ref)
        assert_cancelled(ref)
    assert fw.get([quick.remote(i) for i in range(50)], timeout=20) == list(range(50))
    wait_until(lambda: fw.available_resources().get("CPU") == 2.0, 10, "free CPUs")


def test_async(session: object, signs: Signs) -> None:
    @fw.remote
    async def wait() -> None:
        import asyncio

        signs.set("started")
        try:
            await asyncio.sleep(1e7)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            signs.set("cleaned up")
            raise

    ref = wait.remote()
    signs.wait("started")
    fw.cancel(ref)
    assert_cancelled(ref)
    assert "cleaned up" in signs
    assert fw.get(quick.remote(2), timeout=10) == 2


def test_all_returns_of_a_task(session: object, signs: Signs) -> None:
    @fw.remote(num_returns=2)
    def pair() -> Any:
        signs.set("started")
        time.sleep(1e7)

    first, second = pair.remote()  # type: ignore[misc]
    signs.wait("started")
    fw.cancel(second)
    assert_cancelled(first)
    assert_cancelled(second)


# ---- force -------------------------------------------------------------------------------------------


def test_force(session: object, signs: Signs) -> None:
    @fw.remote
    def stubborn() -> None:
        signs.set("started")
        while True:
            try:
                time.sleep(1e7)
            except BaseException:
                signs.set("interrupted")

    ref = stubborn.remote()
    signs.wait("started")
    fw.cancel(ref)
    signs.wait("interrupted")
    assert not ref.done()
    fw.cancel(ref, force=True)
    assert_cancelled(ref)
    pid = signs.pid("started")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 5, "the end of its worker")
    assert fw.get([quick.remote(i) for i in range(10)], timeout=20) == list(range(10))


def test_force_on_code_that_holds_the_interpreter(session: object, signs: Signs) -> None:
    @fw.remote
    def hold() -> None:
        import ctypes

        signs.set("started")
        ctypes.PyDLL(None).sleep(60)  # with the GIL: no other thread of the worker runs

    ref = hold.remote()
    signs.wait("started")
    fw.cancel(ref, force=True)
    assert_cancelled(ref, timeout=10)


def test_force_on_a_call_of_an_actor_is_refused(session: object) -> None:
    @fw.remote
    class Slow:
        def wait(self) -> None:
            time.sleep(1e7)

        def fine(self) -> int:
            return 1

    actor = Slow.remote()
    ref = actor.wait.remote()
    with pytest.raises(ValueError, match=r"kill\(\)"):
        fw.cancel(ref, force=True)
    fw.cancel(ref)
    assert_cancelled(ref)
    assert fw.get(actor.fine.remote(), timeout=10) == 1


# ---- children ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recursive", [True, False])
def test_children(session: object, signs: Signs, recursive: bool) -> None:
    @fw.remote(num_cpus=0.1)
    def leaf() -> None:
        signs.set("leaf")
        try:
            while "release" not in signs:
                time.sleep(0.005)
            signs.set("leaf finished")
        except BaseException:
            signs.set("leaf cancelled")
            raise

    @fw.remote(num_cpus=0.1)
    def middle() -> None:
        child = leaf.remote()
        while "release" not in signs:
            fw.wait([child], timeout=0.01)

    @fw.remote(num_cpus=0.1)
    def root() -> None:
        child = middle.remote()
        signs.set("root")
        fw.get(child)

    ref = root.remote()
    signs.wait("leaf")
    fw.cancel(ref, recursive=recursive)
    assert_cancelled(ref)
    if recursive:
        signs.wait("leaf cancelled")
    else:
        signs.set("release")
        signs.wait("leaf finished")


def test_a_borrowed_reference(session: object, signs: Signs) -> None:
    @fw.remote(num_cpus=0.5)
    def forever() -> None:
        signs.set("started")
        time.sleep(1e7)

    @fw.remote(num_cpus=0.5)
    def canceller(refs: list[Any]) -> str:
        fw.cancel(refs[0])
        try:
            fw.get(refs[0], timeout=10)
        except TaskCancelledError as error:
            return str(error)
        return "it lives"

    ref = forever.remote()
    signs.wait("started")
    assert "forever()" in fw.get(canceller.remote([ref]), timeout=20)
    assert_cancelled(ref)


# ---- only the one that was meant ---------------------------------------------------------------------


def test_only_the_meant_tasks_are_hit(session: object) -> None:
    """Short tasks run back to back while some of them are cancelled at random moments."""

    @fw.remote(max_retries=0)
    def short(value: int) -> int:
        total = 0
        for i in range(200):
            total += i
        return value

    fw.get([short.remote(i) for i in range(100)], timeout=20)
    for round_ in range(5):
        refs = [short.remote(i) for i in range(1000)]
        meant = set(range(round_, 1000, 17))
        for i in sorted(meant):
            fw.cancel(refs[i])
        for i, ref in enumerate(refs):
            try:
                assert fw.get(ref, timeout=30) == i
            except TaskCancelledError:
                assert i in meant


def test_force_hits_only_the_meant_task(session: object) -> None:
    @fw.remote(max_retries=0)
    def short(value: int) -> int:
        return value

    fw.get([short.remote(i) for i in range(100)], timeout=20)
    refs = [short.remote(i) for i in range(600)]
    meant = set(range(0, 600, 60))
    for i in sorted(meant):
        fw.cancel(refs[i], force=True)
    for i, ref in enumerate(refs):
        try:
            assert fw.get(ref, timeout=30) == i
        except TaskCancelledError:
            assert i in meant
        except WorkerCrashedError:
            pytest.fail(f"task {i} was hit")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_no_cancel_is_lost_at_the_start_of_a_task(session: object, kind: str) -> None:
    """It may come when the task is in the queue, between queue and user code, or has just begun."""

    @fw.remote
    def sleep() -> None:
        time.sleep(1e7)

    @fw.remote
    async def sleep_async() -> None:
        import asyncio

        await asyncio.sleep(1e7)

    function: Any = sleep if kind == "sync" else sleep_async
    for round_ in range(200):
        ref = function.remote()
        fw.wait([ref], timeout=(round_ % 9) * 0.0002)
        fw.cancel(ref)
        assert_cancelled(ref)
