"""The handshake of processes of a cluster: who knows the token gets in, on both sides, and nobody else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._wire.handshake import (
    CLUSTER_ID_SIZE,
    NONCE_SIZE,
    ClientHandshake,
    HandshakeError,
    ServerHandshake,
)
from framework.exceptions import AuthenticationError

TOKEN = b"t" * 32
CLUSTER = b"c" * CLUSTER_ID_SIZE

nonces = st.binary(min_size=NONCE_SIZE, max_size=NONCE_SIZE)
tokens = st.binary(min_size=16, max_size=64)
clusters = st.binary(min_size=CLUSTER_ID_SIZE, max_size=CLUSTER_ID_SIZE).filter(any)
bindings = st.sampled_from([b"", b"h" * 32, b"i" * 32])


def a_client(
    token: bytes = TOKEN, cluster: bytes | None = CLUSTER, nonce: bytes = b"1" * 32, binding: bytes = b""
) -> ClientHandshake:
    return ClientHandshake(token, cluster, nonce, binding)


def a_server(
    token: bytes = TOKEN, cluster: bytes = CLUSTER, nonce: bytes = b"2" * 32, binding: bytes = b""
) -> ServerHandshake:
    return ServerHandshake(token, cluster, nonce, binding)


def feed(side: ClientHandshake | ServerHandshake, data: bytes, step: int = 10_000) -> tuple[bytes, bytes]:
    """As a socket would: no more than is wanted at a time. What it answers, and what it has not read."""
    said = b""
    while data and side.wanted and not side.done:
        count = min(step, side.wanted, len(data))
        said += side.feed(data[:count])
        data = data[count:]
    return said, data


def meet(client: ClientHandshake, server: ServerHandshake, step: int = 10_000) -> list[bytes]:
    """Let them talk to each other; what was said, in turn."""
    said = [client.start()]
    while not (client.done and server.done):
        listener = server if len(said) % 2 else client
        answer, rest = feed(listener, said[-1], step)
        assert not rest
        said.append(answer)
    return said


@given(tokens, clusters, nonces, nonces, bindings, st.integers(1, 200))
def test_members_meet(
    token: bytes, cluster: bytes, one: bytes, two: bytes, binding: bytes, step: int
) -> None:
    if one == two:
        two = bytes(reversed(one[:-1])) + bytes([one[-1] ^ 1])
    client = ClientHandshake(token, cluster, one, binding)
    server = ServerHandshake(token, cluster, two, binding)
    said = meet(client, server, step)
    assert client.done and server.done and not client.wanted and not server.wanted
    assert all(len(message) <= 256 for message in said) and len(said) == 4


def test_one_that_joins_learns_which_cluster_it_is() -> None:
    client = a_client(cluster=None)
    meet(client, a_server())
    assert client.cluster_id == CLUSTER


@given(tokens, tokens, bindings, bindings)
def test_another_token_or_certificate(one: bytes, two: bytes, here: bytes, there: bytes) -> None:
    if (one, here) == (two, there):
        return
    client, server = a_client(one, binding=here), a_server(two, binding=there)
    with pytest.raises(AuthenticationError, match="token"):
        meet(client, server)
    assert not client.done and not server.done


@pytest.mark.parametrize("token", [b"", b"short"])
def test_no_token(token: bytes) -> None:
    with pytest.raises(AuthenticationError, match="missing or too short"):
        a_client(token)
    with pytest.raises(AuthenticationError, match="missing or too short"):
        a_server(token)


def test_a_stranger_who_connects_does_not_get_in() -> None:
    """It knows all but the token, and says what a member would say."""
    server = a_server()
    hello = a_client(token=b"x" * 32).start()
    feed(server, hello)
    for guess in (bytes(32), b"x" * 32):
        with pytest.raises(HandshakeError, match="token"):
            feed(server, guess)
        assert not server.done
        server = a_server()
        feed(server, hello)


def test_another_cluster_with_the_same_token_is_told_so() -> None:
    server = a_server(cluster=b"d" * 16)
    client = a_client()
    with pytest.raises(HandshakeError) as refused:
        feed(server, client.start())
    assert 0 < len(refused.value.farewell) <= 256
    with pytest.raises(HandshakeError, match="another cluster"):
        feed(client, refused.value.farewell)


def test_a_server_of_another_cluster_that_answers_nevertheless() -> None:
    client = a_client()
    other = a_server(cluster=b"d" * 16)
    answer, _ = feed(other, a_client(cluster=b"d" * 16).start())
    client.start()
    with pytest.raises(HandshakeError):
        feed(client, answer)
    assert not client.done


@given(st.integers(0, 255).filter(lambda version: version != 1))
def test_other_versions_are_told_so(version: int) -> None:
    hello = bytearray(a_client().start())
    hello[4] = version
    with pytest.raises(HandshakeError) as refused:
        feed(a_server(), bytes(hello))
    client = a_client()
    client.start()
    with pytest.raises(HandshakeError, match="version"):
        feed(client, refused.value.farewell)
    answer = bytearray(feed(a_server(), a_client().start())[0])
    answer[4] = version
    with pytest.raises(HandshakeError, match="version"):
        feed(client, bytes(answer))


def test_reflected_messages_are_refused() -> None:
    client = a_client()
    with pytest.raises(HandshakeError, match="own messages"):
        feed(client, client.start())
    server = a_server()
    answer, _ = feed(server, a_client().start())
    with pytest.raises(HandshakeError):
        feed(a_server(), answer[: server.wanted] + bytes(100))
    # The server's own proof is no proof of a client.
    with pytest.raises(HandshakeError, match="token"):
        feed(server, answer[-32:])


def test_a_server_does_not_prove_anything_for_a_client() -> None:
    """Asking a second connection of the same server for the answer to the first one's challenge."""
    first, second = a_server(nonce=b"2" * 32), a_server(nonce=b"3" * 32)
    hello = a_client().start()
    challenge, _ = feed(first, hello)
    again = hello[:-NONCE_SIZE] + challenge[-64:-32]  # the challenge of the first as our own nonce
    answer, _ = feed(second, again)
    with pytest.raises(HandshakeError, match="token"):
        feed(first, answer[-32:])


