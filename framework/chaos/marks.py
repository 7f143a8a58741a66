"""Executions leave marks: lines in a file, which outlives the process that has written them.

One file per round. A task that is repeated, or that runs on after a node was declared dead, writes a second
line; one that runs when nobody cares any more finds no file, and writes nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter


def mark(path: str, key: str) -> None:
    """Called by what is executed: this has begun. A line is written at once, or not at all."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(fd, f"{key}\n".encode())
        finally:
            os.close(fd)


class Marks:
    """The files of one workload, in `directory`."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        os.makedirs(directory, exist_ok=True)

    def new(self, name: str) -> str:
        """An empty file; its path."""
        path = os.path.join(self._directory, name)
        with open(path, "w"):
            pass
        return path

    def read(self, path: str) -> Counter[str]:
        """How often each key was written."""
        with open(path) as file:
            return Counter(file.read().split("\n")[:-1])

    def take(self, path: str) -> Counter[str]:
        """The same, and the file goes: what comes later is of no interest."""
        found = self.read(path)
        os.unlink(path)
        return found
