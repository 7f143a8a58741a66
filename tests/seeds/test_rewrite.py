"""Imports, durations and magics of made-up cells."""

from __future__ import annotations

import pytest
from seed_harness.rewrite import SHELL, rewrite


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import ray", "import framework as ray"),
        ("    import ray  ", "    import framework as ray"),
        ("import ray.thing", "import framework.thing"),
        ("from ray import x", "from framework import x"),
        ("from ray.a.b import x", "from framework.a.b import x"),
        ("import rays\nfrom rays import x", "import rays\nfrom rays import x"),
        ("time.sleep(4)", "time.sleep(0.2)"),
        ("time.sleep(100)", "time.sleep(0.5)"),
        ("time.sleep(10e6)", "time.sleep(10e6)"),
        ("time.sleep(n)", "time.sleep(n)"),
        ("g(timeout=2)", "g(timeout=0.1)"),
        ("g(timeout=None)", "g(timeout=None)"),
        ("ray.init()", "ray.init(ignore_reinit_error=True)"),
        ("  %xdel x", "  del x"),
        ("!ray status", f"{SHELL}('ray status')"),
        ("if a != b:\n    pass", "if a != b:\n    pass"),
    ],
)
def test_rules_for_all_cells(source: str, expected: str) -> None:
    assert rewrite(source) == expected


def test_own_substitutions_come_first() -> None:
    assert rewrite("time.sleep(8)", [(r"\(8\)", "(2)")]) == "time.sleep(0.1)"


def test_a_substitution_that_finds_nothing_is_an_error() -> None:
    with pytest.raises(LookupError, match="nothing to substitute"):
        rewrite("x = 1", [("y", "z")])
