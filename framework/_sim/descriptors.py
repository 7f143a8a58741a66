"""Descriptors of the simulated system: numbers that the real one never gives out, and waiting for them.

Readiness is level-triggered, as in reality: whoever waits is told that something may have changed
(`Descriptor.changed`) and looks for itself.
"""

from __future__ import annotations

import select
import selectors
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from framework._sim.kernel import Kernel, Task

#: The first number. (The real system's go up to a few thousand.)
BASE: Final = 1_000_000

#: those of `select`, wherever this runs
POLLIN, POLLOUT, POLLERR, POLLHUP = 0x001, 0x004, 0x008, 0x010
EPOLLONESHOT = 1 << 30


class Descriptor:
    """Something with a number that can be waited for."""

    def __init__(self, table: Descriptors) -> None:
        self._table = table
        self.fd = table.enter(self)
        self.watchers: dict[Any, None] = {}

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return False

    def hung_up(self) -> bool:
        return False

    def changed(self) -> None:
        """Tell whoever waits."""
        for watcher in list(self.watchers):
            watcher.notify(self)

    def release(self) -> None:
        """The number is free."""
        self._table.remove(self)


class Descriptors:
    """The open descriptors of all simulated processes."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._next = BASE
        self._open: dict[int, Descriptor] = {}

    def enter(self, descriptor: Descriptor) -> int:
        self._next += 1
        self._open[self._next] = descriptor
        process = self.kernel.process
        if process is not None:
            process.descriptors[self._next] = descriptor
        return self._next

    def remove(self, descriptor: Descriptor) -> None:
        if self._open.pop(descriptor.fd, None) is not None:
            for process in self.kernel.processes.values():
                process.descriptors.pop(descriptor.fd, None)

    def __getitem__(self, fd: int) -> Descriptor:
        found = self._open.get(fd)
        if found is None:
            raise OSError(9, "Bad file descriptor")
        return found

    def get(self, fd: int) -> Descriptor | None:
        return self._open.get(fd)

    def let_go(self) -> None:
        """The run is over: keep none of them."""
        self._open.clear()

    def __iter__(self) -> Iterator[Descriptor]:
        return iter(list(self._open.values()))


class Event(Descriptor):
    """An eventfd."""

    def __init__(self, table: Descriptors) -> None:
        super().__init__(table)
        self._count = 0

    def readable(self) -> bool:
        return self._count > 0

    def writable(self) -> bool:
        return True

    def add(self, data: bytes) -> int:
        self._count += int.from_bytes(data, "little")
        self.changed()
        return len(data)

    def take(self) -> bytes:
        if not self._count:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        count, self._count = self._count, 0
        return count.to_bytes(8, "little")


class ProcessEnd(Descriptor):
    """A pidfd: readable when the process has ended."""

    def __init__(self, table: Descriptors, pid: int) -> None:
        super().__init__(table)
        self._process = table.kernel.processes[pid]
        self._process.on_end.append(self.changed)

    def readable(self) -> bool:
        return not self._process.alive


class Waiting:
    """One task that waits for some descriptors, until one is ready."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.task: Task | None = None

    def notify(self, descriptor: Descriptor) -> None:
        if self.task is not None:
            self._kernel.wake(self.task)

    def wait(self, look: Callable[[], Any], timeout: float | None, what: str) -> Any:
        """What `look()` finds, as soon as it finds something, or after `timeout` seconds."""
        kernel = self._kernel
        found = look()
        if found or (timeout is not None and timeout <= 0):
            return found
        deadline = None if timeout is None else kernel.now + timeout
        self.task = kernel.current
        try:
            while True:
                in_time = kernel.block(deadline, what)
                found = look()
                if found or not in_time:
                    return found
        finally:
            self.task = None


class Poll(Waiting):
    """`select.poll`."""

    def __init__(self, table: Descriptors) -> None:
        super().__init__(table.kernel)
        self._table = table
        self._masks: dict[int, int] = {}

    def register(self, fd: Any, mask: int = POLLIN | POLLOUT) -> None:
        number = fd if isinstance(fd, int) else fd.fileno()
        self._masks[number] = mask

    modify = register

    def unregister(self, fd: Any) -> None:
        del self._masks[fd if isinstance(fd, int) else fd.fileno()]

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        found = [(fd, self._table.get(fd)) for fd in self._masks]
        watched = [descriptor for _, descriptor in found if descriptor is not None]
        for descriptor in watched:
            descriptor.watchers[self] = None
        try:
            seconds = None if timeout is None or timeout < 0 else timeout / 1000
            ready: list[tuple[int, int]] = self.wait(self._look, seconds, "poll")
            return ready
        finally:
            for descriptor in watched:
                descriptor.watchers.pop(self, None)

    def _look(self) -> list[tuple[int, int]]:
        return [
            (fd, bits) for fd, mask in self._masks.items() if (bits := bits_of(self._table.get(fd), mask))
        ]


