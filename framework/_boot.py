"""The top of the house: puts the runtime together with the public classes, and connects it to a node."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import socket

from framework._base import limits
from framework._base.ids import job_id_bytes
from framework._net.listener import connect_unix
from framework._node.local import LocalNode
from framework._runtime import logs as logs
from framework._runtime.config import Config as Config
from framework._runtime.runtime import Runtime
from framework._wire import messages as m
from framework.exceptions import ConnectionFailedError
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


def attach(node: LocalNode, runtime: Runtime) -> None:
    """Connect to a node process that is just starting, in the background: `runtime.node_ready` tells when it
    is up.
    """
    runtime.config.job = job_id_bytes(1)  # the first job of a fresh session
    runtime.config.node_id = node.node_id

    def on_loop() -> None:
        try:
            runtime.listen()
            runtime.attach_node(node.driver)
            runtime.attach_head(node.head).call(m.JOB_START, {"pid": os.getpid()})
        except BaseException as error:
            if not runtime.node_ready.done():
                runtime.node_ready.set_exception(error)

    runtime.post(on_loop)


def connect(runtime: Runtime) -> None:
    """Connect to the node whose session directory the runtime's config names. `ConnectionFailedError` when it
    is not there or does not answer."""
    session_dir = runtime.config.session_dir

    async def on_loop() -> None:
        node_sock = _node_socket(session_dir)
        head = runtime.connect_head()
        if head is None:
            node_sock.close()
            raise ConnectionFailedError("its head does not answer")
        try:
            started = head.call(m.JOB_START, {"pid": os.getpid()})
            answer = await asyncio.wait_for(started, limits.CONNECT_TIMEOUT)
        except TimeoutError:
            node_sock.close()
            where = f" at {runtime.config.cluster.head}" if runtime.config.cluster is not None else ""
            raise ConnectionFailedError(
                f"the head{where} does not answer within {limits.CONNECT_TIMEOUT:g} s"
            ) from None
        runtime.config.job = job_id_bytes(answer["job"])
        runtime.listen()
        runtime.attach_node(node_sock)

    try:
        runtime.run_sync(on_loop())
        runtime.node_ready.result(limits.CONNECT_TIMEOUT)
    except (TimeoutError, concurrent.futures.TimeoutError):
        raise ConnectionFailedError(
            f"the node in session {session_dir} does not answer within {limits.CONNECT_TIMEOUT:g} s"
        ) from None
    except ConnectionFailedError as error:
        raise ConnectionFailedError(
            f"no node answers in session {session_dir}: {error}. Is it still running? Without an address, "
            "init() starts a node "
            "of its own"
        ) from None


def _node_socket(session_dir: str) -> socket.socket:
    try:
        return connect_unix(os.path.join(session_dir, "sockets", "node"))
    except OSError as error:
        raise ConnectionFailedError(str(error)) from None
