"""What must be as it was before."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from framework.chaos.leaks import Footprint, kind_of, kinds_of_fds, mapped_in, remains, wait_for_none

MAPS = """\
7f2ebc056000-7f2ebc058000 rw-s 00000000 00:01 24005                      /memfd:framework-store (deleted)
7f2ebc059000-7f2ebc05a000 rw-p 00000000 00:01 24005                      /usr/lib/libc.so
7f2ebc060000-7f2ebc061000 rw-s 00000000 00:01 24005                      /dev/shm/one
7f2ebc062000-7f2ebc063000 rw-p 00000000 00:00 0
"""


def test_kinds() -> None:
    assert kind_of("socket:[4530090]") == kind_of("socket:[1]") == "socket"
    assert kind_of("/tmp/1") == "/tmp/1"
    assert kind_of("anon_inode:[eventpoll]") == "anon_inode:[eventpoll]"


def test_memory_files() -> None:
    assert mapped_in(MAPS) == 0x2000 + 0x1000
    assert mapped_in("") == 0


def test_what_there_is_more_of_is_found() -> None:
    before = Footprint.now()
    assert Footprint.now().leaks(before) == []
    one, other = socket.socketpair()
    event = threading.Event()
    thread = threading.Thread(target=event.wait, name="left behind")
    thread.start()
    found = Footprint.now().leaks(before)
    event.set()
    thread.join()
    one.close()
    other.close()
    assert "2 descriptors more of the kind socket" in found and "thread left behind still runs" in found
    assert Footprint.now().leaks(before) == []


def test_shared_memory_is_found() -> None:
    before = Footprint({}, (), 0)
    assert Footprint({}, (), 4096).leaks(before) == ["4096 bytes of shared memory are still mapped"]
    assert Footprint({}, (), 0).leaks(Footprint({"socket": 3}, ("x",), 4096)) == []


def test_a_process_that_is_gone_has_no_descriptors() -> None:
    assert kinds_of_fds("self") and kinds_of_fds(1 << 30) == {}


def test_only_logs_may_remain(tmp_path: Path) -> None:
    session = tmp_path / "framework-0" / "session-1"
    (session / "logs").mkdir(parents=True)
    (session / "logs" / "node.log").touch()
    assert remains(str(tmp_path)) == []
    (session / "sockets").mkdir()
    (session / "node.pid").touch()
    assert sorted(remains(str(tmp_path))) == [str(session / "node.pid"), str(session / "sockets")]


def test_waiting_for_nothing_to_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["a"], ["a"], []]
    assert wait_for_none(lambda: answers.pop(0)) == []
    assert wait_for_none(lambda: ["a"], 0.0) == ["a"]
