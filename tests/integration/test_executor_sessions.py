"""Pools, the session that they live in and the program that made them: which end means what."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import framework as fw
from framework.util.executor import BrokenWorkerPool, PoolExecutor
from framework.util.multiprocessing import Pool
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
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


# ---- the end of the program --------------------------------------------------------------------------


def run(program: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FRAMEWORK_TMPDIR": str(tmp_path)}
    environment["FRAMEWORK_DEDUP_LOGS"] = "0"
    path = tmp_path / "program.py"
    path.write_text(program)
    return subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("way", ["", "executor.shutdown(wait=False)"])
def test_work_is_finished_at_exit(tmp_path: Path, way: str) -> None:
    done = run(
        "import time\n"
        "from framework.util.executor import PoolExecutor\n"
        "def work(i):\n"
        "    time.sleep(0.1)\n"
        "    print('done', i)\n"
        "executor = PoolExecutor(2)\n"
        "for i in range(4):\n"
        "    executor.submit(work, i).add_done_callback(lambda future: print('told'))\n"
        f"{way}\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(word) for word in ("done", "told")] == [4, 4], done.stdout + done.stderr


def test_no_work_after_exit(tmp_path: Path) -> None:
    done = run(
        "import atexit\n"
        "from framework.util.executor import PoolExecutor\n"
        "executor = PoolExecutor(1)\n"
        "@atexit.register\n"
        "def late():\n"
        "    executor.submit(print, 'late')\n"
        "print(executor.submit(abs, -1).result())\n",
        tmp_path,
    )
    assert "RuntimeError: cannot schedule new futures after interpreter shutdown" in done.stderr
    assert done.stdout == "1\n"
