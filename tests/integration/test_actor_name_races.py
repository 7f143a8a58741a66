"""Many processes that want an actor of the same name at the same time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.exceptions import ActorDiedError
from support.actor_moments import contend, open_gate
from support.actor_programs import LIMIT, read
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PROCESSES = 8


def count(log: str, word: str) -> int:
    return sum(line[0] == word for line in read(log))


def run(log: str, name: str, options: dict[str, Any], expected: int) -> list[tuple[int, str, int]]:
    """What became of the contenders; `expected` of them have the actor."""
    calls = [contend.remote(log, name, place, options) for place in range(PROCESSES)]
    wait_until(lambda: count(log, "here") == PROCESSES, LIMIT, "all processes")
    open_gate(log, "go")
    wait_until(lambda: count(log, "met") == expected, LIMIT, "all to have it")
    open_gate(log, "over")
    found: list[tuple[int, str, int]] = fw.get(calls, timeout=LIMIT)
    assert len({pid for pid, _, _ in found}) == PROCESSES, "they are different processes"
    return found


@pytest.mark.parametrize("lifetime", [None, "detached"])
def test_get_if_exists_makes_one(session: object, tmp_path: Path, lifetime: str | None) -> None:
    for turn in range(3):
        log, name = str(tmp_path / f"log{turn}"), f"one-{lifetime}-{turn}"
        options = {"get_if_exists": True, "lifetime": lifetime, "max_restarts": 1}
        found = run(log, name, options, PROCESSES)
        assert {error for _, error, _ in found} == {""}
        assert len({actor for _, _, actor in found}) == 1
        assert count(log, "init") == 1, "no other was ever constructed"
        if lifetime == "detached":
            fw.kill(fw.get_actor(name))
        with pytest.raises(ValueError, match="no actor named"):
            wait_until(lambda: not fw.get_actor(name), LIMIT)  # noqa: B023 - until it is gone, with its handles


def test_without_get_if_exists_one_wins(session: object, tmp_path: Path) -> None:
    for turn in range(3):
        log, name = str(tmp_path / f"log{turn}"), f"wins-{turn}"
        found = run(log, name, {}, 1)
        errors = sorted(error for _, error, _ in found)
        assert errors[0] == "" and len([error for error in errors if error]) == PROCESSES - 1, errors
        assert count(log, "init") == 1
        assert not issubclass(ActorDiedError, ValueError), "a clash is an error of its own"
