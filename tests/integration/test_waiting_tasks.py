"""Tasks that wait on one node: why they do, and which comes first."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.util.state import why_pending
from support.leaks import wait_until


@fw.remote
def hold(path: str) -> str:
    wait_until(lambda: os.path.exists(path), 30, path)
    return path


@fw.remote
def same(x: Any) -> Any:
    return x


def runs(ref: fw.ObjectRef[Any]) -> None:
    wait_until(lambda: "runs on" in why_pending(ref), 10, "it to run")


def test_why_it_waits(session: object, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    held = [hold.remote(gate) for _ in range(2)]
    for ref in held:
        runs(ref)
    waiting = same.remote(held[0])
    text = why_pending(waiting)
    assert "same() waits for 1 of its arguments" in text and held[0].hex() in text
    assert "made by hold(), which is at a worker" in text
    queued = same.options(num_cpus=2).remote(1)
    wait_until(lambda: "free" in why_pending(queued), 10, "the node to know")
    assert "needs {CPU: 2}" in why_pending(queued) and "{CPU: 0, memory" in why_pending(queued)
    Path(gate).touch()
    assert fw.get([waiting, queued]) == [gate, 1]
    assert "ready" in why_pending(waiting)


def test_why_calls_of_actors_wait(session: object, tmp_path: Path) -> None:
    @fw.remote
    class Slow:
        def hold(self, path: str) -> None:
            wait_until(lambda: os.path.exists(path), 30, path)

    gate = str(tmp_path / "gate")
    actor = Slow.remote()
    first, second = actor.hold.remote(gate), actor.hold.remote(gate)
    wait_until(lambda: "is at the actor Slow" in why_pending(second), 10, "both to be sent")
    Path(gate).touch()
    fw.get([first, second])


def test_why_is_for_references(session: object) -> None:
    with pytest.raises(TypeError, match="why_pending"):
        why_pending(5)
    assert "ready" in why_pending(fw.put(1))
    failed = same.options(max_retries=0).remote(1)
    fw.wait([failed])
    gone = same.options(resources={"unicorn": 1}).remote(1)
    fw.wait([gone])
    assert "failed" in why_pending(gone)


def test_priorities(session: object, tmp_path: Path) -> None:
    gate, log = str(tmp_path / "gate"), str(tmp_path / "log")

    @fw.remote(num_cpus=2)
    def note(name: str) -> None:
        with open(log, "a") as file:
            file.write(f"{name}\n")

    first = hold.options(num_cpus=2).remote(gate)
    runs(first)
    for priority in (-1, 0, 5, 1):
        for _ in range(2):
            note.options(priority=priority).remote(str(priority))
    last = note.options(priority=-1000).remote("last")
    wait_until(lambda: "waits for a worker" in why_pending(last), 10, "all to wait")
    Path(gate).touch()
    fw.get(last)
    assert Path(log).read_text().split() == ["5", "5", "1", "1", "0", "0", "-1", "-1", "last"]


@pytest.mark.slow
def test_an_urgent_task_is_not_behind_a_long_queue(session: object) -> None:
    @fw.remote
    def short() -> None:
        time.sleep(0.01)

    queue = [short.remote() for _ in range(1000)]  # five seconds
    fw.get(queue[0])
    fw.get(short.options(priority=1).remote(), timeout=30)
    assert len(fw.wait(queue, num_returns=len(queue), timeout=0)[1]) > 300
    for ref in queue:
        fw.cancel(ref)


@pytest.mark.slow
def test_an_actor_is_not_behind_a_long_queue(session: object) -> None:
    @fw.remote
    def short() -> None:
        time.sleep(0.01)

    @fw.remote(num_cpus=1)
    class Needy:
        def here(self) -> bool:
            return True

    queue = [short.remote() for _ in range(2000)]  # ten seconds
    fw.get(queue[0])
    assert fw.get(Needy.remote().here.remote(), timeout=30)
    assert len(fw.wait(queue, num_returns=len(queue), timeout=0)[1]) > 300
    for ref in queue:
        fw.cancel(ref)
