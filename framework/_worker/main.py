"""A worker process, from the fork on."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from typing import Any

from framework._base.cluster import ClusterFacts
from framework._base.secret import hidden
from framework._net.connection import Connection, Frame
from framework._net.listener import connect_unix
from framework._runtime import logs
from framework._runtime.config import Config
from framework._runtime.current import set_current
from framework._runtime.runtime import Runtime
from framework._wire import messages as m
from framework._worker import stdio
from framework._worker.actor_host import ActorHost
from framework._worker.executor import Executor

_made: list[Any] = []


def provide_runtime(make: Any) -> None:
    """How to make a runtime with the public reference classes: told by the composition root, above this
    layer.
    """
    _made[:] = [make]


def run_worker(config: dict[str, Any], env: dict[str, str]) -> int:
    """Serve until the node, the driver or the user ends it. Does not return in the normal course. `env`: the
    variables of its runtime environment, which are set already."""
    name = f"worker-{config['worker_id'].hex()[:12]}-{os.getpid()}"
    base = os.path.join(config["session_dir"], "logs", name)
    stdio.redirect(base + ".out", base + ".err")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _reseed()
    connected_worker(config, env).run()
    return 0


def connected_worker(config: dict[str, Any], env: dict[str, str]) -> Executor:
    """A worker's executor and runtime, connected to the node; its `run` is for the process's main thread."""
    session_dir, worker_id = config["session_dir"], config["worker_id"]
    mine = Config(session_dir=session_dir, worker_id=worker_id, is_driver=False)
    mine.node_id = config["node_id"]
    if config.get("cluster") is not None:
        mine.join(ClusterFacts.from_dict(hidden(config["cluster"])))
    mine.env = env
    runtime: Runtime = _made[0](mine)
    # Before anybody's lease: an owner may be here sooner than the node's WELCOME.
    runtime.node_facts = {"total": config["total"]}
    executor = Executor(runtime, os.path.join(session_dir, "sockets", f"{worker_id.hex()[:12]}.run"))

    def peer_joined(connection: Connection) -> None:
        if connection.kind == "owner" and not mine.job:
            _adopt_job(mine, connection.peer)

    def actor_run(connection: Connection, frame: Frame) -> None:
        _, actor_id, spec, gpus, restarted = frame
        if not mine.job:
            _adopt_job(mine, {**spec["job_info"], "job": spec["job"]})
        executor.set_devices(gpus, spec["resources"].get("CPU", 0) // 10_000)
        host = ActorHost(executor, actor_id, spec, restarted)
        executor.actor = runtime.actor_host = host
        executor.push((None, [host.start]))

    runtime.on_peer_joined = peer_joined
    runtime.node_handlers[m.ACTOR_RUN] = actor_run
    set_current(runtime)
    connected = threading.Event()
    failed: list[BaseException] = []

    def connect() -> None:
        try:
            runtime.listen()
            runtime.attach_node(connect_unix(os.path.join(session_dir, "sockets", "node")))
        except BaseException as error:
            failed.append(error)
        connected.set()

    runtime.start()
    runtime.post(connect)
    connected.wait()
    if failed:
        raise failed[0]
    return executor


def _reseed() -> None:
    """Forks of one zygote must not all draw the same random numbers."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        # (Without an argument it does so by way of much Python code, which costs each fork 70 pages.)
        numpy.random.seed(int.from_bytes(os.urandom(4), "little"))


def _adopt_job(config: Config, facts: dict[str, Any]) -> None:
    """This worker serves one job from now on: modules are found where its driver finds them."""
    config.job = facts.get("job", b"")
    config.namespace = facts.get("namespace", "")
    config.log_to_driver = facts.get("log_to_driver", True)
    config.job_facts = {
        name: facts[name] for name in ("sys_path", "cwd", "namespace", "logging") if name in facts
    }
    if facts.get("logging"):
        logs.configure(*facts["logging"])
    cwd = facts.get("cwd")
    if cwd:
        try:
            os.chdir(cwd)
        except OSError as error:
            print(f"the driver's working directory {cwd} cannot be used here: {error}", file=sys.stderr)
    path = facts.get("sys_path")
    if path:
        sys.path[:] = path
