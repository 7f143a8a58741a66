"""Starts the head of a cluster again when its process has died: the node beside it does, as nobody else is
there to do it for a cluster that was started from the command line.

A head that ends in order removes ``head.pid``, and stays gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from typing import TYPE_CHECKING

from framework._base import limits
from framework._node.session import head_pid

if TYPE_CHECKING:
    from framework._service.launch import Child

log = logging.getLogger("framework.node")


class HeadKeeper:
    """See above. Lives on the loop of the node that shares its session directory with the head. `bind`: the
    address that the head listens at."""

    def __init__(self, loop: asyncio.AbstractEventLoop, session_dir: str, bind: str) -> None:
        self._loop = loop
        self._session_dir = session_dir
        self._bind = bind
        self._stopped = False
        self._watched = -1  #: descriptor of the head's process
        self._ready: socket.socket | None = None  #: where the one that is being started says that it serves
        self._child: Child | None = None  #: if we have started it
        self._starts: deque[float] = deque(maxlen=limits.HEAD_RESTARTS)

    def start(self) -> None:
        """Watch the head that runs."""
        pid = head_pid(self._session_dir)
        if pid is None:
            self._again()
            return
        try:
            self._watched = os.pidfd_open(pid)
        except ProcessLookupError:
            self._again()
        except (OSError, AttributeError) as error:
            log.warning("the head would not be started again if it died: it cannot be watched: %s", error)
        else:
            self._loop.add_reader(self._watched, self._ended)

    def stop(self) -> None:
        """Whatever becomes of the head is none of our business any more."""
        self._stopped = True
        self._forget()
        self._forget_ready()

    def _forget(self) -> None:
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
            os.close(self._watched)
            self._watched = -1

    def _forget_ready(self) -> None:
        if self._ready is not None:
            self._loop.remove_reader(self._ready.fileno())
            self._ready.close()
            self._ready = None

    def _ended(self) -> None:
        self._forget()
        if self._child is not None:
            self._child.poll()  # reaps it
        self._again()

    def _again(self) -> None:
        """Start it, unless it has ended for good."""
        if self._stopped or not os.path.exists(os.path.join(self._session_dir, "head.pid")):
            return
        now = self._loop.time()
        if len(self._starts) == limits.HEAD_RESTARTS and now - self._starts[0] < limits.HEAD_RETURN_TIMEOUT:
            log.error(
                "the head has died again, and is not started any more: %d times in %g s; its log is %s",
                limits.HEAD_RESTARTS,
                limits.HEAD_RETURN_TIMEOUT,
                os.path.join(self._session_dir, "logs", "head.log"),
            )
            return
        self._starts.append(now)
        log.warning("the head's process has died: it is started again")
        from framework._node.launching import start_head

        self._ready, theirs = socket.socketpair()
        self._ready.setblocking(False)
        try:
            with theirs:
                self._child = start_head(self._session_dir, self._bind, theirs)
        except OSError as error:
            log.error("the head cannot be started again: %s", error)
            self._forget_ready()
            self._loop.call_later(limits.HEAD_RESTART_PAUSE, self._again)
            return
        self._loop.add_reader(self._ready.fileno(), self._told)

    def _told(self) -> None:
        """It serves, or says why not, or is dead."""
        assert self._ready is not None
        said = b""
        with contextlib.suppress(OSError):
            said = self._ready.recv(65536)
        self._forget_ready()
        if said.startswith(b"1"):
            self.start()
            return
        if self._child is not None:
            self._child.wait(limits.EXIT_GRACE)
        if said and self._starts:
            self._starts.pop()  # what it says is in its way (a full disk, say) may pass: that was no death
        log.error("the head did not start: %s", said[1:].decode(errors="replace") or "see logs/head.err")
        self._loop.call_later(limits.HEAD_RESTART_PAUSE, self._again)
