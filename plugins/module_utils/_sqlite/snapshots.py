# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of one SQLite database in a folder.

``<id>.sqlite`` is the image and ``<id>.json``, published last, what is known of it: a snapshot exists when its JSON
does. An id is ``<name>-<UTC time>-<token>``; several names may share a folder.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

from .._core.clock import Clock, rfc3339
from .._core.errors import OpskitError
from .._core.files import free_bytes, fsync_dir, hash_file, human_size, make_dir, move_new, publish_json, read_json
from .._core.lock import flock
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .database import SqliteDatabase, is_empty_or_absent
from .errors import SqliteError

VERSION = 1
_ID_TAIL = r"-\d{8}T\d{6}Z-[0-9a-f]{4}"
_FACTS = ("bytes", "sha256", "rows", "schema", "foreign_key_violations")


def default_name(path: str) -> str:
    """Return the name of the snapshots of a database for which none was given."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(path))[:100].lstrip(".-") or "database"


def require_path(path: str, option: str) -> None:
    """Refuse a path that can't be relied on or can't be shown. Raises :class:`SqliteError`."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise SqliteError(f"the {option} holds bytes that are not UTF-8", ascii(path), "Give it another name") from None
    if not os.path.isabs(path) or "\0" in path:
        raise SqliteError(f"the {option} is not an absolute path", ascii(path), "Write it from the root: /…")


class Snapshot(NamedTuple):
    """One snapshot, as its JSON describes it."""

    id: str
    path: str
    """The image."""
    seq: Optional[int]
    """Counts up with each snapshot of this name, whatever the clock does; None where the JSON can't be read."""
    damage: str
    """Why it can't be relied on, found by a cheap look; empty otherwise."""
    description: Dict[str, Any]
    """``facts``, ``fingerprint`` and ``source`` (path, owner, group, uid, gid, mode) of the database at that time."""

    def summary(self) -> Dict[str, Any]:
        """Return what a result shows of it."""
        facts = self.description["facts"]
        shown = {key: facts[key] for key in (*_FACTS[:3], "journal_mode", "foreign_key_violations", "notes")}
        return {"id": self.id, "path": self.path, "time": self.description["time"], **shown}


def surplus(snapshots: Sequence[Snapshot], keep: int) -> List[Snapshot]:
    """Return those that are older than the newest ``keep`` good ones, in the order given.

    Nothing is surplus as long as there are fewer good ones than that. What can't be read is never surplus.
    """
    good = sorted((one.seq for one in snapshots if one.seq is not None and not one.damage), reverse=True)
    if keep > len(good):
        return []
    return [one for one in snapshots if one.seq is not None and (keep == 0 or one.seq < good[keep - 1])]


