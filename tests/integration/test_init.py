"""Beginnings: init in all kinds of programs, threads, forks and second drivers; what is said when it cannot
work.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

import framework as fw
from support.drivers import Driver, assert_clean
from support.leaks import framework_processes

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WORK = """
import framework as fw
base = 40
@fw.remote
def f(x): return base + x
@fw.remote
class A:
    def value(self): return f.remote(1)
a = A.remote()
print("RESULT", fw.get(f.remote(2), timeout=20), fw.get(fw.get(a.value.remote(), timeout=20), timeout=20))
"""


@pytest.mark.parametrize("way", ["c", "file", "module", "stdin", "notebook", "no_main"])
def test_ways_to_run_a_program(tmp_path: Path, way: str) -> None:
    """None of them has an ``if __name__ == "__main__"`` guard."""
    code = tmp_path / "code"
    (code / "pkg").mkdir(parents=True)
    (code / "pkg" / "__init__.py").write_text("")
    (code / "pkg" / "prog.py").write_text("from pkg import helper\n" + WORK)
    (code / "pkg" / "helper.py").write_text("x = 1")
    (code / "script.py").write_text(WORK)
    notebook = (
        "import types, sys; m = types.ModuleType('__main__'); sys.modules['__main__'] = m; "
        f"exec({WORK!r}, m.__dict__)"
    )
    no_main = f"import runpy; runpy.run_path({str(code / 'script.py')!r})"
    arguments = {
        "c": ["-c", WORK],
        "file": [str(code / "script.py")],
        "module": ["-m", "pkg.prog"],
        "stdin": ["-"],
        "notebook": ["-c", notebook],
        "no_main": ["-c", no_main],
    }[way]
    root = tmp_path / "root"
    root.mkdir()
    with Driver("", root, arguments=arguments, stdin=WORK if way == "stdin" else None, cwd=code) as driver:
        assert driver.finish() == 0, driver.text()
        assert driver.out == ["RESULT 42 41"]
        assert driver.err == []
        assert_clean(root)


def test_modules_next_to_the_program_do_not_hide_ours(tmp_path: Path) -> None:
    """The node process starts in the driver's directory, which may hold anything."""
    code = tmp_path / "code"
    code.mkdir()
    for name in ("select", "logging", "msgpack", "numpy", "ctypes", "signal", "json"):
        (code / f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    (tmp_path / "root").mkdir()
    with Driver("", tmp_path / "root", arguments=["-P", "-c", WORK], cwd=code) as driver:
        assert driver.finish() == 0, driver.text()
        assert driver.out == ["RESULT 42 41"]


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    source = "import os, tempfile\nd = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)\n" + WORK
    with Driver("", tmp_path, arguments=["-P", "-c", source]) as driver:
        assert driver.finish() == 0, driver.text()
        assert driver.out == ["RESULT 42 41"]


def test_the_environment_of_workers_is_that_of_the_driver(tmp_path: Path) -> None:
    source = """
    import os, sys, framework as fw
    @fw.remote
    def env(): return dict(os.environ), os.getcwd(), sys.path
    theirs, cwd, path = fw.get(env.remote(), timeout=20)
    ours = dict(os.environ)
    assert cwd == os.getcwd() and path[1:] == sys.path[1:], (path, sys.path)
    changed = {k: (ours.get(k), theirs.get(k)) for k in {*ours, *theirs} if ours.get(k) != theirs.get(k)}
    print(sorted(changed))
    """
    with Driver(source, tmp_path, env={"OMP_NUM_THREADS": "3"}) as driver:
        assert driver.finish() == 0, driver.text()
        assert driver.out == ["[]"]


def test_init_in_threads_and_by_first_use(tmp_path: Path) -> None:
    source = """
    import threading, framework as fw
    @fw.remote
    def one(): return 1
    results = []
    start = threading.Barrier(8)
    def work():
        start.wait()
        results.append(fw.get(one.remote(), timeout=30))
    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert results == [1] * 8, results
    print(len(fw.nodes()))
    fw.shutdown()
    errors = []
    def explicit():
        start.wait()
        try: fw.init(num_cpus=1)
        except fw.exceptions.AlreadyInitializedError: errors.append(1)
    threads = [threading.Thread(target=explicit) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(errors) == 7, errors
    assert fw.get(one.remote(), timeout=30) == 1
    """
    with Driver(source, tmp_path) as driver:
        assert driver.finish(40) == 0, driver.text()
        assert driver.out == ["1"] and driver.err == []
        assert_clean(tmp_path)


def test_shutdown_ends_the_waiting_of_other_threads(tmp_path: Path) -> None:
    source = """
    import asyncio, threading, time, framework as fw
    fw.init(num_cpus=2)
    @fw.remote(num_cpus=0)
    def slow(): time.sleep(1000)
    @fw.remote(num_cpus=0)
    def stream():
        yield 1
        time.sleep(1000)
    @fw.remote
    class A:
        def slow(self): time.sleep(1000)
    a = A.remote()
    errors = {}
    begun = threading.Barrier(6)
    def check(name, function):
        try: function()
        except BaseException as e: errors[name] = f"{type(e).__name__}: {e}"
    async def awaiting():
        ref = slow.remote(); begun.wait(); await ref
    def then_get(ref): begun.wait(); fw.get(ref)
    def streaming():
        for i, ref in enumerate(stream.remote()):
            fw.get(ref)
            begun.wait()
    def then_wait(ref): begun.wait(); fw.get(fw.wait([ref])[0])
    checks = {"get": lambda: then_get(slow.remote()), "actor": lambda: then_get(a.slow.remote()),
              "await": lambda: asyncio.run(awaiting()), "stream": streaming,
              "wait": lambda: then_wait(slow.remote())}
    threads = [threading.Thread(target=check, args=c) for c in checks.items()]
    for t in threads: t.start()
    begun.wait()
    ref = slow.remote()
    fw.shutdown()
    for t in threads: t.join(5)
    for name in checks: print(name, errors.get(name, "still waits"))
    check("later", lambda: fw.get(ref))
    check("put", lambda: fw.put(1))
    check("remote", lambda: slow.remote())
    check("actor call", lambda: a.slow.remote())
    for name in ("later", "put", "remote", "actor call"): print(name, errors.get(name, "no error"))
    """
    with Driver(source, tmp_path) as driver:
        assert driver.finish(30) == 0, driver.text()
        assert len(driver.out) == 9, driver.text()
        for line in driver.out:
            assert "NotInitializedError" in line, driver.text()
        assert driver.err == [], driver.text()
        assert_clean(tmp_path)


FORK = """
import os, sys, time, gc, asyncio, multiprocessing, threading
import framework as fw
fw.init(num_cpus=2)
@fw.remote
def f(x): return x + 1
@fw.remote
class A:
    def value(self): return 5
a = A.remote()
ref = f.remote(1)
assert fw.get(ref) == 2 and fw.get(a.value.remote()) == 5
def attempt(function):
    began = time.monotonic()
    try:
        function()
    except fw.exceptions.ForkedProcessError as e:
        assert time.monotonic() - began < 0.5
        return True
    except BaseException as e:
        print(type(e), e, flush=True)
    return False
kept = fw.put([1])
@fw.remote
def slow(): time.sleep(1000)
pending = slow.remote()
async def wait_for(ref): await asyncio.wait_for(ref, 1)
def child():
    results = {name: attempt(function) for name, function in {
        "get": lambda: fw.get(ref), "get pending": lambda: fw.get(pending), "put": lambda: fw.put(1),
        "remote": lambda: f.remote(1), "wait": lambda: fw.wait([ref]),
        "actor": lambda: a.value.remote(), "new actor": lambda: A.remote(), "resources": fw.cluster_resources,
        "cancel": lambda: fw.cancel(ref), "kill": lambda: fw.kill(a),
        "await": lambda: asyncio.run(wait_for(pending)),
        "future": lambda: pending.future().result(1), "get_actor": lambda: fw.get_actor("x")}.items()}
    print("BAD", sorted(name for name, good in results.items() if not good), flush=True)
"""


@pytest.mark.parametrize(
    "end", ["sys.exit(0)", "os._exit(0)", "raise ValueError('in child')", "fw.shutdown(); sys.exit(0)"]
)
def test_a_fork_gets_an_error_and_disturbs_nobody(tmp_path: Path, end: str) -> None:
    source = (
        FORK
        + f"""
pid = os.fork()
if pid == 0:
    child()
    x = ref
    del x
    gc.collect()
    {end}
os.waitpid(pid, 0)
for i in range(20): assert fw.get([f.remote(i), f.remote(i + 1)], timeout=10) == [i + 1, i + 2]
assert fw.get(a.value.remote(), timeout=10) == 5
assert fw.get(kept) == [1]
print("PARENT")
"""
    )
    with Driver("", tmp_path, arguments=["-c", source]) as driver:
        assert driver.finish(20) == 0, driver.text()
        assert driver.out == ["BAD []", "PARENT"], driver.text()
        if "raise" not in end:
            assert driver.err == [], driver.text()
        assert_clean(tmp_path)


@pytest.mark.parametrize("first", ["", "fw.shutdown()"])
def test_a_fork_may_have_a_session_of_its_own(tmp_path: Path, first: str) -> None:
    source = (
        FORK
        + f"""
pid = os.fork()
if pid == 0:
    {first or "pass"}
    with fw.init(num_cpus=1) as context:
        assert fw.get(f.remote(10), timeout=20) == 11
    fw.init(num_cpus=1)
    assert fw.get(f.remote(10), timeout=20) == 11
    print("CHILD", flush=True)
    sys.exit(0)
os.waitpid(pid, 0)
assert fw.get(f.remote(3), timeout=10) == 4
print("PARENT")
"""
    )
    with Driver("", tmp_path, arguments=["-c", source]) as driver:
        assert driver.finish(30) == 0, driver.text()
        assert driver.out == ["CHILD", "PARENT"], driver.text()
        assert driver.err == [], driver.text()
        assert_clean(tmp_path)


def test_fork_while_another_thread_starts_a_session(tmp_path: Path) -> None:
    """The child must not find a lock that nobody will ever release."""
    source = """
    import os, sys, threading
    import framework as fw
    from framework._runtime.current import start_lock
    held, done = threading.Event(), threading.Event()
    def hold():
        with start_lock(): held.set(); done.wait()
    threading.Thread(target=hold).start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        fw.init(num_cpus=1); fw.shutdown(); os._exit(5)
    status = os.waitpid(pid, 0)[1]
    done.set()
    print(os.waitstatus_to_exitcode(status))
    """
    with Driver(source, tmp_path) as driver:
        assert driver.finish(20) == 0, driver.text()
        assert driver.out == ["5"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(tmp_path: Path, method: str) -> None:
    script = tmp_path / "prog.py"
    script.write_text(
        """
import multiprocessing, os, framework as fw
@fw.remote
def f(x): return x + 1
def own(x):
    fw.init(num_cpus=1)
    value = fw.get(f.remote(x), timeout=20)
    fw.shutdown()
    return value
def plain(x): return x * 2
if __name__ == "__main__":
    fw.init(num_cpus=1)
    assert fw.get(f.remote(1), timeout=20) == 2
    with multiprocessing.get_context("METHOD").Pool(2) as pool:
        assert pool.map(plain, [1, 2, 3]) == [2, 4, 6]
        assert pool.apply(own, (5,)) == 6
    assert fw.get(f.remote(1), timeout=20) == 2
    print("DONE")
""".replace("METHOD", method)
    )
    root = tmp_path / "root"
    root.mkdir()
    with Driver("", root, arguments=[str(script)]) as driver:
        assert driver.finish(40) == 0, driver.text()
        assert driver.out == ["DONE"] and driver.err == [], driver.text()
        assert_clean(root)


def test_a_second_driver(session: object) -> None:
    """It finds the session, works in it, and leaves without disturbing the first, whatever way it leaves."""
    context = fw.init(ignore_reinit_error=True)
    address = context["session_dir"]

    @fw.remote
    def mine() -> int:
        return 7

    root = Path(address).parents[1]
    before = len(framework_processes(root))
    for end in ("fw.shutdown()", "pass", "os._exit(0)", "os.kill(os.getpid(), 9)"):
        source = f"""
import os, framework as fw
c = fw.init(address={address!r})
@fw.remote
def theirs(): return os.getppid()
@fw.remote
class A:
    def ping(self): return 1
a = A.remote()
assert fw.get(a.ping.remote(), timeout=20) == 1
assert fw.get(theirs.remote(), timeout=20) > 0
print("JOB", c["job_id"], c["address"] == {address!r}, flush=True)
{end}
"""
        with Driver("", root, arguments=["-c", source]) as driver:
            driver.finish(30)
            assert driver.out and driver.out[0].endswith("True"), driver.text()
            assert "JOB 01000000" not in driver.out[0]
            assert driver.err == [], driver.text()
        assert fw.get(mine.remote(), timeout=20) == 7
    assert before > 0
    environment = {"FRAMEWORK_ADDRESS": address}
    with Driver(
        "import framework as fw; fw.init(); print(fw.nodes()[0]['pid'])", root, env=environment
    ) as driver:
        assert driver.finish() == 0, driver.text()
        assert driver.out == [str(fw.nodes()[0]["pid"])]


def test_the_first_driver_ends_and_the_second_is_told(tmp_path: Path) -> None:
    with Driver(
        "import framework as fw, time; print('AT', fw.init(num_cpus=1)['address']); time.sleep(1000)",
        tmp_path,
    ) as first:
        address = first.expect("AT").split()[-1]
        source = f"""
import time, framework as fw
fw.init(address={address!r})
@fw.remote
def slow(): time.sleep(1000)
r = slow.remote()
print("READY")
try: fw.get(r)
except fw.exceptions.LocalNodeDiedError as e: print("TOLD", e)
"""
        with Driver("", tmp_path, arguments=["-c", source]) as second:
            second.expect("READY")
            first.signal(9)
            assert second.finish(5) == 0, second.text()
            assert "TOLD" in second.out[-1]
    assert_clean(tmp_path)


@pytest.fixture
def none() -> None:
    """No session in this process."""
    fw.shutdown()


# ---- errors ------------------------------------------------------------------------------------------


def test_init_twice(session: object) -> None:
    with pytest.raises(fw.exceptions.AlreadyInitializedError, match="shutdown"):
        fw.init()
    assert fw.init(ignore_reinit_error=True, num_cpus=7)["session_dir"] == session["session_dir"]  # type: ignore[index]
    assert fw.is_initialized()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"address": "/nowhere"}, fw.exceptions.ConnectionFailedError, "/nowhere"),
        (
            {"address": "127.0.0.1:6379"},
            fw.exceptions.ConnectionFailedError,
            "FRAMEWORK_TOKEN|no head of a cluster",
        ),
        ({"address": "auto"}, fw.exceptions.ConnectionFailedError, "auto"),
        ({"address": 5}, TypeError, "address"),
        ({"num_cpus": -1}, ValueError, "num_cpus"),
        ({"num_cpus": "2"}, TypeError, "num_cpus"),
        ({"num_cpu": 1}, ValueError, "did you mean 'num_cpus'"),
        ({"resources": {"CPU": 1}}, ValueError, "CPU"),
        ({"object_store_memory": -5}, ValueError, "object_store_memory"),
        ({"object_store_memory": 4095}, ValueError, "at least 1048576"),
        ({"namespace": ""}, ValueError, "namespace"),
    ],
)
def test_arguments_that_make_no_sense(
    none: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, object],
    error: type[Exception],
    text: str,
) -> None:
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    threads = threading.active_count()
    with pytest.raises(error, match=text):
        fw.init(**arguments)  # type: ignore[arg-type]
    assert not fw.is_initialized()
    assert threading.active_count() == threads
    assert_clean(tmp_path)


