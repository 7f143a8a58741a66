"""The one accessor to the runtime of this process."""

from __future__ import annotations

import os
from _thread import RLock  # (that of `threading`, which is slow to load)
from collections.abc import Callable

TYPE_CHECKING = False  # (until a node has been started, nothing loads `typing`: see `framework._session`)
if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class _Current:
    """Holds the runtime, and what starts one on first use."""

    def __init__(self) -> None:
        self.runtime: Runtime | None = None
        self.pid = 0
        self.lock = RLock()
        self.auto_init: Callable[[], object] | None = None
        self.was_shut_down = False
        self.forks = 0  #: how many lie between this process and the one that has loaded this
        self.may_be_fork = False  #: the runtime may be that of the process from which this one was forked
        self.abandoned: list[
            Runtime
        ] = []  #: of our parent, after a fork: never finalized, it shares descriptors with ours

    def forked(self) -> None:
        """In a forked child: whoever held the lock is not here."""
        self.lock = RLock()
        self.forks += 1
        self.may_be_fork = True


_current = _Current()
here = _current  #: for those for whom a call of `current` is too much: see there
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_current.forked)


def set_current(runtime: Runtime | None) -> None:
    """Install (or, with None, remove) the runtime of this process."""
    _current.was_shut_down = runtime is None and _current.runtime is not None
    if is_fork():
        _current.was_shut_down = False
        assert _current.runtime is not None
        _current.abandoned.append(_current.runtime)
    _current.runtime = runtime
    _current.pid = os.getpid()
    _current.may_be_fork = not hasattr(os, "register_at_fork")


def is_fork() -> bool:
    """Whether the runtime here is that of the process from which this one was forked."""
    return _current.runtime is not None and _current.pid != os.getpid()


def fork_count() -> int:
    """Another number in a fork than in the process that it was forked from. (Asking the system, by `getpid`,
    takes five times as long.)"""
    return _current.forks


def set_auto_init(function: Callable[[], object]) -> None:
    """What to call when the API is used before `init`."""
    _current.auto_init = function


def existing() -> Runtime | None:
    """The runtime, if this process (and not the one it was forked from) has one."""
    runtime = _current.runtime
    return runtime if runtime is not None and _current.pid == os.getpid() else None


def current() -> Runtime:
    """The runtime; started now if `init` has not been called yet.

    Raises `ForkedProcessError` in a forked child of a connected process, `NotInitializedError` after
    `shutdown`.
    """
    runtime = _current.runtime
    if runtime is not None:
        if _current.may_be_fork and runtime.pid != os.getpid():
            raise _forked_error(runtime)
        return runtime
    from framework.exceptions import NotInitializedError

    if _current.was_shut_down:
        raise NotInitializedError(
            "the framework was shut down in this process: call framework.init() again first"
        )
    if _current.auto_init is None:
        raise NotInitializedError("call framework.init() first")
    with _current.lock:
        if _current.runtime is None:
            _current.auto_init()
        runtime = _current.runtime
    assert runtime is not None
    return runtime


def _forked_error(runtime: Runtime) -> Exception:
    from framework.exceptions import ForkedProcessError

    return ForkedProcessError(
        f"this process (pid {os.getpid()}) is a fork of one that is connected (pid {runtime.pid}) and cannot "
        "use its "
        "connections: use remote tasks instead of os.fork or multiprocessing's fork, start the child with "
        "multiprocessing's "
        "'spawn' method, or call framework.init() in the child to start a session of its own"
    )


def start_lock() -> RLock:
    """Held while a runtime is started or stopped."""
    return _current.lock


def forget_shutdown() -> None:
    """For `init` after a fork or a shutdown: begin anew."""
    _current.was_shut_down = False