class SnapshotDirectory:
    """The snapshots of one name."""

    def __init__(self, directory: str, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise SqliteError(f"{name!r} can't be the name of snapshots", todo="Use letters, digits, '.', '_' and '-'")
        self.path = directory
        self.name = name
        self.restore_journal = os.path.join(directory, f".{name}.restore.json")

    def snapshots(self) -> List[Snapshot]:
        """Return all of them, the oldest first and those that can't be read before these."""
        found = [self._read(entry[: -len(".json")]) for entry in self._entries(r"\.json")]
        return sorted(found, key=lambda one: (one.seq or 0, one.id))

    def orphans(self) -> List[str]:
        """Return the images without a description. They are left to the operator: one may be good."""
        described = {one.id for one in self.snapshots()}
        images = self._entries(r"\.sqlite")
        return [os.path.join(self.path, name) for name in images if name[: -len(".sqlite")] not in described]

    @contextmanager
    def locked(self, wait_s: float) -> Iterator[None]:
        """Keep other runs out, and remove what a run that was killed left unfinished."""
        with flock(os.path.join(self.path, f".{self.name}.lock"), wait_s=wait_s):
            name = re.escape(self.name)
            unfinished = rf"\.{name}{_ID_TAIL}\.tmp.*|{name}{_ID_TAIL}\.json\.tmp\.\d+|\.{name}\.restore\.json\.tmp\.\d+"
            for entry in os.listdir(self.path):
                if re.fullmatch(unfinished, entry):
                    os.unlink(os.path.join(self.path, entry))
            yield

    def new_id(self, moment: datetime, token: str) -> str:
        """Return the id of a snapshot that is taken at a moment in UTC."""
        return f"{self.name}-{moment.strftime('%Y%m%dT%H%M%SZ')}-{token}"

    def unfinished(self, identity: str) -> str:
        """Return the path of an image that is not published yet, or not any more."""
        return os.path.join(self.path, f".{identity}.tmp")

    def publish(self, identity: str, description: Dict[str, Any]) -> None:
        """Give the unfinished image its name, then its description."""
        move_new(self.unfinished(identity), os.path.join(self.path, f"{identity}.sqlite"))
        fsync_dir(self.path)
        publish_json(os.path.join(self.path, f"{identity}.json"), description)

    def mark_damaged(self, snapshot: Snapshot) -> None:
        """Record that an image was found to hold other bytes than were stored; a cheap look would not see it."""
        publish_json(os.path.join(self.path, f"{snapshot.id}.json"), {**snapshot.description, "damage": snapshot.damage})

    def delete(self, snapshot: Snapshot) -> None:
        """Remove a snapshot. A kill between leaves a description without an image, which is surplus next time."""
        aside = self.unfinished(snapshot.id)
        if os.path.lexists(snapshot.path):
            os.rename(snapshot.path, aside)
        os.unlink(os.path.join(self.path, f"{snapshot.id}.json"))
        if os.path.lexists(aside):
            os.unlink(aside)
        fsync_dir(self.path)

    def _entries(self, ending: str) -> List[str]:
        pattern = re.compile(re.escape(self.name) + _ID_TAIL + ending)
        try:
            return sorted(entry for entry in os.listdir(self.path) if pattern.fullmatch(entry))
        except FileNotFoundError:
            return []

    def _read(self, identity: str) -> Snapshot:
        path = os.path.join(self.path, f"{identity}.sqlite")
        try:
            description = read_json(os.path.join(self.path, f"{identity}.json"))
            version = description["version"]
            if version != VERSION:
                return Snapshot(identity, path, None, f"its description has the version {version!r}", {})
            seq, size = int(description["seq"]), int(description["facts"]["bytes"])
            missing = [key for key in _FACTS if key not in description["facts"]]
            if missing or not {"fingerprint", "source", "time"} <= set(description):
                return Snapshot(identity, path, None, "its description is not complete", {})
        except (OpskitError, KeyError, TypeError, ValueError) as error:
            return Snapshot(identity, path, None, f"its description can't be read ({error})", {})
        damage = str(description.get("damage", ""))
        if not os.path.isfile(path):
            damage = "its image is missing"
        elif os.stat(path).st_size != size:
            damage = f"its image has {os.stat(path).st_size} bytes instead of {size}"
        return Snapshot(identity, path, seq, damage, description)


class TakeSnapshot(Operation):
    """Take a snapshot unless the newest one still shows the database as it is, and remove the surplus."""

    def __init__(
        self, database: SqliteDatabase, directory: SnapshotDirectory, keep: int, force: bool, lock_wait_s: float, clock: Clock
    ) -> None:
        if keep < 1:
            raise SqliteError(f"keep is {keep}", todo="Keep at least one snapshot")
        self.database = database
        self.directory = directory
        self.keep = keep
        self.force = force
        self.lock_wait_s = lock_wait_s
        self.clock = clock
        self.reason = ""
        self.fingerprint = ""
        self.taken = ""
        self.checks: List[Check] = []
        self.existing: List[Snapshot] = []
        self.deleted: List[Snapshot] = []
        self.damaged: Optional[Snapshot] = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Make the folder and lock it, but not for a database that is not there."""
        self.database.require()
        make_dir(self.directory.path)
        with self.directory.locked(self.lock_wait_s):
            yield

    def plan(self) -> Plan:
        """Decide whether a new one is needed and which ones go."""
        self.database.require()
        if os.path.lexists(self.directory.restore_journal):
            raise SqliteError(
                "a restore of this database was interrupted",
                self.directory.restore_journal,
                "Finish it first: run the same module with state=restored again",
            )
        self.fingerprint = self.database.fingerprint()
        self.existing = self.directory.snapshots()
        self.reason = self._why_now()
        plan = Plan("none")
        if self.damaged:
            plan.add("mark damaged", self.damaged.id, self.damaged.damage)
        if self.reason:
            size = self.database.size()
            self._require_room(size)
            plan.action = "created"
            plan.add("take snapshot", "<new>", self.reason, size)
        self.deleted = surplus(self.existing, self.keep - 1 if self.reason else self.keep)
        for one in self.deleted:
            plan.add("delete snapshot", one.id, f"older than the newest {self.keep} good ones")
        if self.deleted and not self.reason:
            plan.action = "deleted"
        return plan

    def _why_now(self) -> str:
        readable = [one for one in self.existing if one.seq is not None]
        for one in readable:
            if one.description["source"]["path"] != self.database.path:
                raise SqliteError(
                    f"the snapshots named {self.directory.name} are of {one.description['source']['path']}",
                    self.directory.path,
                    "Give another name or another directory",
                )
        good = [one for one in readable if not one.damage]
        if not good:
            return "there is no snapshot yet" if not readable else "no snapshot is whole"
        newest = good[-1]
        if self.force:
            return "a new one was asked for"
        if newest.description["fingerprint"] != self.fingerprint:
            return "the database was written since the newest snapshot"
        if hash_file(newest.path) != newest.description["facts"]["sha256"]:
            # It is not one of the good ones from here on.
            self.damaged = newest._replace(damage="its image is not what was stored")
            self.existing[self.existing.index(newest)] = self.damaged
            return f"the newest snapshot {newest.id} is damaged"
        return ""

    def _require_room(self, size: int) -> None:
        free = free_bytes(self.directory.path)
        if free < size:
            raise SqliteError(
                f"{human_size(size)} are needed and {human_size(free)} are free",
                self.directory.path,
                "Make room or keep the snapshots elsewhere",
            )

    def apply(self, plan: Plan) -> None:
        """Take, check, publish; then delete. A failure leaves everything that was there."""
        for step in plan:
            if step.step == "mark damaged" and self.damaged:
                self.directory.mark_damaged(self.damaged)
            elif step.step == "take snapshot":
                self._take()
        for one in self.deleted:
            self.directory.delete(one)

    def _take(self) -> None:
        moment = self.clock.now()
        identity = self.directory.new_id(moment, self.clock.token())
        unfinished = self.directory.unfinished(identity)
        facts = self.database.image(unfinished)
        self.checks = self.database.check_image(unfinished, facts)
        bad = [f"{check.check}: {check.detail}" for check in self.checks if not check.ok]
        if bad:
            os.unlink(unfinished)
            raise SqliteError(
                f"the snapshot that was taken is not good ({'; '.join(bad)}) and was removed",
                self.database.path,
                "Check the database with PRAGMA integrity_check; earlier snapshots were all kept",
            )
        self.directory.publish(
            identity,
            {
                "version": VERSION,
                "seq": max([one.seq or 0 for one in self.existing], default=0) + 1,
                "time": rfc3339(moment),
                "source": _source(self.database.path),
                "fingerprint": self.fingerprint,
                "facts": facts,
            },
        )
        self.taken = identity

    def verify(self) -> List[Check]:
        """Read the folder anew."""
        there = {one.id: one.damage for one in self.directory.snapshots()}
        checks = list(self.checks)
        if self.taken:
            checks.append(Check("published", there.get(self.taken) == "", there.get(self.taken, "it is not there") or self.taken))
        left = [one.id for one in self.deleted if one.id in there]
        checks.append(Check("retention", not left, ", ".join(left) or f"{len(there)} kept"))
        return checks

    def result(self) -> Dict[str, Any]:
        """Return the newest good snapshot and what became of the others."""
        now = self.directory.snapshots()
        good = [one for one in now if not one.damage]
        # What the plan would still take has no summary yet.
        newest = good[-1].summary() if good and (self.taken or not self.reason) else {}
        return {
            "reason": self.reason or f"nothing was written since the snapshot {good[-1].id}",
            "snapshot": newest,
            "snapshots": [one.id for one in now],
            "deleted": [one.id for one in self.deleted],
            "damaged": [{"id": one.id, "damage": one.damage} for one in now if one.damage],
            "orphans": self.directory.orphans(),
        }


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
