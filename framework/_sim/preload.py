"""All modules that a run may need, before it begins: what is imported inside of a simulation would keep the
simulated locks and sockets that it makes then. (And each forked child would import them again.)"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Final

_PACKAGES: Final = (
    *("_base", "_wire", "_serial", "_state", "_net", "_service", "_store", "_runtime"),
    *("_head", "_node", "_worker", "_sim", "util"),
)
_OTHERS: Final = (
    *("asyncio", "concurrent.futures.thread", "difflib", "hmac", "logging.handlers", "numpy.random"),
    *("resource", "secrets", "sqlite3", "ssl", "traceback", "framework._boot", "framework._session"),
    "framework._api",
)


@functools.cache
def preload() -> None:
    """Import them, where they and what they need exist."""
    names = list(_OTHERS)
    for name in _PACKAGES:
        package = importlib.import_module(f"framework.{name}")
        names += [
            f"{package.__name__}.{module.name}"
            for module in pkgutil.iter_modules(package.__path__)
            if module.name not in ("__main__", "joblib")  # (joblib itself takes a second)
        ]
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:  # it belongs to an extra that is not installed
            continue
