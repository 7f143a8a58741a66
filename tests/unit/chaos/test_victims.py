"""Which processes are whose, from what /proc says; signals that hit the one that was meant."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from framework.chaos.victims import Held, Process, identity, members, parse_stat, processes, workers, zygotes

NODE = 100
# A node (100) with two zygotes, their workers, a task's own child, one that is not reaped, and a stranger.
TABLE = [
    Process(NODE, 1, NODE, "S"),
    Process(101, NODE, NODE, "S"),
    Process(102, NODE, NODE, "S"),
    Process(103, NODE, NODE, "Z"),
    Process(110, 101, NODE, "R"),
    Process(111, 101, NODE, "T"),
    Process(112, 102, NODE, "S"),
    Process(113, 102, NODE, "Z"),
    Process(120, 110, NODE, "S"),
    Process(130, 101, 130, "S"),
    Process(200, 1, 200, "S"),
]
EVERY = {process.pid: process for process in TABLE}


def test_a_line_of_proc() -> None:
    assert parse_stat(7, "7 (a ) S 1 2) R 3 4 4 0 -1 4194560") == Process(7, 3, 4, "R")


def test_zygotes_workers_members() -> None:
    assert zygotes(EVERY, NODE) == [101, 102]
    assert workers(EVERY, NODE) == [110, 111, 112]
    assert {p.pid for p in members(EVERY, NODE)} == {100, 101, 102, 110, 111, 112, 120}
    assert not zygotes(EVERY, 200) and not workers(EVERY, 200)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    found = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with found:
        yield found
        found.kill()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc")
def test_signals(child: subprocess.Popen[bytes]) -> None:
    every = processes()
    assert every[child.pid].parent == os.getpid() and every[child.pid].group == child.pid
    with pytest.raises(ProcessLookupError, match="not in group"):
        Held(child.pid, os.getpgrp())
    name = identity(child.pid)
    assert name.startswith(f"{child.pid} ") and name == identity(child.pid) != identity(os.getpid())
    held = Held(child.pid, child.pid)
    assert held.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert identity(child.pid) == ""
    assert not held.send(signal.SIGCONT)
    held.close()
    held.close()
    with pytest.raises(ProcessLookupError):
        Held(child.pid, child.pid)
