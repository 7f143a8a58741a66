"""Sessions that were started to stay (``python -m framework start --head``): started, found, asked, stopped.

Synchronous: for programs that want one answer, not for services.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from typing import Any, Self

from framework._base import limits
from framework._base.ids import WORKER_ID_SIZE
from framework._net.listener import connect_unix, hello
from framework._node.local import StartedNode
from framework._node.session import node_pid, staying_sessions, sweep_session
from framework._wire import messages as m
from framework._wire.codec import DECODE_ERRORS, Decoder, new_packer
from framework.exceptions import ConnectionFailedError, FrameworkError, LocalNodeDiedError


def start_session(wanted: dict[str, Any]) -> str:
    """Start a node process that outlives this one and every driver; the directory of its session, once it
    answers. `wanted`: what the node is to offer. `LocalNodeDiedError` when it does not come up, OSError when
    its directory or process cannot be made."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            node = StartedNode({"resources": wanted, "ready_fd": theirs.fileno()}, (theirs.fileno(),))
        try:
            ours.settimeout(limits.NODE_START_TIMEOUT)
            if ours.recv(1):
                return node.session_dir
            node.process.wait(limits.EXIT_GRACE)
            raise LocalNodeDiedError(node.last_words())
        except BaseException as error:
            node.process.kill()
            node.wait()
            if isinstance(error, TimeoutError):
                raise LocalNodeDiedError(
                    f"the node process did not come up within {limits.NODE_START_TIMEOUT:g} s"
                ) from None
            raise


def running_sessions() -> list[str]:
    """The directories of this user's sessions that were started to stay and that answer, the latest first."""
    found = []
    for session_dir in staying_sessions():
        with contextlib.suppress(OSError):
            connect_unix(os.path.join(session_dir, "sockets", "head")).close()
            found.append(session_dir)
    return found


class Client:
    """A connection to the services of a session's node, for calls one after the other. `service` is "node" or
    "head". Raises `ConnectionFailedError` when it does not answer in time."""

    def __init__(self, session_dir: str, service: str) -> None:
        self._what = f"the {service} of session {session_dir}"
        self._pack = new_packer()
        self._decoder = Decoder(limits.MAX_FRAME)
        self._frames: deque[list[Any]] = deque()
        self._rid = 0
        try:
            self._sock = connect_unix(os.path.join(session_dir, "sockets", service))
        except OSError as error:
            raise ConnectionFailedError(f"{self._what} does not answer: {error}") from None
        self._sock.settimeout(limits.CONNECT_TIMEOUT)
        self.cast(*hello("tool", os.urandom(WORKER_ID_SIZE)))

    def cast(self, *frame: object) -> None:
        """Send a message without an answer."""
        try:
            self._sock.sendall(self._pack(frame))
        except OSError as error:
            raise ConnectionFailedError(f"{self._what} does not answer: {error}") from None

    def call(self, opcode: int, *fields: object) -> Any:
        """Send a call; its answer. An error of the service is raised as `FrameworkError`."""
        self._rid += 1
        self.cast(opcode, self._rid, *fields)
        while True:
            frame = self._next()
            if frame[0] == m.REPLY and frame[1] == self._rid:
                return frame[2]
            if frame[0] == m.FAIL and frame[1] == self._rid:
                raise FrameworkError(": ".join(map(str, frame[2])))

    def _next(self) -> list[Any]:
        while not self._frames:
            try:
                data = self._sock.recv(limits.RECV_CHUNK)
            except OSError as error:
                raise ConnectionFailedError(f"{self._what} does not answer: {error}") from None
            try:
                self._frames.extend(self._decoder.feed(data))
            except DECODE_ERRORS as error:
                raise ConnectionFailedError(f"{self._what} answers what is no frame: {error}") from None
            if not data:
                raise ConnectionFailedError(f"{self._what} has closed the connection")
        return self._frames.popleft()

    def wait_for_end(self, timeout: float) -> bool:
        """Until the other side closes the connection; False when that takes longer."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(OSError):
            while (left := deadline - time.monotonic()) > 0:
                self._sock.settimeout(left)
                if not self._sock.recv(limits.RECV_CHUNK):
                    return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()


def stop_session(session_dir: str) -> bool:
    """End a session with all that runs in it, and wait until it is over. Its node is killed if it does not
    answer. False when nothing of it was running."""
    pid = node_pid(session_dir)
    watch = _watch(pid)
    asked = False
    try:
        with contextlib.suppress(ConnectionFailedError), Client(session_dir, "node") as node:
            node.cast(m.NODE_STOP, "it was stopped by `python -m framework stop`")
            asked = node.wait_for_end(limits.SHUTDOWN_GRACE)
        ended = _ended(watch, limits.SHUTDOWN_GRACE if asked else 0)
        if pid is not None and not ended and _is_node_of(pid, session_dir):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # it leads its group
            asked = True
            _ended(watch, limits.SHUTDOWN_GRACE)
    finally:
        if watch >= 0:
            os.close(watch)
    sweep_session(session_dir)
    return asked


def wait_for_session(session_dir: str) -> bool:
    """Until a session ends. False when its node process has died without cleaning up."""
    with Client(session_dir, "node") as node:
        while not node.wait_for_end(_LONG):
            pass
    deadline = time.monotonic() + limits.SHUTDOWN_GRACE
    while node_pid(session_dir) is not None:  # removed at the end
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


_LONG = 3600.0


def _watch(pid: int | None) -> int:
    """A descriptor that becomes readable when the process ends; -1 when there is none, or the system has no
    such thing."""
    if pid is not None:
        with contextlib.suppress(OSError, AttributeError):
            return os.pidfd_open(pid)
    return -1


def _ended(watch: int, timeout: float) -> bool:
    if watch < 0:
        return False
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _is_node_of(pid: int, session_dir: str) -> bool:
    """Whether this process is the node of that session: its number may belong to another one by now."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsencode(session_dir) in file.read()
    except OSError:
        return False
