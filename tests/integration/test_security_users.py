"""Two users on one machine, in one directory for temporary files: neither gets at what the other has, nor
into the way of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from framework._net.listener import connect_unix
from framework._node import session as sessions
from framework._service.credentials import read_private, write_private
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ONE, TWO = 65533, 65534
ROOT = Path(__file__).resolve().parents[2]

#: a user's program: it runs a cluster, tells where, and stays until it is told to end
OWNER = """
import json, os, sys
import framework as fw
from framework.cluster_utils import Cluster

@fw.remote
def double(value):
    return 2 * value

with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0}) as cluster:
    context = cluster.connect(log_to_driver=False)
    print(json.dumps([context.session_dir, cluster.address]), flush=True)
    for line in sys.stdin:
        print(fw.get(double.remote(int(line)), timeout=30), flush=True)
"""

#: what another user may try, and what comes of it
INTRUDER = """
import json, os, socket, sys
import framework as fw
session_dir, address = json.loads(sys.argv[1])
came_of_it = []

def attempt(function, *arguments):
    try:
        came_of_it.append(f"it worked: {function(*arguments)!r}")
    except BaseException as error:
        came_of_it.append(type(error).__name__)

def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)

for target in (session_dir, "auto", address):
    attempt(lambda: fw.init(address=target, log_to_driver=False))
os.environ["FRAMEWORK_TOKEN"] = "ab" * 32
attempt(lambda: fw.init(address=address, log_to_driver=False))
for name in ("cluster.json", "head.json", "head.db", "node.pid", "logs/node.log"):
    attempt(open, os.path.join(session_dir, name))
for name in ("node", "head", "store"):
    attempt(connect, os.path.join(session_dir, "sockets", name))
attempt(os.listdir, session_dir)
attempt(os.listdir, os.path.dirname(session_dir))
attempt(os.rename, os.path.dirname(session_dir), os.path.dirname(session_dir) + "-x")
attempt(os.kill, int(sys.argv[2]), 0)
print(json.dumps(came_of_it))
"""


#: becomes another user and runs a program. Where the interpreter lies behind a directory that only root may
#: pass, a view of the file system is made in which that directory holds nothing else, and all may pass.
BECOME = """
import ctypes, json, os, sys
uid, behind, line = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)

def mount(source, target, kind, flags, data=None):
    if libc.mount(*(text and text.encode() for text in (source, target, kind)), flags, data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)

if behind:
    if libc.unshare(0x20000):
        raise OSError(ctypes.get_errno(), "no view of the file system of one's own can be had")
    mount("none", "/", None, 0x4000 | 0x40000)
    kept = [os.open(inner, os.O_PATH) for _, inner in behind]
    for (outer, inner), fd in zip(behind, kept):
        if not os.path.exists(inner) or os.stat(outer).st_mode & 1 == 0:
            mount("tmpfs", outer, "tmpfs", 0, b"mode=755")
        os.makedirs(inner)
        mount(f"/proc/self/fd/{fd}", inner, None, 0x1000 | 0x4000)
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
os.execv(line[0], line)
"""


def closed_directories() -> list[tuple[str, str]]:
    """Those on the way to interpreter, libraries and project that others may not pass, and what of them is
    needed."""
    found = {}
    for wanted in (os.path.realpath(sys.executable), sys.executable, sys.prefix, sys.base_prefix, str(ROOT)):
        path = Path(wanted)
        for outer in path.parents:
            if not outer.stat().st_mode & 0o001:
                found[str(outer / path.relative_to(outer).parts[0])] = str(outer)
    return [(outer, inner) for inner, outer in found.items()]


def program(uid: int, *line: str) -> list[str]:
    """The command line that runs this Python program as another user."""
    what = json.dumps([uid, closed_directories(), [sys.executable, *line]])
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", BECOME, what]


def can_be_another_user() -> str:
    """Why not; empty if it works."""
    if os.getuid() != 0:
        return "only root can start programs of two other users"
    line = program(ONE, "-c", "import framework, msgpack, psutil")
    found = subprocess.run(line, env=environment("/tmp"), cwd="/", capture_output=True, text=True)
    if found.returncode == 0:
        return ""
    return f"other users cannot run this interpreter here: {found.stderr.strip().splitlines()[-1:]}"


def environment(directory: str) -> dict[str, str]:
    found = {
        name: value for name, value in os.environ.items() if not name.startswith(("FRAMEWORK_", "PYTEST"))
    }
    return {**found, "FRAMEWORK_TMPDIR": directory, "PYTHONPATH": str(ROOT), "HOME": directory}


@pytest.fixture(scope="module")
def common() -> Iterator[str]:
    """A directory like /tmp: everybody may make something in it, and take away what is his."""
    directory = tempfile.mkdtemp(prefix="fwu", dir="/tmp")
    os.chmod(directory, 0o1777)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


class User:
    """One with a cluster of his own."""

    def __init__(self, uid: int, directory: str) -> None:
        self.uid = uid
        self.process = subprocess.Popen(
            program(uid, "-c", OWNER),
            env=environment(directory),
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def started(self) -> list[str]:
        """Its session directory, and the address of its head."""
        assert self.process.stdout is not None
        self.where: list[str] = json.loads(self.process.stdout.readline())
        return self.where

    def doubles(self, value: int) -> int:
        """It works."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{value}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.communicate(timeout=20)
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def users(common: str) -> Iterator[list[User]]:
    reason = can_be_another_user()
    if reason:
        pytest.skip(reason)
    found = [User(ONE, common), User(TWO, common)]
    try:
        for user in found:
            user.started()
        yield found
    finally:
        for user in found:
            user.end()


