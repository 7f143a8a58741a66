"""In a simulation, what is real raises where it is called; outside of it all is as it was."""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import gc
import multiprocessing
import os
import queue
import random
import select
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from framework._sim.descriptors import BASE
from framework._sim.kernel import SimulationError
from framework._sim.real import refused
from support.simulated import simulated

REAL_SOCKET = socket.socket


def nothing() -> None:
    pass


async def start_process() -> None:
    await asyncio.create_subprocess_exec("true")


async def look_up() -> None:
    await asyncio.open_connection("localhost", 80)


class OldThread(threading.Thread):
    """Made from the real class, before any simulation."""

    def run(self) -> None:
        self.saw = threading.current_thread()


REAL: dict[str, Callable[[], Any]] = {
    "os.fork": lambda: os.fork(),
    "os.system": lambda: os.system("true"),
    "os.execv": lambda: os.execv("/bin/true", ["true"]),
    "os.execl": lambda: os.execl("/bin/true", "true"),
    "os.spawnl": lambda: os.spawnl(os.P_WAIT, "/bin/true", "true"),
    "os.popen": lambda: os.popen("true"),
    "os.posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "os.pipe": lambda: os.pipe(),
    "subprocess.Popen": lambda: subprocess.Popen(["true"]),
    "subprocess.run": lambda: subprocess.run(["true"]),
    "multiprocessing": lambda: multiprocessing.get_context("spawn").Process(target=nothing).start(),
    "create_subprocess_exec": lambda: asyncio.run(start_process()),
    "_thread": lambda: _thread.start_new_thread(nothing, ()),
    "getaddrinfo": lambda: socket.getaddrinfo("localhost", 80),
    "gethostbyname": lambda: socket.gethostbyname("localhost"),
    "create_connection": lambda: socket.create_connection(("127.0.0.1", 80)),
    "open_connection": lambda: asyncio.run(look_up()),
    "a socket class kept": lambda: REAL_SOCKET(),
    "ssl": lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(REAL_SOCKET()),
    "select": lambda: select.select([], [], []),
    "setitimer": lambda: signal.setitimer(signal.ITIMER_REAL, 1),
    "sigwait": lambda: signal.sigwait([signal.SIGUSR1]),
}


@pytest.mark.parametrize("name", REAL)
def test_what_is_real_raises_where_it_is_called(name: str) -> None:
    with simulated() as machines:

        def call() -> str:
            with pytest.raises(SimulationError, match="inside of a simulation: ") as caught:
                REAL[name]()
            return str(caught.value)

        assert machines.result(call)


def test_the_name_of_the_call_is_said() -> None:
    with simulated() as machines:
        machines.go(lambda: socket.getaddrinfo("localhost", 80), name="asks")
        with pytest.raises(SimulationError, match=r"^socket\.getaddrinfo is called inside"):
            machines.run()


def state_of_the_world() -> dict[str, Any]:
    """All that a simulation puts itself in the place of."""
    owners: list[Any] = [os, time, threading, socket, select, selectors, signal, subprocess, queue, random]
    owners += [_thread, uuid, ssl, threading.Thread, concurrent.futures.Future, random.Random]
    owners += [subprocess.Popen, socket.socket, asyncio, asyncio.events]
    found = {f"{owner}.{name}": value for owner in owners for name, value in vars(owner).items()}
    found["policy"] = asyncio.get_event_loop_policy()
    found["gc"] = gc.isenabled()
    found["hooks"] = sys.get_asyncgen_hooks()
    found["random"] = random.getstate()
    found["numpy"] = np.random.get_state()[1].tolist()  # type: ignore[index]
    found["environment"] = dict(os.environ)
    found["handlers"] = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    return {name: value for name, value in found.items() if "__warningregistry__" not in name}


def test_afterwards_everything_is_as_it_was() -> None:
    before = state_of_the_world()
    with simulated() as machines:
        inside = state_of_the_world()
        machines.go(lambda: (random.random(), np.random.rand(), time.sleep(3)), name="draws")
        machines.run()
    assert state_of_the_world() == before
    changed = {name for name in before if inside.get(name) != before[name]}
    owners = {"'os'", "'time'", "'threading'", "'socket'", "'select'", "'signal'", "'random'", "'_thread'"}
    assert all(any(owner in name for name in changed) for owner in owners)


