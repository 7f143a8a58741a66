"""Whoever should not be listened to: every place at which processes listen, ways to speak to it, and frames
that are right in form and wrong in content.

Plain blocking sockets, nothing of the product's own network code but what makes proofs: a mistake there must
not hide itself.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import socket
import ssl
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

import framework
from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._net import tls
from framework._wire import messages as m
from framework._wire.handshake import ClientHandshake

# ---- where processes listen ----------------------------------------------------------------------------


class Endpoint(NamedTuple):
    """A listening socket."""

    family: str  #: "tcp", "unix" or "abstract"
    address: str  #: a path, or HOST
    port: int  #: of TCP
    pid: int

    def __str__(self) -> str:
        where = f"{self.address}:{self.port}" if self.family == "tcp" else os.path.basename(self.address)
        return f"{self.family} {where} of {self.pid}"


def listening(pids: Iterable[int]) -> list[Endpoint]:
    """All sockets at which these processes listen, as the kernel tells (of those that several processes hold,
    the first is named). AssertionError for a kind of socket that this project has no use for."""
    owners: dict[str, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{name}")
                    if target.startswith("socket:["):
                        owners.setdefault(target[8:-1], pid)
    found = []
    for table in ("tcp", "tcp6"):
        for words in _lines(table):
            if words[3] == "0A" and words[9] in owners:
                found.append(Endpoint("tcp", *_host_port(words[1]), owners[words[9]]))
    for words in _lines("unix"):
        if words[6] in owners and int(words[3], 16) & 0x10000:  # it accepts connections
            path = words[7]
            family = "abstract" if path.startswith("@") else "unix"
            found.append(Endpoint(family, path, 0, owners[words[6]]))
    for table in ("udp", "udp6", "udplite", "raw", "raw6", "packet"):
        for words in _lines(table):
            inode = words[8] if table == "packet" else words[9]
            assert inode not in owners, f"process {owners[inode]} has a socket of the kind {table}"
    return found


def _lines(table: str) -> Iterator[list[str]]:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            yield line.split()


def _host_port(text: str) -> tuple[str, int]:
    address, port = text.split(":")
    if len(address) == 8:
        return socket.inet_ntop(socket.AF_INET, struct.pack("=I", int(address, 16))), int(port, 16)
    words = struct.pack("=4I", *(int(address[at : at + 8], 16) for at in range(0, 32, 8)))
    return socket.inet_ntop(socket.AF_INET6, words), int(port, 16)


# ---- how to speak to them ------------------------------------------------------------------------------


def reach(endpoint: Endpoint, encrypted: bool = False, timeout: float = 10.0) -> socket.socket:
    """A connection, nothing said yet (but what TLS takes). `OSError` when there is none to be had."""
    if endpoint.family == "tcp":
        sock = socket.create_connection((endpoint.address, endpoint.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if encrypted:
            return tls.client_context().wrap_socket(sock)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    try:
        if len(endpoint.address) < limits.UNIX_PATH_MAX:
            sock.connect(endpoint.address)
        elif endpoint.address.startswith("/proc/self/fd/"):
            raise OSError("the path of that socket is only known to its process")
        else:
            directory = os.open(os.path.dirname(endpoint.address), os.O_RDONLY)
            try:
                sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(endpoint.address)}")
            finally:
                os.close(directory)
    except BaseException:
        sock.close()
        raise
    return sock


def say(sock: socket.socket, data: bytes) -> None:
    """Send as far as the other side takes it."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        sock.sendall(data)


