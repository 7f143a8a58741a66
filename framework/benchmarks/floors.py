"""Floors: what the machine and the bare libraries can do, measured in the same run as the product.

No row of the product can beat the floor that it stands on, and on a noisy machine only the ratio to the floor
can be compared from day to day.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import msgpack
import numpy as np

from framework.benchmarks import tcp_copy
from framework.benchmarks.echo_server import loop_factory
from framework.benchmarks.model import GB_PER_SECOND, PER_SECOND, SECONDS, Measure, Row, Settings, Workload
from framework.benchmarks.runner import async_rate, rate_measure, time_measure

ECHO_ONE = "socket echo, one at a time"
ECHO_BATCH = "socket echo, in flight"
PIPE = "pipe ping-pong"
MEMCPY = "memcpy, warm"
MEMCPY_FRESH = "memcpy, fresh pages"
MEMCPY_POPULATED = "memcpy, pages populated first"
TCP_COPY = "TCP copy by asyncio"
INTERPRETER = "fresh interpreter"
FORK = "fork and first byte"
SPIN = "items of 1 ms on all cores"

IN_FLIGHT = 1000
ITEM_SECONDS = 0.001
_COPY_BYTES = 128 * 1024 * 1024
_MADV_POPULATE_WRITE = 23  # Linux 5.14


class _Client(asyncio.Protocol):
    """Pops the future of each answer; a batch is over when its last number has been answered."""

    def __init__(self) -> None:
        self.unpacker = msgpack.Unpacker()
        self.pack: Callable[[object], bytes] = msgpack.Packer().pack
        self.waiting: dict[int, asyncio.Future[object] | None] = {}
        self.transport: asyncio.WriteTransport | None = None
        self.number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's are no subclasses of it

    def data_received(self, data: bytes) -> None:
        self.unpacker.feed(data)
        for number, value in self.unpacker:
            result = pickle.loads(value)
            future = self.waiting.pop(number)
            if future is not None:
                future.set_result(result)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in self.waiting.values():
            if future is not None and not future.done():
                future.set_exception(ConnectionError("the echo server went away"))

    async def call_batch(self, count: int) -> None:
        """`count` calls in one write; only the last one has a future, as answers come in order."""
        assert self.transport is not None
        first, self.number = self.number, self.number + count
        future = asyncio.get_running_loop().create_future()
        self.waiting.update(dict.fromkeys(range(first, first + count - 1)))
        self.waiting[first + count - 1] = future
        pack = self.pack
        frames = [pack((number, pickle.dumps(b"ok", 5))) for number in range(first, first + count)]
        self.transport.write(b"".join(frames))
        await future


@contextmanager
def _echo_server() -> Iterator[str]:
    """The echo server in a process of its own; yields the path of its socket."""
    script = Path(__file__).with_name("echo_server.py")
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "echo")
        command = [sys.executable, "-P", str(script), path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            try:
                # The path exists before the socket listens: only the server can say when it is ready.
                if process.stdout is None or not process.stdout.readline():
                    raise RuntimeError("the echo server did not start")
                yield path
            finally:
                process.kill()


@contextmanager
def _echo(settings: Settings, count: int) -> Iterator[Measure]:
    with _echo_server() as path, asyncio.Runner(loop_factory=loop_factory()) as runner:

        async def connect() -> _Client:
            return (await asyncio.get_running_loop().create_unix_connection(_Client, path))[1]

        client = runner.run(connect())

        def measure(seconds: float) -> Sequence[float]:
            return (runner.run(async_rate(lambda: client.call_batch(count), seconds)) * count,)

        yield measure


@contextmanager
def _echo_one(settings: Settings) -> Iterator[Measure]:
    with _echo(settings, 1) as measure:
        yield measure


@contextmanager
def _echo_batch(settings: Settings) -> Iterator[Measure]:
    with _echo(settings, IN_FLIGHT) as measure:
        yield measure


@contextmanager
def _pipe(settings: Settings) -> Iterator[Measure]:
    there_read, there_write = os.pipe()
    back_read, back_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(there_write)
            os.close(back_read)
            while data := os.read(there_read, 1):
                os.write(back_write, data)
        finally:
            os._exit(0)
    os.close(there_read)
    os.close(back_write)

    def ping() -> None:
        os.write(there_write, b"x")
        os.read(back_read, 1)

    try:
        yield rate_measure(ping)
    finally:
        os.close(there_write)
        os.close(back_read)
        os.waitpid(pid, 0)


@contextmanager
def _memcpy_warm(settings: Settings) -> Iterator[Measure]:
    source = np.ones(_COPY_BYTES, dtype=np.uint8)
    target = np.zeros_like(source)
    target[:] = source
    yield rate_measure(lambda: np.copyto(target, source), _COPY_BYTES / 1e9)


@contextmanager
def _memcpy_fresh(settings: Settings) -> Iterator[Measure]:
    source = np.ones(_COPY_BYTES, dtype=np.uint8)

    def copy() -> None:
        # A shared mapping, because that is where the pages of an object store come from.
        with mmap.mmap(-1, _COPY_BYTES) as memory:
            target = np.frombuffer(memory, dtype=np.uint8)
            np.copyto(target, source)
            del target  # the mapping cannot be closed while a view of it exists

    yield rate_measure(copy, _COPY_BYTES / 1e9)


@contextmanager
def _memcpy_populated(settings: Settings) -> Iterator[Measure]:
    source = np.ones(_COPY_BYTES, dtype=np.uint8)

    def copy() -> float:
        # Both are timed: providing the pages, all in one system call, and the copy.
        with mmap.mmap(-1, _COPY_BYTES) as memory:
            begin = time.perf_counter()
            try:
                memory.madvise(_MADV_POPULATE_WRITE)
            except OSError as error:
                raise RuntimeError(f"pages cannot be populated here: {error}") from None
            target = np.frombuffer(memory, dtype=np.uint8)
            np.copyto(target, source)
            taken = time.perf_counter() - begin
            del target
        return taken

    def measure(seconds: float) -> Sequence[float]:
        # Giving the memory back is not timed: the product's row keeps all that it has put.
        return (_COPY_BYTES / 1e9 / time_measure(copy)(seconds)[0],)

    yield measure


@contextmanager
def _tcp_copy(settings: Settings) -> Iterator[Measure]:
    command = [sys.executable, "-P", str(Path(tcp_copy.__file__))]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        try:
            if process.stdout is None or not (port := process.stdout.readline()):
                raise RuntimeError("the sender did not start")
            receiver = tcp_copy.Receiver(2 * _COPY_BYTES)

            async def connect() -> None:
                await asyncio.get_running_loop().create_connection(lambda: receiver, "127.0.0.1", int(port))

            runner.run(connect())

            def measure(seconds: float) -> Sequence[float]:
                return (runner.run(async_rate(receiver.receive, seconds)) * 2 * _COPY_BYTES / 1e9,)

            yield measure
        finally:
            process.kill()


@contextmanager
def _interpreter(settings: Settings) -> Iterator[Measure]:
    def start() -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        return time.perf_counter() - begin

    yield time_measure(start)


@contextmanager
def _fork(settings: Settings) -> Iterator[Measure]:
    def start() -> float:
        read, write = os.pipe()
        begin = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os.write(write, b"x")
            os._exit(0)
        os.read(read, 1)
        taken = time.perf_counter() - begin
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
        return taken

    yield time_measure(start)


def spin(seconds: float = ITEM_SECONDS) -> None:
    """Keep a core busy for `seconds` of wall time."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@contextmanager
