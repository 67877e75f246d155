# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are either the old ones or the new ones, never half."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import stat
from contextlib import contextmanager
from typing import IO, Any, Iterator

from .errors import OpskitError

AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
NO_FLAGS = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""What renameat2(2) says where a file system, or the kernel, knows no flags."""


def fsync_dir(path: str) -> None:
    """Make the names in a folder durable (fsync(2), notes)."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: str) -> None:
    """Make the bytes of a file durable."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


@contextmanager
def publish(path: str, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """Write a file beside its name and give it the name once it is whole and on disk.

    The previous file is never opened for writing; when the block fails, it stays and the new one is removed.
    """
    temporary = f"{path}.tmp.{os.getpid()}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            # The mode given to open(2) is cut by the umask, and an existing file keeps its own.
            os.fchmod(stream.fileno(), mode)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    fsync_dir(os.path.dirname(path) or ".")


def publish_json(path: str, value: Any, mode: int = 0o600) -> None:
    """Publish a value as JSON with sorted keys and a newline at the end."""
    with publish(path, mode) as stream:
        stream.write(json.dumps(value, indent=1, sort_keys=True).encode("utf-8") + b"\n")


def read_json(path: str) -> Any:
    """Read a JSON file. Raises :class:`OpskitError` when it is not JSON, :class:`OSError` when it can't be read."""
    with open(path, "rb") as stream:
        data = stream.read()
    try:
        return json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise OpskitError(f"this is not the JSON that was written here ({error})", path) from None


def make_dir(path: str, mode: int = 0o700) -> None:
    """Make a folder and whatever is missing above it, durable; one that exists is left as it is."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path.rstrip("/"))
    if parent and parent != path:
        make_dir(parent, 0o755)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if os.path.isdir(path):
            return  # Another thread or process was first.
        raise OpskitError("a folder is needed here, but something else has this name", path) from None
    fsync_dir(parent or ".")


def exchange(one: str, other: str) -> None:
    """Swap two names atomically: renameat2(2) with RENAME_EXCHANGE. Raises :class:`OSError`."""
    _renameat2(one, other, RENAME_EXCHANGE)


def move_new(source: str, target: str) -> None:
    """Rename to a name that must be free: renameat2(2) with RENAME_NOREPLACE. Raises :class:`OSError`.

    Where the file system can't promise that, the name is looked at first.
    """
    try:
        _renameat2(source, target, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in NO_FLAGS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target) from None
        os.rename(source, target)


def _renameat2(source: str, target: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def sync_filesystem(path: str) -> None:
    """Flush everything that was written to the file system of a folder: syncfs(2). Raises :class:`OSError`."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(handle)


def remove_tree(path: str) -> None:
    """Remove a file or a whole folder, also where folders are read-only; nothing there is fine. Links are not followed."""
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(state.st_mode):
        os.unlink(path)
        return
    if state.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(path, stat.S_IRWXU)
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(path)


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        for chunk in iter(lambda: stream.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def free_bytes(path: str) -> int:
    """Return the bytes that this process may still write on the file system of a path or of its nearest existing parent."""
    while True:
        try:
            state = os.statvfs(path)
            break
        except (FileNotFoundError, NotADirectoryError):
            path = os.path.dirname(path.rstrip("/")) or "/"
    # Root may use the blocks that are reserved for it.
    blocks = state.f_bfree if os.geteuid() == 0 else state.f_bavail
    return blocks * state.f_frsize


def human_size(count: int) -> str:
    """Write a number of bytes for people: ``12.3 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def is_out_of_space(error: OSError) -> bool:
    """True for a full disk or quota."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
