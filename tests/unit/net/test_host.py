"""Reading in an event loop of the application: it keeps the reading, and anybody takes it away, whatever has
become of that loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import random
import select
import socket
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import uvloop

from framework._base import limits
from framework._net import takeover
from framework._net.host import Host, Stay
from framework._net.takeover import Turn
from framework._state.looking import Looking
from framework._wire.codec import DECODE_ERRORS, unpack_frame
from support.shared_reading import Shared, readable, wait_for

pytestmark = pytest.mark.skipif(not takeover.AVAILABLE, reason="needs epoll")

NewLoop = Callable[[], asyncio.AbstractEventLoop]


class App:
    """An event loop of an application, in a thread of its own, that reads a connection."""

    def __init__(self, new_loop: NewLoop, shared: Shared) -> None:
        self.shared = shared
        self.loop = new_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.by_host = 0
        self.given_back = 0
        self.host: Host = self.on_loop(lambda: Host(self.loop, self.deal))

    def on_loop(self, function: Callable[[], object]) -> object:
        async def call() -> object:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(10)

    def take(self) -> Stay | None:
        """As a coroutine does that awaits a frame."""
        stay = Stay(self.host, self.shared.connection, self.shared.reading)
        return stay if self.on_loop(lambda: self.shared.reading.take(stay)) else None

    def deal(self, stay: Stay) -> bool:
        reading = stay.reading
        if reading.turn is not stay:
            return False
        try:
            data = reading.peek()
            numbers = unpack_frame(data)[1]
        except BlockingIOError:
            return False
        except (OSError, *DECODE_ERRORS):
            self.given_back += 1
            reading.give_back(stay)
            return True
        if reading.claim(stay):
            self.shared.frames.extend(numbers)
            self.by_host += 1
            reading.skip(stay, len(data))
        return True

    def turns(self, count: int = 3) -> None:
        for _ in range(count):
            self.on_loop(lambda: None)

    def being(self, state: str) -> contextlib.AbstractContextManager[None]:
        """ "running", "blocked" meanwhile, "stopped", or "closed"."""
        if state == "stopped":
            self.stop()
        elif state == "closed":
            self.close()
        return self.blocked() if state == "blocked" else contextlib.nullcontext()

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """User code keeps the loop from running meanwhile."""
        begun, over = threading.Event(), threading.Event()

        def block() -> None:
            begun.set()
            over.wait(10)

        self.loop.call_soon_threadsafe(block)
        assert begun.wait(10)
        try:
            yield
        finally:
            over.set()

    def stop(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10)

    def close(self) -> None:
        self.stop()
        self.loop.close()


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS.values(), ids=LOOPS.keys())
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    made = Shared(request.param)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(params=LOOPS.values(), ids=[f"app-{name}" for name in LOOPS])
def new_loop(request: pytest.FixtureRequest) -> NewLoop:
    made: NewLoop = request.param
    return made


@pytest.fixture
def app(shared: Shared, new_loop: NewLoop) -> Iterator[App]:
    made = App(new_loop, shared)
    try:
        yield made
    finally:
        made.close()


def test_it_keeps_the_reading(shared: Shared, app: App) -> None:
    assert app.take()
    for number in range(5):
        shared.send(number)
        wait_for(lambda number=number: len(shared.frames) > number)
    assert shared.frames == [0, 1, 2, 3, 4]
    assert app.by_host == 5 and not shared.by_loop


def test_several_connections(shared: Shared, app: App, new_loop: NewLoop) -> None:
    other = Shared(new_loop)
    try:
        stay = Stay(app.host, other.connection, other.reading)
        assert app.take()
        assert app.on_loop(lambda: other.reading.take(stay))
        for number in range(5):
            shared.send(number)
            other.send(number + 10)
            wait_for(lambda number=number: len(shared.frames) == 2 * number + 2)  # (both are noted there)
        assert sorted(shared.frames) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
        assert app.by_host == 10
    finally:
        other.stop()


def test_what_it_leaves_is_for_the_runtime(shared: Shared, app: App) -> None:
    assert app.take()
    shared.send(1, 2)  # not exactly one frame
    wait_for(lambda: shared.frames == [1, 2])
    assert app.given_back == 1
    shared.send(3)
    wait_for(lambda: shared.frames == [1, 2, 3])
    assert not app.by_host
    assert app.take()
    shared.send(4)
    wait_for(lambda: shared.frames == [1, 2, 3, 4])
    assert app.by_host == 1


@pytest.mark.parametrize("state", ["running", "blocked", "stopped", "closed"])
def test_recalled_whatever_it_does(shared: Shared, app: App, state: str) -> None:
    assert app.take()
    with app.being(state):
        assert shared.reading.recall()
        assert not shared.reading.recall()
        shared.send(1)
        wait_for(lambda: shared.frames == [1])
        assert shared.by_loop == 1


@pytest.mark.parametrize("state", ["running", "blocked", "stopped", "closed"])
def test_a_thread_takes_it_away(shared: Shared, app: App, state: str) -> None:
    assert app.take()
    with app.being(state):
        turn = Turn()
        assert shared.reading.take(turn)
        shared.send(1)
        shared.turns()
        assert not shared.frames
        assert shared.read_one(turn)
        shared.reading.give_back(turn)
        shared.send(2)
        wait_for(lambda: shared.frames == [1, 2])
    assert not app.by_host


def test_the_tick_finds_a_loop_that_is_blocked(shared: Shared, app: App) -> None:
    assert app.take()
    with app.blocked():
        shared.on_loop(shared.readers.look)
        shared.on_loop(shared.readers.look)
        assert shared.reading.turn is not None, "nothing has come: it may keep it"
        shared.send(1)
        shared.on_loop(shared.readers.look)
        shared.turns()
        assert not shared.frames, "there was some time to read it, but not much"
        shared.on_loop(shared.readers.look)
        wait_for(lambda: shared.frames == [1])
    assert not app.by_host
    assert shared.connection.shy == limits.DIRECT_LATE


def test_the_tick_leaves_a_busy_loop_alone(shared: Shared, app: App) -> None:
    """Whenever it looks, something has come, but not the same."""
    stay = app.take()
    assert stay is not None
    with app.blocked():
        for number in range(3):
            shared.send(number)
            shared.on_loop(shared.readers.look)
            assert shared.read_one(stay)
    assert shared.frames == [0, 1, 2] and not shared.by_loop
    assert shared.reading.turn is stay


@pytest.mark.parametrize("state", ["stopped", "closed"])
def test_the_tick_finds_a_loop_that_does_not_run(shared: Shared, app: App, state: str) -> None:
    assert app.take()
    if state == "stopped":
        app.stop()
    else:
        app.close()
    shared.on_loop(shared.readers.look)
    assert shared.reading.turn is None
    shared.send(1)
    wait_for(lambda: shared.frames == [1])


def test_a_loop_that_was_stopped_reads_again(shared: Shared, app: App) -> None:
    assert app.take()
    app.stop()
    shared.on_loop(shared.readers.look)
    app.thread = threading.Thread(target=app.loop.run_forever)
    app.thread.start()
    assert app.take()
    shared.send(1)
    wait_for(lambda: shared.frames == [1])
    assert app.by_host == 1


def test_two_loops(shared: Shared, app: App, new_loop: NewLoop) -> None:
    other = App(new_loop, shared)
    try:
        for number in range(6):
            mine, others = (app, other) if number % 2 else (other, app)
            before = mine.by_host, others.by_host
            assert mine.take()
            shared.send(number)
            wait_for(lambda number=number: len(shared.frames) > number)
            assert (mine.by_host, others.by_host) == (before[0] + 1, before[1])
    finally:
        other.close()


def test_not_in_the_middle_of_a_frame(shared: Shared, app: App) -> None:
    stay = app.take()
    assert stay is not None
    with app.blocked():
        shared.send(1)
        assert shared.reading.claim(stay)
        assert not shared.reading.take(Turn())
        shared.reading.recall()
        assert shared.reading.turn is stay
        assert shared.read_one(stay)
        shared.reading.recall()
        assert shared.reading.turn is None


def test_closed_while_it_has_it(shared: Shared, app: App) -> None:
    assert app.take()
    fd = shared.reading.fileno()
    shared.on_loop(shared.connection.close)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    assert not app.host._stays
    assert app.take() is None


def test_closed_in_the_middle_of_a_frame(shared: Shared, app: App) -> None:
    stay = app.take()
    assert stay is not None
    with app.blocked():
        shared.send(1)
        assert shared.reading.claim(stay)
        fd = shared.reading.fileno()
        shared.on_loop(shared.connection.close)
        os.fstat(fd)
        assert shared.read_one(stay)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
    assert not app.host._stays


def test_the_peer_goes(shared: Shared, app: App) -> None:
    assert app.take()
    shared.send(1)
    shared.sock.close()
    assert shared.closed.wait(10)
    assert shared.frames == [1]


def test_not_while_the_connection_reads_no_requests(shared: Shared, app: App) -> None:
    assert app.take()
    shared.on_loop(shared.stop_reading)
    assert app.take() is None
    shared.send(1)
    shared.turns()
    app.turns()
    assert not shared.frames
    shared.on_loop(shared.connection._drain)
    wait_for(lambda: shared.frames == [1])


def test_interrupted_while_it_was_taken_away(shared: Shared, app: App) -> None:
    assert app.take()
    with shared.reading._lock:
        shared.reading.turn = None  # and the system calls that follow are not made
    shared.send(1)
    wait_for(lambda: not app.host._stays)
    assert not shared.frames
    shared.on_loop(shared.readers.look)
    wait_for(lambda: shared.frames == [1])
    assert app.take()


def test_closed_before_it_was_taken_away_and_open_elsewhere(shared: Shared, app: App) -> None:
    """As in a process that user code has forked: the system reports the descriptor for ever."""
    one, two = socket.socketpair()
    elsewhere = os.dup(one.fileno())
    before = app.host._epoll
    app.on_loop(lambda: app.host._epoll.register(one.fileno(), select.EPOLLIN))
    one.close()
    two.send(b"x")
    wait_for(lambda: app.host._epoll is not before)
    assert app.take()
    shared.send(1)
    wait_for(lambda: shared.frames == [1])
    assert app.by_host == 1
    os.close(elsewhere)
    two.close()


def test_in_nobodys_context(shared: Shared, app: App) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    seen: list[int] = []

    def make() -> Host:
        variable.set(1)
        return Host(app.loop, lambda stay: seen.append(variable.get()) or app.deal(stay))

    app.host = app.on_loop(make)
    assert app.take()
    shared.send(1)
    wait_for(lambda: shared.frames == [1])
    assert set(seen) == {0}


def test_the_loop_forgets_it(shared: Shared, app: App) -> None:
    fd = app.host._epoll.fileno()
    app.host.close()
    app.turns()
    assert not app.on_loop(lambda: app.loop.remove_reader(fd))
    app.close()
    app.host.close()  # again, and of a closed loop, is no harm


def test_it_does_not_keep_its_loop(shared: Shared) -> None:
    loop = asyncio.new_event_loop()
    host = Host(loop, lambda _: False)
    found = weakref.ref(loop)
    loop.close()
    del loop
    gc.collect()
    assert found() is None
    assert not host.runs
    host.close()


@pytest.mark.parametrize("seed", range(2))
def test_order_whoever_reads(shared: Shared, app: App, seed: int) -> None:
    """Frames cut anywhere; a loop that takes the reading, a thread that takes it away, the runtime that takes
    it back: each frame once, in order."""
    count, dice = 1500, random.Random(seed)
    over = threading.Event()

    def again(dice: random.Random) -> None:
        stay = Stay(app.host, shared.connection, shared.reading)
        if shared.reading.turn is None:
            shared.reading.take(stay)
        if not over.is_set():
            app.loop.call_later(dice.uniform(0, 0.0005), again, dice)

    def reader(dice: random.Random) -> None:
        parking = takeover.parking()
        while not over.is_set():
            turn = Turn()
            if dice.random() < 0.3:
                shared.reading.recall()
            elif shared.reading.take(turn):
                try:
                    if parking.wait(shared.reading.fileno(), 0.001):
                        shared.read_one(turn)
                finally:
                    shared.reading.give_back(turn)
            parking.wait(-1, dice.uniform(0, 0.001))

    def look() -> None:
        shared.readers.look()
        if not over.is_set():
            shared.loop.call_later(0.0002, look)

    thread = threading.Thread(target=reader, args=(random.Random(seed + 1),))
    thread.start()
    app.on_loop(lambda: again(random.Random(seed + 2)))
    shared.on_loop(look)
    try:
        shared.send_in_pieces(count, dice)
    finally:
        over.set()
        thread.join(10)
        app.turns()
    assert shared.frames == list(range(count))
    assert readable(shared.reading) is False


# ---- staying awake -----------------------------------------------------------------------------------------


def answered_soon(shared: Shared, app: App, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A frame was awaited and has come soon. A list that grows with each look, while the loop is kept from
    sleeping."""
    monkeypatch.setattr(limits, "SPIN", 10**10)
    looks: list[None] = []
    goes_on = Looking.goes_on

    def counted(self: Looking, now: int) -> bool:
        looks.append(None)
        return goes_on(self, now)

    monkeypatch.setattr(Looking, "goes_on", counted)
    assert app.take()
    app.on_loop(app.host.expect)
    shared.send(0)
    wait_for(lambda: shared.frames == [0])
    return looks


