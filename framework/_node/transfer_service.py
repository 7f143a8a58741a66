"""The side of transfers that receives: carries out what `Pulls` decides. Each object comes once to a node, is
received straight into the store, by threads, and is sealed there."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._net.tcp import open_authenticated
from framework._node import transfer_io as io
from framework._node.neighbours import Neighbours
from framework._node.store_service import StoreService
from framework._service.supervise import TaskGroupOfService
from framework._state.transfers import Command, Pulls
from framework._wire import messages as m
from framework.exceptions import FrameworkError

log = logging.getLogger("framework.store")


class _Place:
    """Where an object is received, and how far."""

    __slots__ = ("offset", "progress", "size")

    def __init__(self, offset: int, size: int, progress: io.Progress) -> None:
        self.offset = offset
        self.size = size
        self.progress = progress


class _Port:
    """What asks the store for room; to the store it looks like a connection."""

    closed = False

    def __init__(
        self, placed: Callable[[bytes, int], None], refused: Callable[[bytes, BaseException], None]
    ) -> None:
        self._placed = placed
        self._refused = refused
        self._asked: dict[int, bytes] = {}
        self._number = 0

    def ask(self, object_id: bytes) -> tuple[_Port, int]:
        """The token of a request for this object."""
        self._number += 1
        self._asked[self._number] = object_id
        return self, self._number

    def reply(self, rid: int, value: Any) -> None:
        object_id = self._asked.pop(rid, None)
        if object_id is not None:
            self._placed(object_id, value)

    def fail(self, rid: int, error: BaseException) -> None:
        object_id = self._asked.pop(rid, None)
        if object_id is not None:
            self._refused(object_id, error)

    def cast(self, *frame: object) -> None:
        """It keeps nothing that it could let go of."""


class TransferService:
    """Lives on the node's loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        facts: ClusterFacts,
        store: StoreService,
        neighbours: Neighbours,
        *,
        owner: Callable[[bytes], Any],
        done: Callable[[bytes, list[Any]], None],
        failed: Callable[[bytes, list[Any], BaseException], None],
    ) -> None:
        """`owner(name)` is the owner with the name that other nodes know it by; `done(object id, waiters)`
        and `failed(object id, waiters, error)` hear what became of pulls."""
        self._loop = loop
        self._facts = facts
        self._store = store
        self._neighbours = neighbours
        self._owner = owner
        self._done = done
        self._failed = failed
        self.state = Pulls(facts.node_id)
        self._port = _Port(self._placed, self._unplaced)
        self._places: dict[bytes, _Place] = {}
        self._tasks = TaskGroupOfService(loop, "transfers")
        self._threads = ThreadPoolExecutor(limits.PULLS_AT_ONCE, thread_name_prefix="receive")
        self._fetching: dict[tuple[bytes, int], io.Channel | asyncio.Task[None]] = {}
        self._spare: dict[bytes, list[io.Channel]] = {}  #: connections that nothing is asked of, by node
        self._sweeper: asyncio.TimerHandle | None = None
        self._rests: asyncio.TimerHandle | None = None
        self._closed = False
        self.roots: dict[bytes, bytes] = {}  #: whom to tell when a copy goes: by object
        self.bytes_received = 0
        self.objects_received = 0

    def close(self) -> None:
        """End everything; threads leave off by themselves."""
        self._closed = True
        self._tasks.cancel()
        for under_way in self._fetching.values():
            if isinstance(under_way, io.Channel):
                under_way.stop = True
        for channels in self._spare.values():
            for channel in channels:
                channel.close()
        self._spare.clear()
        for timer in (self._sweeper, self._rests):
            if timer is not None:
                timer.cancel()
        for place in self._places.values():
            place.progress.fail()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def coming(self, object_id: bytes) -> io.Progress | None:
        """How far an object is that is being received."""
        place = self._places.get(object_id)
        return place.progress if place is not None else None

    def node_gone(self, node: bytes) -> None:
        """A node is dead."""
        for channel in self._spare.pop(node, ()):
            channel.close()
        self.run(self.state.node_gone(node))

    # ---- commands ------------------------------------------------------------------------------------

    def run(self, commands: list[Command]) -> None:
        """Do what the state says."""
        if self._closed:
            return
        for command in commands:
            word = command[0]
            if word == "place":
                self._loop.call_soon(self._place, *command[1:])  # what comes of it may be the next one
            elif word == "fetch":
                self._fetch(*command[1:])
            elif word == "stop":
                self._stop(*command[1:])
            elif word == "search":
                self._tasks.start(self._search(*command[1:]), "looking for an object")
            elif word == "later":
                _, object_id, attempt, seconds = command
                self._loop.call_later(seconds, self._again, object_id, attempt)
            elif word == "unplace":
                self._unplace(command[1])
            elif word == "seal":
                self._seal(command[1])
            elif word == "tell":
                self._tell(*command[1:])
            elif word == "done":
                self._done(command[1], command[2])
            elif word == "failed":
                _, object_id, waiters, kind, text = command
                self._store.run(self._store.state.refuse_parked(object_id, kind, text))
                self._failed(object_id, waiters, self._store.error_of(kind, text))

    def _again(self, object_id: bytes, attempt: int) -> None:
        self.run(self.state.again(object_id, attempt))

    # ---- room ----------------------------------------------------------------------------------------

    def _place(self, object_id: bytes, size: int, patient: bool) -> None:
        if self._closed:
            return
        self._store.warmer.hold()
        token = self._port.ask(object_id)
        self._rest()
        commands = self._store.state.create(
            token, self._port, object_id, size, None, primary=False, patient=patient
        )
        self._store.with_grace(commands, token)

    def _placed(self, object_id: bytes, offset: int) -> None:
        block = self._store.state.at(object_id, offset)
        assert block is not None
        progress = io.Progress(self._first_bytes)
        self._places[object_id] = _Place(offset, block.size, progress)
        self.run(self.state.placed(object_id))

    def _unplaced(self, object_id: bytes, error: BaseException) -> None:
        self.run(self.state.unplaced(object_id, type(error).__name__, str(error)))

    def _first_bytes(self, progress: io.Progress) -> None:
        """Receiving thread."""
        self._loop.call_soon_threadsafe(self._begun, progress)

    def _begun(self, progress: io.Progress) -> None:
        """Its first bytes are here, or it has failed."""
        waiting, progress.on_begin = progress.on_begin, []
        for callback in waiting:
            callback()

    def _rest(self) -> None:
        """Nothing may be under way any more, for a while."""
        if self._rests is None and not self._closed:
            self._rests = self._loop.call_later(limits.STORE_WARM_AFTER, self._rested)

    def _rested(self) -> None:
        self._rests = None
        if self.state.active:
            self._rest()
        else:
            self._store.warmer.resume()

    def _unplace(self, object_id: bytes) -> None:
        place = self._places.pop(object_id)
        place.progress.fail()
        self._store.run(self._store.state.withdraw(object_id, place.offset, self._port))
        self._begun(place.progress)

    def _seal(self, object_id: bytes) -> None:
        place = self._places.pop(object_id)
        progress, state = place.progress, self._store.state
        owner = self._owner(progress.owner) if progress.owner else None
        self.bytes_received += place.size
        self.objects_received += 1
        self._store.run(state.seal(object_id, place.offset, self._port, owner, version=progress.version))
        if progress.owner and owner is None:
            self._store.run(state.free_copy(object_id))

    def _tell(self, node: bytes, object_id: bytes, here: bool) -> None:
        if here:
            self.roots[object_id] = node
        connection = self._neighbours.connection(node)
        if connection is not None:
            connection.cast(m.OBJECT_COPIED, object_id, here)

    # ---- bytes ---------------------------------------------------------------------------------------

    def _fetch(
        self, object_id: bytes, attempt: int, node: bytes, offset: int, avoid: list[bytes], forced: bool
    ) -> None:
        place = self._places[object_id]
        request = [object_id, self._facts.node_id, offset, place.progress.version, avoid, forced]
        spare = self._spare.get(node)
        if spare:
            self._receive(object_id, attempt, node, spare.pop(), request, True)
        else:
            self._connect(object_id, attempt, node, request)

    def _connect(self, object_id: bytes, attempt: int, node: bytes, request: list[Any]) -> None:
        async def connect() -> None:
            row = self._neighbours.rows.get(node)
            try:
                if row is None or not row.get("data_port"):
                    raise ConnectionError("the node is not known")
                sock = await open_authenticated(self._loop, row["host"], row["data_port"], self._facts)
            except (OSError, FrameworkError) as error:
                log.info("node %s cannot be reached for its objects: %s", node.hex()[:8], error)
                self._broken(object_id, attempt)
                return
            self._receive(object_id, attempt, node, io.Channel(sock), request, False)

        def stopped(task: asyncio.Task[None]) -> None:
            if task.cancelled() and not self._closed:  # (perhaps before it had begun)
                self._broken(object_id, attempt)

        task = self._tasks.start(connect(), "connecting to a node")
        self._fetching[object_id, attempt] = task
        task.add_done_callback(stopped)

    def _broken(self, object_id: bytes, attempt: int) -> None:
        self._fetching.pop((object_id, attempt), None)
        place = self._places.get(object_id)
        self.run(self.state.broken(object_id, attempt, place.progress.done if place is not None else 0))

    def _receive(
        self,
        object_id: bytes,
        attempt: int,
        node: bytes,
        channel: io.Channel,
        request: list[Any],
        used_before: bool,
    ) -> None:
        place = self._places[object_id]
        self._fetching[object_id, attempt] = channel
        before = place.progress.done
        work = functools.partial(
            io.fetch, channel, request, place.size, place.offset, self._store.arena(), place.progress
        )
        future = self._loop.run_in_executor(self._threads, work)

        def done(future: asyncio.Future[tuple[Any, ...]]) -> None:
            if self._closed:
                channel.close()
                return
            outcome: tuple[Any, ...] = ("broken", "cancelled") if future.cancelled() else future.result()
            word = outcome[0]
            if word in ("broken", "differs"):
                channel.close()
                if word == "broken" and used_before and place.progress.done == before and not channel.stop:
                    self._connect(object_id, attempt, node, request)  # it was only too old
                    return
                log.info("object %s from node %s: %s", object_id.hex(), node.hex()[:8], outcome)
            else:
                self._keep(node, channel)
            self._fetching.pop((object_id, attempt), None)
            if word == "arrived":
                self.run(self.state.arrived(object_id, attempt))
            elif word == "redirected":
                self.run(self.state.redirected(object_id, attempt, outcome[1]))
            elif word == "missing":
                self.run(self.state.missing(object_id, attempt))
            elif word == "differs":
                self.run(self.state.differs(object_id, attempt, outcome[1]))
            else:
                self.run(self.state.broken(object_id, attempt, place.progress.done))

        future.add_done_callback(done)

    def _stop(self, object_id: bytes, attempt: int) -> None:
        under_way = self._fetching.get((object_id, attempt))
        if isinstance(under_way, io.Channel):
            under_way.stop = True
        elif under_way is not None:
            under_way.cancel()

    # ---- connections that are kept -------------------------------------------------------------------

    def _keep(self, node: bytes, channel: io.Channel) -> None:
        spare = self._spare.setdefault(node, [])
        if len(spare) >= limits.TRANSFER_SPARE or channel.stop or node not in self._neighbours.rows:
            channel.close()
            return
        channel.used_at = self._loop.time()
        spare.append(channel)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(limits.TRANSFER_IDLE, self._sweep)

    def _sweep(self) -> None:
        """Close what was not used for long."""
        self._sweeper = None
        old = self._loop.time() - limits.TRANSFER_IDLE
        for node, spare in list(self._spare.items()):
            for channel in [channel for channel in spare if channel.used_at <= old]:
                spare.remove(channel)
                channel.close()
            if not spare:
                del self._spare[node]
        if self._spare:
            self._sweeper = self._loop.call_later(limits.TRANSFER_IDLE / 2, self._sweep)

    # ---- who has it ----------------------------------------------------------------------------------

    async def _search(self, object_id: bytes, attempt: int) -> None:
        """Ask all other nodes; the first that has it is enough."""
        asked: dict[asyncio.Future[Any], bytes] = {}
        complete = True
        for node in self._neighbours.others():
            connection = self._neighbours.connection(node)
            if connection is None:
                complete = False
            else:
                asked[connection.call(m.OBJECT_WHO_HAS, object_id)] = node
        found: list[bytes] = []
        waiting = set(asked)
        end = self._loop.time() + limits.SEARCH_TIMEOUT
        while waiting and not found:
            left = end - self._loop.time()
            answered, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not answered:
                break
            for future in answered:
                if future.cancelled() or future.exception() is not None:
                    complete = complete and asked[future] not in self._neighbours.rows
                elif future.result():
                    found.append(asked[future])
        self.run(self.state.found(object_id, attempt, found, complete and not waiting))
