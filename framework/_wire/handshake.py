"""Who comes over TCP proves that it knows the cluster's token, and is shown the same, before anything else.

Three messages of fixed size. C is the side that connects, S the one that listens:

    C -> S   FWK5, version, "C", cluster id (16; zeros: not known yet), nonce of C (32)
    S -> C   FWK5, version, "S", cluster id (16), nonce of S (32), MAC of S (32)
    C -> S   MAC of C (32)

Each MAC is an HMAC-SHA256 under the token over the role of its maker and all that was said before, without
MACs: version, both roles, the cluster id, both nonces. (The first message is in it as S has received it.)
`binding`, which is not sent, is under the MACs too: with TLS, the hash of the certificate, so that nobody in
between can end the encryption. A MAC that is sent back is of the wrong role; one that was recorded is of
another nonce. A side that refuses the first message says why with one byte in place of its answer.

Pure: bytes in, bytes out; randomness is passed in. `wanted` says how many bytes are expected next: whoever
reads from a socket must not read more, as what follows is not for the handshake any more.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from framework._base import limits
from framework.exceptions import AuthenticationError

MAGIC: Final = b"FWK5"
VERSION: Final = 1
NONCE_SIZE: Final = 32
CLUSTER_ID_SIZE: Final = 16
UNKNOWN_CLUSTER: Final = bytes(CLUSTER_ID_SIZE)

_CLIENT: Final = b"C"
_SERVER: Final = b"S"
_REFUSAL: Final = b"R"
_HEAD_SIZE: Final = len(MAGIC) + 2
_MAC_SIZE: Final = hashlib.sha256().digest_size
_HELLO_SIZE: Final = _HEAD_SIZE + CLUSTER_ID_SIZE + NONCE_SIZE

_OTHER_CLUSTER: Final = 1
_OTHER_VERSION: Final = 2
_REFUSED: Final = {
    _OTHER_CLUSTER: "it belongs to another cluster",
    _OTHER_VERSION: "it speaks another version of the handshake: all nodes must run the same version",
}


class HandshakeError(AuthenticationError):
    """The other side has not shown that it belongs to the cluster. `farewell`: bytes that tell it why."""

    default_message = "The other side has not shown that it belongs to the cluster."
    farewell: bytes = b""


class _Side:
    """What both sides have in common."""

    __slots__ = ("_buffer", "_nonce", "_secret", "cluster_id", "done", "wanted")

    def __init__(self, token: bytes, cluster_id: bytes, nonce: bytes, binding: bytes) -> None:
        if len(token) < limits.TOKEN_MINIMUM:
            raise HandshakeError(
                f"the cluster token is missing or too short: {limits.TOKEN_MINIMUM} bytes at least"
            )
        if len(nonce) != NONCE_SIZE or len(cluster_id) != CLUSTER_ID_SIZE:
            raise ValueError("a nonce has 32 bytes, a cluster id 16")
        # A key of its own, so that no MAC of this protocol means anything elsewhere; and of the token's hash,
        # as HMAC takes keys that differ in zeros at their ends for the same.
        key = hashlib.sha256(token).digest()
        self._secret = hmac.new(key, b"framework handshake\0" + binding, hashlib.sha256).digest()
        self._nonce = nonce
        self._buffer = b""
        self.cluster_id = cluster_id  #: the client's is what the server says, once it has proved itself
        self.done = False  #: both sides have proved themselves
        self.wanted = 0  #: how many bytes may be read from the peer now

    def _mac(self, role: bytes, transcript: bytes) -> bytes:
        return hmac.new(self._secret, role + transcript, hashlib.sha256).digest()

    def _gathered(self, data: bytes) -> bytes | None:
        """The whole message that is expected, or None as long as a part is missing."""
        if self.done or not data or len(data) > self.wanted:
            self.wanted = 0
            raise HandshakeError("more was sent than the handshake has room for")
        self._buffer += data
        self.wanted -= len(data)
        if self.wanted:
            return None
        message, self._buffer = self._buffer, b""
        return message


class ClientHandshake(_Side):
    """The side that connects. `nonce`: 32 fresh random bytes. `cluster_id`: None while it is not known: a
    node that joins knows the token only. Send `start()`; then what `feed` returns, until `done`."""

    __slots__ = ("_hello",)

    def __init__(self, token: bytes, cluster_id: bytes | None, nonce: bytes, binding: bytes = b"") -> None:
        super().__init__(token, cluster_id or UNKNOWN_CLUSTER, nonce, binding)
        self._hello = b""

    def start(self) -> bytes:
        """The first message."""
        self._hello = MAGIC + bytes([VERSION]) + _CLIENT + self.cluster_id + self._nonce
        self.wanted = _HEAD_SIZE + 1
        return self._hello

    def feed(self, data: bytes) -> bytes:
        """Take in up to `wanted` bytes of the peer; what to send to it now. `HandshakeError`: it is no member
        of the cluster, or refuses us."""
        head = self._buffer + data
        if len(head) >= _HEAD_SIZE + 1 and len(self._buffer) < _HEAD_SIZE + 1:
            self._check_head(head)
        message = self._gathered(data)
        if message is None:
            return b""
        if len(message) == _HEAD_SIZE + 1:  # it is an answer: the rest of it
            self._buffer = message
            self.wanted = _HELLO_SIZE + _MAC_SIZE - len(message)
            return b""
        said, mac = message[:_HELLO_SIZE], message[_HELLO_SIZE:]
        cluster_id, nonce = said[_HEAD_SIZE:-NONCE_SIZE], said[-NONCE_SIZE:]
        transcript = self._hello + said
        if not hmac.compare_digest(mac, self._mac(_SERVER, transcript)):
            raise HandshakeError(
                "the other side does not know this cluster's token: check the token and the address"
            )
        if nonce == self._nonce:
            raise HandshakeError("the other side sent our own nonce back")
        if self.cluster_id not in (UNKNOWN_CLUSTER, cluster_id):
            raise HandshakeError("the other side belongs to another cluster")
        self.cluster_id = cluster_id
        self.done = True
        return self._mac(_CLIENT, transcript)

    def _check_head(self, head: bytes) -> None:
        if head[: len(MAGIC)] != MAGIC:
            raise HandshakeError("what answers there does not speak this protocol (or one side is encrypted)")
        role = head[len(MAGIC) + 1 : _HEAD_SIZE]
        if role == _REFUSAL:
            reason = _REFUSED.get(head[_HEAD_SIZE], "it gives no reason that is known here")
            raise HandshakeError(f"the other side refuses this process: {reason}")
        if head[len(MAGIC)] != VERSION:
            raise HandshakeError(f"the other side's handshake has version {head[len(MAGIC)]}, not {VERSION}")
        if role != _SERVER:
            raise HandshakeError("what answers there sends our own messages back")


class ServerHandshake(_Side):
    """The side that listens. Send what `feed` returns, until `done`."""

    __slots__ = ("_expected",)

    def __init__(self, token: bytes, cluster_id: bytes, nonce: bytes, binding: bytes = b"") -> None:
        super().__init__(token, cluster_id, nonce, binding)
        self._expected = b""
        self.wanted = _HELLO_SIZE

    def feed(self, data: bytes) -> bytes:
        """Take in up to `wanted` bytes of the peer; what to send to it now. `HandshakeError`: it is no member
        of the cluster; `farewell` of the error may be sent."""
        message = self._gathered(data)
        if message is None:
            return b""
        if self._expected:
            if not hmac.compare_digest(message, self._expected):
                raise HandshakeError("a peer does not know this cluster's token")
            self.done = True
            return b""
        if message[: len(MAGIC)] != MAGIC or message[len(MAGIC) + 1 : _HEAD_SIZE] != _CLIENT:
            raise HandshakeError("a peer does not speak this protocol")
        if message[len(MAGIC)] != VERSION:
            raise self._refusal(_OTHER_VERSION, f"a peer's handshake has version {message[len(MAGIC)]}")
        if message[_HEAD_SIZE:-NONCE_SIZE] not in (UNKNOWN_CLUSTER, self.cluster_id):
            raise self._refusal(_OTHER_CLUSTER, "a peer belongs to another cluster")
        if message[-NONCE_SIZE:] == self._nonce:
            raise HandshakeError("a peer sent our own nonce back")
        said = MAGIC + bytes([VERSION]) + _SERVER + self.cluster_id + self._nonce
        transcript = message + said
        self._expected = self._mac(_CLIENT, transcript)
        self.wanted = _MAC_SIZE
        return said + self._mac(_SERVER, transcript)

    def _refusal(self, code: int, text: str) -> HandshakeError:
        error = HandshakeError(text)
        error.farewell = MAGIC + bytes([VERSION]) + _REFUSAL + bytes([code])
        return error
