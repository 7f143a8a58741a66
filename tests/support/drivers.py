"""Driver programs as processes of their own: started, listened to, signalled, and their ends examined."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import IO, Self

from support.leaks import framework_processes, session_remains, wait_until

ROOT = Path(__file__).resolve().parents[2]
GRACE = 3.0  # seconds in which everything must be gone after the driver's end


class Driver:
    """A Python program in a process group of its own, as a terminal would start it.

    `source` is dedented and run by ``python -c``; or pass the interpreter's `arguments` instead. Sessions are
    under `root`.
    """

    def __init__(
        self,
        source: str,
        root: Path,
        *,
        arguments: list[str] | None = None,
        stdin: str | None = None,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self.root = root
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-u",
                *(arguments if arguments is not None else ["-c", textwrap.dedent(source)]),
            ],
            env={**os.environ, "PYTHONPATH": path, "FRAMEWORK_TMPDIR": str(root), **(env or {})},
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=cwd,
        )
        if stdin is not None:
            assert self.process.stdin is not None
            self.process.stdin.write(textwrap.dedent(stdin))
            self.process.stdin.close()
        self.out: list[str] = []
        self.err: list[str] = []
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        assert self.process.stdout is not None and self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.out), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self.err), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], into: list[str]) -> None:
        with stream:
            for line in stream:
                into.append(line.rstrip("\n"))
                self._news.put(None)

    def expect(self, text: str, timeout: float = 20.0) -> str:
        """Wait for a line of standard output that contains `text`; that line."""
        deadline = time.monotonic() + timeout
        while True:
            for line in list(self.out):
                if text in line:
                    return line
            try:
                self._news.get(timeout=max(0.0, min(0.1, deadline - time.monotonic())))
            except queue.Empty:
                assert time.monotonic() < deadline and self.process.poll() is None, (
                    f"no line with {text!r}; exit code {self.process.poll()}\n{self.text()}"
                )

    def text(self) -> str:
        """Everything that it has printed so far."""
        return "--- stdout\n" + "\n".join(self.out) + "\n--- stderr\n" + "\n".join(self.err)

    def settle(self) -> None:
        """Wait until the main thread sleeps, on whatever its last statement waits for."""
        for _ in range(3):
            wait_until(
                lambda: (
                    Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
                )
            )
            time.sleep(0.01)

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal: to the process, or as a terminal does, to its group."""
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def finish(self, timeout: float = 20.0) -> int:
        """Wait for the end; the exit code."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s\n{self.text()}") from None
        for reader in self._readers:
            reader.join(GRACE)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def assert_clean(root: Path, within: float = GRACE) -> None:
    """No process, no socket, no session directory beyond its non-empty logs."""
    wait_until(lambda: not framework_processes(root), within, "the end of all processes")
    wait_until(lambda: session_remains(root) == [], within, "the end of all sockets")
    for path in root.rglob("*"):
        if path.is_dir() and path.name.startswith("framework-"):
            continue  # the directory of all sessions stays
        if path.is_dir():
            assert list(path.iterdir()), f"{path} is an empty directory"
        else:
            assert path.stat().st_size, f"{path} is an empty file"


def alive(pid: int) -> bool:
    """Whether a process runs (and is no zombie)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_hard(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), 5, f"the end of process {pid}")