def test_a_node_that_is_gone_or_does_not_answer(tmp_path: Path) -> None:
    with Driver(
        "import framework as fw, time; c = fw.init(num_cpus=1); print('AT', c['address'], "
        "c._runtime.node_facts['pid']); time.sleep(1000)",
        tmp_path,
    ) as first:
        _, address, node = first.expect("AT").split()
        second = f"""
import framework as fw, os, signal, time, threading
from framework._base import limits
limits.CONNECT_TIMEOUT = 0.5
def attempt():
    began = time.monotonic()
    try: fw.init(address={address!r})
    except fw.exceptions.ConnectionFailedError as e: print("ERROR", time.monotonic() - began < 2, e)
    assert not fw.is_initialized() and threading.active_count() == 1
os.kill({node}, signal.SIGSTOP)
attempt()
os.kill({node}, signal.SIGKILL)
attempt()
"""
        with Driver("", tmp_path, arguments=["-c", second]) as driver:
            assert driver.finish() == 0, driver.text()
            assert "ERROR True" in driver.out[0] and "does not answer" in driver.out[0], driver.text()
            assert "ERROR True" in driver.out[1] and "Is it still running" in driver.out[1], driver.text()
        first.signal(9)
        first.finish()
    assert not framework_processes(tmp_path)


