"""What tasks print appears at the driver, line by line, with name and process id; the end loses nothing."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from support.drivers import Driver, assert_clean
from support.leaks import framework_processes, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BEGIN = """
import os, sys, time, logging, subprocess, threading
import framework as fw
fw.init(num_cpus=2)
"""


def run(tmp_path: Path, body: str, **env: str) -> Driver:
    with Driver("", tmp_path, arguments=["-c", BEGIN + body], env=env) as driver:
        assert driver.finish(30) == 0, driver.text()
        assert_clean(tmp_path)
        return driver


def lines(printed: list[str]) -> list[tuple[str, str]]:
    """The (name, text) of lines from workers."""
    found = [re.fullmatch(r"\((\w[\w.]* )?pid=\d+\) (.*)", line) for line in printed]
    return [((match[1] or "").strip(), match[2]) for match in found if match]


def test_lines_have_name_and_pid(tmp_path: Path) -> None:
    body = """
@fw.remote
def task():
    print("one"); print("two\\nthree"); print("no newline", end="")
    return os.getpid()
print("PID", fw.get(task.remote()))
"""
    driver = run(tmp_path, body)
    pid = driver.expect("PID").split()[1]
    for text in ("one", "two", "three", "no newline"):
        assert f"(task pid={pid}) {text}" in driver.out, driver.text()
    assert [text for _, text in lines(driver.out)] == ["one", "two", "three", "no newline"]
    assert driver.err == []


def test_standard_error_logging_subprocesses_and_c_level_output(tmp_path: Path) -> None:
    body = """
@fw.remote
def task():
    print("to stderr", file=sys.stderr)
    logging.warning("a warning")
    subprocess.run(["echo", "from a subprocess"])
    os.write(1, b"raw bytes\\n")
    os.write(2, b"bad utf-8 \\xff\\n")
    sys.stdout.write("unflushed")
fw.get(task.remote())
"""
    driver = run(tmp_path, body)
    out, err = [t for _, t in lines(driver.out)], [t for _, t in lines(driver.err)]
    assert sorted(out) == ["from a subprocess", "raw bytes", "unflushed"], driver.text()
    assert err[0] == "to stderr" and "a warning" in err[1] and err[2].startswith("bad utf-8 "), driver.text()


def test_names_of_tasks_actors_and_methods(tmp_path: Path) -> None:
    body = """
@fw.remote
def first(): print("a")
@fw.remote
def second(): print("b")
@fw.remote
class Counter:
    def __init__(self): print("born")
    def work(self): print("c")
fw.get([first.remote(), second.options(name="renamed").remote()])
a = Counter.remote()
fw.get(a.work.remote())
"""
    assert sorted(lines(run(tmp_path, body).out)) == [
        ("Counter", "born"),
        ("Counter", "c"),
        ("first", "a"),
        ("renamed", "b"),
    ]


@pytest.mark.parametrize("end", ["", "sys.exit()", "fw.shutdown(); os._exit(0)", "raise SystemExit(0)"])
def test_what_was_printed_right_before_the_end_is_shown(tmp_path: Path, end: str) -> None:
    body = """
@fw.remote
def task(i): print("line", i)
fw.get([task.remote(i) for i in range(200)])
"""
    driver = run(tmp_path, body + end, FRAMEWORK_DEDUP_LOGS="0")
    assert sorted(text for _, text in lines(driver.out)) == sorted(f"line {i}" for i in range(200))


def test_last_words_of_processes_that_die(tmp_path: Path) -> None:
    body = """
@fw.remote(max_retries=0)
def dies():
    print("last words", flush=True)
    os._exit(3)
@fw.remote
class Actor:
    def dies(self):
        print("actor's last words", flush=True)
        os.kill(os.getpid(), 9)
a = Actor.remote()
for ref in (dies.remote(), a.dies.remote()):
    try: fw.get(ref)
    except fw.exceptions.FrameworkError: pass
"""
    driver = run(tmp_path, body)
    assert ("dies", "last words") in lines(driver.out), driver.text()
    assert ("Actor", "actor's last words") in lines(driver.out), driver.text()


def test_lines_appear_while_the_task_runs(tmp_path: Path) -> None:
    body = """
@fw.remote
def task():
    print("early", flush=True)
    while not os.path.exists(sys.argv[1]): time.sleep(0.01)
    return 1
