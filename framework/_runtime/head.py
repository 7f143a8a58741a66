"""The connection to the head, which in a cluster may go away and come back.

In a local session the head lives and dies with the node. In a cluster it is a process of its own, perhaps on
another machine. When the connection to it is lost, a new one takes its place at once, not open yet
(`Connection.opening`): whoever speaks to the head just does so, and is heard when the head is back. Calls
that were under way are made again (`call`, `request`): the head may hear one twice. When the head has not
come back within `limits.HEAD_RETURN_TIMEOUT`, it is given up: there is none from then on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._net.connection import Connection, Frame, Handler
from framework._net.listener import connect_unix, hello
from framework._wire import messages as m
from framework.exceptions import (
    AuthenticationError,
    ConnectionFailedError,
    FrameworkError,
    LocalNodeDiedError,
    ProtocolError,
)

if TYPE_CHECKING:
    from framework._net.tls import StreamSocket
    from framework._runtime.runtime import Runtime

log = logging.getLogger("framework")


class HeadLink:
    """See above. Methods are for the loop's thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.connection: Connection | None = None
        self.handlers: dict[int, Handler] = {**runtime.actors.head_handlers, m.WELCOME: self._welcome}
        self._given_up: BaseException | None = None
        self._away_since: float | None = None  #: no WELCOME of the head since then
        self._pause = limits.HEAD_RETRY
        self._returns = False  #: it was there before
        self._waiting: dict[asyncio.Future[Any], float] = {}  #: calls of a driver in a cluster, since when
        self._watches = runtime.config.is_driver and runtime.config.cluster is not None
        self._timer: asyncio.TimerHandle | None = None
        self._complained = False

    # ---- connecting ----------------------------------------------------------------------------------

    def attach(self, sock: StreamSocket) -> Connection:
        """Speak to the head over this socket."""
        return self._start(sock)

    def connect(self) -> Connection | None:
        """The connection to the head, made when first needed; None when there is none, for good."""
        connection = self.connection
        if connection is not None:
            return None if connection.closed else connection
        try:
            return self._start(connect_unix(self._path))
        except OSError:
            if self._runtime.config.cluster is None:
                return None
        return self._reopen()

    @property
    def _path(self) -> str:
        return os.path.join(self._runtime.socket_dir, "head")

    def _start(self, sock: StreamSocket | None) -> Connection:
        runtime = self._runtime
        connection = Connection(
            runtime.loop,
            sock,
            self.handlers,
            on_close=self._lost,
            on_batch=runtime.after_batch,
            name="the head",
        )
        self.connection = connection
        kind = "driver" if runtime.config.is_driver else "worker"
        info: dict[str, object] = {"job": runtime.config.job}
        if runtime.config.cluster is not None:
            info["node"] = runtime.config.cluster.node_id
            info["to"] = "head"  # who else may listen there does not take it for meant
        connection.cast(*hello(kind, runtime.worker_id, runtime.address, info))
        return connection

    # ---- away and back -------------------------------------------------------------------------------

    def _welcome(self, connection: Connection, frame: Frame) -> None:
        facts = self._runtime.config.cluster
        if facts is not None and frame[2] != facts.cluster_id:
            raise ProtocolError("another process listens at the address of the head")
        if self._away_since is not None and self._returns:
            self._runtime.actors.head_returned(connection)
            if self._runtime.has_groups:
                self._runtime.groups.head_returned(connection)
        self._away_since = None
        self._pause = limits.HEAD_RETRY
        self._returns = True

    def _lost(self, connection: Connection) -> None:
        runtime = self._runtime
        if runtime.closing or connection is not self.connection:
            return
        if self._waits and self._given_up is None and runtime.dead is None:
            self._reopen()
            return
        error = self._given_up or LocalNodeDiedError("the head of the cluster cannot be reached any more")
        runtime.actors.head_lost(runtime.dead or error)
        if runtime.has_groups:
            runtime.groups.lost(runtime.dead or error)

    def _reopen(self) -> Connection:
        loop = self._runtime.loop
        if self._away_since is None:
            self._away_since = loop.time()
        connection = self._start(None)
        connection.opener = loop.create_task(self._reach(connection), name="open the head")
        return connection

    async def _reach(self, connection: Connection) -> None:
        loop, since = self._runtime.loop, self._away_since
        assert since is not None
        problem: BaseException = ConnectionFailedError("it lets this process in and does not speak to it")
        pause = self._pause if self._pause > limits.HEAD_RETRY else 0.0  # it was there, or this is a retry
        while True:
            await asyncio.sleep(pause)
            pause = self._pause
            self._pause = min(2 * pause, limits.HEAD_RETRY_MAX)
            if loop.time() - since >= limits.HEAD_RETURN_TIMEOUT:
                self._give_up(connection, problem)
                return
            try:
                sock = await self._open()
                connection.adopt(sock)
                if sock.family != socket.AF_UNIX:
                    from framework._net.tcp import watch

                    watch(loop, connection, sock)
                return
            except (OSError, FrameworkError) as error:
                log.debug("the head cannot be reached: %s", error)
                problem = error
                if isinstance(error, AuthenticationError) and not self._returns:
                    self._give_up(connection, problem)  # time does not mend that
                    return

    async def _open(self) -> StreamSocket:
        try:
            return connect_unix(self._path)  # on its own node
        except OSError:
            pass
        from framework._net.address import host_port
        from framework._net.tcp import open_authenticated

        facts = self._runtime.config.cluster
        assert facts is not None
        return await open_authenticated(self._runtime.loop, *host_port(facts.head), facts)

    def _give_up(self, connection: Connection, problem: BaseException) -> None:
        text = f"it has not come back within {limits.HEAD_RETURN_TIMEOUT:g} s ({problem})"
        if isinstance(problem, AuthenticationError):
            text = str(problem)
        self._given_up = LocalNodeDiedError(f"the head of the cluster cannot be reached any more: {text}")
        connection.opener = None
        connection.close(self._given_up)

    # ---- calls ---------------------------------------------------------------------------------------

    async def call(self, opcode: int, *fields: object) -> Any:
        """Ask the head; again if it went away before it answered."""
        return await self.request(opcode, *fields)

    def request(self, opcode: int, *fields: object) -> asyncio.Future[Any]:
        """As `call`, sent at once (what is sent to the head afterwards comes behind it)."""
        future: asyncio.Future[Any] = self._runtime.loop.create_future()
        if self._watches:
            self._watch(future)
        self._ask(future, opcode, fields)
        return future

    def _watch(self, future: asyncio.Future[Any]) -> None:
        """Say so if the answer takes long: whoever waits for it cannot tell why nothing happens."""
        self._waiting[future] = self._runtime.loop.time()
        future.add_done_callback(lambda future: self._waiting.pop(future, None))
        if self._timer is None:
            self._timer = self._runtime.loop.call_later(limits.HEAD_SLOW, self._look)

    def _look(self) -> None:
        loop = self._runtime.loop
        self._timer = None
        oldest = next(iter(self._waiting.values()), None)
        if oldest is None or self._runtime.closing:
            if self._complained:
                log.warning("the head of the cluster answers again")
            self._complained = False
            return
        facts = self._runtime.config.cluster
        if loop.time() - oldest >= limits.HEAD_SLOW and not self._complained and facts is not None:
            self._complained = True
            log.warning(
                "the head of the cluster at %s has not answered for %.0f s; %d requests wait, for up to "
                "%g s. Tasks and calls of actors that are there go on meanwhile",
                facts.head,
                loop.time() - oldest,
                len(self._waiting),
                limits.HEAD_RETURN_TIMEOUT,
            )
        self._timer = loop.call_later(limits.HEAD_SLOW / 4, self._look)

    def _ask(self, future: asyncio.Future[Any], opcode: int, fields: tuple[object, ...]) -> None:
        head = self.connect()
        if head is None:
            text = "the head of the cluster cannot be reached"
            future.set_exception(self._runtime.dead or self._given_up or LocalNodeDiedError(text))
            return
        asked = head

        def answered(answer: asyncio.Future[Any]) -> None:
            if future.done():
                return
            error = answer.exception()
            if error is None:
                future.set_result(answer.result())
            elif isinstance(error, ConnectionFailedError) and asked.closed and self._waits:
                # (One that the head itself answers with is an answer.)
                self._ask(future, opcode, fields)
            else:
                future.set_exception(error)

        head.call(opcode, *fields).add_done_callback(answered)

    @property
    def _waits(self) -> bool:
        """Whether a head that is away is waited for."""
        return self._runtime.config.cluster is not None and not self._runtime.closing

    def close(self) -> None:
        """End the connection."""
        if self.connection is not None:
            self.connection.close()
