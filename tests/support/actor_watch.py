"""Actors of test_actor_moments.py and test_actor_races.py, as the tests see them."""

from __future__ import annotations

import os
from typing import Any

import pytest

import framework as fw
from framework.exceptions import ActorDiedError
from support.actor_moments import AsyncSubject, Subject
from support.actor_programs import LIMIT, read
from support.leaks import wait_until

KINDS = ["sync", "async", "threads"]


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


def start(log: str, *args: Any, kind: str = "sync", **options: Any) -> Any:
    if kind == "threads":
        options["max_concurrency"] = 3
    cls: Any = AsyncSubject if kind == "async" else Subject
    return fw.remote(num_cpus=0)(cls).options(**options).remote(log, *args)


def inits(log: str) -> list[int]:
    """The pids of all incarnations so far."""
    return [int(line[2]) for line in read(log) if line[0] == "init"]


def runs(log: str, number: object) -> int:
    return sum(line[:2] == ["call", str(number)] for line in read(log))


def begun(log: str, incarnation: int) -> int:
    """Wait for the constructor of this incarnation to begin; its pid."""
    wait_until(lambda: len(inits(log)) > incarnation, LIMIT, f"incarnation {incarnation}")
    return inits(log)[incarnation]


def called(log: str, number: object, times: int = 1) -> None:
    wait_until(lambda: runs(log, number) >= times, LIMIT, f"call {number}")


def gone(pid: int) -> None:
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), LIMIT, f"the end of process {pid}")


def died(ref: Any, match: str) -> None:
    with pytest.raises(ActorDiedError, match=match):
        get(ref)
