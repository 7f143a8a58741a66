"""The process of a node that a driver starts: head and node manager on one loop. ``python -m framework._node``.

The first thing it does, with next to nothing imported, is to fork the zygote: so both share one interpreter start, and
the zygote loads numpy on another core while this process loads its loop.
"""

from __future__ import annotations

import json
import os
import socket
import sys


def main() -> None:
    """Arguments: one JSON object with session_dir, driver_fd, head_fd, driver_pid, node_id and resources."""
    config = json.loads(sys.argv[1])
    ours, theirs = socket.socketpair()
    # BLAS reads this once, when numpy is loaded; one thread per worker, as Ray sets it.
    zygote_pid = os.fork()
    if zygote_pid == 0:
        ours.close()
        for fd in (config["driver_fd"], config["head_fd"]):
            os.close(fd)
        from framework._worker.__main__ import preload
        from framework._worker.zygote import run_zygote

        run_zygote(theirs, preload)
        os._exit(0)
    theirs.close()
    from framework._head.service import HeadService
    from framework._node.process import run_node

    run_node(config, ours, zygote_pid, HeadService)


if __name__ == "__main__":
    main()
