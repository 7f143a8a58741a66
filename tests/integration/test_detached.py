"""Sessions that stay when drivers leave, and detached actors in them: found by later drivers, restarted when
their creator is long gone, ended by kill; everything else of a driver ends with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.drivers import ROOT, Driver, alive, assert_clean, kill_hard
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BEGIN = """
import os, sys, time, signal
import framework as fw
context = fw.init(address="auto", namespace=os.environ.get("NAMESPACE", "tests"))

@fw.remote
def square(x): return x * x

@fw.remote
class Counter:
    def __init__(self, *args):
        self.count, self.args = 0, args
    def add(self):
        self.count += 1
        return self.count
    def pid(self): return os.getpid()
    def sizes(self): return [len(a) for a in self.args]
    def squares(self, n): return fw.get([square.remote(i) for i in range(n)])
    def say(self, text): print(text)

"""


def cli(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "framework", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "FRAMEWORK_TMPDIR": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A session of 2 CPUs that stays, below this directory; nothing is left of it at the end."""
    root = tmp_path_factory.mktemp("d")
    started = cli(root, "start", "--head", "--num-cpus", "2")
    assert started.returncode == 0, started.stderr
    yield root
    stopped = cli(root, "stop")
    assert stopped.returncode == 0 and "Stopped the session" in stopped.stdout, stopped
    assert_clean(root)


def run(root: Path, source: str, namespace: str = "tests") -> list[str]:
    """What a driver of its own prints; it must end well, and say nothing else."""
    with Driver(BEGIN + source, root, env={"NAMESPACE": namespace}) as driver:
        assert driver.finish(30) == 0, driver.text()
        assert driver.err == [], driver.text()
        return list(driver.out)


def create(root: Path, name: str, options: str = "", arguments: str = "") -> int:
    """The pid of a detached actor made by a driver that has left."""
    source = f"a = Counter.options(name={name!r}, lifetime='detached'{options}).remote({arguments})\n"
    return int(run(root, source + "fw.get(a.add.remote()); print(fw.get(a.pid.remote()))")[0])


