"""What a worker has to do with being a process: the note of what it runs, and forks that user code makes."""

from __future__ import annotations

import mmap
import os
import sys

from framework._worker import stdio


class RunMark:
    """Eight bytes in a file that the node reads after this process has died: which task was running."""

    __slots__ = ("cell",)

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, 8)
            #: its only item: a task, 0 for none, or `SEVERAL_TASKS`
            self.cell = memoryview(mmap.mmap(fd, 8)).cast("Q")
        finally:
            os.close(fd)


def end_fork(error: BaseException | None) -> None:
    """A process that user code has forked comes back out of the task: it ends here, as a script would, and
    does not go on as a second worker on the same connections."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        code = 1
        sys.excepthook(type(error), error, error.__traceback__)
    stdio.flush()
    os._exit(code)
