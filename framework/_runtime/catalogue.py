"""What is described once and then named by a number: scheduling keys, functions, templates of tasks."""

from __future__ import annotations

import threading
from typing import Any

from framework._net.connection import Connection
from framework._runtime.peers import PeerState
from framework._state.leases import KeyState
from framework._state.tasks import Template
from framework._wire import messages as m


class Catalogue:
    """Of one process. Any thread, unless a method says otherwise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: dict[tuple[Any, ...], KeyState] = {}
        self.keys_by_id: dict[int, KeyState] = {}
        self._next_template = 0
        self._functions: dict[bytes, tuple[bytes, list[Any]]] = {}

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
                key = KeyState(len(self._keys) + 1, resources, env, strategy)
                key.retriable, key.priority, key.near = retriable, priority, near
                self._keys[name] = key
                self.keys_by_id[key.key_id] = key
        return key

    def near(self, key: KeyState, node_id: bytes) -> KeyState:
        """The same needs, for tasks whose arguments lie on that node."""
        return self.key(key.resources, key.env, key.strategy, key.retriable, key.priority, node_id)

    def function(self, function_hash: bytes, payload: bytes, refs: list[Any]) -> None:
        """A function (or class) that templates name by its hash; its references live as long as
        this process.
        """
        self._functions.setdefault(function_hash, (payload, refs))

    def template(
        self,
        name: str,
        returns: int,
        function_hash: bytes,
        spec: dict[str, Any],
        options: Any,
        key: KeyState | None,
    ) -> Template:
        """The constant part of tasks to come."""
        with self._lock:
            tid = self._next_template = self._next_template + 1
            spec = {"name": name, "returns": returns, "hash": function_hash, **spec}
            template = Template(tid, name, returns, function_hash, spec, options, key)
        return template

    def prepare(self, connection: Connection, template: Template) -> None:
        """Loop: the peer must know the template and its function before the first frame that names it."""
        state: PeerState = connection.state
        if template.tid in state.templates:
            return
        state.templates.add(template.tid)
        if template.function_hash and template.function_hash not in state.functions:
            state.functions.add(template.function_hash)
            payload, _ = self._functions[template.function_hash]
            connection.buffer(connection.pack((m.FUNCTION, template.function_hash, payload)))
        connection.buffer(connection.pack((m.TEMPLATE, template.tid, template.spec)))
