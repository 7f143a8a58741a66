"""The process of a node: head and node manager on one loop.

It loads what node and workers both need, then forks the zygote, which goes on to load what only workers need,
on another core, while this process begins to serve.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys

from framework._service.descriptors import raise_limit
from framework._service.launch import close_others


def main() -> None:
    """``sys.argv[2]``: a JSON object with session_dir, node_id and resources, and either driver_fd, head_fd
    and driver_pid (the node of a driver), or ready_fd (a node that stays; it writes a byte there when it is
    up). With cluster it joins one: see `framework._node.launching`.
    """
    gc.disable()  # what is being loaded is no garbage
    config = json.loads(sys.argv[2])
    inherited = [config[name] for name in ("driver_fd", "head_fd", "ready_fd") if name in config]
    close_others(inherited)
    raise_limit()
    # Shared by node and zygote; no threads, no loop, no numpy.
    import logging  # noqa: F401

    import framework._net.listener

    if "cluster" in config:
        import framework._net.tcp  # noqa: F401
    try:
        import uvloop  # noqa: F401
    except ImportError:
        pass
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    gc.freeze()  # a collection, here or there, would have all pages copied that the two share
    zygote_pid = os.fork()
    if zygote_pid == 0:
        ours.close()
        for fd in inherited:
            os.close(fd)
        from framework._worker.__main__ import preload, preload_libraries
        from framework._worker.zygote import run_zygote

        run_zygote(theirs, preload, preload_libraries, parent)
        os._exit(0)
    theirs.close()
    from framework._node.process import run_node

    make_head = None
    if "cluster" not in config:  # whose head is a process of its own
        from framework._head.service import HeadService

        make_head = HeadService
    gc.freeze()
    gc.enable()
    run_node(config, ours, zygote_pid, make_head)


if __name__ == "__main__":
    main()
