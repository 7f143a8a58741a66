"""``python -m framework``, run to its end."""

from __future__ import annotations

import subprocess
import sys


def run_command_line(
    *arguments: str, env: dict[str, str], code: int = 0, within: tuple[str, ...] = ()
) -> str:
    """What it prints, to either stream. `within`: the beginning of the command that runs it."""
    done = subprocess.run(
        [*within, sys.executable, "-m", "framework", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done
    return done.stdout + done.stderr
