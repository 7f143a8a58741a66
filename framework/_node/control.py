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
from framework._base.cluster import ClusterFacts
from framework._base.ids import WORKER_ID_SIZE
from framework._net.address import host_port
from framework._net.connection import Connection, Handler
from framework._net.listener import connect_unix, hello
from framework._node.launching import HeadProcess, JoinedNode, end_head, is_loopback, new_facts
from framework._node.session import (
    head_pid,
    is_of_session,
    live_sessions,
    node_pid,
    session_dirs,
    staying_sessions,
    sweep_session,
)
from framework._service.credentials import (
    TOKEN_VARIABLE,
    new_token,
    read_private,
    token_from_environment,
    token_text,
)
from framework._service.private import write_whole
from framework._wire import messages as m
from framework._wire.codec import DECODE_ERRORS, Decoder, new_packer
from framework.exceptions import ConnectionFailedError, FrameworkError


class StartedSession:
    """What `start_session` has started."""

    def __init__(self, session_dir: str, facts: ClusterFacts) -> None:
        self.session_dir = session_dir
        self.address = facts.head  #: HOST:PORT of the head
        self.token = token_text(facts.token, facts.certificate)  #: what those need who join
        self.encrypted = facts.certificate is not None

    def write_token(self) -> str:
        """Write the token into a file in the session directory that only this user may read; its path."""
        path = os.path.join(self.session_dir, "token")
        write_whole(path, self.token)
        return path


def start_session(
    wanted: dict[str, Any],
    *,
    host: str = "127.0.0.1",
    bind: str | None = None,
    port: int = 0,
    tls: bool | None = None,
) -> StartedSession:
    """Start a cluster's head and its node, which outlive this process and every driver. `wanted`: what the
    node is to offer. `host` is how others reach it; it listens at `bind` (by default `host`) and `port` (0:
    any that is free). `tls`: whether connections are encrypted; by default those that leave the machine. The
    secret is that in ``FRAMEWORK_TOKEN``, or a new one. `LocalNodeDiedError` when it does not come up,
    OSError when its directory or processes cannot be made, `ValueError` for a token that is none."""
    given = token_from_environment()
    token = given[0] if given is not None else new_token()
    encrypted = tls if tls is not None else not is_loopback(bind or host)
    head = HeadProcess(new_facts(token, host, port, encrypted), bind=bind)
    try:
        facts = head.facts
        node = JoinedNode.of(
            facts,
            wanted,
            bind=bind,
            session_dir=head.session_dir,
            keeps_head=bind or host,
        )
        node.expect_ready()
    except BaseException:
        head.kill()
        sweep_session(head.session_dir)
        raise
    return StartedSession(head.session_dir, facts)


def join_session(
    address: str,
    wanted: dict[str, Any],
    *,
    host: str | None = None,
    bind: str | None = None,
) -> str:
    """Start a node that joins the cluster whose head is at `address` (``HOST:PORT``), by ``FRAMEWORK_TOKEN``;
    the directory of its session. It outlives this process. Raises as `start_session`, and
    `ConnectionFailedError` when it cannot join."""
    node = joining_node(address, wanted, host=host, bind=bind)
    node.expect_ready()
    return node.session_dir


def joining_node(
    address: str,
    wanted: dict[str, Any],
    *,
    host: str | None = None,
    bind: str | None = None,
    parent_pid: int | None = None,
) -> JoinedNode:
    """As `join_session`, without waiting; with `parent_pid` it ends when that process does."""
    head = host_port(address)
    given = token_from_environment()
    if given is None:
        try:
            socket.create_connection(head, limits.CONNECT_TIMEOUT).close()
        except OSError as error:
            raise ConnectionFailedError(
                f"no head of a cluster answers at {address}: {head[0]} port {head[1]} cannot be reached: "
                f"{error}. "
                f"(To join one, its token is needed in the environment variable {TOKEN_VARIABLE}, too)"
            ) from None
        raise ConnectionFailedError(
            f"to join the cluster at {address}, its token is needed in the environment variable "
            f"{TOKEN_VARIABLE}: `python -m framework start --head` has printed it there"
        )
    return JoinedNode(
        head=address,
        token=given[0],
        fingerprint=given[1],
        resources=wanted,
        host=host,
        bind=bind,
        parent_pid=parent_pid,
    )


def running_sessions() -> list[str]:
    """The directories of this user's sessions that were started to stay and that answer, the latest first."""
    found = []
    for session_dir in staying_sessions():
        with contextlib.suppress(OSError):
            connect_unix(os.path.join(session_dir, "sockets", "node")).close()
            found.append(session_dir)
    return found


def headed_sessions() -> list[str]:
    """The directories of this user's sessions in which the head of a cluster runs whose node there has
    died."""
    found = []
    for path in session_dirs():
        if head_pid(path) is not None:
            pid = node_pid(path)
            if pid is None or not is_of_session(pid, path):
                found.append(path)
    return found


