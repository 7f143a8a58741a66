"""``python -m framework``: sessions started, shown, found and stopped, and what is said when it cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import framework as fw
from support.command_line import run_command_line
from support.drivers import ROOT, Driver, alive, assert_clean
from support.leaks import framework_processes, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


class Cli:
    """The command line, with sessions below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "FRAMEWORK_TMPDIR": str(root)}
        self.env.pop("FRAMEWORK_ADDRESS", None)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What a command prints, to either stream."""
        return run_command_line(*arguments, env=self.env, code=code)

    def start(self, *arguments: str) -> str:
        """Start a session; its address."""
        text = self("start", "--head", *arguments)
        address = text.split("\n")[0].split()[-1]
        assert f"init(address={address!r})" in text and 'address="auto"' in text, text
        assert f"FRAMEWORK_ADDRESS={address}" in text and f"framework stop {address}" in text, text
        return address


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    cli = Cli(tmp_path)
    yield cli
    cli("stop")
    assert_clean(tmp_path)


def test_start_status_stop(cli: Cli) -> None:
    assert "No session runs" in cli("status")
    assert "No session runs" in cli("stop")
    address = cli.start(
        "--num-cpus", "3", "--resources", '{"oven": 1.5}', "--object-store-memory", "50000000"
    )
    assert address.startswith(str(cli.root))
    text = cli("status")
    assert f"Session {address}" in text and "drivers: 0" in text, text
    assert "CPU: 0 of 3 in use" in text and "oven: 0 of 1.5 in use" in text, text
    source = """
import framework as fw
fw.init(address="auto")
print(fw.cluster_resources()["CPU"], fw.cluster_resources()["object_store_memory"])
@fw.remote(num_cpus=2)
class A:
    def ping(self): return 1
