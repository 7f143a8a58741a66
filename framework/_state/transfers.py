"""Objects on their way to a node.

There is one pull per object, however many wait for it. It asks the *root*
first: the node of the primary copy, or another that has a copy when that one is dead. The root sends the
bytes, or names a node to ask in its place (copy_tree.py). When a source fails, the pull goes on with another
one at the byte that it has reached. Methods return commands for the shell:

``("place", object_id, size, patient)``   find room; then `placed` or `unplaced`
``("fetch", object_id, attempt, node, offset, avoid, forced)``  ask this node for the bytes from `offset` on;
                                          `avoid`: whom it shall not name. `forced`: it shall name nobody.
                                          Then `arrived`, `redirected`, `missing`, `broken` or `differs`
``("stop", object_id, attempt)``          interrupt it, soon; one of these answers comes all the same
``("search", object_id, attempt)``        ask all nodes who has it; then `found`
``("later", object_id, attempt, seconds)``  then `again`
``("unplace", object_id)``                give the room back
``("seal", object_id)``                   all bytes are here
``("tell", node, object_id, here)``       to the root: the copy is here, or will not be
``("done", object_id, waiters)``          the object is here
``("failed", object_id, waiters, kind, text)``  it cannot be had; `kind` names the exception

Between "place" and "unplace" or "seal" the room is the pull's; it is given back only when nothing is being
received into it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from typing import Any

from framework._base import limits

Command = tuple[Any, ...]
Waiter = Hashable

GET, WAIT, ARGUMENT = 0, 1, 2
"""Urgency: somebody is blocked; somebody wants it here; it may be needed soon."""

QUEUED = "queued"
PLACING = "placing"
FETCHING = "fetching"
SEARCHING = "searching"
RESTING = "resting"


class Pull:
    """One object that is being copied to this node."""

    __slots__ = (
        "attempt",
        "avoid",
        "candidates",
        "failing",
        "hops",
        "is_over",
        "is_placed",
        "object_id",
        "offset",
        "patience",
        "primary",
        "refused",
        "root",
        "searched",
        "size",
        "state",
        "urgency",
        "via",
        "waiters",
    )

    def __init__(self, object_id: bytes, primary: bytes, size: int, urgency: int) -> None:
        self.object_id = object_id
        self.primary = primary
        self.size = size
        self.urgency = urgency
        self.waiters: dict[Waiter, None] = {}
        self.state = QUEUED
        self.attempt = 0  #: number of the last fetch, search or rest: older answers are stale
        self.offset = 0  #: bytes that are here
        self.is_placed = False
        self.root = primary  #: whom to ask first
        self.via: bytes | None = None  #: whom the root has named
        self.avoid: set[bytes] = set()  #: whom it has named in vain
        self.refused: set[bytes] = set()  #: roots that do not have it
        self.candidates: list[bytes] = []  #: other roots, that said they have it
        self.failing: set[bytes] = set()  #: roots that could not be reached since the last byte arrived
        self.searched = False  #: for other roots, in vain
        self.hops = 0
        self.patience = 0.0  #: seconds spent waiting for a root that cannot be reached
        self.is_over = False  #: it was freed: what still comes is of no use

    @property
    def source(self) -> bytes:
        """Whom it asks at present."""
        return self.via if self.via is not None else self.root


class Pulls:
    """What this node pulls."""

    def __init__(
        self, node_id: bytes, at_once: int = limits.PULLS_AT_ONCE, most_bytes: int = limits.PULL_BYTES
    ) -> None:
        self._node_id = node_id
        self._at_once = at_once
        self._most_bytes = most_bytes
        self._queues: tuple[deque[Pull], ...] = (deque(), deque(), deque())
        self.pulls: dict[bytes, Pull] = {}
        self.alive: set[bytes] = set()
        self.dead: set[bytes] = set()
        self._presumed: set[bytes] = set()  #: nodes that nobody has told of in time
        #: who had what was not where it should be: the next time, all others need not be asked again
        self._found: OrderedDict[bytes, bytes] = OrderedDict()
        self.active = 0
        self.active_bytes = 0

    # ---- who wants what ------------------------------------------------------------------------------

    def want(self, waiter: Waiter, object_id: bytes, node: bytes, size: int, urgency: int) -> list[Command]:
        """Somebody wants this object, whose primary copy is on `node`."""
        pull = self.pulls.get(object_id)
        if pull is None:
            pull = self.pulls[object_id] = Pull(object_id, node, size, urgency)
            if node not in self.alive and object_id in self._found:
                pull.candidates.append(self._found[object_id])
            self._queues[urgency].append(pull)
        elif urgency < pull.urgency:
            pull.urgency = urgency
            if pull.state == QUEUED:
                self._queues[urgency].append(pull)
        pull.waiters[waiter] = None
        if pull.is_over:
            pull.primary = node
        elif node != pull.primary and node not in pull.candidates:
            pull.candidates.append(node)  # it was made again elsewhere
        return self._start()

    def unwant(self, waiter: Waiter, object_id: bytes) -> list[Command]:
        """That one does not want it any more. Nobody else does: the pull ends."""
        pull = self.pulls.get(object_id)
        if pull is None or waiter not in pull.waiters:
            return []
        del pull.waiters[waiter]
        return self._abandon(pull) if not pull.waiters else []

    def waiters_of(self, object_id: bytes) -> list[Waiter]:
        """Who waits for it."""
        pull = self.pulls.get(object_id)
        return list(pull.waiters) if pull is not None else []

    def freed(self, object_id: bytes) -> list[Command]:
        """Its owner does not need it any more."""
        self._found.pop(object_id, None)
        pull = self.pulls.get(object_id)
        if pull is None or pull.is_over:
            return []
        text = f"object {object_id.hex()} has been freed by its owner"
        commands = self._lost_for(pull, "ObjectLostError", text)
        pull.is_over = True
        return commands + self._abandon(pull)

    def _abandon(self, pull: Pull) -> list[Command]:
        """Nobody waits for it."""
        if pull.state == FETCHING:
            return [("stop", pull.object_id, pull.attempt)]  # what it answers ends it
        if pull.state == PLACING:
            return []
        return self._end(pull)

    def _lost_for(self, pull: Pull, kind: str, text: str) -> list[Command]:
        waiters, pull.waiters = list(pull.waiters), {}
        return [("failed", pull.object_id, waiters, kind, text)] if waiters else []

    # ---- starting ------------------------------------------------------------------------------------

    def _start(self) -> list[Command]:
        commands: list[Command] = []
        for urgency, queue in enumerate(self._queues):
            while queue:
                pull = queue[0]
                if (
                    pull.state != QUEUED
                    or pull.urgency != urgency
                    or self.pulls.get(pull.object_id) is not pull
                ):
                    queue.popleft()  # it has begun, ended, or stands in a better queue
                    continue
                if self.active >= self._at_once or (
                    self.active and self.active_bytes + pull.size > self._most_bytes
                ):
                    return commands
                queue.popleft()
                self.active += 1
                self.active_bytes += pull.size
                commands.append(self._place(pull))
        return commands

    def _place(self, pull: Pull) -> Command:
        pull.state = PLACING
        return ("place", pull.object_id, pull.size, pull.urgency != ARGUMENT)

    def placed(self, object_id: bytes) -> list[Command]:
        """There is room for it."""
        pull = self.pulls.get(object_id)
        if pull is None or pull.state != PLACING:
            return [("unplace", object_id)]
        pull.is_placed = True
        return self._ask(pull) if pull.waiters and not pull.is_over else self._end(pull)

    def unplaced(self, object_id: bytes, kind: str, text: str) -> list[Command]:
        """There is none. (Or the object is here already: `FileExistsError`.)"""
        pull = self.pulls.get(object_id)
        if pull is None or pull.state != PLACING:
            return []
        if kind == "FileExistsError":
            return self._end(pull, done=True)
        if pull.urgency != ARGUMENT and kind == "ObjectStoreFullError" and "no room without waiting" in text:
            return [self._place(pull)]  # somebody waits for it since then
        return self._lost_for(pull, kind, text) + self._end(pull)

    # ---- sources -------------------------------------------------------------------------------------

    def _ask(self, pull: Pull) -> list[Command]:
        """Ask the next source."""
        if pull.via is not None and pull.via not in self.alive:
            pull.avoid.add(pull.via)
            pull.via = None
        while pull.root in pull.refused or pull.root not in self.alive:
            pull.via = None
            pull.avoid.clear()
            while pull.candidates:
                pull.root = pull.candidates.pop(0)
                if pull.root not in pull.refused:
                    break
            else:
                return self._none_left(pull)
        pull.state = FETCHING
        pull.attempt += 1
        forced = pull.via is not None or pull.hops >= limits.PULL_HOPS
        avoid = sorted(pull.avoid)
        return [("fetch", pull.object_id, pull.attempt, pull.source, pull.offset, avoid, forced)]

    def _none_left(self, pull: Pull) -> list[Command]:
        """No root is known that could be asked."""
        if not pull.searched:
            pull.searched = True
            pull.state = SEARCHING
            pull.attempt += 1
            return [("search", pull.object_id, pull.attempt)]
        if not (pull.primary in pull.refused or self._is_known(pull.primary)):
            if pull.patience < limits.SOURCE_UNKNOWN:
                return self._rest(pull)  # a node that is new: we may hear of it in a moment
            self._presumed.add(pull.primary)
        text = f"no node has a copy of object {pull.object_id.hex()}"
        return self._lost_for(pull, "ObjectLostError", text) + self._end(pull)

    def _is_known(self, node: bytes) -> bool:
        return node in self.alive or node in self.dead or node in self._presumed

    def _rest(self, pull: Pull) -> list[Command]:
        pull.patience += limits.PULL_RETRY
        pull.searched = False
        pull.failing.clear()
        pull.root = pull.primary
        pull.state = RESTING
        pull.attempt += 1
        return [("later", pull.object_id, pull.attempt, limits.PULL_RETRY)]

    def _current(self, object_id: bytes, attempt: int, state: str) -> Pull | None:
        pull = self.pulls.get(object_id)
        return pull if pull is not None and pull.attempt == attempt and pull.state == state else None

    def again(self, object_id: bytes, attempt: int) -> list[Command]:
        """The rest is over."""
        pull = self._current(object_id, attempt, RESTING)
        return self._ask(pull) if pull is not None else []

    def found(self, object_id: bytes, attempt: int, nodes: Iterable[bytes], complete: bool) -> list[Command]:
        """These nodes have a copy. Not `complete`: some did not answer."""
        pull = self._current(object_id, attempt, SEARCHING)
        if pull is None:
            return []
        found = [node for node in nodes if node != self._node_id and node in self.alive]
        pull.refused -= set(found)
        pull.candidates = [node for node in found if node not in pull.failing]
        if pull.candidates:
            pull.root, pull.via, pull.hops = pull.candidates.pop(0), None, 0
            pull.avoid.clear()
            return self._ask(pull)
        hopeful = found or not complete or (pull.primary in self.alive and pull.primary not in pull.refused)
        if hopeful and pull.patience < limits.PULL_PATIENCE:
            return self._rest(pull)
        if hopeful:
            text = "the nodes that have it, or may have it, cannot be reached"
            return self._lost_for(pull, "ObjectFetchTimedOutError", text) + self._end(pull)
        return self._none_left(pull)

    # ---- answers of a source -------------------------------------------------------------------------

    def arrived(self, object_id: bytes, attempt: int) -> list[Command]:
        """The last byte is here."""
        pull = self._current(object_id, attempt, FETCHING)
        if pull is None:
            return []
        if pull.is_over:
            return self._end(pull)
        pull.is_placed = False
        if pull.root != pull.primary:
            self._found[object_id] = pull.root
            if len(self._found) > limits.PULL_FOUND:
                self._found.popitem(last=False)
        return [("seal", object_id), *self._end(pull, done=True)]

    def redirected(self, object_id: bytes, attempt: int, node: bytes) -> list[Command]:
        """The root names another node to ask."""
        pull = self._current(object_id, attempt, FETCHING)
        if pull is None:
            return []
        if not pull.waiters or pull.is_over:
            return self._end(pull)
        pull.hops += 1
        if node not in self.alive or node == self._node_id or pull.via is not None:
            pull.avoid.add(node)
            pull.via = None
        else:
            pull.via = node
        return self._ask(pull)

    def missing(self, object_id: bytes, attempt: int) -> list[Command]:
        """The source does not have it."""
        pull = self._current(object_id, attempt, FETCHING)
        if pull is None:
            return []
        if not pull.waiters or pull.is_over:
            return self._end(pull)
        if pull.via is not None:
            pull.avoid.add(pull.via)
            pull.via = None
        else:
            pull.refused.add(pull.root)
        return self._ask(pull)

    def broken(self, object_id: bytes, attempt: int, offset: int) -> list[Command]:
        """The source cannot be reached, or the connection has ended; so many bytes are here."""
        pull = self._current(object_id, attempt, FETCHING)
        if pull is None:
            return []
        if offset > pull.offset:
            pull.patience = 0.0
            pull.failing.clear()
        pull.offset = offset
        if not pull.waiters or pull.is_over:
            return self._end(pull)
        if pull.via is not None:
            pull.avoid.add(pull.via)
            pull.via = None
            return self._ask(pull)
        pull.failing.add(pull.root)
        pull.searched = True
        pull.state = SEARCHING
        pull.attempt += 1
        return [("search", object_id, pull.attempt)]

    def differs(self, object_id: bytes, attempt: int, size: int) -> list[Command]:
        """The object is of another size than we were told: it was made again. Nothing of it is here."""
        pull = self._current(object_id, attempt, FETCHING)
        if pull is None:
            return []
        if not pull.waiters or pull.is_over:
            return self._end(pull)
        self.active_bytes += size - pull.size
        pull.size, pull.offset = size, 0
        pull.is_placed = False
        return [("unplace", object_id), self._place(pull)]

    # ---- ends ----------------------------------------------------------------------------------------

    def _end(self, pull: Pull, done: bool = False) -> list[Command]:
        """It is over. Who has come since its verdict starts anew."""
        commands: list[Command] = []
        if pull.is_placed:
            commands.append(("unplace", pull.object_id))
        if pull.attempt and pull.root in self.alive:
            commands.append(("tell", pull.root, pull.object_id, done))
        del self.pulls[pull.object_id]
        if pull.state != QUEUED:
            self.active -= 1
            self.active_bytes -= pull.size
        if pull.waiters and done:
            commands.append(("done", pull.object_id, list(pull.waiters)))
        elif pull.waiters:
            again = self.pulls[pull.object_id] = Pull(pull.object_id, pull.primary, pull.size, pull.urgency)
            again.waiters = pull.waiters
            self._queues[pull.urgency].append(again)
        return commands + self._start()

    # ---- nodes ---------------------------------------------------------------------------------------

    def node_up(self, node: bytes) -> None:
        """This node lives."""
        if node not in self.dead:
            self.alive.add(node)
            self._presumed.discard(node)

    def node_gone(self, node: bytes) -> list[Command]:
        """The head says that this node is dead: what is asked of it is interrupted."""
        self.alive.discard(node)
        self.dead.add(node)
        return [
            ("stop", pull.object_id, pull.attempt)
            for pull in self.pulls.values()
            if pull.state == FETCHING and pull.source == node
        ]
