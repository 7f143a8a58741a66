"""Follows the output files of a node's workers.

No loop and no thread in here: the node's service calls `LogMonitor.poll_active` from a timer. A poll costs
two system calls per file of an active worker that has written, and nothing for an idle worker.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from framework._base import limits
from framework._base.limits import LOG_FINAL_BYTES, LOG_POLL_BYTES
from framework._state.loglines import LineAssembler

Lines = list[tuple[str, str]]


class LogBatch(NamedTuple):
    """New lines of one file of one worker: `(name of the task or actor, line)`."""

    worker_id: bytes
    pid: int
    is_err: bool
    lines: Lines


class LogTail:
    """Reads what is new in one file. Missing, replaced, truncated and unreadable files never raise.

    The file stays open between polls, so that what is still written to it after it was renamed or removed is
    read too. When another file is at `path`, that one is followed as soon as the old one has nothing more.
    """

    __slots__ = ("_fd", "_identity", "_lines", "behind", "is_err", "job", "offset", "path", "pid")

    def __init__(self, path: str, pid: int, job: bytes, is_err: bool) -> None:
        self.path = path
        self.pid = pid
        self.job = job
        self.is_err = is_err
        self.offset = 0
        self.behind = False  # the last poll left something unread
        self._fd = -1
        self._identity: tuple[int, int] | None = None  # device and inode of the file that `offset` is about
        self._lines = LineAssembler()

    def poll(self, max_bytes: int = LOG_POLL_BYTES) -> Lines:
        """Read at most `max_bytes`; returns the lines that they complete."""
        out: Lines = []
        size = self._size(out)
        self.behind = size - self.offset > max_bytes
        if size <= self.offset:
            return out
        try:
            data = os.pread(self._fd, max_bytes, self.offset)
        except OSError:
            self.behind = False
            return out
        self.offset += len(data)
        out += self._lines.feed(data)
        return out

    def flush(self) -> Lines:
        """The line that has no end yet."""
        return self._lines.flush()

    def release(self) -> None:
        """Close the file; the next poll opens it again, where it was."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _size(self, out: Lines) -> int:
        """The size of the file to read now, after noticing a replacement or truncation; 0 if none."""
        size = self._open_size(out)
        if size <= self.offset and self._replaced():
            self.release()
            self._start_over(out)
            size = self._open_size(out)
        if size < self.offset and self._fd >= 0:
            self._start_over(out)
        return size

    def _start_over(self, out: Lines) -> None:
        out += self._lines.flush()
        self.offset = 0

    def _open_size(self, out: Lines) -> int:
        if self._fd < 0 and not self._open(out):
            return 0
        try:
            return os.fstat(self._fd).st_size
        except OSError:
            return 0

    def _open(self, out: Lines) -> bool:
        """Open `path` unless it is empty; a worker that never prints costs no descriptor."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
            identity = (found.st_dev, found.st_ino)
            if self._identity is not None and (identity != self._identity or found.st_size < self.offset):
                self._start_over(out)
            if not stat.S_ISREG(found.st_mode) or not found.st_size:
                return False
            # Not through a link, and not waiting for a FIFO's writer: user code can reach the directory.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        self._identity = identity
        self._fd = fd
        return True

    def _replaced(self) -> bool:
        """Whether another file, with something in it, is at `path` now."""
        if self._fd < 0:
            return False
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return False
        return (found.st_dev, found.st_ino) != self._identity


class _Watched:
    """The two files of a worker."""

    __slots__ = ("active", "tails", "worker_id")

    def __init__(self, worker_id: bytes, tails: tuple[LogTail, LogTail]) -> None:
        self.worker_id = worker_id
        self.tails = tails
        self.active = False


class LogMonitor:
    """The output files of all workers of a node.

    `max_bytes` bounds what one poll reads from one file; the rest stays for the next.
    """

    __slots__ = ("_due", "_left", "_max_bytes", "_watched")

    def __init__(self, max_bytes: int = LOG_POLL_BYTES) -> None:
        self._max_bytes = max_bytes
        self._watched: dict[bytes, _Watched] = {}
        # Active workers, and those that are not any more but have not had their last poll.
        self._due: dict[bytes, _Watched] = {}
        self._left: deque[str] = deque()  #: files of workers that have ended

    def watch(self, worker_id: bytes, pid: int, out_path: str, err_path: str, *, job: bytes = b"") -> None:
        """Follow this worker's files, which need not exist yet. It counts as idle until `set_active`."""
        tails = (LogTail(out_path, pid, job, False), LogTail(err_path, pid, job, True))
        self._watched[worker_id] = _Watched(worker_id, tails)

    def set_active(self, worker_id: bytes, active: bool) -> None:
        """Whether the worker runs something. When it stops, one more poll reads the rest."""
        watched = self._watched.get(worker_id)
        if watched is None:
            return
        watched.active = active
        if active:
            self._due[worker_id] = watched

    def poll_active(self, later: Callable[[bytes], bool] | None = None) -> list[LogBatch]:
        """What is new from workers that run something, or did at the last poll; for which `later(worker_id)`
        holds, that is for another time."""
        due = [w for w in self._due.values() if later is None or not later(w.worker_id)]
        out = self._poll(due)
        for watched in due:
            if watched.active or any(tail.behind for tail in watched.tails):
                continue  # one more turn, until everything is read
            del self._due[watched.worker_id]
            for tail in watched.tails:
                # Its task is over, hence so is a line that it left without an end.
                _add(out, watched, tail, tail.flush())
                tail.release()
        return out

    def poll_all(self) -> list[LogBatch]:
        """What is new from all workers: idle ones print too, from threads that outlive a task."""
        out = self._poll(self._watched.values())
        for watched in self._watched.values():
            if watched.worker_id not in self._due:
                for tail in watched.tails:
                    tail.release()
        return out

    def flush_all(self, of: Callable[[bytes], bool] | None = None) -> list[LogBatch]:
        """As `poll_all`, with the lines that have no end yet, of all workers or those for which
        `of(worker_id)` holds: nobody will be there to see it."""
        out = self.poll_all()
        for watched in self._watched.values():
            if of is None or of(watched.worker_id):
                for tail in watched.tails:
                    _add(out, watched, tail, tail.flush())
        return out

    def forget(self, worker_id: bytes) -> list[LogBatch]:
        """The worker has ended: read the rest (of at most 4 MiB per file), and remove its files if empty.
        Others stay, of the `limits.LOG_FILES_KEPT` that ended last."""
        watched = self._watched.pop(worker_id, None)
        self._due.pop(worker_id, None)
        out: list[LogBatch] = []
        if watched is None:
            return out
        for tail in watched.tails:
            lines = tail.poll(LOG_FINAL_BYTES)
            if tail.behind:
                lines += [*tail.flush(), ("", f"[more output is in {tail.path}]")]
            else:
                lines += tail.flush()
            _add(out, watched, tail, lines)
            tail.release()
            if not _is_removed_as_empty(tail.path):
                self._left.append(tail.path)
        while len(self._left) > limits.LOG_FILES_KEPT:
            with contextlib.suppress(OSError):
                os.unlink(self._left.popleft())
        return out

    def close(self) -> None:
        """Close all files and forget all workers, without reading."""
        for watched in self._watched.values():
            for tail in watched.tails:
                tail.release()
        self._watched.clear()
        self._due.clear()

    def _poll(self, workers: Iterable[_Watched]) -> list[LogBatch]:
        out: list[LogBatch] = []
        for watched in workers:
            for tail in watched.tails:
                _add(out, watched, tail, tail.poll(self._max_bytes))
        return out


def _add(out: list[LogBatch], watched: _Watched, tail: LogTail, lines: Lines) -> None:
    if lines:
        out.append(LogBatch(watched.worker_id, tail.pid, tail.is_err, lines))


def _is_removed_as_empty(path: str) -> bool:
    """Whether there is no such file, any more at least."""
    try:
        if os.stat(path, follow_symlinks=False).st_size:
            return False
        os.unlink(path)
    except OSError:
        pass
    return True
