"""Cells and rules put together: the parts that run, in order."""

from __future__ import annotations

import re
from dataclasses import dataclass

from seed_harness import catalogue, documents
from seed_harness.catalogue import Rule
from seed_harness.digests import DIGESTS
from seed_harness.extract import Cell, fill_empty_blocks, shown_value
from seed_harness.rewrite import rewrite


@dataclass(frozen=True, slots=True)
class Part:
    """One test: a cell, or the lines detached from one."""

    name: str
    code: str
    rule: Rule
    shown: str | None = None
    tail: str = ""

    @property
    def document(self) -> str:
        """The three digits of its document."""
        return self.name[:3]


def split(name: str, cell: Cell) -> list[Part]:
    """The parts of one cell: itself, and what its rule detaches (named with a "b")."""
    rule = catalogue.rule(name)
    source = fill_empty_blocks(cell.source)
    lines = source.splitlines()
    apart = [line for line in lines if rule.detach and re.search(rule.detach, line)]
    if apart:
        source = "\n".join(line for line in lines if line not in apart)
    parts = [Part(name, rewrite(source, rule.swap), rule, shown_value(cell), cell.tail)]
    if apart:
        second = catalogue.rule(name + "b")
        parts.append(Part(name + "b", rewrite("\n".join(apart), second.swap), second))
    return parts


def parts(document: str) -> list[Part]:
    """All parts of a document, in order."""
    cells = documents.cells(document)
    return [part for number, cell in enumerate(cells, 1) for part in split(f"{document}-{number:02d}", cell)]


def changed(document: str) -> list[str]:
    """Names of the cells that are not those that the catalogue was written for."""
    now = [cell.digest for cell in documents.cells(document)]
    then = DIGESTS[document].split()
    count = max(len(now), len(then))
    return [f"{document}-{i + 1:02d}" for i in range(count) if now[i : i + 1] != then[i : i + 1]]
