"""The node's side of actors: the head has it start and end them, and hears what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework._net.connection import Connection, Frame, Handler
from framework._state.node import ACTOR, Allocation, env_key
from framework._wire import messages as m

if TYPE_CHECKING:
    from framework._node.processes import WorkerProcess
    from framework._node.service import NodeService


class NodeActors:
    """The actors of one node."""

    def __init__(self, node: NodeService) -> None:
        self._node = node
        #: actor -> what it is, and which incarnation
        self.specs: dict[bytes, tuple[dict[str, Any], int]] = {}
        self._up_now: dict[bytes, list[Any]] = {}  #: that have been constructed, as `report` tells
        self.handlers: dict[int, Handler] = {m.ACTOR_UP: self._up}
        self.head_handlers: dict[int, Handler] = {
            m.ACTOR_PLACE: self._place,
            m.ACTOR_RECALL: self._recall,
            m.ACTOR_END: self._end,
        }

    def _place(self, connection: Connection, frame: Frame) -> None:
        _, actor, spec, incarnation = frame
        node = self._node
        if node.forwarding is not None:  # in a cluster
            if actor in self.specs and self.specs[actor][1] >= incarnation:
                return  # told twice
            if node.state.draining:
                connection.cast(m.ACTOR_REFUSED, actor, incarnation, node.state.available)
                return
            text = None  # the head has looked
        else:
            text = node.state.never(spec["placement"], spec.get("strategy"))
        if text is not None:
            error = ["ActorUnschedulableError", f"the actor {spec['class_name']} can never be placed: {text}"]
            connection.cast(m.ACTOR_PLACED, actor, incarnation, b"", "", 0, [2, 2, *error])
            return
        self.specs[actor] = (spec, incarnation)
        env, priority = env_key(spec.get("env")), spec.get("priority", 0)
        node.run(node.state.place_actor(actor, spec["resources"], env, spec["job"], priority))

    def _is_wanted(self, actor: bytes, incarnation: int) -> bool:
        """Whether it is this life of the actor that is to be here."""
        found = self.specs.get(actor)
        return found is not None and found[1] == incarnation

    def _recall(self, connection: Connection, frame: Frame) -> None:
        """Another node has room for it. What has been begun here stays: no actor is constructed twice."""
        _, actor, incarnation = frame
        node = self._node
        if self._is_wanted(actor, incarnation) and node.state.give_up_actor(actor):
            del self.specs[actor]
            connection.cast(m.ACTOR_REFUSED, actor, incarnation, node.state.available)
            node.run(node.state.schedule())

    def run(self, actor: bytes, allocation: Allocation) -> None:
        """It has a worker: tell that to become the actor."""
        worker = allocation.worker
        assert worker is not None
        process = self._node.processes.by_id.get(worker.worker_id)
        found = self.specs.get(actor)
        if process is None or found is None:
            self._node.processes.end(worker.worker_id, "its actor is not wanted any more", intended=True)
            return
        spec, incarnation = found
        process.actor, process.incarnation = actor, incarnation
        self._node.set_active(worker.worker_id)
        gpus = self._node.gpus_of(allocation)
        worker.peer.cast(m.ACTOR_RUN, actor, spec, gpus, incarnation)

    def _up(self, connection: Connection, frame: Frame) -> None:
        _, actor, error = frame
        process = self._node.processes.by_id.get(connection.ident)
        if process is None:
            return
        address = connection.peer["address"]
        if error is None:
            self._up_now[actor] = [actor, process.incarnation, connection.ident, address, process.pid]
        self._node.tell_head(
            m.ACTOR_PLACED, actor, process.incarnation, connection.ident, address, process.pid, error
        )
        if error is not None:
            process.actor = None
            if self._is_wanted(actor, process.incarnation):
                del self.specs[actor]
            self._node.processes.end(process.worker_id, "its actor could not be constructed", intended=True)

    def failed(self, actor: bytes, text: str) -> None:
        """No worker could be started for it."""
        _, incarnation = self.specs.pop(actor, ({}, 0))
        self._node.tell_head(m.ACTOR_GONE, actor, incarnation, text, False, 0, "")

    def process_gone(self, process: WorkerProcess, detail: str, running: int) -> None:
        """The process that was an actor has ended."""
        actor = process.actor
        assert actor is not None
        if actor in self._up_now and self._up_now[actor][1] == process.incarnation:
            del self._up_now[actor]
        if self._is_wanted(actor, process.incarnation):
            del self.specs[actor]  # (its next incarnation may wait for a place already)
        self._node.tell_head(
            m.ACTOR_GONE, actor, process.incarnation, detail, process.intended, running, process.kind
        )

    def report(self) -> list[list[Any]]:
        """All that are here, for a head that may not know: [actor, incarnation, worker, address, pid], with
        an empty address while it is being started."""
        found = []
        for actor, (_, incarnation) in self.specs.items():
            up = self._up_now.get(actor)
            found.append(up if up is not None and up[1] == incarnation else [actor, incarnation, b"", "", 0])
        return found

    def _end(self, connection: Connection, frame: Frame) -> None:
        _, actor, incarnation, force, reason = frame
        node = self._node
        wanted = self.specs.get(actor)
        if incarnation < 0:
            self.specs.pop(actor, None)
        if wanted is None or incarnation < 0 or incarnation == wanted[1]:  # its successor may wait already
            node.run(node.state.drop_actor(actor))
        for worker in list(node.state.workers.values()):
            if worker.state == ACTOR and worker.allocation is not None and worker.allocation.actor == actor:
                process = node.processes.by_id.get(worker.worker_id)
                if process is None or 0 <= incarnation != process.incarnation:
                    continue
                wanted = None  # it is forgotten with its process
                if force:
                    node.processes.end(worker.worker_id, reason, intended=False)
                else:
                    process.reason = reason
                    worker.peer.cast(m.EXIT, True, reason)
        if wanted is not None and incarnation == wanted[1]:
            self.failed(actor, reason)  # it had no process yet

    def class_name(self, actor: bytes | None) -> str:
        """Of an actor of this node."""
        name: str = self.specs.get(actor, ({}, 0))[0].get("class_name", "?") if actor is not None else "?"
        return name

    def with_hooks(self) -> set[bytes]:
        """The workers of actors that have a shutdown hook."""
        found = set()
        for worker in self._node.state.workers.values():
            process = self._node.processes.by_id.get(worker.worker_id)
            if worker.state == ACTOR and process is not None and process.actor is not None:
                if self.specs.get(process.actor, ({}, 0))[0].get("shutdown_hook"):
                    found.add(worker.worker_id)
        return found
