"""The layering of the package (docs/architecture.md), enforced by a walk over every file's syntax tree.

A module may import only from layers further left:

    _base, exceptions < _wire | _serial < _state < _net < _service < _store < _runtime
        < _head | _node | _worker < public < _sim < testing

Modules in a private package without a layer are reported too, so that a new one has to be placed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "framework"
ROOT = Path(__file__).resolve().parents[2] / PACKAGE

# Left to right. Layers in one row are siblings and do not import each other.
ORDER: tuple[tuple[str, ...], ...] = (
    ("_base",),
    ("exceptions",),
    ("_wire", "_serial"),
    ("_state",),
    ("_net",),
    ("_service",),
    ("_store",),
    ("_runtime",),
    ("_head", "_node", "_worker"),
    ("public",),
    ("_sim",),  # the simulated system: puts itself in the place of everything, and nothing knows of it
    ("testing",),
)
RANK = {layer: rank for rank, row in enumerate(ORDER) for layer in row}

# Layers without I/O, clock or randomness, and what they therefore cannot import. The private spellings are
# there because they are the same modules.
PURE = frozenset({"_base", "_wire", "_state"})
IMPURE_MODULES = frozenset(
    {"asyncio", "socket", "threading", "time", "os", "random"}
    | {"_socket", "_thread", "_random", "posix", "nt", "uvloop", "secrets", "uuid", "selectors"}
)
# Modules (not packages) that stand behind the public ones: their names are private, their place is rightmost.
PUBLIC_MODULES = frozenset(
    {
        "__main__",
        "_actor_types",
        "_api",
        "_arrays",
        "_boot",
        "_cli",
        "_cli_listing",
        "_cli_status",
        "_detach",
        "_handle",
        "_init_checks",
        "_methods",
        "_session",
        "_strategies",
    }
)
# Names under which a grab bag of functions would hide.
FORBIDDEN_FILES = frozenset({"utils.py"})
# Prefixes and suffixes of a constant that bounds something.
BOUND_AFFIXES = ("MAX_", "MIN_"), ("_LIMIT", "_MAX", "_BOUND", "_HIGH_WATER", "_LOW_WATER")


class Import(NamedTuple):
    """One imported module, as a dotted absolute name."""

    line: int
    module: str
    typing_only: bool


def module_name(root: Path, path: Path) -> str:
    """The dotted name of a file under `root` (the directory of the package)."""
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """The layer of a module of the package: its private sub-package, "exceptions", "testing", or "public"."""
    parts = module.split(".")
    if parts[1:2] == ["testing"]:
        return "testing"
    if len(parts) > 1 and parts[1] not in PUBLIC_MODULES and (parts[1][0] == "_" or parts[1] == "exceptions"):
        return parts[1]
    return "public"


def is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def walk_with_typing(node: ast.AST, typing_only: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, with whether only a type checker ever sees it."""
    yield node, typing_only
    if isinstance(node, ast.If) and is_type_checking(node.test):
        for statement in node.body:
            yield from walk_with_typing(statement, True)
        for statement in node.orelse:
            yield from walk_with_typing(statement, typing_only)
        return
    for child in ast.iter_child_nodes(node):
        yield from walk_with_typing(child, typing_only)


def resolve_from(node: ast.ImportFrom, module: str, is_package: bool, root: Path) -> list[str]:
    """The modules that `from x import a, b` reaches: a submodule where there is one, else x itself."""
    base = node.module or ""
    if node.level:
        package = module.split(".")
        if not is_package:
            package = package[:-1]
        package = package[: len(package) - (node.level - 1)]
        base = ".".join([*package, base] if base else package)
    found = []
    for alias in node.names:
        path = root.parent.joinpath(*base.split("."), alias.name)
        is_module = alias.name in RANK or path.with_suffix(".py").exists() or path.is_dir()
        found.append(f"{base}.{alias.name}" if base.split(".")[0] == root.name and is_module else base)
    return found


