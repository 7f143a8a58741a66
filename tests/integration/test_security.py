"""Every place at which a cluster listens, against everybody who has no business there; what a member that
sends nonsense can do; and where secrets must not show.

Endpoints are found in the kernel's tables, of all processes of the cluster: a port that is new is in these
tests.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import pickle
import shutil
import socket
import stat
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import framework as fw
from framework._base import limits
from framework._base.cluster import ClusterFacts
from framework._net import tls
from framework._runtime.current import current
from framework._wire import messages as m
from framework._wire.handshake import ClientHandshake
from framework.cluster_utils import Cluster
from framework.exceptions import AuthenticationError, ConnectionFailedError
from framework.util.state import why_pending
from support.attacks import ANSWER, ATTACKS, opened, stranger, talk
from support.clusters import certificate
from support.hostile import (
    Bomb,
    Endpoint,
    Fields,
    content,
    hear,
    hello,
    listening,
    member,
    packed,
    prove,
    reach,
    say,
)
from support.leaks import framework_processes, session_remains, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]
linux = pytest.mark.skipif(not os.path.isdir("/proc/self/net"), reason="endpoints are found in /proc")


@fw.remote
def double(value: int) -> int:
    return 2 * value


@fw.remote(num_cpus=0)
class Resident:
    def pid(self) -> int:
        return os.getpid()

    def environment(self) -> dict[str, str]:
        return dict(os.environ)


class World:
    """A cluster of two nodes, this driver, and actors on both."""

    def __init__(self, encrypted: bool) -> None:
        before = {endpoint.address + str(endpoint.port) for endpoint in listening([os.getpid()])}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}, tls=encrypted)
        self.cluster.add_node(num_cpus=1, resources={"far": 1000})
        self.cluster.connect(log_to_driver=False, logging_level=logging.DEBUG)
        self.actors = [Resident.remote(), Resident.options(resources={"far": 1}).remote()]
        self.pids = fw.get([actor.pid.remote() for actor in self.actors], timeout=30)
        self.before = before

    @property
    def facts(self) -> ClusterFacts:
        """As a member has them."""
        head = self.cluster._head
        assert head is not None
        return head.facts

    def processes(self) -> list[int]:
        """Those that serve, this one among them: not the workers that come and go."""
        roots = [self.cluster.head_pid, *(node.pid for node in self.cluster.list_all_nodes())]
        return [os.getpid(), *roots, *self.pids]

    def family(self) -> list[psutil.Process]:
        """All processes."""
        found = [psutil.Process()]
        for pid in (self.cluster.head_pid, *(node.pid for node in self.cluster.list_all_nodes())):
            process = psutil.Process(pid)
            found += [process, *process.children(recursive=True)]
        return found

    def endpoints(self, family: str) -> list[Endpoint]:
        """Where they listen."""
        found = [e for e in listening(self.processes()) if e.address + str(e.port) not in self.before]
        return [endpoint for endpoint in found if endpoint.family == family]

    def serves(self) -> None:
        """The same processes do their work."""
        refs = [double.remote(1), double.options(resources={"far": 1}).remote(2)]
        try:
            assert fw.get(refs, timeout=30) == [2, 4]
        except fw.exceptions.GetTimeoutError:
            logs = Path(current().session_dir).parent.glob("*/logs/*.log")
            said = "\n".join(f"{log}: {log.read_text(errors='replace')[-5000:]}" for log in logs)
            pytest.fail(f"{[why_pending(ref) for ref in refs]}\n{said}")
        assert fw.get([actor.pid.remote() for actor in self.actors], timeout=30) == self.pids
        new = Resident.options(resources={"far": 1}).remote()  # the head, and both nodes, have a part in it
        assert fw.get(new.pid.remote(), timeout=30) not in self.pids
        assert sum(node["Alive"] for node in fw.nodes()) == 2
        assert fw.cluster_resources()["far"] == 1000


@pytest.fixture(scope="module")
def session_root(_warm: None) -> Iterator[Path]:
    """As elsewhere, with a path that is so short that the kernel shows those of sockets whole."""
    root = Path(tempfile.mkdtemp(prefix="fws", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRAMEWORK_TMPDIR", str(root))
        patch.delenv("FRAMEWORK_TOKEN", raising=False)
        yield root
        wait_until(lambda: not framework_processes(root), 10, "the end of all processes")
        remains = session_remains(root)
    shutil.rmtree(root, ignore_errors=True)
    assert remains == []


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def world(request: pytest.FixtureRequest, session_root: Path) -> Iterator[World]:
    made = World(request.param)
    with made.cluster:
        yield made


# ---- who does not know the token -----------------------------------------------------------------------


@linux
def test_every_port_refuses_whoever_has_not_proved_himself(world: World, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    endpoints = world.endpoints("tcp")
    # The head; two nodes, for nodes and for data; this driver; two actors.
    assert len(endpoints) == 8, endpoints
    before = {pid: psutil.Process(pid).memory_info().rss for pid in world.processes()}
    slow = []
    for endpoint in endpoints:
        assert endpoint.address == "127.0.0.1", "nothing listens beyond loopback untold"
        slow.append(reach(endpoint))
    for endpoint in endpoints:
        for attack in ATTACKS:
            if attack in ATTACKS[::3]:  # (so that what is said in all stays below a whole message)
                for sock in slow:
                    with contextlib.suppress(ConnectionError):
                        sock.send(b"F")
            try:
                heard = attack(world.facts, endpoint, bomb)
            except (ConnectionError, TimeoutError) as error:
                pytest.fail(f"{attack.__name__} at {endpoint}: {error!r}")
            assert len(heard) <= ANSWER and heard[:4] in (b"", b"FWK5"), f"{attack.__name__} at {endpoint}"
        if world.facts.certificate is not None:  # who does not speak TLS hears nothing but an alert
            with reach(endpoint) as sock:
                say(sock, ClientHandshake(world.facts.token, None, os.urandom(32)).start() + bomb)
                heard, ended = hear(sock)
                assert ended and len(heard) < 20
        member(endpoint, world.facts).close()
    world.serves()
    for sock, endpoint in zip(slow, endpoints, strict=True):
        sock.settimeout(limits.HELLO_TIMEOUT + 5)
        assert hear(sock)[1], f"{endpoint} keeps somebody who says little"
        sock.close()
    for pid, rss in before.items():
        grown = psutil.Process(pid).memory_info().rss - rss
        assert grown < 60e6, f"process {pid} has grown by {grown / 1e6:.0f} MB"
    assert not (tmp_path / "exploded").exists()
    assert set(world.endpoints("tcp")) == set(endpoints)


@linux
def test_conversations_of_another_process_are_of_no_use(world: World) -> None:
    """A recorded conversation with one, said to all others; and two of them connected to each other."""
    endpoints = world.endpoints("tcp")
    with opened(world.facts, endpoints[0]) as sock:
        said, _, proof = prove(sock, world.facts)
    for endpoint in endpoints[1:]:
        assert len(talk(world.facts, endpoint, said, proof)) <= ANSWER
    world.serves()


def test_another_certificate_is_refused(world: World) -> None:
    """The side that connects looks at the certificate before it says a word."""
    if world.facts.certificate is None:
        pytest.skip("connections of this cluster are not encrypted")
    pem, key = certificate(7)
    server = socket.create_server(("127.0.0.1", 0))
    facts = stranger(world.facts, head=f"127.0.0.1:{server.getsockname()[1]}")
    heard: list[bytes] = []

    def impersonate() -> None:
        with contextlib.suppress(OSError):
            sock = tls.server_context(pem, key).wrap_socket(server.accept()[0], server_side=True)
            sock.settimeout(10)
            heard.append(sock.recv(4096))

    import asyncio
    import threading

    from framework._net.tcp import open_authenticated

    thread = threading.Thread(target=impersonate)
    thread.start()

    async def connect() -> None:
        loop = asyncio.get_running_loop()
        await open_authenticated(loop, "127.0.0.1", server.getsockname()[1], facts)

    with pytest.raises(AuthenticationError, match="another certificate"):
        asyncio.run(connect())
    thread.join(15)
    server.close()
    assert heard in ([], [b""]), "something was said to somebody else"


# ---- Unix sockets ----------------------------------------------------------------------------------------


def as_another_user(function: Callable[[], str], directory: str = "/", uid: int = 65534) -> str:
    """What a function returns in a process of that user, forked from this one, that is in this directory."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        answer = "it has not come so far"
        try:
            os.chdir(directory)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            answer = function()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, answer.encode()[:60_000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    return said


root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user for a moment")


@linux
@root_only
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_unix_sockets_are_for_one_user(world: World, session_root: Path) -> None:
    assert not world.endpoints("abstract")
    endpoints = world.endpoints("unix")
    names = sorted(os.path.basename(endpoint.address) for endpoint in endpoints)
    assert names.count("node") == names.count("store") == 2 and names.count("head") == 1, names
    assert len(names) == 8, names  # and this driver, and two actors
    sessions = {os.path.dirname(os.path.dirname(endpoint.address)) for endpoint in endpoints}
    for session in sessions:
        for path in [Path(session).parent, Path(session), *Path(session).rglob("*")]:
            wanted = 0o700 if path.is_dir() else 0o600
            with contextlib.suppress(FileNotFoundError):  # (workers come and go)
                assert stat.S_IMODE(path.lstat().st_mode) == wanted, path

    def try_all() -> str:
        in_vain = 0
        for endpoint in endpoints:
            try:
                reach(endpoint)
            except PermissionError:
                in_vain += 1
        for session in sessions:
            for function in (os.listdir, os.stat, os.rmdir):
                try:
                    function(os.path.join(session, "sockets"))
                except PermissionError:
                    in_vain += 1
        return f"{in_vain}"

    assert as_another_user(try_all) == str(len(endpoints) + 3 * len(sessions))
    # Even where the modes do not stand in the way, nobody else is listened to.
    for session in sessions:
        directory = os.path.join(session, "sockets")
        here = [
            name for name in os.listdir(directory) if stat.S_ISSOCK(os.stat(f"{directory}/{name}").st_mode)
        ]

        def in_the_directory(names: list[str] = here) -> str:
            heard = set()
            for name in names:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(10)
                    try:
                        sock.connect(name)
                    except (FileNotFoundError, ConnectionRefusedError):  # (of a worker that has gone)
                        continue
                    say(sock, hello())
                    heard.add(hear(sock))
            return f"{heard}"

        try:
            os.chmod(directory, 0o711)
            for name in here:
                with contextlib.suppress(FileNotFoundError):
                    os.chmod(os.path.join(directory, name), 0o666)
            assert as_another_user(in_the_directory, directory) == "{(b'', True)}"
        finally:
            os.chmod(directory, 0o700)
            for name in here:
                with contextlib.suppress(FileNotFoundError):
                    os.chmod(os.path.join(directory, name), 0o600)
    world.serves()


# ---- members who send nonsense -----------------------------------------------------------------------------

#: what ends something when it is understood: not for here
FINAL = (m.HELLO, m.NODE_STOP, m.HEAD_STOP, m.KILL_WORKER, m.NODE_END, m.EXIT)


@linux
def test_nonsense_from_members(world: World) -> None:
    """Every message of the catalogue, with fields of the right types and any content, from whoever is let in:
    that connection may end, nobody else is harmed."""
    fields = Fields(6)
    draw = fields.random
    victim = Resident.remote()
    fw.get(victim.pid.remote(), timeout=30)
    fields.known.append(victim._actor_id)
    kinds = ["owner", "driver", "worker", "node", "tool", "nobody"]
    for endpoint in [*world.endpoints("tcp"), *world.endpoints("unix")]:
        if os.path.basename(endpoint.address) == "store":
            continue
        opcodes = [opcode for opcode in m.CATALOGUE if opcode not in FINAL]
        draw.shuffle(opcodes)
        if world.facts.certificate is not None:  # nothing else is behind the encryption: a part will do
            opcodes = opcodes[::5]
        while opcodes:
            part, opcodes = opcodes[:3], opcodes[3:]
            kind, ident = draw.choice(kinds), draw.randbytes(28)
            with contextlib.suppress(ConnectionError):
                with member(endpoint, world.facts) if endpoint.port else reach(endpoint) as sock:
                    say(sock, hello(kind, ident))
                    if kind == "node" and endpoint.pid == world.cluster.head_pid:
                        say(sock, packed([m.NODE_JOIN, 1, content(m.NODE_JOIN, "info", ident)]))
                    for opcode in part:
                        say(sock, packed(fields.frame(opcode, ident)))
                    if draw.random() < 0.1:
                        sock.settimeout(0.01)
                        hear(sock)
    wait_until(lambda: sum(node["Alive"] for node in fw.nodes()) == 2, 20, "the end of nodes that were none")
    world.serves()


# ---- floods ------------------------------------------------------------------------------------------------


@linux
def test_a_flood_and_a_newcomer(world: World) -> None:
    """2,000 strangers at the head: silent ones, some in the middle of the handshake, some who are slow. Few
    of them are held at a time, and somebody who knows the token gets in."""
    endpoint = next(e for e in world.endpoints("tcp") if e.pid == world.cluster.head_pid)
    process = psutil.Process(endpoint.pid)
    rss, fds = process.memory_info().rss, process.num_fds()
    said = ClientHandshake(world.facts.token, None, os.urandom(32)).start()
    flood = []
    try:
        for number in range(2_000):
            sock = socket.socket()
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect((endpoint.address, endpoint.port))
            flood.append(sock)
            if number % 3 == 1:
                with contextlib.suppress(OSError):
                    sock.send(said[:-1])
            elif number % 3 == 2:
                with contextlib.suppress(OSError):
                    sock.send(b"F")
        began = time.monotonic()
        member(endpoint, world.facts, 20).close()
        waited = time.monotonic() - began
        most = process.num_fds() - fds
        world.serves()
        grown = process.memory_info().rss - rss
    finally:
        for sock in flood:
            sock.close()
    assert waited < 10, f"a member waited for {waited:.1f} s"
    assert most <= limits.MAX_UNAUTHENTICATED + limits.ACCEPT_BATCH + 20, f"{most} more descriptors"
    assert grown < 40e6, f"{grown / 1e6:.1f} MB"


# ---- secrets -----------------------------------------------------------------------------------------------


def forms_of(facts: ClusterFacts) -> list[bytes]:
    """How secrets may look when they have leaked."""
    found = []
    for secret in (facts.token, facts.key):
        if secret is None:
            continue
        if b"PRIVATE KEY" in secret:
            lines = secret.splitlines()
            found += [lines[1], base64.b64decode(b"".join(lines[1:-1]))[40:60]]
            continue
        plain = bytes(bytearray(secret))
        found += [plain, plain.hex().encode(), plain.hex().upper().encode()]
        found += [base64.b64encode(plain), repr(plain)[2:-1].encode()]
    return found


@linux
def test_secrets_show_nowhere(
    world: World, session_root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from framework._init_checks import wanted_resources
    from framework._node import control, launching
    from framework._runtime.current import current
    from framework._service.credentials import parse_token

    forms = forms_of(world.facts)
    shown: dict[str, bytes] = {}
    # What fails, with the variables of all frames.
    token = world.cluster.token
    attempts: dict[str, tuple[str, str]] = {
        "wrong token": ("ab" * 32, world.cluster.address),
        "unreachable": (token, "127.0.0.1:1"),
        "bad certificate": (f"{world.facts.token.hex()}-{'ab' * 32}", world.cluster.address),
        "half of the token": (world.facts.token.hex() if world.facts.key else "ab", world.cluster.address),
        "no token": (token + "ff", world.cluster.address),
    }
    for what, (text, address) in attempts.items():
        monkeypatch.setenv("FRAMEWORK_TOKEN", text)
        try:
            control.join_session(address, wanted_resources(0, 0, None, None, None, None, None, None))
            pytest.fail(f"{what}: it has joined")
        except (ConnectionFailedError, AuthenticationError, ValueError) as error:
            shown[f"traceback of {what}"] = with_variables(error)
    monkeypatch.delenv("FRAMEWORK_TOKEN")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", _disk_full)
        try:
            launching.HeadProcess(world.facts)
        except OSError as error:
            shown["traceback of a full disk"] = with_variables(error)
    head, config = world.cluster._head, current().config
    objects: list[Any] = [world.facts, world.facts.to_dict(), world.cluster, head, vars(head), config]
    objects += [getattr(config, name, None) for name in config.__slots__]
    objects += [getattr(world.facts, name) for name in world.facts.__slots__]
    for node in world.cluster.list_all_nodes():
        objects += [node, vars(node), vars(node._node)]
    started = control.StartedSession("s", world.facts)
    objects += [started, vars(started), current(), parse_token(token), world.cluster.token]
    for thing in objects:
        shown[f"repr of {type(thing).__name__}"] = repr(thing).encode()
    shown["nodes"] = repr([fw.nodes(), fw.cluster_resources(), fw.get_runtime_context()]).encode()
    for process in world.family():
        line = " ".join(process.cmdline()).encode()
        shown[f"command line of {process.pid}"] = line
        if process.pid != os.getpid():
            with open(f"/proc/{process.pid}/environ", "rb") as file:
                shown[f"environment of {process.pid}"] = file.read()
    for actor in world.actors:
        there = fw.get(actor.environment.remote(), timeout=30)
        assert "FRAMEWORK_TOKEN" not in there
        shown["environment of user code"] = repr(there).encode()
    private = 0
    for path in session_root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if path.name in ("cluster.json", "head.json", "join.json"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                assert any(form in data for form in forms), "what is looked for is what is there"
                private += 1
            else:
                shown[str(path)] = data
    assert private >= 3
    out, err = capfd.readouterr()
    shown["output"] = (out + err).encode()
    assert len(shown) > 30
    for where, text in shown.items():
        for form in forms:
            assert form not in text, f"a secret shows in {where}"


def with_variables(error: BaseException) -> bytes:
    """A traceback as some tools write it, from behind the test's own frame on."""
    assert error.__traceback__ is not None
    error = error.with_traceback(error.__traceback__.tb_next)
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert len(trace.stack)
    return "".join(trace.format()).encode()


def _disk_full(*_: object, **__: object) -> int:
    raise OSError(28, "No space left on device")
