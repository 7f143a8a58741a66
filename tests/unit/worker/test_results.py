"""What a worker makes of results."""

from __future__ import annotations

import pickle
from typing import Any
from unittest import mock

import pytest

from framework._worker.results import Results


@pytest.mark.parametrize("size", [0, 1, 2, 254, 255, 256, 257, 1024])
def test_short_bytes_travel_as_a_pickle(size: int) -> None:
    value = bytes(number % 256 for number in range(size))
    template: Any = mock.Mock(returns=1)
    reply, refs = Results(mock.Mock()).encode(mock.Mock(), template, 7, 8, value)
    unique, micros, wire = reply
    assert (unique, micros, refs) == (7, 8, None)
    assert pickle.loads(wire) == value and type(wire) is bytes
