"""The worker side of a crew (see `framework.util._crew`), and how what happens there is told to users."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeGuard

import framework as fw
from framework.exceptions import (
    ActorDiedError,
    ActorError,
    LocalNodeDiedError,
    NodeDiedError,
    NotInitializedError,
    TaskError,
    WorkerCrashedError,
)

#: the worker, or all of them, cannot be reached any more
_LOST = (ActorError, WorkerCrashedError, NodeDiedError, LocalNodeDiedError, NotInitializedError)
SESSION_LOST = (LocalNodeDiedError, NotInitializedError)


class BrokenWorkerPool(BrokenProcessPool):
    """A worker of the pool died, or its initializer failed; the pool cannot be used any more.

    A `concurrent.futures.BrokenExecutor`, and the `BrokenProcessPool` that users of `ProcessPoolExecutor`
    catch. ``__cause__`` says what happened: `ActorDiedError` with the exit code or signal of the worker, or
    the exception of the initializer. What to do: make a new pool; see `max_retries` of `PoolExecutor`.
    """


class RemoteTraceback(Exception):
    """The ``__cause__`` of an exception that a call raised in a worker: its text is the traceback there.

    tb: that text.
    """

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return f'\n"""\n{self.tb}\n"""'


class _Exited(Exception):
    """A call has raised `SystemExit`: in an actor that would end the process."""


class _Unprepared(Exception):
    """The initializer of this worker has failed."""


class PoolWorker:
    """The actor that runs the calls of a crew."""

    def __init__(self) -> None:
        self._unusable = False

    def prepare(self, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
        """Run the initializer, once, before all calls."""
        self._unusable = True
        try:
            initializer(*initargs)
        except SystemExit as error:
            raise _Exited(*error.args) from None
        self._unusable = False

    def run(self, function: Callable[..., Any], kwargs: dict[str, Any] | None, /, *args: Any) -> Any:
        """One call. References among the arguments are replaced by their values."""
        if self._unusable:
            raise _Unprepared("the initializer of this worker has failed")
        if kwargs:
            found = {name: value for name, value in kwargs.items() if isinstance(value, fw.ObjectRef)}
            kwargs.update(zip(found, fw.get(list(found.values())), strict=True))
        try:
            return function(*args, **(kwargs or {}))
        except SystemExit as error:
            raise _Exited(*error.args) from None


RemoteWorker = fw.remote(PoolWorker)


def as_raised(error: BaseException) -> BaseException:
    """What a call raised, of exactly its class, with the remote traceback as its ``__cause__``, as
    `ProcessPoolExecutor` has it."""
    if not isinstance(error, TaskError):
        return error
    cause = error.cause
    if isinstance(cause, _Exited):
        cause = SystemExit(*cause.args)
    cause.__cause__ = RemoteTraceback(str(error))
    return cause


def is_loss(error: BaseException | None) -> TypeGuard[BaseException]:
    """Whether it says that the worker cannot be used any more."""
    if isinstance(error, TaskError):
        return isinstance(error.cause, _Unprepared)
    return isinstance(error, _LOST)


def crashed(error: BaseException) -> BaseException:
    """For a call whose worker died: the facts, without the words about actors."""
    if not isinstance(error, ActorDiedError):
        return error
    told = WorkerCrashedError(error.cause, pid=error.pid, exit_detail=error.exit_detail)
    told.__cause__ = error
    return told


def reason_of(cause: BaseException | None) -> str:
    if isinstance(cause, ActorError | LocalNodeDiedError | NotInitializedError):
        return str(cause)
    return f"its initializer failed with {cause!r}" if cause is not None else "it is broken"
