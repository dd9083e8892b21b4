"""Files that a command writes: whole or as they were before, and refused before the work when they cannot be."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from rich.console import Console

T = TypeVar("T")


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """An `OSError`, such as that of a full disk, becomes a `ValueError` of one line that names the file."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"out: {path} cannot be read or written: {error.strerror or error}") from error


def check_folder(folder: Path) -> None:
    """Make the folder if there is none, and write to it, leaving nothing behind.

    Raises:
        ValueError: that fails, because of a file in the way, missing rights or a full disk.
    """
    with file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to; when the block ends well, it takes the place of `path` at once.

    If the block fails, `path` is as it was and nothing else is left. The file's name cannot be guessed, so that nobody
    else can have put a link there.

    Raises:
        ValueError: the file cannot be written.
    """
    unfinished = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    with file_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.touch(exist_ok=False)
            yield unfinished
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def wide_console(console: Console | None) -> Console:
    """The console, or a new one; where it is no terminal, its columns are wide enough for every table."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    return console


def append_line(path: Path, line: str) -> None:
    """Write a line to the end of a file, and return when it is on the disk.

    If that fails, the file is as it was.

    Raises:
        ValueError: the line cannot be written.
    """
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        size = path.stat().st_size if path.exists() else None
        try:
            with path.open("ab") as file:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            if size is None:
                path.unlink(missing_ok=True)
            else:
                cut(path, size)
            raise


def read_lines(path: Path, parse: Callable[[bytes, int], T]) -> list[T]:
    """The lines of a file, none if there is no file. A last line that is cut off is removed from the file.

    Args:
        path: the file; as it was if a line is refused.
        parse: a line and its number, from 1 -> what it holds.

    Raises:
        ValueError: the file cannot be read or shortened, or `parse` refuses a line.
    """
    with file_errors(path):
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        found = [parse(line, number) for number, line in enumerate(whole.splitlines(), 1)]
        if len(whole) < len(content):
            cut(path, len(whole))
    return found


def cut(path: Path, size: int) -> None:
    """Shorten a file in place, and return when that is on the disk."""
    with path.open("rb+") as file:
        file.truncate(size)
        os.fsync(file.fileno())
