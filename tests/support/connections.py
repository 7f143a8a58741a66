"""Stand-ins for connections: what a service says is written down, and what it hears is up to the test."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgpack

from framework._net.connection import Connection, Handler
from framework._wire import messages as m
from framework.exceptions import FrameworkError


class Recorder(Connection):
    """A peer of a service, without a socket. `said` has the frames that the service has sent to it."""

    def __init__(self, kind: str = "", ident: bytes = b"", **peer: Any) -> None:
        # (Not as a connection begins: there is no socket, and no loop.)
        self.kind = kind
        self.ident = ident
        self.peer: dict[str, Any] = {"pid": 0, "address": f"unix:{ident.hex()}", **peer}
        self.name = f"{kind} {ident.hex()}"
        self.state: Any = None
        self.closed = False
        self.slow = False
        self.said: list[list[Any]] = []
        self.answers: list[Any] = []
        self._rid = 0
        self._calls_made = 0
        self.calls: dict[int, asyncio.Future[Any]] = {}  #: that the service waits for, by number

    def cast(self, *frame: Any) -> None:
        assert m.check(list(frame)) == frame[0], "a frame of the catalogue"
        self.said.append(list(frame))

    def post(self, data: bytes) -> None:
        self.cast(*msgpack.unpackb(data, strict_map_key=False))

    def call(self, opcode: int, *fields: Any) -> asyncio.Future[Any]:
        self._calls_made += 1
        self.cast(opcode, self._calls_made, *fields)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.calls[self._calls_made] = future
        return future

    def reply(self, rid: int, value: Any) -> None:
        assert rid == self._rid
        self.answers.append(value)

    def flush(self, wait: bool = False) -> None: ...

    @property
    def congested(self) -> bool:
        return self.slow

    def close(self, error: BaseException | None = None) -> None:
        self.closed = True

    def take(self, opcode: int) -> list[list[Any]]:
        """The frames of this kind that have been sent, without the opcode; they are forgotten."""
        found = [frame[1:] for frame in self.said if frame[0] == opcode]
        self.said = [frame for frame in self.said if frame[0] != opcode]
        return found

    def tell(self, handlers: Mapping[int, Handler], opcode: int, *fields: Any) -> None:
        """Have the service handle a message of this peer."""
        frame = [opcode, *fields]
        m.check(frame)
        handlers[opcode](self, frame)

    def ask(self, handlers: Mapping[int, Handler], opcode: int, *fields: Any) -> Any:
        """A call of this peer; the answer, or the error raised."""
        self._rid += 1
        self.tell(handlers, opcode, self._rid, *fields)
        if not self.answers:
            raise FrameworkError("no answer yet")
        return self.answers.pop(0)
