# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting a snapshot in the place of a SQLite database.

A main file that meets the ``-wal`` of its predecessor is silently turned back into it, and ``integrity_check`` finds
nothing wrong with that. So all four files of the old database leave together before the new one comes.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import stat
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from .._core.clock import Clock
from .._core.files import free_bytes, fsync_dir, hash_file, human_size, move_new, publish_json, read_json
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .._core.processes import Holder, holders
from .._core.snapshots import Snapshot
from .database import SqliteDatabase
from .errors import SqliteError
from .snapshots import SnapshotDirectory, is_settled

_BLOCK = 1024 * 1024
# The main file leaves first: a database without its -wal would look whole and lack the last rows.
_ORDER = ("", "-wal", "-journal", "-shm")


class Ownership(NamedTuple):
    """Who may do what with the database file."""

    uid: int
    gid: int
    mode: int
    """Permission bits."""


class RestoreSnapshot(Operation):
    """Put a snapshot in the place of the database; the old one is kept beside it.

    Interrupted anywhere, the next run completes it, or goes back where the staged file is lost: once it is staged,
    a journal in the folder of the snapshots says what is being put where.
    """

    def __init__(self, database: SqliteDatabase, directory: SnapshotDirectory, snapshot: str, lock_wait_s: float, clock: Clock) -> None:
        self.database = database
        self.directory = directory
        self.wanted = snapshot
        self.lock_wait_s = lock_wait_s
        self.clock = clock
        folder, name = os.path.split(database.path)
        self.staged = os.path.join(folder, f".{name}.restoring")
        self.snapshot: Optional[Snapshot] = None
        self.ownership: Optional[Ownership] = None
        self.reason = ""
        self.aside = ""
        self.held_by: List[Holder] = []

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the folder of the snapshots, and remove what was staged but never announced."""
        if not os.path.isdir(self.directory.path):
            raise SqliteError("there is no such folder of snapshots", self.directory.path, "Correct the directory")
        with self.directory.locked(self.lock_wait_s):
            if self._journal() is None and os.path.lexists(self.staged):
                os.unlink(self.staged)
            yield

    def plan(self) -> Plan:
        """Choose the snapshot, prove that it is good, and see whether the database is it already."""
        snapshot = self.snapshot = self.directory.choose(self.wanted)
        self.held_by = holders(self.database.files())
        plan = Plan("none")
        needed = not self._is_in_place(snapshot)
        self.reason = f"{snapshot.id} is not in place" if needed else f"the database is the snapshot {snapshot.id} already"
        journal = self._journal()
        if journal is not None:
            self.reason = f"a restore of {journal['snapshot']} was interrupted"
            plan.action = "restored"
            if self._staged_is_whole(journal):
                plan.add("complete restore", self.database.path, self.reason)
                needed = journal["sha256"] != snapshot.description["facts"]["sha256"]
            elif self._is_installed(journal):
                plan.add("complete restore", self.database.path, self.reason)
            else:
                plan.add("roll back restore", self.database.path, f"a restore of {journal['snapshot']} lost its staged file")
                needed = True
        if needed:
            self._require_good(snapshot)
            self.ownership = self._ownership(snapshot)
            self._require_room(snapshot)
            plan.action = "restored"
            plan.add("stage snapshot", self.database.path, f"{snapshot.id} is not in place", snapshot.description["facts"]["bytes"])
            if journal is not None or any(os.path.lexists(path) for path in self.database.files()):
                plan.add("set aside", self.database.path, "the database that is there is kept")
            plan.add("put in place", self.database.path, f"restore of {snapshot.id}")
        return plan

    def apply(self, plan: Plan) -> None:
        """Carry it out; nothing is touched while another process has the database open."""
        self._require_free()
        journal = self._journal()
        steps = {step.step for step in plan}
        if journal is not None and "complete restore" in steps:
            self._complete(journal)
        if journal is not None and "roll back restore" in steps:
            self._roll_back(journal)
        if "put in place" in steps:
            self._restore()

    def verify(self) -> List[Check]:
        """Look at the database in its place, by hash and by SQLite's own checks."""
        snapshot = self._chosen()
        alone = is_settled(self.database)
        checks = [Check("no -wal or -journal", alone, "none" if alone else "one of the old database is there")]
        if alone:
            checks.extend(self.database.check_image(self.database.path, snapshot.description["facts"]))
        if self.ownership:
            state = os.stat(self.database.path)
            found = Ownership(state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode))
            checks.append(Check("ownership", found == self.ownership, f"uid {found.uid}, gid {found.gid}, mode {found.mode:04o}"))
        if self.aside:
            checks.append(Check("old database kept", os.path.isdir(self.aside), self.aside))
        return checks

    def result(self) -> Dict[str, Any]:
        """Return what was put in place and where the old database is."""
        snapshot = self._chosen()
        return {
            "reason": self.reason,
            "snapshot": self.directory.summary(snapshot),
            "aside": self.aside,
            "holders": [holder._asdict() for holder in self.held_by],
        }

    def _chosen(self) -> Snapshot:
        if self.snapshot is None:
            raise RuntimeError("plan() comes first")
        return self.snapshot

    def _is_in_place(self, snapshot: Snapshot) -> bool:
        path = self.database.path
        facts = snapshot.description["facts"]
        if not os.path.isfile(path) or os.stat(path).st_size != facts["bytes"]:
            return False
        return is_settled(self.database) and hash_file(path) == facts["sha256"]

    def _require_good(self, snapshot: Snapshot) -> None:
        bad = [check for check in self.database.check_image(snapshot.path, snapshot.description["facts"]) if not check.ok]
        if bad:
            text = "; ".join(f"{check.check}: {check.detail}" for check in bad)
            raise SqliteError(f"the snapshot is damaged ({text})", snapshot.path, "Choose another one; nothing was touched")

    def _ownership(self, snapshot: Snapshot) -> Ownership:
        """Return those of the database that is there, else those that it had at the time of the snapshot."""
        path = self.database.path
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            raise SqliteError("the folder of the database is missing", folder, "Make it, with the owner that it had")
        if os.path.lexists(path):
            state = os.lstat(path)
            if not stat.S_ISREG(state.st_mode):
                raise SqliteError("this is not a regular file", path, "Move it away or correct the path")
            wanted = Ownership(state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode))
        else:
            source = snapshot.description["source"]
            wanted = Ownership(_uid(source), _gid(source), int(source["mode"], 8))
        if os.geteuid() != 0 and (wanted.uid != os.geteuid() or wanted.gid not in [os.getegid(), *os.getgroups()]):
            raise SqliteError(
                f"only root can give the database its owner back (uid {wanted.uid}, gid {wanted.gid})", path, "Run this as root"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise SqliteError("files can't be made or moved in this folder", folder, "Run this as its owner or as root")
        return wanted

    def _require_room(self, snapshot: Snapshot) -> None:
        size = snapshot.description["facts"]["bytes"]
        free = free_bytes(os.path.dirname(self.database.path))
        if free < size:
            raise SqliteError(
                f"{human_size(size)} are needed and {human_size(free)} are free",
                os.path.dirname(self.database.path),
                "Make room; nothing was touched",
            )

    def _require_free(self) -> None:
        self.held_by = holders(self.database.files())
        if self.held_by:
            raise SqliteError(
                "the database is in use: " + "; ".join(str(holder) for holder in self.held_by[:5]),
                self.database.path,
                "Stop the application and run this again; nothing was touched",
            )

    def _restore(self) -> None:
        snapshot = self._chosen()
        facts = snapshot.description["facts"]
        self._stage(snapshot)
        suffix = f"{self.clock.now().strftime('%Y%m%dT%H%M%SZ')}-{self.clock.token()}"
        try:
            # Staging takes its time, and the application may have come back meanwhile.
            self._require_free()
        except SqliteError:
            os.unlink(self.staged)
            raise
        journal = {
            "version": 1,
            "snapshot": snapshot.id,
            "path": self.database.path,
            "aside": f"{self.database.path}.before-{suffix}",
            "inode": os.stat(self.staged).st_ino,
            "sha256": facts["sha256"],
        }
        publish_json(self.directory.restore_journal, journal)
        self._complete(journal)

    def _stage(self, snapshot: Snapshot) -> None:
        ownership = self.ownership
        if ownership is None:
            raise RuntimeError("plan() comes first")
        digest = hashlib.sha256()
        handle = os.open(self.staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(handle, "wb") as target, open(snapshot.path, "rb") as source:
                for block in iter(lambda: source.read(_BLOCK), b""):
                    digest.update(block)
                    target.write(block)
                os.fchown(target.fileno(), ownership.uid, ownership.gid)
                # After the owner: chown(2) clears the set-id bits.
                os.fchmod(target.fileno(), ownership.mode)
                if os.path.lexists(self.database.path):
                    for name in os.listxattr(self.database.path):
                        os.setxattr(target.fileno(), name, os.getxattr(self.database.path, name))
                target.flush()
                os.fsync(target.fileno())
            if digest.hexdigest() != snapshot.description["facts"]["sha256"]:
                raise SqliteError("the snapshot was read differently the second time", snapshot.path, "Look for a failing disk")
        except BaseException:
            os.unlink(self.staged)
            raise

    def _journal(self) -> Optional[Dict[str, Any]]:
        path = self.directory.restore_journal
        if not os.path.lexists(path):
            return None
        journal: Dict[str, Any] = read_json(path)
        if journal.get("version") != 1 or journal.get("path") != self.database.path:
            raise SqliteError(
                f"an interrupted restore of {journal.get('path')} is recorded here", path, "Finish that one first, with its own path"
            )
        return journal

    def _staged_is_whole(self, journal: Dict[str, Any]) -> bool:
        return (
            os.path.isfile(self.staged) and os.stat(self.staged).st_ino == journal["inode"] and hash_file(self.staged) == journal["sha256"]
        )

    def _is_installed(self, journal: Dict[str, Any]) -> bool:
        path = self.database.path
        return not os.path.lexists(self.staged) and os.path.isfile(path) and os.stat(path).st_ino == journal["inode"]

    def _complete(self, journal: Dict[str, Any]) -> None:
        """From any state after the journal was written to the new database."""
        path, aside = self.database.path, journal["aside"]
        folder, name = os.path.split(path)
        if os.path.lexists(self.staged):
            for suffix in _ORDER:
                if os.path.lexists(path + suffix):
                    if not os.path.isdir(aside):
                        os.mkdir(aside, 0o700)
                    move_new(path + suffix, _unused(os.path.join(aside, name), suffix))
                    fsync_dir(aside)
                    fsync_dir(folder)
            move_new(self.staged, path)
            fsync_dir(folder)
        self._close_journal(aside)
        self.aside = aside if os.path.isdir(aside) else ""

    def _roll_back(self, journal: Dict[str, Any]) -> None:
        """Put the old database back where the staged file was lost."""
        path, aside = self.database.path, journal["aside"]
        folder, name = os.path.split(path)
        for suffix in reversed(_ORDER):
            kept = os.path.join(aside, name + suffix)
            if not os.path.lexists(kept):
                continue
            if os.path.lexists(path + suffix):
                raise SqliteError("a new file has come to where the old database belongs", path + suffix, f"Choose between it and {kept}")
            move_new(kept, path + suffix)
            fsync_dir(folder)
        if os.path.lexists(self.staged):
            os.unlink(self.staged)
        self._close_journal(aside)

    def _close_journal(self, aside: str) -> None:
        if os.path.isdir(aside) and not os.listdir(aside):
            os.rmdir(aside)
        os.unlink(self.directory.restore_journal)
        fsync_dir(self.directory.path)


def _unused(stem: str, suffix: str) -> str:
    """Return a free name; one is taken when something made a new database during an interruption."""
    path = stem + suffix
    number = 0
    while os.path.lexists(path):
        number += 1
        path = f"{stem}.{number}{suffix}"
    return path


def _uid(source: Dict[str, Any]) -> int:
    try:
        return pwd.getpwnam(source["owner"]).pw_uid
    except KeyError:
        return int(source["uid"])


def _gid(source: Dict[str, Any]) -> int:
    try:
        return grp.getgrnam(source["group"]).gr_gid
    except KeyError:
        return int(source["gid"])
