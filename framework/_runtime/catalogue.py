"""What is described once and then named by a number: scheduling keys, functions, templates of tasks.

All of it lives as long as somebody may use it: templates as long as tasks and those who make them (remote
functions, handles), keys and functions as long as templates, keys also as long as leases. Who was told of
what has ended is told to forget it. The functions that came last are kept beyond that: programs define the
same one again and again.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

from framework._base import limits
from framework._net.connection import Connection
from framework._runtime.peers import PeerState
from framework._state.leases import KeyState
from framework._state.tasks import Function, Template
from framework._wire import messages as m


class Catalogue:
    """Of one process. Any thread, unless a method says otherwise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: WeakValueDictionary[tuple[Any, ...], KeyState] = WeakValueDictionary()
        self.keys_by_id: WeakValueDictionary[int, KeyState] = WeakValueDictionary()
        self._next_key = itertools.count(1)
        self._next_template = 0
        self._functions: WeakValueDictionary[bytes, Function] = WeakValueDictionary()
        self._latest: OrderedDict[bytes, Function] = OrderedDict()
        self._latest_bytes = 0
        #: numbers of templates and hashes of functions that have ended, and numbers of keys; appended to from
        #: anywhere
        self.ended: deque[Any] = deque()
        self.keys_ended: deque[int] = deque()

    def key(
        self,
        resources: dict[str, int],
        env: dict[str, str] | None,
        strategy: list[Any] | None,
        retriable: bool = True,
        priority: int = 0,
        near: bytes = b"",
    ) -> KeyState:
        """The scheduling key for these needs. `near`: the node where the arguments lie."""
        name = (
            tuple(sorted(resources.items())),
            tuple(sorted(env.items())) if env else (),
            repr(strategy) if strategy else "",
            retriable,
            priority,
            near,
        )
        with self._lock:
            key = self._keys.get(name)
            if key is None:
                key = KeyState(next(self._next_key), resources, env, strategy, self.keys_ended)
                key.retriable, key.priority, key.near = retriable, priority, near
                self._keys[name] = key
                self.keys_by_id[key.key_id] = key
        return key

    def near(self, key: KeyState, node_id: bytes) -> KeyState:
        """The same needs, for tasks whose arguments lie on that node."""
        return self.key(key.resources, key.env, key.strategy, key.retriable, key.priority, node_id)

    def function(self, function_hash: bytes, payload: bytes, refs: list[Any]) -> Function:
        """A function that templates are made of, the one at hand if it has come before; what it has captured
        lives as long as it does."""
        with self._lock:
            function = self._functions.get(function_hash)
            if function is None:
                function = self._functions[function_hash] = Function(function_hash, payload, refs, self.ended)
            latest = self._latest
            if function_hash not in latest:
                latest[function_hash] = function
                self._latest_bytes += len(function.payload)
            latest.move_to_end(function_hash)
            gone = []
            while len(latest) > limits.FUNCTIONS_KEPT or (
                self._latest_bytes > limits.FUNCTIONS_KEPT_BYTES and len(latest) > 1
            ):
                gone.append(latest.popitem(last=False)[1])
                self._latest_bytes -= len(gone[-1].payload)
        return function

    def template(
        self,
        name: str,
        returns: int,
        function: Function | None,
        spec: dict[str, Any],
        options: Any,
        key: KeyState | None,
    ) -> Template:
        """The constant part of tasks to come. (A method of an actor has no function.)"""
        function_hash = function.function_hash if function is not None else b""
        spec = {"name": name, "returns": returns, "hash": function_hash, **spec}
        with self._lock:
            tid = self._next_template = self._next_template + 1
        return Template(tid, name, returns, function_hash, spec, options, key, function, self.ended)

    def prepare(self, connection: Connection, template: Template) -> None:
        """Loop: the peer must know the template and its function before the first frame that names it."""
        state: PeerState = connection.state
        if template.tid in state.templates:
            return
        state.templates.add(template.tid)
        if template.function_hash and template.function_hash not in state.functions:
            state.functions.add(template.function_hash)
            assert template.function is not None
            connection.buffer(
                connection.pack((m.FUNCTION, template.function_hash, template.function.payload))
            )
        connection.buffer(connection.pack((m.TEMPLATE, template.tid, template.spec)))

    def tell_ended(self, node: Connection | None, peers: Iterable[Connection]) -> None:
        """Loop: those who know of what has ended are to forget it."""
        templates: set[int] = set()
        functions: set[bytes] = set()
        while self.ended:
            name = self.ended.popleft()
            if type(name) is int:
                templates.add(name)
            elif name not in self._functions:  # else it was defined again meanwhile
                functions.add(name)
        for peer in peers:
            state: PeerState = peer.state
            known, defined = state.templates & templates, state.functions & functions
            if known or defined:
                state.templates -= known
                state.functions -= defined
                peer.cast(m.FORGET, sorted(known), sorted(defined))
        keys = []
        while self.keys_ended:
            key = self.keys_ended.popleft()
            if key in self.keys_by_id:
                continue  # another thread has found it again in its last moment: it lives
            if node is not None and node.state.pop(key, False):
                keys.append(key)
        if keys and node is not None:
            node.cast(m.LEASE_FORGET, keys)
