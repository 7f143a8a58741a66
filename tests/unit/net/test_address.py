"""Addresses of sockets, and paths that are too long for one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from framework._base import limits
from framework._net.address import short_path, socket_path, unix_address


@pytest.mark.parametrize("address", ["", "unix:", "unix:a/b", "unix:../x", "unix:.x", "tcp:1", "name"])
def test_addresses_of_other_kinds(address: str) -> None:
    with pytest.raises(ValueError):
        socket_path(address, "/run")


def test_addresses() -> None:
    assert socket_path(unix_address("abc"), "/run") == "/run/abc"
    with short_path("/short") as path:
        assert path == "/short"


def test_a_long_path_can_be_bound_and_reached(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * limits.UNIX_PATH_MAX)
    directory.mkdir()
    path = str(directory / "s")
    before = os.listdir("/proc/self/fd")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        with short_path(path) as address:
            assert len(os.fsencode(address)) <= limits.UNIX_PATH_MAX
            listening.bind(address)
        listening.listen()
        assert os.path.exists(path)
        with short_path(path) as address:
            client.connect(address)
    assert os.listdir("/proc/self/fd") == before, "the descriptor of the directory is given back"


def test_a_long_path_where_the_system_has_no_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    with pytest.raises(ValueError, match="FRAMEWORK_TMPDIR"), short_path("/" + "x" * 200):
        raise AssertionError


def test_the_directory_of_a_long_path_must_exist() -> None:
    with pytest.raises(FileNotFoundError), short_path("/nowhere/" + "x" * 200):
        raise AssertionError
