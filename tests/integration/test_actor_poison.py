"""Calls under way when their actor dies: which are made again, and which never stop killing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.exceptions import ActorDiedError, ActorUnavailableError
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LIMIT = 60


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


class Worker:
    """Writes down what it begins."""

    def __init__(self, log: str) -> None:
        self.log = log

    def step(self, number: int) -> int:
        with open(self.log, "a") as file:
            file.write(f"{number} ")
        return number

    def hold(self, gate: str) -> None:
        self.step(-1)
        while not os.path.exists(gate):
            os.sched_yield()

    def pid(self) -> int:
        return os.getpid()

    def poison(self) -> None:
        self.step(-2)
        os._exit(7)


class AsyncWorker(Worker):
    async def calm(self, number: int) -> int:
        return number


def steps(log: Path) -> list[int]:
    return [int(word) for word in log.read_text().split()] if log.exists() else []


def test_calls_that_had_not_begun_are_made_by_the_next_incarnation(session: object, tmp_path: Path) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    actor = fw.remote(max_restarts=1)(Worker).remote(str(log))
    pid = get(actor.pid.remote())
    held = actor.hold.remote(str(gate))
    waiting = [actor.step.remote(i) for i in range(20)]
    wait_until(lambda: steps(log) == [-1], 10, "the call to begin")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorUnavailableError, match="may or may not have run"):
        get(held)
    assert get(waiting) == list(range(20)), "they needed no max_task_retries: they had not begun"
    assert steps(log) == [-1, *range(20)]


def test_those_that_had_not_begun_pay_nothing(session: object, tmp_path: Path) -> None:
    """Behind three deaths, a call with one retry has not used it."""
    log = tmp_path / "log"
    actor = fw.remote(max_restarts=-1, max_task_retries=1)(Worker).remote(str(log))
    poisons = [actor.poison.remote() for _ in range(3)]
    calls = [actor.step.remote(i) for i in range(5)]
    assert get(calls) == list(range(5))
    for poison in poisons:
        with pytest.raises(ActorUnavailableError):
            get(poison)
    assert steps(log) == [-2] * 6 + list(range(5))


def test_a_call_that_always_kills_is_not_made_for_ever(session: object, tmp_path: Path) -> None:
    log = tmp_path / "log"
    actor = fw.remote(max_restarts=-1, max_task_retries=-1)(Worker).remote(str(log))
    poison = actor.poison.remote()
    calls = [actor.step.remote(i) for i in range(5)]
    with pytest.raises(ActorDiedError, match=r"poison\(\) is not tried again: 10 times"):
        get(poison)
    assert get(calls) == list(range(5)), "the actor lives, and the calls behind it are done"
    assert steps(log) == [-2] * 10 + list(range(5))


def test_among_calls_that_run_at_the_same_time_the_killer_is_found(session: object, tmp_path: Path) -> None:
    log = tmp_path / "log"
    actor = fw.remote(max_restarts=-1, max_task_retries=-1)(AsyncWorker).remote(str(log))
    calls = []
    poison = None
    for i in range(20):
        calls.append(actor.calm.remote(i))
        if i == 10:
            poison = actor.poison.remote()
    assert get(calls) == list(range(20))
    with pytest.raises(ActorDiedError, match="is not tried again: 10 times"):
        get(poison)


def test_another_callers_crash(session: object, tmp_path: Path) -> None:
    """Two callers: the one whose call kills it twice, and one who has three retries."""
    log = tmp_path / "log"
    actor = fw.remote(max_restarts=-1, max_task_retries=3)(Worker).remote(str(log))
    get(actor.pid.remote())

    @fw.remote(num_cpus=0)
    def other(actor: Any) -> list[int]:
        return fw.get([actor.step.remote(i) for i in range(100, 110)])

    @fw.remote(num_cpus=0, max_retries=0)
    def killer(actor: Any) -> None:
        fw.get(actor.poison.options(max_task_retries=1).remote())

    waiting, killing = other.remote(actor), killer.remote(actor)
    with pytest.raises(ActorUnavailableError):
        get(killing)
    assert get(waiting) == list(range(100, 110))
