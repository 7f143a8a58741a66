"""Retries after crashes and exceptions, time limits, and workers that are used up."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import framework as fw
from framework.exceptions import TaskError, TaskTimeoutError, WorkerCrashedError
from support.leaks import wait_until

pytestmark = pytest.mark.integration


class Attempts:
    """Counts, in a file, how often a task has begun."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "attempts")

    def note(self) -> int:
        """In the task: its number, from 1."""
        with open(self.path, "a") as file:
            file.write(f"{time.monotonic()}\n")
        return len(self.times())

    def times(self) -> list[float]:
        if not os.path.exists(self.path):
            return []
        return [float(line) for line in Path(self.path).read_text().split()]


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)


def die(how: str) -> None:
    if how == "exit":
        os._exit(3)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        import ctypes
        import faulthandler
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()
        ctypes.string_at(0)


# ---- crashes -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("exit", "exited with code 3"),
        ("kill", r"killed by signal 9 \(SIGKILL\)"),
        ("segfault", r"signal 11 \(SIGSEGV\)"),
    ],
)
def test_a_task_whose_worker_dies(session: object, attempts: Attempts, how: str, text: str) -> None:
    @fw.remote(max_retries=2)
    def fatal() -> None:
        attempts.note()
        die(how)

    with pytest.raises(WorkerCrashedError, match=text) as caught:
        fw.get(fatal.remote(), timeout=30)
    assert len(attempts.times()) == 3
    assert "fatal() was tried 3 times (max_retries=2)" in str(caught.value)
    assert caught.value.pid
    assert "signal" in str(caught.value.exit_detail) or "code" in str(caught.value.exit_detail)


@pytest.mark.slow
@pytest.mark.parametrize(("retries", "expected"), [(0, 1), (1, 2), (None, 4)])
def test_the_number_of_attempts_is_exact(
    session: object, attempts: Attempts, retries: int | None, expected: int
) -> None:
    @fw.remote(max_retries=retries)
    def fatal() -> None:
        attempts.note()
        os._exit(1)

    with pytest.raises(WorkerCrashedError):
        fw.get(fatal.remote(), timeout=30)
    assert len(attempts.times()) == expected


@pytest.mark.slow
@pytest.mark.parametrize("retries", [3, -1])
def test_a_retry_that_succeeds(session: object, attempts: Attempts, retries: int) -> None:
    @fw.remote(max_retries=retries)
    def flaky(value: int) -> int:
        if attempts.note() < 4:
            os._exit(1)
        return value

    assert fw.get(flaky.remote(fw.put(7)), timeout=30) == 7
    assert len(attempts.times()) == 4


@pytest.mark.slow
def test_tasks_that_had_not_started_pay_nothing(session: object, tmp_path: Path) -> None:
    """Many tasks that may never run twice wait behind one that kills the worker."""

    @fw.remote(max_retries=0)
    def short(index: int, fatal: bool = False) -> int:
        with open(tmp_path / "log", "a") as file:
            file.write(f"{index}\n")
        if fatal:
            os._exit(1)
        return index

    fw.get([short.remote(-1) for _ in range(300)], timeout=30)
    (tmp_path / "log").unlink()
    refs = [short.remote(i, i % 50 == 25) for i in range(300)]
    outcomes: list[Any] = []
    for ref in refs:
        try:
            outcomes.append(fw.get(ref, timeout=60))
        except WorkerCrashedError:
            outcomes.append(None)
    assert outcomes == [None if i % 50 == 25 else i for i in range(300)]
    ran = sorted(int(line) for line in (tmp_path / "log").read_text().split())
    assert ran == list(range(300)), "each began exactly once"


@pytest.mark.slow
def test_a_worker_killed_from_outside(session: object, tmp_path: Path) -> None:
    @fw.remote
    def stay() -> int:
        first = not (tmp_path / "pid").exists()
        if first:
            (tmp_path / "part").write_text(str(os.getpid()))
            (tmp_path / "part").rename(tmp_path / "pid")
            time.sleep(60)
        return os.getpid()

    ref = stay.remote()
    wait_until((tmp_path / "pid").exists, 10, "the task")
    killed = int((tmp_path / "pid").read_text())
    os.kill(killed, signal.SIGKILL)
    assert fw.get(ref, timeout=20) != killed


