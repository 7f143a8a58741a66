"""Pools and the session that they live in: the first use starts it, its end ends them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import framework as fw
from framework.util.executor import BrokenWorkerPool, PoolExecutor
from framework.util.multiprocessing import Pool
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PATIENCE = 30.0


@pytest.fixture(autouse=True)
def no_session(session_root: Path) -> Iterator[None]:
    yield
    fw.shutdown()


def wait_for(gate: Path) -> None:
    (gate.parent / "begun").touch()
    while not gate.exists():
        pass


def test_the_end_of_the_session_ends_what_is_under_way(tmp_path: Path) -> None:
    fw.init(num_cpus=2, log_to_driver=False)
    executor = PoolExecutor(1)
    pool = Pool(1)
    running, queued = executor.submit(wait_for, tmp_path / "gate"), executor.submit(abs, -1)
    results = [pool.apply_async(wait_for, (tmp_path / "gate",)), pool.apply_async(abs, (-1,))]
    wait_until((tmp_path / "begun").exists, PATIENCE, "the beginning")
    fw.shutdown()
    for future in (running, queued):
        assert isinstance(future.exception(PATIENCE), BrokenWorkerPool)
    for result in results:
        with pytest.raises(BrokenWorkerPool, match="shutdown"):
            result.get(PATIENCE)
    executor.shutdown()
    pool.terminate()
    pool.join()


def test_an_executor_of_an_earlier_session_is_broken() -> None:
    fw.init(num_cpus=1, log_to_driver=False)
    executor = PoolExecutor(1)
    assert executor.submit(abs, -1).result(PATIENCE) == 1
    fw.shutdown()
    fw.init(num_cpus=1, log_to_driver=False)
    assert isinstance(executor.submit(abs, -1).exception(PATIENCE), BrokenWorkerPool)
    with PoolExecutor(1) as another:
        assert another.submit(abs, -1).result(PATIENCE) == 1


def test_made_in_a_coroutine_while_the_session_starts() -> None:
    async def main() -> list[int]:
        async with fw.init(num_cpus=2, log_to_driver=False):
            with PoolExecutor() as executor:
                loop = asyncio.get_running_loop()
                calls = (loop.run_in_executor(executor, abs, -i) for i in range(5))
                return await asyncio.gather(*calls)

    assert asyncio.run(main()) == list(range(5))
