"""Disks for spilled objects: what is written is read, failures name the place, nothing stays behind."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from framework._node.spill import Disk, LocalDisk, RemoteDisk, open_disk


@pytest.fixture(params=["session", "directory", "memory", "file"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    if request.param in ("memory", "file"):
        pytest.importorskip("fsspec")
    place = {
        "session": None,
        "directory": str(tmp_path / "spill here"),
        "memory": "memory://test-spill",
        "file": f"file://{tmp_path}/remote",
    }[request.param]
    return open_disk(place, str(tmp_path / "session"))


def test_blocks_come_back(disk: Disk) -> None:
    first, second = os.urandom(100_000), os.urandom(1)
    disk.write("1", memoryview(first))
    disk.write("2", memoryview(second))
    found = bytearray(100_000)
    disk.read("1", memoryview(found))
    assert found == first
    disk.remove("1")
    disk.remove("1")
    with pytest.raises(OSError):
        disk.read("1", memoryview(found))
    disk.close()
    with pytest.raises(OSError):
        disk.read("2", memoryview(bytearray(1)))


def test_a_short_file_is_an_error(disk: Disk) -> None:
    disk.write("1", memoryview(b"123"))
    with pytest.raises(OSError, match="shorter than the object: 3 of 4"):
        disk.read("1", memoryview(bytearray(4)))
    disk.close()


def test_a_directory_is_left_as_it_was_found(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("stays")
    disk = LocalDisk(str(tmp_path), None)
    assert os.listdir(tmp_path) == ["mine"]
    disk.write("1", memoryview(b"123"))
    assert len(os.listdir(tmp_path)) == 2
    assert os.stat(disk.directory).st_mode & 0o777 == 0o700
    disk.close()
    assert os.listdir(tmp_path) == ["mine"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead, alive = LocalDisk(str(tmp_path), None), LocalDisk(str(tmp_path), None)
    dead.write("1", memoryview(b"123"))
    alive.write("1", memoryview(b"456"))
    os.close(dead._lock)  # as the end of its process does
    new = LocalDisk(str(tmp_path), None)
    new.write("1", memoryview(b"789"))
    assert not os.path.exists(dead.directory)
    found = bytearray(3)
    alive.read("1", memoryview(found))
    assert found == b"456"
    dead._lock = -1
    alive.close()
    new.close()
    assert os.listdir(tmp_path) == []


def test_two_threads_may_be_first(tmp_path: Path) -> None:
    disk = LocalDisk(str(tmp_path), None)
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def write(name: str) -> None:
        try:
            start.wait()
            disk.write(name, memoryview(b"123"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(os.listdir(disk.directory)) == 5  # and the lock
    disk.close()


def test_a_full_disk_names_the_place_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = LocalDisk(str(tmp_path), None)
    disk.write("1", memoryview(b"123"))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            disk.write("2", memoryview(b"123"))
    assert str(tmp_path) in str(caught.value) and caught.value.errno == errno.ENOSPC
    assert sorted(os.listdir(disk.directory)) == ["1", "in-use"]
    disk.close()


def test_a_url_that_nobody_knows(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(ValueError, match="no-such-protocol"):
        RemoteDisk("no-such-protocol://bucket")
