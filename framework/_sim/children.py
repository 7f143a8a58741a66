"""Each run of a series in a forked child: it begins with a clean state, several run at a time, and one that
hangs is a result like any other."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import os
import pickle
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from typing import IO, Any, Final, Generic, NoReturn, TypeVar

from framework._sim.patches import System

T = TypeVar("T")
R = TypeVar("R")

#: Seconds after the limit in which a child has to end by itself, and to say where it was.
_GRACE: Final = 5.0
_TAIL: Final = 6_000  #: characters of what a child that did not come to its end has said


@dataclasses.dataclass
class NoResult:
    """A run that has none. `text` says why; `hung`: it was given up after the limit of real time."""

    text: str
    hung: bool = False

    def __str__(self) -> str:
        return self.text


class _Child(Generic[T]):
    def __init__(self, item: T, pid: int, pipe: int, said: IO[bytes], limit: float) -> None:
        self.item = item
        self.pid = pid
        self.pipe = pipe
        self.said = said
        self.begun = time.monotonic()
        self.end = self.begun + limit + _GRACE
        self.data = bytearray()

    def last_words(self) -> str:
        self.said.seek(0)
        return self.said.read().decode("utf-8", "replace")[-_TAIL:]


def in_children(
    items: Iterable[T], function: Callable[[T], R], *, jobs: int = 2, limit: float = 60.0
) -> Generator[tuple[T, R | NoResult], None, None]:
    """Yield `(item, function(item))` for each, as they come to their ends; `jobs` at a time, each for at most
    `limit` seconds. What `function` returns has to be picklable. Children that still run when the iterator
    is closed are killed."""
    todo = iter(items)
    running: dict[int, _Child[T]] = {}
    poll = select.poll()
    try:
        while True:
            while len(running) < max(1, jobs):
                try:
                    item = next(todo)
                except StopIteration:
                    break
                child = _start(item, function, limit)
                running[child.pipe] = child
                poll.register(child.pipe, select.POLLIN | select.POLLHUP)
            if not running:
                return
            for child in _ended(running, poll):
                poll.unregister(child.pipe)
                del running[child.pipe]
                yield child.item, _result(child, limit)
    finally:
        for child in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            _wait(child)


def _start(item: T, function: Callable[[T], R], limit: float) -> _Child[T]:
    reading, writing = os.pipe()
    said = tempfile.TemporaryFile(prefix="fw-sim-said-")  # noqa: SIM115
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _live(item, function, limit, writing, said)
    os.close(writing)
    return _Child(item, pid, reading, said, limit)


def _live(item: T, function: Callable[[T], R], limit: float, pipe: int, said: IO[bytes]) -> NoReturn:
    """The life of a child."""
    status = 70
    System.tidy = False
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.dump_traceback_later(limit, exit=True, file=said)
        result = function(item)
        faulthandler.cancel_dump_traceback_later()
        data = pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
        with open(pipe, "wb", closefd=False) as file:
            file.write(data)
        sys.stdout.flush()
        sys.stderr.flush()
        status = 0
    except BaseException:
        said.write(traceback.format_exc().encode())
        said.flush()
    finally:
        os._exit(status)


def _ended(running: dict[int, _Child[T]], poll: select.poll) -> list[_Child[T]]:
    """Wait for some, and read what they send."""
    first = min(child.end for child in running.values())
    ended = []
    for fd, _ in poll.poll(max(0.0, first - time.monotonic()) * 1000 + 1):
        data = os.read(fd, 1 << 20)
        running[fd].data += data
        if not data:
            ended.append(running[fd])
    now = time.monotonic()
    for child in running.values():
        if child.end < now and child not in ended:
            os.kill(child.pid, signal.SIGKILL)
            ended.append(child)
    return ended


def _wait(child: _Child[Any]) -> int:
    os.close(child.pipe)
    _, status = os.waitpid(child.pid, 0)
    return status


def _result(child: _Child[T], limit: float) -> Any:
    status = _wait(child)
    with child.said:
        if status == 0:
            return pickle.loads(bytes(child.data))
        words = child.last_words()
        if time.monotonic() - child.begun >= limit:
            return NoResult(f"no result after {limit:g} s of real time; it was here:\n{words}", hung=True)
        how = f"signal {-code}" if (code := os.waitstatus_to_exitcode(status)) < 0 else f"exit code {code}"
        return NoResult(f"its process has ended with {how}:\n{words}")
