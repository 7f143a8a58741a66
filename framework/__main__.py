"""The command line: ``python -m framework``."""

from __future__ import annotations

import sys

from framework._cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
