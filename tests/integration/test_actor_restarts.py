"""Restarts of actors, and what becomes of the calls."""

from __future__ import annotations

import os
from typing import Any

import pytest

import framework as fw
from framework.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
)
from support.actors import Counter, get
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_restart_makes_it_anew_and_in_flight_calls_are_unavailable(session: object) -> None:
    counter = Counter.options(max_restarts=1).remote(10)
    assert get(counter.inc.remote()) == 11
    first = get(counter.pid.remote())
    with pytest.raises(
        ActorUnavailableError, match=r"die\(\) may or may not have run.*code 3.*max_task_retries"
    ):
        get(counter.die.remote())
    assert get(counter.inc.remote()) == 11
    assert get(counter.pid.remote()) != first
    with pytest.raises(ActorDiedError, match=r"restarted 1 time\(s\) \(max_restarts=1\)"):
        get(counter.die.remote())


def test_max_task_retries_repeats_calls_in_order(session: object, tmp_path: Any) -> None:
    mark = tmp_path / "died"

    @fw.remote(max_restarts=2, max_task_retries=1)
    class Phoenix:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def add(self, n: int) -> list[int]:
            if n == 5 and not mark.exists():
                mark.touch()
                os._exit(1)
            self.seen.append(n)
            return self.seen

    phoenix = Phoenix.remote()
    results = get([phoenix.add.remote(n) for n in range(20)])
    # Calls that were done may be made again where the answer died with the process, but in order, and none is
    # left out.
    assert results[-1] == list(range(20))[-len(results[-1]) :] and len(results[-1]) >= 15
    assert [seen[-1] for seen in results] == list(range(20))


def test_kill_with_restart(session: object) -> None:
    counter = Counter.options(max_restarts=1).remote()
    pid = get(counter.pid.remote())
    fw.kill(counter, no_restart=False)

    def restarted() -> bool:
        try:
            return bool(get(counter.pid.remote()) != pid)
        except ActorUnavailableError:
            return False

    wait_until(restarted, what="the restart")


def test_restart_with_large_and_nested_arguments(session: object) -> None:
    @fw.remote(max_restarts=1)
    class Holder:
        def __init__(self, data: bytes, nested: list[Any]) -> None:
            self.sizes = (len(data), fw.get(nested[0]))

        def get(self) -> tuple[int, int]:
            return self.sizes

        def die(self) -> None:
            os._exit(1)

    holder = Holder.remote(bytes(300_000), [fw.put(5)])
    assert get(holder.get.remote()) == (300_000, 5)
    with pytest.raises(ActorUnavailableError):
        get(holder.die.remote())
    assert get(holder.get.remote()) == (300_000, 5)