def cluster_facts(session_dir: str) -> ClusterFacts | None:
    """The cluster that a session's node belongs to; None when it belongs to none, or has ended."""
    try:
        return ClusterFacts.from_dict(read_private(os.path.join(session_dir, "cluster.json")))
    except (OSError, KeyError, ValueError):
        return None


def sessions_of_cluster(address: str) -> list[str]:
    """The directories of this user's sessions on this machine whose nodes belong to the cluster with its head
    at `address` (``HOST:PORT``), the head's node first, those that end with a driver last."""
    host, port = host_port(address)
    staying = staying_sessions()
    found = []
    for session_dir in live_sessions():
        facts = cluster_facts(session_dir)
        if facts is None or not _is_same_place(facts.head, host, port):
            continue
        is_head = os.path.exists(os.path.join(session_dir, "head.json"))
        found.append((not is_head, session_dir not in staying, session_dir))
    return [session_dir for *_, session_dir in sorted(found)]


def _is_same_place(head: str, host: str, port: int) -> bool:
    """Whether `host`, `port` is where the head is: the host may be a name."""
    try:
        there, there_port = host_port(head)
    except ValueError:
        return False
    if there_port != port:
        return False
    if there == host:
        return True
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        return there in found or bool(
            found & {entry[4][0] for entry in socket.getaddrinfo(there, port, type=socket.SOCK_STREAM)}
        )
    except OSError:
        return False


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
        self.timeout = limits.CONNECT_TIMEOUT
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
        self._sock.settimeout(self.timeout)
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


class RemoteHead:
    """As `Client`, to the head of the cluster that a session's node belongs to, wherever that is."""

    def __init__(self, facts: ClusterFacts) -> None:
        import asyncio

        self._head = facts.head
        self.timeout = limits.CONNECT_TIMEOUT
        self._loop = asyncio.new_event_loop()
        try:
            self._connection = self._loop.run_until_complete(self._open(facts))
        except BaseException:
            self._loop.close()
            raise

    async def _open(self, facts: ClusterFacts) -> Connection:
        from framework._net.tcp import open_authenticated

        host, port = host_port(facts.head)
        sock = await open_authenticated(self._loop, host, port, facts)
        handlers: dict[int, Handler] = {m.WELCOME: lambda c, f: None}
        connection = Connection(self._loop, sock, handlers, on_close=lambda c: None, name="the head")
        connection.cast(*hello("tool", os.urandom(WORKER_ID_SIZE)))
        return connection

    def call(self, opcode: int, *fields: object) -> Any:
        """A call and its answer. Raises as that of `Client`."""
        import asyncio

        async def ask() -> Any:
            return await asyncio.wait_for(self._connection.call(opcode, *fields), self.timeout)

        try:
            return self._loop.run_until_complete(ask())
        except TimeoutError:
            raise ConnectionFailedError(f"the head of the cluster at {self._head} does not answer") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._loop.close()


def client_of_head(session_dir: str) -> Client | RemoteHead:
    """A connection to the head of a session, or of the cluster that its node belongs to."""
    facts = cluster_facts(session_dir)
    if facts is None or os.path.exists(os.path.join(session_dir, "sockets", "head")):
        return Client(session_dir, "head")
    return RemoteHead(facts)


def stop_session(session_dir: str, force: bool = False) -> bool:
    """End a session with all that runs in it, and wait until it is over; with the head of a cluster, all of
    the cluster. Its node is killed if it does not answer, or at once with `force`. False when nothing of it
    was running."""
    pid = node_pid(session_dir)
    watch = _watch(pid)
    asked = pid is not None and is_of_session(pid, session_dir)
    if head_pid(session_dir) is not None:  # the whole cluster ends with it
        asked = True
        with contextlib.suppress(FrameworkError), Client(session_dir, "head") as head:
            head.call(m.HEAD_STOP, _STOPPED)
    try:
        with contextlib.suppress(ConnectionFailedError), Client(session_dir, "node") as node:
            if force:
                raise ConnectionFailedError("nobody waits for it")
            node.cast(m.NODE_STOP, _STOPPED)
            asked = node.wait_for_end(limits.SHUTDOWN_GRACE) or asked
        ended = _ended(watch, limits.SHUTDOWN_GRACE if asked and not force else 0)
        if pid is not None and not ended and is_of_session(pid, session_dir):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # it leads its group
            asked = True
            _ended(watch, limits.SHUTDOWN_GRACE)
    finally:
        if watch >= 0:
            os.close(watch)
    end_head(session_dir)
    sweep_session(session_dir)
    return asked


_STOPPED = "it was stopped by `python -m framework stop`"


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
