"""From any thread to a loop: append to a deque, wake the loop once per batch.

The flag is cleared *before* the deque is emptied. A thread appends first and looks at the flag second: if it
sees the flag still set, the emptying that follows finds its item. So no wake-up is lost, and a burst costs
one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Mailbox:
    """Functions to be called on `loop`, posted from any thread."""

    __slots__ = ("_items", "_loop", "awake")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self.awake = False  #: the loop has been woken, and has not called what was posted yet

    def post(self, function: Callable[..., object], *args: object) -> None:
        """Have `function(*args)` called on the loop. Never blocks; silently dropped when the loop is
        closed."""
        self._items.append((function, args))
        if not self.awake:
            try:
                self.awake = True
                self._loop.call_soon_threadsafe(self.drain)
            except RuntimeError:
                pass  # the loop is closed
            except BaseException:  # Ctrl-C: nobody knows whether it came before or after
                self.awake = False
                raise

    @property
    def empty(self) -> bool:
        """Any thread: whether all that was posted has been called, or is about to be."""
        return not self._items

    def look_after(self) -> None:
        """On the loop: if what was posted waits to be called, see to it that it will be. (Ctrl-C may have
        struck in the loop itself, when it had taken `drain` out of its queue and not called it yet.)"""
        if self.awake:
            self._loop.call_soon(self.drain)

    def drain(self) -> None:
        """On the loop: call now what has been posted."""
        self.awake = False
        items = self._items
        try:
            while items:
                function, args = items.popleft()
                try:
                    function(*args)
                except Exception as error:
                    self._loop.call_exception_handler(
                        {"message": f"posted call of {function!r} failed", "exception": error}
                    )
        finally:
            # KeyboardInterrupt or SystemExit ends this run of the loop: the rest is for its next one.
            if items and not self.awake:
                self.awake = True
                self._loop.call_soon_threadsafe(self.drain)
