"""Bytes from members and strangers, at random, for as long as one likes: the decoder, the check of frames,
the two sides of the handshake, and the messages of data connections.

    python tests/fuzz/fuzz_frames.py --seconds 3600 [--seed N]    a plain mutator
    python tests/fuzz/fuzz_frames.py --atheris [ARGS OF LIBFUZZER] guided by coverage (the extra `fuzz`)

Whatever comes in, what comes out is a message of the catalogue or a protocol error, in bounded memory.
Anything else ends the run with the input (in hexadecimal digits, to be given to `--replay`).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import tracemalloc
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from framework._base import limits
from framework._node import transfer_io
from framework._wire import messages as m
from framework._wire.codec import DECODE_ERRORS, Decoder
from framework._wire.handshake import ClientHandshake, HandshakeError, ServerHandshake
from framework.exceptions import ProtocolError
from support.hostile import Fields, packed

TOKEN = b"token of the cluster under test."


def frames_of(data: bytes, most: int, sizes: list[int]) -> int:
    """Feed bytes in pieces, as a connection does. How many messages came of it; other errors than those that
    a connection expects are raised."""
    decoder, count, place, turn = Decoder(most), 0, 0, 0
    try:
        while place < len(data):
            size = sizes[turn % len(sizes)] if sizes else len(data)
            turn += 1
            frames = decoder.feed(data[place : place + size])
            place += size
            while True:
                try:
                    frame = next(frames)
                except StopIteration:
                    break
                except DECODE_ERRORS as error:
                    raise ProtocolError(f"not a frame: {type(error).__name__}: {error}") from None
                opcode = m.check(frame)
                assert m.CATALOGUE[opcode].arity == len(frame)
                count += 1
    except ProtocolError as error:
        assert len(str(error)) < 300
    return count


def shaken(data: bytes) -> None:
    """The same for both sides of the handshake, which nothing but the right answer completes."""
    for side in (
        ServerHandshake(TOKEN, b"c" * 16, b"n" * 32),
        ClientHandshake(TOKEN, b"c" * 16, b"m" * 32),
    ):
        if isinstance(side, ClientHandshake):
            side.start()
        rest = data
        try:
            while rest and not side.done:
                part, rest = rest[: side.wanted], rest[side.wanted :]
                side.feed(part)
        except HandshakeError:
            pass
        assert not side.done


def transferred(data: bytes) -> None:
    """The same for a message of a data connection."""
    try:
        transfer_io.complete_message(bytearray(data[: limits.TRANSFER_FRAME]))
    except OSError:
        pass


def one(data: bytes) -> None:
    """All of it."""
    sizes = [1 + byte for byte in data[:3]]
    frames_of(data[3:], limits.MAX_FRAME, sizes)
    frames_of(data[3:], limits.MAX_HANDSHAKE_FRAME, [])
    shaken(data)
    transferred(data)
    if len(data) < 50_000:
        transferred(len(data).to_bytes(4, "little") + data)


class Mutator:
    """Inputs from a seed: random bytes, frames, damaged frames, headers that promise much."""

    HEADERS = [b"\xdd\x7f\xff\xff\xff", b"\xdd\x00\x1e\x84\x80", b"\xdc\xff\xff", b"\xdf\x7f\xff\xff\xff"]
    HEADERS += [b"\xdf\x00\x01\x86\xa0", b"\xc6\x7f\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91", b"\x81"]
    HEADERS += [
        b"\xc7\x00\x05",
        b"\xc9\x7f\xff\xff\xff\x01",
        b"\xd4\x05x",
        b"\xd6\xff\0\0\0\0",
        b"\xc1",
        b"\xa2\xff\xfe",
    ]

    def __init__(self, seed: int) -> None:
        self.fields = Fields(seed)
        self.random = self.fields.random
        self.opcodes = sorted(m.CATALOGUE)

    def frame(self) -> bytes:
        """A message, right in form."""
        return packed(self.fields.frame(self.random.choice(self.opcodes)))

    def input(self) -> bytes:
        """The next one."""
        draw = self.random
        kind = draw.randrange(6)
        if kind == 0:
            return draw.randbytes(draw.randrange(300))
        if kind == 1:
            return draw.choice(self.HEADERS) * draw.choice([1, 10, 1000, 3000])
        data = bytearray(b"".join(self.frame() for _ in range(draw.randrange(1, 5))))
        for _ in range(draw.randrange(6)):
            place = draw.randrange(len(data) + 1)
            what = draw.randrange(5)
            if what == 0 and place < len(data):
                data[place] ^= 1 << draw.randrange(8)
            elif what == 1:
                del data[place : place + draw.randrange(20)]
            elif what == 2:
                data[place:place] = draw.choice(self.HEADERS) * draw.choice([1, 1, 2, 200])
            elif what == 3:
                data[place:place] = data[: draw.randrange(len(data) + 1)]
            else:
                data[place:place] = draw.randbytes(draw.randrange(9))
        return draw.randbytes(3) + bytes(data)


def plain(seconds: float, seed: int) -> int:
    """How many inputs were tried. AssertionError, or what was raised, with the input in the message."""
    mutator, end, count = Mutator(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = mutator.input()
        try:
            one(data)
        except BaseException as error:
            error.add_note(f"--seed {seed}, input {count}: --replay {data.hex()}")
            raise
        count += 1
    return count


def traced(data: bytes) -> int:
    """The memory that an input takes, at the most."""
    tracemalloc.start()
    try:
        one(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def guided(arguments: list[str]) -> None:
    """With atheris."""
    try:
        import atheris
    except ImportError:
        sys.exit("--atheris needs the package atheris: pip install 'framework[fuzz]'")
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--replay", metavar="HEX")
    parser.add_argument("--atheris", action="store_true")
    options, others = parser.parse_known_args()
    if options.replay is not None:
        print(f"{traced(bytes.fromhex(options.replay)) / 1e6:.1f} MB at the most")
    elif options.atheris:
        guided(others)
    else:
        count = plain(options.seconds, options.seed)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{count} inputs in {options.seconds:g} s from seed {options.seed}, {most:.0f} MiB at the most")


if __name__ == "__main__":
    main()