def test_a_loop_stays_awake_for_what_comes_soon(
    shared: Shared, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = answered_soon(shared, app, monkeypatch)
    assert not looks, "nothing has come soon before"
    for number in range(1, 4):
        before = len(looks)
        app.on_loop(app.host.expect)
        wait_for(lambda before=before: len(looks) > before + 10)
        shared.send(number)
        wait_for(lambda number=number: len(shared.frames) == number + 1)
        app.turns()
        after = len(looks)
        app.turns()
        assert len(looks) == after, "it sleeps again"
    assert app.by_host == 4 and not shared.by_loop


def test_a_loop_does_not_stay_awake_for_long(
    shared: Shared, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = answered_soon(shared, app, monkeypatch)
    monkeypatch.setattr(limits, "SPIN", 10**6)
    app.on_loop(app.host.expect)
    wait_for(lambda: not app.host._looking)
    assert looks
    before = len(looks)
    app.on_loop(app.host.expect)
    app.turns()
    assert len(looks) == before, "it was in vain"
    shared.send(1)
    wait_for(lambda: shared.frames == [0, 1])


def test_loops_stay_awake_in_several_threads(new_loop: NewLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPIN", 10**10)
    pairs = []
    try:
        for _ in range(3):
            shared = Shared(new_loop)
            app = App(new_loop, shared)
            pairs.append((shared, app))
            assert app.take()
        for number in range(5):
            for _, app in pairs:
                app.on_loop(app.host.expect)
            for shared, _ in pairs:
                shared.send(number)
            for shared, _ in pairs:
                wait_for(lambda shared=shared, number=number: len(shared.frames) == number + 1)
        assert all(app.by_host == 5 for _, app in pairs)
    finally:
        for shared, app in pairs:
            app.close()
            shared.stop()
