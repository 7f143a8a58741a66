"""A zygote in an interpreter of its own, for workers with other load-time environment variables."""

from __future__ import annotations

import os
import socket
import sys


def preload() -> None:
    """Everything of the framework that a worker needs to run a task, loaded once, before the forks."""
    from framework._boot import make_runtime
    from framework._worker.main import provide_runtime

    provide_runtime(make_runtime)


def preload_libraries() -> None:
    """What user code is likely to need and takes long to load."""
    import hashlib  # noqa: F401
    import pathlib  # noqa: F401

    import numpy
    import numpy.random  # noqa: F401

    import framework

    framework.preload()


def main() -> None:
    """Serve fork requests on the inherited socket, whose number is ``sys.argv[2]``; ``sys.argv[3]`` is the
    parent's pid.
    """
    from framework._service.launch import close_others
    from framework._worker.zygote import run_zygote

    fd = int(sys.argv[2])
    close_others((fd,))
    run_zygote(socket.socket(fileno=fd), preload, preload_libraries, int(sys.argv[3]))
    os._exit(0)


if __name__ == "__main__":
    main()
