"""The worker's standard streams: two files, in which marker lines say whose text follows.

Before the first text of another task or actor, a marker line (`framework._state.loglines`) goes into the
file. It is written with the text, not when the name changes: `set_name` is on the path of every task, and
most tasks print nothing.

`redirect` acts on file descriptors 1 and 2 as well, so that C code and subprocesses end up in the same
files. Their text counts for whoever wrote last by way of `sys.stdout` or `sys.stderr`.
"""

from __future__ import annotations

import atexit
import fcntl
import io
import os
import sys
import threading
from typing import TYPE_CHECKING

from framework._base.limits import LINE_BYTES
from framework._state.loglines import marker_line

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class CurrentName:
    """The name of the task or actor that runs now."""

    __slots__ = ("name", "unfinished")

    def __init__(self) -> None:
        self.name = ""
        self.unfinished = False  #: there may be text without a newline that waits for more


class LineWriter(io.BufferedIOBase):
    """A binary stream over a descriptor, buffered by line and by thread.

    Lines of several threads never mix. `flush` gives out the calling thread's unfinished line; when anyone
    else writes next, or the name changes, that line is ended first. `close` only flushes: a task that closes
    `sys.stdout` must not silence those after it on the same worker.
    """

    def __init__(self, fd: int, name: str, current: CurrentName, public_fd: int | None = None) -> None:
        self.name = name
        self._fd = fd
        self._public_fd = fd if public_fd is None else public_fd
        self._current = current
        # Reentrant: signal handlers and finalizers print too, also in the middle of a write.
        self._lock = threading.RLock()
        self.partials: dict[int, tuple[str, bytes]] = {}  #: by thread: whose text, text without newline
        self._written_name = ""
        self._at_line_start = True
        self._last_writer = 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._public_fd

    def write(self, data: ReadableBuffer, /) -> int:
        """Take all of `data`; what ends in a newline is in the file on return. OSError as of `os.write`."""
        chunk = bytes(data)
        size = len(chunk)
        me = threading.get_ident()
        name = self._current.name
        with self._lock:
            begun_by, begun = self.partials.pop(me, (name, b""))
            if begun_by == name:
                chunk = begun + chunk
            else:
                self._emit(me, begun_by, begun)
            end = len(chunk) if len(chunk) > LINE_BYTES else chunk.rfind(b"\n") + 1
            if end < len(chunk):
                self.partials[me] = (name, chunk[end:])
                self._current.unfinished = True
            if end:
                self._emit(me, name, chunk[:end])
        return size

    def flush(self) -> None:
        """Write the unfinished line of the calling thread."""
        me = threading.get_ident()
        with self._lock:
            if (partial := self.partials.pop(me, None)) is not None:
                self._emit(me, *partial)

    def flush_all(self) -> None:
        """Write the unfinished lines of all threads, each as a line of its own."""
        with self._lock:
            while self.partials:
                thread, partial = self.partials.popitem()
                self._emit(thread, *partial)

    def close(self) -> None:
        self.flush()

    def after_fork(self) -> None:
        """In a forked child: a thread that is not here may have held the lock; its text is the parent's."""
        self._lock = threading.RLock()
        self.partials.clear()

    def _emit(self, thread: int, name: str, text: bytes) -> None:
        head = b""
        if not self._at_line_start and (thread != self._last_writer or name != self._written_name):
            head = b"\n"
        if name != self._written_name:
            head += marker_line(name)
        # Before the write, which a signal's exception may interrupt.
        self._written_name = name
        self._at_line_start = text.endswith(b"\n")
        self._last_writer = thread
        rest = memoryview(head + text)
        while rest:
            rest = rest[os.write(self._fd, rest) :]


# One per process, like the descriptors that they are about.
_current = CurrentName()
_writers: list[LineWriter] = []


def redirect(out_path: str, err_path: str) -> None:
    """Send descriptors 1 and 2, `sys.stdout` and `sys.stderr` to these files (appended to, mode 0600).

    To be called once in a worker process, before user code. Raises OSError when a file cannot be opened. A
    process that ends with `os._exit` calls `flush` first.
    """
    sys.stdout, sys.stderr = _redirect_one(1, out_path), _redirect_one(2, err_path)
    # For code that puts back what it believes to be the originals.
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]


def current_name() -> CurrentName:
    """For whoever sets the name so often that a call is too much."""
    return _current


def set_name(name: str) -> None:
    """What is written from now on counts for the task or actor `name`."""
    _current.name = name


def end_task() -> None:
    """A task is over: what it has printed without a newline is written too, as nobody may ever add one."""
    _current.unfinished = False
    for writer in _writers:
        if writer.partials:
            flush()


def flush() -> None:
    """Write every unfinished line of every thread. Never raises."""
    for writer in _writers:
        try:
            writer.flush_all()
        except OSError:
            pass  # a full disk or a closed descriptor: there is nowhere to report it


def _redirect_one(fd: int, path: str) -> io.TextIOWrapper:
    old = sys.stdout if fd == 1 else sys.stderr
    if old is not None:
        try:
            old.flush()  # what it holds belongs to the old descriptor
        except (OSError, ValueError):
            pass
    new_fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Ours, so that a task that closes the standard descriptor neither silences those after it nor has them
    # write into whatever gets its number next.
    private = fcntl.fcntl(new_fd, fcntl.F_DUPFD_CLOEXEC, 3)
    if new_fd != fd:
        os.dup2(new_fd, fd)  # inheritable, unlike new_fd
        os.close(new_fd)
    else:
        os.set_inheritable(fd, True)
    if not _writers:
        atexit.register(flush)
    writer = LineWriter(private, "<stdout>" if fd == 1 else "<stderr>", _current, public_fd=fd)
    _writers.append(writer)
    os.register_at_fork(after_in_child=writer.after_fork)
    return text_over(writer)


def text_over(writer: LineWriter) -> io.TextIOWrapper:
    """The text stream for a writer. The buffering is the writer's alone."""
    return io.TextIOWrapper(
        writer, encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True
    )
