"""However a driver ends, within 3 s there is no process, no socket, and no session directory beyond its
logs.
"""

from __future__ import annotations

import os
import signal
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from support.drivers import Driver, alive, assert_clean
from support.leaks import framework_processes, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BEGIN = """
import os, sys, time, threading
import framework as fw
context = fw.init(num_cpus=2)

@fw.remote
def noop(): pass

@fw.remote
def slow(): time.sleep(1000)

@fw.remote
def chatter():
    while True:
        print("chatter " * 100)

@fw.remote
def helper_process():
    import subprocess
    print("HELPER", subprocess.Popen(["sleep", "1000"]).pid)
    time.sleep(1000)

@fw.remote
class Actor:
    def ping(self): return os.getpid()
    def slow(self): time.sleep(1000)

def ready():
    print("READY", flush=True)

"""

SCENES = {
    "idle": "fw.get(noop.remote()); ready(); time.sleep(1000)",
    "in_get": "r = slow.remote(); ready(); fw.get(r)",
    "in_get_of_many": "r = [slow.remote() for _ in range(2000)]; ready(); fw.get(r)",
    "in_wait": "r = slow.remote(); ready(); fw.wait([r])",
    "printing": "r = [chatter.remote() for _ in range(2)]; fw.get(noop.options(num_cpus=0).remote());"
    "ready(); fw.get(r)",
    "actors": "a = [Actor.remote() for _ in range(2)]; fw.get([x.ping.remote() for x in a]);"
    "ready(); fw.get(a[0].slow.remote())",
    "forked_child": "pid = os.fork()\nif not pid: time.sleep(20); os._exit(0)\n"
    "print('CHILD', pid); ready(); time.sleep(1000)",
    "right_after_init": "ready(); time.sleep(1000)",
}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("scene", SCENES)
def test_signals_to_the_driver(tmp_path: Path, scene: str, number: int) -> None:
    with Driver(BEGIN + SCENES[scene], tmp_path) as driver:
        driver.expect("READY")
        driver.settle()
        if scene == "forked_child":
            driver.signal(number)  # the child lives on, with its copies of the sockets
        else:
            driver.signal(number, group=True)
        code = driver.process.wait(3)
        assert_clean(tmp_path)
        if scene == "forked_child":
            os.kill(int(driver.expect("CHILD").split()[-1]), signal.SIGKILL)
        driver.finish()
    assert code == -number, driver.text()
    if number == signal.SIGINT:
        assert driver.err[-1] == "KeyboardInterrupt", driver.text()
        assert sum("Traceback" in line for line in driver.err) == 1, driver.text()
    else:
        assert driver.err == [], driver.text()


