"""Objects from one node of a cluster to others: nodes are processes of this machine, joined by loopback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

import framework as fw
from framework.benchmarks.floors import TCP_COPY
from framework.benchmarks.model import GB_PER_SECOND, PER_SECOND, SECONDS, Measure, Row, Settings, Workload
from framework.benchmarks.runner import time_measure
from framework.benchmarks.stored import wait_until_free
from framework.cluster_utils import Cluster

_LARGE = 256 * 1024 * 1024
_STORE = 1024 * 1024 * 1024
_GIGABYTE = 1024**3
_SMALL = 101 * 1024  # just too large for a message
_MANY = 1_000
_READERS = 8


def _make(nbytes: int, count: int) -> Any:
    made = [np.ones(nbytes, dtype=np.uint8) for _ in range(count)]
    return made if count > 1 else made[0]


def _read(array: Any) -> int:
    return len(array)


@contextmanager
def _cluster(nodes: int, store: int, tls: bool = False) -> Iterator[list[dict[str, Any]]]:
    """The driver's node and others; yields for each of those the option that names it."""
    cluster = Cluster(tls=tls)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=store)
        options = []
        for number in range(nodes):
            cluster.add_node(num_cpus=1, resources={f"n{number}": 1}, object_store_memory=store)
            options.append({"resources": {f"n{number}": 0.001}, "num_cpus": 0})
        with fw.init(address=cluster.address, log_to_driver=False):
            cluster.wait_for_nodes()
            yield options
    finally:
        cluster.shutdown()


def _pull(tls: bool) -> Callable[[Settings], AbstractContextManager[Measure]]:
    @contextmanager
    def prepare(settings: Settings) -> Iterator[Measure]:
        with _cluster(1, _STORE, tls) as (there,):
            make: Any = fw.remote(_make).options(**there)

            def once() -> float:
                ref = make.remote(_LARGE, 1)
                fw.wait([ref], fetch_local=False)
                begin = time.perf_counter()
                fw.wait([ref])
                taken = time.perf_counter() - begin
                del ref
                wait_until_free()
                return taken

            for _ in range(3):
                once()  # provides the memory, on both sides

            def measure(seconds: float) -> Sequence[float]:
                end = time.perf_counter() + seconds
                taken = [once()]
                while time.perf_counter() < end:
                    taken.append(once())
                return (_LARGE * len(taken) / sum(taken) / 1e9,)

            yield measure

    return prepare


@contextmanager
def _pull_many(settings: Settings) -> Iterator[Measure]:
    count = settings.batch(_MANY)
    with _cluster(1, _STORE) as (there,):
        make: Any = fw.remote(_make).options(num_returns=count, **there)

        def measure(seconds: float) -> Sequence[float]:
            refs = make.remote(_SMALL, count)
            fw.wait(refs, num_returns=count, fetch_local=False)
            begin = time.perf_counter()
            fw.get(refs)
            taken = time.perf_counter() - begin
            del refs
            wait_until_free()
            return (count / taken,)

        yield measure


@contextmanager
def _broadcast(settings: Settings) -> Iterator[Measure]:
    nbytes = settings.batch(_GIGABYTE)
    with _cluster(_READERS, nbytes + _GIGABYTE // 8) as nodes:
        read: Any = fw.remote(_read)
        fw.get([read.options(**node).remote(b"") for node in nodes])

        def timed() -> float:
            ref = fw.put(np.ones(nbytes, dtype=np.uint8))
            begin = time.perf_counter()
            fw.get([read.options(**node).remote(ref) for node in nodes])
            taken = time.perf_counter() - begin
            del ref
            wait_until_free()
            return taken

        yield time_measure(timed)


WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "nodes",
        (Row("object of 256 MiB from another node", GB_PER_SECOND, TCP_COPY),),
        _pull(False),
        product=False,
    ),
    Workload("nodes", (Row("the same, encrypted", GB_PER_SECOND, TCP_COPY),), _pull(True), product=False),
    Workload(
        "nodes", (Row("get of 1k stored objects of another node", PER_SECOND),), _pull_many, product=False
    ),
    Workload(
        "nodes",
        (Row("broadcast of 1 GiB to 8 nodes", SECONDS),),
        _broadcast,
        product=False,
        once=True,
    ),
)