def bits_of(descriptor: Descriptor | None, mask: int) -> int:
    """What poll() says of it."""
    if descriptor is None:
        return 0x020  # POLLNVAL
    bits = 0
    if mask & POLLIN and descriptor.readable():
        bits |= POLLIN
    if mask & POLLOUT and descriptor.writable():
        bits |= POLLOUT
    if descriptor.hung_up():
        bits |= POLLHUP
    return bits


class Epoll(Descriptor):
    """`select.epoll`, as far as it is used here; itself a descriptor that can be watched."""

    def __init__(self, table: Descriptors) -> None:
        super().__init__(table)
        self._masks: dict[int, int] = {}

    def fileno(self) -> int:
        return self.fd

    def notify(self, descriptor: Descriptor) -> None:
        self.changed()

    def register(self, fd: int, mask: int = POLLIN | POLLOUT) -> None:
        self._table[fd].watchers[self] = None
        self._masks[fd] = mask
        if self.readable():
            self.changed()

    def modify(self, fd: int, mask: int) -> None:
        if fd not in self._masks:
            raise FileNotFoundError(2, "No such file or directory")
        self._masks[fd] = mask
        if self.readable():
            self.changed()

    def unregister(self, fd: int) -> None:
        if self._masks.pop(fd, None) is None:
            raise FileNotFoundError(2, "No such file or directory")
        descriptor = self._table.get(fd)
        if descriptor is not None:
            descriptor.watchers.pop(self, None)

    def readable(self) -> bool:
        return any(self._bits(fd, mask) for fd, mask in self._masks.items())

    def _bits(self, fd: int, mask: int) -> int:
        if self._table.get(fd) is None:
            return 0
        return bits_of(self._table.get(fd), mask)

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        found = [(fd, bits) for fd, mask in self._masks.items() if (bits := self._bits(fd, mask))]
        for fd, _ in found:
            if self._masks[fd] & EPOLLONESHOT:
                self._masks[fd] = 0
        return found if maxevents < 0 else found[:maxevents]

    def close(self) -> None:
        for fd in list(self._masks):
            self.unregister(fd)
        self.release()


class Selector(selectors.BaseSelector):
    """What an event loop waits with."""

    def __init__(self, table: Descriptors) -> None:
        self._table = table
        self._kernel = table.kernel
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._maybe: dict[int, None] = {}  #: may be ready
        self._task: Task | None = None
        self._woken = False

    def notify(self, descriptor: Descriptor) -> None:
        """Something about a descriptor has changed."""
        self._maybe[descriptor.fd] = None
        if self._task is not None:
            self._kernel.wake(self._task)

    def wake(self) -> None:
        """End the present waiting, or the next."""
        self._woken = True
        if self._task is not None:
            self._kernel.wake(self._task)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if fd in self._keys:
            raise KeyError(f"{fileobj!r} is already registered")
        self._table[fd].watchers[self] = None
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        self._maybe[fd] = None
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        if fd not in self._keys:
            raise KeyError(f"{fileobj!r} is not registered")
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        self._maybe[fd] = None
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = self._keys.pop(fd)
        self._maybe.pop(fd, None)
        descriptor = self._table.get(fd)
        if descriptor is not None:
            descriptor.watchers.pop(self, None)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        kernel = self._kernel
        ready = self._ready()
        if ready or self._woken or (timeout is not None and timeout <= 0):
            # Others run too while this loop is busy.
            self._woken = False
            kernel.pause()
            return ready or self._ready()
        self._task = kernel.current
        try:
            kernel.block(None if timeout is None else kernel.now + timeout, "its loop has nothing to do")
        finally:
            self._task = None
        self._woken = False
        return self._ready()

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        found = []
        for fd in list(self._maybe):
            key, descriptor = self._keys.get(fd), self._table.get(fd)
            bits = 0
            if key is not None and descriptor is not None:
                if key.events & selectors.EVENT_READ and (descriptor.readable() or descriptor.hung_up()):
                    bits |= selectors.EVENT_READ
                if key.events & selectors.EVENT_WRITE and (descriptor.writable() or descriptor.hung_up()):
                    bits |= selectors.EVENT_WRITE
            if bits:
                assert key is not None
                found.append((key, bits))
            else:
                del self._maybe[fd]
        return found

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return self._keys[fd]

    def close(self) -> None:
        for fd in list(self._keys):
            self.unregister(fd)


assert select.POLLIN == POLLIN and select.POLLOUT == POLLOUT
