"""The node beside a head starts it again: when it has died, not when it has ended, and not for ever."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framework._base import limits
from framework._node import launching
from framework._node.head_keeper import HeadKeeper
from framework._service.launch import Child, spawn


class Heads:
    """Processes that stand for heads, and what was started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.children: list[Child] = []
        self.serve = True
        self.excuse = b"!the port is taken"
        self.begin()

    def begin(self) -> Child:
        child = spawn(["/bin/sleep", "1000"], env={})
        self.children.append(child)
        (self.directory / "head.pid").write_text(f"{child.pid}\n")
        return child

    def start_head(self, session_dir: str, bind: str, ready: socket.socket) -> Child:
        assert (session_dir, bind) == (str(self.directory), "127.0.0.1")
        if self.serve:
            child = self.begin()
            ready.send(b"1")
            return child
        ready.send(self.excuse)
        child = spawn(["/bin/true"], env={})
        self.children.append(child)
        return child

    def kill(self) -> None:
        os.kill(self.children[-1].pid, signal.SIGKILL)


@pytest.fixture
def heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Heads]:
    (tmp_path / "logs").mkdir()
    heads = Heads(tmp_path)
    monkeypatch.setattr(launching, "start_head", heads.start_head)
    monkeypatch.setattr(limits, "HEAD_RESTART_PAUSE", 0.001)
    yield heads
    for child in heads.children:
        child.kill()
        child.wait(5)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def keeper_of(heads: Heads) -> HeadKeeper:
    keeper = HeadKeeper(asyncio.get_running_loop(), str(heads.directory), "127.0.0.1")
    keeper.start()
    return keeper


async def test_it_is_started_again_until_that_is_pointless(
    heads: Heads, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = keeper_of(heads)
    for count in range(limits.HEAD_RESTARTS):
        heads.kill()
        await until(lambda count=count: len(heads.children) == count + 2 and keeper._watched >= 0)
    heads.kill()
    await until(lambda: "is not started any more" in caplog.text)
    assert len(heads.children) == limits.HEAD_RESTARTS + 1
    keeper.stop()


async def test_one_that_has_died_before_it_was_watched(heads: Heads) -> None:
    heads.kill()
    heads.children[0].wait(5)
    keeper = keeper_of(heads)
    await until(lambda: len(heads.children) == 2 and keeper._watched >= 0)
    keeper.stop()


async def test_one_that_does_not_come_up_is_tried_again(
    heads: Heads, caplog: pytest.LogCaptureFixture
) -> None:
    """What is in its way may pass, as a full disk does: that does not count as a death."""
    keeper = keeper_of(heads)
    heads.serve = False
    heads.kill()
    await until(lambda: len(heads.children) > limits.HEAD_RESTARTS + 3)
    assert "the head did not start: the port is taken" in caplog.text
    heads.serve = True
    await until(lambda: keeper._watched >= 0)
    keeper.stop()


async def test_one_that_dies_at_its_start_and_does_not_say_why(
    heads: Heads, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = keeper_of(heads)
    heads.serve, heads.excuse = False, b""
    heads.kill()
    await until(lambda: "is not started any more" in caplog.text)
    assert "the head did not start: see logs/head.err" in caplog.text
    keeper.stop()


async def test_one_that_has_ended_in_order_stays_gone(heads: Heads) -> None:
    keeper = keeper_of(heads)
    (heads.directory / "head.pid").unlink()
    heads.kill()
    await until(lambda: keeper._watched < 0)
    assert len(heads.children) == 1
    keeper.stop()


async def test_after_the_end_of_the_node_it_is_left_to_itself(heads: Heads) -> None:
    keeper = keeper_of(heads)
    keeper.stop()
    heads.kill()
    heads.children[0].wait(5)
    await asyncio.sleep(0)
    assert len(heads.children) == 1
