"""How memory is measured, and when the monitor acts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from framework._base import limits
from framework._node import memory, memory_monitor
from framework._node.memory import memory_use, private_memory
from framework._node.memory_monitor import MemoryMonitor
from framework._node.zygote_client import describe_exit
from framework._state.memory import Candidate

MIB = 2**20


def test_what_is_used_and_what_there_is() -> None:
    used, total = memory_use()
    assert 0 < used < total


def test_a_control_group_with_a_limit_counts_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_group_use", lambda: (300, 1000))
    assert memory_use() == (300, 1000)
    monkeypatch.setattr(memory, "_group_use", lambda: (300, 1 << 59))
    assert memory_use()[1] < 1 << 59, "a limit beyond the machine is none"


@pytest.mark.slow
def test_private_memory_leaves_out_what_is_shared() -> None:
    """In a process of its own: here, what earlier tests have left may be freed at any moment."""
    program = (
        "import mmap, os\n"
        "from framework._node.memory import private_memory\n"
        "figures = [private_memory(os.getpid())]\n"
        f"shared = mmap.mmap(-1, {64 * MIB})\n"
        f"for at in range(0, {64 * MIB}, {MIB}): shared[at : at + {MIB}] = b'x' * {MIB}\n"
        "figures.append(private_memory(os.getpid()))\n"
        f"mine = bytearray(b'x') * {64 * MIB}\n"
        "figures.append(private_memory(os.getpid()))\n"
        "print(*figures)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, with_shared, with_mine = map(int, done.stdout.split())
    assert before > MIB
    assert with_shared < before + 32 * MIB
    assert with_mine > with_shared + 32 * MIB


def test_a_process_that_is_gone_has_none() -> None:
    assert private_memory(2**22 + 1) == 0


def test_only_what_somebody_else_killed_is_said_to_be_killed_by_something() -> None:
    assert "something killed it" in describe_exit(9)
    assert describe_exit(9, by_us=True) == "killed by signal 9 (SIGKILL)"
    assert "compiled code" in describe_exit(11)
    assert describe_exit(3 << 8, by_us=True) == "exited with code 3"


class _Handle:
    def __init__(self, loop: _Loop) -> None:
        self._loop = loop

    def cancel(self) -> None:
        self._loop.due = None


class _Loop:
    """One timer and a clock, both moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: Callable[[], None] | None = None

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Handle:
        assert self.due is None
        self.due = callback
        return _Handle(self)

    def turn(self) -> bool:
        """The timer fires; False when none is set."""
        if self.due is None:
            return False
        self.now += limits.MEMORY_POLL
        due, self.due = self.due, None
        due()
        return True


class _Node:
    """Workers that run something, and those that were ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, threshold: float = 0.9) -> None:
        self.loop = _Loop()
        self.use = (50, 100)
        self.running = [Candidate(b"a", "task a", True, False, 1.0, 500 * MIB)]
        self.ended: list[tuple[bytes, str]] = []
        monkeypatch.setattr(memory_monitor, "memory_use", lambda: self.use)
        loop: Any = self.loop
        self.monitor = MemoryMonitor(
            loop, threshold, lambda _: self.running, lambda w, t: self.ended.append((w, t))
        )


def test_the_monitor_looks_only_while_something_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    node = _Node(monkeypatch)
    assert not node.loop.turn()
    node.monitor.wake()
    node.monitor.wake()
    assert node.loop.turn()
    assert node.loop.turn()
    node.running = []
    assert node.loop.turn()
    assert not node.loop.turn()
    assert node.ended == []


def test_one_worker_is_ended_and_then_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    node = _Node(monkeypatch)
    node.monitor.wake()
    node.use = (95, 100)
    node.loop.turn()
    ((worker, text),) = node.ended
    assert worker == b"a"
    assert "task a used 500 MiB" in text
    assert "threshold of 90%" in text
    while node.loop.now < 2 * limits.MEMORY_POLL + limits.MEMORY_RECOVERY:
        assert len(node.ended) == 1 + (node.loop.now >= limits.MEMORY_POLL + limits.MEMORY_RECOVERY)
        node.loop.turn()
    assert len(node.ended) == 2, "still short of memory: one more"


def test_it_does_not_wait_when_the_memory_of_the_last_one_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    node = _Node(monkeypatch)
    node.monitor.wake()
    node.use = (95, 100)
    node.loop.turn()
    node.loop.turn()
    assert len(node.ended) == 1
    node.monitor.ended()
    node.loop.turn()
    assert len(node.ended) == 2


def test_small_workers_and_unknown_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    node = _Node(monkeypatch)
    node.running = [node.running[0]._replace(rss=limits.MEMORY_VICTIM_FLOOR - 1)]
    node.use = (99, 100)
    node.monitor.wake()
    node.loop.turn()
    assert node.ended == []
    node.use = (0, 0)
    node.loop.turn()
    assert not node.loop.turn(), "where the system does not tell, nobody looks again"


def test_a_threshold_of_one_and_a_stopped_monitor_do_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    off = _Node(monkeypatch, threshold=1.0)
    off.monitor.wake()
    assert not off.loop.turn()
    node = _Node(monkeypatch)
    node.monitor.wake()
    node.monitor.stop()
    node.monitor.wake()
    assert not node.loop.turn()
