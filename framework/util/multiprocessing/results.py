"""What `Pool` returns before it has the results: `AsyncResult` and `IMapIterator`."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from multiprocessing import TimeoutError
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from framework._base.limits import POOL_IMAP_AHEAD
from framework._service.blocking import patiently

if TYPE_CHECKING:
    from framework.util.multiprocessing.pool import Pool

T = TypeVar("T")
S = TypeVar("S")

_log = logging.getLogger(__name__)


class AsyncResult(Generic[T]):
    """The result of ``apply_async``, ``map_async`` or ``starmap_async``, now or later.

    `futures`: of the calls or chunks of calls that make it up, `combine`: the result from theirs.
    """

    def __init__(
        self,
        pool: Pool,
        futures: list[Future[Any]],
        combine: Callable[[list[Any]], T],
        callback: Callable[[T], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        self._pool: Pool | None = pool  # which lives as long as somebody waits for it
        self._futures = futures
        self._combine = combine
        self._callback = callback
        self._error_callback = error_callback
        self._value: Any = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._missing = len(futures)
        self._event = threading.Event()
        if not futures:
            self._value = combine([])
            self._settle()
        for future in list(futures):
            future.add_done_callback(self._one_done)

    def _one_done(self, future: Future[Any]) -> None:
        error = future.exception()
        with self._lock:
            if error is not None and self._error is None:
                self._error = error  # the first one to happen, as multiprocessing has it
            self._missing -= 1
            if self._missing:
                return
        if self._error is None:
            self._value = self._combine([future.result() for future in self._futures])
            self._tell(self._callback, self._value)
        else:
            self._tell(self._error_callback, self._error)
        self._settle()

    @staticmethod
    def _tell(callback: Callable[[Any], object] | None, value: object) -> None:
        if callback is not None:
            try:
                callback(value)
            except Exception:
                _log.exception("exception in a callback of a pool")

    def _settle(self) -> None:
        self._event.set()
        self._futures = []
        self._pool = self._callback = self._error_callback = None

    def ready(self) -> bool:
        """Whether the result, or the exception, is there. (Callbacks have been called by then.)"""
        return self._event.is_set()

    def successful(self) -> bool:
        """Whether there was no exception. Raises `ValueError` when it is not ready."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Block until it is ready, or `timeout` seconds have passed."""
        patiently(self._event.wait, timeout)

    def get(self, timeout: float | None = None) -> T:
        """The result; raises what the call raised, `multiprocessing.TimeoutError` when it is not there in
        time."""
        if not patiently(self._event.wait, timeout):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value


def flattened(chunks: list[list[S]]) -> list[S]:
    """The results of all chunks, in order."""
    return list(itertools.chain.from_iterable(chunks))


class IMapIterator(Generic[T]):
    """The results of ``imap`` or ``imap_unordered``, while they are made.

    The iterable is read as results are taken: at most `POOL_IMAP_AHEAD` chunks per process are on their way
    or wait to be taken. `Pool.join` reads the rest.
    """

    def __init__(
        self,
        pool: Pool,
        send: Callable[[list[Any]], Future[list[T]]],
        iterable: Iterable[Any],
        chunksize: int,
        *,
        ordered: bool,
    ) -> None:
        self._pool: Pool | None = pool
        self._send = send
        self._source = iter(iterable)
        self._chunksize = chunksize
        self._ahead = POOL_IMAP_AHEAD * pool._processes
        self._lock = threading.Lock()  # of whoever reads the source
        self._exhausted = False
        self._under_way = 0  #: chunks that were sent, and their results not taken
        self._in_order: deque[Future[list[T]]] | None = deque() if ordered else None
        self._done: SimpleQueue[Future[list[T]]] = SimpleQueue()
        self._taken: deque[T] = deque()  #: the results of the chunk that was taken last
        self._failed = False
        self._read()

    def _read(self, everything: bool = False) -> None:
        """Send as many chunks as may be under way, or all that there are."""
        with self._lock:
            while not self._exhausted and (everything or self._under_way < self._ahead):
                self._send_next()
        if self._exhausted and self._pool is not None:
            self._pool._iterator_is_read(self)
            self._pool = None

    def _send_next(self) -> None:
        failure: BaseException | None = None
        chunk: list[Any] = []
        try:
            chunk.extend(itertools.islice(self._source, self._chunksize))
        except Exception as error:  # of the iterable: it comes after the results of what it gave before
            failure = error
        if len(chunk) < self._chunksize:
            self._exhausted = True
        for future in self._futures_of(chunk, failure):
            self._under_way += 1
            if self._in_order is not None:
                self._in_order.append(future)
            else:
                future.add_done_callback(self._done.put)

    def _futures_of(self, chunk: list[Any], failure: BaseException | None) -> Iterator[Future[list[T]]]:
        if chunk:
            try:
                yield self._send(chunk)
            except Exception as error:  # the pool has ended
                failure = failure or error
        if failure is not None:
            self._exhausted = True
            failed: Future[list[T]] = Future()
            failed.set_exception(failure)
            yield failed

    def __iter__(self) -> IMapIterator[T]:
        return self

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: float | None = None) -> T:
        """The next result; `multiprocessing.TimeoutError` when it is not there in `timeout` seconds. Raises
        what the call raised; with a chunksize of 1 the next ones can be taken after that."""
        while not self._taken:
            if self._failed:
                raise StopIteration
            future = self._next_done(timeout)
            if future is None:
                raise StopIteration
            self._under_way -= 1
            self._read()
            try:
                self._taken.extend(future.result())
            except BaseException:
                self._failed = self._chunksize > 1  # as multiprocessing: the rest is not given out
                raise
        return self._taken.popleft()

    def _next_done(self, timeout: float | None) -> Future[list[T]] | None:
        """The next chunk that is done; None when there is none any more."""
        if not self._under_way:
            return None
        if self._in_order is None:
            try:
                return self._done.get(timeout=timeout)
            except Empty:
                raise TimeoutError from None
        future = self._in_order[0]
        try:
            future.exception(timeout)
        except FutureTimeoutError:
            raise TimeoutError from None
        return self._in_order.popleft()


def single(results: list[Any]) -> Any:
    """Of a result that is that of one call."""
    return results[0]


def call_star(function: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    """In a worker: a chunk of ``starmap``."""
    return list(itertools.starmap(function, chunk))


def call_each(function: Callable[[Any], T], chunk: list[Any]) -> list[T]:
    """In a worker: a chunk of ``map``."""
    return list(map(function, chunk))


def sender(pool: Pool, function: Callable[..., T], star: bool) -> Callable[[list[Any]], Future[list[T]]]:
    """What sends a chunk of arguments to a worker of the pool."""
    return partial(pool._send, call_star if star else call_each, function)
