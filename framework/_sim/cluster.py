"""A cluster in the simulated system: the real services, each in a simulated process of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import weakref
from collections.abc import Callable
from typing import Any

import msgpack
from greenlet import GreenletExit

from framework._base import limits
from framework._service.credentials import write_private
from framework._sim.kernel import Kernel, SimulationError
from framework._sim.patches import System
from framework._sim.process import Process
from framework._sim.sockets import SimSocket

_TOKEN = bytes(range(32))
_CLUSTER_ID = bytes(range(100, 116))
_PORT = 6380


class SimChild:
    """What whoever starts a process has of it (as `framework._service.launch.Child`)."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pid = process.pid
        self.code: int | None = None

    def poll(self) -> bool:
        return not self._process.alive

    def wait(self, timeout: float) -> bool:
        return not self._process.alive


class SimNode:
    """A node, and all of its processes."""

    def __init__(self, name: str, host: str, session_dir: str, node_id: bytes, process: Process) -> None:
        self.name = name
        self.host = host
        self.session_dir = session_dir
        self.node_id = node_id.hex()
        self.process = process
        self.service: Any = None  #: `framework._node.process.NodeProcess`
        self.zygotes: list[Process] = []
        self.removed = False

    @property
    def alive(self) -> bool:
        return self.process.alive


