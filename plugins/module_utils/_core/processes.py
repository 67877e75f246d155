# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who has a file open."""

from __future__ import annotations

import os
from typing import Dict, Iterable, Iterator, List, NamedTuple, Tuple


class Holder(NamedTuple):
    """A process that has a file open."""

    pid: int
    command: str
    """The short name of the program (proc_pid_comm(5)): the whole command line may carry a secret."""
    path: str
    """The first of the files that it was found to have open."""

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}) has {self.path} open"


def holders(paths: Iterable[str] = (), below: Iterable[str] = ()) -> List[Holder]:
    """Return the other processes that have one of the files open, ordered by pid.

    Files are told by device and inode, so another name, a bind mount or a container does not hide them.

    :param paths: files; those that do not exist are held by nobody
    :param below: folders; every file and folder in them counts. Links in them are not followed
    A process of another user is only seen by root (proc(5), ptrace access mode); deleted files are not seen.
    """
    wanted: Dict[Tuple[int, int], str] = {}
    for path in paths:
        try:
            state = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        wanted[(state.st_dev, state.st_ino)] = path
    for folder in below:
        for path in _walk(folder):
            try:
                state = os.lstat(path)
            except FileNotFoundError:
                continue
            wanted[(state.st_dev, state.st_ino)] = path
    found: List[Holder] = []
    if not wanted:
        return found
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid == os.getpid():
            continue
        held = _first_held(pid, wanted)
        if held:
            found.append(Holder(pid, _command(pid), held))
    return found


def _walk(folder: str) -> Iterator[str]:
    yield folder
    for parent, folders, files in os.walk(folder, onerror=_raise):
        for name in folders + files:
            yield os.path.join(parent, name)


def _raise(error: OSError) -> None:
    # os.walk passes over what it can't read, which would hide a holder.
    if not isinstance(error, FileNotFoundError):
        raise error


def _first_held(pid: int, wanted: Dict[Tuple[int, int], str]) -> str:
    table = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(table)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # The process is gone, or belongs to somebody else.
        return ""
    for descriptor in descriptors:
        try:
            state = os.stat(f"{table}/{descriptor}")
        except OSError:
            # Closed meanwhile, or not a file at all.
            continue
        path = wanted.get((state.st_dev, state.st_ino))
        if path is not None:
            return path
    return ""


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as stream:
            return stream.read().decode("utf-8", errors="replace").rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return "?"
