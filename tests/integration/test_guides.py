"""The snippets of the guides in docs/ run, and print what their comments say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.parametrize(
    "guide",
    [
        "actors.md",
        "cluster.md",
        "placement_groups.md",
        "scheduling.md",
        "sessions.md",
        "simulation.md",
        "supervision.md",
    ],
)
def test_the_snippets_of_a_guide_are_one_program(guide: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / guide).read_text()
    program = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", program, re.MULTILINE)
    assert len(expected) == program.count("print("), "a print() without the comment that says what it prints"
    path = tmp_path / "guide.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected
