"""Whether the values of objects are on this node: what `wait(fetch_local=True)` waits for in a cluster."""

from __future__ import annotations

import asyncio
import functools
import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._runtime.waiters import register
from framework._state.objects import READY, Entry
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class Presence:
    """Stand-ins for entries whose values are, or may turn out to be, in the store of another node: done when
    the value has been copied here, or there is none and never will be. A copying that nobody waits for any
    more, as the time of `get` or `wait` has run out, is given up after a while."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
        self._pulling: dict[Entry, tuple[Entry, bytes]] = {}  #: stand-ins for what is on its way; its name
        self._asked: set[Entry] = set()  #: of these, that somebody has asked for since the last look
        self._unwanted: set[Entry] = set()  #: for which nobody waited then
        self._timer: asyncio.TimerHandle | None = None
        self._stand_ins: weakref.WeakKeyDictionary[Entry, Entry] = weakref.WeakKeyDictionary()

    def of(self, entries: Iterable[Entry]) -> list[Entry]:
        """Any thread: for each of these what is done when its value is here. Asks for all of them."""
        entries = list(entries)
        self._runtime.waiting.ask_for([entry for entry in entries if not entry.state])
        return [self._of(entry) for entry in entries]

    def _of(self, entry: Entry) -> Entry:
        if entry.state and not self._runtime.store.is_elsewhere(entry.value):
            return entry
        with self._lock:
            found = self._stand_ins.get(entry)
            if found is not None and (entry.state or not found.state):
                if found in self._pulling:
                    self._asked.add(found)
                return found
            found = self._stand_ins[entry] = Entry(entry.id)  # (a done one is of a value that was lost since)
            found.seen = True
        register(entry, functools.partial(self._has_outcome, weakref.ref(found)))
        return found

    def _has_outcome(self, found: weakref.ref[Entry], entry: Entry) -> None:
        stand_in = found()
        if stand_in is not None:
            self._runtime.post(self._pull, entry, stand_in)

    def _pull(self, entry: Entry, stand_in: Entry) -> None:
        """On the loop."""
        node, wire = self._runtime.node, entry.value
        if not self._runtime.store.is_elsewhere(wire) or node is None:
            self._done(entry, stand_in)
            return
        future = node.call(m.STORE_PULL, wire[1], wire[5], wire[3])
        self._pulling[stand_in] = entry, wire[1]
        if self._timer is None:
            self._timer = self._runtime.loop.call_later(limits.PULL_UNWANTED, self._look)

        def answered(future: Any) -> None:
            if not future.cancelled():
                future.exception()  # whoever reads the value meets it
            self._pulling.pop(stand_in, None)
            self._asked.discard(stand_in)
            self._unwanted.discard(stand_in)
            self._done(entry, stand_in)

        future.add_done_callback(answered)

    def _look(self) -> None:
        """On the loop, now and then: give up what nobody has waited for since the last time."""
        before, self._unwanted = self._unwanted, set()
        node = self._runtime.node
        for stand_in, (entry, object_id) in list(self._pulling.items()):
            with self._lock:
                wanted = stand_in.waiters or stand_in in self._asked
                self._asked.discard(stand_in)
                if wanted:
                    continue
                if stand_in not in before:
                    self._unwanted.add(stand_in)
                    continue
                if self._stand_ins.get(entry) is stand_in:
                    del self._stand_ins[entry]
            if node is not None:
                node.cast(m.STORE_UNPULL, object_id)
        self._timer = None
        if self._pulling and not self._runtime.closing:
            self._timer = self._runtime.loop.call_later(limits.PULL_UNWANTED, self._look)

    def _done(self, entry: Entry, stand_in: Entry) -> None:
        stand_in.state = entry.state or READY
        self._runtime.objects.notify(stand_in)
