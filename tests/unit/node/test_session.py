"""The session directory: private, swept at the end, and after those that could not do it themselves."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from framework._node import session


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    return tmp_path / f"framework-{os.getuid()}"


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def old_session(root: Path, number: int, log: str = "") -> Path:
    """As a killed session leaves it."""
    path = root / f"session-20200101-0000{number:02}-{dead_pid()}-abcd"
    (path / "sockets").mkdir(parents=True)
    (path / "sockets" / "node").touch()
    (path / "logs").mkdir()
    (path / "logs" / "worker.out").write_text(log)
    (path / "node.pid").write_text(str(dead_pid()))
    return path


def test_everything_is_private(root: Path) -> None:
    old = os.umask(0)
    try:
        path = Path(session.create_session("ab12"))
        fd = session.open_private(str(path / "logs" / "x"))
        os.close(fd)
    finally:
        os.umask(old)
    for place in (root, path, path / "sockets", path / "logs"):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / "logs" / "x").stat().st_mode) == 0o600
    assert path.parent == root
    assert str(os.getpid()) in path.name and path.name.endswith("-ab12")


def test_sweep_keeps_logs_that_say_something(root: Path) -> None:
    path = Path(session.create_session("a"))
    (path / "sockets" / "node").touch()
    (path / "node.pid").touch()
    (path / "logs" / "empty.out").touch()
    (path / "logs" / "full.out").write_text("text")
    session.sweep_session(str(path))
    assert sorted(str(p.relative_to(path)) for p in path.rglob("*")) == ["logs", "logs/full.out"]
    (path / "logs" / "full.out").unlink()
    session.sweep_session(str(path))
    assert not path.exists()
    session.sweep_session(str(path))  # a second time does no harm


@pytest.mark.slow
def test_stale_sessions_are_swept_and_live_ones_are_not(root: Path) -> None:
    mine = Path(session.create_session("a"))
    (mine / "sockets" / "node").touch()
    silent, spoke = old_session(root, 1), old_session(root, 2, "last words")
    by_pid_file = old_session(root, 3)
    (by_pid_file / "node.pid").write_text(str(os.getpid()))
    (root / "something-else").mkdir()
    (root / "session-strange").mkdir()
    session.sweep_stale_sessions()
    assert (mine / "sockets" / "node").exists()
    assert (by_pid_file / "sockets" / "node").exists()
    assert not silent.exists()
    assert [p.name for p in spoke.rglob("*")] == ["logs", "worker.out"]
    assert (root / "something-else").exists()


@pytest.mark.slow
def test_the_oldest_logs_go(root: Path) -> None:
    paths = [old_session(root, number, "text") for number in range(6)]
    session.sweep_stale_sessions(keep=2)
    assert [path.exists() for path in paths] == [False] * 4 + [True] * 2
    session.sweep_stale_sessions(keep=0)
    assert not any(path.exists() for path in paths)


def test_a_link_in_the_place_of_the_directory(root: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    root.symlink_to(tmp_path / "target")
    with pytest.raises(PermissionError, match="FRAMEWORK_TMPDIR"):
        session.sessions_root()


def test_a_directory_that_was_open_to_others_is_closed(root: Path) -> None:
    root.mkdir(mode=0o777)
    root.chmod(0o777)
    assert session.sessions_root() == str(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_place_where_nothing_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set FRAMEWORK_TMPDIR") as caught:
        session.sessions_root()
    assert str(tmp_path / "file") in str(caught.value)


# ---- sessions that stay ------------------------------------------------------------------------------


def test_the_number_of_the_node_process(root: Path) -> None:
    path = session.create_session("ab")
    assert session.node_pid(path) is None
    for stays in (False, True):
        session.write_node_pid(path, stays)
        assert session.node_pid(path) == os.getpid()
        assert session.staying_sessions() == ([path] if stays else [])
    for text in ("", "garbage stays", "\0"):
        (Path(path) / "node.pid").write_text(text)
        assert session.node_pid(path) is None and session.staying_sessions() == []
    session.sweep_session(path)
    assert session.node_pid(path) is None and not os.path.exists(path)


def test_sessions_that_stay_are_listed_the_latest_first(root: Path) -> None:
    paths = [session.create_session(unique) for unique in ("ab", "cd", "ef")]
    for age, path in zip((30, 10, 20), paths, strict=True):
        session.write_node_pid(path, True)
        os.utime(os.path.join(path, "node.pid"), (1_000_000 - age,) * 2)
    dead = old_session(root, 1)
    (dead / "node.pid").write_text(f"{dead_pid()}\nstays")
    assert session.staying_sessions() == [paths[1], paths[2], paths[0]]


def test_a_session_that_stays_is_not_swept_although_its_starter_is_gone(root: Path) -> None:
    path = old_session(root, 1)
    (path / "node.pid").write_text(f"{os.getpid()}\nstays")
    session.sweep_stale_sessions()
    assert (path / "sockets" / "node").exists()
