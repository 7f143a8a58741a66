"""A backend for joblib: what is written for ``joblib.Parallel``, scikit-learn included, runs on the cluster.

    from framework.util.joblib import register_framework

    register_framework()
    with joblib.parallel_config(backend="framework"):
        joblib.Parallel()(joblib.delayed(f)(x) for x in items)

Needs the extra: ``pip install framework[joblib]``.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

import framework as fw
from framework.util._crew import Crew, cluster_cpus

try:
    from joblib.parallel import (
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
        register_parallel_backend,
    )
except ImportError as error:
    raise ImportError(
        f"framework.util.joblib needs joblib 1.5 or newer: pip install 'framework[joblib]' ({error})"
    ) from error

__all__ = ["FrameworkBackend", "register_framework", "register_ray"]

SHARED_FROM = 1024 * 1024
"""Bytes above which an array is put into the store once, unless ``Parallel(max_nbytes=...)`` says otherwise:
joblib's own default."""


def register_framework() -> None:
    """Make the backend known to joblib, under the name ``"framework"``."""
    register_parallel_backend("framework", FrameworkBackend)


def register_ray() -> None:
    """As `register_framework`, under Ray's name for its backend: ``"ray"``."""
    register_parallel_backend("ray", FrameworkBackend)


class FrameworkBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs the batches of ``Parallel`` in worker actors.

    n_jobs: the number of workers; -1 means the CPUs of the cluster, -2 one less, and so on. 1 runs in the
    calling process. Within ``parallel_config`` the workers are kept from one ``Parallel`` to the next.

    Large numpy arrays among the arguments of a call are put into the object store once per ``Parallel`` call
    and read there by all workers, without a copy; they are read-only, as those that joblib maps into memory.

    ``Parallel`` inside of a worker uses threads, and inside of those nothing: joblib's default.

    options: options of the worker actors, as in ``parallel_config(backend="framework", options={...})``.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        options: Mapping[str, Any] | None = None,
        **backend_kwargs: Any,
    ) -> None:
        super().__init__(
            nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **backend_kwargs
        )
        self._options = dict(options or {})
        self._crew: Crew | None = None
        self._n_jobs = 1
        self._max_nbytes: int | None = SHARED_FROM
        self._arrays = _SharedArrays()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers that is."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(cluster_cpus() + 1 + n_jobs, 1)

    def configure(
        self,
        n_jobs: int | None = 1,
        parallel: Any = None,
        max_nbytes: int | None = SHARED_FROM,
        **ignored: Any,
    ) -> int:
        """joblib: a ``Parallel`` is going to use this."""
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        workers = self.effective_n_jobs(n_jobs)
        if workers != self._n_jobs:
            self._drop_crew()
        self._n_jobs = workers
        self._max_nbytes = max_nbytes
        self.parallel = parallel
        return workers

    def _workers(self) -> Crew:
        crew = self._crew
        if crew is None or crew.broken is not None:
            crew = self._crew = Crew(self._n_jobs, options=self._actor_options())
        return crew

    def _actor_options(self) -> dict[str, Any]:
        threads = self.inner_max_num_threads
        if threads is None:
            return self._options
        environment = dict(self._options.get("runtime_env") or {})
        limits = dict.fromkeys(self.MAX_NUM_THREADS_VARS, str(threads))
        environment["env_vars"] = {**limits, **environment.get("env_vars", {})}
        return {**self._options, "runtime_env": environment}

    def submit(self, func: Any, callback: Callable[[Future[Any]], object] | None = None) -> Future[Any]:
        """joblib: run a batch."""
        batch, arrays = self._arrays.take_out(func, self._max_nbytes)
        future = self._workers().submit(_run_batch, (batch, *arrays))
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """joblib: the results of a batch."""
        return out.result()

    def stop_call(self) -> None:
        """joblib: a call is over."""
        self._arrays.forget()

    def terminate(self) -> None:
        """joblib: a ``Parallel`` is done with this. (The workers end with the backend.)"""
        self._arrays.forget()
        self.parallel = None
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """joblib: a call has failed, and nobody wants the others."""
        if self._crew is not None:
            self._crew.terminate()
            self._crew = None
        self._arrays.forget()

    def _drop_crew(self) -> None:
        if self._crew is not None:
            self._crew.close()
            self._crew = None


class _Array:
    """Stands for an array that was taken out of the arguments of a call."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Array, (self.index,))


class _SharedArrays:
    """The arrays of a ``Parallel`` call that are in the store. Each goes when its original does."""

    def __init__(self) -> None:
        self._refs: dict[int, tuple[weakref.ref[Any], fw.ObjectRef[Any]]] = {}

    def forget(self) -> None:
        """The call is over: they may be changed before the next."""
        self._refs.clear()

    def take_out(self, batch: Any, limit: int | None) -> tuple[Any, list[fw.ObjectRef[Any]]]:
        """The calls of a batch without their large arrays, and references to those."""
        items = getattr(batch, "items", None)
        if limit is None or not isinstance(items, list):
            return batch, []
        found: dict[int, _Array] = {}
        refs: list[fw.ObjectRef[Any]] = []

        def lean(value: Any) -> Any:
            if type(value) is not np.ndarray or value.nbytes <= limit or value.dtype.hasobject:
                return value
            if id(value) not in found:
                found[id(value)] = _Array(len(refs))
                refs.append(self._ref(value))
            return found[id(value)]

        calls = [
            (function, tuple(map(lean, args)), {name: lean(value) for name, value in kwargs.items()})
            for function, args, kwargs in items
        ]
        if not refs:
            return batch, []
        lighter = _copy_of(batch)
        lighter.items = calls
        return lighter, refs

    def _ref(self, array: Any) -> fw.ObjectRef[Any]:
        key, refs = id(array), self._refs
        known = refs.get(key)
        if known is not None and known[0]() is array:
            return known[1]

        def gone(dead: weakref.ref[Any]) -> None:
            with contextlib.suppress(KeyError):
                if refs[key][0] is dead:
                    del refs[key]

        ref = fw.put(array)
        refs[key] = (weakref.ref(array, gone), ref)
        return ref


def _copy_of(batch: Any) -> Any:
    """(Not by copy.copy: a batch tells joblib when it is pickled.)"""
    other = object.__new__(type(batch))
    other.__dict__.update(batch.__dict__)
    return other


def _run_batch(batch: Any, *arrays: Any) -> Any:
    """In a worker: the results of the calls of a batch."""
    if arrays:

        def whole(value: Any) -> Any:
            return arrays[value.index] if type(value) is _Array else value

        batch.items = [
            (function, tuple(map(whole, args)), {name: whole(value) for name, value in kwargs.items()})
            for function, args, kwargs in batch.items
        ]
    return batch()
