"""What an actor class may define for the moments of its life, and when it is called.

========================== =============================================================================
hook                       called
========================== =============================================================================
``__framework_shutdown__`` once, before an orderly end of the process (also under Ray's name,
                           ``__ray_shutdown__``), with `limits.SHUTDOWN_HOOK_GRACE` seconds to return
``__framework_save__``     after every `save_every`-th call that succeeded, before its caller hears of it;
                           and by ``get_runtime_context().save_actor_state()``
``__framework_restore__``  after the constructor, in a restart, with what was saved last
========================== =============================================================================

In async actors they may be coroutine functions.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.hooks import RESTORE_HOOK, SAVE_HOOK, SHUTDOWN_HOOKS
from framework._serial import values
from framework._serial.private import decode_private
from framework._wire import messages as m
from framework._worker import stdio

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class Hooks:
    """The hooks of the actor in this process."""

    def __init__(self, runtime: Runtime, actor_id: bytes, incarnation: int, class_name: str) -> None:
        self._runtime = runtime
        self._actor_id = actor_id
        self._incarnation = incarnation
        self._class_name = class_name
        self._instance: Any = None
        self.every = 0  #: after so many calls the state is saved (0: it is not)
        self._calls = 0
        self._ending = False
        self._lock = threading.Lock()
        self._save_lock = threading.Lock()
        self._async_save_lock: asyncio.Lock | None = None

    def attach(self, instance: Any, save_every: int) -> None:
        """The actor is made."""
        self._instance = instance
        self.every = save_every

    def _find(self, *names: str) -> Any:
        for name in names:
            hook = getattr(self._instance, name, None)
            if callable(hook):
                return hook
        return None

    # ---- state that survives a restart ---------------------------------------------------------------

    def restore(self, saved: list[Any]) -> Any:
        """Hand a saved state to the actor; what its hook returns may have to be awaited."""
        hook = self._find(RESTORE_HOOK)
        if hook is None:
            raise TypeError(
                f"the actor class {self._class_name} has saved a state but has no {RESTORE_HOOK}()"
            )
        wire = saved[0]
        if values.is_stored(wire):
            return hook(self._runtime.store.read(wire, private=True))
        return hook(decode_private(wire))

    def _due(self) -> bool:
        """A call has succeeded: whether the state is to be saved now."""
        if not self.every:
            return False
        with self._lock:
            self._calls += 1
            return self._calls % self.every == 0

    def after_call(self) -> None:
        """Executing thread of a sync or threaded actor."""
        if self.every and self._due():
            self.save()

    async def after_call_async(self) -> None:
        """The loop of an async actor."""
        if self.every and self._due():
            await self.save_async()

    def save(self) -> None:
        """Any thread but the actor's loop: save now. Returns when the head has it."""
        with self._save_lock:
            state = self._saver()()
            if inspect.isawaitable(state):
                close = getattr(state, "close", None)
                if close is not None:
                    close()
                raise TypeError(
                    f"{self._class_name}.{SAVE_HOOK}() is a coroutine function: "
                    "await get_runtime_context().save_actor_state_async()"
                )
            wire, stored = self._pack(state)
            if stored is not None:
                self._runtime.store.replicate(wire, 1)  # this node may be what ends
            self._runtime.head_call(m.ACTOR_SAVE, self._actor_id, self._incarnation, wire, stored)

    async def save_async(self) -> None:
        """The actor's loop: save now. Saves do not overtake each other."""
        if self._async_save_lock is None:
            self._async_save_lock = asyncio.Lock()
        async with self._async_save_lock:
            state = self._saver()()
            if inspect.isawaitable(state):
                state = await state
            wire, stored = self._pack(state)
            if stored is not None:
                await self._runtime.store.replicate_async(wire, 1)
            await self._runtime.head_call_async(m.ACTOR_SAVE, self._actor_id, self._incarnation, wire, stored)

    def _saver(self) -> Any:
        hook = self._find(SAVE_HOOK)
        if hook is None:
            raise TypeError(
                f"the actor class {self._class_name} has no {SAVE_HOOK}(): there is nothing to save"
            )
        return hook

    def _pack(self, state: Any) -> tuple[Any, bytes | None]:
        """Wire form, and the object id of a state that is large: the store keeps that one for the head."""
        where = f"what {self._class_name}.{SAVE_HOOK}() returned"
        encoded = values.encode(state, where=where, name="state")
        if encoded.refs:
            raise TypeError(
                f"{where} holds {len(encoded.refs)} reference(s), which would end with this process: "
                "save their values, or the names of actors"
            )
        if encoded.size <= limits.INLINE_LIMIT:
            return encoded.own().wire, None
        runtime = self._runtime
        object_id = runtime.new_object_id()
        return runtime.store.put(object_id, encoded, runtime.config.node_id, ""), object_id

    # ---- the end -------------------------------------------------------------------------------------

    def claim_end(self) -> bool:
        """True for the first who wants to end this process, who then does it."""
        with self._lock:
            first, self._ending = not self._ending, True
        return first

    def shut_down(self) -> None:
        """Sync and threaded actors: the last thing that their code does."""
        hook = self._find(*SHUTDOWN_HOOKS)
        if hook is not None:
            self._watch_the_time()
            try:
                hook()
            except BaseException:
                self._report()

    async def shut_down_async(self) -> None:
        """As `shut_down`, for async actors."""
        hook = self._find(*SHUTDOWN_HOOKS)
        if hook is not None:
            self._watch_the_time()
            try:
                result = hook()
                if inspect.isawaitable(result):
                    await result
            except BaseException:
                self._report()

    def _watch_the_time(self) -> None:
        loop = self._runtime.loop
        self._runtime.post(loop.call_later, limits.SHUTDOWN_HOOK_GRACE, self._overdue)

    def _overdue(self) -> None:
        print(
            f"the shutdown hook of the actor {self._class_name} did not return within "
            f"{limits.SHUTDOWN_HOOK_GRACE:g} s: its process ends now",
            file=sys.stderr,
        )
        stdio.flush()
        os._exit(1)

    def _report(self) -> None:
        print(f"the shutdown hook of the actor {self._class_name} failed:", file=sys.stderr)
        traceback.print_exc()
