"""The end of a node's processes, seen from inside of a process that has children and orphans."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.drivers import alive

ROOT = Path(__file__).resolve().parents[3]

# A leader of a group; `child` forks a process that runs `code` and returns its pid.
BEGIN = """
import os, sys, time, signal
sys.path.insert(0, {root!r})
from framework._node.ends import adopt_orphans, end_children
os.setsid()
def child(work):
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (1, 2): os.dup2(null, fd)  # nobody waits for the end of a sleeper's output
        work(writing)
        os._exit(0)
    os.close(writing)
    data = os.read(reading, 100)
    os.close(reading)
    return [pid, *map(int, data.split())]
def sleeper(writing):
    os.write(writing, b" ")
    time.sleep(60)
def gone(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return True
    return False
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans cannot be adopted elsewhere")


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN.format(root=str(ROOT)) + code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_children_are_killed_and_reaped() -> None:
    assert run("p = child(sleeper) + child(sleeper)\nprint(end_children(10), [gone(x) for x in p])") == (
        "True [True, True]"
    )


def test_without_children_there_is_nothing_to_do() -> None:
    assert run("print(end_children(0))") == "True"


def test_orphans_of_a_child_that_was_killed_are_ended_too() -> None:
    """Workers are children of the zygote, which is killed first."""
    code = """
def parent(writing):
    inner = child(sleeper) + child(sleeper)
    os.write(writing, b"%d %d" % tuple(inner))
    time.sleep(60)
adopt_orphans()
zygote, *workers = child(parent)
os.kill(zygote, signal.SIGKILL)
os.waitpid(zygote, 0)
print(len(workers), end_children(10), [gone(x) for x in workers])
"""
    assert run(code) == "2 True [True, True]"


def test_who_has_left_the_group_is_let_be() -> None:
    code = """
def daemon(writing):
    os.setsid()
    os.write(writing, b" ")
    time.sleep(60)
(pid,) = child(daemon)
print(end_children(10), gone(pid), pid)
"""
    ended, is_gone, pid = run(code).split()
    try:
        assert (ended, is_gone) == ("True", "False")
        assert alive(int(pid))
    finally:
        os.kill(int(pid), 9)


def test_it_does_not_wait_for_ever() -> None:
    """One that the kernel cannot end (stuck in a system call; here: its signal is lost) is given up."""
    code = """
(pid,) = child(sleeper)
kill, os.kill = os.kill, lambda *_: None
print(end_children(0.05))
kill(pid, signal.SIGKILL)
"""
    assert run(code) == "False"
