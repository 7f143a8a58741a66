"""What has become of the calls that were under way when the process of their actor ended.

An actor that runs one call at a time takes the calls of one caller in the order in which they were sent, and
writes down, where the node finds it, which call it begins. So the caller can tell which of its calls had not
begun: they may be sent to the next incarnation without any risk of running twice. And the call in whose
middle the process died is known, so that there can be a limit on how often that may happen.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from framework._base.ids import SEVERAL_TASKS, UNIQUE_MASK


class Fate(Enum):
    """Of one call."""

    UNTOUCHED = auto()  #: it had not begun
    BEGUN = auto()  #: it may have run, even to its end, but the process did not die in it
    STRUCK = auto()  #: the process died in its middle, or may have


def fates(sent: Sequence[int], running: int, first: int, last: int) -> list[Fate]:
    """The fate of each call of one caller.

    `sent`: the numbers of its calls without an answer, in the order in which they were sent; `running`: of
    the call that the process had begun last, whoever's it was (0: none; `SEVERAL_TASKS`: it could run many at
    a time); `first` and `last`: the lowest and highest number that this caller has ever sent to this actor
    (they count up, modulo 2**64).
    """
    if running == SEVERAL_TASKS:
        return [Fate.STRUCK] * len(sent)
    if running == 0:
        return [Fate.UNTOUCHED] * len(sent)
    if running in sent:
        place = list(sent).index(running)
        after = len(sent) - place - 1
        return [Fate.BEGUN] * place + [Fate.STRUCK] + [Fate.UNTOUCHED] * after
    offset = (running - first) & UNIQUE_MASK
    if offset <= (last - first) & UNIQUE_MASK:
        # Ours, and answered or given up: what was sent after it had not begun.
        return [Fate.BEGUN if (unique - first) & UNIQUE_MASK < offset else Fate.UNTOUCHED for unique in sent]
    # Another caller's: how far ours had come, nobody knows.
    return [Fate.BEGUN] * len(sent)
