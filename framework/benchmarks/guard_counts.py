"""Counts per call, of things that do not depend on how fast the machine is: for the guard (`guard`).

``python -m framework.benchmarks.guard_counts`` prints them as JSON. Counted are, in the driver and in its
only worker: Python functions entered, C functions called from Python and those among them that are system
calls (`sys.setprofile`, in the main thread and in the loop's), bytecodes (`sys.settrace`), frames sent,
allocated blocks, and how often a process goes to sleep. A burst is dispatched while the driver's loop is
held, so that it does not depend on which thread is faster. Each figure is the least of a few rounds: what is
in it besides is a tick, or a collection of garbage.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import msgpack

import framework as fw
from framework._base import limits
from framework._net.connection import Connection
from framework._runtime.current import current
from framework._wire import messages
from framework.benchmarks.processes import children, voluntary_switches

CALLS, BURST, QUEUED = 200, 1000, 10_000
_ROUNDS = 5
_HELD = 300.0
_SETTLES_WITHIN = 20.0
_PRESSED_FOR = 1.2  # seconds after work has had to wait for CPUs in which leases are given back at once
_SYSTEM_OF = ("epoll", "poll", "socket", "SSLSocket")
_NO_SYSTEM_CALL = frozenset({("poll", "register"), ("poll", "modify"), ("poll", "unregister")})
_OF_SOCKETS = frozenset({"recv", "recv_into", "recvmsg", "send", "sendall", "sendmsg", "shutdown", "close"})
_OF_POSIX = frozenset({"read", "write", "eventfd_read", "eventfd_write", "close", "open", "stat", "getpid"})

Figures = dict[str, float]
Names = Counter[str]


def _system_call(function: Any) -> bool:
    """Whether a builtin goes to the kernel, as far as the hot paths use such."""
    owner = getattr(function, "__self__", None)
    kind, name = type(owner).__name__, function.__name__
    if isinstance(owner, socket.socket):
        return name in _OF_SOCKETS
    if kind in _SYSTEM_OF:
        return (kind, name) not in _NO_SYSTEM_CALL
    return getattr(owner, "__name__", "") == "posix" and name in _OF_POSIX


class Spy:
    """A profile function for one thread: counts what is called, by name."""

    def __init__(self) -> None:
        self.python: Counter[CodeType] = Counter()
        self.c: Names = Counter()
        self.system: Names = Counter()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            self.python[frame.f_code] += 1
        elif event == "c_call":
            name = getattr(arg, "__qualname__", None) or repr(arg)
            self.c[name] += 1
            if _system_call(arg):
                self.system[name] += 1


def _name(code: CodeType) -> str:
    path = Path(code.co_filename)
    return f"{path.parent.name}/{path.name}:{code.co_firstlineno} {code.co_qualname}"


class Spies:
    """One for each thread of this process that runs the framework's code: the calling one, and the loop's."""

    def __init__(self) -> None:
        self._spies = (Spy(), Spy())

    def start(self) -> None:
        """Begin, or go on, to count."""
        self._on_loop(lambda: sys.setprofile(self._spies[1]))
        sys.setprofile(self._spies[0])

    def stop(self) -> None:
        """Stop counting."""
        sys.setprofile(None)
        self._on_loop(lambda: sys.setprofile(None))

    @staticmethod
    def _on_loop(function: Callable[[], object]) -> None:
        done = threading.Event()

        def run() -> None:
            function()
            done.set()

        current().loop.call_soon_threadsafe(run)
        done.wait()

    def totals(self) -> dict[str, dict[str, int]]:
        """How often what was called, by kind and name, in both threads."""
        python, c, system = Counter[str](), Counter[str](), Counter[str]()
        for spy in self._spies:
            for code, count in spy.python.copy().items():
                python[_name(code)] += count
            c.update(spy.c.copy())
            system.update(spy.system.copy())
        return {"Python functions": dict(python), "C functions": dict(c), "system calls": dict(system)}


class Frames:
    """Counts the frames that this process sends, by the name of their message."""

    def __init__(self) -> None:
        self.sent: Names = Counter()
        self._unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=0)
        self._lock = threading.Lock()

    def start(self) -> None:
        """For good: the process is there for counting only."""
        for way in ("send", "post", "buffer"):
            setattr(Connection, way, self._counting(getattr(Connection, way)))

    def _counting(self, plain: Callable[[Connection, bytes], None]) -> Callable[[Connection, bytes], None]:
        def counted(connection: Connection, data: bytes) -> None:
            with self._lock:
                self._unpacker.feed(data)
                for frame in self._unpacker:
                    self.sent[messages.CATALOGUE[frame[0]].name] += 1
            plain(connection, data)

        return counted


class _Watched:
    """What is counted in a worker, driven by tasks that run in its main thread."""

    def __init__(self) -> None:
        self.spies = Spies()
        self.frames = Frames()
        # How often it looks for the next call before it sleeps is a matter of time: here it sleeps at once.
        limits.SPIN = -limits.WAKE  # type: ignore[misc]


_watched: list[_Watched] = []


def _in_worker(what: str) -> Any:
    if not _watched:
        _watched.append(_Watched())
    worker = _watched[0]
    if what == "start":
        worker.spies.start()
    elif what == "stop":
        worker.spies.stop()
    elif what == "count frames":
        worker.frames.start()
    return os.getpid(), worker.spies.totals(), dict(worker.frames.sent)


class Server:
    """The actor whose calls are counted."""

    def small_value(self) -> bytes:
        return b"ok"

    def in_worker(self, what: str) -> Any:
        """See `_in_worker`."""
        return _in_worker(what)


def _small_value() -> bytes:
    return b"ok"


def _hold(gate: str) -> None:
    end = time.monotonic() + _HELD
    Path(f"{gate}-held").touch()
    while not os.path.exists(gate) and time.monotonic() < end:
        time.sleep(0.005)


@contextmanager
def _loop_held() -> Iterator[None]:
    """The driver's loop does nothing meanwhile: a burst reaches it whole."""
    release = threading.Event()
    current().loop.call_soon_threadsafe(release.wait)
    try:
        yield
    finally:
        release.set()


