"""What the processes of a session load when they start: each import is time before the first result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "framework._sim",
    "greenlet",
    "numpy",
    "pandas",
    "pyarrow",
    "multiprocessing",
    "tempfile",
    "fsspec",
    "unittest",
    "email",
    "http",
    "hashlib",
    "urllib",
    "pathlib",
    "shutil",
    "difflib",
    "numbers",
)


def loaded(statements: str) -> set[str]:
    """The modules that a fresh interpreter has after these statements."""
    code = f"{statements}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(json.loads(done.stdout))


@pytest.mark.slow  # each starts an interpreter
@pytest.mark.parametrize(
    ("process", "statements"),
    [
        ("import", "import framework"),
        ("driver", "import framework; framework.init; import framework._boot, framework._node.local"),
        ("node", "import framework; import framework._head.service, framework._node.process"),
        ("worker", "from framework._worker.__main__ import preload; preload()"),
    ],
)
def test_nothing_heavy_is_loaded(process: str, statements: str) -> None:
    assert not loaded(statements) & set(HEAVY), process


@pytest.mark.slow
@pytest.mark.parametrize(
    "statements",
    [
        "import framework; framework.init; import framework._boot, framework._node.local",
        "import framework; import framework._head.service, framework._node.process",
        "from framework._worker.__main__ import preload; preload()",
    ],
)
def test_what_only_clusters_need_is_not_loaded_in_a_local_session(statements: str) -> None:
    assert not loaded(statements) & {
        "sqlite3",
        "click",
        "rich",
        "framework._head.cluster",
        "framework._net.tcp",
        "framework._node.clustered",
        "framework._node.launching",
        "framework._node.neighbours",
        "framework._service.credentials",
    }


@pytest.mark.slow
def test_import_alone_loads_no_asyncio() -> None:
    assert not loaded("import framework") & {"asyncio", "uvloop", "msgpack", "cloudpickle"}


@pytest.mark.slow
def test_a_node_is_started_before_much_is_loaded() -> None:
    """(All that comes before it starts is time in which nothing else happens.)"""
    plain = loaded("import sys")
    before_it = loaded("import framework; framework.init; import framework._node.local")
    assert not (before_it - plain) & {"typing", "socket", "threading", "logging", "inspect"}
