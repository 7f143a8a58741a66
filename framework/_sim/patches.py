"""The simulated system put in place of the real one, for as long as a simulation runs.

Code that runs in a simulated process finds simulated sockets, threads, clocks and processes behind the usual
names of the standard library. What cannot be simulated (starting real processes, the names of other hosts)
raises `SimulationError` where it is called. Real threads beside the simulation keep what they had.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import io
import os
import queue
import random
import select
import selectors
import signal
import socket
import ssl
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy.random

from framework._sim import threads
from framework._sim.clocks import Clocks
from framework._sim.descriptors import BASE, Descriptors, Epoll, Event, Poll, ProcessEnd, Selector
from framework._sim.files import RealFiles
from framework._sim.kernel import Kernel, SimulationError
from framework._sim.loop import SimPolicy
from framework._sim.network import Network
from framework._sim.process import Process
from framework._sim.real import refused
from framework._sim.sockets import SimSocket
from framework._sim.threads import SimLock, SimRLock

_NOT_ITS_OWN: Final = object()  #: the attribute is inherited
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class System(Clocks):
    """The patched functions. `exit_process(process, status)` ends one."""

    tidy = True  #: False where the real process ends with the run: then nobody needs to put anything away

    def __init__(self, kernel: Kernel, exit_process: Callable[[Process, int], None]) -> None:
        self.kernel = kernel
        self.table = Descriptors(kernel)
        self.network = Network(self.table)
        self.files = RealFiles(kernel)
        self.network.received = self.files.opened
        self.exit_process = exit_process
        self._inside = threading.get_ident()
        self._ident = threading.get_ident
        self._saved: list[tuple[Any, str, Any]] = []
        SimLock.kernel = kernel

    def _active(self) -> bool:
        return self.kernel.current is not None and self._ident() == self._inside

    # ---- putting in place ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While this is open, the simulated system is what this thread sees."""
        policy, hooks, loop = (
            asyncio.get_event_loop_policy(),
            sys.get_asyncgen_hooks(),
            asyncio._get_running_loop(),
        )
        state, numpy_state, collects = random.getstate(), numpy.random.get_state(), gc.isenabled()
        random.seed(self.kernel.choices.seed)
        numpy.random.seed(self.kernel.choices.seed & 0xFFFFFFFF)
        if self.tidy:
            gc.collect()  # (of an earlier run, the last is only let go of when its caller returns)
        gc.freeze()
        gc.disable()
        asyncio._set_running_loop(None)
        try:
            asyncio.set_event_loop_policy(SimPolicy(self.table, policy, self._active))
            self._patch_all()
            yield
        finally:
            self.close()
            for owner, name, value in reversed(self._saved):
                if value is _NOT_ITS_OWN:
                    delattr(owner, name)
                else:
                    setattr(owner, name, value)
            self._saved.clear()
            asyncio.set_event_loop_policy(policy)
            asyncio._set_running_loop(loop)
            sys.set_asyncgen_hooks(*hooks)
            random.setstate(state)
            numpy.random.set_state(numpy_state)
            gc.unfreeze()
            if collects:
                gc.enable()

    def close(self) -> None:
        """Let go of all that the run had, while it is still in its own system."""
        if self.kernel.closing or not self.tidy:
            return
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                self.kernel.close()
                self.network.close()
                self.files.close()
                gc.collect()
        finally:
            sys.unraisablehook = hook
            # Those that locks and sockets know from now on are idle.
            SimLock.kernel = Kernel(self.kernel.choices, self.kernel.log, self.kernel.scheduler)
            Network(Descriptors(SimLock.kernel))

    def _set(self, owner: Any, name: str, value: Any) -> None:
        if hasattr(owner, name):
            self._saved.append((owner, name, vars(owner).get(name, _NOT_ITS_OWN)))
            setattr(owner, name, value)

    def _either(self, owner: Any, name: str, inside: Callable[..., Any]) -> None:
        """In simulated code `inside`, elsewhere what was there."""
        outside = getattr(owner, name, None)
        if outside is None:
            return
        active = self._active

        def call(*args: Any, **options: Any) -> Any:
            return inside(*args, **options) if active() else outside(*args, **options)

        call.__name__ = name
        self._set(owner, name, call)

    def _number_hashes(self, owner: type) -> None:
        """Objects of this class get numbers for hashes where simulated code asks first: what iterates over a
        set of them then does so in the same order in each run, wherever they are in memory."""
        outside: Callable[[Any], int] = vars(owner).get("__hash__", object.__hash__)
        active, number_of = self._active, self.kernel.number

        def number(thing: Any) -> int:
            found: int | None = vars(thing).get("sim_number")
            if found is None:
                if not active():
                    return outside(thing)
                found = vars(thing)["sim_number"] = number_of()
            return found

        self._set(owner, "__hash__", number)

    def _by_fd(self, name: str, inside: Callable[..., Any]) -> None:
        outside = getattr(os, name, None)
        if outside is None:
            return

        def call(fd: Any, *args: Any, **options: Any) -> Any:
            if type(fd) is int and fd >= BASE:
                return inside(fd, *args, **options)
            return outside(fd, *args, **options)

        self._set(os, name, call)

    def _patch_files(self) -> None:
        files, close = self.files, os.close
        for name in ("open", "dup", "memfd_create"):
            self._either(os, name, files.opening(getattr(os, name, os.open)))

        def close_real(fd: int) -> None:
            if files.closing(fd):
                close(fd)

        self._either(os, "close", close_real)

    def _refuse(self, owner: Any, name: str) -> None:
        def refuse(*args: Any, **options: Any) -> Any:
            what = owner.__name__ if name == "__init__" else f"{owner.__name__}.{name}"
            raise SimulationError(
                f"{what} is called inside of a simulation: real processes, sockets, pipes, threads and host "
                "names do not exist there"
            )

        self._either(owner, name, refuse)

    def _patch_all(self) -> None:
        found = list(refused())  # (of the real socket, not of what stands for it)
        self._patch_time()
        self._patch_threads()
        self._patch_sockets()
        self._patch_processes()
        for owner, name in found:
            self._refuse(owner, name)

    # ---- threads -------------------------------------------------------------------------------------

    def _current_thread(self) -> Any:
        task = self.kernel.current
        assert task is not None
        if task.thread is None:
            threads.attach(threading.Thread(name=task.name, daemon=False), task)
        return task.thread

    def _main_thread(self) -> Any:
        process = self.kernel.process
        assert process is not None and process.main is not None
        if process.main.thread is None:
            threads.attach(threading.Thread(name="MainThread", daemon=False), process.main)
        return process.main.thread

    def _patch_threads(self) -> None:
        for name in ("Lock", "_allocate_lock"):
            self._either(threading, name, SimLock)
        self._either(threading, "RLock", SimRLock)
        for name in ("get_ident", "get_native_id"):
            self._either(threading, name, lambda: self.kernel.current.ident)  # type: ignore[union-attr]
        self._either(threading, "current_thread", self._current_thread)
        self._either(threading, "main_thread", self._main_thread)
        self._either(threading.Thread, "start", threads.start)
        for name in ("ident", "native_id"):
            self._set(threading.Thread, name, property(_ident_of(getattr(threading.Thread, name))))
        self._either(queue, "SimpleQueue", queue._PySimpleQueue)  # type: ignore[attr-defined]
        self._number_hashes(threading.Thread)
        self._number_hashes(concurrent.futures.Future)

    # ---- sockets and descriptors ---------------------------------------------------------------------

    def _patch_sockets(self) -> None:
        table = self.table
        self._set(socket, "socket", self._socket_class(socket.socket))
        self._either(socket, "socketpair", lambda *_, **__: self.network.pair())
        self._either(socket, "gethostname", lambda: self._process().host)
        self._either(select, "poll", lambda: Poll(table))
        self._either(select, "epoll", lambda *_, **__: Epoll(table))
        for name in ("DefaultSelector", "EpollSelector", "PollSelector", "SelectSelector"):
            self._either(selectors, name, lambda: Selector(table))
        self._either(os, "eventfd", lambda *_: Event(table).fd)
        self._patch_files()
        self._by_fd("read", lambda fd, size: table[fd].take())  # type: ignore[attr-defined]
        self._by_fd("write", self._write)
        self._by_fd("close", self._close)
        self._by_fd("sendfile", self._sendfile)

    def _socket_class(self, outside: type) -> type:
        """What stands for `socket.socket`: makes simulated ones in simulated code, else real ones."""
        active = self._active

        class Door(type):
            def __call__(cls, *args: Any, **options: Any) -> Any:
                return SimSocket(*args, **options) if active() else outside(*args, **options)

            def __instancecheck__(cls, value: Any) -> bool:
                return isinstance(value, SimSocket | outside)

            def __subclasscheck__(cls, other: type) -> bool:
                return issubclass(other, SimSocket | outside)

        return Door("socket", (), {"__module__": "socket"})

    def _process(self) -> Process:
        process = self.kernel.process
        assert process is not None
        return process

    def _write(self, fd: int, data: bytes) -> int:
        descriptor: Any = self.table[fd]
        count: int = descriptor.send(data) if isinstance(descriptor, SimSocket) else descriptor.add(data)
        return count

    def _close(self, fd: int) -> None:
        if self.kernel.closing and self.table.get(fd) is None:
            return  # what is collected then may have been closed long ago
        descriptor = self.table[fd]
        if isinstance(descriptor, SimSocket):
            descriptor.close()
        else:
            descriptor.release()

    def _sendfile(self, fd: int, source: int, offset: int, count: int) -> int:
        sock = self.table[fd]
        assert isinstance(sock, SimSocket)
        data = os.pread(source, min(count, 1 << 16), offset)
        return sock.send(data) if data else 0

    # ---- processes -----------------------------------------------------------------------------------

    def _kill(self, pid: int, number: int) -> None:
        process = self.kernel.processes.get(pid)
        if process is None or not process.alive:
            raise ProcessLookupError(3, "No such process")
        if number == 0:
            return
        if number == signal.SIGSTOP:
            self.kernel.stop(process)
        elif number == signal.SIGCONT:
            self.kernel.resume(process)
        elif number == signal.SIGKILL or not callable(process.signal_handlers.get(number)):
            if process.signal_handlers.get(number) != signal.SIG_IGN:
                self.exit_process(process, number)
        elif process.main is not None:
            self.kernel.signal(process.main, number)

    def _exit(self, code: int) -> None:
        self.exit_process(self._process(), (code & 0xFF) << 8)

    def _pthread_kill(self, ident: int, number: int) -> None:
        process = self._process()
        for task in process.tasks:
            if task.ident == ident:
                self.kernel.signal(task, number)
                return
        raise ProcessLookupError(3, "No such process")

    def _signal(self, number: int, handler: Any) -> Any:
        handlers = self._process().signal_handlers
        old = handlers.get(number, signal.SIG_DFL)
        handlers[number] = handler
        return old

    def _no_children(self, *args: Any) -> Any:
        raise ChildProcessError(10, "No child processes")

    def _pidfd_open(self, pid: int, flags: int = 0) -> int:
        process = self.kernel.processes.get(pid)
        if process is None or not process.alive:
            raise ProcessLookupError(3, "No such process")
        return ProcessEnd(self.table, pid).fd

    def _patch_processes(self) -> None:
        self._either(os, "getpid", lambda: self._process().pid)
        self._either(os, "getppid", lambda: self._process().parent.pid if self._process().parent else 1)  # type: ignore[union-attr]
        self._either(os, "getpgrp", lambda: self._process().pid)
        self._either(os, "kill", self._kill)
        self._either(os, "killpg", lambda pid, number: None)
        self._either(os, "_exit", self._exit)
        for name in ("wait", "wait3", "wait4", "waitpid", "waitid"):
            self._either(os, name, self._no_children)
        self._either(os, "pidfd_open", self._pidfd_open)
        self._patch_chance()
        self._either(os, "register_at_fork", lambda **_: None)
        self._either(os, "chdir", lambda path: None)
        self._either(signal, "signal", self._signal)
        self._either(signal, "getsignal", lambda n: self._process().signal_handlers.get(n, signal.SIG_DFL))
        self._either(signal, "pthread_kill", self._pthread_kill)
        self._either(signal, "pthread_sigmask", lambda *_: set())
        self._either(signal, "set_wakeup_fd", lambda *_, **__: -1)
        self._either(signal, "siginterrupt", lambda *_: None)
        # A signal handler is told where its thread was: not in here.
        self.kernel.frame_of_interest = _outer_frame

    def _patch_chance(self) -> None:
        choices, seed = self.kernel.choices, random.Random.seed

        def seeded(source: random.Random, a: Any = None, version: int = 2) -> None:
            seed(source, choices.bytes(32) if a is None else a, version)

        self._either(os, "urandom", choices.bytes)
        self._either(os, "getrandom", lambda size, flags=0: choices.bytes(size))
        self._either(random, "_urandom", choices.bytes)
        self._either(random.Random, "seed", seeded)
        self._either(ssl, "RAND_bytes", choices.bytes)
        self._either(uuid, "uuid1", lambda *_: uuid.UUID(bytes=choices.bytes(16), version=1))


def _ident_of(outside: Any) -> Callable[[threading.Thread], int | None]:
    """The number of a thread, whatever it is of."""

    def ident(thread: threading.Thread) -> int | None:
        task = threads.task_of(thread)
        number: int | None = outside.fget(thread) if task is None else task.ident
        return number

    return ident


def _outer_frame() -> Any:
    """The innermost frame that is not the simulation's own."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back  # type: ignore[assignment]
    return frame
