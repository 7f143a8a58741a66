from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework._base import limits
from framework._node import logtail
from framework._node.logtail import LogBatch, LogMonitor, LogTail
from framework._state.loglines import marker_line

W1 = b"1" * 28
W2 = b"2" * 28


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.out"


@pytest.fixture
def tail(path: Path) -> Iterator[LogTail]:
    tail = LogTail(str(path), 7, b"job1", False)
    yield tail
    tail.release()


def texts(lines: list[tuple[str, str]]) -> list[str]:
    return [text for _, text in lines]


def test_it_reads_what_is_new(path: Path, tail: LogTail) -> None:
    assert tail.poll() == []
    append(path, marker_line("f") + b"a\nb")
    assert tail.poll() == [("f", "a")]
    assert tail.poll() == []
    append(path, b"c\n")
    assert tail.poll() == [("f", "bc")]
    assert (tail.pid, tail.job, tail.is_err) == (7, b"job1", False)


def test_a_poll_is_bounded(path: Path, tail: LogTail) -> None:
    append(path, b"12345\n" * 4)
    assert texts(tail.poll(10)) == ["12345"]
    assert tail.behind
    assert texts(tail.poll(10)) == ["12345", "12345"]
    assert tail.behind
    assert texts(tail.poll(10)) == ["12345"]
    assert not tail.behind


def test_truncation(path: Path, tail: LogTail) -> None:
    append(path, marker_line("f") + b"a\nunfinished")
    tail.poll()
    path.write_bytes(b"b\n")
    assert tail.poll() == [("f", "unfinished"), ("f", "b")]


def test_truncation_while_closed(path: Path, tail: LogTail) -> None:
    append(path, b"a long line\n")
    tail.poll()
    tail.release()
    path.write_bytes(b"b\n")
    assert texts(tail.poll()) == ["b"]


def test_rotation_reads_the_rest_of_the_old_file_first(path: Path, tail: LogTail) -> None:
    append(path, b"a\n")
    tail.poll()
    old = path.rename(path.with_suffix(".1"))
    append(old, b"b\n")
    append(path, b"c\n")
    assert texts(tail.poll()) == ["b"]
    assert texts(tail.poll()) == ["c"]


def test_a_worker_that_goes_on_writing_to_the_rotated_file(path: Path, tail: LogTail) -> None:
    append(path, b"a\n")
    tail.poll()
    old = path.rename(path.with_suffix(".1"))
    path.touch()
    assert tail.poll() == []
    append(old, b"b\n")
    assert texts(tail.poll()) == ["b"]


def test_replacement_while_closed(path: Path, tail: LogTail) -> None:
    append(path, b"a\n")
    tail.poll()
    tail.release()
    path.rename(path.with_suffix(".1"))
    append(path, b"b and more\n")
    assert texts(tail.poll()) == ["b and more"]


def test_deletion_and_return(path: Path, tail: LogTail) -> None:
    append(path, b"a\n")
    tail.poll()
    with path.open("ab", buffering=0) as file:
        path.unlink()
        file.write(b"b\n")
        assert texts(tail.poll()) == ["b"]
        assert tail.poll() == []
        append(path, b"c\n")
        assert texts(tail.poll()) == ["c"]


def test_what_is_no_file_is_passed_over(path: Path, tail: LogTail, tmp_path: Path) -> None:
    os.mkfifo(path)
    assert tail.poll() == []
    path.unlink()
    path.mkdir()
    assert tail.poll() == []
    path.rmdir()
    (tmp_path / "secret").write_bytes(b"x\n")
    path.symlink_to(tmp_path / "secret")
    assert tail.poll() == []
    path.unlink()
    append(path, b"a\n")
    assert texts(tail.poll()) == ["a"]


