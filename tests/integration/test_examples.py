"""Every program in examples/ and README.md runs, at a small size, and prints what it should."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TIMEOUT = 90.0  # seconds for one program; far above what they take, below pytest's own limit

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def environment() -> dict[str, str]:
    """This process's environment, with the checkout importable whether or not it is installed."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
    }


def run(cwd: Path, name: str, *arguments: str) -> str:
    """The standard output of an example that must succeed and must not complain."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_monte_carlo_pi(tmp_path: Path) -> None:
    arguments = ["--tasks", "10", "--darts", "20000", "--batch", "5000", "--seed", "7"]
    output = run(tmp_path, "monte_carlo_pi.py", *arguments)
    assert "progress: 100%" in output
    found = re.search(r"pi is about (3\.1\d+) \(off by (0\.\d+)\): 200,000 darts", output)
    assert found is not None, output
    assert float(found[2]) < 0.02  # five standard deviations of 200,000 darts
    again = run(tmp_path, "monte_carlo_pi.py", *arguments)
    assert found[1] in again, "the same seed gave another result"


def test_index_source_tree(tmp_path: Path) -> None:
    output = run(tmp_path, "index_source_tree.py", "--limit", "150", "--cpus", "2", "--find", "__init__")
    assert "150 files" in output
    assert re.search(r"^[\d,]+ classes, [\d,]+ functions, [\d,]+ methods$", output, re.MULTILINE), output
    assert re.search(r"__init__ is defined in \d+ places", output), output
    assert "the same index as one process makes" in output
    assert re.search(r"on 2 processors, .* in one process: \d+\.\d\d times as fast", output), output


def test_index_source_tree_with_invalid_files(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "good.py").write_text("class A:\n    def f(self): ...\nasync def g(): ...\n")
    (tree / "bad.py").write_text("def (:\n")
    output = run(tmp_path, "index_source_tree.py", "--root", str(tree), "--find", "g")
    assert "2 files, 4 lines; 1 of the files are not valid Python" in output
    assert "1 classes, 1 functions, 1 methods" in output
    assert "good.py:3 (function)" in output


def test_web_service_self_test(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    arguments = ["--requests", "60", "--concurrency", "8", "--limit", "5000"]
    output = run(tmp_path, "web_service.py", "--self-test", *arguments)
    assert "60 answers in" in output
    assert "48 rows streamed, 0 wrong answers" in output


# What the README's programs print, in their order.
README_OUTPUT = (
    "49\n[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]\n",
    "[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]\n",
    "0\n1\n4\n9\n16\n25\n36\n49\n64\n81\n",
)


def test_readme_programs(tmp_path: Path) -> None:
    programs = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(programs) == len(README_OUTPUT)
    for number, (program, expected) in enumerate(zip(programs, README_OUTPUT, strict=True)):
        path = tmp_path / f"readme_{number}.py"
        path.write_text(program)
        assert run(tmp_path, str(path)) == expected, program


def start_service(cwd: Path) -> tuple[subprocess.Popen[str], str]:
    """The service as a process of its own, and its URL."""
    service = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "web_service.py"), "--port", "0"],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert service.stdout is not None
    line = service.stdout.readline()  # pytest's timeout bounds it
    if not line.startswith("listening on "):
        service.kill()
        service.communicate()
        raise AssertionError(f"the service did not start: {line!r}")
    return service, line.split()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="the service is stopped by SIGTERM")
def test_web_client_against_a_running_service(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    service, url = start_service(tmp_path)
    try:
        arguments = ["--requests", "30", "--concurrency", "5", "--limit", "3000", "--parts", "4"]
        output = run(tmp_path, "web_client.py", "--url", url, *arguments)
        assert "30 answers in" in output
        assert "12 rows streamed, 0 wrong answers" in output
        service.send_signal(signal.SIGTERM)
        rest, _ = service.communicate(timeout=30)
        assert rest.strip() == "stopped"
        assert service.returncode == 0
    finally:
        if service.poll() is None:
            service.kill()
            service.communicate()


def test_simulated_bank(tmp_path: Path) -> None:
    pytest.importorskip("greenlet")
    output = run(tmp_path, "simulated_bank.py", "--seeds", "30")
    found = re.search(r"careless bank: under seed (\d+) the audit found 1\d\d instead of 200", output)
    assert found is not None, output
    assert "careful bank: right under all of 30 seeds" in output


def test_every_example_is_run() -> None:
    source = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in source, f"{path.name} is run by no test"
