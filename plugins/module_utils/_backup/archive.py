# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shards as archives: GNU tar writes and extracts them, zstd or gzip compresses them, and what passes by is hashed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from typing import IO, Callable, Iterator, List, NamedTuple, Optional, Sequence

from .._core import command
from .._core.errors import present
from .errors import BackupError
from .tarstream import CHUNK, Member, read_members

F_SETPIPE_SZ = 1031
"""fcntl(2); the standard library names it from Python 3.10 on."""
LARGE = 128 << 20
"""Bytes from which on one compressor uses all cores: such a job would otherwise be the last one running, alone."""

_CREATE = (
    "tar",
    "--create",
    "--format=posix",
    # Without these two the archive of equal files would differ in each run (GNU tar manual, 8.3.7.1).
    "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
    # Written to a pipe in pieces of 256 KiB: with tar's 10 KiB the three processes mostly wait for each other.
    "--blocking-factor=512",
    "--no-recursion",
    "--sparse",
    "--acls",
    "--xattrs",
    "--xattrs-include=*",
    "--null",
    "--verbatim-files-from",
)
EXTRACT = (
    "tar",
    "--extract",
    "--blocking-factor=512",
    "--preserve-permissions",
    "--sparse",
    "--acls",
    "--xattrs",
    "--xattrs-include=*",
    "--delay-directory-restore",
    "--warning=no-timestamp",
)
"""What extracts an archive from standard input, but for where to. The script that each set brings has the same words."""


_HARMLESS = re.compile(
    rb"tar: .*(: No such file or directory|: Not a directory|: File removed before we read it|: file changed as we read it"
    rb"|: File shrank by \d+ bytes?; padding with zeros)$|tar: Exiting with failure status"
)
"""Lines of tar that say no more than that a file changed or went meanwhile."""


class Codec(NamedTuple):
    """A compressor, known by the ending of an object's name."""

    ending: str
    program: str

    def compress(self, level: int, size: int) -> List[str]:
        """Return the argument vector that compresses standard input to standard output."""
        if self.program == "gzip":
            return ["gzip", "--no-name", "--stdout"]
        return ["zstd", f"-{level}", "-T0" if size >= LARGE else "-T1", "--quiet", "--stdout", "--check"]

    def decompress(self) -> List[str]:
        """Return the argument vector that decompresses standard input to standard output."""
        if self.program == "gzip":
            return ["gzip", "--decompress", "--stdout"]
        return ["zstd", "--decompress", "--quiet", "--stdout"]


ZSTD = Codec("zst", "zstd")
GZIP = Codec("gz", "gzip")


def writer_codec() -> Codec:
    """Return the compressor for new objects: zstd, or gzip where that is missing."""
    return ZSTD if shutil.which("zstd") else GZIP


def known_codec(name: str) -> Codec:
    """Return the compressor that made an object, by its ending. Raises :class:`BackupError` for an unknown one."""
    for codec in (ZSTD, GZIP):
        if name.endswith("." + codec.ending):
            return codec
    raise BackupError("the ending names no compressor that is known here", name, "Use a newer version of this collection")


def codec_of(name: str) -> Codec:
    """Return the compressor that made an object. Raises :class:`OpskitError` when it is not installed or not known."""
    codec = known_codec(name)
    command.find_program(codec.program, codec.program)
    return codec


def pack(base: str, paths: Sequence[str], target: str, codec: Optional[Codec], level: int, size: int) -> List[Member]:
    """Write an archive of some paths, compressed, to a new file, fsynced, and return the members as they were stored.

    :param paths: relative to the base, in the order of the archive
    :param codec: none leaves it plain, and unflushed: it is compressed later
    :param size: about how many bytes they have
    A file that changes meanwhile is stored somehow, one that goes perhaps not at all: who calls has to look.
    Raises :class:`BackupError` when one can't be read or the disk is full.
    """
    with tempfile.TemporaryFile(dir=os.path.dirname(target)) as names, tempfile.TemporaryFile() as said:
        names.write(b"".join(os.fsencode(path) + b"\0" for path in paths))
        names.seek(0)
        tar = command.start(
            [*_CREATE, f"--directory={base}", "--files-from=-", "--file=-"],
            stdin=names.fileno(),
            stderr=said.fileno(),
        )
        stream = present(tar.stdout)
        _widen(stream)
        with tar, stream:
            with _compressor(codec.compress(level, size), target) if codec else open(target, "xb", opener=_private) as sink:
                members = list(read_members(_tee(stream, present(sink))))
        # Exit code 1 is "some files differ"; 2, too, can mean no more than that a file went (GNU tar manual, 3.1).
        if tar.returncode not in (0, 1):
            said.seek(0)
            words = b"".join(line for line in said if not _HARMLESS.match(line))
            if words:
                raise BackupError(f"tar could not read everything: {command.last_words(words)}", base, "Mend that and run again")
    return members


