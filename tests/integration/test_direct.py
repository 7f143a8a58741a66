"""One call at a time, whose answer the waiting thread reads itself, past the loop: the same outcomes as
otherwise, in every odd moment."""

from __future__ import annotations

import concurrent.futures
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework._net import takeover
from framework.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    NotInitializedError,
    TaskCancelledError,
    WorkerCrashedError,
)
from support.actors import Counter, Gate, get

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WARM = 20  #: calls after which the threads read for themselves


def count_direct() -> list[int]:
    """From now on, in this process: one item for every frame that a thread takes."""
    taken: list[int] = []
    original = takeover.Reading.skip

    def skip(reading: takeover.Reading, turn: takeover.Turn, size: int) -> None:
        taken.append(size)
        original(reading, turn, size)

    takeover.Reading.skip = skip  # type: ignore[method-assign]
    return taken


@fw.remote(num_cpus=0)
class Worker:
    """All kinds of calls."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[Any] = []

    def next(self) -> int:
        self.count += 1
        return self.count

    def same(self, value: Any) -> Any:
        return value

    def keep(self, value: Any) -> None:
        self.kept.append(value)

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def count_direct(self) -> None:
        self.taken = count_direct()

    def direct(self) -> int:
        return len(self.taken)

    def many(self, count: int) -> Iterator[int]:
        yield from range(count)

    def fails(self, text: str) -> None:
        raise ValueError(text)

    def spins(self, gate: Any) -> None:
        fw.get(gate.open.remote())
        while True:
            pass

    def dies(self) -> None:
        os._exit(3)


@fw.remote
def same(value: Any) -> Any:
    return value


@fw.remote
def spins(gate: Any) -> None:
    fw.get(gate.open.remote())
    while True:
        pass


def warm(worker: Any) -> None:
    for _ in range(WARM):
        get(worker.same.remote(1))


@pytest.fixture
def worker(session: object) -> Any:
    made = Worker.remote()
    warm(made)
    return made


@pytest.mark.skipif(not takeover.AVAILABLE, reason="needs epoll")
def test_threads_read_for_themselves(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both sides, if not always: a busy machine delays a thread, so that its loop is the first."""
    calls = 400
    monkeypatch.setattr(takeover.Reading, "skip", takeover.Reading.skip)  # to be put back
    here = count_direct()
    get(worker.count_direct.remote())
    for _ in range(calls):
        fw.get(worker.next.remote())
    assert len(here) > calls / 10
    assert get(worker.direct.remote()) > calls / 10
    here.clear()
    for _ in range(calls):
        fw.get(same.remote(1))
    assert len(here) > calls / 10


def test_values_of_all_kinds(worker: Any) -> None:
    ref = fw.put("inside")
    sizes = (0, 1, 100, 10_000, 16_300, 16_384, 50_000, 99_000, 300_000)
    kinds = [None, True, 7, -1.5, "text", b"bytes", [1, [2]], {"a": {1, 2}}, *(b"x" * size for size in sizes)]
    for _ in range(3):
        for kind in kinds:
            assert fw.get(worker.same.remote(kind)) == kind
            assert fw.get(same.remote(kind)) == kind
            assert fw.get(fw.get(worker.same.remote([ref]))[0]) == "inside"
            with pytest.raises(ValueError, match="wrong"):
                fw.get(worker.fails.remote("wrong"))
            assert [fw.get(item) for item in worker.many.options(num_returns="streaming").remote(3)] == [
                0,
                1,
                2,
            ]


def test_references_go_when_they_are_dropped(worker: Any) -> None:
    """Also while the loops, which count them, are not woken by the calls."""
    owned = Counter.options(num_cpus=0).remote()
    pid = get(owned.pid.remote())
    get(worker.keep.remote([owned]))
    warm(worker)
    del owned
    for _ in range(WARM):
        get(worker.next.remote())
    get(worker.__ray_call__.remote(lambda self: self.kept.clear()))
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline
        get(worker.next.remote())


def test_exceptions_anywhere_in_get(session: object) -> None:
    """As Ctrl-C raises them. What was asked for is there at the next get, and all goes on as before."""

    class StrikeError(Exception):
        pass

    armed = False

    def strike(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise StrikeError

    def get_or_be_struck(ref: Any) -> Any:
        nonlocal armed
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 300e-6))
        try:
            try:
                armed = True
                return fw.get(ref)
            finally:
                armed = False
        except StrikeError:
            return None

    dice, worker = random.Random(4), Worker.remote()
    strikes = calls = 0
    before = signal.signal(signal.SIGALRM, strike)
    try:
        while strikes < 400:
            actor = dice.random() < 0.5
            calls += actor
            wanted = calls if actor else dice.randrange(1000)
            ref = worker.next.remote() if actor else same.remote(wanted)
            found = get_or_be_struck(ref)
            strikes += found is None
            assert (get(ref) if found is None else found) == wanted
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    everything = fw.cluster_resources()["CPU"]
    deadline = time.monotonic() + 20
    while fw.available_resources().get("CPU") != everything:
        assert time.monotonic() < deadline, "a lease was lost"
        time.sleep(0.01)


def test_a_signal_handler_that_calls_the_same_actor(worker: Any) -> None:
    """The thread that is to read the answer waits for another one, above itself, that comes after it."""
    found: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: found.append(get(worker.next.remote())))
    try:
        ref = worker.sleep.remote(0.3)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert get(ref) == "slept"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert found == [1]


