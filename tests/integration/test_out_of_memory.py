"""The node runs out of memory: one worker is ended, the cheapest to run again, and its owner is told.

The threshold is a little above what the machine uses at the time. What must be ended grows until it is, so
that a machine that frees memory meanwhile does not matter; what must survive is below the size that is worth
ending.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import framework as fw
from framework._base import limits
from framework._node.memory import memory_use
from framework.exceptions import ActorDiedError, OutOfMemoryError
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MIB = 2**20
ROOM = 600 * MIB  # between the present use and the threshold
MOST = 5_000 * MIB  # what a task that should be ended takes at most
LIMIT = 60


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


@pytest.fixture
def tight(session_root: Path) -> Iterator[Any]:
    """A session that ends workers when `ROOM` more bytes are in use than now."""
    used, total = memory_use()
    if total == 0 or total - used < MOST + 2 * ROOM:
        pytest.skip("too little free memory for a test that uses it up")
    with fw.init(num_cpus=2, log_to_driver=False, memory_usage_threshold=(used + ROOM) / total) as context:
        yield context


def grow() -> str:
    """Take memory until somebody stops it."""
    taken = []
    while sum(map(len, taken)) < MOST:
        taken.append(bytearray(b"x") * (32 * MIB))
        time.sleep(0.02)
    return "nobody stopped it"


def attempts(path: Path) -> int:
    """Count one attempt, and return how many there have been."""
    with path.open("a") as file:
        file.write("x")
    return path.stat().st_size


def test_a_task_without_retries_fails_with_all_the_facts(tight: Any) -> None:
    @fw.remote(max_retries=0)
    def hungry() -> str:
        return grow()

    with pytest.raises(OutOfMemoryError) as caught:
        get(hungry.remote())
    text = str(caught.value)
    assert "hungry()" in text
    assert "MiB of" in text
    assert "over the threshold of" in text
    assert "Top consumers: task in worker process" in text
    assert "memory_usage_threshold" in text, "what to do"
    assert "tried 1 time" in text
    assert "something killed it" not in text, "we did, and we say so"
    used = int(text.split(" used ")[1].split(" MiB")[0])
    assert used >= limits.MEMORY_VICTIM_FLOOR / MIB


def test_retries_for_memory_have_a_budget_of_their_own(tight: Any, tmp_path: Path, caplog: Any) -> None:
    @fw.remote(max_retries=1)
    def better_later(path: Path) -> int:
        attempt = attempts(path)
        if attempt <= 2:
            grow()
        return attempt

    with caplog.at_level(logging.WARNING, "framework"):
        assert get(better_later.remote(tmp_path / "n")) == 3, "twice ended for memory with max_retries=1"
    assert "better_later() is run again after its worker was ended: " in caplog.text


def test_the_budget_ends(tight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OOM_RETRIES", 1)

    @fw.remote(max_retries=-1)
    def never_better(path: Path) -> str:
        attempts(path)
        return grow()

    with pytest.raises(OutOfMemoryError, match=r"never_better\(\).*It was tried 2 time"):
        get(never_better.remote(tmp_path / "n"))
    assert (tmp_path / "n").stat().st_size == 2


def test_a_generator_begins_again(tight: Any, tmp_path: Path) -> None:
    @fw.remote(max_retries=1)
    def items(path: Path) -> Iterator[int]:
        attempt = attempts(path)
        for number in range(200):
            yield number
            if number == 20 and attempt == 1:
                grow()

    assert [get(ref) for ref in items.remote(tmp_path / "n")] == list(range(200))
    assert (tmp_path / "n").stat().st_size == 2


def test_an_actor_dies_of_it_with_the_reason(tight: Any) -> None:
    @fw.remote
    class Hungry:
        def eat(self) -> str:
            return grow()

    actor = Hungry.remote()
    with pytest.raises((ActorDiedError, OutOfMemoryError), match="ran out of memory.*actor Hungry") as caught:
        get(actor.eat.remote())
    assert "something killed it" not in str(caught.value)


def test_an_actor_that_may_be_restarted_is(tight: Any, tmp_path: Path) -> None:
    @fw.remote(max_restarts=1, max_task_retries=1)
    class Hungry:
        def eat(self, path: Path) -> int:
            attempt = attempts(path)
            if attempt == 1:
                grow()
            return attempt

    actor = Hungry.remote()
    assert get(actor.eat.remote(tmp_path / "n")) == 2


def test_what_may_not_be_run_again_is_spared(tight: Any, tmp_path: Path) -> None:
    """The one with retries goes first, although it is the smaller one and not the one that grows."""

    @fw.remote(max_retries=3)
    def again(path: Path) -> int:
        attempt = attempts(path / "n")
        if attempt == 1:
            block = bytearray(b"x") * (2 * limits.MEMORY_VICTIM_FLOOR)
            (path / "pid.new").write_text(str(os.getpid()))
            (path / "pid.new").rename(path / "pid")
            time.sleep(LIMIT)
            del block
        return attempt

    @fw.remote(max_retries=0)
    def once(path: Path) -> str:
        pid = int((path / "pid").read_text())
        taken = []
        while psutil.pid_exists(pid):
            assert sum(map(len, taken)) < MOST
            taken.append(bytearray(b"x") * (32 * MIB))
            time.sleep(0.02)
        return "spared"

    first = again.remote(tmp_path)
    wait_until((tmp_path / "pid").exists, LIMIT)
    assert get(once.remote(tmp_path)) == "spared"
    assert get(first) == 2


def test_small_workers_are_left_alone(tight: Any) -> None:
    """Whoever uses up the memory, ending what is small helps nobody: here it is the driver."""

    @fw.remote(max_retries=0)
    def small(path: str) -> str:
        time.sleep(4 * limits.MEMORY_POLL + limits.MEMORY_RECOVERY)
        return path

    used, _ = memory_use()
    ref = small.remote("done")
    mine = bytearray(b"x") * (ROOM * 2)
    assert memory_use()[0] > used
    assert get(ref) == "done"
    assert len(mine) == ROOM * 2


def test_an_idle_session_is_left_alone(tight: Any) -> None:
    @fw.remote
    class Kept:
        def pid(self) -> int:
            return os.getpid()

    actor = Kept.remote()
    pid = get(actor.pid.remote())
    mine = bytearray(b"x") * (ROOM * 2)
    time.sleep(4 * limits.MEMORY_POLL)
    assert get(actor.pid.remote()) == pid
    del mine