@pytest.mark.slow
def test_nested_tasks_whose_worker_dies(session: object, attempts: Attempts) -> None:
    @fw.remote(max_retries=1)
    def inner() -> int:
        if attempts.note() == 1:
            os._exit(1)
        return 5

    @fw.remote
    def outer() -> int:
        return fw.get(inner.remote()) + 1

    assert fw.get(outer.remote(), timeout=30) == 6


# ---- exceptions --------------------------------------------------------------------------------------


class Flaky(Exception):
    pass


class Worse(Flaky):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code} {detail}")
        self.code = code


@pytest.mark.parametrize(
    ("retry_exceptions", "error", "expected"),
    [
        (None, "value", 1),
        (False, "value", 1),
        (True, "value", 3),
        ([ValueError], "value", 3),
        ([KeyError], "value", 1),
        ([KeyError, ValueError], "value", 3),
        ([Exception], "worse", 3),
        ([Flaky], "worse", 3),
        ([Worse], "flaky", 1),
        ([], "value", 1),
    ],
)
def test_retry_exceptions(
    session: object, attempts: Attempts, retry_exceptions: Any, error: str, expected: int
) -> None:
    @fw.remote(max_retries=2, retry_exceptions=retry_exceptions)
    def failing() -> None:
        attempts.note()
        raise {"value": ValueError("v"), "flaky": Flaky("f"), "worse": Worse(1, detail="d")}[error]

    with pytest.raises((ValueError, Flaky)) as caught:
        fw.get(failing.remote(), timeout=20)
    assert isinstance(caught.value, TaskError)
    assert len(attempts.times()) == expected


def test_crashes_and_exceptions_share_the_retries(session: object, attempts: Attempts) -> None:
    @fw.remote(max_retries=3, retry_exceptions=True)
    def failing() -> int:
        number = attempts.note()
        if number == 1:
            raise ValueError
        if number < 4:
            os._exit(1)
        return number

    assert fw.get(failing.remote(), timeout=20) == 4


def test_a_retry_policy_waits_between_attempts(session: object, attempts: Attempts) -> None:
    policy = fw.RetryPolicy(initial_delay=0.1, multiplier=2.0, max_delay=0.15, jitter=0.0)

    @fw.remote(max_retries=3, retry_exceptions=True, retry_policy=policy)
    def failing() -> None:
        attempts.note()
        raise ValueError

    with pytest.raises(ValueError):
        fw.get(failing.remote(), timeout=20)
    times = attempts.times()
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(gaps) == 3
    for gap, least in zip(gaps, (0.1, 0.15, 0.15), strict=True):
        assert least <= gap < least + 1.0


def test_a_retry_policy_also_spaces_out_crashes(session: object, attempts: Attempts) -> None:
    @fw.remote(max_retries=1, retry_policy=fw.RetryPolicy(initial_delay=0.2, jitter=0.0))
    def fatal() -> None:
        attempts.note()
        os._exit(1)

    with pytest.raises(WorkerCrashedError):
        fw.get(fatal.remote(), timeout=20)
    first, second = attempts.times()
    assert second - first >= 0.2


def test_a_retry_predicate(session: object, attempts: Attempts) -> None:
    policy = fw.RetryPolicy(initial_delay=0.0, retry_if=lambda error: "again" in str(error))

    @fw.remote(max_retries=5, retry_policy=policy)
    def failing() -> None:
        raise ValueError("again" if attempts.note() < 3 else "stop")

    with pytest.raises(ValueError, match="stop"):
        fw.get(failing.remote(), timeout=20)
    assert len(attempts.times()) == 3


def test_a_predicate_that_fails_ends_the_retries(session: object, attempts: Attempts) -> None:
    @fw.remote(max_retries=5, retry_policy=fw.RetryPolicy(initial_delay=0.0, retry_if=lambda error: 1 / 0))
    def failing() -> None:
        attempts.note()
        raise ValueError("the original")

    with pytest.raises(ValueError, match="the original") as caught:
        fw.get(failing.remote(), timeout=20)
    assert "ZeroDivisionError" in str(caught.value)
    assert len(attempts.times()) == 1


