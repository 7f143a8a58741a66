"""The names of the methods by which an actor class takes part in its own life."""

from __future__ import annotations

from typing import Final

SHUTDOWN_HOOKS: Final = ("__framework_shutdown__", "__ray_shutdown__")
SAVE_HOOK: Final = "__framework_save__"
RESTORE_HOOK: Final = "__framework_restore__"


def save_every_of(cls: type, every: int | None) -> int:
    """The option `save_every` of an actor class (0: not given). Raises `TypeError` when the class has not
    what it takes."""
    for hook in (SAVE_HOOK, RESTORE_HOOK) if every else ():
        if not hasattr(cls, hook):
            raise TypeError(
                f"the option save_every={every} needs the methods {SAVE_HOOK}(self) and {RESTORE_HOOK}(self, "
                f"state): the actor class {cls.__name__} has no {hook}"
            )
    return every or 0


def has_shutdown_hook(cls: type) -> bool:
    """Whether its actors want to be asked before they end."""
    return any(hasattr(cls, name) for name in SHUTDOWN_HOOKS)
