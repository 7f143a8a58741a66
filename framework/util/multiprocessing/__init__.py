"""`Pool` with the interface of ``multiprocessing.Pool``, over the cluster."""

from __future__ import annotations

from multiprocessing import TimeoutError

from framework.util.multiprocessing.pool import Pool
from framework.util.multiprocessing.results import AsyncResult, IMapIterator

__all__ = ["AsyncResult", "IMapIterator", "Pool", "TimeoutError"]
