"""A full store: what is spilled and restored, who waits, who is refused and why, and that no view ever
changes, whoever is killed.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework.exceptions import FrameworkError, ObjectLostError, ObjectStoreFullError, OutOfDiskError
from framework.util.state import store_stats
from support.drivers import Driver, assert_clean, kill_hard
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

MIB = 1 << 20
LIMIT = 40
Start = Callable[..., Any]


@pytest.fixture
def start(session_root: Path) -> Iterator[Start]:
    """A session with a store of 64 MiB; at its end the store must be empty."""

    def begin(**options: Any) -> Any:
        return fw.init(num_cpus=2, log_to_driver=False, **{"object_store_memory": 64 * MIB, **options})

    yield begin
    try:
        if fw.is_initialized():
            gc.collect()
            assert_empty()
    finally:
        fw.shutdown()


def assert_empty() -> None:
    def empty() -> bool:
        stats = store_stats()
        return not (stats["objects"] or stats["pins"] or stats["spilled_bytes"] or stats["waiting"])

    wait_until(empty, 15, "an empty store")


def block(n: int, mib: int = 10) -> Any:
    """Something of this size that tells which it is."""
    array = np.random.default_rng(n).integers(0, 256, mib * MIB, dtype=np.uint8)
    array[:8] = np.frombuffer(n.to_bytes(8, "little"), np.uint8)
    return array


def is_block(array: Any, n: int, mib: int = 10) -> bool:
    return bool(np.array_equal(array, block(n, mib)))


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


def files(directory: str | Path) -> list[Path]:
    return [path for path in Path(directory).rglob("*") if path.is_file() and path.name != "in-use"]


# ---- spilling ----------------------------------------------------------------------------------------


def test_more_than_the_store_holds_comes_back_whole(start: Start) -> None:
    context = start()
    refs = [fw.put(block(n)) for n in range(15)]
    assert store_stats()["spilled_objects"] >= 9
    for n in (14, *range(15), *reversed(range(15))):
        assert is_block(get(refs[n]), n)
    assert store_stats()["restored_objects"] >= 9
    spill = Path(context["session_dir"]) / "spill"
    assert files(spill)
    del refs
    gc.collect()
    assert_empty()
    wait_until(lambda: not files(spill), 5, "the end of the files of objects that were freed")


def test_tasks_read_and_make_what_was_spilled(start: Start) -> None:
    start()

    @fw.remote
    def make(n: int) -> Any:
        return block(n)

    @fw.remote
    def check(array: Any, n: int) -> bool:
        return is_block(array, n)

    refs = [make.remote(n) for n in range(12)]
    assert all(get([check.remote(ref, n) for n, ref in enumerate(refs)]))


@pytest.mark.parametrize("how", ["option", "variable", "url"])
def test_the_place_can_be_chosen(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "option":
        start(spill_directory=str(tmp_path))
    elif how == "variable":
        monkeypatch.setenv("FRAMEWORK_SPILL_DIRECTORY", str(tmp_path))
        start()
    else:
        pytest.importorskip("fsspec")
        start(spill_directory=f"file://{tmp_path}")
    refs = [fw.put(block(n)) for n in range(10)]
    assert len(files(tmp_path)) >= 4
    assert all(is_block(get(ref), n) for n, ref in enumerate(refs))
    del refs
    gc.collect()
    assert_empty()
    wait_until(lambda: not files(tmp_path), 5, "the end of the files of objects that were freed")
    kept = [fw.put(block(n)) for n in range(10)]
    assert files(tmp_path)
    fw.shutdown()
    assert not files(tmp_path) and not list(tmp_path.iterdir())
    del kept


def test_spilling_into_memory_of_fsspec(start: Start) -> None:
    pytest.importorskip("fsspec")
    start(spill_directory="memory://spilled")
    refs = [fw.put(block(n)) for n in range(10)]
    assert store_stats()["spilled_objects"] >= 4
    assert all(is_block(get(ref), n) for n, ref in enumerate(refs))


def test_places_that_cannot_be_used(session_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a directory: create it first"):
        fw.init(num_cpus=1, spill_directory=str(tmp_path / "nowhere"))
    pytest.importorskip("fsspec")
    with pytest.raises(ValueError, match="no-such-thing"):
        fw.init(num_cpus=1, spill_directory="no-such-thing://bucket")
    assert not fw.is_initialized()


def test_files_go_with_a_session_that_is_killed(tmp_path: Path) -> None:
    place = tmp_path / "spilled"
    place.mkdir()
    root = tmp_path / "r"
    root.mkdir()
    source = f"""
        import numpy as np, framework as fw, os, time
        fw.init(num_cpus=1, object_store_memory=64 << 20, spill_directory={str(place)!r})
        refs = [fw.put(np.full(10 << 20, n, np.uint8)) for n in range(10)]
        print("NODE", fw.nodes()[0]["pid"])
        time.sleep(60)
    """
    with Driver(source, root) as driver:
        driver.expect("NODE")
        assert files(place)
        driver.signal(signal.SIGKILL)
        driver.process.wait()
        assert_clean(root)
    wait_until(lambda: not files(place), 5, "the end of the spilled files")


# ---- limits ------------------------------------------------------------------------------------------


def test_an_object_larger_than_the_store(start: Start) -> None:
    start()
    for make in (lambda: fw.put(np.zeros(65 * MIB, np.uint8)), lambda: fw.empty(65 * MIB, np.uint8)):
        with pytest.raises(ObjectStoreFullError, match="does not fit.*start with a larger"):
            make()

    @fw.remote(max_retries=0)
    def make_it() -> Any:
        return np.zeros(65 * MIB, np.uint8)

    with pytest.raises(ObjectStoreFullError, match="does not fit"):
        get(make_it.remote())
    assert is_block(get(fw.put(block(1))), 1)


def test_an_object_as_large_as_the_store(start: Start) -> None:
    start()
    others = [fw.put(block(n)) for n in range(4)]
    small = [fw.put(np.full(200_000, n)) for n in range(4)]  # the rest of a region is in the way, too
    whole = fw.empty(64 * MIB - 4096, np.uint8)
    whole[:] = 7
    ref = fw.put(whole)
    assert store_stats()["used"] == 64 * MIB
    del whole
    assert get(ref)[-1] == 7
    assert all(is_block(get(other), n) for n, other in enumerate(others))
    assert [int(get(s)[0]) for s in small] == [0, 1, 2, 3]
    assert (get(ref) == 7).all()


def test_a_store_full_of_views_names_the_biggest(start: Start) -> None:
    start()
    refs = [fw.put(block(n, 20)) for n in range(3)]
    views = get(refs)
    with pytest.raises(ObjectStoreFullError) as caught:
        fw.put(block(9))
    text = str(caught.value)
    assert "The biggest:" in text and refs[2].hex() in text
    assert "(read by 1 process)" in text
    assert "Drop references" in text and "object_store_memory" in text
    assert all(is_block(view, n, 20) for n, view in enumerate(views))
    del views
    assert is_block(get(fw.put(block(9))), 9)


def test_who_waits_is_served_in_order_when_a_view_goes(start: Start) -> None:
    """The large one that came first is not overtaken by a small one that would fit."""
    start()
    refs = [fw.put(block(n, 20)) for n in range(2)]
    other, view = get(refs)  # what follows `view` is free: with it, enough in one piece
    done: list[str] = []

    def put(name: str, mib: int) -> None:
        fw.put(np.zeros(mib * MIB, np.uint8))
        done.append(name)

    large = threading.Thread(target=put, args=("large", 40))
    large.start()
    wait_until(lambda: store_stats()["waiting"] == 1, 5, "the large one in the queue")
    small = threading.Thread(target=put, args=("small", 5))
    small.start()
    wait_until(lambda: store_stats()["waiting"] == 2, 5, "both in the queue")
    assert done == []
    del view
    large.join(LIMIT)
    small.join(LIMIT)
    assert done == ["large", "small"]
    assert is_block(other, 0, 20)


# ---- disks that fail ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if os.getuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_an_error_and_loses_nothing(start: Start, small_disk: Path) -> None:
    start(spill_directory=str(small_disk))
    refs = []
    with pytest.raises(OutOfDiskError, match="No space left on device") as caught:
        for n in range(20):
            refs.append(fw.put(block(n)))
    assert str(small_disk) in str(caught.value)
    assert 7 <= len(refs) <= 8  # 64 MiB in memory, and two on the disk
    assert len(files(small_disk)) == len(refs) - 6
    for n in range(6 if len(refs) == 8 else 5):
        assert is_block(get(refs[-1 - n]), len(refs) - 1 - n)
    with pytest.raises(OutOfDiskError):
        fw.put(block(99))
    del refs[:2]
    gc.collect()
    wait_until(lambda: store_stats()["objects"] == len(refs), 5, "the end of two objects")
    refs.append(fw.put(block(99)))
    assert is_block(get(refs[-1]), 99)


def test_a_place_that_cannot_be_written(start: Start, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    start(spill_directory=str(place))
    place.rmdir()
    place.write_text("not a directory any more")
    refs = [fw.put(block(n)) for n in range(6)]
    with pytest.raises(OutOfDiskError, match="Spilling to disk failed") as caught:
        fw.put(block(6))
    assert str(place) in str(caught.value)
    assert all(is_block(get(ref), n) for n, ref in enumerate(refs))
    place.unlink()
    place.mkdir()
    refs.append(fw.put(block(6)))
    assert all(is_block(get(ref), n) for n, ref in enumerate(refs))


def test_a_damaged_file_is_a_lost_object(start: Start, tmp_path: Path) -> None:
    start(spill_directory=str(tmp_path))
    refs = [fw.put(block(n)) for n in range(8)]
    (first, *_) = files(tmp_path)
    os.truncate(first, 1000)
    good, lost = 0, []
    for n, ref in enumerate(refs):
        try:
            good += is_block(get(ref), n)
        except ObjectLostError as error:
            lost.append(str(error))
    assert (good, len(lost)) == (7, 1)
    assert "put()" in lost[0]


# ---- churn -------------------------------------------------------------------------------------------


@fw.remote(max_restarts=0)
class Reader:
    """Holds views with their checksums."""

    def __init__(self) -> None:
        self.views: dict[int, tuple[Any, int]] = {}

    def pid(self) -> int:
        return os.getpid()

    def hold(self, key: int, array: Any) -> None:
        while len(self.views) > 1:
            self.views.pop(next(iter(self.views)))
        self.views[key] = (array[len(array) // 3 :], int(array[len(array) // 3 :].sum()))

    def drop(self, key: int) -> None:
        self.views.pop(key, None)

    def make(self, seed: int, size: int, in_place: bool) -> Any:
        array = fw.empty(size, np.uint8) if in_place else np.empty(size, np.uint8)
        array[:] = seed % 251
        return array

    def unchanged(self) -> bool:
        return all(int(view.sum()) == total for view, total in self.views.values())


def test_no_view_changes_while_readers_and_writers_are_killed(start: Start) -> None:
    start()
    rng = random.Random(5)
    actors = [Reader.remote() for _ in range(4)]
    pids = get([actor.pid.remote() for actor in actors])
    refs: dict[int, tuple[Any, int]] = {}
    mine: list[tuple[Any, int]] = []
    for step in range(220):
        key, size = step, rng.choice([150_000, 1_000_000, 3_000_000, 5_000_000])
        actor = rng.choice(actors)
        kind = rng.randrange(8)
        try:
            if kind <= 1:
                refs[key] = (fw.put(np.full(size, key % 251, np.uint8)), key % 251)
            elif kind == 2:
                refs[key] = (actor.make.remote(key, size, rng.random() < 0.5), key % 251)
            elif kind <= 4 and refs:
                chosen = rng.choice(list(refs))
                actor.hold.remote(chosen, refs[chosen][0])
            elif kind == 5 and refs:
                chosen = rng.choice(list(refs))
                try:
                    view = get(refs[chosen][0])[1000:]
                    mine.append((view, refs[chosen][1]))
                    del view
                except FrameworkError:  # its maker was killed before it was made
                    del refs[chosen]
                del mine[:-3]
            elif refs:
                chosen = rng.choice(list(refs))
                del refs[chosen]
                for other in actors:
                    other.drop.remote(chosen)
        except ObjectStoreFullError:
            refs.clear()
        if step % 20 == 10:
            victim = rng.randrange(len(actors))
            os.kill(pids[victim], signal.SIGKILL)
            actors[victim] = Reader.remote()
            pids[victim] = get(actors[victim].pid.remote())
        assert all((view == value).all() for view, value in mine)
        if step % 20 == 0:
            assert all(get([a.unchanged.remote() for a in actors]))
    assert all(get([a.unchanged.remote() for a in actors]))
    for ref, value in refs.values():
        try:
            found = get(ref)
        except FrameworkError:
            continue
        assert (found == value).all()
        del found
    assert store_stats()["spilled_objects"] > 0
    refs.clear()
    mine.clear()
    del ref
    for pid in pids:  # what they hold goes with them
        kill_hard(pid)
    del actors, actor, other
    gc.collect()
    assert_empty()
    wait_until(lambda: store_stats()["used"] == 0 or store_stats()["regions"] > 0, 5, "no bytes in use")