Totals = Mapping[str, Mapping[str, int]]


def _difference(before: Totals, after: Totals) -> dict[str, Names]:
    return {kind: Counter(after[kind]) - Counter(before[kind]) for kind in after}


class Round:
    """Counts of one round, per call: totals, and by name for those who look for the reason."""

    def __init__(self, driver: dict[str, Names], worker: dict[str, Names], calls: int) -> None:
        self.names = {
            f"{kind} in the {where}": {name: count / calls for name, count in names.items()}
            for where, found in (("driver", driver), ("worker", worker))
            for kind, names in found.items()
        }
        self.figures = {metric: sum(names.values()) for metric, names in self.names.items()}


def _round(work: Callable[[], None], calls: int, in_worker: Callable[[str], Any]) -> Round:
    spies = Spies()
    pid, before, _ = in_worker("start")
    spies.start()
    work()
    spies.stop()
    same, after, _ = in_worker("stop")
    if same != pid:
        raise RuntimeError("another worker took over: what it does would not be counted")
    nothing = {kind: Counter[str]() for kind in after}
    return Round(_difference(nothing, spies.totals()), _difference(before, after), calls)


def _least(rounds: list[Round]) -> tuple[Figures, dict[str, dict[str, float]]]:
    figures: Figures = {}
    names: dict[str, dict[str, float]] = {}
    for metric in rounds[0].figures:
        best = min(rounds, key=lambda found: found.figures[metric])
        figures[metric], names[metric] = best.figures[metric], best.names[metric]
    return figures, names


