"""Makes the harness importable for the tests of this folder, and ends the last document's session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

if TYPE_CHECKING:
    from seed_harness.session import Sessions


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    """One open session at a time, ended after the last cell: other tests find none."""
    from seed_harness.session import Sessions

    opened = Sessions()
    yield opened
    opened.close()