def dynamic_import(node: ast.Call) -> str | None:
    """The module in `importlib.import_module("…")` or `__import__("…")`, when it is a constant."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
        return str(node.args[0].value)
    return None


def imports_of(root: Path, path: Path, tree: ast.Module) -> Iterator[Import]:
    """Every import in a file, wherever it stands: in functions and under TYPE_CHECKING too."""
    module = module_name(root, path)
    for node, typing_only in walk_with_typing(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = resolve_from(node, module, path.name == "__init__.py", root)
        elif isinstance(node, ast.Call) and (name := dynamic_import(node)) is not None:
            names = [name]
        else:
            continue
        for name in names:
            yield Import(node.lineno, name, typing_only)


def check_import(layer: str, found: Import, package: str) -> str | None:
    """What is wrong with an import made in `layer`; None when it is allowed."""
    top = found.module.split(".")[0]
    if top != package:
        if layer in PURE and top in IMPURE_MODULES:
            return f"{layer} is pure and may not import {found.module}"
        return None
    target = layer_of(found.module)
    if target == layer:
        return None
    if target not in RANK:
        return f"imports {found.module}, which has no layer"
    if RANK[target] < RANK[layer]:
        return None
    if target == "public" and found.typing_only:
        return None  # annotations may name the public types
    if RANK[target] == RANK[layer]:
        return f"{layer} and {target} are siblings: may not import {found.module}"
    return f"{layer} may not import {found.module} ({target} is further right)"


def bound_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Constants at module level that bound something and are numbers written out here."""
    prefixes, suffixes = BOUND_AFFIXES
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        if any(isinstance(part, ast.Name | ast.Attribute | ast.Call) for part in ast.walk(value)):
            continue  # derived from another constant, or no number
        for target in targets:
            if isinstance(target, ast.Name) and target.id.isupper():
                name = target.id.lstrip("_")
                if name.startswith(prefixes) or name.endswith(suffixes):
                    yield node.lineno, name


def source_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.py") if "__pycache__" not in path.parts)


def file_violations(root: Path, path: Path, tree: ast.Module) -> Iterator[str]:
    where = path.relative_to(root.parent).as_posix()
    if path.name in FORBIDDEN_FILES:
        yield f"{where}: no grab bags: name the file after its one concept"
    layer = layer_of(module_name(root, path))
    if layer not in RANK:
        yield f"{where}: {layer} has no layer; give it its place in the order"
        return
    if path.name == "__main__.py":
        return  # a composition root puts the layers together
    for found in imports_of(root, path, tree):
        problem = check_import(layer, found, root.name)
        if problem is not None:
            yield f"{where}:{found.line}: {problem}"


def violations(root: Path) -> list[str]:
    """Everything in the package at `root` that breaks a rule, one line each."""
    problems: list[str] = []
    bounds: dict[str, str] = {}
    for path in source_files(root):
        tree = ast.parse(path.read_bytes(), filename=str(path))
        problems += file_violations(root, path, tree)
        for line, name in bound_names(tree):
            where = f"{path.relative_to(root.parent).as_posix()}:{line}"
            first = bounds.setdefault(name, where)
            if first.split(":")[0] != where.split(":")[0]:
                problems.append(f"{where}: {name} is bound at {first} already; one bound has one place")
    return problems


@pytest.mark.slow
def test_package_keeps_its_layering() -> None:
    assert source_files(ROOT), f"no package at {ROOT}"
    assert not violations(ROOT), "\n".join(violations(ROOT))


def write_package(root: Path, files: Iterable[tuple[str, str]]) -> Path:
    package = root / PACKAGE
    for name, text in files:
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for directory in [path.parent, *path.parent.parents]:
            if directory == root:
                break
            (directory / "__init__.py").touch()
        path.write_text(text)
    return package


