"""The arena: one memory file per node, mapped by every process of the node. The only place that maps memory.

A memfd where the system has one: it needs no room in /dev/shm and vanishes with the last process that maps
it, also after kill -9. Elsewhere a file in the session directory, unlinked as soon as it is open.

No numpy here: every process of a session loads this module when it starts.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

from framework._base import limits

_MADV_POPULATE_WRITE = 23  # Linux 5.14
_CHUNK = limits.STORE_CHUNK
_COPY_WITHOUT_GIL = 512 * 1024  # 50 µs; below that, finding out the address of the source costs more


def _find_madvise() -> Callable[[int, int, int], int]:
    """``madvise(address, size, advice)``, unlike `mmap.madvise` without the GIL; -1 where there is none."""
    try:
        found = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):
        return lambda address, size, advice: -1
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    found.restype = ctypes.c_int
    madvise: Callable[[int, int, int], int] = found
    return madvise


_madvise = _find_madvise()


def create_arena(capacity: int, directory: str) -> int:
    """A descriptor of a sparse file of this many bytes, held in memory. The caller closes it."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("framework-store", os.MFD_CLOEXEC)
    else:
        import tempfile

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


def views_of(base: memoryview) -> memoryview:
    """A view from which every other is to be made, so that `base` lives as long as any of them.

    A slice of a memoryview keeps alive what the memoryview was made of, but not the memoryview itself. So one
    is put in between whose memory belongs to `base`: then a weak reference to `base` tells when the last
    slice, array or frame that was made of it is gone.
    """
    return memoryview(PickleBuffer(base))


class Arena:
    """A mapping of the arena. Never unmapped while the process lives: views of it may be anywhere."""

    __slots__ = ("_bytes", "_map", "_prepared", "_start", "capacity")

    def __init__(self, fd: int, capacity: int) -> None:
        """Takes over `fd` and closes it: the mapping keeps the memory."""
        self.capacity = capacity
        try:
            self._map = mmap.mmap(fd, capacity, mmap.MAP_SHARED)
        finally:
            os.close(fd)
        self._bytes = memoryview(self._map)
        self._prepared = bytearray((capacity + _CHUNK - 1) // _CHUNK)  #: 1 for chunks that need nothing more
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def base(self, offset: int, size: int, *, writable: bool = False) -> memoryview:
        """The bytes of a block, as an object of its own: make what users see from `views_of` it, and its end,
        noticed through a weak reference, is the end of all that."""
        found = self._bytes[offset : offset + size]
        return found if writable else found.toreadonly()

    def memory(self, offset: int, size: int) -> memoryview:
        """The bytes of a block, writable."""
        return self._bytes[offset : offset + size]

    def copy_in(self, offset: int, source: Any) -> None:
        """Copy a contiguous buffer into the arena, without the GIL if it is large. ValueError when it does
        not fit there."""
        view = (source if isinstance(source, memoryview) else memoryview(source)).cast("B")
        size = view.nbytes
        if offset < 0 or offset + size > self.capacity:
            raise ValueError(f"{size} bytes at {offset} are outside of an arena of {self.capacity}")
        if size < _COPY_WITHOUT_GIL:
            self._bytes[offset : offset + size] = view
        else:
            ctypes.memmove(self._start + offset, _address_of(view), size)

    def address(self) -> int:
        """Where the mapping begins in this process."""
        return self._start

    def prepare(self, offset: int, size: int) -> None:
        """Before writing to a range: have this process map it, all at once. Page by page, as it is written,
        that costs several times as much, even if the memory is there (2 GB/s of copying instead of 4)."""
        prepared = self._prepared
        end = (offset + size - 1) // _CHUNK + 1
        first = prepared.find(0, offset // _CHUNK, end)
        while first >= 0:
            last = prepared.find(1, first, end)
            last = end if last < 0 else last
            self.populate(first * _CHUNK, min(last * _CHUNK, self.capacity) - first * _CHUNK)
            prepared[first:last] = b"\x01" * (last - first)
            first = prepared.find(0, last, end)

    def is_prepared(self, offset: int, size: int) -> bool:
        """Whether `prepare` has nothing to do there."""
        end = (offset + size - 1) // _CHUNK + 1
        return self._prepared.find(0, offset // _CHUNK, end) < 0

    def populate(self, offset: int, size: int) -> bool:
        """Have the system provide the memory of a range now, without the GIL (Linux 5.14+). False when it
        cannot.
        """
        return _madvise(self._start + offset, size, _MADV_POPULATE_WRITE) == 0


class _PyBuffer(ctypes.Structure):
    """Py_buffer of the C API: https://docs.python.org/3/c-api/buffer.html#c.Py_buffer"""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _address_of(view: memoryview) -> int:
    """Where the bytes of a contiguous view are, for as long as the view lives."""
    buffer = _PyBuffer()
    api = ctypes.pythonapi
    api.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)  # PyBUF_SIMPLE
    address = buffer.buf or 0
    api.PyBuffer_Release(ctypes.byref(buffer))
    return address