def test_errors_of_the_system_do_not_raise(
    path: Path, tail: LogTail, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> int:
        raise OSError(24, "Too many open files")

    append(path, b"a\n")
    with monkeypatch.context() as patch:
        patch.setattr(logtail.os, "open", fail)
        assert tail.poll() == []
    with monkeypatch.context() as patch:
        patch.setattr(logtail.os, "pread", fail)
        assert tail.poll() == []
    with monkeypatch.context() as patch:
        patch.setattr(logtail.os, "fstat", fail)
        assert tail.poll() == []
    assert texts(tail.poll()) == ["a"]


@pytest.fixture
def monitor() -> Iterator[LogMonitor]:
    monitor = LogMonitor()
    yield monitor
    monitor.close()


def watch(monitor: LogMonitor, directory: Path, worker_id: bytes, pid: int) -> tuple[Path, Path]:
    out, err = directory / f"{pid}.out", directory / f"{pid}.err"
    out.touch()
    err.touch()
    monitor.watch(worker_id, pid, str(out), str(err))
    return out, err


def test_only_active_workers_are_looked_at(
    monitor: LogMonitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out1, err1 = watch(monitor, tmp_path, W1, 1)
    out2, _ = watch(monitor, tmp_path, W2, 2)
    monitor.set_active(W1, True)
    append(out1, b"a\n")
    append(err1, b"e\n")
    append(out2, b"b\n")
    assert monitor.poll_active() == [
        LogBatch(W1, 1, False, [("", "a")]),
        LogBatch(W1, 1, True, [("", "e")]),
    ]
    monitor.set_active(W1, False)
    monitor.poll_active()

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a system call for idle workers")

    with monkeypatch.context() as patch:
        for name in ("stat", "fstat", "open", "pread", "close"):
            patch.setattr(logtail.os, name, fail)
        assert monitor.poll_active() == []
    assert monitor.poll_all() == [LogBatch(W2, 2, False, [("", "b")])]


def test_one_last_poll_after_the_end_of_a_task(monitor: LogMonitor, tmp_path: Path) -> None:
    out, _ = watch(monitor, tmp_path, W1, 1)
    monitor.set_active(W1, True)
    append(out, b"a\nunfinished")
    monitor.set_active(W1, False)
    assert monitor.poll_active() == [
        LogBatch(W1, 1, False, [("", "a")]),
        LogBatch(W1, 1, False, [("", "unfinished")]),
    ]
    append(out, b"b\n")
    assert monitor.poll_active() == []
    monitor.set_active(W1, True)
    assert monitor.poll_active() == [LogBatch(W1, 1, False, [("", "b")])]


def test_the_last_poll_is_repeated_until_all_is_read(tmp_path: Path) -> None:
    monitor = LogMonitor(max_bytes=4)
    out, _ = watch(monitor, tmp_path, W1, 1)
    append(out, b"abc\n" * 3)
    monitor.set_active(W1, True)
    monitor.set_active(W1, False)
    for _ in range(3):
        assert monitor.poll_active() == [LogBatch(W1, 1, False, [("", "abc")])]
    assert monitor.poll_active() == []
    monitor.close()


def test_forget_reads_the_rest_and_removes_empty_files(monitor: LogMonitor, tmp_path: Path) -> None:
    out, err = watch(monitor, tmp_path, W1, 1)
    append(out, b"a\nlast words")
    assert monitor.forget(W1) == [LogBatch(W1, 1, False, [("", "a"), ("", "last words")])]
    assert out.exists()
    assert not err.exists()
    assert monitor.forget(W1) == []
    monitor.set_active(W1, True)
    assert monitor.poll_active() == []


def test_forget_is_bounded(monitor: LogMonitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logtail, "LOG_FINAL_BYTES", 2)
    out, _ = watch(monitor, tmp_path, W1, 1)
    append(out, b"a\nb\n")
    assert monitor.forget(W1) == [
        LogBatch(W1, 1, False, [("", "a"), ("", f"[more output is in {out}]")]),
    ]


def test_files_of_workers_that_have_ended_are_kept_up_to_a_bound(
    monitor: LogMonitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOG_FILES_KEPT", 3)
    living, _ = watch(monitor, tmp_path, W1, 0)
    append(living, b"a\n")
    files = []
    for number in range(1, 11):
        worker_id = bytes([100 + number]) * 28
        out, err = watch(monitor, tmp_path, worker_id, number)
        append(out, b"a\n")
        files += [out, err]
        assert monitor.forget(worker_id)
    assert [file for file in files if file.exists()] == files[-6::2], "the latest, and none that is empty"
    assert living.exists()


def test_files_that_vanish(monitor: LogMonitor, tmp_path: Path) -> None:
    out, err = watch(monitor, tmp_path, W1, 1)
    monitor.set_active(W1, True)
    out.unlink()
    err.unlink()
    assert monitor.poll_active() == []
    assert monitor.forget(W1) == []


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_descriptors_are_not_kept_for_idle_workers(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monitor = LogMonitor()
    for number in range(10):
        worker_id = bytes([number]) * 28
        out, _ = watch(monitor, tmp_path, worker_id, number)
        append(out, b"a\n")
        monitor.set_active(worker_id, True)
    assert len(monitor.poll_active()) == 10
    assert len(os.listdir("/proc/self/fd")) == before + 10
    for number in range(10):
        monitor.set_active(bytes([number]) * 28, False)
    monitor.poll_active()
    monitor.poll_all()
    assert len(os.listdir("/proc/self/fd")) == before
