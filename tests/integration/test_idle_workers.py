"""What ends when nobody needs it, and what does not: idle workers, and zygotes for load-time variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import framework as fw
from framework._base import limits
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

kept: list[object] = []


@pytest.fixture
def node(session_root: Path) -> Iterator[psutil.Process]:
    """The node process of a session with 1 CPU, which keeps one idle worker."""
    with fw.init(num_cpus=1, namespace="idle", log_to_driver=False):
        yield psutil.Process(fw.nodes()[0]["pid"])


def workers(node: psutil.Process) -> int:
    """Worker processes, of all zygotes."""
    return sum(len(zygote.children()) for zygote in node.children())


@fw.remote(num_cpus=0)
class Gate:
    def __init__(self, needed: int) -> None:
        self.needed = needed

    def arrive(self) -> int:
        self.needed -= 1
        return self.needed


@fw.remote(num_cpus=0)
class Counter:
    def add(self) -> int:
        kept.append(None)
        return len(kept)


@fw.remote(num_cpus=0)
def together(gate: object, keep: bool) -> int:
    """Tasks that run at the same time, hence in as many workers; one keeps an actor in a module's global."""
    if keep:
        module = sys.modules.setdefault("kept_by_a_worker", type(sys)("kept_by_a_worker"))
        module.actor = Counter.options(name="kept").remote()  # type: ignore[attr-defined]
        module.ref = fw.put("only for this worker itself")  # type: ignore[attr-defined]
        fw.get(module.actor.add.remote())  # type: ignore[attr-defined]
    fw.get(gate.arrive.remote())  # type: ignore[attr-defined]
    while fw.get(gate.arrive.options(name="look").remote()) > -100:  # type: ignore[attr-defined]
        pass
    return os.getpid()


def test_a_worker_that_keeps_an_actor_is_not_reaped(node: psutil.Process) -> None:
    gate = Gate.remote(4)
    pids = fw.get([together.remote(gate, n == 0) for n in range(4)], timeout=30)
    assert len(set(pids)) == 4
    del gate
    # The gate, three of the four and all others but one end; the fourth stays, with its actor.
    wait_until(lambda: workers(node) <= 3, 15, "the end of the workers that nobody needs")
    counter = fw.get_actor("kept")
    for turn in range(2, 5):
        assert fw.get(counter.add.remote(), timeout=20) == turn
    assert psutil.pid_exists(pids[0])
    fw.kill(counter)
    wait_until(lambda: not psutil.pid_exists(pids[0]) or workers(node) <= 1, 15, "its end, without its actor")


@fw.remote
def threads() -> tuple[str, int]:
    return os.environ["OMP_NUM_THREADS"], os.getppid()


def test_zygotes_for_load_time_variables_are_bounded(node: psutil.Process) -> None:
    seen = set()
    for number in range(2, limits.MAX_ZYGOTES + 5):
        task = threads.options(runtime_env={"env_vars": {"OMP_NUM_THREADS": str(number)}})
        value, zygote = fw.get(task.remote(), timeout=30)
        assert value == str(number)
        seen.add(zygote)
    assert len(seen) == limits.MAX_ZYGOTES + 3, "one for each"
    wait_until(
        lambda: len(node.children()) <= limits.MAX_ZYGOTES + 1, 15, "the end of those that are too many"
    )
    # One that is still there is used again, one that has ended is started again.
    for number in (2, limits.MAX_ZYGOTES + 4):
        task = threads.options(runtime_env={"env_vars": {"OMP_NUM_THREADS": str(number)}})
        value, zygote = fw.get(task.remote(), timeout=30)
        assert value == str(number) and (zygote in seen) == (number > 2)
    assert fw.get(threads.remote(), timeout=20)[0] == "1"


@fw.remote(max_calls=1)
def put_once() -> tuple[int, list[object]]:
    return os.getpid(), [fw.put("mine")]


def test_a_used_up_worker_that_owns_objects_does_not_outlive_its_session(node: psutil.Process) -> None:
    pid, refs = fw.get(put_once.remote(), timeout=20)  # type: ignore[misc]
    wait_until(lambda: fw.available_resources().get("CPU") == 1, 20, "its lease ends")
    assert fw.get(refs, timeout=10) == ["mine"]
    fw.shutdown()
    wait_until(lambda: not psutil.pid_exists(pid), 20, "it ends with the session")
