"""Processes that are stopped in the middle: whoever talks to them neither blocks nor grows, others are
served, and when they go on, nothing is missing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import framework as fw
from framework._base import limits
from support.drivers import ROOT, Driver, assert_clean
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

RESULT = 60_000  # bytes: a result that travels inline as long as its caller reads


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a session that stays; this process is a driver of it."""
    fw.shutdown()
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cli = [sys.executable, "-m", "framework"]
    subprocess.run([*cli, "start", "--head", "--num-cpus", "4"], check=True, stdout=subprocess.DEVNULL)
    try:
        yield fw.init("auto", namespace="slow", log_to_driver=False).session_dir
    finally:
        fw.shutdown()
        subprocess.run([*cli, "stop"], check=True, stdout=subprocess.DEVNULL)
    assert_clean(tmp_path)


@fw.remote(num_cpus=0)
class Server:
    def __init__(self) -> None:
        self.answered = 0

    def large(self, number: int) -> bytes:
        self.answered += 1
        return number.to_bytes(4, "little") + bytes(RESULT)

    def take(self, data: bytes) -> int:
        self.answered += 1
        return len(data)

    def count(self) -> int:
        return self.answered

    def pid(self) -> int:
        return os.getpid()


def private_memory(pid: int) -> int:
    """Bytes of a process's own memory, without what it has in files and in the object store."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the system does not tell")


CALLER = """
import os, signal, framework as fw
fw.init("auto", namespace="slow", log_to_driver=False)
server = fw.get_actor("server")
fw.get(server.count.remote())  # from here on calls leave as they are made
refs = [server.large.remote(n) for n in range(3000)]
print("READY", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
got = [int.from_bytes(fw.get(ref)[:4], "little") for ref in refs]
print("GOT", got == list(range(3000)))
"""


def test_a_caller_that_is_stopped(shared: str, tmp_path: Path) -> None:
    """180 MB of results wait for it: not in the memory of the actor, which goes on to serve others."""
    server = Server.options(name="server", lifetime="detached").remote()
    pid = fw.get(server.pid.remote(), timeout=20)
    before = private_memory(pid)
    with Driver(CALLER, tmp_path) as caller:
        caller.expect("READY")
        wait_until(lambda: psutil.Process(caller.process.pid).status() == psutil.STATUS_STOPPED)
        try:
            answered = -1
            while answered != (answered := fw.get(server.count.remote(), timeout=20)):
                fw.get([server.count.remote() for _ in range(100)], timeout=20)
            grown = private_memory(pid) - before
        finally:
            caller.signal(signal.SIGCONT)
        assert caller.finish(60) == 0, caller.text()
        assert caller.out[-1] == "GOT True", caller.text()
    assert answered > 100, "the calls that it had sent before it was stopped were run"
    assert grown < limits.SEND_HIGH_WATER + 80 * 2**20, grown
    fw.kill(server)


STREAM = """
import os, signal, framework as fw
fw.init("auto", namespace="slow", log_to_driver=False)
@fw.remote(num_returns="streaming", generator_window=1_000_000)
def produce(count):
    import os
    for n in range(count):
        if n == 0: yield os.getpid()
        else: yield n.to_bytes(4, "little") + bytes(60_000)
numbers = produce.remote(3000)
print("PID", fw.get(next(numbers)), flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
print("GOT", [int.from_bytes(fw.get(ref)[:4], "little") for ref in numbers] == list(range(1, 3000)))
"""


def test_a_consumer_that_is_stopped(shared: str, tmp_path: Path) -> None:
    """A generator may run ahead as far as its window: but not in the memory of its worker."""
    with Driver(STREAM, tmp_path) as consumer:
        pid = int(consumer.expect("PID").split()[-1])
        wait_until(lambda: psutil.Process(consumer.process.pid).status() == psutil.STATUS_STOPPED)
        worker = psutil.Process(pid)
        try:
            # It waits: the processor time that it has used does not change.
            used = -1.0
            while used != (used := sum(worker.cpu_times()[:2])):
                time.sleep(0.3)
            grown = private_memory(pid)
        finally:
            consumer.signal(signal.SIGCONT)
        assert consumer.finish(60) == 0, consumer.text()
        assert consumer.out[-1] == "GOT True", consumer.text()
    assert grown < limits.SEND_HIGH_WATER + 80 * 2**20, grown


def test_an_actor_that_is_stopped(shared: str) -> None:
    """Calls to it never block; what has been handed to the system and waits there is bounded, and so is the
    rest by what the caller itself keeps."""
    server = Server.remote()
    pid = fw.get(server.pid.remote(), timeout=20)
    os.kill(pid, signal.SIGSTOP)
    slowest = 0.0
    try:
        refs = []
        for _ in range(1000):
            began = time.perf_counter()
            refs.append(server.take.remote(bytes(RESULT)))
            slowest = max(slowest, time.perf_counter() - began)
        assert fw.wait(refs, timeout=0.2)[0] == []
    finally:
        os.kill(pid, signal.SIGCONT)
    assert fw.get(refs, timeout=60) == [RESULT] * 1000
    assert fw.get(server.count.remote()) == 1000
    assert slowest < 1, "a call has blocked"


def test_a_stopped_driver_does_not_hold_up_the_output_of_others(shared: str, tmp_path: Path) -> None:
    chatty = """
import os, signal, framework as fw
fw.init("auto", namespace="slow")
@fw.remote(num_cpus=0)
def chatter():
    while True: print("chatter " * 200)
r = chatter.remote()
print("READY", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
    with Driver(chatty, tmp_path) as stopped:
        stopped.expect("READY")
        wait_until(lambda: psutil.Process(stopped.process.pid).status() == psutil.STATUS_STOPPED)
        prints = """
import framework as fw
fw.init("auto", namespace="slow")
@fw.remote(num_cpus=0)
def tell(n): print("told", n)
for n in range(20): fw.get(tell.remote(n))
"""
        with Driver(prints, tmp_path) as other:
            assert other.finish(30) == 0, other.text()
            assert sorted(line.split(") ")[1] for line in other.out) == sorted(f"told {n}" for n in range(20))
        stopped.signal(signal.SIGKILL)
