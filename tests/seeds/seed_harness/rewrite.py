"""Adapts a cell's code: the import, sleeps, and what only a notebook understands."""

from __future__ import annotations

import re
from collections.abc import Sequence

SHELL = "__seed_shell__"
"""Name under which a session offers its stand-in for a notebook's `!` lines."""

_SHORTER = 20
_LONGEST = 0.5
_IMPORTS = (
    (re.compile(r"^(\s*)import ray[ \t]*$", re.MULTILINE), r"\1import framework as ray"),
    (re.compile(r"^(\s*)import ray\.", re.MULTILINE), r"\1import framework."),
    (re.compile(r"^(\s*)from ray(?=[. ])", re.MULTILINE), r"\1from framework"),
)
_SLEEP = re.compile(r"(\btime\.sleep\()(\d+)(?=\))")
_TIMEOUT = re.compile(r"(\btimeout=)(\d+)\b")
_INIT = (re.compile(r"\bray\.init\(\)"), "ray.init(ignore_reinit_error=True)")
_DELETE = re.compile(r"^(\s*)%xdel (\w+)[ \t]*$", re.MULTILINE)
_SHELL_LINE = re.compile(r"^(\s*)!(.*)$", re.MULTILINE)


def _shorten(match: re.Match[str]) -> str:
    """Every duration by the same factor, so that a timeout stays shorter than the sleep it interrupts."""
    return f"{match[1]}{min(int(match[2]) / _SHORTER, _LONGEST)}"


def rewrite(source: str, substitutions: Sequence[tuple[str, str]] = ()) -> str:
    """The code to run for `source`: first the cell's own substitutions, then the rules for all cells.

    Raises LookupError for a substitution that finds nothing: the document has changed under it.
    """
    for pattern, replacement in substitutions:
        source, count = re.subn(pattern, replacement, source, flags=re.MULTILINE)
        if not count:
            raise LookupError(f"nothing to substitute for {pattern!r}")
    for regex, replacement in (*_IMPORTS, _INIT):
        source = regex.sub(replacement, source)
    source = _TIMEOUT.sub(_shorten, _SLEEP.sub(_shorten, source))
    source = _DELETE.sub(r"\1del \2", source)
    return _SHELL_LINE.sub(lambda match: f"{match[1]}{SHELL}({match[2].strip()!r})", source)
