"""Frames to bytes and back, by msgpack's C code. One `Decoder` per connection; packers are per thread.

msgpack is self-delimiting: the decoder is fed whatever arrived and finds the frames itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import msgpack

from framework._base import limits
from framework.exceptions import ProtocolError


def new_packer() -> Callable[[Any], bytes]:
    """A packing function. Packers keep a buffer of their own: one per thread."""
    pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True, strict_types=False).pack
    return pack


def unpack_frame(data: bytes) -> list[Any]:
    """One frame that this process has packed itself."""
    frame: list[Any] = msgpack.unpackb(data, raw=False, strict_map_key=False)
    return frame


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


class Decoder:
    """Bytes in, frames out, within limits."""

    __slots__ = ("_fed", "_feed", "_unpacker", "whole")

    def __init__(self, max_frame: int = limits.MAX_HANDSHAKE_FRAME) -> None:
        large = max_frame > limits.MAX_HANDSHAKE_FRAME
        self._unpacker = msgpack.Unpacker(
            raw=False,
            use_list=True,
            strict_map_key=False,
            ext_hook=_no_extension,  # (`max_ext_len` lets those without content pass)
            # The buffer at first; it grows with what is fed at a time. (By default it is 1 MB, all of which
            # is in use in the end, as it is written from one end to the other: so much for each connection.)
            read_size=min(limits.DECODER_BUFFER, max_frame),
            max_buffer_size=max_frame,
            max_str_len=min(max_frame, limits.MAX_FRAME),
            max_bin_len=min(max_frame, limits.MAX_FRAME),
            max_ext_len=0,
            max_array_len=limits.MAX_ARRAY_ITEMS if large else limits.MAX_HANDSHAKE_ITEMS,
            max_map_len=limits.MAX_MAP_ITEMS if large else limits.MAX_HANDSHAKE_ITEMS,
        )
        self._feed = self._unpacker.feed
        self._fed = 0
        #: nothing is left in here: what was fed last was one single frame (after more of them, nobody knows)
        self.whole = True

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take in what arrived; iterate over the frames that are complete. `ProtocolError` on anything
        that is not msgpack or is over a limit, from here or from the iteration (see `frames`)."""
        try:
            self._feed(data)
            self._fed += len(data)
            self.whole = False
        except (msgpack.BufferFull, ValueError) as error:
            raise ProtocolError(f"frame over the limit: {error or type(error).__name__}") from None
        return cast("Iterator[Any]", self._unpacker)

    def first(self) -> None:
        """To be called after the first frame of what was fed, if one would like to know of `whole`."""
        self.whole = self._unpacker.tell() == self._fed

    def rest(self) -> bytes:
        """Take out what has been fed and not been iterated over. This is the end of this decoder."""
        data: bytes = self._unpacker.read_bytes(limits.MAX_FRAME)
        return data


#: What the iteration over a decoder may raise for bytes that are no frames.
DECODE_ERRORS: tuple[type[BaseException], ...] = (
    msgpack.UnpackException,
    msgpack.FormatError,
    msgpack.StackError,
    ValueError,
    UnicodeDecodeError,
    TypeError,
    RecursionError,
)
