"""Many short tasks."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

import framework as fw
from framework.chaos.ledger import AT_MOST_ONCE, RETRIES_USED, Wrong
from framework.chaos.marks import mark
from framework.chaos.workload import Setting, Workload

_SHORT, _SLOW, _CHAIN, _COUNTED = 150, 12, 8, 12
_LATE = 30.0  # seconds after which no second run of a task is expected any more


@fw.remote(max_retries=-1)
def square(x: int) -> int:
    """As short as can be."""
    return x * x


@fw.remote(max_retries=-1)
def slow(x: int, seconds: float) -> int:
    """Long enough to be struck in the middle."""
    time.sleep(seconds)
    return x


@fw.remote(max_retries=-1)
def successor(x: int) -> int:
    """Of a value, or of another task's."""
    return x + 1


@fw.remote(max_retries=-1)
def weigh(array: Any) -> int:
    """Reads what is in the object store."""
    return int(array.sum())


@fw.remote(max_retries=0)
def once(path: str, key: str) -> str:
    """May not run twice."""
    mark(path, key)
    time.sleep(0.15)
    return key


@fw.remote
def often(path: str, key: str) -> str:
    """May run four times: `max_retries` is 3 by default."""
    mark(path, key)
    time.sleep(0.15)
    return key


class Tasks(Workload):
    """Batches of tasks that take microseconds, tasks that are struck in the middle, chains, large arguments;
    tasks that may not run twice, and tasks that may run four times."""

    name = "tasks"
    text = "many short tasks, chains of them, large arguments, bounded retries"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._past: deque[tuple[float, str, list[str], int]] = deque()

    def round(self, number: int) -> None:
        """See the class."""
        draw = self.random.randrange
        numbers = [draw(1_000_000) for _ in range(_SHORT)]
        short = [square.remote(x) for x in numbers]
        pauses = [self.random.uniform(0.002, 0.02) for _ in range(_SLOW)]
        slowly = [slow.remote(index, pause) for index, pause in enumerate(pauses)]
        link = successor.remote(number)
        for _ in range(_CHAIN - 1):
            link = successor.remote(link)
        array = np.full(50_000 + draw(50_000), draw(100), np.int64)
        large = fw.put(array)
        weighed = [weigh.remote(large) for _ in range(4)]
        paths = [self.marks.new(f"once-{number}"), self.marks.new(f"often-{number}")]
        keys = [str(index) for index in range(_COUNTED)]
        ones = [once.remote(paths[0], key) for key in keys]
        repeatable = [often.remote(paths[1], key) for key in keys]
        self.expect(short, [x * x for x in numbers], "short task")
        self.expect(slowly, range(_SLOW), "slow task")
        self.expect([link], [number + _CHAIN], "chain")
        self.expect(weighed, [int(array.sum())] * 4, "sum of a large argument")
        good = self.expect_or(AT_MOST_ONCE, ones, keys, "task without retries")
        self.expect_or(RETRIES_USED, repeatable, keys, "task with three retries")
        runs = self.marks.read(paths[0])
        for key, answered in zip(keys, good, strict=True):
            if answered and runs[key] != 1:
                raise Wrong(f"a task that may run once has given its value and has run {runs[key]} times")
        now = time.monotonic()
        self._past.append((now, paths[0], keys, 1))
        self._past.append((now, paths[1], keys, 4))
        self._look_back(now - _LATE)

    def _look_back(self, before: float) -> None:
        """Later runs count, too: those of nodes that were declared dead and go on."""
        while self._past and self._past[0][0] <= before:
            _, path, keys, most = self._past.popleft()
            self.ledger.count_runs(keys, self.marks.take(path), most)

    def finish(self) -> None:
        """The last rounds are counted."""
        self._look_back(float("inf"))
