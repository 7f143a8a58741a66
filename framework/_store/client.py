"""A process's access to the store of its node: write a value into a block, read one as views, keep and drop
pins.

Writing: small objects go into a region that the client has leased, without asking the node each time; large
ones ask for a block. Reading: the first view of an object asks for a pin; the client then keeps the view for
a while (`_kept`), so that reading again costs nothing, until the object is freed, too many are kept, or the
node is short of memory (`recall`).

A view is an object over the block, from which everything that the user sees is made. When the last of it is
collected, a weak reference says so, wherever that happens: it may only append to a deque; `drain` then tells
the node. It names the block by its object and its place: an object that was made again may have had another
place before, of which a view still exists.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from framework._base import limits
from framework._state.allocator import aligned
from framework._store import layout
from framework._store.arena import Arena, views_of
from framework._store.copying import Copying, usable_cpus
from framework._wire import messages as m

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

View = memoryview
"""The memory of a block. Nothing is made of it directly, but of `views_of` it: then it ends when the last of
all that is made of it ends."""


class NodeLink(Protocol):
    """What the client needs of its process: messages to the node."""

    def node_call(self, opcode: int, *fields: object) -> Any:
        """Any thread but the loop's: a call to the node; blocks for its answer."""

    def node_cast(self, opcode: int, *fields: object) -> None:
        """Any thread: a message to the node."""

    def open_arena(self) -> Arena:
        """Map the node's arena; blocks shortly."""


class _Region:
    """The rest of a leased region: objects are placed from `offset` on."""

    __slots__ = ("offset", "room")

    def __init__(self) -> None:
        self.offset = -1
        self.room = 0


class _Unsealed:
    """An array that the user fills in place (`empty`)."""

    __slots__ = ("base", "memory", "object_id", "offset", "size")

    def __init__(
        self, object_id: bytes, offset: int, size: int, base: weakref.ref[Any], memory: weakref.ref[View]
    ) -> None:
        self.object_id = object_id
        self.offset = offset
        self.size = size
        self.base = base  #: the array that all of the user's arrays are views of
        self.memory = memory  #: what that array got its buffer from


