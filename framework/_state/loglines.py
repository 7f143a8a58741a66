"""From the bytes of a worker's output file to named lines. Pure: no I/O, no clock.

A worker writes what user code prints, and before the first text of another task or actor a *marker
line*, ``\\x01framework:name:<name>\\n``, that says whose text follows. The `LineAssembler` reads the file
in chunks of any size, and its result does not depend on where the chunks are cut.

Rules for a line:

- A progress bar redraws its line after ``\\r``: only the last state that shows something is kept.
- What is longer than `limit` bytes without an end is given out in pieces, cut between characters.
- C code and subprocesses write to the file without knowing about markers, so that a marker may come
  after text without a newline. That text is then a line of its own.
"""

from __future__ import annotations

from framework._base.limits import LINE_BYTES, NAME_CHARS

MARKER = b"\x01framework:name:"


def marker_line(name: str) -> bytes:
    """The marker line for `name`; control characters become spaces, so that it stays one line."""
    clean = "".join(c if c.isprintable() else " " for c in name[:NAME_CHARS])
    return MARKER + clean.encode("utf-8", "replace") + b"\n"


class LineAssembler:
    """Splits a stream of bytes into `(name, line)`; lines come without their end.

    `limit` is the longest line in bytes. Bytes that are not UTF-8 become U+FFFD. At most `limit` bytes are
    kept between calls (twice that while a progress bar redraws).
    """

    __slots__ = ("_held", "_limit", "_partial", "name")

    def __init__(self, limit: int = LINE_BYTES) -> None:
        if limit < 4:
            raise ValueError(f"limit must hold one character of UTF-8 (4 bytes), got {limit}")
        self.name = ""
        self._limit = limit
        self._partial = b""
        # What a line showed before its last "\r", in case nothing comes after it.
        self._held = b""

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """Take the next bytes; returns the lines that they complete."""
        lines = (self._partial + data).split(b"\n")
        last = lines.pop()
        out: list[tuple[str, str]] = []
        for line in lines:
            self._end_line(self._reduce(line, out), out)
        self._partial = self._reduce(last, out)
        return out

    def flush(self) -> list[tuple[str, str]]:
        """Give out the line that has no end yet, as nothing more will come (for now)."""
        rest, self._partial = self._partial, b""
        # The beginning of a marker whose writer died is no text.
        if len(rest) > 1 and MARKER.startswith(rest):
            rest = b""
        out: list[tuple[str, str]] = []
        if rest or self._held:
            self._end_line(rest, out)
        return out

    def _reduce(self, line: bytes, out: list[tuple[str, str]]) -> bytes:
        """Apply the redraws in `line`, give out what is over-long, return what is still open."""
        if b"\r" in line:
            *redrawn, line = line.split(b"\r")
            for state in redrawn:
                self._held = self._cut(state, out) or self._held
        return self._cut(line, out)

    def _cut(self, text: bytes, out: list[tuple[str, str]]) -> bytes:
        """Give out pieces of `limit` bytes until the rest fits."""
        if len(text) <= self._limit:
            return text
        self._held = b""
        start = 0
        while len(text) - start > self._limit:
            stop = start + self._limit
            # Step back over continuation bytes, at most the three that UTF-8 can have.
            for back in range(4):
                if text[stop - back] & 0xC0 != 0x80:
                    stop -= back
                    break
            self._emit(text[start:stop], out)
            start = stop
        return text[start:]

    def _end_line(self, line: bytes, out: list[tuple[str, str]]) -> None:
        at = line.find(MARKER)
        if at < 0:
            self._emit(line or self._held, out)
        else:
            before = line[:at] or self._held
            if before:
                self._emit(before, out)
            self.name = line[at + len(MARKER) :].decode("utf-8", "replace")
        self._held = b""

    def _emit(self, text: bytes, out: list[tuple[str, str]]) -> None:
        out.append((self.name, text.decode("utf-8", "replace")))