def test_neither_gets_at_the_other(users: list[User], common: str) -> None:
    intruders = []
    for victim, uid in ((users[0], TWO), (users[1], ONE)):
        line = program(uid, "-c", INTRUDER, json.dumps(victim.where), str(victim.process.pid))
        intruders.append(
            subprocess.Popen(
                line,
                env=environment(common),
                cwd="/",
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for intruder in intruders:
        out, err = intruder.communicate(timeout=60)
        assert intruder.returncode == 0, err
        came_of_it = json.loads(out)
        assert came_of_it[:4] == ["ConnectionFailedError"] * 4, came_of_it
        assert came_of_it[4:] == ["PermissionError"] * 12, came_of_it
    assert [user.doubles(21) for user in users] == [42, 42]


def test_not_even_root_takes_another_user_at_his_word(users: list[User]) -> None:
    """The superuser may read everything, and must not believe it: who else's session that is could have code
    of his choice run here."""
    session_dir = users[0].where[0]
    with pytest.raises(PermissionError, match="another user"):
        connect_unix(os.path.join(session_dir, "sockets", "node"))
    with pytest.raises(PermissionError, match="not a file of this user"):
        read_private(os.path.join(session_dir, "cluster.json"))
    # (And is not listened to himself.)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(os.path.join(session_dir, "sockets", "store"))
        with contextlib.suppress(ConnectionError):
            assert sock.recv(100) == b""
    assert users[0].doubles(1) == 2


# ---- whoever was there before ------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the directory of all sessions of this user is to be made."""
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    return tmp_path / f"framework-{os.getuid()}"


def test_a_link_in_place_of_the_directory(place: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    place.symlink_to(trap)
    with pytest.raises(PermissionError, match="FRAMEWORK_TMPDIR"):
        sessions.create_session("ab")
    assert not list(trap.iterdir())
    place.unlink()
    place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError):
        sessions.create_session("ab")
    assert not (tmp_path / "nowhere").exists()


def test_a_file_in_place_of_the_directory(place: Path) -> None:
    place.write_text("")
    with pytest.raises(OSError, match="FRAMEWORK_TMPDIR"):
        sessions.create_session("ab")


def test_a_directory_that_all_may_write_to_is_closed(place: Path) -> None:
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    session = Path(sessions.create_session("ab"))
    assert stat.S_IMODE(place.stat().st_mode) == stat.S_IMODE(session.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make what belongs to others")
def test_a_directory_of_somebody_else(place: Path) -> None:
    place.mkdir(mode=0o777)
    os.chown(place, ONE, ONE)
    with pytest.raises(PermissionError, match="not a directory of this user"):
        sessions.create_session("ab")
    assert not list(place.iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make what belongs to others")
def test_sessions_of_others_are_left_alone(place: Path) -> None:
    """Neither swept nor found, should there be one in our directory."""
    mine, theirs = (Path(sessions.create_session(name)) for name in ("aa", "bb"))
    for path in (mine, theirs):
        (path / "node.pid").write_text(f"{os.getpid()}\nstays")
    os.chown(theirs, ONE, ONE)
    assert sessions.live_sessions() == [str(mine)]
    for path in (mine, theirs):
        (path / "node.pid").write_text("4194305\nstays")  # no such process
        os.rename(path, f"{path.parent}/session-20200101-000000-4194305-{path.name[-2:]}")
    sessions.sweep_stale_sessions(keep=0)
    assert [path.name[-2:] for path in place.iterdir()] == ["bb"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_secrets_in_a_file_that_others_may_read_are_none(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "cluster.json"
    write_private(str(path), {"token": "ab"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert repr(read_private(str(path))) == "{'token': <secret>}"
    path.chmod(mode)
    with pytest.raises(PermissionError):
        read_private(str(path))
    path.chmod(0o600)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError):
        read_private(str(tmp_path / "link"))


def test_nothing_is_left(common: str, request: pytest.FixtureRequest) -> None:
    """(The last: the programs of both users have ended.)"""
    if can_be_another_user():
        pytest.skip("there were none")
    for user in request.getfixturevalue("users"):
        user.end()

    def remains() -> list[Any]:
        return [path for path in Path(common).rglob("*") if not path.is_dir() and "logs" not in path.parts]

    wait_until(lambda: not remains(), 10, "the end of all sessions")
