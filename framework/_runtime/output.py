"""What workers print, shown by the driver: ``(name pid=123) text``, in Ray's form."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from framework._base import limits
from framework._state.logdedup import Deduplicator, Output
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime

CYAN = "\x1b[36m"
GREEN = "\x1b[32m"
RESET = "\x1b[0m"
DEDUP_HINT = " (the same line from several processes is shown once; FRAMEWORK_DEDUP_LOGS=0 shows all)"


class OutputPrinter:
    """Prints workers' lines. Nothing here ever raises; lines that the stream will not take are lost.

    `stream_out` and `stream_err` are where to print; None stands for what `sys.stdout` and `sys.stderr` are
    at the moment of printing, so that notebooks and test runners that replace them see the lines. `dedup`
    None shows every line. `clock` gives seconds that never decrease (`time.monotonic`).

    Printing lasts as long as the stream takes (a pager may never read on): call this from a thread that
    nothing else waits for. Any thread may call.
    """

    __slots__ = ("_clock", "_dedup", "_hinted", "_lock", "_stream_err", "_stream_out")

    def __init__(
        self,
        stream_out: TextIO | None,
        stream_err: TextIO | None,
        dedup: Deduplicator | None,
        clock: Callable[[], float],
    ) -> None:
        self._stream_out = stream_out
        self._stream_err = stream_err
        self._dedup = dedup
        self._clock = clock
        self._hinted = False
        self._lock = threading.Lock()

    def show(self, pid: int, ip: str | None, is_err: bool, lines: Iterable[tuple[str, str]]) -> None:
        """Print the `(name, line)` of process `pid`. `ip` is its machine's address, None on this machine."""
        source = (ip or "", pid)
        with self._lock:
            outputs: list[Output] = []
            if self._dedup is None:
                outputs = [Output(source, name, is_err, line, 0) for name, line in lines]
            else:
                now = self._clock()
                for name, line in lines:
                    outputs += self._dedup.feed(now, source, line, name=name, is_err=is_err)
            self._print(outputs)

    def tick(self, now: float) -> float | None:
        """Print what deduplication held back until `now`; returns when to call again, if at all."""
        if self._dedup is None:
            return None
        with self._lock:
            self._print(self._dedup.due(now))
            return self._dedup.next_due()

    def close(self) -> None:
        """Print what deduplication still holds back."""
        if self._dedup is not None:
            with self._lock:
                self._print(self._dedup.drain())

    def _print(self, outputs: list[Output]) -> None:
        for is_err in (False, True):
            chosen = [output for output in outputs if output.is_err == is_err]
            if not chosen:
                continue
            stream = self._stream_err if is_err else self._stream_out
            if stream is None:
                stream = sys.stderr if is_err else sys.stdout
            if stream is None:  # pythonw, or a daemon that took them away
                continue
            # One write, so that the driver's own prints do not come in between.
            colours = _is_terminal(stream)
            _write(stream, "".join(self._format(output, colours) for output in chosen))

    def _format(self, output: Output, colours: bool) -> str:
        ip, pid = output.source
        prefix = f"({output.name} " if output.name else "("
        prefix += f"pid={pid}, ip={ip})" if ip else f"pid={pid})"
        suffix = output.text[len(output.line) :]
        if suffix and not self._hinted:
            self._hinted = True
            suffix += DEDUP_HINT
        if colours:
            prefix = f"{CYAN}{prefix}{RESET}"
            suffix = f"{GREEN}{suffix}{RESET}" if suffix else ""
        return f"{prefix} {output.line}{suffix}\n"


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except Exception:  # closed, or not much of a stream
        return False


def _write(stream: TextIO, text: str) -> None:
    # Whatever a user has put in the place of sys.stdout may raise anything.
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except Exception:
        pass


class LogPrinter:
    """Shows what workers print: lines come on the runtime's loop, and are printed by a thread of their own,
    because a terminal may be slow. What it cannot take is left out, and the number of lines left out is
    said.
    """

    def __init__(self, runtime: Runtime) -> None:
        dedup = None
        if os.environ.get("FRAMEWORK_DEDUP_LOGS", "1") != "0":
            dedup = Deduplicator(_window())
        self._printer = OutputPrinter(None, None, dedup, time.monotonic)
        self._queue: queue.Queue[tuple[Any, ...] | None] = queue.Queue(limits.LOG_BATCHES_WAITING)
        self._logs = os.path.join(runtime.session_dir, "logs")
        self._left_out = 0
        runtime.node_handlers[m.LOG_LINES] = self._lines
        runtime.node_handlers[m.LOG_LINES_FROM] = self._lines_from
        self._thread = threading.Thread(target=self._run, name="framework-output", daemon=True)
        self._thread.start()

    def _lines(self, connection: object, frame: list[Any]) -> None:
        self._take(None, *frame[1:])

    def _lines_from(self, connection: object, frame: list[Any]) -> None:
        """Of a worker on another node."""
        self._take(*frame[1:])

    def _take(self, host: str | None, pid: int, is_err: bool, found: list[Any]) -> None:
        lines = [tuple(line) for line in found]
        try:
            if self._left_out:
                self._queue.put_nowait((None, 0, True, [("framework", self._notice())]))
                self._left_out = 0
            self._queue.put_nowait((host, pid, is_err, lines))
        except queue.Full:
            self._left_out += len(lines)

    def _notice(self) -> str:
        return (
            f"[{self._left_out} lines are not shown, because they came faster than this output takes them: "
            f"see {self._logs}]"
        )

    def _run(self) -> None:
        while True:
            due = self._printer.tick(time.monotonic())
            try:
                item = self._queue.get(timeout=None if due is None else max(0.01, due - time.monotonic()))
            except queue.Empty:
                continue
            if item is None:
                self._printer.close()
                return
            host, pid, is_err, lines = item
            self._printer.show(pid, host, is_err, lines)

    def close(self) -> None:
        """Print what is left, as far as the output takes it."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=limits.LOG_CLOSE_GRACE)
        self._thread.join(limits.LOG_CLOSE_GRACE)


def _window() -> float:
    """Seconds in which repeated lines count as one; what cannot be understood is ignored."""
    try:
        return float(os.environ.get("FRAMEWORK_DEDUP_LOGS_AGG_WINDOW_S", "5"))
    except ValueError:
        return 5.0
