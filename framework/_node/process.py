"""Life of a node process: set up, serve until the driver ends or somebody says so, leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._base.resources import UNIT
from framework._net.connection import Connection, Handler
from framework._net.listener import Listener
from framework._node.ends import adopt_orphans, end_children
from framework._node.hardware import default_resources
from framework._node.service import NodeService
from framework._node.session import sweep_session, sweep_stale_sessions, write_node_pid
from framework._node.store_service import StoreService
from framework._service.serving import keep_heap_small, log_into, new_loop, wake_at_end_of
from framework._wire import messages as m
from framework.exceptions import FrameworkError, ProtocolError

if TYPE_CHECKING:
    from framework._node.clustered import ClusterSide

log = logging.getLogger("framework.node")


def default_store_capacity() -> int:
    """30 % of the memory that this node may use (a cgroup's limit first), as Ray has it; it is taken only as
    it is used.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            with open(path) as file:
                memory = min(memory, int(file.read()))
    return max(limits.STORE_MINIMUM, int(memory * limits.STORE_SHARE) & -4096)


class Service(Protocol):
    """What the process needs of a service that peers connect to."""

    handlers: dict[int, Handler]

    def peer_joined(self, connection: Connection) -> dict[str, object] | None: ...

    def peer_lost(self, connection: Connection) -> None: ...


class NodeProcess:
    """Head and node manager on one loop; in a cluster, whose head is a process of its own, the node manager
    alone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: dict[str, Any],
        make_head: Callable[[asyncio.AbstractEventLoop], Service] | None,
        facts: ClusterFacts | None = None,
    ) -> None:
        """`make_head` in local sessions, `facts` in clusters."""
        self._loop = loop
        self._config = config
        self._session_dir: str = config["session_dir"]
        self._stopping = self._ended = False
        self._reason = ""
        self._stays = "ready_fd" in config  #: whatever becomes of drivers
        self._watches: set[int] = set()
        wanted = config["resources"]
        total = default_resources(
            wanted["num_cpus"], wanted["num_gpus"], wanted["memory"], wanted["resources"]
        )
        capacity = wanted["object_store_memory"] or default_store_capacity()
        total["object_store_memory"] = capacity * UNIT
        self.head = make_head(loop) if make_head is not None else None
        self.node = NodeService(
            loop,
            bytes.fromhex(config["node_id"]),
            self._session_dir,
            total,
            random_bytes=os.urandom,
            prestart=max(1, min(total.get("CPU", 0) // 10_000, 64)),
            stop=self.stop,
            memory_threshold=wanted["memory_threshold"],
            stays=self._stays,
        )
        self.node.labels = wanted.get("labels") or {}
        self.store = StoreService(
            loop, self._session_dir, capacity, wanted["spill_directory"], self.node.process_of
        )
        self.node.attach_store(self.store.handlers, self.store.peer_lost)
        self._connections: list[Connection] = []
        self._listeners: list[Listener] = []
        self.cluster: ClusterSide | None = None
        if facts is not None:
            from framework._node.clustered import ClusterSide

            self.cluster = ClusterSide(
                loop, config, facts, self.node, self.store, stop=self.stop, joined=self._tell_starter
            )

    def _listen(self, name: str, service: Service) -> None:
        self._listeners.append(
            Listener(
                self._loop,
                os.path.join(self._session_dir, "sockets", name),
                service.handlers,
                on_peer=partial(self._joined, service),
                on_close=service.peer_lost,
                ident=self.node.node_id,
                name=name,
            )
        )

    def start_in_cluster(self, zygote_sock: socket.socket, zygote_pid: int) -> None:
        """Listen, and join the head; whoever started this process is told when it has."""
        assert self.cluster is not None
        self.cluster.listen()
        self._listen("node", self.node)
        parent = self._config.get("parent_pid")
        if parent is not None:
            wake_at_end_of(parent)
            self._watch(parent, lambda: self.stop("the process that started it has ended"))
        head: Any = self.cluster.head  # (has what the service uses of a `Connection`)
        self.node.start(zygote_sock, zygote_pid, head)
        self.cluster.start()
        self._loop.call_later(1.0, self._sweep_stale)

    def _tell_starter(self) -> None:
        """It is up."""
        with contextlib.suppress(OSError):  # whoever started us is gone already
            os.write(self._config["ready_fd"], b"1")
        os.close(self._config["ready_fd"])

    def start(self, zygote_sock: socket.socket, zygote_pid: int) -> None:
        """Listen, join the head, greet the driver (or tell whoever started a node that stays)."""
        assert self.head is not None
        self._listen("node", self.node)
        self._listen("head", self.head)
        to_head, to_node = socket.socketpair()
        head_side = Connection(
            self._loop, to_node, self.head.handlers, on_close=self.head.peer_lost, name="node"
        )
        node_side = Connection(
            self._loop, to_head, self.node.head_handlers, on_close=lambda _: None, name="head"
        )
        self._connections += [head_side, node_side]
        self.node.start(zygote_sock, zygote_pid, node_side)
        self._loop.call_later(1.0, self._sweep_stale)
        if self._stays:
            self._tell_starter()
            return
        self._adopt(self._config["head_fd"], self.head)
        self._adopt(self._config["driver_fd"], self.node)
        self._watch(self._config["driver_pid"], lambda: self.stop("its driver has ended"))

    def _joined(self, service: Service, connection: Connection) -> dict[str, object] | None:
        """A peer has connected. Of drivers we watch the process too."""
        if connection.kind == "driver":
            self._watch(connection.peer["pid"], connection.close)
        facts = service.peer_joined(connection)
        if facts is not None and self.cluster is not None:
            facts["gone"] = self.cluster.neighbours.recently_dead()
        return facts

    def _adopt(self, fd: int, service: Service) -> None:
        """The driver that started this process is connected already: it says HELLO on the socket that we
        inherited.
        """

        def on_hello(connection: Connection, frame: list[Any]) -> None:
            if connection.kind:
                raise ProtocolError("HELLO twice")
            _, _, connection.kind, connection.ident, pid, address, info = frame
            connection.peer = {**info, "pid": pid, "address": address}
            connection.name = f"{connection.kind} {connection.ident.hex()[:8]} (pid {pid})"
            facts = service.peer_joined(connection) or {}
            connection.cast(m.WELCOME, limits.PROTOCOL_VERSION, self.node.node_id, facts)

        sock = socket.socket(fileno=fd)
        handlers = {**service.handlers, m.HELLO: on_hello}
        self._connections.append(
            Connection(
                self._loop,
                sock,
                handlers,
                on_close=lambda c: self._driver_lost(c, service),
                name="driver",
                serves=True,
            )
        )

    def _driver_lost(self, connection: Connection, service: Service) -> None:
        service.peer_lost(connection)
        if not connection.kind:  # it has ended before it said anything
            self.stop("its driver has ended")

    def _watch(self, pid: int, ended: Callable[[], None]) -> None:
        """The end of the connection tells that a driver is gone, unless a fork of it keeps the socket open:
        so watch the process itself, where the system can."""
        opener = getattr(os, "pidfd_open", None)
        if opener is None:
            return
        try:
            fd = opener(pid)
        except ProcessLookupError:
            self._loop.call_soon(ended)
        except OSError:
            return
        else:
            self._watches.add(fd)
            self._loop.add_reader(fd, self._watched_ended, fd, ended)

    def _watched_ended(self, fd: int, ended: Callable[[], None]) -> None:
        self._loop.remove_reader(fd)
        self._watches.discard(fd)
        os.close(fd)
        ended()

    def _sweep_stale(self) -> None:
        with contextlib.suppress(OSError):
            sweep_stale_sessions()

    def stop(self, reason: str) -> None:
        """End all workers, clean the session directory, end this process."""
        if self._stopping:
            return
        self._stopping = True
        self._reason = reason
        log.log(logging.DEBUG if self.cluster is None else logging.INFO, "node ends: %s", reason)
        self._end_timer = self._loop.call_later(limits.SESSION_HOOK_GRACE, self._end_all)
        self.node.say_goodbye(reason, self._end_all)

    def _end_all(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._end_timer.cancel()
        adopt_orphans()
        self.node.stop()
        end_children(limits.EXIT_GRACE)
        if self.cluster is not None:
            for driver in self.node.output.drivers:
                driver.cast(m.NODE_ENDS, self._reason)
        self.node.deliver_rest()
        self.store.close()
        if self.cluster is not None:
            self.cluster.leave(self._reason)
        self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        if self.cluster is not None:
            self.cluster.close()
        for listener in self._listeners:
            listener.close()
        for connection in self._connections:
            connection.close()
        self._loop.stop()
        self._sweep_stale()


def _end_group() -> None:
    """End what tasks have started and left behind, and this process, which leads their process group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)