@pytest.mark.parametrize("end", ["pass", "fw.shutdown()", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_detached_actor_outlives_its_driver(root: Path, end: str) -> None:
    name = f"outlives-{end}"
    source = f"a = Counter.options(name={name!r}, lifetime='detached').remote()\n"
    with Driver(BEGIN + source + f"print(fw.get(a.pid.remote()))\n{end}", root) as first:
        first.finish(30)
        pid = int(first.out[0])
    again = f"a = fw.get_actor({name!r}); print(fw.get(a.pid.remote()), fw.get(a.add.remote()))"
    assert run(root, again) == [f"{pid} 1"]
    assert run(root, again) == [f"{pid} 2"]
    run(root, f"fw.kill(fw.get_actor({name!r}))")
    wait_until(lambda: not alive(pid), 5, "the end of the actor")
    missing = f"try: fw.get_actor({name!r})\nexcept ValueError as e: print(e)"
    assert "no actor named" in run(root, missing)[0]


def test_it_works_on_after_its_driver_has_left(root: Path) -> None:
    """Its own tasks run: a worker of a job whose driver is gone is nobody's but the actor's."""
    create(root, "worker")
    source = "a = fw.get_actor('worker'); print(fw.get(a.squares.remote(5), timeout=20)); fw.kill(a)"
    assert run(root, source) == ["[0, 1, 4, 9, 16]"]


def test_restarts_when_the_driver_is_gone(root: Path) -> None:
    """With the arguments of its constructor, also those that would go to the store for another actor."""
    pid = create(root, "restarts", ", max_restarts=2", "b'x' * 1_000_000, 'abc'")
    for turn in range(2):
        kill_hard(pid)
        source = """
a = fw.get_actor('restarts')
while True:
    try: print(fw.get(a.pid.remote(), timeout=20)); break
    except fw.exceptions.ActorUnavailableError: pass
print(fw.get(a.add.remote()), fw.get(a.sizes.remote()))
"""
        out = run(root, source)
        assert out[1] == "1 [1000000, 3]", turn
        assert int(out[0]) != pid
        pid = int(out[0])
    kill_hard(pid)
    gone = """
deadline = time.monotonic() + 10
while time.monotonic() < deadline:
    try: a = fw.get_actor('restarts')
    except ValueError: print("GONE"); break
"""
    assert run(root, gone) == ["GONE"]


def test_an_argument_that_died_with_the_driver_is_named(root: Path) -> None:
    source = """
ref = fw.put(b"y" * 1_000_000)
a = Counter.options(name='by-reference', lifetime='detached', max_restarts=1).remote(ref)
print(fw.get(a.pid.remote()), fw.get(a.sizes.remote()))
"""
    pid = int(run(root, source)[0].split()[0])
    found = "a = fw.get_actor('by-reference'); print(fw.get(a.sizes.remote()))"
    assert run(root, found) == ["[1000000]"], "a living actor has its arguments"
    waits = """
a = fw.get_actor('by-reference')
print("READY")
while True:
    try: fw.get(a.add.remote(), timeout=20)
    except fw.exceptions.ActorUnavailableError: continue
    except fw.exceptions.ActorDiedError as e: print("DIED", str(e).replace(chr(10), " ")); break
"""
    with Driver(BEGIN + waits, root) as driver:
        driver.expect("READY")
        kill_hard(pid)
        assert driver.finish(30) == 0, driver.text()
        text = driver.expect("DIED")
    assert "constructor" in text and "the process that owned it died" in text and "by value" in text


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)"])
def test_other_actors_and_tasks_die_with_their_driver(root: Path, tmp_path: Path, end: str) -> None:
    source = f"""
@fw.remote(num_cpus=0)
def slow(path):
    with open(path + ".new", "w") as file: file.write(str(os.getpid()))
    os.rename(path + ".new", path)
    time.sleep(1000)
@fw.remote(num_cpus=0)
class Outer:
    def __init__(self): self.inner = Counter.options(num_cpus=0).remote()
    def pids(self): return [os.getpid(), fw.get(self.inner.pid.remote())]
named = Counter.options(name='named', num_cpus=0).remote()
outer = Outer.remote()
path = {str(tmp_path / "pid")!r}
r = slow.remote(path)
while not os.path.exists(path): time.sleep(0.005)
print(fw.get(named.pid.remote()), *fw.get(outer.pids.remote()), open(path).read(), flush=True)
{end}
"""
    with Driver(BEGIN + source, root) as driver:
        driver.finish(30)
        pids = [int(word) for word in driver.out[0].split()]
    assert len(pids) == 4, driver.text()
    wait_until(lambda: not any(map(alive, pids)), 5, "the end of all that was the driver's")
    assert run(root, FREE) == ["FREE"]
    assert "no actor" in run(root, "try: fw.get_actor('named')\nexcept ValueError as e: print(e)")[0]


FREE = """
deadline = time.monotonic() + 10
while fw.available_resources().get("CPU") != 2 and time.monotonic() < deadline: time.sleep(0.01)
print("FREE" if fw.available_resources().get("CPU") == 2 else fw.available_resources())
"""


def test_a_fork_that_keeps_the_sockets_does_not_keep_the_driver_alive(root: Path) -> None:
    source = """
a = Counter.remote()
print("ACTOR", fw.get(a.pid.remote()))
pid = os.fork()
if not pid: time.sleep(60); os._exit(0)
print("CHILD", pid, flush=True)
os.kill(os.getpid(), 9)
"""
    with Driver(BEGIN + source, root) as driver:
        driver.process.wait(20)
        child = int(driver.expect("CHILD", 1).split()[-1])
        actor = int(driver.expect("ACTOR", 1).split()[-1])
        try:
            wait_until(lambda: not alive(actor), 5, "the end of the driver's actor")
        finally:
            os.kill(child, 9)


def test_names_are_unique_across_drivers(root: Path) -> None:
    pid = create(root, "taken")
    source = """
try:
    b = Counter.options(name='taken', lifetime='detached').remote()
    fw.get(b.add.remote(), timeout=20)
except (ValueError, fw.exceptions.ActorAlreadyExistsError) as e: print("TAKEN", "'taken'" in str(e))
c = Counter.options(name='taken', get_if_exists=True).remote()
print(fw.get(c.pid.remote()), fw.get(c.add.remote()))
"""
    assert run(root, source) == ["TAKEN True", f"{pid} 2"]
    # Whoever only found it does not end it.
    assert run(root, "print(fw.get(fw.get_actor('taken').add.remote()))") == ["3"]
    run(root, "fw.kill(fw.get_actor('taken'))")


def test_other_namespaces_do_not_see_it(root: Path) -> None:
    pid = create(root, "spaced")
    source = """
try: fw.get_actor('spaced')
except ValueError as e: print("NO", "'elsewhere'" in str(e))
print(fw.get(fw.get_actor('spaced', namespace='tests').pid.remote()))
b = Counter.options(name='spaced').remote()
print(fw.get(b.add.remote()))
"""
    assert run(root, source, "elsewhere") == ["NO True", str(pid), "1"]
    run(root, "fw.kill(fw.get_actor('spaced'))")


def test_a_driver_hears_its_own_tasks_only(root: Path) -> None:
    create(root, "speaker")
    listens = "print('READY')\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)"
    stop = root.parent / f"{root.name}-quiet"
    source = BEGIN + "fw.get(square.remote(1))\n" + listens
    with Driver("", root, arguments=["-c", source, str(stop)]) as other:
        other.expect("READY")
        said = run(
            root,
            "b = Counter.remote(); fw.get(b.say.remote('mine'))\n"
            "fw.get(fw.get_actor('speaker').say.remote('of another job'))",
        )
        stop.touch()
        assert other.finish() == 0, other.text()
        assert other.out == ["READY"], other.text()
    assert len(said) == 1 and said[0].endswith(" mine"), said
    run(root, "fw.kill(fw.get_actor('speaker'))")


def test_a_driver_that_leaves_does_not_disturb_others(root: Path) -> None:
    stop = root.parent / f"{root.name}-stop"
    source = BEGIN + (
        "a = Counter.remote(); fw.get(a.add.remote()); print('READY')\n"
        "n = 0\n"
        "while not os.path.exists(sys.argv[1]):\n"
        "    n += 1; assert fw.get(square.remote(n), timeout=20) == n * n\n"
        "print('DONE', fw.get(a.add.remote()))"
    )
    with Driver("", root, arguments=["-c", source, str(stop)]) as other:
        other.expect("READY")
        for end in ("fw.shutdown()", "os._exit(1)", "os.kill(os.getpid(), 9)"):
            body = "a = Counter.options(num_cpus=0).remote(); fw.get([square.remote(i) for i in range(100)])"
            with Driver(BEGIN + f"{body}\n{end}", root) as leaver:
                leaver.finish(30)
                assert leaver.err == [], leaver.text()
        stop.touch()
        assert other.finish(30) == 0, other.text()
        assert other.out == ["READY", "DONE 2"]
        assert other.err == [], other.text()


def test_node_options_are_not_for_a_running_session(root: Path) -> None:
    source = """
import framework as fw
for arguments in ({"num_cpus": 1}, {"resources": {"a": 1}}, {"object_store_memory": 10**8}):
    try: fw.init(address="auto", **arguments)
    except ValueError as e: print("for a new node" in str(e), fw.is_initialized())
"""
    with Driver(source, root) as driver:
        assert driver.finish() == 0, driver.text()
        assert driver.out == ["True False"] * 3


def test_the_environment_says_where(root: Path) -> None:
    source = "import framework as fw; print(fw.init()['address'])"
    with Driver(source, root, env={"FRAMEWORK_ADDRESS": "auto"}) as driver:
        assert driver.finish() == 0, driver.text()
        assert driver.out[0].startswith(str(root))
    with Driver(source.replace("init()", "init('local')"), root, env={"FRAMEWORK_ADDRESS": "auto"}) as own:
        assert own.finish() == 0, own.text()
        assert own.out != driver.out
