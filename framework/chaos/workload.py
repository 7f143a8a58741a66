"""The one shape of all workloads: started once, run in rounds until told to stop, checked in every round and
at the end.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import framework as fw
from framework.chaos.ledger import Hung, Ledger, Rule, Wrong
from framework.chaos.marks import Marks
from framework.exceptions import GetTimeoutError


@dataclass(frozen=True, slots=True)
class Setting:
    """What workloads are given. `directory`: where they may keep files. `patience`: seconds in which a round
    must be done, whatever is struck meanwhile. `lenient`: whether processes that run tasks are struck."""

    seed: int
    directory: str
    patience: float
    lenient: bool = True


class Workload:
    """Base of the workloads. All methods are called by one thread."""

    name: ClassVar[str]
    text: ClassVar[str]

    def __init__(self, setting: Setting) -> None:
        self.ledger = Ledger(setting.lenient)
        self.random = random.Random(f"{setting.seed} {self.name}")
        self.marks = Marks(os.path.join(setting.directory, self.name))
        self._patience = setting.patience
        self._until = 0.0

    # ---- what a workload is -----------------------------------------------------------------------------

    def start(self) -> None:
        """Make what lasts for all rounds."""

    def round(self, number: int) -> None:
        """Ask, wait, compare. Raises `Wrong` (`Hung`), or whatever error was not permitted."""
        raise NotImplementedError

    def finish(self) -> None:
        """After the last round, when nothing is struck any more: check what is to be checked at the end, and
        let go of everything."""

    # ---- what it uses -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """From now on `patience` seconds are left."""
        self._until = time.monotonic() + self._patience

    def left(self) -> float:
        """Seconds that the round still has."""
        return max(0.0, self._until - time.monotonic())

    def get(self, refs: Sequence[Any]) -> list[Any]:
        """All values; `Hung` when they do not come."""
        try:
            return fw.get(list(refs), timeout=self.left())
        except GetTimeoutError as error:
            raise self.hung(refs) from error

    def hung(self, refs: Sequence[Any], what: str = "") -> Hung:
        """The error for what has not come in time."""
        return Hung(f"no answer within {self._patience:g} s{what and f': {what}'}", refs)

    def expect(self, refs: Sequence[Any], wanted: Sequence[Any], what: str) -> None:
        """All have these values: asked and answered."""
        self.ledger.asked += len(refs)
        for index, (found, right) in enumerate(zip(self.get(refs), wanted, strict=True)):
            if found != right:
                raise Wrong(f"{what} {index} of {len(refs)}: {found!r} instead of {right!r}")
            self.ledger.answered += 1

    def expect_or(self, rule: Rule, refs: Sequence[Any], wanted: Sequence[Any], what: str) -> list[bool]:
        """Each has this value, or an error that the rule permits. For each, whether it has the value."""
        self.ledger.asked += len(refs)
        good = []
        for ref, right in zip(refs, wanted, strict=True):
            try:
                found = fw.get(ref, timeout=self.left())
            except GetTimeoutError as error:
                raise self.hung([ref], what) from error
            except Exception as error:
                self.ledger.excuse(rule, error)
                good.append(False)
                continue
            if found != right:
                raise Wrong(f"{what}: {found!r} instead of {right!r}")
            self.ledger.answered += 1
            good.append(True)
        return good

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Poll until it holds, `Hung` when it does not in time."""
        while not condition():
            if not self.left():
                raise self.hung((), what)
            time.sleep(0.02)
