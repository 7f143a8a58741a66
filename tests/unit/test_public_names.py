"""The names at the top level, which are loaded when they are first used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import framework as fw

LAZY_MODULES = {"actor", "cloudpickle", "exceptions", "runtime_context", "util"}


def test_all_lists_what_can_be_loaded() -> None:
    assert len(set(fw.__all__)) == len(fw.__all__)
    assert set(fw.__all__) == {*fw._NAMES, *LAZY_MODULES}
    for name in fw.__all__:
        assert getattr(fw, name) is not None
        assert name in dir(fw)


def test_type_checkers_are_told_the_same_names_from_the_same_modules() -> None:
    assert fw.__file__ is not None
    tree = ast.parse(Path(fw.__file__).read_bytes())
    block = next(
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    told = {}
    for node in block.body:
        assert isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name, "without «as» it is not exported"
            told[alias.name] = node.module if isinstance(node, ast.ImportFrom) else alias.name
    assert {name: module for name, module in told.items() if name not in LAZY_MODULES} == fw._NAMES
    assert set(told) == set(fw.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'framework' has no attribute 'remot'"):
        fw.remot  # type: ignore[attr-defined]


@pytest.mark.slow
def test_import_loads_no_heavy_modules() -> None:
    code = "import framework, sys; print(sorted({'asyncio', 'msgpack', 'numpy', 'uvloop'} & {*sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"
