"""The head's memory: what is committed is there again, whatever became of the process; broken files are
told.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from framework._base import limits
from framework._head.storage import Storage, StorageError, pack, unpack


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "head.db")


def test_what_was_put_is_there_again_in_order(path: str) -> None:
    storage = Storage(path)
    storage.put("a", b"2", b"two")
    storage.put("a", b"1", b"one")
    storage.put("b", b"1", b"other")
    assert storage.all("a") == {b"2": b"two", b"1": b"one"}
    storage.put("a", b"2", b"changed")
    storage.delete("a", b"1")
    storage.delete("a", b"never there")
    storage.close()
    again = Storage(path)
    assert again.all("a") == {b"2": b"changed"} and again.all("b") == {b"1": b"other"}
    assert again.all("c") == {}
    again.close()


def test_only_this_user_may_read_it(path: str) -> None:
    storage = Storage(path)
    storage.put("a", b"", b"")
    storage.commit()
    for name in os.listdir(os.path.dirname(path)):
        assert os.stat(os.path.join(os.path.dirname(path), name)).st_mode & 0o077 == 0, name
    storage.close()


def test_values_round_trip() -> None:
    value = {"a": [1, None, b"x", {b"k": 2.5}], 1: "ü", "big": 2**64 - 1}
    assert unpack(pack(value)) == value


def test_without_a_path_nothing_is_kept() -> None:
    storage = Storage(None)
    storage.put("a", b"1", b"one")
    assert storage.all("a") == {b"1": b"one"}
    storage.close()


@pytest.mark.slow
def test_a_commit_survives_kill_9(path: str) -> None:
    program = (
        "import sys, os, signal\n"
        "from framework._head.storage import Storage\n"
        "s = Storage(sys.argv[1])\n"
        "for n in range(1000):\n"
        "    s.put('a', b'%d' % n, b'x' * 10_000)\n"
        "    s.commit()\n"
        "s.put('a', b'late', b'')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    storage = Storage(path)
    found = storage.all("a")
    assert len(found) == 1000 and b"late" not in found
    storage.close()


def test_one_head_at_a_time(path: str) -> None:
    storage = Storage(path)
    with pytest.raises(StorageError, match="another head"):
        Storage(path)
    storage.close()
    Storage(path).close()


def filled(path: str) -> None:
    storage = Storage(path)
    for number in range(200):
        storage.put("a", b"%d" % number, bytes(1000))
    storage.close()
    assert os.path.getsize(path) > 100_000


@pytest.mark.parametrize("damage", ["no database", "torn", "overwritten"])
def test_a_broken_file_is_told_clearly(path: str, damage: str) -> None:
    filled(path)
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        if damage == "no database":
            file.truncate(0)
            file.write(b"something else entirely " * 100)
        elif damage == "torn":
            file.truncate(size // 2)
        else:
            file.seek(8192)
            file.write(b"\xff" * (size - 16384))
    with pytest.raises(StorageError, match=r"head\.db cannot be read") as told:
        Storage(path)
    assert "move" in str(told.value)
    # And the way out that it tells of is one.
    os.rename(path, f"{path}.broken")
    storage = Storage(path)
    assert storage.all("a") == {}
    storage.close()


def test_a_torn_log_costs_only_what_was_not_committed(path: str) -> None:
    storage = Storage(path)
    for number in range(10):
        storage.put("a", b"%d" % number, bytes(1000))
        storage.commit()
    log = Path(f"{path}-wal").read_bytes()
    storage.close()
    os.unlink(path)
    Path(path).touch()
    Path(f"{path}-wal").write_bytes(log[: len(log) // 2])
    again = Storage(path)
    found = again.all("a")
    assert list(found) == [b"%d" % number for number in range(len(found))] and len(found) < 10
    again.close()


def test_the_log_begins_anew_when_it_is_folded_in(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(path)
    for number in range(100):
        storage.put("a", b"%d" % number, bytes(3_000))
        storage.commit()
    assert os.path.getsize(f"{path}-wal") > 300_000
    storage._checkpoint()
    assert os.path.getsize(f"{path}-wal") == 0
    # Small changes count as what they take: whole pages.
    monkeypatch.setattr(limits, "HEAD_LOG_BYTES", 100_000)
    for number in range(100):
        storage.put("b", b"%d" % number, b"x")
        storage.commit()
        if storage._folding is not None:
            storage._folding.join()
            assert os.path.getsize(f"{path}-wal") < 120_000
    assert storage._folding is not None
    storage.close()
    again = Storage(path)
    assert (len(again.all("a")), len(again.all("b"))) == (100, 100)
    again.close()


def test_the_log_is_folded_in(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_LOG_BYTES", 100_000)
    storage = Storage(path)
    for number in range(100):
        storage.put("a", b"%d" % (number % 3), bytes(10_000))
        storage.commit()
        if storage._folding is not None:
            storage._folding.join()
    assert os.path.getsize(f"{path}-wal") < 400_000  # a million bytes were written
    storage.close()


def test_a_full_disk_is_tried_again(path: str, caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(path)
    storage._db.execute("PRAGMA max_page_count = 10")
    storage.put("a", b"1", bytes(1_000_000))
    storage.commit()
    storage.commit()
    assert len([r for r in caplog.records if "cannot be written" in r.message]) == 1
    storage._db.execute("PRAGMA max_page_count = 100000")
    storage.commit()
    assert len(storage.all("a")[b"1"]) == 1_000_000
    storage.close()