ALLOWED = {
    "_base/ids.py": "from typing import Self\nimport hashlib\n",
    "_base/codes.py": "from . import ids\nfrom framework._base.ids import x\n",
    "exceptions.py": "from framework._base import ids\n",
    "_wire/codec.py": "import msgpack\nfrom framework import exceptions\nfrom .._base import ids\n",
    "_state/table.py": "import typing as t\nif t.TYPE_CHECKING:\n    from framework import object_ref\n",
    "_net/peer.py": "import asyncio, os\nMAX_FRAME = 2 * 1024\n",
    "_service/loop.py": "from framework._net.peer import MAX_FRAME as MAX_MESSAGE\nMAX_BATCH = MAX_MESSAGE\n",
    "_node/service.py": "import framework._runtime\n",
    "_node/__main__.py": "import framework._head, framework\n",
    "_runtime/__init__.py": "",
    "_head/__init__.py": "",
    "object_ref.py": "import framework._node.service\nfrom framework import remote\n",
    "_api.py": "import framework._node.service\nfrom framework import object_ref\n",
    "_sim/kernel.py": "import framework._node.service, framework\nfrom framework import object_ref, _api\n",
    "testing/__init__.py": "from framework._sim import kernel\nimport framework\n",
}


def test_allowed_imports_pass(tmp_path: Path) -> None:
    assert violations(write_package(tmp_path, ALLOWED.items())) == []


PLANTED = [
    pytest.param("_base/a.py", "import os.path\n", "may not import os.path", id="stdlib"),
    pytest.param("_wire/a.py", "def f():\n    from time import monotonic\n", "import time", id="in-function"),
    pytest.param("_state/a.py", "import asyncio.events as e\n", "import asyncio.events", id="submodule"),
    pytest.param("_state/a.py", "import t\nif t.TYPE_CHECKING:\n    import socket\n", "socket", id="typing"),
    pytest.param("_base/a.py", "from framework import exceptions\n", "exceptions is further", id="row-0"),
    pytest.param("_wire/a.py", "import framework._serial\n", "siblings", id="siblings"),
    pytest.param("_worker/a.py", "from framework._node import service\n", "siblings", id="processes"),
    pytest.param("_net/a.py", "from .._service.loop import x\n", "_service is further right", id="relative"),
    pytest.param("_net/__init__.py", "from .._node import service\n", "_node is further right", id="package"),
    pytest.param("_runtime/a.py", "import framework\n", "public is further right", id="public"),
    pytest.param("_runtime/a.py", "from framework import object_ref\n", "public is", id="from-public"),
    pytest.param("_node/a.py", "from framework._api import get\n", "public is", id="behind-public"),
    pytest.param(
        "_runtime/a.py",
        "import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    import framework.object_ref\n",
        "public is further right",
        id="typing-else",
    ),
    pytest.param(
        "_net/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from framework._node import service\n",
        "_node is further right",
        id="typing-private",
    ),
    pytest.param(
        "_net/a.py",
        "import importlib\nm = importlib.import_module('framework._head')\n",
        "_head is further right",
        id="dynamic",
    ),
    pytest.param("_node/a.py", "def f():\n    import framework._sim.kernel\n", "_sim is further", id="sim"),
    pytest.param("_api.py", "import framework._sim.kernel\n", "_sim is further right", id="public-sim"),
    pytest.param("_api.py", "from framework import testing\n", "testing is further right", id="testing"),
    pytest.param("_sim/a.py", "import framework.testing\n", "testing is further right", id="sim-testing"),
    pytest.param("_store/utils.py", "", "no grab bags", id="utils"),
    pytest.param("_misc.py", "", "_misc has no layer", id="unknown-layer"),
    pytest.param("object_ref.py", "import framework._misc\n", "which has no layer", id="unknown-target"),
    pytest.param("_store/a.py", "MAX_FRAME: int = 1 << 20\n", "MAX_FRAME is bound at", id="second-bound"),
]


@pytest.mark.parametrize(("name", "text", "expected"), PLANTED)
def test_planted_violation_is_found(tmp_path: Path, name: str, text: str, expected: str) -> None:
    found = violations(write_package(tmp_path, {**ALLOWED, name: text}.items()))
    assert len(found) == 1, found
    assert expected in found[0]
    assert found[0].startswith(f"{PACKAGE}/{name}")
