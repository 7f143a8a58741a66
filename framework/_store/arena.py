"""The arena: one memory file per node, mapped by every process of the node. The only place that maps memory.

A memfd where the system has one: it needs no room in /dev/shm and vanishes with the last process that maps
it, also after kill -9. Elsewhere a file in the session directory, unlinked as soon as it is open.
"""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MADV_POPULATE_WRITE = 23  # Linux 5.14
_POPULATE_STEP = 8 * 1024 * 1024  # some milliseconds


def create_arena(capacity: int, directory: str) -> int:
    """A descriptor of a sparse file of this many bytes, held in memory. The caller closes it."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("framework-store", os.MFD_CLOEXEC)
    else:
        fd, path = tempfile.mkstemp(dir=directory)
        os.unlink(path)
    try:
        os.ftruncate(fd, capacity)
    except BaseException:
        os.close(fd)
        raise
    return fd


def send_arena(sock: socket.socket, fd: int, capacity: int) -> None:
    """Pass the descriptor over a Unix socket."""
    socket.send_fds(sock, [capacity.to_bytes(8, "little")], [fd])


def receive_arena(sock: socket.socket) -> tuple[int, int]:
    """(descriptor, capacity) from `send_arena`; `OSError` when the other side has none."""
    data, fds, _, _ = socket.recv_fds(sock, 8, 1)
    if len(data) != 8 or len(fds) != 1:
        for fd in fds:
            os.close(fd)
        raise OSError("the node did not hand over its store")
    return fds[0], int.from_bytes(data, "little")


class Arena:
    """A mapping of the arena. Never unmapped while the process lives: views of it may be anywhere."""

    __slots__ = ("_bytes", "_map", "capacity")

    def __init__(self, fd: int, capacity: int) -> None:
        """Takes over `fd` and closes it: the mapping keeps the memory."""
        self.capacity = capacity
        try:
            self._map = mmap.mmap(fd, capacity, mmap.MAP_SHARED)
        finally:
            os.close(fd)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)

    def base(self, offset: int, size: int, *, writable: bool = False) -> NDArray[np.uint8]:
        """The bytes of a block, as an array object of its own: everything that is made of it keeps *it*
        alive, so that its end, seen through a weak reference, is the end of all views."""
        found: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8, count=size, offset=offset)
        if not writable:
            found.flags.writeable = False
        return found

    def memory(self, offset: int, size: int) -> memoryview:
        """The bytes of a block, writable."""
        return memoryview(self._map)[offset : offset + size]

    def copy_in(self, offset: int, source: Any) -> None:
        """Copy a contiguous buffer into the arena. numpy releases the GIL for large ones."""
        view = memoryview(source).cast("B") if not isinstance(source, memoryview) else source.cast("B")
        size = view.nbytes
        if size:
            np.copyto(self._bytes[offset : offset + size], np.frombuffer(view, dtype=np.uint8))

    def address(self) -> int:
        """Where the mapping begins in this process."""
        return int(self._bytes.__array_interface__["data"][0])

    def populate(self, offset: int, size: int) -> bool:
        """Have the system provide the memory of a range now (Linux 5.14+). False when it cannot."""
        try:
            # In steps, because the GIL is held during each: the runtime's thread has to answer meanwhile.
            for start in range(offset, offset + size, _POPULATE_STEP):
                step = min(_POPULATE_STEP, offset + size - start)
                self._map.madvise(_MADV_POPULATE_WRITE, start, step)
        except (OSError, ValueError, AttributeError):
            return False
        return True
