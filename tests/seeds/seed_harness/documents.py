"""Where the seed documents are, and which reader takes which."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from seed_harness import extract
from seed_harness.extract import Cell

REPOSITORY = Path(__file__).resolve().parents[3]
VARIABLE = "FRAMEWORK_SEEDS"

_READERS: dict[str, Callable[[str], list[Cell]]] = {
    "000": extract.notebook,
    "002": extract.notebook,
    "003": extract.toggled,
    "004": extract.article,
}
_TWINS = {"001": "003"}
"""Documents without indentation, and the document that has the same cells with it."""

NAMES = tuple(sorted([*_READERS, *_TWINS]))


def folder() -> Path:
    """The documents' folder; it need not exist."""
    return Path(os.environ.get(VARIABLE) or REPOSITORY.parent / "shared" / "seeds")


def why_unavailable() -> str | None:
    """Why there is nothing to run, or None if every document is there."""
    if not folder().is_dir():
        return f"seed documents not found: no folder ../shared/seeds beside the checkout (or set {VARIABLE})"
    missing = [name for name in NAMES if not list(folder().glob(f"{name}_*.txt"))]
    return f"seed documents not found: {', '.join(missing)}" if missing else None


def read_text(name: str) -> str:
    """The text of document `name` (three digits)."""
    (path,) = folder().glob(f"{name}_*.txt")
    return path.read_text(encoding="utf-8")


def cells(name: str) -> list[Cell]:
    """All code cells of document `name`, in order."""
    if name in _TWINS:
        return extract.by_twin(read_text(name), cells(_TWINS[name]))
    return _READERS[name](read_text(name))
