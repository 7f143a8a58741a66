"""Index every definition in the Python standard library, in parallel, and compare with one process.

Generator tasks parse the files with `ast` and yield one small index per file. The driver never fetches
those: it hands their references on, a few at a time, to tasks that merge them, until one index is left.
The same work is then done in this process alone; the two results must be equal.

    python examples/index_source_tree.py
    python examples/index_source_tree.py --limit 200 --find iterdir
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import os
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import framework as fw

FAN_IN = 32  # indexes merged by one task: enough that the work outweighs the call
TASKS_PER_CPU = 4  # so that an unlucky share of long files does not leave the other processors idle


# (file, line, kind). A file is a place too: of kind "file", with the number of its lines.
Place = tuple[str, int, str]
# Everything called by a name. Built-in types only: a class of this script would travel with every result.
Index = dict[str, list[Place]]
INVALID = "not valid Python"


def definitions(node: ast.AST, inside_class: bool = False) -> Iterator[Place]:
    """Name, line and kind of every class, function and method below a node, nested ones too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield child.name, child.lineno, "class"
            yield from definitions(child, inside_class=True)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child.name, child.lineno, "method" if inside_class else "function"
            yield from definitions(child)
        else:
            yield from definitions(child, inside_class)


def index_file(root: str, name: str) -> Index:
    """The index of one file. A file that is no valid Python is recorded as such."""
    data = Path(root, name).read_bytes()
    index: Index = {name: [(name, data.count(b"\n"), "file")]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own tests hold odd string escapes
            tree = ast.parse(data, filename=name)
    except (SyntaxError, ValueError):
        index[name].append((name, 0, INVALID))
        return index
    for symbol, line, kind in definitions(tree):
        index.setdefault(symbol, []).append((name, line, kind))
    return index


def merge(indexes: Iterable[Index]) -> Index:
    """One index out of several."""
    total: Index = {}
    for index in indexes:
        for name, places in index.items():
            total.setdefault(name, []).extend(places)
    return total


def in_order(index: Index) -> Index:
    """The same index with its places sorted, so that two of the same files are equal."""
    return {name: sorted(index[name]) for name in sorted(index)}


@fw.remote
def index_files(root: str, names: list[str]) -> Iterator[Index]:
    """A generator task: each file's index leaves as soon as it is made."""
    for name in names:
        yield index_file(root, name)


@fw.remote
def merge_indexes(*indexes: Index) -> Index:
    """References passed as arguments arrive here as the values themselves."""
    return merge(indexes)


class Reduction:
    """A tree of merge tasks that grows while the leaves are still arriving."""

    def __init__(self) -> None:
        self.levels: list[list[fw.ObjectRef[Index]]] = [[]]

    def add(self, ref: fw.ObjectRef[Index], level: int = 0) -> None:
        """Take one reference; every FAN_IN of a level become one of the next."""
        if level == len(self.levels):
            self.levels.append([])
        self.levels[level].append(ref)
        if len(self.levels[level]) == FAN_IN:
            group, self.levels[level] = self.levels[level], []
            self.add(merge_indexes.remote(*group), level + 1)

    async def result(self) -> Index:
        """The index of everything that was added."""
        rest = [ref for level in self.levels for ref in level]
        return in_order(await merge_indexes.remote(*rest))


def shares(root: str, names: list[str], count: int) -> list[list[str]]:
    """The files dealt out, longest first, so that the shares are about equally long."""
    by_size = sorted(names, key=lambda name: os.path.getsize(os.path.join(root, name)), reverse=True)
    return [share for share in (by_size[start::count] for start in range(count)) if share]


async def index_in_parallel(root: str, names: list[str], cpus: int) -> Index:
    """The index of all files, made by tasks."""
    reduction = Reduction()
    seen = 0

    async def follow(share: list[str]) -> None:
        nonlocal seen
        async for ref in index_files.remote(root, share):
            reduction.add(ref)
            seen += 1
            if seen % 500 == 0:
                print(f"  {seen:,} of {len(names):,} files", flush=True)

    async with asyncio.TaskGroup() as group:
        for share in shares(root, names, cpus * TASKS_PER_CPU):
            group.create_task(follow(share))
    return await reduction.result()


def source_files(root: str, limit: int | None) -> list[str]:
    """Every Python file of the library, without what was installed into it."""
    found = (path.relative_to(root) for path in Path(root).rglob("*.py"))
    names = sorted(path.as_posix() for path in found if "site-packages" not in path.parts)
    return names[:limit]


def report(index: Index, find: str) -> None:
    """Print the totals, the names defined most often, and where one name is defined."""
    kinds = Counter(kind for places in index.values() for _, _, kind in places)
    lines = sum(line for places in index.values() for _, line, kind in places if kind == "file")
    print(f"{kinds['file']:,} files, {lines:,} lines; {kinds[INVALID]} of the files are {INVALID}")
    print(f"{kinds['class']:,} classes, {kinds['function']:,} functions, {kinds['method']:,} methods")
    often = sorted(index, key=lambda name: (-len(index[name]), name))[:5]
    print("defined most often: " + ", ".join(f"{name} ({len(index[name]):,})" for name in often))
    places = index.get(find, [])
    print(f"{find} is defined in {len(places):,} places" + (", the first of them:" if places else ""))
    for name, line, kind in places[:5]:
        print(f"  {name}:{line} ({kind})")


def main() -> int:
    parser = argparse.ArgumentParser(description="Index the standard library's definitions in parallel.")
    parser.add_argument("--root", default=sysconfig.get_paths()["stdlib"], help="directory to index")
    parser.add_argument("--limit", type=int, help="index only this many files")
    parser.add_argument("--cpus", type=int, default=None, help="processors to use (default: all)")
    parser.add_argument("--find", default="main", help="name to look up at the end (default: %(default)s)")
    options = parser.parse_args()
    names = source_files(options.root, options.limit)
    if not names:
        parser.error(f"no Python files in {options.root}")
    for name in names:  # so that both sides find the files in the page cache
        Path(options.root, name).read_bytes()

    async def parallel() -> tuple[Index, float, int]:
        async with fw.init(num_cpus=options.cpus):
            cpus = int(fw.cluster_resources()["CPU"])
            print(f"indexing {len(names):,} files of {options.root} on {cpus} processors", flush=True)
            await merge_indexes.remote()  # a first worker is there before the clock starts
            started = time.perf_counter()
            index = await index_in_parallel(options.root, names, cpus)
            return index, time.perf_counter() - started, cpus

    index, seconds, cpus = asyncio.run(parallel())

    started = time.perf_counter()
    alone = in_order(merge(index_file(options.root, name) for name in names))
    seconds_alone = time.perf_counter() - started

    report(index, options.find)
    if index != alone:
        print("the parallel index differs from the one made by one process", file=sys.stderr)
        return 1
    print("the same index as one process makes")
    print(
        f"{seconds:.2f} s on {cpus} processors, {seconds_alone:.2f} s in one process: "
        f"{seconds_alone / seconds:.2f} times as fast"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
