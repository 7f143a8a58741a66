"""What workers print, shown by the driver: ``(name pid=123) text``, in Ray's form."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from typing import TextIO

from framework._state.logdedup import Deduplicator, Output

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
