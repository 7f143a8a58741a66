from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework._state.loglines import LINE_BYTES, LineAssembler, marker_line
from framework._worker import stdio
from framework._worker.stdio import CurrentName, LineWriter, text_over


class File:
    """A writer over a file, and what is in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.current = CurrentName()
        self.writer = LineWriter(self.fd, "<stdout>", self.current)
        self.text = text_over(self.writer)

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "out")
    yield file
    file.writer.flush_all()
    os.close(file.fd)


def in_thread(action: Callable[[], object]) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


def test_lines_are_in_the_file_when_print_returns(file: File) -> None:
    print("a", "b", file=file.text)
    assert file.content == b"a b\n"
    file.text.write("c\nunfinished")
    assert file.content == b"a b\nc\n"
    file.text.flush()
    assert file.content == b"a b\nc\nunfinished"
    print("!", file=file.text)
    assert file.content == b"a b\nc\nunfinished!\n"


def test_a_marker_comes_with_the_first_text_of_a_name_only(file: File) -> None:
    file.current.name = "silent"
    file.current.name = "f"
    assert file.content == b""
    print(1, file=file.text)
    file.current.name = "silent"
    file.current.name = "f"
    print(2, file=file.text)
    file.current.name = "g"
    print(3, file=file.text)
    assert file.content == marker_line("f") + b"1\n2\n" + marker_line("g") + b"3\n"


def test_a_marker_starts_at_the_start_of_a_line(file: File) -> None:
    file.current.name = "f"
    print("shown", end="", flush=True, file=file.text)
    file.current.name = "g"
    print("x", file=file.text)
    assert file.content == marker_line("f") + b"shown\n" + marker_line("g") + b"x\n"


def test_unfinished_text_counts_for_whoever_wrote_it(file: File) -> None:
    file.current.name = "f"
    print("held", end="", file=file.text)
    file.current.name = "g"
    print("x", file=file.text)
    assert file.content == marker_line("f") + b"held\n" + marker_line("g") + b"x\n"


def test_threads_do_not_cut_each_others_lines(file: File) -> None:
    file.text.write("main ")
    in_thread(lambda: print("thread", file=file.text))
    print("again", file=file.text)
    assert file.content == b"thread\nmain again\n"


def test_a_flushed_line_is_ended_before_another_threads(file: File) -> None:
    print("main", end="", flush=True, file=file.text)
    in_thread(lambda: print("thread", file=file.text))
    print("again", file=file.text)
    assert file.content == b"main\nthread\nagain\n"


def test_flush_leaves_other_threads_lines_alone(file: File) -> None:
    in_thread(lambda: file.text.write("thread"))
    file.text.write("main")
    file.text.flush()
    assert file.content == b"main"
    file.writer.flush_all()
    assert file.content == b"main\nthread"


def test_many_threads_at_once(file: File) -> None:
    def work(number: int) -> None:
        for step in range(100):
            print(number, step, "x" * 50, file=file.text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = file.content.decode().splitlines()
    for number in range(4):
        mine = [line for line in lines if line.startswith(f"{number} ")]
        assert mine == [f"{number} {step} {'x' * 50}" for step in range(100)]


def test_a_line_without_end_does_not_grow_without_bound(file: File) -> None:
    file.text.write("x" * LINE_BYTES)
    assert file.content == b""
    file.text.write("x")
    assert file.content == b"x" * (LINE_BYTES + 1)


def test_what_is_no_utf8_is_escaped(file: File) -> None:
    print("ä \udcff", file=file.text)
    assert file.content == "ä \\udcff\n".encode()


def test_the_binary_side(file: File) -> None:
    file.current.name = "f"
    assert file.text.buffer.write(bytearray(b"\xff\n")) == 2
    assert file.text.buffer.write(memoryview(b"y")) == 1
    file.text.buffer.flush()
    assert file.content == marker_line("f") + b"\xff\ny"


def test_it_looks_like_standard_output(file: File) -> None:
    assert file.text.fileno() == file.fd
    assert file.text.encoding == "utf-8"
    assert file.text.writable() and not file.text.readable() and not file.text.isatty()
    assert file.text.name == "<stdout>"


def test_closing_it_only_flushes(file: File) -> None:
    file.text.write("unfinished")
    file.text.close()
    print(" line", file=file.text)
    assert file.content == b"unfinished line\n"


def test_short_writes_are_continued(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(stdio.os, "write", lambda fd, data: write(fd, bytes(data[:3])))
    file.current.name = "f"
    print("a long line", file=file.text)
    assert file.content == marker_line("f") + b"a long line\n"


def test_printing_while_printing(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer or signal handler that prints may run inside of a write."""
    write = os.write

    def interrupted(fd: int, data: bytes) -> int:
        monkeypatch.setattr(stdio.os, "write", write)
        print("inner", file=file.text)
        return write(fd, data)

    monkeypatch.setattr(stdio.os, "write", interrupted)
    print("outer", file=file.text)
    assert sorted(file.content.splitlines()) == [b"inner", b"outer"]


def test_a_forked_child_starts_afresh(file: File) -> None:
    file.text.write("parent's")
    with file.writer._lock:
        file.writer.after_fork()
        in_thread(lambda: print("child's", file=file.text))
    assert file.content == b"child's\n"


def in_child(body: Callable[[], None]) -> int:
    """Run `body` in a forked child; returns its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            stdio.flush()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def assembled(path: Path) -> list[tuple[str, str]]:
    lines = LineAssembler()
    return lines.feed(path.read_bytes()) + lines.flush()


def test_redirect(tmp_path: Path) -> None:
    out, err = tmp_path / "w.out", tmp_path / "w.err"

    def body() -> None:
        stdio.redirect(str(out), str(err))
        stdio.set_name("f")
        print("to out")
        print("to err", file=sys.stderr)
        os.write(1, b"from C\n")
        subprocess.run(["/bin/sh", "-c", "echo from a child; echo and its errors >&2"], check=True)
        stdio.set_name("A.method")
        print("unfinished", end="")

    assert in_child(body) == 0
    assert assembled(out) == [
        ("f", "to out"),
        ("f", "from C"),
        ("f", "from a child"),
        ("A.method", "unfinished"),
    ]
    assert assembled(err) == [("f", "to err"), ("f", "and its errors")]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_redirect_appends(tmp_path: Path) -> None:
    out = tmp_path / "w.out"
    for text in ("first", "second"):

        def body(text: str = text) -> None:
            stdio.redirect(str(out), os.devnull)
            print(text)

        assert in_child(body) == 0
    assert out.read_bytes() == b"first\nsecond\n"


def test_redirect_with_a_closed_descriptor(tmp_path: Path) -> None:
    out = tmp_path / "w.out"

    def body() -> None:
        os.close(1)
        stdio.redirect(str(out), str(tmp_path / "w.err"))
        print("x")
        subprocess.run(["/bin/sh", "-c", "echo y"], check=True)

    assert in_child(body) == 0
    assert out.read_bytes() == b"x\ny\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_is_an_error_of_print_but_not_of_flush(tmp_path: Path) -> None:
    def body() -> None:
        stdio.redirect("/dev/full", str(tmp_path / "w.err"))
        print("held", end="")
        stdio.flush()
        with pytest.raises(OSError, match="No space left"):
            print("x")

    assert in_child(body) == 0


def test_redirect_to_nowhere_is_an_error(tmp_path: Path) -> None:
    def body() -> None:
        with pytest.raises(FileNotFoundError):
            stdio.redirect(str(tmp_path / "no" / "w.out"), os.devnull)

    assert in_child(body) == 0
