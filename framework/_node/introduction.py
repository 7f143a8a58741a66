"""How a process that knows a cluster's head and token learns the rest: its id, its certificate and key."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._base.ids import WORKER_ID_SIZE
from framework._base.secret import Secret, hidden
from framework._net.address import host_port
from framework._net.connection import Connection
from framework._net.listener import hello
from framework._net.tcp import open_authenticated
from framework._service.credentials import read_private
from framework._wire import messages as m
from framework.exceptions import AuthenticationError, ConnectionFailedError, FrameworkError

_MAY_BE_ENCRYPTED = (
    ". If one runs there, its connections may be encrypted: then FRAMEWORK_TOKEN has a second part, behind a "
    "'-', as `python -m framework start --head` has printed it there"
)


async def introduce(
    loop: asyncio.AbstractEventLoop, head: str, token: bytes, fingerprint: str | None, node_id: bytes = b""
) -> ClusterFacts:
    """The facts of the cluster whose head is at `head` (``HOST:PORT``); ``host`` in them is the address that
    this machine has towards it. `ConnectionFailedError` when nothing answers there, or not in time,
    `AuthenticationError` when it does not accept the token, or is another one."""
    host, port = host_port(head)
    facts = ClusterFacts(cluster_id=b"", token=token, head=head, host="", node_id=node_id)
    pin = bytes.fromhex(fingerprint) if fingerprint else None
    try:
        sock = await open_authenticated(loop, host, port, facts, fingerprint=pin)
    except AuthenticationError as error:
        hint = "" if pin else ". If its connections are encrypted, the token has a second part, behind a '-'"
        raise AuthenticationError(
            f"the head of the cluster does not accept this process, or is not the one that is meant: {error}"
            f". FRAMEWORK_TOKEN must be what `python -m framework start --head` has printed there{hint}"
        ) from None
    except ConnectionFailedError as error:
        hint = _MAY_BE_ENCRYPTED if pin is None and "reset" in str(error) else ""
        raise ConnectionFailedError(f"no head of a cluster answers at {head}: {error}{hint}") from None
    ours: str = sock.getsockname()[0]
    connection = Connection(loop, sock, {m.WELCOME: lambda c, f: None}, on_close=_ignore, name="the head")
    try:
        connection.cast(*hello("tool", os.urandom(WORKER_ID_SIZE)))
        answer = await asyncio.wait_for(connection.call(m.CREDENTIALS), limits.CONNECT_TIMEOUT)
    except TimeoutError:
        raise ConnectionFailedError(
            f"the head of the cluster at {head} does not answer within {limits.CONNECT_TIMEOUT:g} s"
        ) from None
    except FrameworkError as error:
        raise ConnectionFailedError(f"the head of the cluster at {head} does not answer: {error}") from None
    finally:
        connection.close()
    return completed(facts, hidden(answer), ours)


def facts_for_joining(loop: asyncio.AbstractEventLoop, config: dict[str, Any]) -> ClusterFacts:
    """The facts for a node process with this configuration; what it was told in secret is removed from its
    session directory. Raises as `introduce`, and OSError or `ValueError` when that was not there."""
    path = os.path.join(config["session_dir"], "join.json")
    secrets = read_private(path)
    os.unlink(path)
    facts = loop.run_until_complete(
        introduce(
            loop,
            secrets["head"],
            Secret(bytes.fromhex(secrets["token"])),
            secrets["fingerprint"],
            bytes.fromhex(config["node_id"]),
        )
    )
    facts.host = config["cluster"].get("host") or facts.host
    facts.bind = config["cluster"].get("bind") or facts.host
    return facts


def completed(facts: ClusterFacts, answer: dict[str, Any], host: str) -> ClusterFacts:
    """The same, with what the head has answered to CREDENTIALS."""
    return ClusterFacts(
        cluster_id=answer["cluster_id"],
        token=facts.token,
        head=facts.head,
        host=host,
        node_id=facts.node_id,
        certificate=answer["certificate"],
        key=answer["key"],
    )


def _ignore(connection: Connection) -> None:
    """Whoever waits for an answer hears of it."""
