"""`Pool`: the interface of ``multiprocessing.Pool`` over worker actors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import framework as fw
from framework.util._crew import Crew, cluster_cpus
from framework.util.multiprocessing.results import (
    AsyncResult,
    IMapIterator,
    flattened,
    sender,
    single,
)

T = TypeVar("T")

_RUN, _CLOSE, _TERMINATE = "RUN", "CLOSE", "TERMINATE"


class Pool:
    """A pool of worker processes with the interface of ``multiprocessing.Pool``.

    processes: by default the CPUs of the cluster.
    initializer, initargs: called once in each process. When it fails, the pool is broken: all results raise
        `BrokenWorkerPool`. (That of multiprocessing starts processes for ever.)
    maxtasksperchild: a process is replaced after so many calls or chunks of calls.
    context: accepted and not used.
    ray_address: of the session to connect to, where there is none yet, see `init`.
    ray_remote_args: options of the worker actors, such as ``{"num_cpus": 1}``; by default they hold no
        resources.

    A process that dies is replaced; the result that it worked on raises `WorkerCrashedError`. Exceptions
    have exactly the class that the call raised, and a `RemoteTraceback` as ``__cause__``. Callbacks run in a
    thread of the framework, one after the other: do not block there.

    Raises `ValueError` or `TypeError` for arguments that make no sense.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: object = None,
        ray_address: str | None = None,
        ray_remote_args: Mapping[str, Any] | None = None,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if ray_address is not None and not fw.is_initialized():
            fw.init(address=ray_address)
        self._processes = processes or cluster_cpus()
        self._state = _RUN
        self._open: weakref.WeakSet[IMapIterator[Any]] = weakref.WeakSet()
        self._crew = Crew(
            self._processes,
            initializer=initializer,
            initargs=tuple(initargs),
            tasks_per_worker=maxtasksperchild,
            replace=True,
            eager=True,
            options=ray_remote_args,
        )

    # ---- one call ------------------------------------------------------------------------------------

    def apply(
        self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None
    ) -> T:
        """``func(*args, **kwds)`` in a worker; blocks until the result is there."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """As `apply`, without waiting. `callback` gets the result, `error_callback` the exception."""
        self._check_running()
        future = self._crew.submit(func, tuple(args), dict(kwds) if kwds else None)
        return AsyncResult(self, [future], single, callback, error_callback)

    # ---- many calls ----------------------------------------------------------------------------------

    def map(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None) -> list[T]:
        """``[func(item) for item in iterable]``, by all processes; blocks.

        chunksize: so many calls are sent as one; by default a quarter of what a process has to do.
        """
        return self.map_async(func, iterable, chunksize).get()

    def starmap(
        self, func: Callable[..., T], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[T]:
        """As `map`, for ``func(*item)``."""
        return self.starmap_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """As `map`, without waiting. `callback` gets the whole list, `error_callback` the first exception,
        when all calls are done."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, star=False)

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[T]]:
        """As `starmap`, without waiting, see `map_async`."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, star=True)

    def _map_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        star: bool,
    ) -> AsyncResult[list[T]]:
        self._check_running()
        items = list(iterable)
        if chunksize is None:
            chunksize = -(-len(items) // (4 * self._processes)) or 1
        elif chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        send = sender(self, func, star)
        starts = range(0, len(items), chunksize)
        futures: list[Future[Any]] = [send(items[start : start + chunksize]) for start in starts]
        combine: Callable[[list[Any]], list[T]] = flattened
        return AsyncResult(self, futures, combine, callback if futures else None, error_callback)

    def imap(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator[T]:
        """The results of ``func(item)`` in order, as they are made. The iterable is read as they are
        taken, some chunks ahead."""
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator[T]:
        """As `imap`, in the order in which chunks are done."""
        return self._imap(func, iterable, chunksize, ordered=False)

    def _imap(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int, ordered: bool
    ) -> IMapIterator[T]:
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        found: IMapIterator[T] = IMapIterator(
            self, sender(self, func, False), iterable, chunksize, ordered=ordered
        )
        if not found._exhausted:
            self._open.add(found)
        return found

    def _send(
        self,
        call: Callable[[Callable[..., T], list[Any]], list[T]],
        function: Callable[..., T],
        chunk: list[Any],
    ) -> Future[list[T]]:
        return self._crew.submit(call, (function, chunk))

    # ---- the end -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls; the processes end when all that were given are done."""
        if self._state == _RUN:
            self._state = _CLOSE
            self._close_when_read()

    def terminate(self) -> None:
        """Kill the processes now. Results that are not there raise `TaskCancelledError`."""
        self._state = _TERMINATE
        self._crew.terminate()

    def join(self) -> None:
        """Wait until all calls are done. Raises `ValueError` before `close` or `terminate`."""
        if self._state == _RUN:
            raise ValueError("Pool is still running")
        if self._state == _CLOSE:
            for iterator in list(self._open):
                iterator._read(everything=True)
        self._crew.wait()

    def _iterator_is_read(self, iterator: IMapIterator[Any]) -> None:
        self._open.discard(iterator)
        if self._state == _CLOSE:
            self._close_when_read()

    def _close_when_read(self) -> None:
        if not self._open:
            self._crew.close()

    def _check_running(self) -> None:
        if self._state != _RUN:
            raise ValueError("Pool not running")

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.terminate()

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} state={self._state} pool_size={self._processes}>"
