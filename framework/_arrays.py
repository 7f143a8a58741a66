"""Arrays that are made in the object store: filled in place, put without a copy."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from framework._runtime.current import current

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray


def empty(shape: int | tuple[int, ...], dtype: DTypeLike = float) -> NDArray[Any]:
    """A writable array of uninitialised values that lives in the object store.

    Fill it, then `put` it or return it from a task: it is sealed where it is, whatever its size, without a
    copy. From then on it is read-only, under its old name too. An array that is dropped unsealed is freed;
    one of which other views still exist when it is put is copied, as any array, so that nobody can change
    what was put.

    `shape` and `dtype` as for ``numpy.empty``; object dtypes are refused (`TypeError`). Raises
    `ObjectStoreFullError` when the store has no room. Blocks for a round trip to the node.
    """
    import numpy as np  # not at the top: every process of a session loads this module when it starts

    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"arrays of Python objects cannot live in shared memory: dtype {kind}")
    dimensions = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    if any(not isinstance(n, int | np.integer) or n < 0 for n in dimensions):
        raise ValueError(f"shape is an int or a tuple of ints >= 0, got {shape!r}")
    nbytes = math.prod(int(n) for n in dimensions) * kind.itemsize
    if nbytes > sys.maxsize:
        raise ValueError(f"shape {shape!r} of {kind}: more bytes than can be addressed")
    if nbytes == 0:
        return np.empty(dimensions, kind)
    runtime = current()
    base = runtime.store.reserve(runtime.new_object_id(), nbytes)
    return base.view(kind).reshape(dimensions)


def zeros(shape: int | tuple[int, ...], dtype: DTypeLike = float) -> NDArray[Any]:
    """As `empty`, filled with zeros."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


def empty_like(prototype: ArrayLike, dtype: DTypeLike | None = None) -> NDArray[Any]:
    """As `empty`, with the shape and dtype of another array."""
    import numpy as np

    other = np.asanyarray(prototype)
    return empty(other.shape, dtype if dtype is not None else other.dtype)
