"""Addresses of owners and workers: text that travels inside references.

``unix:NAME`` is a socket in the session's socket directory; other kinds come with clusters of several machines.
"""

from __future__ import annotations

import os

from framework._base import limits


def unix_address(name: str) -> str:
    """The address of the socket `name` of this session."""
    return f"unix:{name}"


def socket_path(address: str, socket_dir: str) -> str:
    """The path of the socket that `address` names; `ValueError` for an address of another kind."""
    kind, _, name = address.partition(":")
    if kind != "unix" or not name or "/" in name or name.startswith("."):
        raise ValueError(f"not an address of this session: {address!r}")
    path = os.path.join(socket_dir, name)
    if len(os.fsencode(path)) > limits.UNIX_PATH_MAX:
        raise ValueError(
            f"the socket path {path!r} is longer than {limits.UNIX_PATH_MAX} bytes: set FRAMEWORK_TMPDIR to a shorter directory"
        )
    return path
