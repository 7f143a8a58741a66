"""Whether the values of objects are on this node: what `wait(fetch_local=True)` waits for in a cluster."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from framework._runtime.waiters import register
from framework._state.objects import READY, Entry
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class Presence:
    """Stand-ins for entries whose values are, or may turn out to be, in the store of another node: done when
    the value has been copied here, or there is none and never will be."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()
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

        def answered(future: Any) -> None:
            if not future.cancelled():
                future.exception()  # whoever reads the value meets it
            self._done(entry, stand_in)

        future.add_done_callback(answered)

    def _done(self, entry: Entry, stand_in: Entry) -> None:
        stand_in.state = entry.state or READY
        self._runtime.objects.notify(stand_in)
