"""What somebody says to a port of a cluster who has not proved that he belongs to it.

Each attack takes the facts of the cluster (some know a part of them), an endpoint, and a bomb: a pickle that
leaves a mark where it is loaded. It fails if the other side does not end the conversation, and returns what
was heard.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from framework._base.cluster import ClusterFacts
from framework._net import tls
from framework._wire import messages as m
from framework._wire.handshake import ClientHandshake
from framework.exceptions import AuthenticationError
from support.hostile import Endpoint, exactly, hear, hello, packed, prove, reach, say

ANSWER = 6 + 16 + 32 + 32  #: bytes of the listening side's part of the handshake
HELLO_SIZE = 6 + 16 + 32

Attack = Callable[[ClusterFacts, Endpoint, bytes], bytes]
"""What is said to an endpoint that waits for a proof, given a bomb (a pickle); what was heard."""


def opened(facts: ClusterFacts, endpoint: Endpoint) -> socket.socket:
    return reach(endpoint, facts.certificate is not None)


def talk(facts: ClusterFacts, endpoint: Endpoint, *said: bytes) -> bytes:
    """Say all of it, and listen until the other side ends the conversation, which it must."""
    with opened(facts, endpoint) as sock:
        for data in said:
            say(sock, data)
        heard, ended = hear(sock)
        assert ended, f"{endpoint} keeps the connection"
        return heard


def half_closed(facts: ClusterFacts, endpoint: Endpoint, said: bytes) -> bytes:
    """Say that and nothing more ever."""
    with opened(facts, endpoint) as sock:
        say(sock, said)
        if isinstance(sock, socket.socket) and facts.certificate is None:
            sock.shutdown(socket.SHUT_WR)
            heard, ended = hear(sock)
            assert ended, f"{endpoint} keeps the connection"
            return heard
        return b""  # (TLS has no half-closed connections: it is closed)


def stranger(facts: ClusterFacts, **changed: Any) -> ClusterFacts:
    """The same facts, but for some."""
    facts = ClusterFacts.from_dict(facts.to_dict())
    for name, value in changed.items():
        setattr(facts, name, value)
    return facts


def claimed(wrong: ClusterFacts, facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    """Try to get in with facts that are not those of the cluster, and go on as if that had worked."""
    binding = tls.fingerprint(wrong.certificate) if wrong.certificate is not None else b""
    side = ClientHandshake(wrong.token, wrong.cluster_id, os.urandom(32), binding)
    return talk(facts, endpoint, side.start(), os.urandom(32), hello(), bomb)


def no_token(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    """As if there were no handshake: frames with the bomb wherever bytes are allowed."""
    frames = [hello("owner", bomb[:28], sys_path=[], namespace="n")]
    frames += [packed([m.FUNCTION, b"h" * 32, bomb]), packed([m.TASK, 1, 1, [bomb], None, None])]
    frames += [packed([m.DONE, 1, 1, bomb]), packed([m.REPLY, 1, bomb])]
    return talk(facts, endpoint, *frames)


def bare_bomb(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    return talk(facts, endpoint, bomb * 20)


def data_request(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    """What a data connection would understand."""
    request = packed([b"o" * 28, b"n" * 28, 0, bomb, [], False])
    return talk(facts, endpoint, len(request).to_bytes(4, "little") + request)


def wrong_token(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    return claimed(stranger(facts, token=b"w" * 32), facts, endpoint, bomb)


def almost_the_token(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    return claimed(stranger(facts, token=facts.token + b"\0"), facts, endpoint, bomb)


def another_cluster(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    return claimed(stranger(facts, cluster_id=b"o" * 16), facts, endpoint, bomb)


def other_binding(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    """Somebody who ends the encryption in between: his proof is of another certificate (or of one at all)."""
    with opened(facts, endpoint) as sock:
        side = ClientHandshake(facts.token, facts.cluster_id, os.urandom(32), b"b" * 32)
        say(sock, side.start())
        heard = exactly(sock, ANSWER)
        with pytest.raises(AuthenticationError):
            side.feed(heard[:7])
            side.feed(heard[7:])
        say(sock, os.urandom(32) + bomb)
        more, ended = hear(sock)
        assert ended and not more
        return heard


def replayed(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    """All that a member has said in a conversation that was recorded."""
    with opened(facts, endpoint) as sock:
        said, _, proof = prove(sock, facts)
    return talk(facts, endpoint, said, proof, bomb)


def replayed_in_turn(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    """The same, waiting for the answer in between."""
    with opened(facts, endpoint) as sock:
        said, _, proof = prove(sock, facts)
    with opened(facts, endpoint) as sock:
        say(sock, said)
        heard = exactly(sock, ANSWER)
        say(sock, proof + bomb)
        more, ended = hear(sock)
        assert ended and not more
        return heard


def reflected(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    """Its own proof is sent back; and, its own challenge, in a second conversation, for it to answer."""
    with opened(facts, endpoint) as one:
        say(one, ClientHandshake(facts.token, None, os.urandom(32)).start())
        answer = exactly(one, ANSWER)
        challenge, proof = answer[HELLO_SIZE - 32 : HELLO_SIZE], answer[HELLO_SIZE:]
        with opened(facts, endpoint) as two:
            say(two, b"FWK5\x01C" + bytes(16) + challenge)
            other = exactly(two, ANSWER)
            say(two, answer[HELLO_SIZE:] + bomb)
            assert hear(two) == (b"", True)
        say(one, other[HELLO_SIZE:] if other[HELLO_SIZE:] != proof else proof)
        more, ended = hear(one)
        assert ended and not more
        return answer


def role_swapped(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    """What the listening side would say, and its own words."""
    with opened(facts, endpoint) as sock:
        say(sock, ClientHandshake(facts.token, None, os.urandom(32)).start())
        answer = exactly(sock, ANSWER)
    return talk(facts, endpoint, answer, bomb)


def old_version(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    return talk(facts, endpoint, b"FWK5\x00C" + bytes(48) + bomb)


def truncated(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    said = ClientHandshake(facts.token, None, os.urandom(32)).start()
    heard = b""
    for length in (0, 1, 6, 22, HELLO_SIZE - 1, HELLO_SIZE):
        heard = half_closed(facts, endpoint, said[:length])
        assert not heard or length == HELLO_SIZE
    half_closed(facts, endpoint, said + bytes(31))
    return heard


def oversized(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    side = ClientHandshake(facts.token, None, os.urandom(32))
    return talk(facts, endpoint, side.start() + b"\xdd\x7f\xff\xff\xff" * 400_000)


def noise(facts: ClusterFacts, endpoint: Endpoint, bomb: bytes) -> bytes:
    return talk(facts, endpoint, os.urandom(100_000))


ATTACKS: list[Attack] = [
    no_token,
    bare_bomb,
    data_request,
    wrong_token,
    almost_the_token,
    another_cluster,
    other_binding,
    replayed,
    replayed_in_turn,
    reflected,
    role_swapped,
    old_version,
    truncated,
    oversized,
    noise,
]
