"""`PoolExecutor`: a `concurrent.futures.Executor` whose workers are actors."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - registers for the interpreter's exit, before _Exit does
import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from framework.util._crew import Crew, cluster_cpus, run_chunk
from framework.util._pool_worker import BrokenWorkerPool, RemoteTraceback

__all__ = ["BrokenWorkerPool", "PoolExecutor", "RemoteTraceback"]

P = ParamSpec("P")
T = TypeVar("T")


class PoolExecutor(Executor):
    """A `concurrent.futures.Executor` over the cluster, for code that is written for `ProcessPoolExecutor`.

    max_workers: the most processes at a time; by default the CPUs of the cluster. They start when they are
        needed.
    initializer, initargs: called once in each worker, before its calls. When it fails the executor is broken.
    max_tasks_per_child: a worker is replaced after so many calls.
    max_retries: how often a call whose worker died is run again, in a new worker. With 0, the default, and
        when they are used up, the executor is broken, as `ProcessPoolExecutor` is: the call may have had
        effects, and is not repeated unasked.
    options: options of the worker actors, such as ``{"num_cpus": 1}`` or ``{"runtime_env": ...}``. By default
        they hold no resources.

    What a call raises has exactly the class it had, with a `RemoteTraceback` as its ``__cause__``. References
    given as arguments are replaced by their values, as by ``.remote()``.

    Done-callbacks run in a thread of the framework, one after the other: do not block there. An executor that
    is dropped finishes what it was given; then its workers end.

    Raises `ValueError` or `TypeError` for arguments that make no sense.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        max_retries: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        if max_retries < 0:
            raise ValueError("max_retries must be >= 0")
        self._crew = Crew(
            max_workers or cluster_cpus(),
            initializer=initializer,
            initargs=initargs,
            tasks_per_worker=max_tasks_per_child,
            retries=max_retries,
            options=options,
        )
        _exit.wait_for(self._crew)

    @property
    def max_workers(self) -> int:
        """The most worker processes at a time."""
        return self._crew.size

    _max_workers = max_workers

    @property
    def _broken(self) -> bool:
        return self._crew.broken is not None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule ``fn(*args, **kwargs)``; its future. Never blocks.

        The future is pending until a worker has the call, and can be cancelled so long. An argument that
        cannot be pickled is the exception of the future. Raises `RuntimeError` after `shutdown`,
        `BrokenWorkerPool` when a worker has died.
        """
        return self._crew.submit(fn, args, kwargs or None, refuse=self._refuse)

    def _refuse(self) -> None:
        if self._crew.broken is None and self._crew.closed:
            if _exit.begun:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            raise RuntimeError("cannot schedule new futures after shutdown")

    # (The stub of the base differs from one version of Python to the next.)
    def map(  # type: ignore[override,unused-ignore]
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Any,
    ) -> Iterator[T]:
        """As `map`, with the calls made concurrently; results in order. The iterables are read at once.

        timeout: seconds from now after which taking a result raises `TimeoutError`.
        chunksize: so many calls are sent to a worker as one, which is far faster for short ones; the first
            exception in a chunk is that of the chunk.
        options: what `Executor.map` of this Python takes beyond these (``buffersize`` from 3.14).
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **options)
        chunks = _chunked(zip(*iterables, strict=False), chunksize)
        return _flattened(super().map(functools.partial(run_chunk, fn), chunks, timeout=timeout, **options))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; the workers end when all are done.

        wait: block until then. cancel_futures: cancel the calls that no worker has yet.
        """
        self._crew.closed = True
        if cancel_futures:
            self._crew.cancel_queued()
        self._crew.close()
        if wait:
            self._crew.wait()


def _chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _flattened(chunks: Iterator[list[T]]) -> Iterator[T]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()  # no reference stays here


# ---- the end of the interpreter ----------------------------------------------------------------------


class _Exit:
    """Which crews the interpreter waits for before it ends."""

    def __init__(self) -> None:
        self.begun = False
        self._lock = threading.Lock()
        self._crews: weakref.WeakSet[Crew] = weakref.WeakSet()
        self._registered = False

    def wait_for(self, crew: Crew) -> None:
        """Let its queue run empty when the interpreter ends."""
        with self._lock:
            if not self._registered:
                self._registered = True
                # Before the end of the threads that complete futures, which is what concurrent.futures
                # itself does; atexit would be too late.
                getattr(threading, "_register_atexit", atexit.register)(self._at_exit)
            self._crews.add(crew)

    def _at_exit(self) -> None:
        self.begun = True
        with self._lock:
            crews = list(self._crews)
        for crew in crews:
            crew.closed = True
        for crew in crews:
            crew.wait()


_exit = _Exit()
