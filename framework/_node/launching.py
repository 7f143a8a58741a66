"""The processes of a cluster, as whoever starts them sees them: its head, and nodes that join it.

Secrets go by way of files of mode 0600 in the session directory (``head.json``, ``join.json``), never by the
command line or the environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from typing import Any, Self

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._base.secret import hidden
from framework._node.local import StartedNode
from framework._node.session import create_session, head_pid, is_of_session, open_private, sweep_session
from framework._service.credentials import (
    TOKEN_VARIABLE,
    fingerprint,
    make_certificate,
    read_private,
    write_private,
)
from framework._service.launch import Child, command, spawn
from framework.exceptions import ConnectionFailedError, LocalNodeDiedError


def is_loopback(host: str) -> bool:
    """Whether an address (or name) to listen at can be reached from this machine alone."""
    return host in ("localhost", "::1") or host.startswith("127.")


def new_facts(token: bytes, host: str, port: int, tls: bool, cluster_id: bytes | None = None) -> ClusterFacts:
    """Those of a new cluster, whose head others reach at `host`. `port` 0: any that is free."""
    certificate, key = make_certificate() if tls else (None, None)
    return ClusterFacts(
        cluster_id=cluster_id or os.urandom(16),
        token=token,
        head=f"{host}:{port}",
        host=host,
        node_id=b"",
        certificate=certificate,
        key=key,
    )


def _expect_ready(ours: socket.socket, child: Child, what: str, log: str) -> None:
    """Wait for the byte that says that a process is up. `LocalNodeDiedError` when it does not come,
    `ConnectionFailedError` when the process says that it cannot join."""
    ours.settimeout(limits.NODE_START_TIMEOUT)
    said = b""
    try:
        while chunk := ours.recv(65536):
            said += chunk
            if said.startswith(b"1"):
                return
    except TimeoutError:
        raise LocalNodeDiedError(
            f"{what} did not come up within {limits.NODE_START_TIMEOUT:g} s; its log is {log}"
        ) from None
    if said.startswith(b"!"):
        raise ConnectionFailedError(said[1:].decode(errors="replace"))
    child.wait(limits.EXIT_GRACE)
    text = ""
    with contextlib.suppress(OSError), open(log, errors="replace") as file:
        text = file.read()[-4000:].strip()
    raise LocalNodeDiedError(
        f"{what} did not start (exit code {child.code}). It said:\n{text or '(nothing)'}"
    )


def start_head(session_dir: str, bind: str, ready: socket.socket, parent_pid: int | None = None) -> Child:
    """Start the process of the head that belongs to a session directory, and do not wait: it writes to
    `ready` when it serves. OSError when that cannot be done."""
    config: dict[str, Any] = {
        "session_dir": session_dir,
        "bind": bind,
        "state": os.path.join(session_dir, "head.db"),
        "ready_fd": ready.fileno(),
    }
    if parent_pid is not None:
        config["parent_pid"] = parent_pid
    else:
        config["alone_grace"] = limits.HEAD_ALONE  # nobody else would end it
    log = open_private(os.path.join(session_dir, "logs", "head.err"))
    try:
        return spawn(
            command("framework._head.__main__", json.dumps(config)),
            env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
            keep=(ready.fileno(),),
            output=log,
            new_session=True,
        )
    finally:
        os.close(log)


class HeadProcess:
    """The head of a new cluster, in a session directory of its own, where its node belongs too.

    `bind`: the address that it listens at, while ``facts.head`` is how others reach it. With `parent_pid` it
    ends when that process does. Blocks until it serves. `LocalNodeDiedError` when it does not, OSError when
    its directory or process cannot be made.
    """

    def __init__(
        self, facts: ClusterFacts, *, bind: str | None = None, parent_pid: int | None = None
    ) -> None:
        self.session_dir = create_session(os.urandom(4).hex())
        self._bind = bind or facts.host
        self._parent_pid = parent_pid
        self.process: Child | None = None
        try:
            write_private(self._file("head.json"), facts.to_dict())
            self.start()
        except BaseException:
            self.kill()
            sweep_session(self.session_dir)
            raise

    def _file(self, *names: str) -> str:
        return os.path.join(self.session_dir, *names)

    def start(self) -> None:
        """Start its process (again), and wait until it serves."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self.process = start_head(self.session_dir, self._bind, theirs, self._parent_pid)
            log_path = self._file("logs", "head.err")
            _expect_ready(ours, self.process, "the process of the cluster's head", log_path)

    @property
    def facts(self) -> ClusterFacts:
        """The cluster's, with the head's real port."""
        return ClusterFacts.from_dict(read_private(self._file("head.json")))

    @property
    def pid(self) -> int:
        """Of its latest process."""
        return self.process.pid if self.process is not None else 0

    def kill(self) -> None:
        """SIGKILL: what it has not written down is lost. It may be started again."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(limits.SHUTDOWN_GRACE)

    def stop(self) -> None:
        """End it in order, for good."""
        if self.process is not None:
            end_in_order(self.process)


class JoinedNode(StartedNode):
    """A node of a cluster, in a process of its own.

    `head`: ``HOST:PORT``. `host`: the address under which others reach this node (by default the one that it
    has towards the head), `bind`: the one that it listens at. `session_dir`: that of the head, for its node;
    with `keeps_head` (the address that the head listens at) this node starts the head again if it dies. With
    `parent_pid` it ends when that process does. Does not wait: see `expect_ready`.
    """

    def __init__(
        self,
        *,
        head: str,
        token: bytes,
        fingerprint: str | None,
        resources: dict[str, Any],
        host: str | None = None,
        bind: str | None = None,
        session_dir: str | None = None,
        parent_pid: int | None = None,
        keeps_head: str | None = None,
    ) -> None:
        self._secrets = hidden({"head": head, "token": token.hex(), "fingerprint": fingerprint})
        self._ready, theirs = socket.socketpair()
        config: dict[str, Any] = {
            "resources": resources,
            "ready_fd": theirs.fileno(),
            "cluster": {"host": host, "bind": bind, "keeps_head": keeps_head},
        }
        if parent_pid is not None:
            config["parent_pid"] = parent_pid
        try:
            with theirs:
                super().__init__(config, (theirs.fileno(),), session_dir)
        except BaseException:
            self._ready.close()
            raise

    @classmethod
    def of(
        cls,
        facts: ClusterFacts,
        resources: dict[str, Any],
        *,
        bind: str | None = None,
        session_dir: str | None = None,
        parent_pid: int | None = None,
        keeps_head: str | None = None,
    ) -> Self:
        """A node that joins the cluster with these facts, and is reached at their host."""
        return cls(
            head=facts.head,
            token=facts.token,
            fingerprint=fingerprint(facts.certificate) if facts.certificate is not None else None,
            resources=resources,
            host=facts.host,
            bind=bind,
            session_dir=session_dir,
            parent_pid=parent_pid,
            keeps_head=keeps_head,
        )

    def _prepare(self) -> None:
        write_private(os.path.join(self.session_dir, "join.json"), self._secrets)

    def expect_ready(self) -> None:
        """Wait until it has joined. `ConnectionFailedError` or `LocalNodeDiedError`, which say why, when it
        has not; it is gone then."""
        try:
            with self._ready:
                _expect_ready(self._ready, self.process, "the node process", self._log_path())
        except BaseException:
            self.process.kill()
            self.wait()
            raise

    def forget(self) -> None:
        """Nobody waits for it to be ready any more."""
        self._ready.close()

    def stop(self) -> None:
        """End it in order: its workers end, its directory is swept."""
        with contextlib.suppress(ProcessLookupError):
            if not self.process.poll():
                os.kill(self.process.pid, signal.SIGTERM)


def end_in_order(process: Child, timeout: float = limits.SHUTDOWN_GRACE + limits.EXIT_GRACE) -> None:
    """SIGTERM, and SIGKILL for a process that has not ended `timeout` seconds later."""
    if process.poll():
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGCONT)
    if not process.wait(timeout):
        process.kill()
        process.wait(timeout)


def end_head(session_dir: str) -> None:
    """End the head that belongs to a session, whoever has started it; wait until it is gone."""
    pid = head_pid(session_dir)
    if pid is None:
        return
    deadline = time.monotonic() + limits.SHUTDOWN_GRACE
    number = signal.SIGTERM
    while head_pid(session_dir) is not None:
        if not is_of_session(pid, session_dir):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        time.sleep(0.01)
