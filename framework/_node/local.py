"""The node process of a driver: started, waited for, and swept up after, by the driver."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Any

from framework._base import limits
from framework._base.ids import NODE_ID_SIZE
from framework._node.session import create_session, open_private, sweep_session
from framework._service.launch import command, spawn


class LocalNode:
    """A node process that this process has started, and its session directory.

    The sockets may be written to at once: what is written waits until the process is up. The process ends
    when this one does. Raises OSError when the directory or the process cannot be made.
    """

    def __init__(self, resources: dict[str, Any]) -> None:
        self.node_id = os.urandom(NODE_ID_SIZE)
        self.session_dir = create_session(self.node_id.hex()[:8])
        try:
            self._spawn(resources)
        except BaseException:
            sweep_session(self.session_dir)
            raise

    def _spawn(self, resources: dict[str, Any]) -> None:
        self.driver, driver_theirs = socket.socketpair()
        self.head, head_theirs = socket.socketpair()
        config = {
            "session_dir": self.session_dir,
            "driver_fd": driver_theirs.fileno(),
            "head_fd": head_theirs.fileno(),
            "driver_pid": os.getpid(),
            "node_id": self.node_id.hex(),
            "resources": resources,
        }
        log = -1
        try:
            log = open_private(self._log_path())
            self.process = spawn(
                command("framework._node.__main__", json.dumps(config)),
                env=os.environ,
                keep=(driver_theirs.fileno(), head_theirs.fileno()),
                output=log,
                new_session=True,  # Ctrl-C is for the driver alone
            )
        except BaseException:
            self.driver.close()
            self.head.close()
            raise
        finally:
            if log >= 0:
                os.close(log)
            driver_theirs.close()
            head_theirs.close()

    def _log_path(self) -> str:
        return os.path.join(self.session_dir, "logs", "node.err")

    def wait(self) -> None:
        """Wait for the process to end; kill it when it does not. Then remove what it has left."""
        try:
            if not self.process.wait(limits.SHUTDOWN_GRACE):
                self.process.kill()
                self.process.wait(limits.SHUTDOWN_GRACE)
        except BaseException:
            self.process.kill()  # a second Ctrl-C forces the way out
            raise
        finally:
            sweep_session(self.session_dir)

    def last_words(self) -> str:
        """Why the process did not come up, as far as it has left word."""
        text = ""
        with contextlib.suppress(OSError):
            with open(self._log_path(), errors="replace") as file:
                text = file.read()[-4000:].strip()
        return (
            f"the node process did not start (exit code {self.process.code}). It said:\n{text or '(nothing)'}"
        )
