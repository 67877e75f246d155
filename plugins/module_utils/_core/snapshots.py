# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots of one database in a folder, whatever the engine.

``<id><ending>`` is the image, files with other endings may belong to it, and ``<id>.json``, published last, is what is
known of it: a snapshot exists when its JSON does. An id is ``<name>-<UTC time>-<token>``; several names may share a folder.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Protocol, Sequence, Tuple, Type

from .clock import Clock, rfc3339
from .errors import OpskitError
from .files import free_bytes, fsync_dir, hash_file, human_size, make_dir, move_new, publish_json, read_json
from .lock import flock
from .operation import Check, Operation
from .plan import Plan

VERSION = 1
_ID_TAIL = r"-\d{8}T\d{6}Z-[0-9a-f]{4}"


def default_name(database: str) -> str:
    """Return the name of the snapshots of a database for which none was given."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", database)[:100].lstrip(".-") or "database"


def require_path(path: str, option: str, error: Type[OpskitError] = OpskitError) -> None:
    """Refuse a path that can't be relied on or can't be shown.

    :param error: what is raised
    """
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise error(f"the {option} holds bytes that are not UTF-8", ascii(path), "Give it another name") from None
    if not os.path.isabs(path) or "\0" in path:
        raise error(f"the {option} is not an absolute path", ascii(path), "Write it from the root: /…")


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
    """``facts``, ``fingerprint``, ``time`` and ``source`` (which database it was) at that time."""


def surplus(snapshots: Sequence[Snapshot], keep: int) -> List[Snapshot]:
    """Return those that are older than the newest ``keep`` good ones, in the order given.

    Nothing is surplus as long as there are fewer good ones than that. What can't be read is never surplus.
    """
    good = sorted((one.seq for one in snapshots if one.seq is not None and not one.damage), reverse=True)
    if keep > len(good):
        return []
    return [one for one in snapshots if one.seq is not None and (keep == 0 or one.seq < good[keep - 1])]


class SnapshotDirectory:
    """The snapshots of one name. A room's kind of them is a subclass."""

    ending = ""
    """Of an image."""
    beside: Tuple[str, ...] = ()
    """Endings of further files that an image may have."""
    required: Tuple[str, ...] = ("bytes", "sha256")
    """Facts without which a description is of no use."""
    error: Type[OpskitError] = OpskitError

    def __init__(self, directory: str, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise self.error(f"{name!r} can't be the name of snapshots", todo="Use letters, digits, '.', '_' and '-'")
        self.path = directory
        self.name = name
        self.restore_journal = os.path.join(directory, f".{name}.restore.json")

    def snapshots(self) -> List[Snapshot]:
        """Return all of them, the oldest first and those that can't be read before these."""
        found = [self._read(entry[: -len(".json")]) for entry in self._entries(".json")]
        return sorted(found, key=lambda one: (one.seq or 0, one.id))

    def choose(self, wanted: str) -> Snapshot:
        """Return the snapshot with an id, or the newest whole one for ``latest``. Raises :class:`OpskitError`."""
        found = self.snapshots()
        if wanted == "latest":
            good = [one for one in found if not one.damage]
            if not good:
                raise self.error(f"there is no whole snapshot named {self.name}", self.path, "Correct the directory or the name")
            return good[-1]
        for one in found:
            if one.id == wanted:
                if one.damage:
                    raise self.error(f"the snapshot can't be used: {one.damage}", one.path, "Choose another one")
                return one
        raise self.error(
            f"there is no snapshot {wanted}",
            self.path,
            f"Choose latest or one of: {', '.join(one.id for one in found[-10:]) or 'none'}",
        )

    def orphans(self) -> List[str]:
        """Return the images without a description. They are left to the operator: one may be good."""
        described = {one.id for one in self.snapshots()}
        found = [(name, ending) for ending in (self.ending, *self.beside) for name in self._entries(ending)]
        return [os.path.join(self.path, name) for name, ending in found if name[: -len(ending)] not in described]

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

    def unfinished(self, identity: str, ending: str = "") -> str:
        """Return the path of an image that is not published yet, or not any more; with an ending, of what is beside it."""
        return os.path.join(self.path, f".{identity}.tmp{ending}")

    def finished(self, identity: str, ending: str = "") -> str:
        """Return the path of a published image; with an ending, of what is beside it."""
        return os.path.join(self.path, identity + (ending or self.ending))

    def publish(self, identity: str, description: Dict[str, Any]) -> None:
        """Give the unfinished image, and what is beside it, their names, then the description."""
        for ending in (*self.beside, ""):
            if not ending or os.path.lexists(self.unfinished(identity, ending)):
                move_new(self.unfinished(identity, ending), self.finished(identity, ending))
        fsync_dir(self.path)
        publish_json(self.finished(identity, ".json"), description)

    def discard(self, identity: str) -> None:
        """Remove what is unfinished."""
        for ending in ("", *self.beside):
            if os.path.lexists(self.unfinished(identity, ending)):
                os.unlink(self.unfinished(identity, ending))

    def describe_anew(self, snapshot: Snapshot, **learned: Any) -> None:
        """Record what was learned of a snapshot later."""
        publish_json(self.finished(snapshot.id, ".json"), {**snapshot.description, **learned})

    def delete(self, snapshot: Snapshot) -> None:
        """Remove a snapshot. A kill between leaves a description without an image, which is surplus next time."""
        for ending in ("", *self.beside):
            if os.path.lexists(self.finished(snapshot.id, ending)):
                os.rename(self.finished(snapshot.id, ending), self.unfinished(snapshot.id, ending))
        os.unlink(self.finished(snapshot.id, ".json"))
        self.discard(snapshot.id)
        fsync_dir(self.path)

    def is_stored(self, snapshot: Snapshot) -> bool:
        """True when its files hold the bytes that were stored; a cheap look would not see it. Reads all of them."""
        return bool(hash_file(snapshot.path) == snapshot.description["facts"]["sha256"])

    def damage(self, identity: str, facts: Dict[str, Any]) -> str:
        """Return what a cheap look at the files finds wrong, empty for nothing."""
        path = self.finished(identity)
        if not os.path.isfile(path):
            return "its image is missing"
        size = os.stat(path).st_size
        return "" if size == facts["bytes"] else f"its image has {size} bytes instead of {facts['bytes']}"

    def summary(self, snapshot: Snapshot) -> Dict[str, Any]:
        """Return what a result shows of a snapshot."""
        facts = snapshot.description["facts"]
        shown = {"bytes": facts["bytes"], "sha256": facts["sha256"]}
        return {"id": snapshot.id, "path": snapshot.path, "time": snapshot.description["time"], **shown}

    def _entries(self, ending: str) -> List[str]:
        pattern = re.compile(re.escape(self.name) + _ID_TAIL + re.escape(ending))
        try:
            return sorted(entry for entry in os.listdir(self.path) if pattern.fullmatch(entry))
        except FileNotFoundError:
            return []

    def _read(self, identity: str) -> Snapshot:
        path = self.finished(identity)
        try:
            description = read_json(self.finished(identity, ".json"))
            version = description["version"]
            if version != VERSION:
                return Snapshot(identity, path, None, f"its description has the version {version!r}", {})
            seq, facts = int(description["seq"]), description["facts"]
            missing = [key for key in self.required if key not in facts]
            if missing or not {"fingerprint", "source", "time"} <= set(description):
                return Snapshot(identity, path, None, "its description is not complete", {})
            damage = self.damage(identity, facts)
        except (OpskitError, KeyError, TypeError, ValueError) as error:
            return Snapshot(identity, path, None, f"its description can't be read ({error})", {})
        return Snapshot(identity, path, seq, damage or str(description.get("damage", "")), description)


class Live(Protocol):
    """The database that snapshots are taken of."""

    def require(self) -> None:
        """Raise :class:`OpskitError` when it is missing or can't be read."""

    def size(self) -> int:
        """Return the upper bound of an image's bytes."""

    def fingerprint(self) -> str:
        """Return what moves with every commit."""


class TakeSnapshot(Operation):
    """Take a snapshot unless the newest one still shows the database as it is, and remove the surplus.

    A room's kind is a subclass, which says how.
    """

    advice = "Run it again"
    """What to do when a fresh image is not good."""

    def __init__(self, database: Live, directory: SnapshotDirectory, keep: int, force: bool, lock_wait_s: float, clock: Clock) -> None:
        if keep < 1:
            raise directory.error(f"keep is {keep}", todo="Keep at least one snapshot")
        self.live = database
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

    # what a room says -------------------------------------------------------------------------------

    @property
    def where(self) -> str:
        """Return the database as a person would name it, and no other."""
        raise NotImplementedError

    def origin(self, source: Dict[str, Any]) -> str:
        """Return the :attr:`where` of the database that a snapshot is of."""
        raise NotImplementedError

    def source(self) -> Dict[str, Any]:
        """Return what a description says of the database."""
        raise NotImplementedError

    def take(self, identity: str) -> Dict[str, Any]:
        """Write an unfinished image and what is beside it, flush them to the disk, and return the facts."""
        raise NotImplementedError

    def check(self, identity: str, facts: Dict[str, Any]) -> List[Check]:
        """Look whether an unfinished image is good."""
        raise NotImplementedError

    def why_changed(self, newest: Snapshot) -> str:
        """Return why the newest good snapshot is not the database as it is, empty when it is."""
        return "" if newest.description["fingerprint"] == self.fingerprint else "the database was written since the newest snapshot"

    # what is the same for all -----------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Make the folder and lock it, but not for a database that is not there."""
        self._require()
        make_dir(self.directory.path)
        with self.directory.locked(self.lock_wait_s):
            yield

    def _require(self) -> None:
        # First: a database that is being exchanged may not be reachable, which is not what the operator has to mend.
        if os.path.lexists(self.directory.restore_journal):
            raise self.directory.error(
                "a restore of this database was interrupted",
                self.directory.restore_journal,
                "Finish it first: run the same module with state=restored again",
            )
        self.live.require()

    def plan(self) -> Plan:
        """Decide whether a new one is needed and which ones go."""
        self._require()
        self.fingerprint = self.live.fingerprint()
        self.existing = self.directory.snapshots()
        self.reason = self._why_now()
        plan = Plan("none")
        if self.damaged:
            plan.add("mark damaged", self.damaged.id, self.damaged.damage)
        if self.reason:
            size = self.live.size()
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
            origin = self.origin(one.description["source"])
            if origin != self.where:
                raise self.directory.error(
                    f"the snapshots named {self.directory.name} are of {origin}",
                    self.directory.path,
                    "Give another name or another directory",
                )
        good = [one for one in readable if not one.damage]
        if not good:
            return "there is no snapshot yet" if not readable else "no snapshot is whole"
        newest = good[-1]
        if self.force:
            return "a new one was asked for"
        changed = self.why_changed(newest)
        if changed:
            return changed
        if not self.directory.is_stored(newest):
            # It is not one of the good ones from here on.
            self.damaged = newest._replace(damage="its image is not what was stored")
            self.existing[self.existing.index(newest)] = self.damaged
            return f"the newest snapshot {newest.id} is damaged"
        return ""

    def _require_room(self, size: int) -> None:
        free = free_bytes(self.directory.path)
        if free < size:
            raise self.directory.error(
                f"{human_size(size)} are needed and {human_size(free)} are free",
                self.directory.path,
                "Make room or keep the snapshots elsewhere",
            )

    def apply(self, plan: Plan) -> None:
        """Take, check, publish; then delete. A failure leaves everything that was there."""
        for step in plan:
            if step.step == "mark damaged" and self.damaged:
                self.directory.describe_anew(self.damaged, damage=self.damaged.damage)
            elif step.step == "take snapshot":
                self._take()
        for one in self.deleted:
            self.directory.delete(one)

    def _take(self) -> None:
        moment = self.clock.now()
        identity = self.directory.new_id(moment, self.clock.token())
        facts = self.take(identity)
        self.checks = self.check(identity, facts)
        bad = [f"{check.check}: {check.detail}" for check in self.checks if not check.ok]
        if bad:
            self.directory.discard(identity)
            raise self.directory.error(
                f"the snapshot that was taken is not good ({'; '.join(bad)}) and was removed",
                self.where,
                f"{self.advice}; earlier snapshots were all kept",
            )
        self.directory.publish(
            identity,
            {
                "version": VERSION,
                "seq": max([one.seq or 0 for one in self.existing], default=0) + 1,
                "time": rfc3339(moment),
                "source": self.source(),
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
        newest = self.directory.summary(good[-1]) if good and (self.taken or not self.reason) else {}
        return {
            "reason": self.reason or f"nothing was written since the snapshot {good[-1].id}",
            "snapshot": newest,
            "snapshots": [one.id for one in now],
            "deleted": [one.id for one in self.deleted],
            "damaged": [{"id": one.id, "damage": one.damage} for one in now if one.damage],
            "orphans": self.directory.orphans(),
        }
