"""Writers and readers are killed in the middle of what they do, in a full store: nothing that is alive
changes, nothing of the dead stays.
"""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework.exceptions import FrameworkError
from framework.util.state import store_stats
from support.drivers import kill_hard
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MIB = 1 << 20
STORE = 48 * MIB
LIMIT = 40


@pytest.fixture
def store(session_root: Path) -> Iterator[None]:
    fw.init(num_cpus=2, log_to_driver=False, object_store_memory=STORE)
    yield
    fw.shutdown()


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


def all_is_free() -> bool:
    stats = store_stats()
    return (
        not (stats["objects"] or stats["pins"] or stats["spilled_bytes"] or stats["waiting"])
        and stats["used"] == stats["region_bytes"]
    )


def content(seed: int, size: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def report(path: str, line: int) -> None:
    """In one write: whoever reads it sees all of it or nothing."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"%d\n" % line)
    os.close(fd)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@fw.remote(max_restarts=0)
class Writer:
    """Makes objects without end, each of content that its seed tells, and keeps a few of them."""

    def pid(self) -> int:
        return os.getpid()

    def half(self, path: str, size: int) -> None:
        """Stops in the middle of an array that it fills in place."""
        array = fw.empty(size, np.uint8)
        array[: size // 2] = 1
        report(path, 0)
        signal.pause()

    def churn(self, path: str, seed: int) -> None:
        rng = random.Random(seed)
        kept: list[Any] = []
        for step in range(1_000_000):
            size = rng.choice([150_000, 1_000_000, 3 * MIB, 7 * MIB])
            data = content(step, size)
            if rng.random() < 0.5:
                array = fw.empty(size, np.uint8)
                array[:] = data
                kept.append((fw.put(array), step, size))
                del array
            else:
                kept.append((fw.put(data), step, size))
            del kept[:-3]
            ref, made, length = rng.choice(kept)
            if not np.array_equal(fw.get(ref), content(made, length)):
                report(path + ".broken", step)
            report(path, step)


@fw.remote(max_restarts=0)
class Reader:
    """Holds views, also slices, of what it was given, and looks at them again and again."""

    def __init__(self) -> None:
        self.held: list[tuple[Any, int]] = []

    def pid(self) -> int:
        return os.getpid()

    def hold(self, array: Any) -> int:
        view = array[len(array) // 3 :]
        self.held.append((view, int(view.sum())))
        del self.held[:-2]
        return sum(int(view.sum()) != total for view, total in self.held)


@pytest.mark.parametrize("mib", [1, 20])
def test_a_writer_that_is_killed_half_way_leaves_nothing(store: None, tmp_path: Path, mib: int) -> None:
    writer = Writer.remote()
    pid = get(writer.pid.remote())
    call = writer.half.remote(str(tmp_path / "half"), mib * MIB)
    wait_until(lambda: lines(tmp_path / "half") == 1, LIMIT, "half an array")
    assert store_stats()["used"] > mib * MIB
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(FrameworkError):
        get(call)
    wait_until(all_is_free, 15, "an empty store")
    whole = fw.put(np.zeros(STORE - MIB, np.uint8))  # its place is whole again
    assert not get(whole).any()
    del whole
    gc.collect()
    wait_until(all_is_free, 15, "an empty store")


def test_writers_and_readers_are_killed_at_random(store: None, tmp_path: Path) -> None:
    rng = random.Random(11)
    began = 0
    writers: list[tuple[Any, int, Path, Any]] = []
    readers: list[tuple[Any, int]] = []
    mine: list[tuple[Any, Any, int]] = []

    def start_writer() -> None:
        nonlocal began
        began += 1
        path = tmp_path / f"writer-{began}"
        actor = Writer.remote()
        pid = get(actor.pid.remote())
        writers.append((actor, pid, path, actor.churn.remote(str(path), began)))

    def start_reader() -> None:
        actor = Reader.remote()
        readers.append((actor, get(actor.pid.remote())))

    for _ in range(2):
        start_writer()
        start_reader()
    checks: list[tuple[Any, int]] = []
    for step in range(24):
        size = rng.choice([200_000, 2 * MIB, 5 * MIB])
        mine.append((fw.put(content(1000 + step, size)), 1000 + step, size))
        del mine[:-4]
        ref, seed, length = rng.choice(mine)
        assert np.array_equal(get(ref), content(seed, length))
        checks += [(reader.hold.remote(ref), pid) for reader, pid in readers]
        victim = writers[step % 2]
        target = lines(victim[2]) + rng.randrange(1, 4)
        wait_until(lambda victim=victim, target=target: lines(victim[2]) >= target, LIMIT, "progress")  # type: ignore[misc]
        if step % 3 == 1:
            os.kill(victim[1], signal.SIGKILL)  # wherever it is just now
            with pytest.raises(FrameworkError):
                get(victim[3])
            writers.remove(victim)
            start_writer()
        if step % 8 == 5:
            _, pid = readers.pop(0)
            os.kill(pid, signal.SIGKILL)
            checks = [check for check in checks if check[1] != pid]
            start_reader()
        del checks[:-6]
    assert all(get(check) == 0 for check, _ in checks)
    assert not list(tmp_path.glob("*.broken"))
    assert store_stats()["spilled_objects"] > 0
    for _, pid, *_ in [*writers, *readers]:
        kill_hard(pid)
    writers.clear()
    readers.clear()
    checks.clear()
    mine.clear()
    del ref, victim
    gc.collect()
    wait_until(all_is_free, 15, "an empty store")
