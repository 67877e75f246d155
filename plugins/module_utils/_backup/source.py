# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is saved: the application's paths, looked at without opening a file."""

from __future__ import annotations

import os
import re
import stat
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .._core.protocols import DatabaseSource
from .errors import BackupError

STAGE_FOLDER = ".opskit-restore"
"""Name of the folder beside a restored path in which its copy is staged and its old state is kept; never saved."""

ENVIRONMENT = "environment"
"""The name of the saved path that is the application's environment file."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
"""Names of paths and databases become parts of file names."""

SQLITE_MAGIC = b"SQLite format 3\0"


class Entry(NamedTuple):
    """One path as lstat(2) saw it."""

    path: str
    """Relative to the root's base; bytes that are not UTF-8 are surrogates (PEP 383)."""
    type: str
    """``file``, ``dir`` or ``symlink``."""
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int
    links: int

    def same_file(self, other: Entry) -> bool:
        """True when nothing was done to the file between the two looks."""
        return self[2:10] == other[2:10]


class Root(NamedTuple):
    """One of the saved paths."""

    name: str
    """The name it has in a set: ``data``."""
    path: str
    """Absolute, links resolved."""
    is_file: bool

    @property
    def base(self) -> str:
        """The folder that the entries' paths are relative to."""
        return os.path.dirname(self.path) if self.is_file else self.path


class Scan(NamedTuple):
    """What was found below one root."""

    root: Root
    saved: List[Entry]
    logs: List[Entry]
    skipped: List[str]
    """Absolute paths of sockets, FIFOs and devices, which a set can't hold."""
    undeclared: List[str]
    """Absolute paths of SQLite databases that the description does not name."""


class Source:
    """An application as the store sees it.

    :param paths: absolute path by name; each is a folder or a file
    :param projects: the folder with one folder a project
    :param logs: paths that are saved but never count as a change
    :param volatile: paths that are never saved
    :param databases: saved as images; their own files are not saved as files
    """

    def __init__(
        self,
        paths: Dict[str, str],
        projects: Optional[str] = None,
        logs: Sequence[str] = (),
        volatile: Sequence[str] = (),
        databases: Sequence[DatabaseSource] = (),
    ) -> None:
        for path in [*paths.values(), *logs, *volatile, *filter(None, [projects])]:
            require_absolute(path)
        self.targets = {name: os.path.realpath(path) for name, path in paths.items()}
        self.projects = os.path.realpath(projects) if projects else None
        self.logs = [os.path.realpath(path) for path in logs]
        self.volatile = [os.path.realpath(path) for path in volatile]
        self.databases = list(databases)
        self._check_names()
        self._check_places()

    def _check_names(self) -> None:
        if not self.targets:
            raise BackupError("no path is named that could be saved", todo="Name at least one under paths")
        for name in [*self.targets, *(database.name for database in self.databases)]:
            if not NAME.match(name):
                raise BackupError(
                    f"{name!r} is no name for a path or database",
                    todo="Use letters, digits, dots, hyphens and underscores, with a letter or digit first",
                )
        seen: Dict[str, str] = {}
        for name, path in self.targets.items():
            if path in seen:
                raise BackupError(f"{seen[path]} and {name} are the same path", path, "Name it once")
            seen[path] = name
        names = [database.name for database in self.databases]
        for name in set(names):
            if names.count(name) > 1:
                raise BackupError(f"two databases are named {name}", todo="Give each its own name")

    def _check_places(self) -> None:
        """Refuse what could be saved but not restored."""
        files: Dict[str, str] = {}
        for database in self.databases:
            if not database.files():
                continue
            path = database.files()[0]
            if path in files:
                raise BackupError(f"{files[path]} and {database.name} are the same database", path, "Name it once")
            files[path] = database.name
            for volatile in self.volatile:
                if path == volatile or is_below(path, volatile):
                    raise BackupError(f"the database {database.name} lies in a volatile path", path, "Take that out of volatile")
        for name, path in self.targets.items():
            if path in files:
                raise BackupError(f"{name} is a database", path, "Name it under databases alone")
            for kind, others in (("logs", self.logs), ("volatile", self.volatile)):
                if any(path == other or is_below(path, other) for other in others):
                    raise BackupError(f"{name} lies in a path that is named under {kind} too", path, f"Take it out of {kind}")

    def outermost(self) -> Dict[str, str]:
        """Return the paths that do not lie inside another one; those inside are saved with the outer one."""
        return {
            name: path
            for name, path in self.targets.items()
            if not any(is_below(path, other) for other in self.targets.values() if other != path)
        }

    def roots(self) -> List[Root]:
        """Return what is to be saved, each path there and of a kind that can be saved. Raises :class:`BackupError`."""
        roots = []
        outermost = self.outermost()
        for name, path in sorted(self.targets.items()):
            try:
                mode = os.stat(path).st_mode
            except FileNotFoundError:
                raise BackupError(
                    f"{name} is not there", path, "Mend the description, or bring the path back from an earlier set"
                ) from None
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise BackupError(f"{name} is neither a folder nor a file", path, "Mend the description")
            if stat.S_ISREG(mode) and _is_sqlite(path, os.stat(path)):
                raise BackupError(f"{name} is an SQLite database", path, "Name it under databases instead")
            if name in outermost:
                roots.append(Root(name, path, stat.S_ISREG(mode)))
        return roots

    def is_log(self, path: str) -> bool:
        """True for what lies in the logs."""
        return any(path == log or is_below(path, log) for log in self.logs)

    def project_of(self, path: str) -> Optional[str]:
        """Return the name of the project that an absolute path belongs to."""
        if self.projects is None or not is_below(path, self.projects):
            return None
        head, dash, _tail = path[len(self.projects.rstrip("/")) + 1 :].partition("/")
        return head if dash else None

    def scan(self, root: Root, known: Sequence[str] = ()) -> Scan:
        """Walk one root. Reads names and metadata, and the first 16 bytes of what could be an undeclared database.

        :param known: absolute paths of undeclared databases that are saved as images already
        Raises :class:`BackupError` for a folder that can't be read.
        """
        skip = set(self.volatile)
        for database in self.databases:
            skip.update(database.files())
        for path in known:
            skip.update(path + suffix for suffix in ("", "-wal", "-shm", "-journal"))
        found = Scan(root, [], [], [], [])
        if root.is_file:
            _add(found.saved, os.path.basename(root.path), os.lstat(root.path))
            return found
        _add(found.saved, ".", os.stat(root.path))
        folders: List[Tuple[str, str, bool]] = [(root.path, "", False)]
        while folders:
            folder, prefix, in_logs = folders.pop()
            for name, path, state in _list(folder):
                if path in skip or name == STAGE_FOLDER:
                    continue
                log = in_logs or (bool(self.logs) and path in self.logs)
                entries = found.logs if log else found.saved
                if not _add(entries, prefix + name, state):
                    found.skipped.append(path)
                elif stat.S_ISDIR(state.st_mode):
                    folders.append((path, f"{prefix}{name}/", log))
                elif not log and _is_sqlite(path, state):
                    found.undeclared.append(path)
        # Parents before children, siblings in a stable order: what a set lists does not depend on the disk's order.
        found.saved.sort()
        found.logs.sort()
        return found


