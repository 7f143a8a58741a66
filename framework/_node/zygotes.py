"""The zygotes of a node: one for workers without load-time variables, which stays, and one per set of such
variables (see `load_time_part`), which ends when it has had no workers for a while, or when there are too
many.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from framework._base import limits
from framework._node.zygote_client import Zygote, load_time_part, spawn_zygote
from framework._state.node import EnvKey


class Zygotes:
    """Started when first needed. A zygote with workers is never ended: they would die with it.

    `on_lost(zygote)` is called for one that has died by itself; it is gone from here then.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_forked: Callable[[bytes, int, str], None],
        on_exit: Callable[[int, int], None],
        on_lost: Callable[[Zygote], None],
        spawn: Callable[[EnvKey], tuple[socket.socket, int]] = spawn_zygote,
    ) -> None:
        self._loop = loop
        self._on_forked = on_forked
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._spawn = spawn
        self._zygotes: dict[EnvKey, Zygote] = {}  #: the least recently used first
        self._workers: dict[EnvKey, int] = {}  #: that live or are being forked
        self._timers: dict[EnvKey, asyncio.TimerHandle] = {}  #: of those without workers

    def adopt(self, sock: socket.socket, pid: int) -> None:
        """The first one, for workers without load-time variables, runs already."""
        self._add((), sock, pid)

    def ensure_first(self) -> None:
        """That one has died: start another, unless that has happened. OSError when it is not possible."""
        if () not in self._zygotes:
            self._add((), *self._spawn(()))

    def _add(self, env: EnvKey, sock: socket.socket, pid: int) -> Zygote:
        zygote = Zygote(
            self._loop, sock, pid, on_forked=self._on_forked, on_exit=self._on_exit, on_lost=self._lost
        )
        zygote.env = env
        self._zygotes[env] = zygote
        return zygote

    def use(self, env: EnvKey) -> Zygote:
        """The zygote that is to fork a worker with these variables, started if need be (OSError when that
        fails). To be followed by one `released`, when that worker has ended or could not be forked."""
        key = load_time_part(env)
        zygote = self._zygotes.pop(key, None)
        if zygote is None:
            self._make_room(limits.MAX_ZYGOTES - 1)
            zygote = self._add(key, *self._spawn(key))
        self._zygotes[key] = zygote  # the most recently used one
        self._workers[key] = self._workers.get(key, 0) + 1
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        return zygote

    def released(self, env: EnvKey) -> None:
        """One worker less."""
        key = load_time_part(env)
        left = self._workers.get(key, 0) - 1
        if left > 0:
            self._workers[key] = left
            return
        self._workers.pop(key, None)
        if key and key in self._zygotes:
            self._timers[key] = self._loop.call_later(limits.ZYGOTE_IDLE, self._end, key)
            self._make_room(limits.MAX_ZYGOTES)

    def _make_room(self, most: int) -> None:
        """End those without workers, the least recently used first, until no more than `most` are left."""
        for key in list(self._zygotes):
            if len(self._zygotes) <= most + (() in self._zygotes):
                return
            if key and not self._workers.get(key):
                self._end(key)

    def _end(self, key: EnvKey) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        zygote = self._zygotes.pop(key, None)
        if zygote is not None:
            zygote.close()
            zygote.reap()

    def _lost(self, zygote: Zygote) -> None:
        zygote.reap()
        if self._zygotes.get(zygote.env) is zygote:
            del self._zygotes[zygote.env]
        timer = self._timers.pop(zygote.env, None)
        if timer is not None:
            timer.cancel()
        self._on_lost(zygote)

    def stop(self) -> None:
        """End all of them at once, and with them their workers."""
        for key in list(self._zygotes):
            self._end(key)
