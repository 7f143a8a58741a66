"""Runs the parts of one document, in order, in one namespace and under one `framework.init`."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import linecache
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, TextIO

from seed_harness import catalogue
from seed_harness.documents import REPOSITORY
from seed_harness.plan import Part
from seed_harness.rewrite import SHELL

CELL_SECONDS = 20.0
"""A cell and its checks may take this long."""

_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
_SUPPLIED = _PACKAGE_FOLDER / "supplied"
_HEX = re.compile(r"\b[0-9a-f]{8,}\b")


class CellTimeout(BaseException):
    """The cell's time is up. No `Exception`, so that a cell's own `except` does not swallow it."""


class CommandFailed(Exception):
    """A `!` line ended with a code other than 0."""


class IsolatedFailed(Exception):
    """A cell that runs in a process of its own failed there."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises CellTimeout in the main thread after `seconds`, and again every second after that.

    There is no limit where there is no SIGALRM.
    """
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def expire(signum: int, frame: types.FrameType | None) -> None:
        raise CellTimeout(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


class _Tee(io.StringIO):
    """Keeps what is printed and passes it on."""

    def __init__(self, onward: TextIO) -> None:
        super().__init__()
        self._onward = onward

    def write(self, text: str) -> int:
        self._onward.write(text)
        return super().write(text)


def child_environment() -> dict[str, str]:
    """Environment for processes that need this checkout and the harness."""
    paths = [str(REPOSITORY), str(_PACKAGE_FOLDER), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def run_child(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a Python of its own over `arguments`; raises subprocess.TimeoutExpired after `CELL_SECONDS`."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=CELL_SECONDS,
        check=False,
    )


def execute(code: str, filename: str, namespace: dict[str, Any]) -> Any:
    """Runs the code; the value of its last statement if that is an expression, as in a notebook."""
    lines = code.splitlines(keepends=True)
    linecache.cache[filename] = (len(code), None, lines, filename)
    tree = ast.parse(code, filename)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, filename, "exec"), namespace)
        return None
    tree.body.pop()
    exec(compile(tree, filename, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), filename, "eval"), namespace)


def shape(text: str) -> str:
    """The text with every long hex number replaced by its length."""
    return _HEX.sub(lambda match: f"<{len(match[0])}>", text)


def differs(value: object, shown: str) -> bool:
    """Whether `value` is not what the document shows: by value for literals, by shape for ids."""
    try:
        return bool(value != ast.literal_eval(shown))
    except (SyntaxError, ValueError):
        return shape(repr(value)) != shape(shown)


class Session:
    """One document: its namespace lives in a module that stands in as `__main__`, as in a notebook."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = list(parts)
        self._done = 0
        self._machine = catalogue.MACHINES.get(parts[0].document, catalogue.Machine())
        self._module = types.ModuleType("__main__")
        self._files = tempfile.TemporaryDirectory(prefix="seeds-")
        self._stubs = [name for name in catalogue.STUBS if importlib.util.find_spec(name) is None]
        self._module.__dict__.update({SHELL: self._shell, "directory": self._files.name})

    @property
    def namespace(self) -> dict[str, Any]:
        """The names that the cells see."""
        return self._module.__dict__

    def open(self) -> None:
        """Starts the framework as the document's machine asks."""
        import framework

        with time_limit(CELL_SECONDS):
            framework.init(
                num_cpus=self._machine.num_cpus,
                num_gpus=self._machine.num_gpus,
                object_store_memory=self._machine.object_store_memory,
            )
        for name in self._stubs:
            sys.modules[name] = importlib.util.module_from_spec(ModuleSpec(name, None))

    def close(self) -> None:
        """Ends the framework and removes what the session brought in."""
        import framework

        try:
            with time_limit(CELL_SECONDS):
                framework.shutdown()
        finally:
            for name in self._stubs:
                sys.modules.pop(name, None)
            self._files.cleanup()

    def run(self, part: Part) -> None:
        """Runs the part, after those before it that have not run yet (their failures are not this part's).

        Raises what the cell raises, CellTimeout, or AssertionError where what must hold afterwards does not.
        """
        position = self._parts.index(part)
        for earlier in self._parts[self._done : position]:
            if earlier.rule.missing is None:
                with contextlib.suppress(Exception, CellTimeout):
                    self._run_one(earlier)
        self._done = max(self._done, position + 1)
        self._run_one(part)

    def _run_one(self, part: Part) -> None:
        before = sys.modules["__main__"]
        sys.modules["__main__"] = self._module
        try:
            with time_limit(CELL_SECONDS):
                if part.rule.isolated:
                    self._run_isolated(part)
                else:
                    self._run_here(part)
        finally:
            sys.modules["__main__"] = before

    def _run_isolated(self, part: Part) -> None:
        done = run_child(["-m", "seed_harness", "isolated", part.name])
        if done.returncode:
            raise IsolatedFailed(done.stderr)

    def _run_here(self, part: Part) -> None:
        execute(part.rule.supply, f"<supplied for {part.name}>", self.namespace)
        printed = _Tee(sys.stdout)
        with contextlib.redirect_stdout(printed):
            value = execute(part.code, f"<cell {part.name}>", self.namespace)
        self._verify(part, value, printed.getvalue())

    def _verify(self, part: Part, value: object, printed: str) -> None:
        rule = part.rule
        if part.shown is not None and not rule.varies and differs(value, part.shown):
            raise AssertionError(f"{part.name}: the document shows {part.shown}, this is {value!r}")
        if rule.prints and not re.search(rule.prints, printed):
            raise AssertionError(f"{part.name}: no {rule.prints!r} in what it printed: {printed!r}")
        if rule.same:
            expected, found = re.findall(rule.same, part.tail), re.findall(rule.same, printed)
            if expected != found or not found:
                raise AssertionError(f"{part.name}: the document shows {expected}, this printed {found}")
        names = self.namespace
        for check in rule.checks:
            names["_"] = value
            if not eval(compile(check, f"<check of {part.name}>", "eval"), names):
                raise AssertionError(f"{part.name}: not true: {check}")
        for expression, classes in rule.refuses:
            self._refused(part, expression, classes.split("|"))

    def _refused(self, part: Part, expression: str, classes: Sequence[str]) -> None:
        try:
            eval(expression, self.namespace)
        except Exception as error:
            if not {cls.__name__ for cls in type(error).__mro__} & set(classes):
                raise
        else:
            raise AssertionError(f"{part.name}: {expression} was accepted")

    def _shell(self, line: str) -> None:
        """What `!line` does in a notebook, for the two programs that the documents call."""
        filled = re.sub(r"\{(\w+)\}", lambda match: str(self.namespace[match[1]]), line)
        program, *arguments = shlex.split(filled)
        if program == "ray":
            done = run_child(["-m", "framework", *arguments])
        elif program == "python":
            done = run_child([str(_SUPPLIED / Path(arguments[0]).name), *arguments[1:]])
        else:
            raise NotImplementedError(f"no stand-in for the program {program!r}")
        print(done.stdout)
        if done.returncode:
            raise CommandFailed(f"{program} ended with {done.returncode}: {done.stderr.strip()}")


class Sessions:
    """At most one session at a time: asking for another document ends the one before."""

    def __init__(self) -> None:
        self._current: tuple[str, Session] | None = None
        self._broken: set[str] = set()

    def enter(self, document: str, parts: Sequence[Part]) -> Session:
        """The open session of `document`. Raises RuntimeError where it did not start before."""
        if self._current is not None and self._current[0] == document:
            return self._current[1]
        if document in self._broken:
            raise RuntimeError(f"the session of document {document} did not start (see its first cell)")
        self.close()
        session = Session(parts)
        try:
            session.open()
        except BaseException:
            self._broken.add(document)
            raise
        self._current = (document, session)
        return session

    def close(self) -> None:
        """Ends the current session, if there is one."""
        current, self._current = self._current, None
        if current is not None:
            current[1].close()