def test_cancel_between_attempts(session: object, attempts: Attempts) -> None:
    policy = fw.RetryPolicy(initial_delay=60.0, max_delay=60.0, jitter=0.0)

    @fw.remote(max_retries=3, retry_exceptions=True, retry_policy=policy)
    def failing() -> None:
        attempts.note()
        raise ValueError

    ref = failing.remote()
    wait_until(lambda: len(attempts.times()) == 1, 10, "the first attempt")
    fw.cancel(ref)
    with pytest.raises(fw.exceptions.TaskCancelledError):
        fw.get(ref, timeout=10)
    assert len(attempts.times()) == 1


# ---- time limits -------------------------------------------------------------------------------------


@fw.remote
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@fw.remote
def spin() -> None:
    while True:
        pass


def test_a_task_in_time(session: object) -> None:
    assert fw.get(sleep.options(timeout=20).remote(0), timeout=20) == 0


@pytest.mark.slow
def test_a_sleeping_and_a_busy_task_out_of_time(session: object) -> None:
    for ref in (sleep.options(timeout=0.2).remote(1e6), spin.options(timeout=0.2).remote()):
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError, match=r"within its timeout of 0\.2 s: it was running") as caught:
            fw.get(ref, timeout=20)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.timeout == 0.2
        assert caught.value.task_id == ref.task_id().hex()
        assert time.monotonic() - began < 3  # interrupted, not killed after the grace


@pytest.mark.slow
def test_a_queued_task_out_of_time(session: object, tmp_path: Path) -> None:
    @fw.remote(num_cpus=2)
    def hold() -> None:
        (tmp_path / "held").touch()
        while not (tmp_path / "gate").exists():
            time.sleep(0.005)

    holding = hold.remote()
    wait_until((tmp_path / "held").exists, 10, "the task that holds all CPUs")
    try:
        ref = sleep.options(timeout=0.2).remote(0)
        with pytest.raises(TaskTimeoutError, match="waiting for a free worker"):
            fw.get(ref, timeout=10)
        ref = sleep.options(timeout=0.2).remote(holding)
        with pytest.raises(TaskTimeoutError, match="its arguments were not ready"):
            fw.get(ref, timeout=10)
    finally:
        (tmp_path / "gate").touch()
    fw.get(holding, timeout=20)


@pytest.mark.slow
def test_an_async_task_out_of_time(session: object) -> None:
    @fw.remote(timeout=0.2)
    async def slow() -> None:
        import asyncio

        await asyncio.sleep(1e6)

    with pytest.raises(TaskTimeoutError):
        fw.get(slow.remote(), timeout=10)


@pytest.mark.slow
def test_a_timeout_passes_on_to_nested_tasks(session: object, tmp_path: Path) -> None:
    @fw.remote
    def child(path: str) -> None:
        try:
            time.sleep(1e6)
        finally:
            Path(path).touch()

    @fw.remote
    def parent(path: str) -> None:
        try:
            fw.get(child.remote(path))
        except TaskTimeoutError:  # (it has the same deadline, and may be told a moment earlier)
            time.sleep(1e6)

    @fw.remote
    def orphan_maker(path: str) -> None:
        child.options(timeout=1e6).remote(path)
        time.sleep(1e6)

    with pytest.raises(TaskTimeoutError):
        fw.get(parent.options(timeout=0.5).remote(str(tmp_path / "one")), timeout=10)
    wait_until((tmp_path / "one").exists, 10, "the end of the child")
    with pytest.raises(TaskTimeoutError):
        fw.get(orphan_maker.options(timeout=0.5).remote(str(tmp_path / "two")), timeout=10)
    wait_until((tmp_path / "two").exists, 10, "the end of the child with a longer timeout of its own")


@pytest.mark.slow
def test_a_task_that_swallows_its_interruption_is_killed(session: object) -> None:
    @fw.remote(timeout=0.2, max_retries=3)
    def stubborn() -> None:
        while True:
            try:
                time.sleep(1e6)
            except BaseException:
                pass

    with pytest.raises(TaskTimeoutError):
        fw.get(stubborn.remote(), timeout=20)
    assert fw.get([sleep.remote(0) for _ in range(10)], timeout=20) == [0] * 10


