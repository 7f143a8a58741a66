"""The head's placement groups: what they reserve, where, and what happens when nodes come and go.

A group is reserved in two phases: every node that is to hold bundles of it *prepares* them (takes the
resources), and only when all have does the head have them *commit* (offer the resources to the group). When
one cannot, or dies, all give back what they had prepared in that attempt, and the group waits for the next.
A group is CREATED, and seen to be, when all have committed, and not before. When a node dies that holds
bundles of it, it is RESCHEDULING until those have another node; the others stay where they are.

Pure: methods return commands, tuples that start with a word:

``("prepare", node, group_id, attempt, bundles)``   bundles: ``[[index, units], ...]``
``("commit", node, group_id, attempt, bundles)``
``("return", node, group_id, attempt, reason)``     attempt < 0: all that the node holds for the group
``("publish", watcher, group)``                     tell a watcher the state
``("save", group)``, ``("forget", group_id)``       in what outlives the head
``("removed", group_id, reason)``                   end what lives in it
``("again", group_id, refusals)``                   call `rested` after a while, longer after more refusals
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from framework._base import resources as res
from framework._base.labels import matches
from framework._base.limits import GROUPS_REMOVED_KEPT
from framework._state.groups import COMMIT, CREATED, PENDING, PREPARE, REMOVED, RESCHEDULING, Group, Node
from framework._state.packing import STRICT_PACK, STRICT_SPREAD, place

__all__ = ["COMMIT", "CREATED", "PENDING", "PREPARE", "REMOVED", "RESCHEDULING", "Group", "Placement"]

Command = tuple[Any, ...]


class Placement:
    """All placement groups of the cluster."""

    def __init__(self) -> None:
        self.groups: dict[bytes, Group] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        self._queue: dict[bytes, None] = {}  #: those that want a place and have no attempt under way
        self._resting: set[bytes] = set()  #: of those, refused just now
        self._removed: dict[bytes, None] = {}
        self._unborn: dict[bytes, dict[Hashable, None]] = {}
        self._nodes: dict[bytes, Node] = {}
        self._open: dict[bytes, dict[str, int]] = {}  #: what nodes that take new work have free
        self.makers: dict[bytes, int] = {}  #: detached actor -> how many groups it has made
        self._verdicts: dict[Any, str | None] = {}  #: of `_infeasible`, by shape

    # ---- groups --------------------------------------------------------------------------------------

    def create(self, group_id: bytes, spec: dict[str, Any], watcher: Hashable = None) -> list[Command]:
        """Register a group and look for a place. A repetition changes nothing. `ValueError` for a name in
        use."""
        if group_id in self.groups:
            return self.watch(group_id, watcher) if watcher is not None else []
        group = Group(group_id, spec)
        key = group.name_key
        if key is not None:
            if key in self._names:
                raise ValueError(
                    f"a placement group named {key[1]!r} exists already: choose another name, or remove that "
                    "one first"
                )
            self._names[key] = group_id
        self._add(group)
        group.watchers = self._unborn.pop(group_id, {})
        if watcher is not None:
            group.watchers[watcher] = None
        self._queue[group_id] = None
        return [("save", group), *self._publish(group), *self._try(group, set())]

    def _add(self, group: Group) -> None:
        self.groups[group.group_id] = group
        maker = group.spec["actor"]
        if maker:
            self.makers[maker] = self.makers.get(maker, 0) + 1

    def remove(self, group_id: bytes, reason: str) -> list[Command]:
        """End it, and what lives in it. Twice is as once."""
        group = self.groups.get(group_id)
        if group is None or group.state == REMOVED:
            return []
        group.state, group.text = REMOVED, reason
        maker = group.spec["actor"]
        if maker:
            self.makers[maker] -= 1
            if not self.makers[maker]:
                del self.makers[maker]
        key = group.name_key
        if key is not None:
            self._names.pop(key, None)
        self._queue.pop(group_id, None)
        self._resting.discard(group_id)
        nodes = dict.fromkeys([node for node in group.nodes if node] + list(group.wanted))
        self._forget_asked(group)
        group.phase, group.wanted, group.unanswered = None, {}, set()
        commands: list[Command] = [("removed", group_id, reason)]
        commands += [("return", node, group_id, -1, reason) for node in nodes]
        commands += [*self._publish(group), ("forget", group_id)]
        group.watchers.clear()
        self._removed[group_id] = None
        while len(self._removed) > GROUPS_REMOVED_KEPT:
            oldest = next(iter(self._removed))
            del self._removed[oldest]
            del self.groups[oldest]
        return commands

    def job_ended(self, job: bytes, living: Iterable[bytes] = ()) -> list[Command]:
        """A driver is gone: so are the groups of its job, but for detached ones and those that were made by
        actors that live on (`living`)."""
        stays = set(living)
        why = "its job is over: the driver has ended, or its node was declared dead"
        return [
            command
            for group in list(self.groups.values())
            if group.spec["job"] == job and not group.spec["detached"] and group.spec["actor"] not in stays
            for command in self.remove(group.group_id, why)
        ]

    def actor_ended(self, actor: bytes) -> list[Command]:
        """A detached actor is gone: so are the groups that it has made."""
        return [
            command
            for group in list(self.groups.values())
            if group.spec["actor"] == actor and not group.spec["detached"]
            for command in self.remove(group.group_id, "the actor that made it has ended")
        ]

    def find(self, name: str, namespace: str) -> Group | None:
        """The living group of this name."""
        group_id = self._names.get((namespace, name))
        return None if group_id is None else self.groups[group_id]

    def watch(self, group_id: bytes, watcher: Hashable) -> list[Command]:
        """Somebody wants to hear of it, from now on. One that is not known yet is waited for, see
        `never_born`."""
        group = self.groups.get(group_id)
        if group is None:
            self._unborn.setdefault(group_id, {})[watcher] = None
            return []
        if group.state != REMOVED:
            group.watchers[watcher] = None
        return [("publish", watcher, group)]

    def never_born(self, group_id: bytes) -> list[Hashable]:
        """Time is up for the news of its creation: those who wait for it in vain."""
        return list(self._unborn.pop(group_id, ()))

    def watcher_gone(self, watcher: Hashable) -> None:
        """It hears nothing any more."""
        for group in self.groups.values():
            group.watchers.pop(watcher, None)
        for watchers in self._unborn.values():
            watchers.pop(watcher, None)

    def state_of(self, group_id: bytes) -> str | None:
        """PENDING, CREATED, RESCHEDULING, REMOVED; None for one that is not known."""
        group = self.groups.get(group_id)
        return None if group is None else group.state

    def restore(self, records: Iterable[Mapping[str, Any]]) -> None:
        """After a restart of the head, before anything else: what was saved. What was being prepared then is
        given back when its node joins."""
        for record in records:
            group = Group(record["group"], record["spec"])
            group.state, group.nodes = record["state"], list(record["nodes"])
            group.since, group.attempt = list(record["since"]), record["attempt"]
            self._add(group)
            key = group.name_key
            if key is not None:
                self._names[key] = group.group_id
            if group.lacking:
                self._queue[group.group_id] = None

    # ---- nodes ---------------------------------------------------------------------------------------

    def node_changed(self, row: Mapping[str, Any]) -> list[Command]:
        """A node's row is new, or has changed in something else than its load."""
        if not row["alive"]:
            return self.node_gone(row["node_id"], "it has died")
        node = self._nodes.get(row["node_id"])
        if node is None:
            self._nodes[row["node_id"]] = Node(row)
        else:
            node.update(row)
        self._nodes_changed()
        return self.retry()

    def node_loaded(self, row: Mapping[str, Any]) -> list[Command]:
        """A node has told what it has free: what it had said yes to before is reckoned in."""
        node = self._nodes.get(row["node_id"])
        if node is None:
            return []
        if node.loaded(row):
            self._nodes_changed()
        elif row["node_id"] in self._open:
            self._open[row["node_id"]] = node.free
        return self.retry()

    def _nodes_changed(self) -> None:
        self._verdicts.clear()
        self._open = {
            node_id: node.free for node_id, node in self._nodes.items() if not node.row.get("draining")
        }

    def node_joined(self, row: Mapping[str, Any], held: Iterable[list[Any]]) -> list[Command]:
        """A node is there (again), and holds these bundles: ``[group id, index, attempt, committed]``. What
        it should not hold is given back, what is under way is said again, and what it has lost is placed
        anew."""
        node = row["node_id"]
        self._nodes[node] = Node(row)
        self._nodes_changed()
        commands: list[Command] = []
        has: set[tuple[bytes, int]] = set()
        odd: dict[tuple[bytes, int], None] = {}
        for group_id, index, attempt, committed in held:
            group = self.groups.get(group_id)
            if group is None or group.state == REMOVED or index >= len(group.nodes):
                odd[group_id, -1] = None
            elif committed and group.nodes[index] == node and group.since[index] == attempt:
                has.add((group_id, index))
            elif group.phase is None or attempt != group.attempt or index not in group.wanted.get(node, ()):
                odd[group_id, attempt] = None
        commands += [("return", node, group_id, attempt, "it was given up") for group_id, attempt in odd]
        for group in list(self.groups.values()):
            lost = [i for i, at in enumerate(group.nodes) if at == node and (group.group_id, i) not in has]
            if lost and group.state != REMOVED:
                commands += self._lose(group, lost, "a node has lost its bundles")
            if group.phase is not None and node in group.unanswered:
                rows = group.rows(group.wanted[node])
                commands.append((group.phase, node, group.group_id, group.attempt, rows))
        return commands + self.retry()

    def node_gone(self, node: bytes, reason: str) -> list[Command]:
        """A node is dead: its bundles need another."""
        self._nodes.pop(node, None)
        self._nodes_changed()
        commands: list[Command] = []
        for group in list(self.groups.values()):
            if group.state == REMOVED:
                continue
            lost = [index for index, at in enumerate(group.nodes) if at == node]
            if lost:
                commands += self._lose(group, lost, f"a node with bundles of it is gone: {reason}")
            if group.phase is not None and node in group.wanted:
                commands += self._unable(group, node, f"a node that was to hold it is gone: {reason}")
        return commands + self.retry()

    def _lose(self, group: Group, indices: list[int], reason: str) -> list[Command]:
        for index in indices:
            group.nodes[index] = b""
        group.state, group.text = RESCHEDULING, reason
        if group.phase is None:
            self._requeue(group)
        return [("save", group), *self._publish(group)]

    def _requeue(self, group: Group) -> None:
        """It wants a place. Groups that have lost bundles come before new ones."""
        if group.state == RESCHEDULING:
            self._queue = {group.group_id: None, **self._queue}
        else:
            self._queue[group.group_id] = None

    # ---- reserving -----------------------------------------------------------------------------------

    def retry(self) -> list[Command]:
        """Something may have become free."""
        commands: list[Command] = []
        hopeless: set[Any] = set()
        for group_id in list(self._queue):
            commands += self._try(self.groups[group_id], hopeless)
        return commands

    def rested(self, group_id: bytes) -> list[Command]:
        """A group that was refused may try again."""
        self._resting.discard(group_id)
        group = self.groups.get(group_id)
        return self._try(group, set()) if group is not None and group_id in self._queue else []

    def _try(self, group: Group, hopeless: set[Any]) -> list[Command]:
        """Begin an attempt, if there is a place now. `hopeless`: shapes for which there was none just now."""
        if group.phase is not None or group.group_id in self._resting:
            return []
        shape = self._shape(group)
        if shape is not None and shape in hopeless:
            return self._explain(group, shape)
        lacking, placed = group.lacking, [node for node in group.nodes if node]
        found = place(lacking, group.strategy, self._open, placed, self._allowed(group))
        if found is None:
            hopeless.add(shape)
            return self._explain(group, shape)
        self._queue.pop(group.group_id, None)
        group.attempt += 1
        group.phase = PREPARE
        group.wanted = {}
        for index, node in sorted(found.items()):
            group.wanted.setdefault(node, []).append(index)
        group.unanswered = set(group.wanted)
        commands: list[Command] = [("save", group)]
        for node, indices in group.wanted.items():
            need: dict[str, int] = {}
            for index in indices:
                res.add(need, group.bundles[index])
            self._nodes[node].ask((group.group_id, group.attempt), need)
            commands.append(("prepare", node, group.group_id, group.attempt, group.rows(indices)))
        return commands

    @staticmethod
    def _shape(group: Group) -> Any:
        """Equal for groups that always have a place at the same time; None where more than its bundles
        decides."""
        if group.spec.get("selectors") or any(group.nodes):
            return None
        return (group.strategy, tuple(res.key(units) for units in group.bundles))

    def _allowed(self, group: Group) -> dict[int, set[bytes]] | None:
        selectors = group.spec.get("selectors")
        if not selectors:
            return None
        return {
            index: {
                node_id
                for node_id, node in self._nodes.items()
                if matches(node.row.get("labels", {}), selector)
            }
            for index, selector in enumerate(selectors)
            if selector
        }

    def _explain(self, group: Group, shape: Any) -> list[Command]:
        """Why it has no place; its watchers hear when that changes."""
        if shape is None:
            text = self._infeasible(group)
        elif shape in self._verdicts:
            text = self._verdicts[shape]
        else:
            text = self._verdicts[shape] = self._infeasible(group)
        group.infeasible = text is not None
        text = text or "the resources that it needs are in use"
        if text == group.text:
            return []
        group.text = text
        return self._publish(group)

    def _infeasible(self, group: Group) -> str | None:
        """Why it could not be placed even if nothing else ran; None when it could."""
        totals = {node_id: dict(node.total) for node_id, node in self._nodes.items()}
        for index, node_id in enumerate(group.nodes):
            if node_id in totals:
                res.subtract(totals[node_id], group.bundles[index])
        placed = [node for node in group.nodes if node]
        if place(group.lacking, group.strategy, totals, placed, self._allowed(group)) is not None:
            return None
        lacking = list(group.lacking.values())
        shapes = ", ".join(res.format_resources(units) for units in lacking[:5])
        shapes += ", ..." if len(lacking) > 5 else ""
        rule = {
            STRICT_PACK: " on one node",
            STRICT_SPREAD: " on a node each",
        }.get(group.strategy, "")
        nodes = "; ".join(res.format_resources(_shown(n.total)) for n in list(self._nodes.values())[:5])
        nodes += "; ..." if len(self._nodes) > 5 else ""
        beside = f", beside the {len(placed)} that have one," if placed else ""
        return (
            f"no placement is possible: {len(lacking)} bundle(s) ({shapes}) with strategy {group.strategy}"
            f"{beside} need{rule} more than this cluster of {len(self._nodes)} node(s) has ({nodes}). "
            "It waits for nodes to join"
        )

    def prepared(self, node: bytes, group_id: bytes, attempt: int, text: str | None) -> list[Command]:
        """A node has taken the resources of its bundles (or cannot: `text` says why)."""
        group = self._answered(node, group_id, attempt, PREPARE)
        if group is None:
            return self._stray(node, group_id, attempt) if text is None else []
        if text is not None:
            # What is known of that node is wrong, or its devices are in pieces: again after a pause that gets
            # longer.
            self._resting.add(group_id)
            group.refusals += 1
            return [*self._unable(group, node, text), ("again", group_id, group.refusals)]
        if node in self._nodes:
            self._nodes[node].agreed((group_id, attempt))
        if group.unanswered:
            return []
        group.phase, group.refusals = COMMIT, 0
        group.unanswered = set(group.wanted)
        return [
            ("commit", other, group_id, attempt, group.rows(indices))
            for other, indices in group.wanted.items()
        ]

    def committed(self, node: bytes, group_id: bytes, attempt: int, text: str | None) -> list[Command]:
        """A node offers its bundles to the group (or knows nothing of them: `text` says why)."""
        group = self._answered(node, group_id, attempt, COMMIT)
        if group is None:
            return self._stray(node, group_id, attempt) if text is None else []
        if text is not None:
            return [*self._unable(group, node, text), *self.retry()]
        return [] if group.unanswered else self._done(group)

    def _answered(self, node: bytes, group_id: bytes, attempt: int, phase: str) -> Group | None:
        group = self.groups.get(group_id)
        if group is None or group.phase != phase or attempt != group.attempt:
            return None
        if node not in group.unanswered:
            return None
        group.unanswered.discard(node)
        return group

    def _stray(self, node: bytes, group_id: bytes, attempt: int) -> list[Command]:
        """It has answered what nobody waits for: an echo, or news of an attempt that is over."""
        group = self.groups.get(group_id)
        if group is not None and group.state != REMOVED:
            if attempt == group.attempt and node in group.wanted:
                return []
            if any(at == node and group.since[i] == attempt for i, at in enumerate(group.nodes)):
                return []
        return [("return", node, group_id, attempt, "it was given up")]

    def _done(self, group: Group) -> list[Command]:
        """All have committed."""
        for node, indices in group.wanted.items():
            for index in indices:
                group.nodes[index], group.since[index] = node, group.attempt
        group.phase, group.wanted = None, {}
        if group.lacking:  # a node has died meanwhile
            self._requeue(group)
            return [("save", group), *self.retry()]
        group.state, group.text, group.infeasible = CREATED, "", False
        return [("save", group), *self._publish(group)]

    def _unable(self, group: Group, node: bytes, text: str) -> list[Command]:
        """The attempt under way has failed at this node."""
        group.unanswered.discard(node)
        if group.phase == COMMIT and group.visible:
            # What the others have committed may be in use already, and is not taken back.
            del group.wanted[node]
            if node in self._nodes:
                self._nodes[node].forget((group.group_id, group.attempt))
            return [] if group.unanswered else self._done(group)
        others = [other for other in group.wanted if other != node]
        self._forget_asked(group)
        group.phase, group.wanted, group.unanswered = None, {}, set()
        group.text = text
        self._requeue(group)
        return [("return", other, group.group_id, group.attempt, "it was given up") for other in others]

    def _forget_asked(self, group: Group) -> None:
        for node_id in group.wanted:
            if node_id in self._nodes:
                self._nodes[node_id].forget((group.group_id, group.attempt))

    # ---- telling -------------------------------------------------------------------------------------

    @staticmethod
    def _publish(group: Group) -> list[Command]:
        return [("publish", watcher, group) for watcher in group.watchers]

    def demand(self) -> list[dict[str, Any]]:
        """The groups that wait for a place, for whoever adds nodes."""
        return [
            {"group": group_id, "strategy": group.strategy, "bundles": list(group.lacking.values())}
            for group_id, group in ((group_id, self.groups[group_id]) for group_id in self._queue)
        ]


def _shown(units: Mapping[str, int]) -> dict[str, int]:
    return {name: amount for name, amount in units.items() if name != "object_store_memory"}