class SimCluster:
    """Head, nodes, zygotes, workers and drivers. Methods are for the kernel (between steps) unless they say
    otherwise."""

    def __init__(self, kernel: Kernel, directory: str) -> None:
        self.kernel = kernel
        self.directory = directory
        self.system = System(kernel, self.exit_process)
        self.nodes: dict[str, SimNode] = {}
        self.workers: dict[int, Process] = {}
        self.drivers: list[Process] = []
        self.executors: dict[int, Any] = {}  #: of workers, by pid
        self.runtimes: dict[int, Any] = {}  #: of workers and drivers, by pid
        self.head: Process | None = None
        self.head_service: Any = None
        self.head_dir = ""
        self.head_starts = 0
        self.on_exit: Callable[[Process, int], None] = lambda process, status: None
        self._prepared: weakref.WeakSet[Any] = weakref.WeakSet()
        self._hosts = 0
        self._names: dict[str, int] = {}

    # ---- processes -----------------------------------------------------------------------------------

    def _start(self, name: str, host: str, body: Callable[[], object], parent: Process | None) -> Process:
        kernel = self.kernel
        process = kernel.new_process(name, host)
        process.parent = parent

        def main() -> None:
            code = 1
            try:
                body()
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except GreenletExit:
                raise
            except BaseException as error:
                assert process.main is not None
                process.crashed(process.main, error)
                if isinstance(error, SimulationError | KeyboardInterrupt):
                    kernel.failed = kernel.failed or error
            self.exit_process(process, code << 8)

        process.main = kernel.spawn(process, main, "main")
        return process

    def exit_process(self, process: Process, status: int) -> None:
        """It is not there any more. From inside of it this does not return."""
        kernel = self.kernel
        if not process.alive:
            return
        process.status = status
        kernel.log.add(f"{kernel.now:.6f} {process.name} ends with {status}")
        kernel.kill(process)
        self.system.network.process_ended(process)
        self._close_storage(process)
        self.system.files.close(process)
        self.on_exit(process, status)
        for function in list(process.on_end):
            function()
        for other in list(kernel.processes.values()):
            if other.parent is process and other.alive:
                self.exit_process(other, signal.SIGKILL)
        if kernel.current is not None and kernel.process is process:
            kernel.leave()

    def _close_storage(self, process: Process) -> None:
        """The database that it had open: the system closes its files, and ends what they lock."""
        if process is self.head and self.head_service is not None:
            storage = self.head_service.service.storage
            storage._release()
            storage._db.close()

    def _unique(self, kind: str) -> str:
        self._names[kind] = number = self._names.get(kind, 0) + 1
        return f"{kind}{number}"

    def new_host(self) -> str:
        """The address of a machine more."""
        self._hosts += 1
        return f"10.0.{self._hosts // 250}.{self._hosts % 250 + 1}"

    def _session(self, name: str) -> str:
        path = os.path.join(self.directory, f"framework-{os.getuid()}", f"session-0-0-1-{name}")
        for directory in (path, os.path.join(path, "sockets"), os.path.join(path, "logs")):
            os.makedirs(directory, mode=0o700)
        return path

    # ---- the head ------------------------------------------------------------------------------------

    def start_cluster(self) -> None:
        """The head; its node has to be started too (`add_node` does so first)."""
        from framework._base.cluster import ClusterFacts

        host = self.new_host()
        self.head_dir = self._session("head")
        facts = ClusterFacts(
            cluster_id=_CLUSTER_ID, token=_TOKEN, head=f"{host}:{_PORT}", host=host, node_id=b""
        )
        write_private(os.path.join(self.head_dir, "head.json"), facts.to_dict())
        self._head_host = host
        self.start_head(None)

    def start_head(self, ready: SimSocket | None) -> Process:
        """Start the head's process, for the first time or again."""
        from framework._head.cluster import make_head
        from framework._head.process import HeadProcess
        from framework._node.session import sweep_head

        self.head_starts += 1
        session_dir, host = self.head_dir, self._head_host
        fd = os.open(os.devnull, os.O_WRONLY) if ready is None else ready.fileno()

        def body() -> None:
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            config = {
                "session_dir": session_dir,
                "bind": host,
                "state": os.path.join(session_dir, "head.db"),
                "ready_fd": fd,
            }
            head = HeadProcess(loop, config, make_head, sweep_head)
            self.head_service = head
            loop.add_signal_handler(signal.SIGTERM, head.stop, "it was asked to (SIGTERM)")
            head.start()
            loop.run_forever()
            head.sweep()

        process = self._start(self._unique("head"), host, body, None)
        if ready is not None:
            ready.shares += 1
            process.descriptors[ready.fd] = ready
        self.head = process
        return process

    # ---- nodes ---------------------------------------------------------------------------------------

    def add_node(
        self,
        *,
        num_cpus: float = 2,
        num_gpus: float = 0,
        resources: dict[str, float] | None = None,
        labels: dict[str, str] | None = None,
        object_store_memory: int = 16 << 20,
    ) -> SimNode:
        """Start a node; the first is that of the head. Does not wait until it has joined."""
        if self.head is None:
            self.start_cluster()
        of_head = not self.nodes
        name = self._unique("node")
        host = self._head_host if of_head else self.new_host()
        session_dir = self.head_dir if of_head else self._session(name)
        node_id = self.kernel.choices.bytes(28)
        write_private(
            os.path.join(session_dir, "join.json"),
            {"head": f"{self._head_host}:{_PORT}", "token": _TOKEN.hex(), "fingerprint": None},
        )
        config: dict[str, Any] = {
            "session_dir": session_dir,
            "node_id": node_id.hex(),
            "ready_fd": os.open(os.devnull, os.O_WRONLY),
            "cluster": {"host": host, "bind": host, "keeps_head": host if of_head else None},
            "resources": {
                "num_cpus": num_cpus,
                "num_gpus": num_gpus,
                "memory": 4 << 30,
                "resources": resources or {},
                "object_store_memory": object_store_memory,
                "spill_directory": None,
                "memory_threshold": 1.0,
                "labels": labels or {},
            },
        }
        process = self._start(name, host, lambda: self._node_body(node, config), None)
        node = SimNode(name, host, session_dir, node_id, process)
        self.nodes[node.node_id] = node
        return node

    def _node_body(self, node: SimNode, config: dict[str, Any]) -> None:
        """The life of a node process (as `framework._node.process.run_node`)."""
        from framework._node.introduction import facts_for_joining
        from framework._node.process import NodeProcess
        from framework._node.session import sweep_session, write_node_pid

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        write_node_pid(config["session_dir"], True)
        attempts, facts = 0, None
        while facts is None:  # (the head may be starting, or away)
            try:
                facts = facts_for_joining(loop, config)
            except Exception:
                attempts += 1
                if attempts == 20:
                    raise
                write_private(
                    os.path.join(config["session_dir"], "join.json"),
                    {"head": f"{self._head_host}:{_PORT}", "token": _TOKEN.hex(), "fingerprint": None},
                )
                loop.run_until_complete(asyncio.sleep(0.5))
        service = NodeProcess(loop, config, None, facts)
        node.service = service
        sock, pid = self._zygote(node)
        service.node.processes.zygotes._spawn = lambda env: self._zygote(node)
        loop.add_signal_handler(signal.SIGTERM, service.stop, "it was asked to (SIGTERM)")
        service.start_in_cluster(sock, pid)
        loop.run_forever()
        sweep_session(config["session_dir"])

    def _zygote(self, node: SimNode) -> Any:
        """Inside of a node: start a zygote; our end of the socket to it, and its pid."""
        ours, theirs = self.system.network.pair()
        process = self._start(
            self._unique("zygote"), node.host, lambda: self._zygote_body(node, theirs), node.process
        )
        theirs.adopt(process)
        node.zygotes.append(process)
        return ours, process.pid

    def _zygote_body(self, node: SimNode, sock: SimSocket) -> None:
        me = self.kernel.process
        assert me is not None
        unpacker = msgpack.Unpacker(max_buffer_size=limits.MAX_ZYGOTE_BUFFER)
        while data := sock.recv(65536):
            unpacker.feed(data)
            for worker_id, env, config in unpacker:
                worker = self._worker(node, me, worker_id, env, config)
                worker.on_end.append(lambda worker=worker: self._worker_ended(me, sock, worker))  # type: ignore[misc]
                sock.sendall(msgpack.packb(["forked", worker_id, worker.pid, ""]))

    def _worker_ended(self, zygote: Process, sock: SimSocket, worker: Process) -> None:
        self.workers.pop(worker.pid, None)
        self.executors.pop(worker.pid, None)
        self.runtimes.pop(worker.pid, None)
        if zygote.alive and sock.outgoing is not None:
            sock.outgoing.send(msgpack.packb(["exited", worker.pid, worker.status]))

    def _worker(
        self, node: SimNode, zygote: Process, worker_id: bytes, env: dict[str, str], config: dict[str, Any]
    ) -> Process:
        from framework._worker.main import connected_worker

        def body() -> None:
            executor = connected_worker(config, env)
            self.executors[process.pid] = executor
            self.runtimes[process.pid] = executor.runtime
            executor.run()

        process = self._start(self._unique("worker"), node.host, body, zygote)
        self.workers[process.pid] = process
        return process

    # ---- drivers -------------------------------------------------------------------------------------

    def start_driver(self, program: Callable[[], object], node: SimNode | None = None) -> Process:
        """Run a program (a function, or a coroutine function) as a driver on a node (the head's)."""
        where = node or next(iter(self.nodes.values()))

        def body() -> None:
            import time

            import framework as fw
            from framework._runtime.current import existing

            path = os.path.join(where.session_dir, "cluster.json")
            while not os.path.exists(path):
                time.sleep(0.05)
            fw.init(address=where.session_dir, log_to_driver=False, configure_logging=False)
            self.runtimes[process.pid] = existing()
            try:
                made = program()
                if asyncio.iscoroutine(made):
                    asyncio.run(made)
            finally:
                fw.shutdown()

        process = self._start(self._unique("driver"), where.host, body, None)
        process.on_end.append(lambda: self.runtimes.pop(process.pid, None))
        self.drivers.append(process)
        return process

    # ---- what the services reach for beyond the standard library ---------------------------------------

    def patch_services(self) -> None:
        """After `System.installed` has begun: starts of processes, and what concerns real ones only."""
        from framework import _session
        from framework._node import launching, memory_monitor
        from framework._node import process as node_process
        from framework._runtime import runtime
        from framework._service import descriptors, serving
        from framework._sim.loop import SimLoop
        from framework._worker import actor_host

        system = self.system
        for module in (runtime, actor_host, serving):
            if hasattr(module, "new_loop"):
                system._either(module, "new_loop", lambda: SimLoop(system.table))

        def start_head(session_dir: str, bind: str, ready: Any, parent_pid: int | None = None) -> SimChild:
            return SimChild(self.start_head(ready))

        system._either(launching, "start_head", start_head)
        system._either(node_process, "adopt_orphans", lambda: None)
        system._either(node_process, "end_children", lambda timeout: True)
        system._either(node_process, "sweep_stale_sessions", lambda: None)
        system._either(descriptors, "raise_limit", lambda: None)
        system._either(memory_monitor, "memory_use", lambda: (0, 0))
        # (Of another length in another place, and so would be the messages.)
        system._either(_session, "_search_path", list)
        system._either(_session, "_working_directory", str)
        self._remember_prepared()

    def _remember_prepared(self) -> None:
        """Remote functions, which are shared by all processes, keep what they have prepared for the runtime
        that called them last: at the end they must let go of it."""
        from framework.remote_function import RemoteFunction

        prepare, used = RemoteFunction._prepare, self._prepared

        def remembered(function: Any, *args: Any) -> Any:
            used.add(function)
            return prepare(function, *args)

        self.system._set(RemoteFunction, "_prepare", remembered)

    def end(self) -> None:
        """Nothing runs any more: end the threads, let go of everything."""
        for function in self._prepared:
            function._prepared = function._within = None
        self.executors.clear()
        self.runtimes.clear()
        self.head_service = None
        for node in self.nodes.values():
            node.service = None
        self.system.close()

    def close(self) -> None:
        """After `end`: remove all files."""
        shutil.rmtree(self.directory, ignore_errors=True)
