"""Who waits for one task reads the answer: no turn of the runtime's loop, no second wake-up.

A thread does so for a call that was sent alone, on a connection on which nothing else is under way, when the
answer is small and plain; all else is left to the loop (see `framework._net.takeover`). So does an event loop
of the application for a coroutine that awaits such a call, and goes on doing it until somebody else wants to
read (see `framework._net.host`): another thread that waits, a task that is sent from anywhere else, the
runtime's loop when it sends on that connection, or anybody who is told of the outcome elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from framework._base import limits
from framework._net import takeover
from framework._net.connection import Connection
from framework._net.host import Host, Stay
from framework._net.takeover import Parking, Readers, Reading, Turn
from framework._runtime.waiters import finish_here, register, unregister
from framework._serial import values
from framework._state.objects import READY, Entry
from framework._state.tasks import FINISHED, SENT, TaskRecord
from framework._wire import messages as m
from framework._wire.codec import DECODE_ERRORS, unpack_frame

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime

#: for bytes that are not exactly one frame, or none at all
NO_FRAME: tuple[type[BaseException], ...] = (OSError, *DECODE_ERRORS)


class Direct:
    """How threads of this process read what they wait for."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._readers: Readers | None = None
        #: the application's loops that have been asked to read; None: it cannot
        self._hosts: WeakKeyDictionary[asyncio.AbstractEventLoop, Host | None] = WeakKeyDictionary()
        self.hosting = False  #: whether there are any
        #: by opcode, who deals with a frame in an application's loop: (turn, frame, its size) -> False
        #: if it is for the runtime's
        self.takers: dict[int, Callable[[Stay, Any, int], bool]] = {m.DONE: self._take_done}

    # ---- which connections ---------------------------------------------------------------------------

    def reading(self, connection: Connection) -> Reading | None:
        """Any thread: what it may take over, if that seems to be worth it. To be asked whenever it would be
        of use: how often that is decides."""
        if connection.shy:
            connection.shy -= 1
            if not connection.shy and connection.shared is None and takeover.AVAILABLE:
                self._runtime.post(self._share, connection)
            return None
        return connection.shared

    def _share(self, connection: Connection) -> None:
        if self._runtime.closing:
            return
        if self._readers is None:
            self._readers = Readers(self._runtime.loop)
        connection.share(self._readers)

    def close(self) -> None:
        """Loop: the end, after the last connection."""
        for host in self._known_hosts().values():
            host.close()
        self._hosts.clear()
        readers, self._readers = self._readers, None
        if readers is not None:
            readers.close()

    def look(self) -> None:
        """Loop, now and then: see `Readers.look`."""
        if self._readers is not None:
            self._readers.look()
        for loop, host in self._known_hosts().items() if self.hosting else ():
            if host.is_over:  # (it may take a while until it is collected)
                self._hosts.pop(loop, None)

    def _known_hosts(self) -> dict[asyncio.AbstractEventLoop, Host]:
        while True:
            try:
                return {loop: host for loop, host in self._hosts.items() if host is not None}
            except RuntimeError:  # another thread has added one
                continue

    def keep_up(self) -> None:
        """Any thread: references are dropped while the loop sleeps; it may let them pile up, but not for
        ever."""
        if len(self._runtime.objects.drops) > limits.DIRECT_DROPS:
            self._runtime.post(self._runtime.objects.drain_drops)

    def behind(self) -> bool:
        """Any thread: whether the loop has work. Then what comes next is for it, too, so that what was posted
        before (an actor to be made, a task to be cancelled) has happened when that is over."""
        return not self._runtime.mailbox.empty or self._runtime.submitter.waiting

    # ---- waiting for a task --------------------------------------------------------------------------

    def wait(self, entry: Entry, timeout: float | None) -> None:
        """Any thread but the loop's: wait for the object, if its task is of the kind. When this returns, the
        object may not be done yet."""
        task = entry.task
        if not self._is_alone(task):
            return
        reading = self.reading(task.alone)
        if reading is None:
            return
        try:
            parking = takeover.parking()
        except OSError:  # no descriptors left
            return
        if parking.busy:
            return
        turn = Turn()
        parking.busy = True
        try:
            if self._wait(entry, task, reading, turn, parking, timeout):
                unregister(entry, parking)
                self._ended(task)
        except BaseException:
            # Ctrl-C, or the interruption of a task, and nobody knows where it struck.
            self._runtime.post(self._repair, task, reading, turn)
            raise
        finally:
            parking.busy = False
            if entry.waiters is not None:
                unregister(entry, parking)
        self.keep_up()

    def _is_alone(self, task: Any) -> bool:
        """Whether it is of the kind that is read by who waits for it."""
        if type(task) is not TaskRecord or task.alone is None or task.state != SENT:
            return False
        runner = task.actor or task.lease
        if runner is None or len(runner.inflight) != 1 or task.stream is not None or self.behind():
            return False
        # (If the lease is wanted elsewhere, the loop gives it back.)
        return task.actor is not None or not self._runtime.leasing.pressed()

    def _repair(self, task: TaskRecord | None, reading: Reading, turn: Turn) -> None:
        reading.give_back(turn)
        if task is not None:
            self._ended(task)

    def _wait(
        self,
        entry: Entry,
        task: TaskRecord,
        reading: Reading,
        turn: Turn,
        parking: Parking,
        timeout: float | None,
    ) -> bool:
        """True when this thread has completed it."""
        if not reading.take(turn):
            return False
        done = False
        try:
            register(entry, parking)  # others may complete it: it is cancelled, the connection ends
            end = None if timeout is None else time.monotonic() + timeout
            left = timeout
            while not entry.state:
                look = limits.SIGNAL_LOOK if left is None else min(left, limits.SIGNAL_LOOK)
                if parking.wait(reading.fileno(), look):
                    done = self._read(task, reading, turn)
                    if not done:
                        task.alone.shy = limits.DIRECT_AGAIN
                    break
                if end is not None:
                    left = end - time.monotonic()
                    if left <= 0:
                        break
        finally:
            reading.give_back(turn)
        return done

    def _read(self, task: TaskRecord, reading: Reading, turn: Turn) -> bool:
        """Deal with what has come. False: it is for the loop."""
        try:
            data = reading.peek()
            frame = unpack_frame(data)
        except NO_FRAME:
            return False
        if type(frame) is not list or len(frame) != 4 or frame[0] != m.DONE or frame[1] != task.unique:
            return False
        _, _, micros, value = frame
        if type(micros) is not int or (type(value) is list and not _is_plain(value)):
            return False
        if not reading.claim(turn) or not self._complete(task, value):
            return False
        reading.skip(turn, len(data))
        task.template.measured(micros)
        return True

    def _complete(self, task: TaskRecord, value: Any) -> bool:
        """The task, which was sent alone, has this value. False when that is for the loop to decide. (No
        calls while the lock is held, but for the last line: see `takeover.Reading`.)"""
        entry, unique, connection, now = task.entries[0], task.unique, task.alone, self._runtime.clock()
        with self._runtime.submitter.outcome:
            runner = task.actor or task.lease
            if (
                task.state != SENT
                or task.strikes
                or runner is None
                or runner.connection is not connection
                or unique not in runner.inflight
            ):
                return False
            lease = task.lease
            if lease is not None and (lease.retiring or lease.dead):
                return False
            del runner.inflight[unique]
            task.state = FINISHED
            entry.value = value
            entry.state = READY
            if lease is not None:
                task.lease = None
                lease.progress = now
                lease.blocked = lease.reclaiming = False
                if lease.inflight:  # the loop has sent more meanwhile
                    lease.load -= task.cost
                else:
                    lease.load = 0.0
                    lease.idle_since = now
                    lease.key.free.append(lease)
        return True

    def _ended(self, task: TaskRecord) -> None:
        """Any thread: clean up after a task that a thread has completed (perhaps). Again is no harm."""
        if task.state != FINISHED:
            return
        runtime = self._runtime
        runtime.submitter.let_go(task)
        entry = task.entries[0]
        if entry.waiters:
            runtime.post(runtime.objects.notify, entry)
        if task.actor is not None:
            if task.actor.queue:
                runtime.actors.dirty[task.actor] = None
                runtime.post(runtime.flush)
        elif task.template.key.pending:
            runtime.leasing.dirty[task.template.key] = None
            runtime.post(runtime.flush)

    # ---- a loop of the application awaits a task -----------------------------------------------------

    def attend(self, entry: Entry, loop: asyncio.AbstractEventLoop) -> None:
        """On an application's loop, which is going to await the object: have it read the answer, if its task
        is of the kind."""
        task = entry.task
        if self._is_alone(task):
            shared = task.alone.shared
            turn = shared.turn if shared is not None else None
            if turn is None or turn.host is None or turn.host.loop() is not loop:
                self.read_here(task.alone, loop)
            else:
                turn.host.expect()
        elif self.hosting:
            self.leave(entry)

    def read_here(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """On an application's loop: have it read this connection, if that may be and seems to be worth it."""
        shared = connection.shared
        if shared is not None:
            turn = shared.turn
            if turn is not None and turn.host is not None and turn.host.loop() is loop:
                return
        reading = self.reading(connection)
        if reading is not None and not self._runtime.closing:
            host = self._host(loop)
            if host is not None:
                reading.take(Stay(host, connection, reading))

    def expect_more(self, loop: asyncio.AbstractEventLoop) -> None:
        """On an application's loop that has answered what it had read: the next call may come soon."""
        host = self._hosts.get(loop) if self.hosting else None
        if host is not None and host.reads:
            host.expect()

    def _host(self, loop: asyncio.AbstractEventLoop) -> Host | None:
        try:
            return self._hosts[loop]
        except KeyError:
            pass
        host = None
        if loop is not self._runtime.loop:
            try:
                host = Host(loop, self._deal)
                self.hosting = True
            except (OSError, NotImplementedError):
                pass
        self._hosts[loop] = host
        return host

    def leave(self, entry: Entry) -> None:
        """Any thread: somebody waits for this object for whom the runtime's loop had better read."""
        task = entry.task
        if type(task) is TaskRecord and task.alone is not None:
            shared = task.alone.shared
            if shared is not None and shared.turn is not None:
                shared.recall()

    def sends(self, task: TaskRecord, connection: Connection) -> None:
        """Any thread: a task goes out alone on this connection. Only if that is from the loop which reads it,
        and which is thus there to read the answer, that stays so."""
        task.alone = connection
        shared = connection.shared
        if shared is None:
            return
        turn = shared.turn
        if turn is not None and turn.host is not None:
            loop = asyncio._get_running_loop()
            if loop is None or turn.host.loop() is not loop or task.stream is not None:
                shared.recall()

    def _deal(self, stay: Stay) -> bool:
        """On an application's loop: something may have come. False: nothing has."""
        reading = stay.reading
        if reading.turn is not stay:
            return False
        dealt = False
        try:
            try:
                data = reading.peek()
                frame = unpack_frame(data)
                taker = self.takers.get(frame[0]) if type(frame) is list and frame else None
                dealt = taker is not None and taker(stay, frame, len(data))
            except BlockingIOError:
                return False
            except NO_FRAME:
                pass
            if not dealt:
                stay.connection.shy = limits.DIRECT_AGAIN
                reading.give_back(stay)
        except BaseException:
            self._runtime.post(self._repair, None, reading, stay)
            raise
        return True

    def _take_done(self, stay: Stay, frame: Any, size: int) -> bool:
        if len(frame) != 4:
            return False
        _, unique, micros, value = frame
        task = self._runtime.submitter.tasks.get(unique)
        if (
            task is None
            or task.alone is not stay.connection
            or task.stream is not None
            or type(micros) is not int
            or (type(value) is list and not _is_plain(value))
            or not stay.reading.claim(stay)
        ):
            return False
        entry = task.entries[0]
        try:
            if not self._complete(task, value):
                return False
            stay.reading.skip(stay, size)
            task.template.measured(micros)
            finish_here(entry)
            self._ended(task)
        except BaseException:
            self._runtime.post(self._repair, task, stay.reading, stay)
            raise
        self.keep_up()
        return True


def _is_plain(value: list[Any]) -> bool:
    """Whether all of the value is here, and no references are in it."""
    return len(value) >= 3 and value[0] == values.FORM_PICKLE and not value[2]
