from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from framework.benchmarks.fresh import figures
from framework.benchmarks.processes import (
    child_environment,
    compiled_modules,
    descendants,
    parent_of,
    run_child,
)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.mark.parametrize("name", ["python", "a b", "a) R 7 (b", ")("])
def test_parent_of_survives_any_process_name(name: str) -> None:
    assert parent_of(f"12 ({name}) S 34 5 6 7") == (34, "S")


def test_output_and_code_of_a_child() -> None:
    outcome = run_child(["-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"], 10.0)
    assert (outcome.code, outcome.stdout, outcome.stderr, outcome.leftovers) == (3, "out\n", "err\n", 0)


def test_children_find_the_package() -> None:
    first = child_environment()["PYTHONPATH"].split(os.pathsep)[0]
    assert (Path(first) / "framework" / "benchmarks").is_dir()


@linux
def test_descendants_are_found() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in descendants(os.getpid())
        child.communicate(b"\n")
    assert child.pid not in descendants(os.getpid())


@linux
def test_a_child_that_takes_too_long_is_ended_with_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    before = set(descendants(os.getpid()))
    outcome = run_child(["-c", code], 0.15)
    assert outcome.code is None
    assert set(descendants(os.getpid())) <= before


@linux
@pytest.mark.slow
def test_a_detached_leftover_is_ended_and_counted() -> None:
    # In a process of its own: adopting orphans is for good, and this one runs other tests.
    leaver = (
        "import subprocess, sys;"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)"
    )
    code = (
        "from framework.benchmarks import processes as p;"
        "import os; p.adopt_orphans(); p._GRACE = 0.2;"
        f"outcome = p.run_child(['-c', {leaver!r}], 10.0);"
        "print(outcome.code, outcome.leftovers, p.descendants(os.getpid()))"
    )
    assert run_child(["-c", code], 30.0).stdout == "0 1 []\n"


def test_figures_are_the_last_object_printed() -> None:
    assert figures(["-c", "print('noise'); print('{\"a\": 1.5}')"], 10.0) == {"a": 1.5}


@pytest.mark.parametrize("code", ["raise ValueError('no')", "import sys; sys.exit('no')"])
def test_figures_of_a_failure_say_why(code: str) -> None:
    with pytest.raises(RuntimeError, match=r"code 1: .*no"):
        figures(["-c", code], 10.0)


def test_the_second_child_finds_its_modules_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_module.py").write_text("")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    code = (
        f"import os, sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "import importlib.util as u; print(os.path.exists(u.find_spec('some_module').cached)); "
        "import some_module"
    )
    with compiled_modules() as environment:
        assert [run_child(["-c", code], 20.0, environment=environment).stdout for _ in range(2)] == [
            "False\n",
            "True\n",
        ]
        kept = Path(environment["PYTHONPYCACHEPREFIX"])
    assert not kept.exists() and not (tmp_path / "__pycache__").exists()


def test_where_modules_are_compiled_as_ever_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with compiled_modules() as environment:
        assert environment == {}
