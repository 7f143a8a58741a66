"""A node process, as the process that starts it sees it: started, waited for, and swept up after."""

from __future__ import annotations

import contextlib
import json
import os
from _socket import socketpair  # (`socket`, which makes more of it, is slow to load)
from collections.abc import Mapping

from framework._base import limits
from framework._base.ids import NODE_ID_SIZE
from framework._node.session import create_session, open_private, sweep_session
from framework._service.launch import Child, command, spawn

TYPE_CHECKING = False  # (until a node has been started, nothing loads `typing`: see `framework._session`)
if TYPE_CHECKING:
    from typing import Any

_TOKEN = "FRAMEWORK_TOKEN"


class StartedNode:
    """A node process that this process has started, and its session directory."""

    def __init__(self, config: dict[str, Any], keep: tuple[int, ...], session_dir: str | None = None) -> None:
        """`session_dir`: one that exists already; by default a new one is made."""
        self.node_id = os.urandom(NODE_ID_SIZE)
        self.session_dir = session_dir or create_session(self.node_id.hex()[:8])
        try:
            self._prepare()
            self.process = self._spawn(config, keep)
        except BaseException:
            sweep_session(self.session_dir)
            raise

    def _prepare(self) -> None:
        """Before the process starts, when its directory is there."""

    def _spawn(self, config: dict[str, Any], keep: tuple[int, ...]) -> Child:
        config = {**config, "session_dir": self.session_dir, "node_id": self.node_id.hex()}
        env: Mapping[str, str] = os.environ
        if _TOKEN in env:  # not for the eyes of tasks
            env = {name: value for name, value in env.items() if name != _TOKEN}
        log = open_private(self._log_path())
        try:
            return spawn(
                command("framework._node.__main__", json.dumps(config)),
                env=env,
                keep=keep,
                output=log,
                new_session=True,  # Ctrl-C is for the driver alone
            )
        finally:
            os.close(log)

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
            # A worker that is dying still may not make another file behind the sweep.
            self.process.wait_for_group(limits.EXIT_GRACE)
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


class LocalNode(StartedNode):
    """The node of a driver.

    The sockets may be written to at once: what is written waits until the process is up. The process ends
    when this one does. Raises OSError when the directory or the process cannot be made.
    """

    def __init__(self, resources: dict[str, Any]) -> None:
        driver, driver_theirs = socketpair()
        head, head_theirs = socketpair()
        fds = (driver_theirs.fileno(), head_theirs.fileno())
        try:
            super().__init__(
                {
                    "driver_fd": fds[0],
                    "head_fd": fds[1],
                    "driver_pid": os.getpid(),
                    "resources": resources,
                },
                fds,
            )
            import socket

            self.driver = socket.socket(fileno=driver.detach())
            self.head = socket.socket(fileno=head.detach())
        except BaseException:
            driver.close()  # (a process that has been started already ends because of this)
            head.close()
            raise
        finally:
            driver_theirs.close()
            head_theirs.close()
