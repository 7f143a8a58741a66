"""Cells are found in tiny made-up documents of each shape."""

from __future__ import annotations

import ast
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seed_harness import extract
from seed_harness.extract import Cell

NOTEBOOK = """\
# A title

Some words.

In [1]:
apples = 3

pears = 4
apples + pears

7

More words about pears.

```python
plums = 5
```

In [None]:
def eat(fruit):
    ate = fruit

    return ate

## A heading that would parse as a comment

In [ ]:
%xdel apples

In [4]:
print("sum =", 1)

sum = 1

In [5]:
eat

ObjectRef(00ffffffffffffffffffff01000000)
"""

TOGGLED = """\
Words.

```python
x = 1

def f():
    return x  # a remark
```python

More.

```python
y = 2
```python
"""

ARTICLE = """\
Reading time 3 min

import os

# A remark
x = 1

Actors

import sys

def f():
    return 1

The end of it.
"""


def sources(cells: list[Cell]) -> list[str]:
    return [cell.source for cell in cells]


def test_notebook_cells_end_before_output_prose_and_headings() -> None:
    assert sources(extract.notebook(NOTEBOOK)) == [
        "apples = 3\n\npears = 4\napples + pears",
        "plums = 5",
        "def eat(fruit):\n    ate = fruit\n\n    return ate",
        "%xdel apples",
        'print("sum =", 1)',
        "eat",
    ]


def test_shown_values_are_those_after_an_expression() -> None:
    shown = [extract.shown_value(cell) for cell in extract.notebook(NOTEBOOK)]
    assert shown == ["7", None, None, None, None, "ObjectRef(00ffffffffffffffffffff01000000)"]


def test_toggled_fences() -> None:
    assert sources(extract.toggled(TOGGLED)) == ["x = 1\n\ndef f():\n    return x  # a remark", "y = 2"]


def test_toggled_last_fence_may_be_missing() -> None:
    assert sources(extract.toggled("```python\nx = 1\n")) == ["x = 1"]


def test_article_blocks_begin_with_an_import_and_end_at_prose() -> None:
    assert sources(extract.article(ARTICLE)) == [
        "import os\n\n# A remark\nx = 1",
        "import sys\n\ndef f():\n    return 1",
    ]


def test_lost_indentation_comes_from_the_twin() -> None:
    twins = extract.toggled(TOGGLED)
    flat = "\n".join(" ".join(line.split()) for line in TOGGLED.splitlines() if line.strip())
    assert sources(extract.by_twin(flat, twins)) == sources(twins)


def test_a_twin_that_differs_is_an_error() -> None:
    with pytest.raises(LookupError, match="cell 2"):
        extract.by_twin(TOGGLED, [Cell("x = 1"), Cell("y = 3")])


def test_empty_blocks_are_filled() -> None:
    source = textwrap.dedent(
        """\
        class A:
            def f(self):
                # nothing yet

            def g(self):
                return 1

        def h():
            # nothing"""
    )
    filled = extract.fill_empty_blocks(source)
    ast.parse(filled)
    assert filled.count("pass") == 2


def test_what_parses_is_left_alone() -> None:
    assert extract.fill_empty_blocks("if x:\n    # why\n    y = 1") == "if x:\n    # why\n    y = 1"


def test_digest_ignores_white_space_only() -> None:
    assert Cell("if x:\n    y()").digest == Cell("if x:\ny()").digest != Cell("if x:\n    z()").digest


def test_marker_without_a_cell_is_no_cell() -> None:
    assert extract.notebook("In [1]:\n\n\nIn [2]:\nx = 1\n")[0].source == "x = 1"


_STATEMENTS = st.sampled_from(
    ["a = 1", "# remark", "def f():\n    x = 1\n\n    return x", "for i in b:\n    c(i)"]
)


@settings(max_examples=50)
@given(st.lists(st.lists(_STATEMENTS, min_size=1, max_size=4), max_size=5))
def test_what_is_written_as_cells_is_read_as_cells(cells: list[list[str]]) -> None:
    codes = ["\n\n".join(cell) for cell in cells]
    text = "Words come first.\n\n" + "".join(
        f"In [{n}]:\n{code}\n\nWords follow it.\n\n" for n, code in enumerate(codes)
    )
    assert sources(extract.notebook(text)) == codes
