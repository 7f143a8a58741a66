"""The node's connection to the head of a cluster: joins, says that it lives, hears who else does, and comes
back when the head was away.

In a local session the head is in the same process, at the other end of a socket pair, and there is no
`HeadLink`: the node manager has the `Connection` itself. Both have `cast` and `call`.

A join, each time: HELLO (kind "node", the node's id), then `NODE_JOIN` with what `info` makes: the node's row

    node_id, host, port, data_port, total, available, labels, hostname, pid, session_dir, head

and what is there, so that a head that has just been restarted finds it out:

    actors      [[actor, incarnation, worker, address, pid], ...]; address "" while it is being started
    bundles     as `framework._node.bundles` has them
    processes   the ids of the drivers and workers that are connected there

The head answers with an empty map, or `NodeFencedError`, and then sends NODE_VIEW with the rows of all nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._net.address import host_port
from framework._net.connection import Connection, Frame, Handler
from framework._net.listener import connect_unix, hello
from framework._net.tcp import open_authenticated
from framework._service.supervise import TaskGroupOfService
from framework._state.membership import merge
from framework._wire import messages as m
from framework.exceptions import AuthenticationError, ConnectionFailedError, FrameworkError, NodeFencedError

if TYPE_CHECKING:
    from framework._net.tcp import StreamSocket

log = logging.getLogger("framework.node")

#: What a head must hear even if it was away, or ended before it had written it down.
_LAST_WORDS: Final = frozenset({m.ACTOR_GONE, m.OWNER_GONE})


class HeadLink:
    """See above. Lives on the node's loop.

    `info()` makes what is told at each join. `on_rows(rows)` hears of rows that are new or have changed, this
    node's own included (after each join: all); `on_gone(node_id, reason)` of the death of a node, once.
    `on_joined({"rows": ...})` is called after each join, when the rows are known; `on_end(reason)` when this
    node must end: it is fenced, the head has ended the cluster, or has not come back (at first: been reached)
    in time. `handlers` are for all other messages of the head; JOB_END may come twice.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        facts: ClusterFacts,
        session_dir: str,
        *,
        info: Callable[[], dict[str, Any]],
        handlers: Mapping[int, Handler],
        on_rows: Callable[[list[dict[str, Any]]], None],
        on_gone: Callable[[bytes, str], None],
        on_end: Callable[[str], None],
        on_joined: Callable[[dict[str, Any]], None] = lambda reply: None,
        join_timeout: float = limits.HEAD_RETURN_TIMEOUT,
    ) -> None:
        self._loop = loop
        self._facts = facts
        self._session_dir = session_dir
        self._info = info
        self._on_rows = on_rows
        self._on_gone = on_gone
        self._on_end = on_end
        self._on_joined = on_joined
        self._patience = join_timeout
        place = handlers.get(m.ACTOR_PLACE)
        self._handlers: dict[int, Handler] = {
            **handlers,
            m.WELCOME: lambda connection, frame: None,
            m.NODE_VIEW: self._view,
            m.NODE_GONE: self._gone,
            m.NODE_STOP: lambda connection, frame: None if self._ended else self._on_end(frame[1]),
        }
        if place is not None:
            self._handlers[m.ACTOR_PLACE] = self._counted(place)
        self._connection: Connection | None = None
        self._joined = self._ended = False
        self._over: asyncio.Future[None] | None = None  #: done when the connection is lost
        self._seen = 0  #: ACTOR_PLACE of this connection
        self._heard = self._ticked = 0.0  #: when the head last said something, when we last looked
        self._load: list[Any] | None = None  #: the latest NODE_LOAD
        self._last_words: deque[tuple[float, list[object]]] = deque(maxlen=limits.LAST_WORDS_KEPT)
        self._known: dict[bytes, dict[str, Any]] = {}  #: rows of the living
        self._answer: asyncio.Future[Any] | None = None  #: of the head, to the last NODE_JOIN
        self._tasks = TaskGroupOfService(loop, "head link")
        self._timer: asyncio.TimerHandle | None = None

    # ---- what the node manager uses ------------------------------------------------------------------

    @property
    def connection(self) -> Connection | None:
        """To the head, while this node is joined."""
        return self._connection if self._joined else None

    @property
    def closed(self) -> bool:
        """Whether there is no head to be spoken to for the moment."""
        return self.connection is None

    def start(self) -> None:
        """Begin to connect; `on_joined` is called when that has worked, `on_end` when it has not in time."""
        self._tasks.start(self._live(), "connection to the head")
        self._timer = self._loop.call_later(limits.HEARTBEAT, self._tick)

    def stop(self) -> None:
        """End the connection, for good. No callback is called any more."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._tasks.cancel()
        if self._connection is not None:
            self._connection.close()

    def leave(self, reason: str) -> None:
        """This node ends in an orderly way: tell the head, so that it need not wait for a silence. `stop`."""
        if self._connection is not None and self._joined:
            self._connection.cast(m.NODE_LEAVE, reason)
            self._connection.flush()
        self.stop()

    def cast(self, *frame: Any) -> None:
        """Tell the head something. While it is away: ends of actors and of owners are told when it is back,
        the latest load too; anything else it learns from what is told at the join."""
        opcode = frame[0]
        if opcode == m.NODE_LOAD:
            self._load = list(frame)
            self._tell_load()
            return
        if opcode in _LAST_WORDS or (opcode == m.ACTOR_PLACED and frame[-1] is not None):
            self._last_words.append((self._loop.time(), list(frame)))
        # What happens between NODE_JOIN and its answer was not told there: it goes behind it.
        if self._connection is not None and (self._joined or self._answer is not None):
            self._connection.cast(*frame)

    def call(self, opcode: int, *fields: object) -> asyncio.Future[Any]:
        """Ask the head; `ConnectionFailedError` while it is away."""
        connection = self.connection
        if connection is not None:
            return connection.call(opcode, *fields)
        future: asyncio.Future[Any] = self._loop.create_future()
        future.set_exception(ConnectionFailedError("there is no connection to the head at present"))
        return future

    # ---- the connection ------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Connect, join, wait for the end of the connection; again."""
        pause = limits.HEAD_RETRY
        away_since = self._loop.time()
        why = ""
        while not self._ended:
            try:
                await self._join()
                assert self._over is not None
                await self._over
                pause, away_since, why = limits.HEAD_RETRY, self._loop.time(), ""
                self._patience = limits.HEAD_RETURN_TIMEOUT
                continue
            except (NodeFencedError, AuthenticationError) as error:
                self._end(str(error))
                return
            except (OSError, TimeoutError, FrameworkError) as error:
                why = str(error) or type(error).__name__
            except Exception as error:
                log.exception("the connection to the head failed")
                self._end(f"its connection to the head failed: {type(error).__name__}: {error}")
                return
            if self._connection is not None:
                self._connection.close()
            left = away_since + self._patience - self._loop.time()
            if left <= 0:
                self._end(f"the head at {self._facts.head} cannot be reached for {self._patience:g} s: {why}")
                return
            await asyncio.sleep(min(pause, left))
            pause = min(2 * pause, limits.HEAD_RETRY_MAX)

    async def _join(self) -> None:
        sock = await self._open()
        self._seen = 0
        self._over = self._loop.create_future()
        connection = Connection(
            self._loop, sock, self._handlers, on_close=self._lost, on_batch=self._hear, name="the head"
        )
        self._connection, self._answer = connection, None
        self._hear()
        connection.cast(*hello("node", self._facts.node_id))
        async with asyncio.timeout(limits.NODE_SILENCE):
            words = [frame for _, frame in self._last_words]
            info = self._info()
            if self._load is None:
                available = info.get("available") or info["total"]
                self._load = [m.NODE_LOAD, available, [], None, 0, 0]
            known = list(self._known)
            self._answer = connection.call(m.NODE_JOIN, {**info, "last_words": words, "known": known})
            await self._answer

    async def _open(self) -> StreamSocket:
        with contextlib.suppress(OSError):  # on the head's own node
            return connect_unix(os.path.join(self._session_dir, "sockets", "head"))
        host, port = host_port(self._facts.head)
        return await open_authenticated(self._loop, host, port, self._facts)

    def _lost(self, connection: Connection) -> None:
        if connection is not self._connection:
            return
        was_joined, self._joined, self._connection = self._joined, False, None
        if self._over is not None and not self._over.done():
            self._over.set_result(None)
        if was_joined and not self._ended:
            log.warning("the connection to the head is lost: %s", connection.error or "it was closed")

    def _end(self, reason: str) -> None:
        if not self._ended:
            self.stop()
            self._on_end(reason)

    # ---- what the head says --------------------------------------------------------------------------

    def _hear(self) -> None:
        self._heard = self._loop.time()

    def _counted(self, place: Handler) -> Handler:
        def placed(connection: Connection, frame: Frame) -> None:
            self._seen += 1
            place(connection, frame)

        return placed

    def _view(self, connection: Connection, frame: Frame) -> None:
        if connection is not self._connection:
            return
        rows = frame[1]
        if not self._joined:
            self._begin(rows)
            return
        changed = merge(self._known, rows)
        if changed:
            self._on_rows(changed)

    def _begin(self, rows: list[dict[str, Any]]) -> None:
        """The first rows after a join: all."""
        self._joined = True
        now, words = self._loop.time(), self._last_words
        self._last_words = deque(((now, frame) for _, frame in words), words.maxlen)  # it hears them now
        there = {row["node_id"] for row in rows}
        missed = [node_id for node_id in self._known if node_id not in there]
        self._known = {}
        self._on_rows(merge(self._known, rows))
        answer = self._answer.result() if self._answer is not None and self._answer.done() else {}
        dead = set(answer.get("gone") or ())
        self._missed([node_id for node_id in missed if node_id in dead])
        # The head does not know of the others, for now: it was started anew, and its disk had not taken that
        # they had joined. They come back, or have died too.
        rest = [node_id for node_id in missed if node_id not in dead]
        if rest:
            self._loop.call_later(limits.NODE_BACK_AFTER_RESTART + limits.HEARTBEAT, self._late, rest)
        self._tell_load()
        self._on_joined({"rows": rows})

    def _late(self, nodes: list[bytes]) -> None:
        if not self._joined and not self._ended:  # the head is away again
            self._loop.call_later(limits.NODE_BACK_AFTER_RESTART, self._late, nodes)
            return
        self._missed(nodes)

    def _missed(self, nodes: list[bytes]) -> None:
        for node_id in nodes:
            if node_id not in self._known and not self._ended:
                self._on_gone(node_id, "it died while this node had no connection to the head")

    def _gone(self, connection: Connection, frame: Frame) -> None:
        _, node_id, reason = frame
        self._known.pop(node_id, None)
        self._on_gone(node_id, reason)

    # ---- signs of life -------------------------------------------------------------------------------

    def _tell_load(self) -> None:
        if self._joined and self._connection is not None and self._load is not None:
            _, available, pending, total, _, busy = self._load
            pending = pending[: limits.PENDING_SHAPES]
            self._connection.cast(m.NODE_LOAD, available, pending, total, self._seen, busy)

    def _forget_words(self, now: float) -> None:
        """What a head that is there has heard a while ago it has written down. (While it is away they get no
        older.)"""
        words = self._last_words
        while words and words[0][0] <= now - limits.LAST_WORDS_AGE:
            words.popleft()

    def _tick(self) -> None:
        now = self._loop.time()
        if self._joined:
            self._forget_words(now)
        if now - self._ticked > 2 * limits.HEARTBEAT:
            self._heard = now  # this process did not run for a while: nothing could be heard
        self._ticked = now
        self._timer = self._loop.call_later(limits.HEARTBEAT, self._tick)
        self._tell_load()
        if self._connection is not None and now - self._heard > limits.NODE_SILENCE:
            self._connection.close(ConnectionFailedError("the head says nothing"))
