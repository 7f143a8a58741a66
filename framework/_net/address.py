"""Addresses of owners and workers: text that travels inside references.

unix:NAME                   a socket in the session's socket directory: sessions of one machine
tcp:HOST/PORT/NODE/NAME     in a cluster: NODE says on which node the process lives (the first
                            `NODE_DIGITS` hexadecimal digits of its id). Processes of the same node take
                            the socket NAME in their socket directory, others HOST and PORT. HOST may be
                            an IPv6 address, without brackets.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from framework._base import limits

NODE_DIGITS: Final = 16


class TcpAddress(NamedTuple):
    """The parts of a ``tcp:`` address."""

    host: str
    port: int
    node: str  #: "" only in the address of a service that belongs to no node
    name: str


def unix_address(name: str) -> str:
    """The address of the socket `name` of this session."""
    return f"unix:{name}"


def tcp_address(host: str, port: int, node_id: bytes, name: str) -> str:
    """The address of a process of a cluster: it listens at `host`, `port`, and on the socket `name` in the
    socket directory of its node."""
    return f"tcp:{host}/{port}/{node_digits(node_id)}/{name}"


def node_digits(node_id: bytes) -> str:
    """The part of a node's id that stands in addresses."""
    return node_id.hex()[:NODE_DIGITS]


def node_of(address: str) -> str:
    """The NODE part of an address; "" for an address of this session (``unix:``), and what is no address."""
    if address[:4] != "tcp:":
        return ""
    parts = address.split("/")
    return parts[2] if len(parts) == 4 else ""


def parse_tcp(address: str) -> TcpAddress:
    """The parts of a ``tcp:`` address; `ValueError` for anything else."""
    kind, _, rest = address.partition(":")
    parts = rest.split("/")
    if kind == "tcp" and len(parts) == 4:
        host, port, node, name = parts
        node_fits = len(node) == NODE_DIGITS and not node.strip("0123456789abcdef")
        if host and node_fits and _is_port(port) and _is_name(name):
            return TcpAddress(host, int(port), node, name)
    raise ValueError(f"not an address of a process of a cluster: {address!r}")


def socket_path(address: str, socket_dir: str, node: str = "") -> str:
    """The path of the Unix socket that `address` names, for a process of `node` (digits, as `node_of` has
    them). `ValueError` for one that is not on this node, and what is no address."""
    if node and address[:4] == "tcp:":
        there = parse_tcp(address)
        if there.node == node:
            return os.path.join(socket_dir, there.name)
    kind, _, name = address.partition(":")
    if kind != "unix" or not _is_name(name):
        raise ValueError(f"not an address of this session: {address!r}")
    return os.path.join(socket_dir, name)


def host_port(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPv6]:PORT`` taken apart; `ValueError` for anything else."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""  # an IPv6 address needs brackets
    if not colon or not host or not _is_port(port):
        raise ValueError(f"an address is HOST:PORT, as in 10.0.0.1:6380 or [fd00::1]:6380; got {text!r}")
    return host, int(port)


def join_host_port(host: str, port: int) -> str:
    """The other way."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_name(name: str) -> bool:
    return bool(name) and "/" not in name and not name.startswith(".")


def _is_port(port: str) -> bool:
    return len(port) <= 5 and port.isascii() and port.isdecimal() and 0 < int(port) < 65536


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