a = A.options(name="shown", namespace="here").remote()
fw.get(a.ping.remote())
print("READY")
import time; time.sleep(1000)
"""
    with Driver(source, cli.root) as driver:
        driver.expect("READY")
        assert driver.out[0] == "3.0 50000000.0"
        text = cli("status", address)
        assert "drivers: 1" in text and "CPU: 2 of 3 in use" in text, text
        assert "actor 'shown' in namespace 'here'" in text, text
        assert f"Stopped the session at {address}" in cli("stop", address)
        assert_clean(cli.root)  # whatever the driver does
        driver.signal(signal.SIGKILL)
    assert "No session runs" in cli("status")


def test_it_outlives_its_starter_and_the_terminal(cli: Cli) -> None:
    address = cli.start("--num-cpus", "1")
    pid = int((Path(address) / "node.pid").read_text().split()[0])
    node = psutil.Process(pid)
    assert os.getsid(pid) == pid, "no terminal's hang-up reaches it"
    assert node.cwd() == "/"
    # The zygote's environment and descriptors are its own: nobody waits for a pipe that it keeps open.
    assert {os.readlink(f"/proc/{pid}/fd/{fd}").split(":")[0] for fd in (0, 1, 2)} <= {
        "/dev/null",
        os.path.join(address, "logs", "node.err"),
    }
    assert address in cli("stop")
    assert not alive(pid)


def test_auto_takes_the_latest(cli: Cli) -> None:
    source = "import framework as fw; print(fw.init(address='auto')['address'])"
    with Driver(source, cli.root) as driver:
        assert driver.finish() == 1
        assert "ConnectionFailedError" in driver.err[-1], driver.text()
        assert "python -m framework start --head" in driver.err[-1], driver.text()
    first, second = cli.start("--num-cpus", "1"), cli.start("--num-cpus", "1")
    with Driver(source, cli.root) as driver:
        assert driver.finish() == 0, driver.text()
        assert driver.out == [second]
    assert cli("status").index(second) < cli("status").index(first)
    assert second in cli("stop", second)
    with Driver(source, cli.root) as driver:
        assert driver.finish() == 0, driver.text()
        assert driver.out == [first]


def test_sessions_of_drivers_are_not_found(cli: Cli) -> None:
    """They end with their driver: nobody else is to depend on them by accident."""
    with Driver(
        "import framework as fw, time; fw.init(num_cpus=1); print('READY'); time.sleep(1000)", cli.root
    ) as driver:
        driver.expect("READY")
        assert "No session runs" in cli("status")
        assert "No session runs" in cli("stop")
        assert framework_processes(cli.root)
        driver.signal(signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, "stop", "crash"])
def test_block(cli: Cli, how: int | str) -> None:
    with Driver(
        "", cli.root, arguments=["-m", "framework", "start", "--head", "--num-cpus=1", "--block"]
    ) as d:
        address = d.expect("A session runs at").split()[-1]
        wait_until(lambda: "drivers: 0" in cli("status", address))
        d.settle()
        # What it says may be kept in a log: the token is in a file that is named instead.
        token = Path(address) / "token"
        assert f"FRAMEWORK_TOKEN=$(cat {token})" in d.text() and token.read_text() not in d.text()
        assert token.stat().st_mode & 0o777 == 0o600
        if how == "stop":
            cli("stop", address)
        elif how == "crash":
            os.kill(int((Path(address) / "node.pid").read_text().split()[0]), signal.SIGKILL)
        else:
            d.signal(int(how))
        assert d.finish(15) == (1 if how == "crash" else 0), d.text()
        assert d.err == []
        last = {"stop": "The session has ended.", "crash": "The session's node process has died."}
        assert d.out[-1] == last.get(str(how), "The session was stopped."), d.text()


def test_a_node_that_does_not_answer_is_killed(cli: Cli) -> None:
    address = cli.start("--num-cpus", "1")
    pid = int((Path(address) / "node.pid").read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert "Stopped" in cli("stop", address)
    assert not alive(pid)
    assert time.monotonic() - began < 10


def test_a_killed_node_is_not_found(cli: Cli) -> None:
    address = cli.start("--num-cpus", "1")
    os.kill(int((Path(address) / "node.pid").read_text().split()[0]), signal.SIGKILL)
    wait_until(lambda: not framework_processes(cli.root), 5)
    assert "No session runs" in cli("status")
    assert "does not answer" in cli("status", address, code=1)
    assert "no session runs at" in cli("stop", address, code=1)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["start"], 1, "--head"),
        (["start", "--head", "--num-cpus", "-1"], 1, "num_cpus"),
        (["start", "--head", "--num-cpus", "many"], 2, "--num-cpus"),
        (["start", "--head", "--resources", "oven"], 2, "not JSON"),
        (["start", "--head", "--resources", "[1]"], 2, "object"),
        (["start", "--head", "--resources", '{"CPU": 1}'], 1, "CPU"),
        (["start", "--head", "--object-store-memory", "-5"], 1, "object_store_memory"),
        (["stop", "/nowhere"], 1, "no session runs at /nowhere"),
        (["status", "/nowhere"], 1, "does not answer"),
        (["halt"], 2, "halt"),
        ([], 2, "COMMAND"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    said = Cli(tmp_path)(*arguments, code=code)
    assert not framework_processes(tmp_path)
    assert text in said and "Traceback" not in said, said


def test_a_start_that_fails_says_why_and_leaves_nothing(cli: Cli) -> None:
    said = cli("start", "--head", "--object-store-memory", str(2**62), code=1)
    assert "did not start" in said or "No space" in said or "memory" in said, said
    assert_clean(cli.root)
    cli.env["FRAMEWORK_TMPDIR"] = "/proc/nowhere"
    assert "FRAMEWORK_TMPDIR" in cli("start", "--head", code=1)
    cli.env["FRAMEWORK_TMPDIR"] = str(cli.root)


def test_a_second_session_is_no_hindrance_to_private_ones(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    fw.shutdown()
    address = cli.start("--num-cpus", "1")
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(cli.root))
    with fw.init(num_cpus=1) as context:
        assert context.session_dir != address
    assert "drivers: 0" in cli("status")


def test_lists(cli: Cli) -> None:
    address = cli.start("--num-cpus", "1")
    source = """
import framework as fw, time
fw.init(address="auto", namespace="shown")
@fw.remote
def slow(): time.sleep(100)
@fw.remote(num_cpus=0)
class A:
    def ping(self): return 1
