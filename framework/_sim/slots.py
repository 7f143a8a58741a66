"""Variables of our modules of which each simulated process, or thread, has its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from framework._sim.kernel import Kernel


class AttributeSlot:
    """An attribute of some object as a variable of which each process, or thread, has its own."""

    def __init__(self, owner: Any, name: str, fresh: Callable[[], Any]) -> None:
        self._owner = owner
        self._name = name
        self.fresh = fresh

    def get(self) -> Any:
        return getattr(self._owner, self._name, None)

    def set(self, value: Any) -> None:
        setattr(self._owner, self._name, value)


class ObjectSlot:
    """All attributes of some object; what `fresh` does not name is as it was before the simulation."""

    def __init__(self, owner: Any, fresh: Callable[[], dict[str, Any]]) -> None:
        self._owner = owner
        self._others = vars(owner).copy()
        self._fresh = fresh

    def fresh(self) -> dict[str, Any]:
        return {**self._others, **self._fresh()}

    def get(self) -> Any:
        return self._owner.__dict__

    def set(self, value: Any) -> None:
        self._owner.__dict__ = value


class ItemSlot:
    """The only item of a list."""

    def __init__(self, owner: list[Any], fresh: Callable[[], Any]) -> None:
        self._owner = owner
        self.fresh = fresh

    def get(self) -> Any:
        return self._owner[0]

    def set(self, value: Any) -> None:
        self._owner[0] = value


def provide_slots(kernel: Kernel) -> None:
    """The variables of our modules that belong to one process, or one thread."""
    import framework  # noqa: F401
    from framework import _boot, _session
    from framework._net import takeover
    from framework._runtime import current, waiters
    from framework._serial import refs
    from framework._sim.threads import SimRLock
    from framework._worker import stdio
    from framework._worker.main import provide_runtime

    provide_runtime(_boot.make_runtime)
    process, thread = kernel.process_slots, kernel.thread_slots
    holder = current._current
    process["runtime"] = ObjectSlot(
        holder, lambda: {"runtime": None, "pid": 0, "lock": SimRLock(), "was_shut_down": False}
    )
    process["session"] = ObjectSlot(
        _session._session, lambda: {"node": None, "printer": None, "context": None, "registered": True}
    )
    process["name in the output"] = AttributeSlot(stdio._current, "name", str)
    process["unfinished line"] = AttributeSlot(stdio._current, "unfinished", bool)
    process["out of band"] = ItemSlot(refs._out_of_band, lambda: refs._nobody_listens)
    thread["parking"] = AttributeSlot(takeover._parkings, "mine", lambda: None)
    thread["wait set"] = AttributeSlot(waiters._wait_sets, "mine", waiters.WaitSet)
    thread["mailbox loop"] = AttributeSlot(waiters._mailboxes, "loop", lambda: None)
    thread["mailbox"] = AttributeSlot(waiters._mailboxes, "mailbox", lambda: None)
    thread["encoding"] = AttributeSlot(refs.contexts, "encoding", lambda: None)
    thread["decoding"] = AttributeSlot(refs.contexts, "decoding", lambda: None)
