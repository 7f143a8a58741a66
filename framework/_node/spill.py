"""Where objects go when the store is full: a directory, or any file system that fsspec knows by a URL.

Each node process has a directory of its own there, which goes with it. One that was killed leaves its files
behind: the next node that spills to the same place removes them. A lock on a file inside, which lasts as long
as the process, tells which are in use, also between containers that share the place.

All methods but the constructors block: they run in the threads of the store service.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from typing import Any, Protocol

_CHUNK = 1 << 26
_PREFIX = "framework-spill-"
_LOCK = "in-use"


class Disk(Protocol):
    """Keeps blocks by name. `OSError`, with the place in its text, for whatever goes wrong."""

    def write(self, name: str, memory: memoryview) -> None:
        """Keep a copy of a block. What cannot be written whole leaves nothing behind."""

    def read(self, name: str, memory: memoryview) -> None:
        """Fill `memory` with the block of this name."""

    def open(self, name: str) -> Any:
        """A binary file to read the block from. `OSError` when it is not there any more."""

    def remove(self, name: str) -> None:
        """Forget a block. Never raises."""

    def close(self) -> None:
        """Remove everything. Never raises."""


def open_disk(place: str | None, session_dir: str) -> Disk:
    """The disk for a `spill_directory`: a path, a URL of fsspec, or None for the session directory."""
    if place is None:
        return LocalDisk(session_dir, "spill")
    if "://" in place:
        return RemoteDisk(place)
    return LocalDisk(place, None)


class LocalDisk:
    """A directory. Nothing is made there before the first block is written."""

    def __init__(self, parent: str, name: str | None) -> None:
        """With a `name` the directory belongs to the session, whose sweep finds it after a kill."""
        self._parent = parent
        self._swept_with_session = name is not None
        self.directory = os.path.join(parent, name or f"{_PREFIX}{os.urandom(8).hex()}")
        self._lock = -1
        self._making = threading.Lock()

    def _make(self) -> None:
        if self._swept_with_session:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            return
        with self._making:
            if self._lock >= 0:
                return
            _remove_orphans(self._parent)
            # It gets its name, by which others find it, when it is locked.
            hidden = os.path.join(self._parent, "." + os.path.basename(self.directory))
            os.makedirs(hidden, mode=0o700, exist_ok=True)
            lock = os.open(os.path.join(hidden, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(hidden, self.directory)
            except BaseException:
                os.close(lock)
                _remove_tree(hidden)
                raise
            self._lock = lock

    def write(self, name: str, memory: memoryview) -> None:
        path = os.path.join(self.directory, name)
        try:
            self._make()
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                done = 0
                while done < len(memory):
                    done += os.write(fd, memory[done : done + _CHUNK])
            except BaseException:
                self.remove(name)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            raise _placed(error, self.directory) from error

    def read(self, name: str, memory: memoryview) -> None:
        path = os.path.join(self.directory, name)
        with open(path, "rb", buffering=0) as file:
            done = 0
            while done < len(memory):
                count = file.readinto(memory[done : done + _CHUNK])
                if not count:
                    raise OSError(f"{path} is shorter than the object: {done} of {len(memory)} bytes")
                done += count

    def open(self, name: str) -> Any:
        return open(os.path.join(self.directory, name), "rb", buffering=0)

    def remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.directory, name))

    def close(self) -> None:
        if self._lock >= 0 or self._swept_with_session:
            _remove_tree(self.directory)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _placed(error: OSError, directory: str) -> OSError:
    """The same error, with the place in its text."""
    return OSError(error.errno, f"{error.strerror or error} (spilling to {directory})")


def _remove_tree(path: str) -> None:
    """If it is there. Never raises."""
    if os.path.isdir(path):
        import shutil  # slow to load, and seldom needed

        shutil.rmtree(path, ignore_errors=True)


def _remove_orphans(parent: str) -> None:
    """Remove what processes have left that are not there any more."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            if not entry.name.startswith(_PREFIX):
                continue
            with contextlib.suppress(OSError):
                if entry.stat(follow_symlinks=False).st_uid != os.getuid():
                    continue
                lock = os.open(os.path.join(entry.path, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError while somebody uses it
                    _remove_tree(entry.path)
                finally:
                    os.close(lock)


class RemoteDisk:
    """A file system of fsspec. The constructor raises `ImportError` when fsspec, or what it needs for this
    kind of URL, is not installed, and `ValueError` for a URL that it does not know.
    """

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise ImportError(
                f"spill_directory {url!r} is a URL: that takes fsspec; install the extra: framework[spill]"
            ) from None
        self._url = url
        filesystem, path = url_to_fs(url)
        self._fs: Any = filesystem
        self.directory = f"{path.rstrip('/')}/{_PREFIX}{os.urandom(8).hex()}"
        self._made = False

    def write(self, name: str, memory: memoryview) -> None:
        try:
            if not self._made:
                self._fs.makedirs(self.directory, exist_ok=True)
                self._made = True
            try:
                with self._fs.open(f"{self.directory}/{name}", "wb") as file:
                    for start in range(0, len(memory), _CHUNK):
                        file.write(memory[start : start + _CHUNK])
            except BaseException:
                self.remove(name)
                raise
        except Exception as error:  # drivers raise what they like
            raise OSError(f"{type(error).__name__}: {error} (spilling to {self._url})") from error

    def read(self, name: str, memory: memoryview) -> None:
        path = f"{self.directory}/{name}"
        try:
            with self._fs.open(path, "rb") as file:
                done = 0
                while done < len(memory):
                    data = file.read(min(_CHUNK, len(memory) - done))
                    if not data:
                        raise OSError(f"it is shorter than the object: {done} of {len(memory)} bytes")
                    memory[done : done + len(data)] = data
                    done += len(data)
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error} (in {self._url})") from error

    def open(self, name: str) -> Any:
        try:
            return self._fs.open(f"{self.directory}/{name}", "rb")
        except Exception as error:  # drivers raise what they like
            raise OSError(f"{type(error).__name__}: {error} (in {self._url})") from error

    def remove(self, name: str) -> None:
        with contextlib.suppress(Exception):
            self._fs.rm_file(f"{self.directory}/{name}")

    def close(self) -> None:
        if self._made:
            with contextlib.suppress(Exception):
                self._fs.rm(self.directory, recursive=True)
