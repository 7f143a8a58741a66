"""Files that only this user may read, whatever the umask."""

from __future__ import annotations

import os


def open_private(path: str, flags: int = os.O_WRONLY | os.O_APPEND | os.O_CREAT) -> int:
    """A descriptor of such a file."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def write_whole(path: str, text: str) -> None:
    """Write such a file, complete from the first moment on: others may read it at any time."""
    fd = open_private(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
    os.rename(f"{path}.new", path)
