"""The zygote, in a process of its own, with workers that do what the test says instead of serving."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from framework._base.limits import EARLY_PAUSE
from support.drivers import alive
from support.leaks import wait_until

ROOT = Path(__file__).resolve().parents[3]

# What a worker does is Python code in its config; `loaded` tells what the zygote had loaded by then.
PROGRAM = """
import os, socket, sys, types
sys.path.insert(0, sys.argv[1])
from framework._worker.zygote import run_zygote
loaded = []
worker = types.ModuleType("framework._worker.main")
def run_worker(config, env):
    scope = {"loaded": loaded, "env": env, "result": 0}
    exec(config, scope)
    return scope["result"]
worker.run_worker = run_worker
sys.modules["framework._worker.main"] = worker
parent = int(sys.argv[3]) or os.getppid()
fd = int(sys.argv[2])
run_zygote(socket.socket(fileno=fd), lambda: loaded.append("all"), lambda: loaded.append("slow"), parent)
"""


class Zygote:
    def __init__(self, parent: int = 0, **env: str) -> None:
        self.sock, theirs = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(ROOT), str(theirs.fileno()), str(parent)],
            pass_fds=[theirs.fileno()],
            env={**environment, **env},
        )
        theirs.close()
        self.sock.settimeout(20)
        self.unpacker = msgpack.Unpacker()

    def fork(self, ident: bytes, code: str, env: dict[str, str] | None = None) -> None:
        self.sock.sendall(msgpack.packb([ident, env or {}, code]))

    def news(self) -> Any:
        for message in self.unpacker:
            return message
        self.unpacker.feed(self.sock.recv(65536))
        return self.news()

    def run(self, code: str, env: dict[str, str] | None = None) -> str:
        """What a worker writes to the pipe ``out``."""
        self.fork(b"w", f"result = {code}", env)
        assert self.news()[:2] == ["forked", b"w"]
        kind, _, status = self.news()
        assert kind == "exited"
        return str(os.waitstatus_to_exitcode(status))


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.sock.close()
    assert zygote.process.wait(20) == 0, "it ends when its node lets go of it"


def test_forks_and_exits_are_reported(zygote: Zygote) -> None:
    zygote.fork(b"a", "result = 7")
    kind, ident, pid, error = zygote.news()
    assert (kind, ident, error) == ("forked", b"a", "") and pid > 0
    assert zygote.news() == ["exited", pid, 7 << 8]
    zygote.fork(b"b", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    pid = zygote.news()[2]
    assert zygote.news() == ["exited", pid, signal.SIGKILL]
    zygote.fork(b"c", "raise ValueError('this is part of the test')")
    assert zygote.news()[:2] == ["forked", b"c"]
    assert zygote.news()[2] == 70 << 8


def test_variables_of_a_worker_are_its_own(zygote: Zygote) -> None:
    assert zygote.run("int(__import__('os').environ['MINE'])", {"MINE": "5"}) == "5"
    assert zygote.run("int('MINE' in __import__('os').environ)") == "0"
    assert zygote.run("len(env)", {"A": "", "B": ""}) == "2"


def test_the_first_workers_do_not_wait_for_what_loads_slowly(zygote: Zygote) -> None:
    assert zygote.run("loaded == ['all']") == "1"
    assert zygote.run("loaded == ['all']") == "1"
    assert zygote.run("loaded == ['all', 'slow']") == "1"


def test_what_loads_slowly_is_loaded_once(zygote: Zygote) -> None:
    assert zygote.run("loaded == ['all']") == "1"
    assert zygote.run("loaded == ['all']") == "1"
    time.sleep(2 * EARLY_PAUSE)  # nobody asks for anything: it loads the rest by itself
    assert zygote.run("loaded == ['all', 'slow']") == "1"
    assert zygote.run("loaded == ['all', 'slow']") == "1"


def test_workers_collect_garbage_but_not_what_the_zygote_has_loaded(zygote: Zygote) -> None:
    for _ in range(3):
        assert (
            zygote.run("__import__('gc').isenabled() and __import__('gc').get_freeze_count() > 1000") == "1"
        )


def test_requests_that_come_at_once_are_all_served(zygote: Zygote) -> None:
    for number in range(10):
        zygote.fork(bytes([number]), "pass")
    news = [zygote.news() for _ in range(20)]
    assert sorted(n[1][0] for n in news if n[0] == "forked") == list(range(10))
    assert sum(n[0] == "exited" for n in news) == 10


def test_workers_hold_nothing_of_the_zygote(zygote: Zygote) -> None:
    zygote.fork(
        b"w",
        """
import os, stat
modes = []
for name in os.listdir("/proc/self/fd"):
    try: modes.append(os.fstat(int(name)).st_mode)
    except OSError: pass  # that of listdir itself
result = sum(stat.S_ISSOCK(mode) for mode in modes)
""",
    )
    zygote.news()
    assert zygote.news()[2] == 0, "not its socket to the node"


def test_threads_of_blas_are_limited_unless_somebody_chose(zygote: Zygote) -> None:
    environ = "__import__('os').environ"
    assert zygote.run(f"int({environ}['OMP_NUM_THREADS'])") == "1"
    assert zygote.run(f"int({environ}['FRAMEWORK_OMP_DEFAULT'])") == "1"
    chosen = Zygote(OMP_NUM_THREADS="4")
    assert chosen.run(f"int({environ}['OMP_NUM_THREADS'])") == "4"
    assert chosen.run(f"int('FRAMEWORK_OMP_DEFAULT' in {environ})") == "0"
    chosen.sock.close()
    assert chosen.process.wait(20) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="there is no parent-death signal elsewhere")
@pytest.mark.parametrize("end", ["killed", "let go of"])
def test_workers_end_with_their_zygote(end: str) -> None:
    zygote = Zygote()
    zygote.fork(b"a", "import time; time.sleep(60)")
    pid = zygote.news()[2]
    if end == "killed":
        zygote.process.kill()
    zygote.sock.close()
    zygote.process.wait(20)
    wait_until(lambda: not alive(pid), 10, "the end of the worker")


def test_one_whose_node_has_ended_before_it_began_ends_at_once() -> None:
    zygote = Zygote(parent=1 if os.getpid() != 1 else 2)
    assert zygote.process.wait(20) == 0
    zygote.sock.close()


def test_signals_of_the_terminal_do_not_reach_it(zygote: Zygote) -> None:
    assert zygote.run("0") == "0"  # it is up
    zygote.process.send_signal(signal.SIGINT)
    time.sleep(0)
    assert zygote.run("3") == "3"