def test_a_node_that_cannot_start(none: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is in the error."""
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "sitecustomize.py").write_text(
        "import sys\nif 'framework._node' in ' '.join(sys.orig_argv): sys.exit('broken on purpose')"
    )
    monkeypatch.setenv("PYTHONPATH", str(wrong))
    with pytest.raises(fw.exceptions.LocalNodeDiedError, match="broken on purpose"):
        fw.init()
    assert not fw.is_initialized()
    monkeypatch.undo()


def test_no_place_for_sessions(none: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for place in (str(file), "/proc/nothing", str(file / "below")):
        monkeypatch.setenv("FRAMEWORK_TMPDIR", place)
        with pytest.raises(OSError, match="FRAMEWORK_TMPDIR") as caught:
            fw.init()
        assert place in str(caught.value)
        assert not fw.is_initialized()


def test_directories_of_others_are_refused(
    none: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAMEWORK_TMPDIR", str(tmp_path))
    root = tmp_path / f"framework-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="FRAMEWORK_TMPDIR"):
        fw.init()
    root.unlink()
    root.mkdir(0o755)
    root.chmod(0o755)
    with fw.init(num_cpus=1):
        assert stat.S_IMODE(root.stat().st_mode) == 0o700


# ---- logging -----------------------------------------------------------------------------------------

LOGGING = """
import logging, framework as fw
fw.init(num_cpus=1, {arguments})
log = logging.getLogger("framework.test")
@fw.remote
def work():
    log.debug("debug there"); log.info("info there"); log.warning("warning there")
    return logging.getLogger("framework").level
log.debug("debug here"); log.info("info here"); log.warning("warning here")
print("LEVEL", fw.get(work.remote()))
"""


@pytest.mark.parametrize(
    ("arguments", "seen", "level"),
    [
        ("", {"info", "warning"}, 20),
        ("logging_level='debug'", {"debug", "info", "warning"}, 10),
        ("logging_level=30", {"warning"}, 30),
        ("configure_logging=False, logging_level='debug'", {"warning"}, 0),
    ],
)
def test_logging_here_and_in_workers(tmp_path: Path, arguments: str, seen: set[str], level: int) -> None:
    with Driver(LOGGING.format(arguments=arguments), tmp_path) as driver:
        assert driver.finish() == 0, driver.text()
    assert f"LEVEL {level}" in driver.out, driver.text()
    lines = [line for line in driver.err if " here" in line or " there" in line]
    assert len(lines) == 2 * len(seen), driver.text()
    for word in seen:
        assert any(line.endswith(f"{word} here") for line in lines), driver.text()
        assert any(line.startswith("(work pid=") and line.endswith(f"{word} there") for line in lines)


def test_the_format_of_log_lines(tmp_path: Path) -> None:
    with Driver(LOGGING.format(arguments="logging_format='<%(message)s>'"), tmp_path) as driver:
        assert driver.finish() == 0, driver.text()
    assert "<info here>" in driver.err and any(line.endswith(") <info there>") for line in driver.err)


MEMORY = """
import gc
import numpy as np
import framework as fw

def mapped():
    gc.collect()
    return sum("/memfd:framework" in line for line in open("/proc/self/maps"))

@fw.remote
def make():
    return np.ones(1_000_000)

fw.init(num_cpus=1, log_to_driver=False)
view = fw.get(make.remote(), timeout=20)
counts = [mapped()]
fw.shutdown()
counts.append(mapped())
print(view.sum())
del view
print("RESULT", counts + [mapped()])
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="there is no /proc")
def test_shared_memory_goes_with_the_session_and_the_last_view(tmp_path: Path) -> None:
    """A remote function, which keeps what it was prepared for, does not keep it."""
    with Driver(MEMORY, tmp_path) as driver:
        assert driver.finish() == 0, driver.text()
    assert "RESULT [1, 1, 0]" in driver.out, driver.text()