def require_absolute(path: str) -> None:
    """Raise :class:`BackupError` for a path that is relative, or that no path can be."""
    if not os.path.isabs(path) or "\0" in path:
        raise BackupError("this path is not absolute", repr(path)[1:-1], "Write it from the root directory on")


def is_below(path: str, folder: str) -> bool:
    """True when a path lies inside a folder (and is not the folder itself). Both absolute and resolved."""
    return path.startswith(folder.rstrip("/") + "/")


def look(base: str, path: str) -> Optional[Entry]:
    """Return the entry of one path as it is now, None when it is gone or has become something a set can't hold."""
    entries: List[Entry] = []
    try:
        state = os.lstat(os.path.join(base, path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    _add(entries, path, state)
    return entries[0] if entries else None


def _list(folder: str) -> Iterator[Tuple[str, str, os.stat_result]]:
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                try:
                    yield item.name, item.path, item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
    except PermissionError:
        raise BackupError("this folder can't be read", folder, "Run as a user who may read it (become)") from None
    except (FileNotFoundError, NotADirectoryError):
        # It went while its parent was read; the next look at its parent does not see it.
        return


_TYPES = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink"}


def _add(entries: List[Entry], path: str, state: os.stat_result) -> bool:
    kind = _TYPES.get(stat.S_IFMT(state.st_mode))
    if kind is None:
        return False
    entries.append(
        Entry(
            path,
            kind,
            state.st_size if kind == "file" else 0,
            stat.S_IMODE(state.st_mode),
            state.st_uid,
            state.st_gid,
            state.st_mtime_ns,
            state.st_ctime_ns,
            state.st_ino,
            state.st_dev,
            state.st_nlink,
        )
    )
    return True


def _is_sqlite(path: str, state: os.stat_result) -> bool:
    # A database is a whole number of pages of at least 512 bytes (sqlite.org/fileformat.html, 1.2), so few files are opened.
    if not stat.S_ISREG(state.st_mode) or state.st_size == 0 or state.st_size % 512:
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read(16) == SQLITE_MAGIC
    except OSError:
        # Unreadable or gone: reading it for the set finds that out and says so.
        return False
