"""Which calls may be under way together when one of them may be what ends the process of their actor.

Where calls run at the same time, nobody knows which of them has ended the process: all of them are struck.
A call that was struck `SUSPECT_DEATHS` times is a suspect, and is sent alone. As calls may wait for each
other, it does not stay alone for ever: the next one follows after `SUSPECT_PATIENCE` seconds, then after half
of that, and so on.

Pure: time comes in as an argument.
"""

from __future__ import annotations

from framework._base.limits import SUSPECT_DEATHS, SUSPECT_PATIENCE, SUSPECT_PATIENCE_MIN


class Suspects:
    """What one caller knows about the calls of one actor's present process."""

    __slots__ = ("alone", "patience", "sent_at", "since")

    def __init__(self) -> None:
        self.alone = 0  #: number of the suspect that was sent last, if nothing was sent after it
        self.sent_at = 0.0
        self.since: float | None = None  #: when the next call began to wait for the sake of a suspect
        self.patience = SUSPECT_PATIENCE

    def hold(self, strikes: int, now: float) -> float:
        """Others are under way, and the next call has so many strikes: how long it has still to wait (0: it
        may go)."""
        if not self.alone and strikes < SUSPECT_DEATHS:
            return 0.0
        if self.since is None:
            self.since = now
        left = self.since + self.patience - now
        if left > 0:
            return left
        self.patience = max(self.patience / 2, SUSPECT_PATIENCE_MIN)
        return 0.0

    def sent(self, unique: int, strikes: int, now: float) -> None:
        """This call has left."""
        self.alone = unique if strikes >= SUSPECT_DEATHS else 0
        self.sent_at = now
        self.since = None

    def ended(self, unique: int) -> None:
        """This call is over."""
        if unique == self.alone:
            self.alone = 0

    def spares(self, unique: int, now: float) -> bool:
        """The process has died, and a suspect had only just been sent: whether this other call, which was
        under way before, is not struck for it."""
        return self.alone not in (0, unique) and now - self.sent_at < SUSPECT_PATIENCE

    def restarted(self) -> None:
        """There is a new process, and nothing under way."""
        self.alone = 0
        self.since = None
        self.patience = SUSPECT_PATIENCE
