"""Lines of text files: of bounded length, of UTF-8 text, with ends as Unix or Windows has them."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mgen.config import InputError

LONGEST_LINE = 64 << 20  # bytes of a line held at most, so that no file can fill the memory
BOMS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def lines(path: Path, file: IO[bytes], longest: int = 0) -> Iterator[bytes]:
    """The lines of an opened file with their ends; a byte order mark of UTF-8 is left out.

    Raises InputError for a line of more than `longest` (LONGEST_LINE) bytes and for a carriage
    return within one.
    """
    number, longest = 0, longest or LONGEST_LINE
    while line := file.readline(longest + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > longest:
            raise InputError(
                f"{path}, line {number}: longer than {size_of(longest)}, which is not read. Is it "
                "the right file? Lines may have been joined."
            )
        if b"\r" in line and b"\r" in line.rstrip(b"\r\n"):
            raise InputError(
                f"{path}, line {number}: a carriage return within the line. Save with Unix or "
                "Windows line ends."
            )
        yield line


def size_of(num_bytes: int) -> str:
    return f"{num_bytes >> 20:,} MB" if num_bytes >= 1 << 20 else f"{num_bytes:,} bytes"


def decoded(path: Path, where: str, text: bytes) -> str:
    """The text of bytes. Raises InputError with what they look like and how to convert the file."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise InputError(f"{where}: {not_utf8(path, text)}") from None


def not_utf8(path: Path, text: bytes) -> str:
    """What bytes that are not UTF-8 look like, and how to convert their file."""
    try:
        text.decode("cp1252")
    except UnicodeDecodeError:
        return "not UTF-8 text. Save as UTF-8."
    return f"not UTF-8 text, perhaps Windows-1252. {how_to_convert(path, 'WINDOWS-1252')}"


def reject_wide(path: Path, head: bytes) -> None:
    """Raise InputError if a text file's first bytes look like UTF-16."""
    encoding = BOMS.get(head[:2], "")
    if not encoding and b"\0" in head:
        # Latin letters in UTF-16 have a zero byte each: the second of two, or the first.
        first, second = head[::2].count(0), head[1::2].count(0)
        if max(first, second) > len(head) // 4:
            encoding = "UTF-16LE" if second > first else "UTF-16BE"
    if encoding:
        raise InputError(
            f"{path}: not UTF-8 text, but {encoding} by its look. {how_to_convert(path, encoding)}"
        )


def how_to_convert(path: Path, encoding: str) -> str:
    """The command that writes a file as UTF-8 under another name."""
    name, new = path.name, f"utf8_{path.name}"
    if path.suffix.lower() == ".gz":
        return f"Convert: gunzip -c {name} | iconv -f {encoding} -t UTF-8 | gzip > {new}"
    return f"Convert: iconv -f {encoding} -t UTF-8 {name} > {new}"
