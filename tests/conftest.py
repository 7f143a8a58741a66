"""What all tests need of the process that they run in."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

#: Property tests try the same inputs each time, so that a failure belongs to the change it is seen with. A
#: search for new ones: `FRAMEWORK_TEST_SEARCH=1 make test`.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile("search" if os.environ.get("FRAMEWORK_TEST_SEARCH") else "repeatable")


def pytest_configure() -> None:
    """A shell has its background jobs ignore SIGINT, and so would all processes that tests start: they could
    not be interrupted."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
