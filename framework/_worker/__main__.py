"""A zygote in an interpreter of its own: ``python -m framework._worker FD``."""

from __future__ import annotations

import os
import socket
import sys


def preload() -> None:
    """Everything that a worker or user code is likely to need, loaded once, before the forks."""
    import numpy
    import numpy.random  # noqa: F401

    import framework
    from framework._boot import make_runtime
    from framework._worker.main import provide_runtime

    framework.preload()
    provide_runtime(make_runtime)


def main() -> None:
    """Serve fork requests on the inherited socket."""
    from framework._worker.zygote import run_zygote

    run_zygote(socket.socket(fileno=int(sys.argv[1])), preload)
    os._exit(0)


if __name__ == "__main__":
    main()
