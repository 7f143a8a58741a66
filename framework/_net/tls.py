"""TLS between the processes of a cluster, in the shape of a plain non-blocking socket.

There is one certificate, the cluster's own. A process that connects compares it with the one that it knows,
by its SHA-256: no authorities, no names.

`TlsSocket` can take the place of a socket in a `Connection`: `recv`, `send` and so on raise `BlockingIOError`
when they would have to wait. Two differences remain, both from data that has been decrypted and not been
read, of which the system's polling knows nothing. A reader that stops before `BlockingIOError` must ask
`pending` before it waits for the descriptor again; `recv` with room for a whole record (`RECORD`) leaves
nothing behind. Writing again after `BlockingIOError` must begin with the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any, Final, Protocol

from framework.exceptions import AuthenticationError

RECORD: Final = 16 * 1024  #: bytes that TLS encrypts at a time, at the most


class StreamSocket(Protocol):
    """What a plain socket and a `TlsSocket` have in common."""

    @property
    def family(self) -> int: ...
    def recv(self, size: int, /) -> bytes: ...
    def recv_into(self, buffer: Any, size: int = 0, /) -> int: ...
    def send(self, data: Any, /) -> int: ...
    def fileno(self) -> int: ...
    def getsockname(self) -> Any: ...
    def close(self) -> None: ...
    def setblocking(self, flag: bool, /) -> None: ...


def pending(sock: StreamSocket) -> int:
    """Bytes that can be read from a socket at once although it is not readable: none, unless it is
    encrypted."""
    return sock.pending() if isinstance(sock, TlsSocket) else 0


class TlsSocket:
    """An encrypted connection. Any thread may send while another receives: an SSL object itself could not
    stand that."""

    __slots__ = ("_lock", "_sock", "__weakref__")

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def recv(self, size: int) -> bytes:
        """What has arrived, up to `size` bytes, of several records; b"" at the end."""
        chunks: list[bytes] = []
        with self._lock:
            while True:
                try:
                    chunk = self._sock.recv(min(size, RECORD))
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    if chunks:
                        break
                    raise BlockingIOError from None
                except ssl.SSLError as error:
                    if chunks:
                        break  # the next call finds it again
                    raise _connection_error(error) from None
                if not chunk:
                    break  # the end: the same
                chunks.append(chunk)
                size -= len(chunk)
                # Another record is only begun if it can be taken whole: nothing decrypted is left behind.
                if size < RECORD and (size <= 0 or not self._sock.pending()):
                    break
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def recv_into(self, buffer: Any, size: int = 0) -> int:
        """As `recv`, into `buffer` (bytes-like). Takes as much as is there and fits: ask `pending`
        afterwards."""
        view = memoryview(buffer).cast("B")
        if size:
            view = view[:size]
        done = 0
        with self._lock:
            while done < len(view):
                try:
                    count = self._sock.recv_into(view[done:])
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    if done:
                        break
                    raise BlockingIOError from None
                except ssl.SSLError as error:
                    if done:
                        break
                    raise _connection_error(error) from None
                if not count:
                    break
                done += count
        return done

    def send(self, data: Any) -> int:
        """Encrypt and send; how many bytes were taken."""
        with self._lock:
            try:
                return self._sock.send(data)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                raise BlockingIOError from None
            except ssl.SSLError as error:
                raise _connection_error(error) from None

    def pending(self) -> int:
        """Bytes that are decrypted and can be read at once."""
        with self._lock:
            return self._sock.pending() if self._sock.fileno() >= 0 else 0

    @property
    def family(self) -> int:
        return self._sock.family

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        with self._lock:
            self._sock.close()

    def setblocking(self, flag: bool) -> None:
        if flag:
            raise ValueError("an encrypted connection of a cluster is never blocking")

    def getpeername(self) -> Any:
        return self._sock.getpeername()

    def getsockname(self) -> Any:
        return self._sock.getsockname()

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self._sock.getsockopt(level, option, size)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self._sock.setsockopt(level, option, value)


def _connection_error(error: ssl.SSLError) -> OSError:
    return ConnectionResetError(f"the encrypted connection has failed: {error.reason or error}")


# ---- both ends -----------------------------------------------------------------------------------------


def fingerprint(certificate: bytes) -> bytes:
    """The SHA-256 of a certificate in PEM form (of its DER form). `ValueError` for what is none."""
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode("ascii"))).digest()
    except ValueError as error:
        raise ValueError(f"not a certificate in PEM form: {error}") from None


@functools.cache
def client_context() -> ssl.SSLContext:
    """For those who connect. Whom they have reached is checked afterwards, by `check_pin`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def server_context(certificate: bytes, key: bytes) -> ssl.SSLContext:
    """For those who listen. `ValueError` when these are not a certificate and its key, in PEM form."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nobody resumes sessions here
    try:
        with _as_file(certificate) as certificate_path, _as_file(key) as key_path:
            context.load_cert_chain(certificate_path, key_path, password=_no_password)
    except ssl.SSLError as error:
        raise ValueError(f"the cluster's certificate and key cannot be used: {error}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key of the cluster's certificate is encrypted")


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """The ssl module reads these from files only: one that no other process sees, where there is such."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        fd = os.memfd_create("framework", os.MFD_CLOEXEC)
        try:
            os.write(fd, data)
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
        return
    import tempfile

    with tempfile.NamedTemporaryFile() as file:  # mode 0600
        file.write(data)
        file.flush()
        yield file.name


def wrap(sock: socket.socket, context: ssl.SSLContext, server_side: bool) -> ssl.SSLSocket:
    """A non-blocking socket with TLS whose handshake (`do_handshake`) is still to come. `sock` is taken
    over."""
    return context.wrap_socket(
        sock, server_side=server_side, do_handshake_on_connect=False, suppress_ragged_eofs=True
    )


def check_pin(sock: ssl.SSLSocket, expected: bytes) -> None:
    """`AuthenticationError` unless the other side has shown the certificate with this fingerprint."""
    shown = sock.getpeercert(binary_form=True)
    if shown is None or hashlib.sha256(shown).digest() != expected:
        raise AuthenticationError(
            "the other side shows another certificate than that of this cluster: check the address, and take "
            "the token as the head prints it"
        )
