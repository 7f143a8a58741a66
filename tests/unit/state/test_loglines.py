from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._state.loglines import LINE_BYTES, MARKER, NAME_CHARS, LineAssembler, marker_line


def read(*chunks: bytes, limit: int = LINE_BYTES) -> list[tuple[str, str]]:
    lines = LineAssembler(limit)
    return [line for chunk in chunks for line in lines.feed(chunk)] + lines.flush()


def texts(*chunks: bytes, limit: int = LINE_BYTES) -> list[str]:
    return [text for _, text in read(*chunks, limit=limit)]


def test_lines_and_an_unfinished_one() -> None:
    lines = LineAssembler()
    assert lines.feed(b"a\n\nb") == [("", "a"), ("", "")]
    assert lines.feed(b"c") == []
    assert lines.feed(b"\nrest") == [("", "bc")]
    assert lines.flush() == [("", "rest")]
    assert lines.flush() == []


def test_a_marker_names_what_follows_and_is_no_line() -> None:
    data = marker_line("f") + b"1\n2\n" + marker_line("Actor.g") + b"3\n" + marker_line("") + b"4\n"
    assert read(data) == [("f", "1"), ("f", "2"), ("Actor.g", "3"), ("", "4")]


def test_a_marker_after_unfinished_text_of_c_code_ends_that_text() -> None:
    assert read(marker_line("f") + b"from C" + marker_line("g") + b"x\n") == [("f", "from C"), ("g", "x")]
    assert read(b"50%\r" + marker_line("g") + b"x\n") == [("", "50%"), ("g", "x")]


def test_a_marker_in_several_chunks() -> None:
    marker = marker_line("name")
    for cut in range(len(marker) + 1):
        assert read(marker[:cut], marker[cut:], b"x\n") == [("name", "x")]


def test_a_marker_that_was_never_finished_is_not_shown() -> None:
    for cut in range(2, len(MARKER)):
        assert read(b"a\n" + MARKER[:cut]) == [("", "a")]
    assert read(b"a\n" + MARKER + b"f") == [("", "a")]


def test_names_stay_within_their_line() -> None:
    assert marker_line("a\nb\rc\x01") == MARKER + b"a b c \n"
    assert marker_line("x" * 1000) == MARKER + b"x" * NAME_CHARS + b"\n"
    assert read(marker_line("naïve.<locals>.<lambda>") + b"x\n") == [("naïve.<locals>.<lambda>", "x")]
    assert marker_line("\udc80") == MARKER + b" \n"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"windows\r\n", "windows"),
        (b"1%\r2%\r3%\n", "3%"),
        (b"\r1%\r2%", "2%"),
        (b"1%\r2%\r", "2%"),
        (b"1%\r2%\r\r\r\n", "2%"),
        (b"1%\r  \rdone\n", "done"),
    ],
)
def test_a_progress_bar_shows_its_last_state(data: bytes, shown: str) -> None:
    assert texts(data) == [shown]
    assert texts(*(bytes([byte]) for byte in data)) == [shown]


def test_a_progress_bar_does_not_leak_into_the_next_line() -> None:
    assert texts(b"1%\r\n\nx\n") == ["1%", "", "x"]


def test_over_long_lines_come_in_pieces() -> None:
    assert texts(b"x" * 25 + b"\n", limit=10) == ["x" * 10, "x" * 10, "x" * 5]
    assert texts(b"x" * 10 + b"\n", limit=10) == ["x" * 10]
    lines = LineAssembler(10)
    assert lines.feed(b"x" * 1000) == [("", "x" * 10)] * 99
    assert lines.flush() == [("", "x" * 10)]


def test_pieces_are_cut_between_characters() -> None:
    assert texts("ä€😀".encode() * 5, limit=10) == ["ä€😀", "ä€😀", "ä€😀", "ä€😀", "ä€😀"]
    assert "".join(texts("😀".encode() * 100, limit=5)) == "😀" * 100


def test_bytes_that_are_no_text() -> None:
    assert texts(b"a\xff\x00b\n") == ["a\ufffd\x00b"]
    assert "".join(texts(b"\x80" * 25, limit=10)) == "\ufffd" * 25


def test_a_limit_must_hold_a_character() -> None:
    with pytest.raises(ValueError, match="limit must hold one character"):
        LineAssembler(3)


fragments = st.one_of(
    st.sampled_from(
        [b"\n", b"\r", b"\r\n", b"\x01", MARKER, MARKER[:7], marker_line("f"), marker_line("gé")]
    ),
    st.binary(max_size=40),
    st.text(max_size=20).map(str.encode),
)


@pytest.mark.slow
@given(st.lists(fragments, max_size=20).map(b"".join), st.lists(st.integers(0, 400), max_size=8))
def test_the_result_does_not_depend_on_the_chunks(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert read(*chunks, limit=48) == read(data, limit=48)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30), max_size=20))
def test_ordinary_text_comes_back_unchanged(written: list[str]) -> None:
    assert texts("".join(line + "\n" for line in written).encode()) == written


@given(st.lists(fragments, max_size=20))
def test_what_is_kept_is_bounded(chunks: list[bytes]) -> None:
    lines = LineAssembler(16)
    for chunk in chunks:
        for _, text in lines.feed(chunk):
            assert len(text) <= 16
        assert len(lines._partial) <= 16
        assert len(lines._held) <= 16