ENDS = {
    "normal": ("pass", 0, []),
    "pending_tasks": ("r = [slow.remote() for _ in range(10)]", 0, []),
    "pending_actor": ("a = Actor.remote(); r = a.slow.remote()", 0, []),
    "exception": ("raise ValueError('mine')", 1, ["ValueError: mine"]),
    "sys_exit": ("sys.exit(7)", 7, []),
    "os_exit": ("os._exit(8)", 8, []),
    "abort": (
        "import ctypes, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()",
        -6,
        [],
    ),
    "twice_shutdown": ("fw.shutdown(); fw.shutdown()", 0, []),
    "exit_in_thread": ("t = threading.Thread(target=lambda: fw.get(noop.remote())); t.start()", 0, []),
    "blocked_daemon_thread": (
        "threading.Thread(target=lambda: fw.get(slow.remote()), daemon=True).start()",
        0,
        None,
    ),
    "future_pending": ("f = slow.remote().future()", 0, []),
    "with_block": ("with context: fw.get(noop.remote())", 0, []),
    "refs_in_globals": (
        "a = Actor.remote(); x = [fw.put(i) for i in range(1000)] + [noop.remote()]; fw.get(x[-1])",
        0,
        [],
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_ends_of_the_program(tmp_path: Path, end: str) -> None:
    body, code, err = ENDS[end]
    with Driver(BEGIN + body, tmp_path) as driver:
        assert driver.finish(10) == code, driver.text()
        assert_clean(tmp_path)
    if err is not None:
        assert driver.err[-1:] == err, driver.text()
        assert not err or sum("Traceback" in line for line in driver.err) == 1, driver.text()


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda n: n.name)
def test_signals_during_init(tmp_path: Path, number: int, delay: float) -> None:
    """The delay only varies where it hits; every moment must do."""
    program = """
    print('START', flush=True)
    import framework as fw
    fw.init(num_cpus=2)
    import time
    time.sleep(1000)
    """
    with Driver(program, tmp_path) as driver:
        driver.expect("START")
        time.sleep(delay)
        driver.signal(number, group=True)
        code = driver.finish(5)
        assert_clean(tmp_path)
    assert code in (-number, 1), driver.text()
    assert sum("Traceback" in line for line in driver.err) <= 1, driver.text()


@pytest.mark.parametrize("number", [0, signal.SIGKILL])
def test_processes_started_by_tasks_end_with_the_session(tmp_path: Path, number: int) -> None:
    source = BEGIN + "r = helper_process.remote()\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)"
    stop = tmp_path.parent / f"{tmp_path.name}-stop"
    with Driver("", tmp_path, arguments=["-c", source, str(stop)]) as driver:
        pid = int(driver.expect("HELPER").split()[-1])
        assert alive(pid)
        if number:
            driver.signal(number)
        else:
            stop.touch()
        driver.process.wait(5)
        wait_until(lambda: not alive(pid), 3, "the end of the task's child process")
        assert_clean(tmp_path)


def test_second_interrupt_forces_the_way_out(tmp_path: Path) -> None:
    """The node process does not answer (it is stopped), so shutdown waits: a second Ctrl-C ends that."""
    source = (
        BEGIN + "print('NODE', context._runtime.node_facts['pid']); r = slow.remote(); ready(); fw.get(r)"
    )
    with Driver(source, tmp_path) as driver:
        driver.expect("READY")
        node = int(driver.expect("NODE").split()[-1])
        os.kill(node, signal.SIGSTOP)
        try:
            driver.signal(signal.SIGINT, group=True)
            interrupted = "KeyboardInterrupt"
            wait_until(lambda: any(interrupted in line for line in driver.err), 5, "the first interrupt")
            began = time.monotonic()
            driver.signal(signal.SIGINT, group=True)
            driver.finish(2)
            assert time.monotonic() - began < 1
            assert_clean(tmp_path)
        finally:
            if str(node) in " ".join(framework_processes(tmp_path)):
                os.kill(node, signal.SIGKILL)  # a stopped process ends by nothing else


@pytest.mark.parametrize(
    "waits",
    [
        "fw.get(r)",
        "fw.get(r, timeout=60)",
        "fw.get([r, slow.remote()])",
        "fw.wait([r])",
        "next(stream)",
        "import asyncio; context._runtime.run_sync(asyncio.sleep(60))",
    ],
)
def test_an_interrupt_that_does_not_wake_the_thread(waits: str, tmp_path: Path) -> None:
    """As one that comes just before it falls asleep: here, as another thread has taken the signal."""
    begin = """
    @fw.remote(num_returns="streaming")
    def items():
        time.sleep(1000)
        yield 1

    import signal
    r = slow.remote()
    stream = items.remote()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    ready()
    """
    with Driver(BEGIN + textwrap.dedent(begin) + waits, tmp_path) as driver:
        driver.expect("READY")
        driver.signal(signal.SIGINT)
        assert driver.finish(5) == 128 + signal.SIGINT
        assert "KeyboardInterrupt" in driver.text()
        assert_clean(tmp_path)


def test_shutdown_with_a_node_that_does_not_answer(tmp_path: Path) -> None:
    source = (
        BEGIN
        + "import signal; os.kill(context._runtime.node_facts['pid'], signal.SIGSTOP);"
        + "fw.shutdown(); print('DONE')"
    )
    with Driver(source, tmp_path) as driver:
        assert driver.finish(10) == 0
        assert driver.out == ["DONE"]
        assert_clean(tmp_path)


def test_no_signal_handlers_are_installed(tmp_path: Path) -> None:
    source = """
    import signal
    before = [signal.getsignal(n) for n in signal.valid_signals()]
    import framework as fw
    fw.init(num_cpus=1)
    assert [signal.getsignal(n) for n in signal.valid_signals()] == before
    assert signal.set_wakeup_fd(-1) == -1
    """
    with Driver(source, tmp_path) as driver:
        assert driver.finish() == 0, driver.text()


LOSS = (
    BEGIN
    + """
import asyncio, signal, concurrent.futures
node = context._runtime.node_facts["pid"]
actor = Actor.remote()
fw.get(actor.ping.remote())

@fw.remote
def stream():
    yield 1
    time.sleep(1000)

results = {}
def check(name, function):
    try:
        results[name] = ("no error", function())
    except BaseException as error:
        results[name] = (type(error).__name__, str(error))

async def awaiting():
    await slow.options(num_cpus=0).remote()

def streaming():
    for ref in stream.options(num_cpus=0).remote():
        fw.get(ref)
        streamed.set()

streamed = threading.Event()
future = slow.options(num_cpus=0).remote().future()
checks = {
    "get": lambda: fw.get(slow.remote()),
    "wait": lambda: fw.get(fw.wait([slow.remote()])[0]),
    "actor": lambda: fw.get(actor.slow.remote()),
    "await": lambda: asyncio.run(awaiting()),
    "stream": streaming,
    "future": lambda: future.result(),
}
threads = [threading.Thread(target=check, args=item) for item in checks.items()]
for thread in threads: thread.start()
streamed.wait()
began = time.monotonic()
os.kill(node, signal.SIGKILL)
for thread in threads: thread.join(5)
took = time.monotonic() - began
for name in checks: print("RESULT", name, *results.get(name, ("still waits", "")))
check("new task", lambda: fw.get(noop.remote(), timeout=5))
check("new actor", lambda: fw.get(Actor.remote().ping.remote(), timeout=5))
check("resources", lambda: fw.cluster_resources())
check("put", lambda: fw.get(fw.put(3)))
for name in ("new task", "new actor", "resources", "put"): print("RESULT", name, *results[name])
assert took < 2, took
fw.shutdown()
fw.init(num_cpus=1)
print("AGAIN", fw.get(noop.remote(), timeout=10))
"""
)


def test_loss_of_the_node_process(tmp_path: Path) -> None:
    with Driver(LOSS, tmp_path) as driver:
        assert driver.finish(30) == 0, driver.text()
        results = [line for line in driver.out if line.startswith("RESULT")]
        for name in (
            "get",
            "wait",
            "actor",
            "await",
            "stream",
            "future",
            "new task",
            "new actor",
            "resources",
        ):
            line = next(line for line in results if line.startswith(f"RESULT {name} "))
            assert "LocalNodeDiedError" in line or "ActorDiedError" in line, driver.text()
        assert "RESULT put no error 3" in results
        assert "AGAIN None" in driver.out
        assert "Traceback" not in driver.text()
        assert_clean(tmp_path)


def test_loss_of_the_zygote_and_of_workers(tmp_path: Path) -> None:
    source = (
        BEGIN
        + """
import psutil, signal
node = psutil.Process(context._runtime.node_facts["pid"])
def zygote(): return node.children()
for _ in range(3):
    fw.get(noop.remote(), timeout=10)
    old, = zygote()
    old.kill()
    fw.get([noop.remote() for _ in range(50)], timeout=10)
    while old in zygote() or len(zygote()) != 1: time.sleep(0.01)
print("ZYGOTE")
for _ in range(5):
    # idle workers, and those that are only just starting
    for p in zygote()[0].children():
        try: p.kill()
        except psutil.NoSuchProcess: pass
    fw.get([noop.remote() for _ in range(50)], timeout=10)
print("WORKERS")
"""
    )
    with Driver(source, tmp_path) as driver:
        assert driver.finish(60) == 0, driver.text()
        assert driver.out[-2:] == ["ZYGOTE", "WORKERS"]
        assert "Traceback" not in driver.text()
        assert_clean(tmp_path)


def test_init_and_shutdown_many_times(tmp_path: Path) -> None:
    source = """
    import gc, os, sys, threading
    import framework as fw
    def measure():
        gc.collect()
        with open("/proc/self/statm") as file: pages = int(file.read().split()[1])
        return len(os.listdir("/proc/self/fd")), threading.active_count(), pages * 4
    @fw.remote
    def add(x): return x + 1
    @fw.remote
    class Actor:
        def ping(self): return 1
    seen = []
    for turn in range(24):
        fw.init(num_cpus=1)
        assert fw.get(add.remote(turn), timeout=20) == turn + 1
        a = Actor.remote()
        assert fw.get(a.ping.remote(), timeout=20) == 1
        fw.shutdown()
        seen.append(measure())
    print(seen, file=sys.stderr)
    assert seen[-1][0] == seen[3][0], seen
    assert seen[-1][1] == seen[3][1], seen
    assert seen[-1][2] - seen[3][2] < 4000, seen  # KiB
    assert not sys.is_finalizing()
    """
    with Driver(source, tmp_path) as driver:
        assert driver.finish(60) == 0, driver.text()
        assert_clean(tmp_path)


def test_only_the_driver_gets_the_interrupt(tmp_path: Path) -> None:
    """A program that handles Ctrl-C goes on with a session that still works."""
    source = (
        BEGIN
        + """
r = slow.remote()
try:
    ready()
    fw.get(r)
except KeyboardInterrupt:
    print("STILL", fw.get([noop.remote() for _ in range(10)], timeout=10) == [None] * 10)
"""
    )
    with Driver(source, tmp_path) as driver:
        driver.expect("READY")
        driver.settle()
        driver.signal(signal.SIGINT, group=True)
        assert driver.finish() == 0, driver.text()
        assert driver.out[-1] == "STILL True"
        assert_clean(tmp_path)


def test_a_node_without_driver_is_not_left(tmp_path: Path) -> None:
    """Only the node process sees the end of a driver that is killed before it could say anything."""
    with Driver(BEGIN + "ready(); time.sleep(1000)", tmp_path) as driver:
        driver.expect("READY")
        processes = framework_processes(tmp_path)
        assert processes
        node = psutil.Process(int(processes[0].split()[0]))
        driver.signal(signal.SIGKILL)
        node.wait(3)
        assert_clean(tmp_path)