print("END", fw.get(task.remote(), timeout=20))
"""
    body = body.replace("sys.argv[1]", repr(str(tmp_path.parent / "go")))
    with Driver("", tmp_path, arguments=["-c", BEGIN + body]) as driver:
        driver.expect("early", 10)
        assert not any("END" in line for line in driver.out)
        (tmp_path.parent / "go").touch()
        driver.expect("END")
        assert driver.finish() == 0


def test_repeated_lines_are_shown_once(tmp_path: Path) -> None:
    body = """
@fw.remote
class A:
    def say(self, text): print(text)
actors = [A.remote() for _ in range(4)]
fw.get([a.say.remote("the same") for a in actors])
"""
    shown = [text for _, text in lines(run(tmp_path, body).out)]
    assert shown[0] == "the same" and len(shown) == 2 and "repeated 3x across cluster" in shown[1], shown
    again = [text for _, text in lines(run(tmp_path, body, FRAMEWORK_DEDUP_LOGS="0").out)]
    assert again == ["the same"] * 4


def test_log_to_driver_false(tmp_path: Path) -> None:
    body = """
fw.shutdown()
context = fw.init(num_cpus=1, log_to_driver=False)
@fw.remote
def task():
    print("only in the file")
    print("errors too", file=sys.stderr)
fw.get(task.remote())
time.sleep(0.3)
print("LOGS", context["session_dir"])
"""
    driver = run(tmp_path, body)
    assert lines(driver.out) == lines(driver.err) == []
    logs = Path(driver.expect("LOGS").split()[1]) / "logs"
    text = "".join(path.read_text() for path in logs.glob("worker-*"))
    assert "only in the file" in text and "errors too" in text


@pytest.mark.parametrize(
    "what", ["sys.stdout.close()", "os.close(1); os.close(2)", "sys.stdout = None; sys.stderr = None"]
)
def test_a_driver_without_output(tmp_path: Path, what: str) -> None:
    body = f"""
{what}
@fw.remote
def task(): print("nobody hears this"); return 1
assert fw.get([task.remote() for _ in range(20)], timeout=20) == [1] * 20
fw.shutdown()
os._exit(0)
"""
    run(tmp_path, body)


def test_streams_that_are_replaced_get_the_lines(tmp_path: Path) -> None:
    body = """
import io, contextlib
@fw.remote
def task(): print("caught")
with contextlib.redirect_stdout(io.StringIO()) as stream:
    fw.get(task.remote())
    fw.shutdown()
assert "caught" in stream.getvalue(), stream.getvalue()
"""
    run(tmp_path, body)


def test_a_driver_that_does_not_read_costs_no_memory(tmp_path: Path) -> None:
    """The driver is stopped, a task prints and prints: the node leaves the lines in the files."""
    body = """
@fw.remote
def chatter():
    n = 0
    while n < 400_000:
        print("x" * 100, n)
        n += 1
    return n
r = chatter.remote()
print("NODE", fw.nodes()[0]["pid"])
fw.get(r)
print("DONE")
"""
    with Driver("", tmp_path, arguments=["-c", BEGIN + body]) as driver:
        node = psutil.Process(int(driver.expect("NODE").split()[1]))
        driver.expect("(chatter")
        driver.signal(signal.SIGSTOP)
        before = node.memory_info().rss

        def written() -> int:
            return sum(path.stat().st_size for path in tmp_path.rglob("worker-*.out"))

        wait_until(lambda: written() > 20_000_000, 40, "the output of the task")
        grown = node.memory_info().rss - before
        driver.signal(signal.SIGCONT)
        assert grown < 12 * 2**20, f"{grown / 2**20:.0f} MiB"
        driver.expect("DONE", 30)
        assert driver.finish(20) == 0
        assert_clean(tmp_path)


def test_a_terminal_that_does_not_read_delays_nobody(tmp_path: Path) -> None:
    """Standard output is a pipe that nobody empties: tasks go on, and the end comes."""
    read, write = os.pipe()
    body = """
@fw.remote
def chatter(i):
    for _ in range(2000): print("x" * 200)
    return i
os.dup2(int(sys.argv[1]), 1)
assert fw.get([chatter.remote(i) for i in range(20)], timeout=30) == list(range(20))
print("END", file=sys.stderr)
sys.stderr.flush()
fw.shutdown()
os._exit(0)
"""
    os.set_inheritable(write, True)
    import subprocess
    import sys

    from support.drivers import ROOT

    env = {**os.environ, "PYTHONPATH": str(ROOT), "FRAMEWORK_TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + body, str(write)],
        env=env,
        pass_fds=(write,),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, err = process.communicate(timeout=40)
        assert process.returncode == 0 and "END" in err, err
        wait_until(lambda: not framework_processes(tmp_path), 3, "the end of all processes")
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)