def test_timeouts(worker: Any) -> None:
    slow = worker.sleep.remote(0.3)
    with pytest.raises(GetTimeoutError, match=r"after 0.05 s"):
        fw.get(slow, timeout=0.05)
    with pytest.raises(GetTimeoutError):
        fw.get(slow, timeout=0)
    behind = worker.next.remote()
    assert get(slow) == "slept"
    assert get(behind) == 1
    for number in range(2, WARM):
        assert fw.get(worker.next.remote(), timeout=20) == number


def test_threads_that_call_one_actor(worker: Any) -> None:
    def calls(count: int) -> list[int]:
        return [fw.get(worker.next.remote(), timeout=20) for _ in range(count)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(calls, [100, 150, 200, 250]))
    assert all(numbers == sorted(numbers) for numbers in found)
    assert sorted(number for numbers in found for number in numbers) == list(range(1, 701))


def test_threads_with_actors_and_tasks_of_their_own(session: object) -> None:
    def run(seed: int) -> None:
        dice, mine = random.Random(seed), Worker.remote()
        for number in range(1, 100):
            assert fw.get(mine.next.remote(), timeout=20) == number
            if dice.random() < 0.5:
                assert fw.get(same.remote(number), timeout=20) == number
            if dice.random() < 0.1:
                assert fw.get([same.remote(n) for n in range(5)], timeout=20) == list(range(5))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))


def test_others_wait_for_the_same_object(worker: Any) -> None:
    for _ in range(WARM):
        ref = worker.same.remote(5)
        future = ref.future()
        assert fw.get(ref) == 5
        assert future.result(20) == 5
    slow = worker.sleep.remote(0.1)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(get, [slow] * 3)) == ["slept"] * 3


def test_a_result_that_another_task_waits_for(worker: Any) -> None:
    for number in range(WARM):
        ref = worker.same.remote(number)
        after = same.remote(ref)
        assert fw.get(ref) == number
        assert get(after) == number


@pytest.mark.parametrize("which", ["actor", "task"])
def test_cancelled_while_a_thread_reads(worker: Any, which: str) -> None:
    for _ in range(WARM):
        get(same.remote(1))
    gate = Gate.options(num_cpus=0).remote()
    ref = worker.spins.remote(gate) if which == "actor" else spins.remote(gate)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(get, ref)
        get(gate.wait.remote())
        fw.cancel(ref)
        with pytest.raises(TaskCancelledError):
            future.result(20)
    if which == "actor":
        assert get(worker.next.remote()) == 1
    assert get(same.remote(2)) == 2


def test_the_actor_dies_while_a_thread_reads(session: object) -> None:
    for end in ("kill", "exit"):
        worker, gate = Worker.remote(), Gate.options(num_cpus=0).remote()
        warm(worker)
        ref = worker.spins.remote(gate) if end == "kill" else worker.dies.remote()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            future = pool.submit(get, ref)
            if end == "kill":
                get(gate.wait.remote())
                fw.kill(worker)
            with pytest.raises(ActorDiedError):
                future.result(20)
        with pytest.raises(ActorDiedError):
            get(worker.next.remote())


def test_the_worker_dies_while_a_thread_reads(session: object, tmp_path: Path) -> None:
    @fw.remote(max_retries=1)
    def dies(path: str) -> str:
        if os.path.exists(path):
            os.unlink(path)
            os._exit(3)
        return "second"

    for _ in range(WARM):
        get(same.remote(1))
    path = tmp_path / "once"
    path.touch()
    with pytest.raises(WorkerCrashedError):
        get(dies.options(max_retries=0).remote(str(path)))
    for _ in range(2):
        path.touch()
        assert get(dies.remote(str(path))) == "second"


def test_a_restarted_actor_is_called_on(session: object) -> None:
    counter: Any = Counter.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    for _ in range(3):
        for number in range(1, WARM):
            assert get(counter.inc.remote()) == number
        os.kill(get(counter.pid.remote()), signal.SIGKILL)
        while get(counter.inc.remote()) != 1:
            pass
        get(counter.inc.remote(-1))


def test_calls_between_actors(session: object) -> None:
    """A worker that waits directly lends out its CPU, as always, and can be interrupted."""

    @fw.remote(num_cpus=1)
    def relay(count: int) -> int:
        mine = Worker.remote()
        return sum(fw.get(mine.next.remote()) for _ in range(count)) + fw.get(same.remote(0))

    assert get([relay.remote(50) for _ in range(3)]) == [1275] * 3

    @fw.remote(num_cpus=1)
    def waits(gate: Any, count: int) -> None:
        mine = Worker.remote()
        warm(mine)
        fw.get(mine.spins.remote(gate))

    gate = Gate.options(num_cpus=0).remote()
    ref = waits.remote(gate, 1)
    get(gate.wait.remote())
    fw.cancel(ref)
    with pytest.raises(TaskCancelledError):
        get(ref)


def test_a_fork_while_a_thread_reads(worker: Any) -> None:
    """The child shares the descriptors, and disturbs nobody."""
    slow = worker.sleep.remote(0.2)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(get, slow)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        assert future.result(20) == "slept"
    assert get(worker.next.remote()) == 1


def test_shutdown_while_a_thread_reads(session: object) -> None:
    """(The last one of this module.)"""
    worker, gate = Worker.remote(), Gate.options(num_cpus=0).remote()
    warm(worker)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(get, worker.spins.remote(gate))
        get(gate.wait.remote())
        fw.shutdown()
        with pytest.raises(NotInitializedError):
            future.result(20)
