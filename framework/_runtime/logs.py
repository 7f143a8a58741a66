"""The logger ``framework``, as `init` sets it up in the driver and in the workers of its job."""

from __future__ import annotations

import logging
import sys


class _Fallback(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what `sys.stderr` is at the moment, unless the program has set up logging itself: then its
    handlers of the root logger get the records, and nothing is shown twice."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> object:
        """The stream of the moment: notebooks and test runners replace it."""
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.root.handlers and sys.stderr is not None:
            super().emit(record)


_handler = _Fallback()


def configure(level: int, text: str) -> None:
    """Set the level and the format of the logger ``framework`` in this process. Once more changes both."""
    logger = logging.getLogger("framework")
    logger.setLevel(level)
    _handler.setFormatter(logging.Formatter(text))
    if _handler not in logger.handlers:
        logger.addHandler(_handler)