def _tee(source: IO[bytes], sink: IO[bytes]) -> Callable[[memoryview], int]:
    """Return a reader of one stream that hands on to another what it reads."""

    def readinto(buffer: memoryview) -> int:
        count = os.readv(source.fileno(), [buffer])
        sink.write(buffer[:count])
        return count

    return readinto


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _widen(pipe: IO[bytes]) -> None:
    """Let a pipe hold as much as one read takes, so that the two ends wait for each other less often."""
    try:
        fcntl.fcntl(pipe.fileno(), F_SETPIPE_SZ, CHUNK)
    except OSError:
        # A user without privileges has a limit for all pipes together (pipe(7)); a narrow one does the same, slower.
        return


def compress(source: str, target: str, codec: Codec, level: int) -> None:
    """Compress one file to a new file, not yet flushed to the disk."""
    with open(source, "rb") as plain:
        argv = codec.compress(level, os.path.getsize(source))
        with _compressor(argv, target, plain.fileno(), flush=False):
            pass


def patch_from(base: str, source: str, target: str, level: int) -> None:
    """Compress one file to a new file, not yet flushed, as what differs from another one (zstd(1), --patch-from)."""
    # It is bound by memory: more threads take longer (measured with 1.5.4: 0.8 s with one, 1.7 s with two, for 390 MB).
    argv = ["zstd", f"-{level}", "--single-thread", "--quiet", "--stdout", "--check", f"--patch-from={base}", source]
    with _compressor(argv, target, subprocess.DEVNULL, flush=False):
        pass


class _compressor:
    """A compressor whose output becomes a new file; leaving the block waits for it and flushes the file to the disk.

    :param stdin: what it reads; a pipe, which the block gets, when there is none
    """

    def __init__(self, argv: List[str], target: str, stdin: int = subprocess.PIPE, flush: bool = True) -> None:
        self.argv = argv
        self.target = target
        self.stdin = stdin
        self.flush = flush

    def __enter__(self) -> Optional[IO[bytes]]:
        self.output = open(self.target, "xb", opener=_private)
        self.said = tempfile.TemporaryFile()
        self.process = command.start(self.argv, stdin=self.stdin, stdout=self.output.fileno(), stderr=self.said.fileno())
        if self.process.stdin is not None:
            _widen(self.process.stdin)
        return self.process.stdin

    def __exit__(self, kind: Optional[type], value: Optional[BaseException], trace: object) -> None:
        with self.said, self.output:
            if self.process.stdin is not None:
                try:
                    self.process.stdin.close()
                except BrokenPipeError:
                    pass  # It ended early; its exit code below says why.
            if self.process.wait() != 0 and (kind is None or issubclass(kind, BrokenPipeError)):
                self.said.seek(0)
                raise BackupError(
                    f"{self.argv[0]} failed: {command.last_words(self.said.read())}",
                    self.target,
                    "Free space on the store's file system and run again",
                ) from value
            if kind is None and self.flush:
                os.fsync(self.output.fileno())