class StoreClient:
    """The store as one process sees it. Methods may be called from any thread but the runtime's loop, unless
    they say otherwise.
    """

    def __init__(self, link: NodeLink) -> None:
        self._link = link
        self._arena: Arena | None = None
        self._lock = threading.Lock()
        self._region = _Region()
        self._kept: OrderedDict[bytes, View] = OrderedDict()
        self._views: dict[bytes, weakref.ref[View]] = {}
        self._refs: dict[int, weakref.ref[Any]] = {}  #: alive, or their ends would not be noticed
        self._ended: deque[tuple[bytes, int, weakref.ref[Any]]] = deque()
        self._unsealed: dict[int, _Unsealed] = {}
        self._abandoned: deque[int] = deque()
        self.cpus = limits.STORE_COPY_THREADS  #: for the copying of large objects, at most
        self._pressed_until = 0.0  #: until then no view is kept longer than it is used
        #: the node wants these back as soon as nobody uses them; some have not arrived here yet
        self._recalled: dict[bytes, None] = {}

    def _opened(self) -> Arena:
        arena = self._arena
        if arena is None:
            arena = self._link.open_arena()
            with self._lock:
                if self._arena is None:
                    self._arena = arena
                arena = self._arena
        return arena

    def close(self) -> None:
        """The session is over: the arena is unmapped with the last view of it, however long this object
        lives (functions keep what they were prepared for)."""
        self._kept.clear()
        self._arena = None

    # ---- writing -------------------------------------------------------------------------------------

    def write(self, object_id: bytes, wire: Any, owner: bytes, mine: bool = False) -> int:
        """Store an encoded value (wire form 0, or a bare pickle) under this id, for the process `owner`; the
        size of its block. `mine`: that is this process, which keeps a view, as of what it has read.

        Raises `ObjectStoreFullError` and `OutOfDiskError`.
        """
        pickled, buffers = (wire, []) if isinstance(wire, bytes) else (wire[1], wire[3:])
        views = [memoryview(b).cast("B") if memoryview(b).nbytes else memoryview(b"") for b in buffers]
        header, pickle_offset, places, size = layout.plan(len(pickled), [v.nbytes for v in views])
        arena = self._opened()
        small = aligned(size) <= limits.STORE_REGION_OBJECT
        if small:
            with self._lock:
                offset = self._place(size)
                if offset >= 0:
                    arena.prepare(offset, size)
                    self._fill(arena, offset, size, header, pickle_offset, pickled, places, views)
                    self._link.node_cast(m.STORE_ADOPT, object_id, offset, size, owner)
            if time.monotonic() < self._pressed_until:
                # `recall` may have come while the lock was taken: then nobody has returned the region yet.
                with self._lock:
                    self._return_region()
            if offset >= 0:
                return size
        offset = self._link.node_call(m.STORE_CREATE, object_id, size, owner)
        copies = [(offset + place, view) for (place, _), view in zip(places, views, strict=True)]
        copying = None
        try:
            copying = Copying(arena, copies, min(self.cpus, usable_cpus()))
            arena.prepare(offset, pickle_offset + len(pickled))
            layout.write_head(arena.memory(offset, size), header, pickle_offset, pickled)
            copying.run()
        except BaseException:
            abort = partial(self._link.node_cast, m.STORE_ABORT, object_id, offset)
            abort() if copying is None else copying.abandon(abort)
            raise
        keep = mine and not small and time.monotonic() >= self._pressed_until
        self._link.node_cast(m.STORE_SEAL, object_id, offset, b"", keep)
        if keep:
            self.arrived(object_id, offset, size)
        return size

    def _place(self, size: int) -> int:
        """With the lock: room for a small object in the region; -1 when none can be had without waiting."""
        region, needed = self._region, aligned(size)
        if region.room < needed:
            self._return_region()
            found = self._link.node_call(m.STORE_LEASE, limits.STORE_REGION)
            if found is None:
                return -1
            region.offset, region.room = found
            if region.room < needed:
                return -1  # a small store leases small regions
        offset = region.offset
        region.offset += needed
        region.room -= needed
        if region.room == 0:
            region.offset = -1
        return offset

    def _return_region(self) -> None:
        """With the lock: give the rest of the region back."""
        region = self._region
        if region.offset >= 0:
            self._link.node_cast(m.STORE_RETURN, region.offset)
            region.offset, region.room = -1, 0

    @staticmethod
    def _fill(
        arena: Arena,
        offset: int,
        size: int,
        header: bytes,
        pickle_offset: int,
        pickled: Any,
        places: list[tuple[int, int]],
        views: list[memoryview],
    ) -> None:
        layout.write_head(arena.memory(offset, size), header, pickle_offset, pickled)
        for (place, _), view in zip(places, views, strict=True):
            arena.copy_in(offset + place, view)

    def has_room(self, size: int) -> bool:
        """Whether an object of this size can be placed without waiting for the node."""
        return self._arena is not None and self._region.room >= aligned(size + layout.HEADER_ROOM)

    # ---- reading -------------------------------------------------------------------------------------

    def read(self, object_id: bytes, node: bytes = b"", size: int = 0) -> list[Any]:
        """Wire form 0 of a stored value, as views that pin it; it is copied to this node first if it must be
        (`node`: where the primary copy is; `size` of it). Raises `ObjectLostError` when it cannot be had.
        """
        view = self._kept.get(object_id)
        if view is None:
            view = self._pinned(object_id, node, size)
        return self.parts(view)

    def _pinned(self, object_id: bytes, node: bytes, size: int) -> View:
        known = self._views.get(object_id)
        view = known() if known is not None else None
        if view is None:
            arena = self._opened()
            offset, size = self._link.node_call(m.STORE_PIN, object_id, node, size)
            view = arena.base(offset, size)
            self._views[object_id] = self._watch(object_id, offset, view)
        self._keep(object_id, view)
        return view

    def at_hand(self, object_id: bytes) -> bool:
        """Whether `read` would find a view here, without asking the node."""
        return object_id in self._kept

    def arrived(self, object_id: bytes, offset: int, size: int) -> View:
        """A pin that was asked for asynchronously has been given (loop): the view. `read` finds it for as
        long as the caller holds it."""
        view = self._opened().base(offset, size)
        self._views[object_id] = self._watch(object_id, offset, view)
        self._keep(object_id, view)
        return view

    @staticmethod
    def parts(view: View) -> list[Any]:
        """Wire form 0 of a stored value, as views that pin it."""
        return layout.parts(views_of(view))

    def held(self, object_id: bytes) -> View | None:
        """The view of this object that is alive in this process, if there is one."""
        view = self._kept.get(object_id)
        if view is None:
            known = self._views.get(object_id)
            view = known() if known is not None else None
        return view

    def arrived_many(self, object_ids: list[bytes], places: list[int]) -> dict[bytes, View]:
        """The answer to STORE_PIN_MANY has come (loop): the views. `read` finds them for as long as the
        caller holds them."""
        arena = self._opened()
        views = {}
        for object_id, offset, size in zip(object_ids, places[::2], places[1::2], strict=True):
            if offset >= 0:
                view = views[object_id] = arena.base(offset, size)
                self._views[object_id] = self._watch(object_id, offset, view)
        return views

    def _keep(self, object_id: bytes, view: View) -> None:
        """Keep a view beyond its use. Without the lock: whoever holds that may be waiting for the loop, which
        comes here.
        """
        if time.monotonic() < self._pressed_until:
            return
        self._kept[object_id] = view
        if object_id in self._recalled:  # (looked at last: it may be recalled just now)
            self._kept.pop(object_id, None)
        if len(self._kept) > limits.STORE_KEPT_VIEWS:
            with contextlib.suppress(KeyError):
                self._kept.popitem(last=False)

    def _watch(self, object_id: bytes, offset: int, view: Any) -> weakref.ref[Any]:
        """Notice the end of a view of the block at `offset`, and so of a pin."""
        ended, refs = self._ended, self._refs

        def end(ref: weakref.ref[Any]) -> None:
            ended.append((object_id, offset, ref))

        ref = weakref.ref(view, end)
        refs[id(ref)] = ref
        return ref

    def forget(self, object_id: bytes) -> None:
        """The object is not referenced here any more: its views live as long as somebody uses them."""
        self._kept.pop(object_id, None)

    def free(self, object_ids: list[bytes], node: bytes | None = None) -> None:
        """The owner does not need these any more. `node`: another one, where the primary copies are; b"": on
        whatever nodes."""
        for object_id in object_ids:
            self._kept.pop(object_id, None)
        self.drain()
        if node is None:
            self._link.node_cast(m.STORE_FREE, object_ids)
        else:
            self._link.node_cast(m.STORE_FREE_AT, node, object_ids)

    def drain(self) -> None:
        """Tell the node of views that have ended since last time."""
        ended = self._ended
        gone, offsets = [], []
        while ended:
            object_id, offset, ref = ended.popleft()
            self._refs.pop(id(ref), None)
            if self._views.get(object_id) is ref:
                del self._views[object_id]
                self._recalled.pop(object_id, None)
            gone.append(object_id)
            offsets.append(offset)
        if gone:
            self._link.node_cast(m.STORE_UNPIN, gone, offsets)
        while self._abandoned:
            unsealed = self._unsealed.pop(self._abandoned.popleft(), None)
            if unsealed is not None:
                self._link.node_cast(m.STORE_ABORT, unsealed.object_id, unsealed.offset)

    @property
    def waiting(self) -> bool:
        """Whether `drain` has something to do."""
        return bool(self._ended or self._abandoned)

    def recall(self, object_ids: list[bytes]) -> None:
        """The node wants views back that nobody uses (loop): those of objects that were freed, or, when it is
        short of memory and names none, all, and the region."""
        if object_ids:
            for object_id in object_ids:
                self._recalled[object_id] = None
                self._kept.pop(object_id, None)
            self.drain()
            while len(self._recalled) > limits.STORE_RECALLED:
                self._recalled.pop(next(iter(self._recalled)))
            return
        # A view that is just arriving is not in `_kept` yet: it must not get there.
        self._pressed_until = time.monotonic() + limits.STORE_PRESSURE
        if self._lock.acquire(False):
            try:
                self._kept.clear()
                self._return_region()
            finally:
                self._lock.release()
        else:
            self._kept.clear()
        self.drain()

    @property
    def has_unsealed(self) -> bool:
        """Whether there are arrays that `reserve` gave and nobody has put yet."""
        return bool(self._unsealed)

    # ---- arrays in place -----------------------------------------------------------------------------

    def reserve(self, object_id: bytes, nbytes: int, owner: bytes) -> NDArray[np.uint8]:
        """A writable block for the data of an array that the user will fill and put."""
        import numpy as np

        arena = self._opened()
        size = layout.HEADER_ROOM + nbytes
        offset = self._link.node_call(m.STORE_CREATE, object_id, size, owner)
        arena.prepare(offset, size)
        memory = arena.base(offset + layout.HEADER_ROOM, nbytes, writable=True)
        base = np.frombuffer(views_of(memory), dtype=np.uint8)
        address = int(base.__array_interface__["data"][0])
        abandoned = self._abandoned
        ref = weakref.ref(base, lambda _: abandoned.append(address))
        self._unsealed[address] = _Unsealed(object_id, offset, size, ref, weakref.ref(memory))
        return base

    def in_place(
        self, array: Any, owner: bytes, describe: Callable[[Any], bytes], mine: bool = False
    ) -> tuple[bytes, int] | None:
        """If `array` is exactly one that `reserve` gave, and no other array can write to it, seal it: (object
        id, size of its block). Else None: then it is copied, as any array.

        `owner`: the process that owns the object from now on. `describe(array)` returns the pickle that
        describes the array around its data. `mine`: see `write`.
        """
        import numpy as np

        if not self._unsealed or type(array) is not np.ndarray:
            return None
        address = int(array.__array_interface__["data"][0])
        unsealed = self._unsealed.get(address)
        if unsealed is None or array.nbytes != unsealed.size - layout.HEADER_ROOM:
            return None
        base: Any = unsealed.base()
        buffer: Any = base.base if base is not None else None
        # One reference is `base` here, one the argument of getrefcount, one `array.base`. Any more: another
        # view may write.
        if base is None or id(array.base) != id(base) or sys.getrefcount(base) > 3:
            return None
        if not array.flags.c_contiguous:
            return None
        pickled = describe(array)
        try:
            header, pickle_offset, _, size = layout.plan_in_place(len(pickled), array.nbytes)
        except ValueError:
            return None
        # Without the buffer behind it, numpy refuses to make any of its arrays writable again.
        buffer.release()
        if unsealed.memory() is not None:
            return None  # somebody has taken a slice of that buffer
        del self._unsealed[address]
        array.flags.writeable = False
        base.flags.writeable = False
        layout.write_head(self._opened().memory(unsealed.offset, size), header, pickle_offset, pickled)
        # The array that the user still holds keeps the writer's pin until it is gone, by a view.
        view = self._opened().base(unsealed.offset, size)
        self._views[unsealed.object_id] = self._watch(unsealed.object_id, unsealed.offset, view)
        refs = self._refs
        holds = weakref.ref(base, lambda ref, view=view: refs.pop(id(ref), None))  # type: ignore[misc]
        refs[id(holds)] = holds
        self._link.node_cast(m.STORE_SEAL, unsealed.object_id, unsealed.offset, owner, True)
        if mine:
            self._keep(unsealed.object_id, view)
        return unsealed.object_id, size