def _spin(settings: Settings) -> Iterator[Measure]:
    def measure(seconds: float) -> Sequence[float]:
        # Evenly divided beforehand: no queue, no messages, no results.
        share = max(1, int(seconds / ITEM_SECONDS))
        begin = time.perf_counter()
        pids = []
        for _ in range(settings.cpus):
            pid = os.fork()
            if pid == 0:
                try:
                    for _ in range(share):
                        spin()
                finally:
                    os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        return (share * settings.cpus / (time.perf_counter() - begin),)

    yield measure


WORKLOADS: tuple[Workload, ...] = (
    Workload("floors", (Row(ECHO_ONE, PER_SECOND),), _echo_one, product=False),
    Workload("floors", (Row(ECHO_BATCH, PER_SECOND),), _echo_batch, product=False),
    Workload("floors", (Row(PIPE, PER_SECOND),), _pipe, product=False),
    Workload("floors", (Row(MEMCPY, GB_PER_SECOND),), _memcpy_warm, product=False),
    Workload("floors", (Row(MEMCPY_FRESH, GB_PER_SECOND),), _memcpy_fresh, product=False),
    Workload("floors", (Row(MEMCPY_POPULATED, GB_PER_SECOND),), _memcpy_populated, product=False),
    Workload("floors", (Row(TCP_COPY, GB_PER_SECOND),), _tcp_copy, product=False),
    Workload("floors", (Row(INTERPRETER, SECONDS),), _interpreter, product=False),
    Workload("floors", (Row(FORK, SECONDS),), _fork, product=False),
    Workload("floors", (Row(SPIN, PER_SECOND),), _spin, product=False),
)
