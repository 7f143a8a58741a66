"""The exception that ends a running task, and where it may strike."""

from __future__ import annotations

import contextlib
import os
import threading
import types

from framework._net.takeover import Parking
from framework._service import blocking
from framework._worker import stdio


class Interrupt(KeyboardInterrupt):
    """Raised in user code to end a task. Not an `Exception`, so that `except Exception` does not swallow
    it.
    """


_OWN_CODE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_TRANSPARENT = frozenset({contextlib.__file__, threading.__file__})
_MADE_FOR_IT = frozenset({blocking.__file__, stdio.__file__})


def may_interrupt(frame: types.FrameType | None) -> bool:
    """Whether an exception may be raised here: in user code, in our waiting and in the standard streams
    (which are made for that), but not in the middle of our own bookkeeping, which it would leave half
    done.
    """
    while frame is not None:
        code = frame.f_code
        if code in _OPEN or code.co_filename in _MADE_FOR_IT:
            return True
        if code.co_filename.startswith(_OWN_CODE):
            return False
        if code.co_filename not in _TRANSPARENT:
            return True
        frame = frame.f_back
    return False


#: Our own code in which it may strike: it is made for that.
_OPEN: set[types.CodeType] = {Parking.wait.__code__}


def open_to_interruption(code: types.CodeType) -> None:
    """This function of ours runs user code and is prepared for an `Interrupt` at any line."""
    _OPEN.add(code)