a = A.options(name="here").remote()
fw.get(a.ping.remote())
ref, running = fw.put(b"x" * 1_000_000), slow.remote()
print("READY", ref.hex())
time.sleep(1000)
"""
    with Driver(source, cli.root) as driver:
        ref = driver.expect("READY").split()[1]
        objects = json.loads(cli("list", "objects", "--format=json", f"--filter=OBJECT_ID={ref}"))
        assert [row["type"] for row in objects] == ["DRIVER"] and objects[0]["object_size"] >= 1_000_000
        assert "objects: 0" in cli("list", "objects", "--filter=TASK_STATUS=LOST", f"--address={address}")
        assert ref in cli("memory") and "MiB in use" in cli("memory")
        (actor,) = json.loads(cli("list", "actors", "--format=json", "--detail"))
        assert (actor["name"], actor["namespace"], actor["class_name"]) == ("here", "shown", "A")
        assert actor["state"] == "ALIVE" and actor["pid"] > 0 and len(actor["node_id"]) == 56
        assert "slow" in cli("list", "tasks")
        kinds = [row["type"] for row in json.loads(cli("list", "workers", "--format=json"))]
        assert kinds.count("DRIVER") == 1 and "WORKER" in kinds
        (node,) = json.loads(cli("list", "nodes", "--format=json"))
        assert node["state"] == "ALIVE" and node["is_head_node"]
        assert "placement-groups: 0" in cli("list", "placement-groups")
        assert "no column" in cli("list", "nodes", "--filter=NOTHING=1", code=1)
        assert "KEY=VALUE" in cli("list", "nodes", "--filter=NOTHING", code=1)
        driver.signal(signal.SIGKILL)


def test_the_session_of_the_program_that_asks_comes_first(cli: Cli) -> None:
    """As in a notebook's ``!`` line."""
    cli.start("--num-cpus", "1")
    source = """
import framework as fw, subprocess, sys
fw.init(num_cpus=1)
ref = fw.put(b"x" * 1_000_000)
subprocess.run([sys.executable, "-m", "framework", "list", "objects"], check=True)
"""
    with Driver(source, cli.root) as driver:
        assert driver.finish() == 0, driver.text()
    assert driver.out[0] == "objects: 1", driver.text()


def joined(cli: Cli, *arguments: str) -> tuple[str, str]:
    """A head without CPUs, and a node of its cluster: the session of the head, and HOST:PORT."""
    text = cli("start", "--head", "--num-cpus=0", *arguments)
    session_dir = text.split("\n")[0].split()[-1]
    words = next(line for line in text.splitlines() if line.startswith("Join it:")).split()
    cli.env["FRAMEWORK_TOKEN"] = words[2].partition("=")[2]
    address = words[-1].partition("=")[2]
    cli("start", f"--address={address}", "--num-cpus=1")
    return session_dir, address


