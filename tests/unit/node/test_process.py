"""The life of a node process, on a loop of its own in here: sockets, greetings, and what makes it end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framework._base import limits
from framework._head.service import HeadService
from framework._net.connection import Connection
from framework._net.listener import connect_unix, hello
from framework._node import process as process_module
from framework._node.hardware import default_resources, gpu_names, visible_gpus
from framework._node.process import NodeProcess, default_store_capacity
from framework._wire import messages as m


class Peer:
    """A connection to the node, and what it says."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.frames: list[list[Any]] = []
        self.closed = threading.Event()
        self.welcome = threading.Event()
        self.connection = Connection(
            loop, sock, {m.WELCOME: self._welcome}, on_close=lambda _: self.closed.set(), name="test"
        )

    def _welcome(self, connection: Connection, frame: list[Any]) -> None:
        self.frames.append(frame)
        self.welcome.set()


class World:
    """A node process without a process: its loop runs in a thread."""

    def __init__(self, session_dir: Path, **config: Any) -> None:
        for name in ("sockets", "logs"):
            (session_dir / name).mkdir(parents=True)
        self.session_dir = session_dir
        self.driver, driver_theirs = socket.socketpair()
        self.head, head_theirs = socket.socketpair()
        self.loop = asyncio.new_event_loop()
        zygote, self.zygote = socket.socketpair()
        self.zygote_pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
        if "ready_fd" not in config:
            config = {
                "driver_fd": driver_theirs.detach(),
                "head_fd": head_theirs.detach(),
                "driver_pid": os.getpid(),
                **config,
            }
        resources = {"num_cpus": 1, "num_gpus": 0, "memory": 100, "resources": None}
        self.node = NodeProcess(
            self.loop,
            {
                "session_dir": str(session_dir),
                "node_id": "ab" * 28,
                "resources": {
                    **resources,
                    "object_store_memory": 1 << 20,
                    "spill_directory": None,
                    "memory_threshold": 1.0,
                },
                **config,
            },
            HeadService,
        )
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.do(lambda: self.node.start(zygote, self.zygote_pid))
        self.thread.start()

    def do(self, function: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(function)

    def connect(self, sock: socket.socket, kind: str, pid: int | None = None, **info: Any) -> Peer:
        """A peer that has been greeted."""
        done: list[Peer] = []

        def begin() -> None:
            peer = Peer(self.loop, sock)
            frame = list(hello(kind, os.urandom(28), "unix:x", info))
            frame[4] = pid or frame[4]
            peer.connection.cast(*frame)
            done.append(peer)

        self.do(begin)
        deadline = 1000
        while not done and deadline:
            threading.Event().wait(0.005)
            deadline -= 1
        assert done[0].welcome.wait(5)
        return done[0]

    def ended(self, timeout: float = 5) -> bool:
        self.thread.join(timeout)
        return not self.thread.is_alive()

    def close(self) -> None:
        if self.thread.is_alive():
            self.do(lambda: self.node.stop("the test is over"))
            assert self.ended()
        self.loop.close()
        for sock in (self.driver, self.head, self.zygote):
            with contextlib.suppress(OSError):
                sock.close()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    # These act on all children of this process.
    monkeypatch.setattr(process_module, "adopt_orphans", lambda: None)
    monkeypatch.setattr(process_module, "end_children", lambda timeout: True)
    worlds: list[World] = []

    def make(**config: Any) -> World:
        worlds.append(World(tmp_path / f"s{len(worlds)}", **config))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def test_the_driver_that_started_it_is_greeted_on_the_sockets_it_has(make: Callable[..., World]) -> None:
    world = make()
    node = world.connect(world.driver, "driver", job=b"\1\0\0\0")
    assert node.frames[0][2] == bytes.fromhex("ab" * 28)
    assert node.frames[0][3]["total"]["CPU"] == 10_000
    world.connect(world.head, "driver")
    assert {"head", "node"} <= set(os.listdir(world.session_dir / "sockets"))
    for name in ("head", "node"):
        assert (world.session_dir / "sockets" / name).stat().st_mode & 0o777 == 0o600


def test_it_ends_with_its_driver(make: Callable[..., World]) -> None:
    world = make()
    driver = world.connect(world.driver, "driver")
    world.do(driver.connection.close)
    assert world.ended()
    assert not {"head", "node"} & set(os.listdir(world.session_dir / "sockets"))
    with pytest.raises(ProcessLookupError):
        os.kill(world.zygote_pid, 0)


def test_it_ends_when_its_driver_has_never_said_anything(make: Callable[..., World]) -> None:
    world = make()
    world.driver.close()
    assert world.ended()


def test_it_ends_when_the_process_of_its_driver_does(make: Callable[..., World]) -> None:
    """Although somebody else holds the sockets open."""
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    world = make(driver_pid=pid)
    world.connect(world.driver, "driver", pid)
    assert not world.ended(0.01)
    os.kill(pid, signal.SIGKILL)
    assert world.ended()
    os.waitpid(pid, 0)


def test_it_ends_when_its_driver_was_gone_before_it_began(make: Callable[..., World]) -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    assert make(driver_pid=pid).ended()


def test_one_that_stays_says_when_it_is_up_and_outlives_its_drivers(make: Callable[..., World]) -> None:
    reading, writing = os.pipe()
    world = make(ready_fd=writing)
    assert os.read(reading, 1) == b"1"
    assert os.read(reading, 1) == b"", "and lets go of the descriptor"
    os.close(reading)
    path = str(world.session_dir / "sockets" / "node")
    for _ in range(2):
        driver = world.connect(connect_unix(path), "driver", job=b"\1\0\0\0")
        world.do(driver.connection.close)
        assert driver.closed.wait(5)
    assert not world.ended(0.02)
    tool = world.connect(connect_unix(path), "tool")
    world.do(lambda: tool.connection.cast(m.NODE_STOP, "enough"))
    assert world.ended()


def test_one_that_stays_lets_a_driver_go_whose_process_has_ended(make: Callable[..., World]) -> None:
    """Although a fork of it holds the socket open."""
    reading, writing = os.pipe()
    world = make(ready_fd=writing)
    os.read(reading, 1)
    os.close(reading)
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    sock = connect_unix(str(world.session_dir / "sockets" / "node"))
    driver = world.connect(sock, "driver", pid)
    os.kill(pid, signal.SIGKILL)
    assert driver.closed.wait(5)
    os.waitpid(pid, 0)
    assert not world.ended(0.01)


# ---- what it offers ----------------------------------------------------------------------------------


def test_the_default_capacity_of_the_store_is_a_share_of_memory() -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert limits.STORE_MINIMUM <= default_store_capacity() <= memory * limits.STORE_SHARE
    assert default_store_capacity() % 4096 == 0


def test_default_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    found = default_resources(None, None, None, {"oven": 1})
    assert found["CPU"] == len(os.sched_getaffinity(0)) * 10_000
    assert found["GPU"] == 20_000 and found["oven"] == 10_000 and found["memory"] > 0
    given = default_resources(3, 0, 50, None)
    assert (given["CPU"], given.get("GPU", 0), given["memory"]) == (30_000, 0, 500_000)


@pytest.mark.parametrize(
    ("variable", "count", "names"),
    [("", 0, []), ("-1", 0, []), ("0,1", 2, [0, 1]), ("3, GPU-89f", 2, [3, "GPU-89f"]), ("7", 1, [7])],
)
def test_gpus_that_the_environment_allows(
    monkeypatch: pytest.MonkeyPatch, variable: str, count: int, names: list[int | str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == count
    assert gpu_names(count) == names
    assert gpu_names(9) == list(range(9)), "more were asked for than the variable names"
