"""The command line: ``python -m framework``."""

from __future__ import annotations

import sys


def main() -> int:
    """The exit code."""
    try:
        import click  # noqa: F401
    except ImportError:
        print("The command line takes the package click: pip install 'framework[cli]'", file=sys.stderr)
        return 1
    from framework._cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
