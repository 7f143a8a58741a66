"""Where in the user's code something was made."""

from __future__ import annotations

import os
import sys
from types import CodeType, FrameType


def call_site() -> tuple[CodeType, int] | None:
    """(code, instruction) of the innermost frame outside of this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return None if frame is None else (frame.f_code, frame.f_lasti)


_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


def format_site(site: tuple[CodeType, int] | None) -> str:
    """``file:line in function`` of a call site."""
    if site is None:
        return ""
    code, instruction = site
    positions = list(code.co_positions())
    line = positions[instruction // 2][0] if instruction // 2 < len(positions) else None
    return f"{code.co_filename}:{line or code.co_firstlineno} in {code.co_qualname}"