@pytest.mark.slow
def test_a_timeout_covers_all_attempts(session: object, attempts: Attempts) -> None:
    @fw.remote(
        timeout=0.5, max_retries=-1, retry_exceptions=True, retry_policy=fw.RetryPolicy(0.05, jitter=0.0)
    )
    def failing() -> None:
        attempts.note()
        raise ValueError

    with pytest.raises(TaskTimeoutError):
        fw.get(failing.remote(), timeout=10)
    assert len(attempts.times()) >= 2


# ---- max_calls ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("max_calls", "count"), [(1, 30), (7, 200)])
def test_max_calls(session: object, max_calls: int, count: int) -> None:
    @fw.remote(max_calls=max_calls)
    def pid(index: int) -> tuple[int, int]:
        return index, os.getpid()

    results = fw.get([pid.remote(i) for i in range(count)], timeout=100)
    assert [index for index, _ in results] == list(range(count))
    uses: dict[int, int] = {}
    for _, process in results:
        uses[process] = uses.get(process, 0) + 1
    assert max(uses.values()) <= max_calls


@pytest.mark.slow
def test_max_calls_with_errors_and_nested_tasks(session: object) -> None:
    @fw.remote(max_calls=2)
    def work(index: int) -> int:
        if index % 3 == 0:
            raise ValueError(index)
        return index + fw.get(sleep.remote(0))

    refs = [work.remote(i) for i in range(24)]
    for i, ref in enumerate(refs):
        if i % 3 == 0:
            with pytest.raises(ValueError):
                fw.get(ref, timeout=60)
        else:
            assert fw.get(ref, timeout=60) == i


@fw.remote(num_cpus=1, max_calls=1)
def owner_of(value: object, inner: list[Any] | None = None) -> tuple[int, list[Any]]:
    """Its worker is used up, and owns what is in its result."""
    return os.getpid(), [fw.put([value, *(inner or [])]), sleep.remote(0)]


@fw.remote(num_cpus=1, max_calls=1)
def its_pid() -> int:
    return os.getpid()


@pytest.mark.slow
def test_a_used_up_worker_stays_for_what_it_owns(session: object) -> None:
    everything = fw.cluster_resources()["CPU"]
    mine = fw.put("held by the value alone, soon")
    pid, refs = fw.get(owner_of.remote("small", [mine]), timeout=20)
    large_pid, large = fw.get(owner_of.remote(bytes(1 << 20)), timeout=20)
    del mine
    # They hold no resources, and get nothing to do any more.
    wait_until(lambda: fw.available_resources().get("CPU") == everything, 20, "their leases end")
    others = fw.get([its_pid.remote() for _ in range(6)], timeout=30)
    assert len({pid, large_pid, *others}) == 8
    assert psutil.pid_exists(pid) and psutil.pid_exists(large_pid)
    text, nested = fw.get(refs[0], timeout=10)
    assert (text, fw.get(nested, timeout=10)) == ("small", "held by the value alone, soon")
    assert fw.get(large[0], timeout=10) == [bytes(1 << 20)]
    fw.get([refs[1], large[1]], timeout=10)
    del refs, nested
    wait_until(lambda: not psutil.pid_exists(pid), 20, "it ends when nobody needs it")
    assert psutil.pid_exists(large_pid)
    del large
    wait_until(lambda: not psutil.pid_exists(large_pid), 20, "the other, too")


@pytest.mark.slow
def test_a_used_up_worker_stays_for_the_tasks_that_it_has_submitted(session: object, tmp_path: Path) -> None:
    @fw.remote(num_cpus=0)
    def later(path: str) -> None:
        wait_until(lambda: os.path.exists(path + ".go"), 30, "the word")
        Path(path).touch()

    @fw.remote(num_cpus=0, max_calls=1)
    def submit(path: str) -> None:
        later.remote(path)

    path = str(tmp_path / "done")
    fw.get(submit.remote(path), timeout=20)
    fw.get(its_pid.remote(), timeout=20)
    Path(path + ".go").touch()
    wait_until(lambda: os.path.exists(path), 20, "a task of a worker that is used up runs to its end")
