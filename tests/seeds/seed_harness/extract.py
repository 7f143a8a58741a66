"""Text in, code cells out. Knows four shapes of text and nothing of any particular document.

Notebook dumps carry no mark where code ends and output or prose begins, so the rule is: a cell is the longest
run of paragraphs that parses as Python, up to a heading or to what looks like output of the code before it.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_MARKER = re.compile(r"^In \[(?:\d+|None| )\]:\s*$")
_FENCE_OPEN = re.compile(r"^```python\s*$")
_FENCE_CLOSE = re.compile(r"^```\s*$")
_HEADING = re.compile(r"^#{2,6} ")
_MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)
_SHOWN_ID = re.compile(r"[A-Z]\w*ID\([0-9a-f]{8,}\)|ObjectRef\([0-9a-f]{8,}\)")
_BLOCK = re.compile(
    r"^(\s*)(?:async |def|class|for|while|if|elif|else|try|except|finally|with)\b.*:\s*(?:#.*)?$"
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One code cell: its text as the document has it, and what the document shows after it."""

    source: str
    tail: str = ""
    """What follows up to the next cell: output, then prose."""

    @property
    def digest(self) -> str:
        """Eight hex digits over the code without its white space (lost indentation does not matter)."""
        return hashlib.sha256("".join(self.source.split()).encode()).hexdigest()[:8]


def parses(source: str) -> bool:
    """Whether this is Python, taking notebook magics for statements."""
    try:
        ast.parse(_MAGIC.sub(r"\1pass", source))
    except (SyntaxError, ValueError):
        return False
    return True


def is_literal(text: str) -> bool:
    """Whether the text is one Python literal, as a notebook shows a value."""
    try:
        ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError):
        return False
    return True


def paragraphs(lines: Sequence[str]) -> list[list[str]]:
    """Runs of lines; each run keeps the blank lines that follow it."""
    found: list[list[str]] = []
    fresh = True
    for line in lines:
        if not line.strip():
            if found:
                found[-1].append(line)
            fresh = True
            continue
        if fresh:
            found.append([])
        found[-1].append(line)
        fresh = False
    return found


def _last_statement(source: str) -> ast.stmt | None:
    body = ast.parse(_MAGIC.sub(r"\1pass", source)).body
    return body[-1] if body else None


def _looks_like_output(code: str, text: str) -> bool:
    """Whether `text`, though it parses, is what `code` printed or evaluated to."""
    last = _last_statement(code) if parses(code) else None
    if not isinstance(last, ast.Expr):
        return False
    if is_literal(text) or _SHOWN_ID.fullmatch(text.strip()):
        return True
    strings = (node.value for node in ast.walk(last) if isinstance(node, ast.Constant))
    first_word = text.split()[0]
    return any(isinstance(value, str) and value.split()[:1] == [first_word] for value in strings)


def split_code(lines: Sequence[str]) -> tuple[str, str]:
    """`(code, rest)` of the text below a cell's marker."""
    groups = paragraphs(lines)
    taken = 1
    for count in range(2, len(groups) + 1):
        text = "\n".join(groups[count - 1])
        code = "\n".join(line for group in groups[: count - 1] for line in group)
        if _HEADING.match(text) or _FENCE_OPEN.match(text) or _looks_like_output(code, text):
            break
        if parses(code + "\n" + text):
            taken = count
    code = "\n".join(line for group in groups[:taken] for line in group).rstrip()
    return code, "\n".join(line for group in groups[taken:] for line in group)


def fenced(lines: Iterable[str]) -> list[Cell]:
    """Blocks between an opening fence with a language and a bare closing one."""
    cells: list[Cell] = []
    block: list[str] | None = None
    for line in lines:
        if block is None:
            block = [] if _FENCE_OPEN.match(line) else None
        elif _FENCE_CLOSE.match(line):
            cells.append(Cell("\n".join(block).strip("\n")))
            block = None
        else:
            block.append(line)
    return cells


def notebook(text: str) -> list[Cell]:
    """Cells of a notebook dump ("In [n]:" lines) and the fenced blocks of its prose, in order."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if _MARKER.match(line)]
    cells = fenced(lines[: starts[0]] if starts else lines)
    for start, end in itertools.pairwise([*starts, len(lines)]):
        if not any(line.strip() for line in lines[start + 1 : end]):
            continue
        code, tail = split_code(lines[start + 1 : end])
        cells.append(Cell(code, tail))
        cells.extend(fenced(tail.splitlines()))
    return cells


def toggled(text: str) -> list[Cell]:
    """Blocks of a text in which the opening fence also closes: every fence line changes sides."""
    cells: list[Cell] = []
    block: list[str] | None = None
    for line in [*text.splitlines(), "```"]:
        if not line.startswith("```"):
            if block is not None:
                block.append(line)
        elif block is None:
            block = []
        else:
            cells.append(Cell("\n".join(block).strip("\n")))
            block = None
    return cells


def article(text: str) -> list[Cell]:
    """Bare blocks of a web page: from a paragraph that begins with an import as far as it stays Python."""
    cells: list[Cell] = []
    groups = ["\n".join(group) for group in paragraphs(text.splitlines())]
    position = 0
    while position < len(groups):
        code = groups[position]
        position += 1
        if not (re.match(r"(import|from) \w", code) and parses(code)):
            continue
        while position < len(groups) and not re.fullmatch(r"[\w ]+\s*", groups[position]):
            if not parses(code + "\n" + groups[position]):
                break
            code += "\n" + groups[position]
            position += 1
        cells.append(Cell(code.rstrip()))
    return cells


def by_twin(text: str, twins: Sequence[Cell]) -> list[Cell]:
    """Cells of a text that has lost its indentation, found line by line as the cells of its intact twin.

    Raises LookupError when one of the twin's cells is not in the text, in order.
    """
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    cells: list[Cell] = []
    position = 0
    for ordinal, twin in enumerate(twins, 1):
        wanted = [" ".join(line.split()) for line in twin.source.splitlines() if line.strip()]
        while lines[position : position + len(wanted)] != wanted:
            position += 1
            if position >= len(lines):
                raise LookupError(f"cell {ordinal} of the intact twin is not in the text")
        position += len(wanted)
        cells.append(Cell(twin.source))
    return cells


def fill_empty_blocks(source: str) -> str:
    """Gives a `pass` to every block that has nothing but comments; other text is returned as it is."""
    if parses(source):
        return source
    lines = source.splitlines()
    filled: list[str] = []
    for number, line in enumerate(lines):
        filled.append(line)
        header = _BLOCK.match(line)
        if header is None:
            continue
        body = next((x for x in lines[number + 1 :] if x.strip() and not x.lstrip().startswith("#")), "")
        if len(body) - len(body.lstrip()) <= len(header[1]):
            filled.append(header[1] + "    pass")
    return "\n".join(filled)


def shown_value(cell: Cell) -> str | None:
    """The value that the document shows for the cell's last expression, as text; None where it shows none."""
    if not isinstance(_last_statement(cell.source) if parses(cell.source) else None, ast.Expr):
        return None
    for group in paragraphs(cell.tail.splitlines()):
        text = "\n".join(group).strip()
        if text.startswith(("```", "<div", "##")):
            return None
        if is_literal(text) or _SHOWN_ID.fullmatch(text):
            return text
    return None
