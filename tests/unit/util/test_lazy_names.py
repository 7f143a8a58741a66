"""framework.util loads its modules when their names are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import framework as fw
from framework import util


def test_all_names_are_there() -> None:
    for name in (*util.__all__, *util._MODULES):
        assert getattr(util, name) is not None
        assert name in dir(util)
    assert fw.util.ActorPool is util.actor_pool.ActorPool


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'framework.util' has no attribute 'ActorPol'"):
        util.ActorPol  # type: ignore[attr-defined]


@pytest.mark.slow
def test_import_loads_no_heavy_modules() -> None:
    code = (
        "import framework.util, sys; print(sorted({'asyncio', 'msgpack', 'numpy', 'queue'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"
