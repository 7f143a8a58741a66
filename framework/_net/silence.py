"""Connections to a machine that does not answer any more.

The death of a node is the head's to decide; but two machines may lose each other while the head sees both.
What one sends then is repeated by the system for a quarter of an hour before the connection ends. (The
system's own option for that, TCP_USER_TIMEOUT, would also end connections to a process that is only slow to
read.)
"""

from __future__ import annotations

import asyncio
import socket
import struct

from framework._base import limits
from framework._net.connection import Connection
from framework._net.tls import StreamSocket, TlsSocket
from framework.exceptions import ConnectionFailedError

# The beginning of Linux's struct tcp_info: 8 bytes, then numbers of 32 bits. Of these: how often the same was
# repeated in vain (not counted while the other side has no room), how often it was asked in vain whether
# there is room again, and how many milliseconds ago the last acknowledgement came.
_INFO = struct.Struct("8B13I")
_REPEATED, _PROBED = 2, 3
_LAST_ACKNOWLEDGED = 8 + 12
_TIMES = 3


def unanswered(sock: StreamSocket) -> float:
    """For how many seconds the other machine has said nothing to what was sent to it; 0 when there is nothing
    to be said, and where the system does not tell."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None or not isinstance(sock, socket.socket | TlsSocket):
        return 0.0
    try:
        info = _INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, option, _INFO.size))
    except (OSError, struct.error):
        return 0.0
    in_vain = info[_REPEATED] >= _TIMES or info[_PROBED] >= _TIMES
    return info[_LAST_ACKNOWLEDGED] / 1000 if in_vain else 0.0


def watch(loop: asyncio.AbstractEventLoop, connection: Connection, sock: StreamSocket) -> None:
    """Close the connection when the other machine does not answer for `limits.MACHINE_SILENCE`."""
    loop.call_later(limits.MACHINE_SILENCE / 4, _look, loop, connection, sock)


def _look(loop: asyncio.AbstractEventLoop, connection: Connection, sock: StreamSocket) -> None:
    if connection.closed:
        return
    if unanswered(sock) >= limits.MACHINE_SILENCE:
        seconds = f"{limits.MACHINE_SILENCE:g}"
        connection.close(ConnectionFailedError(f"its machine has not answered for {seconds} s"))
    else:
        watch(loop, connection, sock)
