# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading what GNU tar writes with ``--format=posix --sparse``, hashing each file's content as it passes by.

The standard library's :mod:`tarfile` reads it too, at about 200 microseconds a file; that alone would make the backup
of twelve thousand small files slower than their compression. This reads only what a set can hold: files, folders, links
and sparse files of format 1.0 (GNU tar manual, "Storing Sparse Files"; POSIX.1-2001, pax interchange format).
"""

from __future__ import annotations

import hashlib
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

from .errors import BackupError

BLOCK = 512
CHUNK = 1 << 20
_ZEROS = bytes(CHUNK)
_KINDS = {b"0": "file", b"\0": "file", b"1": "link", b"2": "symlink", b"5": "dir"}


class Member(NamedTuple):
    """One member of an archive as it passed by."""

    path: str
    """Bytes that are not UTF-8 are surrogates (PEP 383)."""
    type: str
    """``file``, ``dir`` or ``symlink``; a hard link is a file with the earlier member's content."""
    size: int
    """Bytes of content, holes included."""
    sha256: str
    """Of the content; empty for what has none."""
    target: str
    """Where a symlink points, or the earlier member that a hard link names."""


def read_members(readinto: Callable[[memoryview], int]) -> Iterator[Member]:
    """Read an archive to the end of its stream and yield its members.

    :param readinto: fills a part of a buffer and returns how many bytes, 0 at the end
    Raises :class:`BackupError` when this is no whole archive, or holds what a set never holds.
    """
    try:
        yield from _read(_Stream(readinto))
    except (KeyError, ValueError) as error:
        raise BackupError(f"this is no whole archive ({error})") from None


def _read(stream: _Stream) -> Iterator[Member]:
    contents: Dict[str, Tuple[int, str]] = {}
    symlinks: Dict[str, str] = {}
    extended: Dict[str, bytes] = {}
    while True:
        header = stream.take(BLOCK)
        if header.count(0) == BLOCK:
            break
        kind, size = header[156:157], _number(header[124:136])
        _check_sum(header)
        if kind == b"x":
            extended = _records(stream.take(size))
            stream.skip_padding(size)
            continue
        size = int(extended.get("size", size))
        path = _text(extended["path"]) if "path" in extended else _ustar_name(header)
        target = _text(extended["linkpath"]) if "linkpath" in extended else _text(header[157:257].rstrip(b"\0"))
        name = _KINDS.get(kind)
        if name == "file":
            if "GNU.sparse.major" in extended:
                path = _text(extended["GNU.sparse.name"])
                real = int(extended["GNU.sparse.realsize"])
                digest = _sparse_content(stream, size, real)
                size = real
            else:
                digest = _content(stream, size)
            contents[path] = (size, digest)
            yield Member(path, "file", size, digest, "")
        elif name == "link" and target in symlinks:
            # A symlink may have several names too.
            symlinks[path] = symlinks[target]
            yield Member(path, "symlink", 0, "", symlinks[target])
        elif name == "link":
            if target not in contents:
                raise BackupError("a hard link names a member that did not come before it", path)
            yield Member(path, "file", *contents[target], target)
        elif name == "dir":
            yield Member(path.rstrip("/"), "dir", 0, "", "")
        elif name == "symlink":
            symlinks[path] = target
            yield Member(path, "symlink", 0, "", target)
        else:
            raise BackupError(f"an archive holds a member of type {kind!r}, which a set never holds", path)
        extended = {}
    # What follows the end mark (padding to a record) belongs to the stream too.
    while stream.fill():
        pass


class _Stream:
    """Exact reads from a stream that gives what it has, through one buffer that is used again and again."""

    def __init__(self, readinto: Callable[[memoryview], int]) -> None:
        self.readinto = readinto
        self.buffer = memoryview(bytearray(CHUNK))
        self.position = 0
        self.end = 0

    def fill(self) -> int:
        """Replace what is in the buffer; returns how many bytes there are now."""
        self.position = 0
        self.end = self.readinto(self.buffer)
        return self.end

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield the next bytes in pieces; each is good until the next one is asked for."""
        while size:
            if self.position == self.end and not self.fill():
                raise BackupError("the archive ends in the middle")
            end = min(self.position + size, self.end)
            piece = self.buffer[self.position : end]
            size -= end - self.position
            self.position = end
            yield piece

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        end = self.position + size
        if end <= self.end:
            piece = bytes(self.buffer[self.position : end])
            self.position = end
            return piece
        return b"".join(bytes(piece) for piece in self.pieces(size))

    def skip_padding(self, size: int) -> None:
        """Pass over what fills the last block."""
        self.take(-size % BLOCK)


def _content(stream: _Stream, size: int) -> str:
    digest = hashlib.sha256()
    for piece in stream.pieces(size):
        digest.update(piece)
    stream.skip_padding(size)
    return digest.hexdigest()


def _sparse_content(stream: _Stream, size: int, real: int) -> str:
    """Hash a sparse file's content with its holes; the map of what is stored comes first, in whole blocks."""
    numbers: List[int] = []
    cut = b""
    while not numbers or len(numbers) < 1 + 2 * numbers[0]:
        # The last number of a block may go on in the next one, so only what a newline ends counts.
        lines = (cut + stream.take(BLOCK)).split(b"\n")
        cut = lines.pop()
        numbers.extend(int(line) for line in lines)
    digest = hashlib.sha256()
    position = 0
    for index in range(numbers[0]):
        offset, length = numbers[1 + 2 * index : 3 + 2 * index]
        _hash_zeros(digest, offset - position)
        for piece in stream.pieces(length):
            digest.update(piece)
        position = offset + length
    _hash_zeros(digest, real - position)
    stream.skip_padding(size)
    return digest.hexdigest()


def _hash_zeros(digest: Any, count: int) -> None:
    while count > 0:
        digest.update(_ZEROS[: min(count, CHUNK)])
        count -= CHUNK


def _records(data: bytes) -> Dict[str, bytes]:
    """Read the records of an extended header: each ``length keyword=value`` and a newline."""
    records = {}
    position = 0
    while position < len(data):
        space = data.index(b" ", position)
        end = position + int(data[position:space])
        keyword, _equals, value = data[space + 1 : end - 1].partition(b"=")
        records[_text(keyword)] = value
        position = end
    return records


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        # Numbers that octal digits can't hold are written in base 256 (GNU tar manual, "Basic Tar Format").
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise BackupError("this is no whole archive: a header holds no number where one has to be") from None


def _check_sum(header: bytes) -> None:
    # The field of the sum itself counts as eight spaces.
    if sum(header) - sum(header[148:156]) + 8 * 32 != _number(header[148:156]):
        raise BackupError("this is no whole archive: a header's checksum is wrong")


def _ustar_name(header: bytes) -> str:
    name, prefix = header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
    return _text(prefix + b"/" + name if prefix else name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