class open_object:
    """An object's plain bytes as a readable stream; leaving the block raises :class:`BackupError` if it was damaged."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.argv = codec_of(path).decompress()

    def __enter__(self) -> IO[bytes]:
        self.said = tempfile.TemporaryFile()
        with open(self.path, "rb") as source:
            self.process = command.start(self.argv, stdin=source.fileno(), stderr=self.said.fileno())
        return present(self.process.stdout)

    def __exit__(self, kind: Optional[type], value: Optional[BaseException], trace: object) -> None:
        stream = present(self.process.stdout)
        with self.said, self.process, stream:
            if kind is not None and not issubclass(kind, BackupError):
                return
            if kind is None:
                # tar stops at the end of the archive; its padding may be more than the pipe holds.
                while stream.read(CHUNK):
                    pass
            code = self.process.wait() if kind is None else self.process.poll()
            if code:
                self.said.seek(0)
                raise BackupError(f"it can't be decompressed: {command.last_words(self.said.read())}", self.path) from value


def members_of(path: str) -> Iterator[Member]:
    """Read an archive object from disk and yield its members. Raises :class:`BackupError` when it is damaged."""
    with open_object(path) as stream:
        yield from read_members(lambda buffer: os.readv(stream.fileno(), [buffer]))


def member(path: str, name: str, deadline_s: float) -> bytes:
    """Return the content of one file of an archive object. Raises :class:`BackupError` when it is damaged or not in it."""
    argv = ["tar", "--extract", "--to-stdout", "--file=-", "--no-wildcards", "--", name]
    with open_object(path) as stream, tempfile.TemporaryFile() as archive:
        shutil.copyfileobj(stream, archive, CHUNK)
        archive.seek(0)
        try:
            return command.run(argv, deadline_s, stdin=archive.fileno()).stdout
        except command.CommandError as error:
            raise BackupError(f"{name!r} can't be read from its archive: {error.what}", path) from None


def decompress(path: str, target: str, base: str = "") -> None:
    """Write an object's plain bytes to a new file, mode 0600. Raises :class:`BackupError` when it is damaged.

    :param base: a plain file, where the object is what differs from it
    """
    argv = [*codec_of(path).decompress(), *(patched(base) if base else ())]
    with tempfile.TemporaryFile() as said, open(path, "rb") as source, open(target, "xb", opener=_private) as plain:
        # Nothing of it passes through this process, which halves the time.
        process = command.start(argv, stdin=source.fileno(), stdout=plain.fileno(), stderr=said.fileno())
        if process.wait() != 0:
            said.seek(0)
            words = said.read()
            if os.strerror(errno.ENOSPC).encode() in words:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
            raise BackupError(f"it can't be decompressed: {command.last_words(words)}", path)


def patched(base: str) -> List[str]:
    """Return what the decompressor is told beside: the file that the object differs from, and a window of up to 2 GiB."""
    return ["--long=31", f"--patch-from={base}"]


def without(paths: Sequence[str]) -> List[str]:
    """Return what tar is told to leave out of an archive: these members, whatever characters their names are made of."""
    return ["--anchored", "--no-wildcards", *(f"--exclude={path}" for path in paths)] if paths else []


def extract(path: str, folder: str, numeric_owner: bool, deadline_s: float, stale: Sequence[str] = (), only: Sequence[str] = ()) -> None:
    """Extract an archive object into a folder, with everything that it holds. Raises :class:`BackupError`.

    :param numeric_owner: give files the stored ids instead of the stored names
    :param stale: members that are left out
    :param only: the members that are not, where most are
    """
    # The folder first: names that are given before it are not in it (GNU tar manual, 6.10.1).
    argv = [*EXTRACT, f"--directory={folder}", "--same-owner" if os.geteuid() == 0 else "--no-same-owner"]
    if numeric_owner:
        argv.append("--numeric-owner")
    with tempfile.TemporaryFile() as said, tempfile.NamedTemporaryFile() as names, open_object(path) as stream:
        if only:
            names.write(b"".join(os.fsencode(name) + b"\0" for name in only))
            names.flush()
            argv += ["--no-wildcards", "--no-recursion", "--null", "--verbatim-files-from", f"--files-from={names.name}"]
        else:
            argv += without(stale)
        tar = command.start(
            [*argv, "--file=-"],
            stdin=stream.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=said.fileno(),
        )
        try:
            code = tar.wait(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            tar.kill()
            tar.wait()
            raise BackupError(f"extracting took longer than {deadline_s:g} s", folder) from None
        if code != 0:
            said.seek(0)
            raise BackupError(f"tar could not extract everything: {command.last_words(said.read())}", folder)
