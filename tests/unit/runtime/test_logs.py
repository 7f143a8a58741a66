"""The logger ``framework``: its level and format, and no line twice."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator

import pytest

from framework._runtime import logs

log = logging.getLogger("framework.somewhere")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[io.StringIO]:
    """Afterwards no handler of ours is left; what goes to `sys.stderr` after `bare`."""
    logger = logging.getLogger("framework")
    level, handlers = logger.level, list(logger.handlers)
    yield io.StringIO()
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.fixture
def bare(as_before: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """To be called in the test, because pytest puts its own things there just before."""

    def clear() -> None:
        monkeypatch.setattr(logging.root, "handlers", [])
        monkeypatch.setattr(sys, "stderr", as_before)

    yield clear


def test_level_and_format(as_before: io.StringIO, bare: Callable[[], None]) -> None:
    bare()
    logs.configure(logging.INFO, "%(levelname)s|%(message)s")
    log.debug("too quiet")
    log.info("heard")
    logs.configure(logging.DEBUG, "%(message)s!")
    log.debug("heard too")
    assert as_before.getvalue() == "INFO|heard\nheard too!\n"


def test_a_program_with_handlers_of_its_own_gets_each_line_once(
    as_before: io.StringIO, bare: Callable[[], None]
) -> None:
    bare()
    logs.configure(logging.INFO, "%(message)s")
    mine = io.StringIO()
    logging.root.addHandler(logging.StreamHandler(mine))
    log.info("to the root's handler")
    assert (mine.getvalue(), as_before.getvalue()) == ("to the root's handler\n", "")


def test_the_stream_is_that_of_the_moment(
    as_before: io.StringIO, bare: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare()
    logs.configure(logging.INFO, "%(message)s")
    later = io.StringIO()
    monkeypatch.setattr(sys, "stderr", later)
    log.info("later")
    monkeypatch.setattr(sys, "stderr", None)
    log.info("nowhere")
    assert (as_before.getvalue(), later.getvalue()) == ("", "later\n")


def test_other_loggers_are_left_alone(as_before: io.StringIO, bare: Callable[[], None]) -> None:
    bare()
    logs.configure(logging.DEBUG, "%(message)s")
    logging.getLogger("another").info("not ours")
    assert logging.getLogger("another").getEffectiveLevel() == logging.WARNING
    assert as_before.getvalue() == ""