def hear(sock: socket.socket, most: int = 1 << 20) -> tuple[bytes, bool]:
    """All that the other side says until it closes the connection; and whether it did so in time."""
    heard = b""
    try:
        while len(heard) < most:
            data = sock.recv(65536)
            if not data:
                return heard, True
            heard += data
    except TimeoutError:
        return heard, False
    except (ConnectionError, ssl.SSLError):
        return heard, True
    return heard, False


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes; `ConnectionError` when fewer come."""
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise ConnectionResetError(f"closed after {len(data)} of {size} bytes")
        data += chunk
    return data


def prove(sock: socket.socket, facts: ClusterFacts, nonce: bytes | None = None) -> tuple[bytes, bytes, bytes]:
    """The handshake, as a member: what was said, heard, and said last. `AuthenticationError` or
    `ConnectionError` when it does not come to its end."""
    binding = tls.fingerprint(facts.certificate) if facts.certificate is not None else b""
    side = ClientHandshake(facts.token, facts.cluster_id or None, nonce or os.urandom(32), binding)
    said, heard, proof = side.start(), b"", b""
    sock.sendall(said)
    while not side.done:
        data = exactly(sock, side.wanted)
        heard += data
        proof = side.feed(data)
    sock.sendall(proof)
    return said, heard, proof


def member(endpoint: Endpoint, facts: ClusterFacts, timeout: float = 10.0) -> socket.socket:
    """A connection of one who knows the token."""
    sock = reach(endpoint, facts.certificate is not None, timeout)
    try:
        prove(sock, facts)
        return sock
    except BaseException:
        sock.close()
        raise


def hello(kind: str = "tool", ident: bytes = b"x" * 28, pid: int | None = None, **info: Any) -> bytes:
    """HELLO of somebody."""
    frame = [m.HELLO, limits.PROTOCOL_VERSION, kind, ident, os.getpid() if pid is None else pid, "", info]
    return packed(frame)


def packed(frame: object) -> bytes:
    """As it goes over the wire."""
    data: bytes = msgpack.packb(frame)
    return data


class Bomb:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int, int]]:
        return os.open, (str(self.mark), os.O_CREAT | os.O_WRONLY, 0o600)


# ---- frames that are right in form and wrong in content --------------------------------------------------


@functools.cache
def keys() -> list[str]:
    """The keys that the product looks for in the maps that it is sent (or anywhere)."""
    found: set[str] = set()
    for path in Path(framework.__file__).parent.rglob("_*/*.py"):
        found.update(re.findall(r'(?:\[|\.get\(|\.pop\()"([a-z_]+)"', path.read_text()))
    return sorted(found)


_NUMBERS = [0, 1, -1, 2, 7, 10_000, 2**31, 2**63 - 1, -(2**63), 2**64 - 1]
_TEXTS = [
    "",
    "x",
    "CPU",
    "GPU",
    "ALIVE",
    "DEAD",
    "SPREAD",
    "unix:node",
    "unix:../../x",
    "tcp:x",
    "\0",
    "a" * 2000,
]
_TEXTS += ["tcp:127.0.0.1/1/0123456789abcdef/x"]
_FLOATS = [0.0, -1.0, 1.5, 1e300, float("inf"), float("nan")]
_SIZES = [0, 1, 4, 16, 24, 28, 28, 28, 36]


def content(opcode: int, field: str, ident: bytes = b"x" * 28) -> Any:
    """What could be in a field of which more is asked than a type (`m.SHAPES`)."""
    units = {"CPU": 10_000}
    job = b"\1\0\0\0"
    facts = {"job": job, "namespace": "n", "sys_path": [], "log_to_driver": True}
    actor = {
        "class_name": "A",
        "payload": b"",
        "args": [],
        "kwargs": None,
        "resources": units,
        "placement": units,
        "env": {"A": "1"},
        "strategy": None,
        "priority": 0,
        "name": None,
        "namespace": "n",
        "lifetime": None,
        "get_if_exists": False,
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": None,
        "concurrency_groups": None,
        "supervised": False,
        "owner": "unix:nobody",
        "job": job,
        "job_info": facts,
        "handle": None,
    }
    node = {
        "node_id": ident,
        "total": units,
        "available": units,
        "labels": {"floor": "2"},
        "host": "127.0.0.1",
        "port": 1,
        "data_port": 1,
        "hostname": "h",
        "pid": 1,
        "session_dir": "/nowhere",
        "head": False,
        "actors": [[b"a" * 16, 0, b"w" * 28, "tcp:127.0.0.1/1/0123456789abcdef/x", 1]],
        "processes": [b"p" * 28],
        "bundles": [[b"g" * 18, 0, 1, True]],
    }
    known: dict[str, Any] = {
        "info": facts if opcode == m.HELLO else node,
        "row": node,
        "spec": actor,
        "resources": units,
        "units": units,
        "available": units,
        "total": units,
        "env": {"A": "1"},
        "strategy": ["node", "0" * 56, True],
        "pending": [[units, None, 3]],
        "bundles": [[0, units]],
        "objects": [b"o" * 28],
        "offsets": [0],
        "leases": [1],
    }
    if opcode == m.TEMPLATE:
        return {"name": "f", "returns": 1, "hash": b"h" * 32, "scope": b"\xff" * 12 + job}
    if opcode == m.STORE_PREFETCH:
        return [[b"o" * 28, ident, 1]]
    shape = m.SHAPES[opcode][field]
    return next(value for value in (known.get(field), [1], [b"o" * 28]) if shape(value))


class Fields:
    """Random values of given types, from a seed: plausible ones among them, and ids that were met before."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.known: list[bytes] = []  #: ids of what exists

    def value(self, types: Any = object, depth: int = 0) -> Any:
        """One of these types; of any, for `object`."""
        draw = self.random
        if isinstance(types, tuple):
            types = draw.choice(types)
        if types is object:
            types = draw.choice(
                [int, str, bytes, bool, float, type(None), list, dict][: 8 if depth < 3 else 6]
            )
        if types is int:
            return draw.choice([*_NUMBERS, draw.randrange(1000)])
        if types is bool:
            return draw.random() < 0.5
        if types is float:
            return draw.choice(_FLOATS)
        if types is str:
            return draw.choice([*_TEXTS, draw.choice(keys())])
        if types is bytes:
            if self.known and draw.random() < 0.5:
                return draw.choice(self.known)
            return draw.choice([draw.randbytes(draw.choice(_SIZES)), b"\0" * 28, b"x" * 28])
        if types is list:
            return [self.value(depth=depth + 1) for _ in range(draw.randrange(5))]
        if types is dict:
            return {self._key(): self.value(depth=depth + 1) for _ in range(draw.randrange(12))}
        return None

    def _key(self) -> object:
        if self.random.random() < 0.8:
            return self.random.choice(keys())
        return self.random.choice(["CPU", "", b"x", 1, -1, None, True, 1.5])

    def frame(self, opcode: int, ident: bytes = b"x" * 28) -> list[Any]:
        """A message of this kind from `ident`, right in form; often also in what services look at first."""
        message = m.CATALOGUE[opcode]
        frame: list[Any] = [opcode]
        for name, types in zip(message.fields, message.types, strict=True):
            if self.random.random() < 0.7 and name in m.SHAPES.get(opcode, ()):
                frame.append(content(opcode, name, ident))
            else:
                frame.append(self.value(types))
        return self.changed(frame) if self.random.random() < 0.6 else frame

    def changed(self, frame: list[Any]) -> list[Any]:
        """The same message with another value somewhere inside."""
        frame = msgpack.unpackb(packed(frame), strict_map_key=False)
        at: Any = frame
        for _ in range(self.random.randrange(1, 5)):
            places = list(at if isinstance(at, dict) else range(len(at)))
            if not places:
                break
            place = self.random.choice(places)
            if isinstance(at[place], list | dict) and self.random.random() < 0.7:
                at = at[place]
                continue
            if isinstance(at, dict) and self.random.random() < 0.3:
                del at[place]
            elif at is not frame or place:
                at[place] = self.value()
            break
        return frame
