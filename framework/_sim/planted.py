"""Bugs that can be put into the product for the time of a run, to see that the oracles find them.

Each is a slip that somebody could make, as a patch of one method: the product knows nothing of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from framework._sim.patches import System

Method = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Planted:
    """One bug. `plant(system)` is for within `System.installed`; `narrow` are the arguments of the command
    line with which it is looked for: what else they leave out only costs time."""

    text: str
    plant: Callable[[System], object]
    narrow: str = ""


PLANTED: Final[dict[str, Planted]] = {}


def _bug(name: str, text: str, narrow: str = "") -> Callable[[Callable[[System], object]], None]:
    def enter(plant: Callable[[System], object]) -> None:
        PLANTED[name] = Planted(text, plant, narrow)

    return enter


def _instead(system: System, owner: Any, name: str, made: Callable[[Method], Method]) -> None:
    """Put `made(what was there)` in the place of a method."""
    inner = getattr(owner, name)
    method = made(inner)
    method.__name__ = name
    system._set(owner, name, method)


# ---- resources ---------------------------------------------------------------------------------------


@_bug(
    "lease-kept",
    "a lease whose return was lost with a connection between nodes is not released when there is another one",
    "--faults reset=4,delay=0.6 --nodes 3 --operations 12 --kinds burst,nested,strategies,wait_some",
)
def _lease_kept(system: System) -> None:
    from framework._node.forwarding import Forwarding

    def made(inner: Method) -> Method:
        def held(self: Any, connection: Any, frame: Any) -> None:
            here = self._node.state.guest_leases(self._guest(connection.ident))
            inner(self, connection, [frame[0], [*frame[1], *here]])

        return held

    _instead(system, Forwarding, "_held", made)


@_bug("granted-twice", "the CPUs that a waiting worker has lent are given back once more when it dies")
def _granted_twice(system: System) -> None:
    from framework._state.node import NodeState

    def made(inner: Method) -> Method:
        def worker_gone(self: Any, worker_id: bytes) -> Any:
            worker = self.workers.get(worker_id)
            if worker is not None and worker.allocation is not None:
                worker.allocation.lent = {}
            return inner(self, worker_id)

        return worker_gone

    _instead(system, NodeState, "worker_gone", made)


@_bug(
    "bundle-kept",
    "a node keeps the bundles of an attempt that another node has made fail",
    "--faults partition=0.3,stop=0.3 --nodes 3 --operations 10 --kinds group,node,strategies",
)
def _bundle_kept(system: System) -> None:
    from framework._state.bundles import Bundles

    def made(inner: Method) -> Method:
        def give_back(self: Any, group: bytes, attempt: int = -1) -> Any:
            if attempt != -1 and not any(b.committed for b in self.groups.get(group, {}).values()):
                return []
            return inner(self, group, attempt)

        return give_back

    _instead(system, Bundles, "give_back", made)


# ---- references and objects --------------------------------------------------------------------------


@_bug(
    "borrower-unknown",
    "a task ends, and the owners of the references that it leaves behind do not hear of it",
)
def _borrower_unknown(system: System) -> None:
    from framework._runtime.objects import Objects

    def made(inner: Method) -> Method:
        def register_kept(self: Any, then: Callable[[], None]) -> None:
            self._register_new()
            self.drain_drops()
            self._provisional.clear()
            self._when_registered(then)

        return register_kept

    _instead(system, Objects, "_register_kept", made)


@_bug(
    "freed-early", "whoever has sent a result lets go of its references before their receiver is registered"
)
def _freed_early(system: System) -> None:
    from framework._runtime.objects import Objects
    from framework._wire import messages as m

    def made(inner: Method) -> Method:
        def release(self: Any, connection: Any, unique: int, index: int) -> None:
            if not connection.closed:
                connection.cast(m.RELEASE_HELD, unique, index)

        return release

    _instead(system, Objects, "release_when_registered", made)


@_bug(
    "stale-location",
    "a node goes on asking a dead one for its objects",
    "--faults crash_node=0.5 --nodes 3 --operations 8 --kinds shelf,keep,made_again,several",
)
def _stale_location(system: System) -> None:
    from framework._state.transfers import Pulls

    _instead(system, Pulls, "node_gone", lambda inner: lambda self, node: [])


@_bug(
    "pin-kept",
    "a transfer that breaks off leaves its pin",
    "--faults reset=6,delay=0.6 --nodes 3 --operations 12 --kinds shelf,borrow,keep,made_again",
)
def _pin_kept(system: System) -> None:
    from framework._node.transfer_sender import Sender

    def made(inner: Method) -> Method:
        def release(self: Any, block: Any, reader: Any) -> None:
            import sys

            frame = sys._getframe(1)  # (the same as `if not problem` in the caller)
            if not frame.f_locals.get("problem"):
                inner(self, block, reader)

        return release

    _instead(system, Sender, "_release", made)


@_bug(
    "spilled-while-read",
    "an object that somebody has begun to read while it was written to disk leaves memory",
    "--faults none --nodes 1 --operations 12 --kinds spill,put,shelf,several",
)
def _spilled_while_read(system: System) -> None:
    from framework._state.blocks import SPILLING
    from framework._state.store import StoreState

    def made(inner: Method) -> Method:
        def spilled(self: Any, object_id: bytes, offset: int, path: str) -> Any:
            block = self._moving(object_id, offset, SPILLING)
            pins = {} if block is None else block.pins
            if block is not None:
                block.pins = {}
            try:
                return inner(self, object_id, offset, path)
            finally:
                if block is not None:
                    block.pins = {**pins, **block.pins}

        return spilled

    _instead(system, StoreState, "spilled", made)


# ---- actors ------------------------------------------------------------------------------------------


@_bug(
    "reply-lost",
    "calls under way when a connection breaks are forgotten once there is another connection",
    "--faults reset=3 --nodes 2 --operations 8 --kinds calls,handles,actor_stream,restart",
)
def _reply_lost(system: System) -> None:
    from framework._runtime.actors import Actors

    def made(inner: Method) -> Method:
        def cut_off(self: Any, client: Any, incarnation: int, address: str) -> None:
            judge = self._judge
            self._judge = lambda client: None
            try:
                inner(self, client, incarnation, address)
            finally:
                self._judge = judge

        return cut_off

    _instead(system, Actors, "_cut_off", made)


@_bug(
    "called-twice",
    "calls under way when a connection breaks are sent again over the next one",
    "--faults reset=6,delay=0.6 --nodes 3 --operations 10 --kinds calls",
)
def _called_twice(system: System) -> None:
    from framework._runtime.actors import Actors

    def made(inner: Method) -> Method:
        def cut_off(self: Any, client: Any, incarnation: int, address: str) -> None:
            from framework._state.tasks import QUEUED

            if client.lost_connection and client.incarnation == incarnation:
                tasks = client.take_inflight()
                for task in tasks:
                    task.state = QUEUED
                client.queue.extendleft(reversed(tasks))
            inner(self, client, incarnation, address)

        return cut_off

    _instead(system, Actors, "_cut_off", made)


@_bug("order-lost", "calls that are tried again are sent in the wrong order")
def _order_lost(system: System) -> None:
    from framework._runtime.actors import Actors

    def made(inner: Method) -> Method:
        def judge(self: Any, client: Any) -> None:
            before = len(client.queue)
            inner(self, client)
            again = [client.queue.popleft() for _ in range(len(client.queue) - before)]
            client.queue.extendleft(again)

        return judge

    _instead(system, Actors, "_judge", made)


@_bug("restart-uncounted", "restarts of an actor are not counted")
def _restart_uncounted(system: System) -> None:
    from framework._state.actors import ActorDirectory

    def made(inner: Method) -> Method:
        def again(self: Any, record: Any, detail: Any) -> Any:
            record.restarts -= 1
            return inner(self, record, detail)

        return again

    _instead(system, ActorDirectory, "_again", made)


@_bug(
    "name-forgotten",
    "a head that is started again does not know the names of actors any more",
    "--faults crash_head=0.5 --nodes 1 --operations 8 --kinds named_race,named_once,detached",
)
def _name_forgotten(system: System) -> None:
    from framework._state.actors import ActorDirectory

    def made(inner: Method) -> Method:
        def restore(self: Any, actors: Any) -> Any:
            commands = inner(self, actors)
            self._names.clear()
            return commands

        return restore

    _instead(system, ActorDirectory, "restore", made)


# ---- tasks -------------------------------------------------------------------------------------------


@_bug(
    "cancel-forgotten",
    "a cancelled task that waits in the queue of its worker runs nevertheless",
    "--faults none --nodes 1 --operations 16 --kinds cancel_running,burst",
)
def _cancel_forgotten(system: System) -> None:
    from framework._worker.executor import Executor

    def made(inner: Method) -> Method:
        def cancel(self: Any, connection: Any, frame: Any) -> None:
            if not any(item[0] is connection and item[1][1] == frame[1] for item in list(self.queue)):
                inner(self, connection, frame)

        return cancel

    _instead(system, Executor, "_cancel", made)
