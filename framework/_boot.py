"""The top of the house: puts the runtime together with the public classes, and starts or finds a node."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import Any

from framework._base import limits
from framework._base.ids import NODE_ID_SIZE, WORKER_ID_SIZE, job_id_bytes
from framework._net.listener import connect_unix
from framework._runtime.runtime import Config, Runtime
from framework._wire import messages as m
from framework.exceptions import ConnectionFailedError, LocalNodeDiedError
from framework.object_ref import DynamicObjectRefGenerator, ObjectRef, ref_in


def make_runtime(config: Config) -> Runtime:
    """A runtime, not started, whose references are the public ones."""
    runtime = Runtime(
        config,
        ref_class=ObjectRef,
        ref_of=lambda entry: ref_in(entry, runtime),
        dynamic_class=DynamicObjectRefGenerator,
    )
    return runtime


class LocalNode:
    """The node process that this driver has started, and its session directory."""

    def __init__(self, session_dir: str) -> None:
        self.session_dir = session_dir
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self, resources: dict[str, Any], node_id: bytes) -> tuple[socket.socket, socket.socket]:
        """Start the process; the sockets to its node manager and its head. They may be written to at once: what is
        written waits until the process is up."""
        driver, driver_theirs = socket.socketpair()
        head, head_theirs = socket.socketpair()
        config = {
            "session_dir": self.session_dir,
            "driver_fd": driver_theirs.fileno(),
            "head_fd": head_theirs.fileno(),
            "driver_pid": os.getpid(),
            "node_id": node_id.hex(),
            "resources": resources,
        }
        package_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = os.environ.get("PYTHONPATH")
        env = {**os.environ, "PYTHONPATH": package_root + (os.pathsep + path if path else "")}
        log = os.path.join(self.session_dir, "logs", "node.err")
        try:
            with open(log, "ab") as err:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "framework._node", json.dumps(config)],
                    pass_fds=(driver_theirs.fileno(), head_theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=err,
                    stderr=err,
                    env=env,
                    start_new_session=True,  # Ctrl-C is for the driver alone
                )
        except BaseException:
            driver.close()
            head.close()
            raise
        finally:
            driver_theirs.close()
            head_theirs.close()
        return driver, head

    def wait(self) -> None:
        """Wait for the process to end; kill it when it does not."""
        process = self.process
        if process is None:
            return
        try:
            process.wait(limits.SHUTDOWN_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(limits.SHUTDOWN_GRACE)
        except BaseException:
            process.kill()  # a second Ctrl-C forces the way out
            raise
        finally:
            from framework._node.session import sweep_session

            sweep_session(self.session_dir)


def start_local(config: Config, runtime: Runtime, resources: dict[str, Any]) -> LocalNode:
    """Start a node process and connect to it, in the background: `runtime.node_ready` tells when it is up."""
    node = LocalNode(config.session_dir)
    config.job = job_id_bytes(1)  # the first job of a fresh session
    config.node_id = os.urandom(NODE_ID_SIZE)
    driver_sock, head_sock = node.spawn(resources, config.node_id)

    def attach() -> None:
        try:
            runtime.listen()
            runtime.attach_node(driver_sock)
            runtime.attach_head(head_sock).call(m.JOB_START, {"pid": os.getpid()})
        except BaseException as error:
            if not runtime.node_ready.done():
                runtime.node_ready.set_exception(error)

    runtime.post(attach)
    return node


def connect(config: Config, runtime: Runtime) -> None:
    """Connect to the node whose session directory `config` names. `ConnectionFailedError` when it is not there."""
    sockets = os.path.join(config.session_dir, "sockets")

    async def attach() -> None:
        try:
            node_sock = connect_unix(os.path.join(sockets, "node"))
            head_sock = connect_unix(os.path.join(sockets, "head"))
        except OSError as error:
            raise ConnectionFailedError(
                f"no node answers in session {config.session_dir}: {error}. Is it still running? "
                "Without an address, init() starts a node of its own"
            ) from None
        head = runtime.attach_head(head_sock)
        answer = await head.call(m.JOB_START, {"pid": os.getpid()})
        config.job = job_id_bytes(answer["job"])
        runtime.listen()
        runtime.attach_node(node_sock)

    runtime.run_sync(attach(), limits.CONNECT_TIMEOUT)


def worker_id() -> bytes:
    """A new identity for this process."""
    return os.urandom(WORKER_ID_SIZE)


def startup_failure(session_dir: str, node: LocalNode | None) -> LocalNodeDiedError:
    """Why the node process did not come up, as far as it left word."""
    text = ""
    with contextlib.suppress(OSError):
        with open(os.path.join(session_dir, "logs", "node.err"), errors="replace") as file:
            text = file.read()[-4000:]
    code = node.process.poll() if node is not None and node.process is not None else None
    return LocalNodeDiedError(f"the node process did not start (exit code {code}). It said:\n{text or '(nothing)'}")
