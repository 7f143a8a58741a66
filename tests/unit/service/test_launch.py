"""Our own Python processes: what they inherit, how their end is noticed, and that groups end as a whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework._service import launch
from framework._service.launch import Child, command, spawn
from support.drivers import alive

SLEEP = ["/bin/sleep", "60"]


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Whatever is in here is ended."""
    found: list[Child] = []
    yield found
    for child in found:
        child.kill()
        child.wait(5)


def run(code: str, tmp_path: Path, *, keep: tuple[int, ...] = (), new_session: bool = False) -> str:
    """What a new process prints."""
    with open(tmp_path / "out", "w+b") as out:
        child = spawn(
            [sys.executable, "-S", "-c", code],
            env={"ONLY": "this"},
            keep=keep,
            output=out.fileno(),
            new_session=new_session,
        )
        assert child.wait(20) and child.code == 0, (tmp_path / "out").read_text()
    return (tmp_path / "out").read_text().strip()


def test_the_command_finds_this_package_wherever_it_is_run(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong module')")
    argv = command("framework._service.launch", "an argument")
    assert argv[-1] == "an argument" and argv[0] == sys.executable
    assert json.loads(argv[-2])[0] == str(Path(launch.__file__).parents[2])
    # `launch` has no main(): that it is looked for in there tells that the right module was loaded.
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert "cannot import name 'main' from 'framework._service.launch'" in done.stderr


def test_without_a_known_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(RuntimeError, match=r"sys\.executable"):
        command("framework._node.__main__")


def test_environment_input_and_session(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ.get('ONLY'), len(sys.stdin.read()), os.getsid(0) == os.getpid())"
    assert run(code, tmp_path) == "this 0 False"
    assert run(code, tmp_path, new_session=True) == "this 0 True"


def test_only_the_descriptors_named_are_inherited(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    other = os.dup(reading)
    try:
        code = (
            f"import os; os.write({writing}, b'hello')\n"
            f"try: os.fstat({other})\nexcept OSError: print('closed')"
        )
        assert run(code, tmp_path, keep=(writing,)) == "closed"
        assert os.read(reading, 10) == b"hello"
        assert not os.get_inheritable(writing), "other children do not get it"
    finally:
        for fd in (reading, writing, other):
            os.close(fd)


def test_signals_are_as_in_a_fresh_process(tmp_path: Path) -> None:
    old = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        code = (
            "import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "
            "signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
        )
        assert run(code, tmp_path) == "True set()"
    finally:
        signal.signal(signal.SIGTERM, old)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def test_a_program_that_does_not_exist_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        spawn(["/nowhere/python"], env={})
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(("code", "expected"), [("pass", 0), ("raise SystemExit(7)", 7)])
def test_the_exit_code(children: list[Child], code: str, expected: int) -> None:
    child = spawn([sys.executable, "-S", "-c", code], env={})
    children.append(child)
    assert child.wait(20) and child.code == expected
    assert child.poll() and child.wait(0)


def test_a_child_that_runs_on(children: list[Child]) -> None:
    child = spawn(SLEEP, env={})
    children.append(child)
    assert not child.poll()
    began = time.monotonic()
    assert not child.wait(0.05)
    assert time.monotonic() - began < 5
    child.kill()
    assert child.wait(5) and child.code == -signal.SIGKILL
    child.kill()  # its number may be another's by now: nothing happens


def test_a_child_that_somebody_else_has_reaped(children: list[Child]) -> None:
    child = spawn(["/bin/true"], env={})
    os.waitpid(child.pid, 0)
    assert child.wait(5) and child.code is None


def test_a_group_ends_with_its_leader(children: list[Child]) -> None:
    code = (
        "import os, time; pid = os.posix_spawn('/bin/sleep', ['sleep', '60'], {}); os.write(1, b'%d' % pid)"
    )
    reading, writing = os.pipe()
    child = spawn([sys.executable, "-S", "-c", code], env={}, output=writing, new_session=True)
    children.append(child)
    os.close(writing)
    helper = int(os.read(reading, 20))
    os.close(reading)
    assert child.wait(20)
    assert child.wait_for_group(5)
    assert not alive(helper)


def test_waiting_for_a_group_that_lives_on_ends(children: list[Child]) -> None:
    child = spawn(SLEEP, env={}, new_session=True)
    children.append(child)
    assert not child.wait_for_group(0.02)
    alone = spawn(SLEEP, env={})
    children.append(alone)
    assert alone.wait_for_group(5), "it leads no group: there is none to wait for"