def test_our_own_nonce_is_no_challenge() -> None:
    with pytest.raises(HandshakeError, match="own nonce"):
        feed(a_server(nonce=b"1" * 32), a_client(nonce=b"1" * 32).start())


@given(nonces.filter(lambda nonce: nonce != b"2" * 32))
def test_replayed_messages_are_refused(fresh: bytes) -> None:
    if fresh == b"1" * 32:
        return
    hello, answer, proof, _ = meet(a_client(), a_server())
    server = a_server(nonce=fresh)
    feed(server, hello)
    with pytest.raises(HandshakeError, match="token"):
        feed(server, proof)
    client = a_client(nonce=fresh)
    client.start()
    with pytest.raises(HandshakeError, match="token"):
        feed(client, answer)
    assert not client.done and not server.done


@given(st.integers(0, 2), st.integers(0, 400), st.integers(0, 7))
def test_any_bit_that_is_changed_is_noticed(which: int, position: int, bit: int) -> None:
    client, server = a_client(), a_server()
    said = [client.start()]
    with pytest.raises(HandshakeError):
        for number in range(3):
            message = bytearray(said[-1])
            if number == which:
                message[position % len(message)] ^= 1 << bit
            said.append(feed(server if number % 2 == 0 else client, bytes(message))[0])
    assert not (client.done and server.done)


@given(st.integers(0, 2), st.data())
def test_truncated_messages_are_waited_for(which: int, data: st.DataObject) -> None:
    client, server = a_client(), a_server()
    said = client.start()
    for number in range(which):
        said, _ = feed(server if number % 2 == 0 else client, said)
    side = server if which % 2 == 0 else client
    done = side.done
    cut = data.draw(st.integers(0, len(said) - 1))
    assert feed(side, said[:cut]) == (b"", b"")
    assert side.done == done and side.wanted > 0


def test_more_than_was_asked_for() -> None:
    for side in (a_server(), a_client()):
        if isinstance(side, ClientHandshake):
            side.start()
        with pytest.raises(HandshakeError):
            side.feed(b"F" * (side.wanted + 1))
    client, server = a_client(), a_server()
    meet(client, server)
    for side in (client, server):
        with pytest.raises(HandshakeError):
            side.feed(b"x")


@given(st.binary(min_size=1, max_size=300))
def test_noise(noise: bytes) -> None:
    client, server = a_client(), a_server()
    client.start()
    for side in (client, server):
        try:
            feed(side, noise)
        except HandshakeError as error:
            assert str(error)
        assert not side.done
