"""Addresses of owners and workers: text that travels inside references.

``unix:NAME`` is a socket in the session's socket directory; other kinds come with clusters of several
machines.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from framework._base import limits


def unix_address(name: str) -> str:
    """The address of the socket `name` of this session."""
    return f"unix:{name}"


def socket_path(address: str, socket_dir: str) -> str:
    """The path of the socket that `address` names; `ValueError` for an address of another kind."""
    kind, _, name = address.partition(":")
    if kind != "unix" or not name or "/" in name or name.startswith("."):
        raise ValueError(f"not an address of this session: {address!r}")
    return os.path.join(socket_dir, name)


@contextlib.contextmanager
def short_path(path: str) -> Iterator[str]:
    """The path of a socket in a form that fits into a socket address, valid inside the block. Long ones go by
    way of a descriptor of their directory, where the system has /proc; else `ValueError`."""
    if len(os.fsencode(path)) <= limits.UNIX_PATH_MAX:
        yield path
        return
    if not os.path.isdir("/proc/self/fd"):
        raise ValueError(
            f"the socket path {path!r} is longer than {limits.UNIX_PATH_MAX} bytes: set FRAMEWORK_TMPDIR to "
            "a shorter "
            "directory"
        )
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
