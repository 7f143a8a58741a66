"""Addresses of sockets, and paths that are too long for one."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._base import limits
from framework._net.address import (
    host_port,
    join_host_port,
    node_digits,
    node_of,
    parse_tcp,
    short_path,
    socket_path,
    tcp_address,
    unix_address,
)


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


NODE = bytes(range(28))


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "fd00::1", "fe80::1%eth0", "node-7.example"])
def test_addresses_of_a_cluster(host: str) -> None:
    address = tcp_address(host, 40_001, NODE, "abc")
    assert parse_tcp(address) == (host, 40_001, "0001020304050607", "abc")
    assert node_of(address) == node_digits(NODE) == "0001020304050607"
    assert socket_path(address, "/run", node_digits(NODE)) == "/run/abc"
    for elsewhere in ("", "0" * 16):
        with pytest.raises(ValueError):
            socket_path(address, "/run", elsewhere)


def test_addresses_of_a_session_have_no_node() -> None:
    assert node_of(unix_address("abc")) == node_of("") == node_of("tcp:1") == ""
    assert socket_path(unix_address("abc"), "/run", node_digits(NODE)) == "/run/abc"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "tcp:",
        "unix:abc",
        "tcp:h/1/0001020304050607",
        "tcp:h/1/0001020304050607/a/b",
        "tcp:/1/0001020304050607/a",
        "tcp:h/0/0001020304050607/a",
        "tcp:h/65536/0001020304050607/a",
        "tcp:h/-1/0001020304050607/a",
        "tcp:h/+1/0001020304050607/a",
        "tcp:h/1_0/0001020304050607/a",
        "tcp:h/²/0001020304050607/a",
        "tcp:h/1/000102030405060/a",
        "tcp:h/1/000102030405060X/a",
        "tcp:h/1/0001020304050607/",
        "tcp:h/1/0001020304050607/..",
        "udp:h/1/0001020304050607/a",
    ],
)
def test_what_is_no_address_of_a_cluster(address: str) -> None:
    with pytest.raises(ValueError):
        parse_tcp(address)
    if address != "unix:abc":
        with pytest.raises(ValueError):
            socket_path(address, "/run", "0001020304050607")


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    node_of(text)
    for address in (text, f"tcp:{text}", f"tcp:h/1/{text}"):
        with contextlib.suppress(ValueError):
            there = parse_tcp(address)
            assert os.path.dirname(socket_path(address, "/run", there.node)) == "/run"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:6380", ("10.0.0.1", 6380)),
        ("head.example:1", ("head.example", 1)),
        ("[fd00::1]:6380", ("fd00::1", 6380)),
    ],
)
def test_hosts_with_ports(text: str, expected: tuple[str, int]) -> None:
    assert host_port(text) == expected
    assert join_host_port(*expected) == text


@pytest.mark.parametrize("text", ["", "host", ":1", "h:", "h:0", "h:99999", "fd00::1:6380", "[]:1", "a:b"])
def test_what_is_no_host_with_a_port(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        host_port(text)
