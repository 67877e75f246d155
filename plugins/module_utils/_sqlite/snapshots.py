# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of one SQLite database in a folder: ``<id>.sqlite`` is the image and ``<id>.json`` describes it."""

from __future__ import annotations

import grp
import os
import pwd
from typing import Any, Dict, List

from .._core import snapshots
from .._core.clock import Clock
from .._core.operation import Check
from .._core.snapshots import Snapshot
from .database import SqliteDatabase, is_empty_or_absent
from .errors import SqliteError


def default_name(path: str) -> str:
    """Return the name of the snapshots of a database for which none was given."""
    return snapshots.default_name(os.path.basename(path))


def require_path(path: str, option: str) -> None:
    """Refuse a path that can't be relied on or can't be shown. Raises :class:`SqliteError`."""
    snapshots.require_path(path, option, SqliteError)


class SnapshotDirectory(snapshots.SnapshotDirectory):
    """The snapshots of one name."""

    ending = ".sqlite"
    required = ("bytes", "sha256", "rows", "schema", "foreign_key_violations")
    error = SqliteError

    def summary(self, snapshot: Snapshot) -> Dict[str, Any]:
        """Return what a result shows of a snapshot."""
        facts = snapshot.description["facts"]
        shown = {key: facts[key] for key in ("rows", "journal_mode", "foreign_key_violations", "notes")}
        return {**super().summary(snapshot), **shown}


class TakeSnapshot(snapshots.TakeSnapshot):
    """Take a snapshot of a SQLite database."""

    advice = "Check the database with PRAGMA integrity_check"

    def __init__(
        self, database: SqliteDatabase, directory: SnapshotDirectory, keep: int, force: bool, lock_wait_s: float, clock: Clock
    ) -> None:
        super().__init__(database, directory, keep, force, lock_wait_s, clock)
        self.database = database

    @property
    def where(self) -> str:
        """Return the path of the main file."""
        return self.database.path

    def origin(self, source: Dict[str, Any]) -> str:
        """Return the path of the file that a snapshot is of."""
        return str(source["path"])

    def source(self) -> Dict[str, Any]:
        """Return path, owner, group, uid, gid and mode of the main file."""
        return _source(self.database.path)

    def take(self, identity: str) -> Dict[str, Any]:
        """Write an image and flush it to the disk."""
        return self.database.image(self.directory.unfinished(identity))

    def check(self, identity: str, facts: Dict[str, Any]) -> List[Check]:
        """Compare the image with its facts, by hash and by SQLite's own checks."""
        return self.database.check_image(self.directory.unfinished(identity), facts)


def _source(path: str) -> Dict[str, Any]:
    state = os.stat(path)
    try:
        owner = pwd.getpwuid(state.st_uid).pw_name
    except KeyError:
        owner = ""
    try:
        group = grp.getgrgid(state.st_gid).gr_name
    except KeyError:
        group = ""
    return {
        "path": path,
        "owner": owner,
        "group": group,
        "uid": state.st_uid,
        "gid": state.st_gid,
        "mode": f"{state.st_mode & 0o7777:04o}",
    }


def is_settled(database: SqliteDatabase) -> bool:
    """True where the main file alone is the whole database: nothing waits in a ``-wal`` or a rollback journal."""
    return is_empty_or_absent(database.path + "-wal") and is_empty_or_absent(database.path + "-journal")
