"""The zygote: a process with one thread and no loop that has loaded everything a worker needs, and forks on
request.

Measured on a 2-core machine: 4 to 8 ms from the request to a running worker, against 250 ms for a new
interpreter. It ends when the node closes its socket or dies; its workers get SIGKILL from the kernel when it
ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from framework._base.limits import DECODER_BUFFER, EARLY_FORKS, EARLY_PAUSE, EARLY_WAIT, MAX_ZYGOTE_BUFFER
from framework._worker.settling import settle

PR_SET_PDEATHSIG = 1


@functools.cache
def _libc() -> ctypes.CDLL:
    """Found once, before the forks: finding it touches 60 pages of memory, which each of them would copy."""
    return ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux), also when it ended before this call."""
    if sys.platform == "linux":
        _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def run_zygote(
    sock: socket.socket, preload: Callable[[], None], preload_libraries: Callable[[], None], parent: int
) -> None:
    """Serve fork requests until the socket ends, or `parent` does. `preload` loads what every worker needs;
    `preload_libraries` what takes long and only some need: the first workers (`EARLY_FORKS`) do not wait for
    it, and load it themselves if they must. All later ones inherit it. It is loaded when the next one is
    asked for, or nothing is for a while.

    Returns only in the zygote itself; workers end by `os._exit`."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # BLAS starts its threads when numpy is loaded
        os.environ["FRAMEWORK_OMP_DEFAULT"] = "1"  # nobody chose it: workers follow num_cpus, as Ray's do
    import msgpack

    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    os.set_blocking(write_fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    unpacker = msgpack.Unpacker(read_size=DECODER_BUFFER, max_buffer_size=MAX_ZYGOTE_BUFFER)
    sock.setblocking(True)
    gc.disable()  # what is being loaded is no garbage
    preload()
    settle(fill=False)  # (somebody waits)
    gc.enable()
    forks = 0
    early: float | None = EARLY_WAIT
    watched: list[Any] = [sock, read_fd]
    while True:
        ready, _, _ = select.select(watched, [], [], early)
        if read_fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(read_fd, 4096)
            _reap(sock, msgpack.packb)
        if sock in ready:
            data = sock.recv(65536)
            if not data:
                return
            unpacker.feed(data)
        for worker_id, env, config in unpacker:
            if early is not None and forks == EARLY_FORKS:
                _load_rest(preload_libraries)
                early = None
            _fork(sock, (read_fd, write_fd), worker_id, env, config, msgpack.packb)
            forks += 1
        if early is not None:
            if not ready:
                _load_rest(preload_libraries)
                early = None
            elif forks == EARLY_FORKS:
                early = EARLY_PAUSE


def _load_rest(preload_libraries: Callable[[], None]) -> None:
    """What the first workers have not waited for."""
    preload_libraries()
    settle(fill=True)


def _reap(sock: socket.socket, pack: Any) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        sock.sendall(pack(["exited", pid, status]))


def _fork(
    sock: socket.socket, pipe: tuple[int, int], worker_id: bytes, env: dict[str, str], config: Any, pack: Any
) -> None:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        sock.sendall(pack(["forked", worker_id, 0, str(error)]))
        return
    if pid:
        sock.sendall(pack(["forked", worker_id, pid, ""]))
        return
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sock.close()
        for fd in pipe:
            os.close(fd)
        die_with_parent(parent)
        if env:
            os.environ.update(env)
        from framework._worker.main import run_worker

        code = run_worker(config, env)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
