"""Import, start, first result: one system, once, in this process. Prints the seconds of each as JSON.

A script of its own (``python -P first_result.py SYSTEM CPUS``): a peer's figure must not contain our import.
The imports are inside the functions because importing is part of what is measured.
"""

from __future__ import annotations

import json
import operator
import sys
import time
from collections.abc import Callable

Stages = tuple[float, float, float, float, float]  # before import, after it, started, first result, ended


def _framework(cpus: int) -> Stages:
    begin = time.perf_counter()
    import framework as fw

    imported = time.perf_counter()
    fw.init(num_cpus=cpus, log_to_driver=False)
    started = time.perf_counter()
    work = fw.remote(_add)
    check(fw.get(work.remote(1, 2)))
    result = time.perf_counter()
    fw.shutdown()
    return begin, imported, started, result, time.perf_counter()


def _process_pool(cpus: int) -> Stages:
    begin = time.perf_counter()
    from concurrent.futures import ProcessPoolExecutor

    imported = time.perf_counter()
    pool = ProcessPoolExecutor(cpus)
    started = time.perf_counter()
    check(pool.submit(operator.add, 1, 2).result())
    result = time.perf_counter()
    pool.shutdown()
    return begin, imported, started, result, time.perf_counter()


def _loky(cpus: int) -> Stages:
    begin = time.perf_counter()
    from loky import get_reusable_executor

    imported = time.perf_counter()
    pool = get_reusable_executor(max_workers=cpus)
    started = time.perf_counter()
    check(pool.submit(operator.add, 1, 2).result())
    result = time.perf_counter()
    pool.shutdown()
    return begin, imported, started, result, time.perf_counter()


def _ray(cpus: int) -> Stages:
    begin = time.perf_counter()
    import ray

    imported = time.perf_counter()
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    started = time.perf_counter()
    check(ray.get(ray.remote(_add).remote(1, 2)))
    result = time.perf_counter()
    ray.shutdown()
    return begin, imported, started, result, time.perf_counter()


def _dask(cpus: int) -> Stages:
    begin = time.perf_counter()
    from distributed import Client, LocalCluster

    imported = time.perf_counter()
    cluster = LocalCluster(n_workers=cpus, threads_per_worker=1, dashboard_address=None)
    client = Client(cluster)
    started = time.perf_counter()
    check(client.submit(operator.add, 1, 2, pure=False).result())
    result = time.perf_counter()
    client.close()
    cluster.close()
    return begin, imported, started, result, time.perf_counter()


def _xoscar(cpus: int) -> Stages:
    begin = time.perf_counter()
    import asyncio

    import xoscar as xo

    imported = time.perf_counter()

    class Adder(xo.Actor):  # type: ignore[misc]
        async def add(self, left: int, right: int) -> int:
            return left + right

    async def run() -> Stages:
        pool = await xo.create_actor_pool("127.0.0.1", n_process=cpus)
        started = time.perf_counter()
        actor = await xo.create_actor(Adder, address=pool.external_address)
        check(await actor.add(1, 2))
        result = time.perf_counter()
        await pool.stop()
        return begin, imported, started, result, time.perf_counter()

    return asyncio.run(run())


def _add(left: int, right: int) -> int:
    return left + right


def check(result: object) -> None:
    """`RuntimeError` unless the system can add."""
    if result != 3:
        raise RuntimeError(f"1 + 2 came back as {result!r}")


SYSTEMS: dict[str, Callable[[int], Stages]] = {
    "framework": _framework,
    "ProcessPoolExecutor": _process_pool,
    "loky": _loky,
    "Ray": _ray,
    "Dask": _dask,
    "xoscar": _xoscar,
}


def main(system: str, cpus: int) -> None:
    """Measure `system` and print ``{"import": s, "init": s, "first result": s, "shutdown": s}``."""
    stages = SYSTEMS[system](cpus)
    names = ("import", "init", "first result", "shutdown")
    print(json.dumps({name: stages[index + 1] - stages[index] for index, name in enumerate(names)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
