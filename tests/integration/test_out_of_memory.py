"""The node runs out of memory: one worker is ended, the cheapest to run again, and its owner is told.

The threshold is a little above what the machine uses at the time. What must be ended grows until it is, so
that a machine that frees memory meanwhile does not matter; what must survive is below the size that is worth
ending.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework._base import limits
from framework._node.memory import memory_use
from framework.exceptions import ActorDiedError, ActorOutOfMemoryError, OutOfMemoryError
from support import hungry
from support.hungry import MIB, MOST
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOM = 256 * MIB  # between the present use and the threshold
WATCHED = 3 * limits.MEMORY_POLL  # in this time the monitor has looked at least twice
LIMIT = 60


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before this process runs a task again that was ended for memory."""
    monkeypatch.setattr(limits, "MEMORY_RECOVERY", 0.05)


@pytest.fixture
def tight(session_root: Path) -> Iterator[Any]:
    """A session that ends workers when `ROOM` more bytes are in use than now."""
    used, total = memory_use()
    if total == 0 or total - used < MOST + 2 * ROOM:
        pytest.skip("too little free memory for a test that uses it up")
    with fw.init(num_cpus=2, log_to_driver=False, memory_usage_threshold=(used + ROOM) / total) as context:
        yield context


def test_a_task_without_retries_fails_with_all_the_facts(tight: Any) -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        get(hungry.hungry.remote())
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
    with caplog.at_level(logging.WARNING, "framework"):
        ref = hungry.better_later.remote(tmp_path / "n")
        assert get(ref) == 3, "twice ended for memory with max_retries=1"
    assert "better_later() is run again after its worker was ended: " in caplog.text


def test_the_budget_ends(tight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OOM_RETRIES", 1)
    with pytest.raises(OutOfMemoryError, match=r"never_better\(\).*It was tried 2 time"):
        get(hungry.never_better.remote(tmp_path / "n"))
    assert (tmp_path / "n").stat().st_size == 2


def test_a_generator_begins_again(tight: Any, tmp_path: Path) -> None:
    assert [get(ref) for ref in hungry.items.remote(tmp_path / "n")] == list(range(200))
    assert (tmp_path / "n").stat().st_size == 2


def test_an_actor_dies_of_it_with_the_reason(tight: Any) -> None:
    """Its callers, those who wait and those to come, may catch it as what they like."""
    actor = hungry.Hungry.remote()
    under_way, waiting = actor.eat.remote(), actor.pid.remote()
    for error in (OutOfMemoryError, ActorDiedError):
        with pytest.raises(error, match="ran out of memory: .*actor Hungry") as caught:
            get(under_way)
    assert type(caught.value) is ActorOutOfMemoryError
    assert caught.value.class_name == "Hungry"
    text = str(caught.value)
    assert "Top consumers: actor Hungry in worker process" in text
    assert int(text.split(" used ")[1].split(" MiB")[0]) >= limits.MEMORY_VICTIM_FLOOR / MIB
    assert "something killed it" not in text
    for ref in (waiting, actor.pid.remote()):
        with pytest.raises(ActorOutOfMemoryError, match="ran out of memory"):
            get(ref)


def test_an_actor_that_may_be_restarted_is(tight: Any, tmp_path: Path) -> None:
    actor = hungry.Hungry.options(max_restarts=1, max_task_retries=1).remote()
    assert get(actor.eat_once.remote(tmp_path / "n")) == 2
    with pytest.raises(ActorOutOfMemoryError, match="restarted 1 time"):
        get(actor.eat.remote())


def test_what_may_not_be_run_again_is_spared(tight: Any, tmp_path: Path) -> None:
    """The one with retries goes first, although it is the smaller one and not the one that grows."""
    first = hungry.sleeps_with_a_block.remote(tmp_path, 2 * limits.MEMORY_VICTIM_FLOOR, LIMIT)
    wait_until((tmp_path / "pid").exists, LIMIT)
    assert get(hungry.grows_until_that_one_is_gone.remote(tmp_path)) == "spared"
    assert get(first) == 2


def test_what_is_small_or_idle_is_left_alone(tight: Any) -> None:
    """Whoever uses up the memory, ending these helps nobody: here it is the driver."""
    actor = hungry.Hungry.remote()
    pid = get(actor.pid.remote())
    mine = bytearray(b"x") * (2 * ROOM)
    time.sleep(WATCHED)  # nothing runs
    assert get(hungry.sleeps.remote(WATCHED)) == "done"
    assert get(actor.pid.remote()) == pid
    assert len(mine) == 2 * ROOM