class Tracer:
    """A trace function that counts bytecodes."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, arg: object) -> Tracer:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.count += event == "opcode"
        return self


def _bytecodes(work: Callable[[], None]) -> int:
    """Executed by `work` in this thread."""
    tracer = Tracer()
    sys.settrace(tracer)
    try:
        work()
    finally:
        sys.settrace(None)
    return tracer.count


class Measured:
    """All figures, and by name what each is made of."""

    def __init__(self) -> None:
        self.figures: Figures = {}
        self.names: dict[str, dict[str, float]] = {}

    def add(self, scenario: str, rounds: list[Round]) -> None:
        """The least of each figure."""
        figures, names = _least(rounds)
        self.figures.update({f"{scenario}: {metric}": value for metric, value in figures.items()})
        self.names.update({f"{scenario}: {metric}": found for metric, found in names.items()})


def _count_calls(found: Measured, kind: str, one: Callable[[], Any], in_worker: Callable[[str], Any]) -> None:
    """One call at a time, and bursts, of a task or of an actor."""

    def alone() -> None:
        for _ in range(CALLS):
            fw.get(one())

    def burst() -> None:
        with _loop_held():
            refs = [one() for _ in range(BURST)]
        fw.get(refs)

    alone()
    (node,) = children(os.getpid())
    pid = in_worker("")[0]
    switches: dict[str, list[float]] = {"driver": [], "worker": [], "node": []}
    for _ in range(_ROUNDS):
        processes = (("driver", os.getpid()), ("worker", pid), ("node", node))
        before = {name: voluntary_switches(process) for name, process in processes}
        alone()
        for name, process in processes:
            switches[name].append((voluntary_switches(process) - before[name]) / CALLS)
    found.add(f"{kind}, one at a time", [_round(alone, CALLS, in_worker) for _ in range(_ROUNDS)])
    for name, counts in switches.items():
        found.figures[f"{kind}, one at a time: sleeps of the {name}"] = min(counts)
    burst()
    _count_bytecodes(found, kind, one)
    found.add(f"{kind}, burst of {BURST:,}", [_round(burst, BURST, in_worker) for _ in range(_ROUNDS)])


def _count_bytecodes(found: Measured, kind: str, one: Callable[[], Any]) -> None:
    """In the thread that submits, and that gets results which are there already."""
    refs: list[Any] = []

    def submit() -> None:
        for _ in range(CALLS):
            refs.append(one())

    def get() -> None:
        for ref in refs:
            fw.get(ref)

    _bytecodes(lambda: None)  # Python 3.12 tells of bytecodes only from the second time on
    with _loop_held():
        submitted = _bytecodes(submit)
    fw.wait(refs, num_returns=len(refs))
    found.figures[f"{kind}: bytecodes of a submission"] = submitted / CALLS
    found.figures[f"{kind}: bytecodes of a get, result there"] = _bytecodes(get) / CALLS


def _count_frames(
    found: Measured, kind: str, one: Callable[[], Any], in_worker: Callable[[str], Any], frames: Frames
) -> None:
    in_worker("count frames")

    def alone() -> None:
        for _ in range(CALLS):
            fw.get(one())

    def burst() -> None:
        fw.get([one() for _ in range(BURST)])

    for scenario, work, calls in (("one at a time", alone, CALLS), (f"burst of {BURST:,}", burst, BURST)):
        work()
        least: dict[str, tuple[float, Names]] = {}
        for _ in range(_ROUNDS):
            before, there = frames.sent.copy(), Counter(in_worker("")[2])
            work()
            sent = {"driver": frames.sent - before, "worker": Counter(in_worker("")[2]) - there}
            for where, names in sent.items():
                total = sum(names.values()) / calls
                if where not in least or total < least[where][0]:
                    least[where] = (total, names)
        for where, (total, names) in least.items():
            metric = f"{kind}, {scenario}: frames sent by the {where}"
            found.figures[metric] = total
            found.names[metric] = {name: count / calls for name, count in names.items()}


def _blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


def _settled() -> int:
    """Allocated blocks, once the loop has worked off what was posted."""
    last, end = -1, time.monotonic() + _SETTLES_WITHIN
    while time.monotonic() < end:
        now = _blocks()
        if abs(now - last) <= QUEUED // 100 and current().mailbox.empty:
            return now
        last = now
        time.sleep(0.1)
    raise RuntimeError("the loop did not come to rest")


def _count_blocks(found: Measured) -> None:
    """What a task holds while it is queued, and its reference when it is done."""
    hold: Any = fw.remote(_hold)
    small: Any = fw.remote(_small_value)
    fw.get([small.remote() for _ in range(BURST)])
    with tempfile.TemporaryDirectory() as directory:
        gate = os.path.join(directory, "gate")
        holder = hold.remote(gate)
        while not os.path.exists(f"{gate}-held"):
            time.sleep(0.01)
        before = _settled()
        refs: list[Any] = [small.remote() for _ in range(QUEUED)]
        found.figures["a queued task: allocated blocks"] = (_settled() - before) / QUEUED
        Path(gate).touch()
        fw.get(holder)
    fw.wait(refs, num_returns=QUEUED)
    found.figures["a result that is held: allocated blocks"] = (_settled() - before) / QUEUED
    del refs
    time.sleep(_PRESSED_FOR)


def measure() -> Measured:
    """All counts, in a session of this process's own, with one worker."""
    found = Measured()
    frames = Frames()
    task, watch, actor = fw.remote(_small_value), fw.remote(_in_worker), fw.remote(Server)
    with fw.init(num_cpus=1, log_to_driver=False):
        handle: Any = actor.options(num_cpus=0).remote()
        one_task: Callable[[], Any] = task.remote
        one_call: Callable[[], Any] = handle.small_value.remote

        def in_task(what: str) -> Any:
            return fw.get(watch.remote(what))

        def in_actor(what: str) -> Any:
            return fw.get(handle.in_worker.remote(what))

        _count_calls(found, "task", one_task, in_task)
        _count_calls(found, "actor call", one_call, in_actor)
        _count_blocks(found)
        frames.start()  # last, as it stays
        _count_frames(found, "task", one_task, in_task, frames)
        _count_frames(found, "actor call", one_call, in_actor, frames)
    return found


def main() -> None:
    """Print ``{"figures": {...}, "names": {...}}``."""
    found = measure()
    print(json.dumps({"figures": found.figures, "names": found.names}))


if __name__ == "__main__":
    # Under its own name, for what is sent to workers by reference.
    from framework.benchmarks import guard_counts

    guard_counts.main()