def test_a_head_that_dies_is_started_again(cli: Cli) -> None:
    session_dir, _ = joined(cli)
    pid_file = Path(session_dir) / "head.pid"
    source = """
import framework as fw, os, sys
fw.init(address="auto", namespace="here")
@fw.remote
def wait_for(path):
    import os, time
    while not os.path.exists(path): time.sleep(0.01)
    return "done"
@fw.remote(num_cpus=0)
class A:
    def pid(self): return os.getpid()
a = A.options(name="kept", lifetime="detached").remote()
pid = fw.get(a.pid.remote())
running = wait_for.remote(sys.argv[1])
print("READY", flush=True)
wait_for_kill = sys.stdin.readline()
assert fw.get(a.pid.remote()) == pid
assert len(fw.nodes()) == 2 and fw.get(A.remote().pid.remote()) != pid
assert fw.get(fw.get_actor("kept").pid.remote()) == pid
open(sys.argv[1], "w").close()
print(fw.get(running))
"""
    gate = cli.root / "gate"
    program = subprocess.Popen(
        [sys.executable, "-c", source, str(gate)],
        env=cli.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "READY\n"
    before = int(pid_file.read_text())
    os.kill(before, signal.SIGKILL)
    out, err = program.communicate("go\n", timeout=60)
    assert (program.returncode, out) == (0, "done\n"), err
    assert int(pid_file.read_text()) != before
    gate.unlink()
    assert "alive" in cli("status")


def test_a_cluster_is_shown_and_stopped_as_one(cli: Cli) -> None:
    session_dir, address = joined(cli)
    text = cli("status")
    assert text.count("Session ") == 1 and f"Session {session_dir}" in text, text
    assert text.count(" alive at 127.0.0.1") == 2, text
    text = cli("stop", address)  # the head takes the other along: that is no failure
    assert f"Stopped the session at {session_dir}" in text
    assert "no node of the cluster" in cli("stop", address, code=1)


def test_stop_finds_a_head_whose_node_has_died(cli: Cli) -> None:
    session_dir, _ = joined(cli)
    os.kill(int((Path(session_dir) / "node.pid").read_text().split()[0]), signal.SIGKILL)
    assert f"Stopped the session at {session_dir}" in cli("stop")
    wait_until(lambda: not framework_processes(cli.root), 5)


def test_objects_of_all_nodes_are_listed(cli: Cli) -> None:
    session_dir, _ = joined(cli)
    source = """
import framework as fw, time
fw.init(address="SESSION")
@fw.remote(num_cpus=1)
class Far:
    def keep(self):
        self.ref = fw.put(b"x" * 3_000_000)
        return fw.get_runtime_context().get_node_id(), self.ref.hex()
far = Far.remote()
ref = fw.put(b"x" * 2_000_000)
print("READY", *fw.get(far.keep.remote()), ref.hex())
time.sleep(1000)
"""
    with Driver(source.replace("SESSION", session_dir), cli.root) as driver:
        node, far, near = driver.expect("READY").split()[1:]
        rows = json.loads(cli("list", "objects", "--format=json", "--detail"))
        large = {row["object_id"]: row for row in rows if row["object_size"] > 1_000_000}
        assert set(large) == {far, near}
        assert large[far]["node_id"] == node != large[near]["node_id"]
        assert {row["store_state"] for row in large.values()} == {"in memory"}
        assert cli("memory").count("Object store of node") == 2
        driver.signal(signal.SIGKILL)


def test_what_is_wrong_with_a_join_is_said(cli: Cli) -> None:
    _, address = joined(cli, "--tls")
    token = cli.env.pop("FRAMEWORK_TOKEN")
    assert "FRAMEWORK_TOKEN" in cli("start", f"--address={address}", code=1)
    assert "no head of a cluster answers at 127.0.0.1:1" in cli("start", "--address=127.0.0.1:1", code=1)
    cli.env["FRAMEWORK_TOKEN"] = token.partition("-")[0]
    assert "second part, behind a '-'" in cli("start", f"--address={address}", code=1)
    cli.env["FRAMEWORK_TOKEN"] = token.partition("-")[0] + "-" + "0" * 64
    assert "another certificate" in cli("start", f"--address={address}", code=1)


@pytest.mark.parametrize("amount", ["-1", '"many"'])
def test_a_file_for_the_autoscaler_is_read_before_anything_starts(cli: Cli, amount: str) -> None:
    path = cli.root / "types.json"
    path.write_text(f'{{"node_types": {{"small": {{"resources": {{"CPU": {amount}}}}}}}}}')
    said = cli("start", "--head", f"--autoscale={path}", code=1)
    path.unlink()
    assert "node type 'small': CPU must" in said and "A session runs" not in said, said
    assert not framework_processes(cli.root)


def test_a_driver_hears_why_its_node_has_ended(cli: Cli) -> None:
    session_dir, _ = joined(cli)
    source = """
import framework as fw, time
fw.init()
@fw.remote
def f(): time.sleep(1000)
ref = f.remote()
print("READY")
fw.get(ref)
"""
    with Driver("import os; os.environ['FRAMEWORK_ADDRESS'] = " + repr(session_dir) + source, cli.root) as d:
        d.expect("READY")
        cli("stop")
        assert d.finish(20) == 1
        assert "has ended (" in d.err[-1] and "python -m framework stop" in d.err[-1], d.text()


def test_an_address_of_the_environment_is_named_as_such(tmp_path: Path) -> None:
    source = "import os; os.environ['FRAMEWORK_ADDRESS'] = '/nowhere'\nimport framework as fw; fw.init()"
    with Driver(source, tmp_path) as driver:
        assert driver.finish() == 1
        assert "address='/nowhere' is that of the environment variable FRAMEWORK_ADDRESS" in driver.err[-1]
