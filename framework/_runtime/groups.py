"""Placement groups, the owner's side: what this process knows of them, and its tasks that wait for them.

Loaded when the first one is made, found or named. The head tells of every change of those that are known here
(GROUP_STATE). Tasks in a group stay here until it is there; when it is removed they fail.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base import resources as res
from framework._net.connection import Connection, Frame
from framework._runtime.context import TaskContext
from framework._state.leases import KeyState
from framework._state.objects import Entry
from framework._state.tasks import QUEUED, WAITING, TaskRecord
from framework._wire import messages as m
from framework.exceptions import PlacementGroupRemovedError, TaskUnschedulableError

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime

log = logging.getLogger("framework")

PENDING = "PENDING"
CREATED = "CREATED"
RESCHEDULING = "RESCHEDULING"
REMOVED = "REMOVED"

_LOOK_AGAIN = 0.1  #: seconds, at a task whose arguments, or whose group, are not known yet


class GroupView:
    """What is known of one group."""

    __slots__ = ("bundles", "error", "group_id", "keys", "mine", "ready", "state", "text", "warned")

    def __init__(self, group_id: bytes) -> None:
        self.group_id = group_id
        self.state = PENDING
        self.text = ""
        self.bundles: list[dict[str, int]] = []
        self.keys: dict[int, KeyState] = {}  #: of tasks that wait for it
        self.ready: list[tuple[Entry, Any]] = []  #: to be completed with these values when it is there
        self.error: BaseException | None = None  #: why it never will be
        self.mine = False  #: made in this process
        self.warned = ""

    @property
    def visible(self) -> bool:
        """Whether tasks may be sent to it."""
        return self.state in (CREATED, RESCHEDULING)

    @property
    def settled(self) -> bool:
        """Whether all of it is there, or never will be."""
        return self.state in (CREATED, REMOVED)


class Groups:
    """Of one process. Methods are for the loop, unless they say otherwise."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._views: dict[bytes, GroupView] = {}
        self._removed: deque[bytes] = deque()  #: what is remembered of those that are gone, oldest first
        self._ended: dict[bytes, None] = {}  #: that this process wanted to be removed, oldest first
        runtime.head_link.handlers[m.GROUP_STATE] = self._told

    # ---- groups --------------------------------------------------------------------------------------

    def create(self, group_id: bytes, spec: dict[str, Any]) -> None:
        """Any thread: make one."""
        self._runtime.post(self._register, self._known(group_id, spec), spec)

    async def create_named(self, group_id: bytes, spec: dict[str, Any]) -> None:
        """Make one, and wait until its name is known to be free; else `ValueError`."""
        await self._register(self._known(group_id, spec), spec)

    def _known(self, group_id: bytes, spec: dict[str, Any]) -> GroupView:
        """Any thread: it is known from now on. (Tasks that are put into it may be taken in before what was
        posted.)"""
        view = GroupView(group_id)
        view.bundles = spec["bundles"]
        view.mine = True
        self._views[group_id] = view
        return view

    def _register(self, view: GroupView, spec: dict[str, Any]) -> Any:
        """Have the head make it; a future of its answer."""
        future = self._runtime.head_link.request(m.GROUP_CREATE, view.group_id, spec)
        future.add_done_callback(lambda answer: self._created(view, answer))
        return future

    def _created(self, view: GroupView, answer: Any) -> None:
        error = None if answer.cancelled() else answer.exception()
        if error is not None and view.state != REMOVED:
            self._end(view, error)

    def remove(self, group_id: bytes) -> Any:
        """End one; a future of the head's answer."""
        self._ended[group_id] = None
        if len(self._ended) > limits.GROUPS_REMOVED_KEPT:
            del self._ended[next(iter(self._ended))]
        future = self._runtime.head_link.request(m.GROUP_REMOVE, group_id)
        future.add_done_callback(lambda answer: self._removed_here(group_id, answer))
        return future

    def _removed_here(self, group_id: bytes, answer: Any) -> None:
        """The head has done it: known from here on, even if the news of it is still on its way (a head that
        has just come back does not know yet who wants to hear it)."""
        view = self._views.get(group_id)
        if view is not None and view.state != REMOVED and not answer.cancelled() and not answer.exception():
            self._end(view, self._removal(view, {}, "it was removed by remove_placement_group()"))

    @staticmethod
    def _removal(view: GroupView, detail: dict[str, Any], why: str) -> PlacementGroupRemovedError:
        name = f" ({detail['name']!r})" if detail.get("name") else ""
        group = f"the placement group {view.group_id.hex()}{name}"
        return PlacementGroupRemovedError(f"{group} was removed: {why}")

    async def remove_and_wait(self, group_id: bytes) -> None:
        """End one, and wait until the head has."""
        await self.remove(group_id)

    def ready(self, group_id: bytes, entry: Entry, value: Any) -> None:
        """Complete an object with this wire value when all of the group is there; with an error when it is
        removed."""
        view = self._view(group_id)
        view.ready.append((entry, value))
        if view.settled:
            self._settle(view)
        elif self._runtime.dead is not None:
            self._end(view, self._runtime.dead)

    def lost(self, error: BaseException) -> None:
        """The node of this process has ended, or the head is given up: no news will come."""
        for view in list(self._views.values()):
            if not view.settled:
                self._end(view, error)

    def _view(self, group_id: bytes) -> GroupView:
        view = self._views.get(group_id)
        if view is None:
            view = self._views[group_id] = GroupView(group_id)
            head = self._runtime.connect_head()
            if head is None:
                self._end(view, self._runtime.dead or ConnectionError("the head cannot be reached"))
            else:
                head.cast(m.GROUP_WATCH, group_id)
        return view

    def head_returned(self, head: Connection) -> None:
        """The head was away: it may have forgotten who wants to hear what, and, if its disk was full or its
        machine went down, what it was told last."""
        for group_id in self._ended:
            head.call(m.GROUP_REMOVE, group_id)
        for view in list(self._views.values()):  # (`create` may add one, in any thread)
            if view.state != REMOVED:
                head.cast(m.GROUP_WATCH, view.group_id)

    def _told(self, head: Connection, frame: Frame) -> None:
        _, group_id, state, detail = frame
        view = self._views.get(group_id)
        if view is None or view.state == REMOVED:
            return
        view.bundles = detail.get("bundles") or view.bundles
        view.text = detail["text"]
        if state == REMOVED:
            self._end(view, self._removal(view, detail, view.text))
            return
        view.state = state
        if view.mine and detail.get("infeasible") and view.text != view.warned:
            view.warned = view.text
            log.warning("the placement group %s has to wait: %s", group_id.hex(), view.text)
        if view.visible:
            keys, view.keys = view.keys, {}
            for key in keys.values():
                if self.is_open(key):
                    self._runtime.leasing.dirty[key] = None
            self._runtime.flush_soon()
        if view.settled:
            self._settle(view)

    def _end(self, view: GroupView, error: BaseException) -> None:
        view.state, view.error = REMOVED, error
        self._removed.append(view.group_id)
        if len(self._removed) > limits.GROUPS_REMOVED_KEPT:
            self._views.pop(self._removed.popleft(), None)  # (the head is asked again, should it matter)
        view.keys.clear()
        for key in list(self._runtime.catalogue.keys_by_id.values()):
            if key.strategy and key.strategy[:2] == ["group", view.group_id]:
                self._runtime.leasing.give_up(key, str(error), gone=True)
        self._settle(view)

    def _settle(self, view: GroupView) -> None:
        waiting, view.ready = view.ready, []
        for entry, value in waiting:
            if view.error is not None:
                self._runtime.objects.fail(entry, view.error)
            else:
                self._runtime.objects.complete(entry, value)
        if waiting:
            self._runtime.flush_soon()

    # ---- tasks ---------------------------------------------------------------------------------------

    def is_open(self, key: KeyState) -> bool:
        """Whether leases may be asked for now, for tasks in a group; if not, they are later (or the tasks
        fail)."""
        assert key.strategy is not None
        view = self._view(key.strategy[1])
        if view.state == REMOVED:
            self._runtime.leasing.give_up(key, str(view.error), gone=True)
            return False
        if not view.visible:
            view.keys[key.key_id] = key
            return False
        index = key.strategy[2]
        units = res.out_of_group(key.resources)
        bundles = view.bundles if index < 0 else view.bundles[index : index + 1]
        if any(res.fits(units, bundle) for bundle in bundles):
            return True
        have = ", ".join(res.format_resources(bundle) for bundle in bundles[:8])
        self._runtime.leasing.give_up(
            key,
            f"it needs {res.format_resources(units)}, which fits into "
            f"{'no bundle' if index < 0 else 'no such bundle'} of its placement group {view.group_id.hex()} "
            f"({have or 'it has no such bundle'}). A task that must not run in the group of its parent says "
            'so with scheduling_strategy="DEFAULT"',
            gone=False,
        )
        return False

    def why_not_there(self, group_id: bytes) -> str | None:
        """Why nothing can be in that group now, as far as is known; None when it can."""
        view = self._view(group_id)
        if view.visible:
            return None
        return f"the placement group is not placed yet ({view.text or 'nothing is known of it so far'})"

    def progress(self, group_id: bytes) -> str:
        """What the head says about its bundles that have no place, in brackets; nothing when all have."""
        view = self._view(group_id)
        return f" ({view.state}: {view.text})" if view.state != CREATED and view.text else ""

    def parent_waits(self, entries: Iterable[Entry], context: TaskContext | None, host: Any) -> None:
        """Code in a group waits for these objects. A task among them that needs what its waiting parent holds
        in the group would wait for ever: it fails. (CPUs are lent by whoever waits.)"""
        strategy = context.strategy if context is not None else None
        held = context.resources if context is not None else None
        if strategy is None and host is not None:
            strategy, held = host.strategy, host.resources
        if not strategy or strategy[0] != "group" or not held:
            return
        own = {name: amount for name, amount in res.out_of_group(held).items() if name != res.CPU}
        if not own:
            return
        view = self._view(strategy[1])
        again = []
        for entry in entries:
            task = entry.task
            if not isinstance(task, TaskRecord) or task.actor is not None or entry.state:
                continue
            if task.state == WAITING or not view.bundles:
                again.append(entry)
            elif task.state == QUEUED:
                self._judge(view, task, own, strategy[2])
        if again:
            self._runtime.loop.call_later(_LOOK_AGAIN, self.parent_waits, again, context, host)

    def _judge(self, view: GroupView, task: TaskRecord, own: dict[str, int], place: int) -> None:
        key: KeyState = task.key or task.template.key
        if not key.strategy or key.strategy[:2] != ["group", view.group_id]:
            return
        units, index = res.out_of_group(key.resources), key.strategy[2]
        known = place if place >= 0 else 0 if len(view.bundles) == 1 else -1  # the parent's bundle
        for number, bundle in enumerate(view.bundles):
            have = dict(bundle)
            if number == known:
                res.subtract(have, own)
            if index in (-1, number) and res.fits(units, have):
                return
        text = (
            f"{task.template.name}() would wait for ever: it needs {res.format_resources(units)} of the "
            f"placement group {view.group_id.hex()}, where the task or actor that waits for it holds "
            f"{res.format_resources(own)} as long as it waits. Make the group larger, or start it outside "
            'with scheduling_strategy="DEFAULT"'
        )
        self._runtime.submitter.fail(task, TaskUnschedulableError(text))
        self._runtime.leasing.dirty[key] = None
        self._runtime.flush_soon()
