"""Life of the process of a cluster's head: found out where, listen, serve until somebody says so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._net.address import join_host_port
from framework._net.connection import Connection, Frame
from framework._net.listener import Listener
from framework._net.tcp import PeerListener, bind_tcp
from framework._service.credentials import read_private, write_private
from framework._service.private import write_whole
from framework._service.serving import keep_heap_small, log_into, new_loop, wake_at_end_of
from framework._wire import messages as m
from framework.exceptions import FrameworkError

log = logging.getLogger("framework.head")

MakeService = Callable[[asyncio.AbstractEventLoop, ClusterFacts, dict[str, Any], Callable[[str], None]], Any]


class HeadProcess:
    """The head service, reachable over TCP for all of the cluster and over a Unix socket for its own node.

    `make_service(loop, facts, config, stop)` makes what has all that `Listener` needs (`handlers`,
    `peer_joined`, `peer_lost`, and `turn_over`, called after each batch of messages); `start`; `close`,
    called at the end with the reason; and `count_nodes`, how many are alive. `sweep` removes what the session
    leaves when it ends for good.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: dict[str, Any],
        make_service: MakeService,
        sweep: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._config = config
        self._session_dir: str = config["session_dir"]
        self._sweep = sweep
        self._stopping = False
        self._alone_since: float | None = None
        self._watch = -1
        self.facts = ClusterFacts.from_dict(read_private(self._file("head.json")))
        self.service = make_service(loop, self.facts, config, self.stop)
        self._reason = ""
        self._listeners: list[Any] = []

    def _file(self, *names: str) -> str:
        return os.path.join(self._session_dir, *names)

    def start(self) -> None:
        """Listen, write down where, and tell whoever started this process. OSError when the address cannot
        be listened at."""
        host, _, port = self.facts.head.rpartition(":")
        sock = bind_tcp(self._config["bind"], int(port))
        self.facts.head = join_host_port(host.strip("[]"), sock.getsockname()[1])
        write_private(self._file("head.json"), self.facts.to_dict())
        with contextlib.suppress(FileNotFoundError):  # what a head that was killed has left
            os.unlink(self._file("sockets", "head"))
        self.service.start()
        ident = self.facts.cluster_id
        handlers = {**self.service.handlers, m.CREDENTIALS: self._credentials, m.NODE_END: self._node_end}
        self._listeners = [
            Listener(
                self._loop,
                self._file("sockets", "head"),
                handlers,
                on_peer=self.service.peer_joined,
                on_close=self.service.peer_lost,
                on_batch=self.service.turn_over,
                ident=ident,
                name="head",
            ),
            PeerListener(
                self._loop,
                self.facts,
                handlers,
                on_peer=self.service.peer_joined,
                on_close=self.service.peer_lost,
                on_batch=self.service.turn_over,
                ident=ident,
                sock=sock,
                name="head",
            ),
        ]
        write_whole(self._file("head.pid"), f"{os.getpid()}\n")
        if "parent_pid" in self._config:
            self._watch_parent(self._config["parent_pid"])
        if "alone_grace" in self._config:
            grace = self._config["alone_grace"]
            # The first may take its time, above all if it is to come back.
            self._alone_since = self._loop.time() + limits.HEAD_RETURN_TIMEOUT - grace
            self._loop.call_later(limits.HEARTBEAT, self._look_for_nodes, grace)
        with contextlib.suppress(OSError):  # whoever started us is gone already
            os.write(self._config["ready_fd"], b"1")
        os.close(self._config["ready_fd"])

    def _credentials(self, connection: Connection, frame: Frame) -> None:
        """A process that has proved itself is about to join."""
        facts = self.facts
        answer = {"cluster_id": facts.cluster_id, "certificate": facts.certificate, "key": facts.key}
        connection.reply(frame[1], answer)

    def _node_end(self, connection: Connection, frame: Frame) -> None:
        """A tool wants a node to end."""
        _, rid, node_id, reason = frame
        node = self.service.node_peer(node_id)
        if node is not None:
            node.cast(m.NODE_STOP, reason)
        connection.reply(rid, node is not None)

    def _watch_parent(self, parent: int) -> None:
        ended = partial(self.stop, "the process that started it has ended")
        wake_at_end_of(parent)
        try:
            self._watch = os.pidfd_open(parent)
        except ProcessLookupError:
            self._loop.call_soon(ended)
        except (OSError, AttributeError):
            return
        else:
            self._loop.add_reader(self._watch, ended)

    def _look_for_nodes(self, grace: float) -> None:
        """A head whose nodes have all gone (or never came), and that nobody else would end, ends itself."""
        now = self._loop.time()
        if self.service.count_nodes():
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = now
        if self._alone_since is not None and now - self._alone_since >= grace:
            self.stop("it has no nodes any more")
            return
        self._loop.call_later(limits.HEARTBEAT / 4, self._look_for_nodes, grace)

    def stop(self, reason: str) -> None:
        """End this process in order, and the cluster: it will not be started again here."""
        if self._stopping:
            return
        self._stopping, self._reason = True, reason
        log.info("the head ends: %s", reason)
        if self._watch >= 0:
            self._loop.remove_reader(self._watch)
        self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        self.service.close(self._reason)
        for listener in self._listeners:
            for connection in list(listener.connections):
                connection.flush()
            listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self._file("head.pid"))
        self._loop.stop()

    def sweep(self) -> None:
        """After the loop has ended."""
        if self._stopping:
            self._sweep(self._session_dir)


def run_head(
    config: dict[str, Any],
    make_service: MakeService,
    sweep: Callable[[str], None],
) -> None:
    """The whole life of the process. Never returns."""
    code = 1
    process: HeadProcess | None = None
    try:
        log_into(os.path.join(config["session_dir"], "logs", "head.log"))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.chdir("/")
        loop = new_loop()
        asyncio.set_event_loop(loop)
        try:
            process = HeadProcess(loop, config, make_service, sweep)
        except FrameworkError as error:
            os.write(config["ready_fd"], f"!the head cannot start: {error}".encode())
            raise
        loop.add_signal_handler(signal.SIGTERM, process.stop, "it was asked to (SIGTERM)")
        try:
            process.start()
        except OSError as error:
            os.write(config["ready_fd"], f"!the head cannot listen at {process.facts.head}: {error}".encode())
            raise
        keep_heap_small(loop)
        loop.run_forever()
        code = 0
    except BaseException:
        traceback.print_exc()
        log.exception("the head's process failed")
    finally:
        logging.shutdown()
        if process is not None:
            process.sweep()
        os._exit(code)
