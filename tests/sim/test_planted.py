"""Bugs that are put into the product are found: the cheap ones of the table in docs/simulation.md."""

from __future__ import annotations

import shlex

import pytest

pytest.importorskip("greenlet", reason="the simulation takes the extra sim")

from framework._sim.__main__ import parse
from framework._sim.explore import find
from framework._sim.planted import PLANTED

pytestmark = [pytest.mark.sim, pytest.mark.slow]


@pytest.mark.parametrize("name", ["freed-early", "borrower-unknown", "name-forgotten"])
def test_is_found(name: str) -> None:
    options = parse(["--planted", name, "--seeds", "30", *shlex.split(PLANTED[name].narrow)])
    found = find(options.range, options.plan)
    assert found.outcome is not None, f"not found in {found.seeds} seeds; besides: {found.beside}"