def test_also_after_an_exception() -> None:
    before = state_of_the_world()
    with pytest.raises(ZeroDivisionError):
        with simulated() as machines:
            machines.go(lambda: 1 // 0, name="divides")
            machines.run()
    with pytest.raises(SimulationError, match="standstill"):
        with simulated() as machines:
            machines.go(lambda: threading.Event().wait(), name="waits")
            machines.run()
    with pytest.raises(KeyError):
        with simulated():
            raise KeyError
    assert state_of_the_world() == before


def test_all_that_is_refused_exists_somewhere() -> None:
    missing = {name for owner, name in refused() if not hasattr(owner, name)}
    assert missing <= {"start_joinable_thread", "_start_joinable_thread", "start_new", "_start_new_thread"}


def test_outside_of_tasks_the_real_ones_are_there() -> None:
    with simulated():
        begun = time.time()
        assert begun > 1e9 and os.getpid() > 0 and time.monotonic() > 0
        with socket.socket() as sock:
            assert isinstance(sock, REAL_SOCKET) and isinstance(sock, socket.socket)
        assert subprocess.run(["true"]).returncode == 0


def test_other_real_threads_are_not_affected() -> None:
    asked, answered = threading.Event(), threading.Event()
    found: dict[str, Any] = {}

    async def real_life() -> int:
        return await asyncio.to_thread(lambda: 7)

    def other() -> None:
        asked.wait(10)
        try:
            found["time"] = time.time()
            found["pid"] = os.getpid()
            found["asyncio"] = asyncio.run(real_life())
            found["lock"] = type(threading.Lock())
            found["socket"] = type(socket.socket())
            found["pair"] = [type(sock) for sock in socket.socketpair()]
            found["address"] = socket.getaddrinfo("127.0.0.1", 80)
            found["process"] = subprocess.run(["true"]).returncode
            inner = threading.Thread(target=lambda: found.update(inner=threading.current_thread()))
            inner.start()
            inner.join()
            found["same"] = found["inner"] is inner and inner.ident is not None
            found["random"] = len(os.urandom(8))
        except BaseException as error:
            found["error"] = error
        answered.set()

    thread = threading.Thread(target=other)
    thread.start()
    wait, tell = answered.wait, asked.set
    lock = type(threading.Lock())
    with simulated() as machines:

        def simulated_part() -> None:
            tell()
            wait(10)  # (a real event: this task, and with it the whole simulation, stands still for it)
            time.sleep(1)

        machines.go(simulated_part)
        machines.run()
    thread.join()
    assert "error" not in found, found
    assert abs(found["time"] - time.time()) < 60 and found["pid"] == os.getpid()
    assert found["asyncio"] == 7 and found["lock"] is lock and found["process"] == 0 and found["same"]
    assert {found["socket"], *found["pair"]} == {REAL_SOCKET}


def test_time_is_virtual() -> None:
    with simulated() as machines:

        def sleeper() -> tuple[float, ...]:
            wall, begun, spent = time.time(), time.monotonic(), time.perf_counter_ns()
            time.sleep(3600)
            clock = time.clock_gettime(time.CLOCK_MONOTONIC) - begun
            return time.time() - wall, time.monotonic() - begun, (time.perf_counter_ns() - spent) / 1e9, clock

        real = time.perf_counter()
        assert machines.result(sleeper) == pytest.approx((3600,) * 4, abs=0.01)
        assert time.perf_counter() - real < 5
        assert machines.result(lambda: (time.gmtime().tm_year, time.strftime("%Y"), time.ctime()[-4:])) == (
            2030,
            time.strftime("%Y", time.localtime(1_893_456_000)),
            time.ctime(1_893_456_000)[-4:],
        )
        assert machines.result(lambda: time.gmtime(0).tm_year) == 1970


def draws() -> list[Any]:
    return [
        os.urandom(4),
        random.random(),
        random.Random().random(),
        random.Random(5).random(),
        random.SystemRandom().random(),
        uuid.uuid4(),
        uuid.uuid1(),
        np.random.rand(),
        np.random.default_rng().random(),
        ssl.RAND_bytes(4),
    ]


def test_chance_comes_from_the_seed() -> None:
    def of(seed: int) -> list[Any]:
        with simulated(seed) as machines:
            result: list[Any] = machines.result(draws)
            return result

    assert of(1) == of(1)
    differ = [left != right for left, right in zip(of(1), of(2), strict=True)]
    assert differ == [True, True, True, False, *[True] * 6]


def test_sets_are_iterated_in_the_same_order_in_each_run() -> None:
    async def names() -> list[str]:
        async def sleep(seconds: float) -> None:
            await asyncio.sleep(seconds)

        tasks = {asyncio.create_task(sleep(0.1), name=str(number)) for number in range(40)}
        done, _ = await asyncio.wait(tasks)
        futures = {asyncio.get_running_loop().create_future() for _ in range(40)}
        numbers = {future: str(number) for number, future in enumerate(futures)}
        return [task.get_name() for task in done] + [numbers[future] for future in futures]

    def others() -> list[str]:
        threads = {threading.Thread(name=str(number)) for number in range(40)}
        futures = {concurrent.futures.Future[str]() for _ in range(40)}
        for number, future in enumerate(futures):
            future.set_result(str(number))
        return [t.name for t in threads] + [f.result() for f in concurrent.futures.as_completed(futures)]

    junk: list[Any] = []

    def run() -> tuple[list[str], list[str]]:
        junk.append([object() for _ in range(1000 + 77 * len(junk))][::3])
        with simulated() as machines:
            return machines.result(lambda: asyncio.run(names())), machines.result(others)

    first = run()
    assert [run() for _ in range(3)] == [first] * 3


def test_a_thread_of_a_class_from_before_runs_as_a_task() -> None:
    with simulated() as machines:

        def starts() -> None:
            thread = OldThread(name="old")
            assert not thread.is_alive() and thread.ident is None
            thread.start()
            assert thread.is_alive() and thread.ident is not None and thread.ident >= 1000
            with pytest.raises(RuntimeError, match="only be started once"):
                thread.start()
            thread.join()
            assert thread.saw is thread and not thread.is_alive()
            fired: list[float] = []
            timer = threading.Timer(5.0, lambda: fired.append(time.monotonic()))
            timer.start()
            stopped = threading.Timer(5.0, lambda: fired.append(-1))
            stopped.start()
            stopped.cancel()
            timer.join()
            stopped.join()
            assert fired == [pytest.approx(5.0, abs=0.01)]

        machines.go(starts)
        machines.run()
    thread = OldThread()
    thread.start()
    thread.join()
    assert thread.saw is thread


def test_processes_of_the_simulation() -> None:
    with simulated() as machines:
        first, second = machines.process(), machines.process("10.0.0.2")
        seen: list[Any] = []

        def handle(number: int, frame: Any) -> None:
            seen.append((number, os.getpid(), frame.f_code.co_name))

        def waits() -> None:
            signal.signal(signal.SIGUSR1, handle)
            time.sleep(1)

        def sends() -> None:
            time.sleep(0.5)
            os.kill(first.pid, signal.SIGUSR1)
            fd = os.pidfd_open(first.pid)
            assert fd >= BASE
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            assert poll.poll(100) == []
            os.kill(first.pid, signal.SIGKILL)
            assert poll.poll() == [(fd, select.POLLIN)]
            os.close(fd)
            with pytest.raises(ProcessLookupError):
                os.kill(first.pid, 0)
            with pytest.raises(ChildProcessError):
                os.waitpid(first.pid, 0)
            seen.append((os.getpid(), socket.gethostname()))
            os._exit(3)

        machines.go(waits, first)
        machines.go(sends, second)
        machines.run()
        assert seen == [(signal.SIGUSR1, first.pid, "waits"), (second.pid, "10.0.0.2")]
        assert second.status == 3 << 8 and not first.alive
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