def _facts_of_cluster(loop: asyncio.AbstractEventLoop, config: dict[str, Any]) -> ClusterFacts | None:
    """What must be known to join. A problem is told to whoever started this process, and ends it."""
    if "cluster" not in config:
        return None
    from framework._node.introduction import facts_for_joining

    try:
        return facts_for_joining(loop, config)
    except (FrameworkError, OSError, ValueError) as error:
        log.error("this node cannot join: %s", error)  # (no traceback: its frames hold the token)
        with contextlib.suppress(OSError):
            os.write(config["ready_fd"], b"!" + str(error).encode())
        raise SystemExit(1) from None


def run_node(
    config: dict[str, Any],
    zygote_sock: socket.socket,
    zygote_pid: int,
    make_head: Callable[[asyncio.AbstractEventLoop], Service] | None,
) -> None:
    """The whole life of the process. Never returns."""
    session_dir = config["session_dir"]
    code = 1
    try:
        log_into(os.path.join(session_dir, "logs", "node.log"))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if "ready_fd" in config:
            os.chdir("/")  # whose file system it keeps in use is nobody's choice
        write_node_pid(session_dir, "ready_fd" in config and "parent_pid" not in config)
        loop = new_loop()
        asyncio.set_event_loop(loop)
        facts = _facts_of_cluster(loop, config)
        process = NodeProcess(loop, config, make_head, facts)
        loop.add_signal_handler(signal.SIGTERM, process.stop, "it was asked to (SIGTERM)")
        if facts is not None:
            process.start_in_cluster(zygote_sock, zygote_pid)
        else:
            process.start(zygote_sock, zygote_pid)
        keep_heap_small(loop)
        loop.run_forever()
        code = 0
    except SystemExit:
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote_pid, signal.SIGKILL)
    except BaseException:
        traceback.print_exc()  # to node.err, from where a waiting driver takes it
        log.exception("the node process failed")
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote_pid, signal.SIGKILL)
    finally:
        logging.shutdown()
        sweep_session(session_dir)
        if not code:
            _end_group()
        os._exit(code)
