"""The node's side of zygotes: ask for forks, hear of exits.

There is one zygote per set of environment variables that matter when modules are loaded
(`LOAD_TIME_VARIABLES`, e.g. OMP_NUM_THREADS, which BLAS reads once); all other variables are set in the child
after the fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import msgpack

from framework._base import limits
from framework._service.launch import command, spawn
from framework._state.node import EnvKey

LOAD_TIME_VARIABLES = (
    "OMP_",
    "OPENBLAS_",
    "MKL_",
    "BLIS_",
    "NUMEXPR_",
    "VECLIB_",
    "PYTHON",
    "LD_",
    "MALLOC_",
    "NUMPY_",
)


def load_time_part(env: EnvKey) -> EnvKey:
    """The variables that a fork would set too late."""
    return tuple((name, value) for name, value in env if name.startswith(LOAD_TIME_VARIABLES))


class Zygote:
    """One zygote process and the socket to it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        pid: int,
        *,
        on_forked: Callable[[bytes, int, str], None],
        on_exit: Callable[[int, int], None],
        on_lost: Callable[[Zygote], None],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._on_forked = on_forked
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._unpacker = msgpack.Unpacker(
            read_size=limits.DECODER_BUFFER, max_buffer_size=limits.MAX_ZYGOTE_BUFFER
        )
        self._out = b""
        self.pid = pid
        self.env: EnvKey = ()
        self.closed = False
        loop.add_reader(sock.fileno(), self._readable)

    def fork(self, worker_id: bytes, env: EnvKey, config: dict[str, Any]) -> None:
        """Ask for a worker; `on_forked(worker_id, pid, error)` tells how it went."""
        self._out += msgpack.packb([worker_id, dict(env), config])
        self._write()

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the reading side will notice
        self._out = self._out[sent:]
        if self._out:
            self._loop.add_writer(self._sock.fileno(), self._write)
        else:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._on_lost(self)
            return
        self._unpacker.feed(data)
        for message in self._unpacker:
            if message[0] == "forked":
                self._on_forked(message[1], message[2], message[3])
            else:
                self._on_exit(message[1], message[2])

    def close(self) -> None:
        """Let go of the socket: the zygote ends, and with it, by their parent-death signal, its workers."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def reap(self) -> None:
        """Kill and collect the process, if it is a child of this one."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def spawn_zygote(env: EnvKey) -> tuple[socket.socket, int]:
    """Start a zygote in a fresh interpreter with these variables set from the beginning. OSError if that
    fails.
    """
    ours, theirs = socket.socketpair()
    try:
        argv = command("framework._worker.__main__", str(theirs.fileno()), str(os.getpid()))
        child = spawn(argv, env={**os.environ, **dict(env)}, keep=(theirs.fileno(),))
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours, child.pid  # reaped by `Zygote.reap`


def describe_exit(status: int, by_us: bool = False) -> str:
    """A wait status in words, as errors show it; `by_us`: the node ended it, and says why elsewhere."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "unknown signal"
        hint = ""
        if by_us:
            pass
        elif number == signal.SIGKILL:
            hint = "; something killed it: the out-of-memory killer of the system, or a person"
        elif number == signal.SIGSEGV:
            hint = "; a crash in compiled code"
        return f"killed by signal {number} ({name}){hint}"
    return f"exited with code {os.WEXITSTATUS(status)}"
