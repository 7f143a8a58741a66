"""The programs in docs/patterns.md run and print what the text around them says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "patterns.md").read_text(), re.DOTALL)
EXPECTED = {
    "as_completed": sorted(n * n for n in range(10)),
    "map_unordered": sorted(n * n for n in range(1000)),
    "ActorPool": [42, *range(0, 20, 2)],
    "Queue": [999_000],
}

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_every_block_is_run_here() -> None:
    assert len(BLOCKS) == len(EXPECTED)


@pytest.mark.parametrize(("name", "source"), list(zip(EXPECTED, BLOCKS, strict=False)), ids=list(EXPECTED))
def test_block(name: str, source: str, session_root: Path, tmp_path: Path) -> None:
    assert name in source
    program = tmp_path / "program.py"
    program.write_text(source)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert sorted(map(int, re.findall(r"\d+", done.stdout))) == sorted(EXPECTED[name])
