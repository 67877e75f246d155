# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dumps of one PostgreSQL database in a folder of their own, and putting one back.

``<id>.dump`` is an archive of pg_dump, ``<id>.globals.sql`` the roles of the server, and ``<id>.json`` describes both.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import Any, Dict, Iterator, List, Optional, Tuple

from .._core import snapshots
from .._core.clock import Clock
from .._core.errors import OpskitError, present
from .._core.files import fsync_dir, hash_file, publish_json, read_json
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .._core.rows import quote
from .._core.snapshots import Snapshot
from .contents import ask
from .database import PostgresDatabase, check_image, check_name, describe_version
from .errors import PostgresError
from .login import missing_driver
from .restore import MAINTENANCE, PostgresTarget

GLOBALS = ".globals.sql"
_FACTS = (
    "database",
    "database_bytes",
    "globals",
    "properties",
    "roles",
    "schema",
    "schema_version",
    "sequences",
    "server_version",
    "tables",
)


class DumpDirectory(snapshots.SnapshotDirectory):
    """The dumps of one name."""

    ending = ".dump"
    beside = (GLOBALS,)
    required = ("bytes", "sha256", *_FACTS)
    error = PostgresError

    def damage(self, identity: str, facts: Dict[str, Any]) -> str:
        """Return what a cheap look at the dump and the globals finds wrong, empty for nothing."""
        path, size = self.finished(identity, GLOBALS), facts["globals"]["bytes"]
        found = super().damage(identity, facts)
        if not found and not os.path.isfile(path):
            return "its globals are missing"
        if not found and os.stat(path).st_size != size:
            return f"its globals have {os.stat(path).st_size} bytes instead of {size}"
        return found

    def is_stored(self, snapshot: Snapshot) -> bool:
        """True when dump and globals hold the bytes that were stored."""
        globals_hash = hash_file(self.finished(snapshot.id, GLOBALS))
        return super().is_stored(snapshot) and globals_hash == snapshot.description["facts"]["globals"]["sha256"]

    def summary(self, snapshot: Snapshot) -> Dict[str, Any]:
        """Return what a result shows of a dump; nothing of what is in it but counts."""
        facts = snapshot.description["facts"]
        return {
            **super().summary(snapshot),
            "database": facts["database"],
            "tables": len(facts["tables"]),
            "rows": sum(table["rows"] for table in facts["tables"].values()),
            "server_version": describe_version(facts),
            "schema_version": facts["schema_version"],
            "globals": {"path": self.finished(snapshot.id, GLOBALS), "verifiers": facts["globals"]["verifiers"]},
        }


class TakeDump(snapshots.TakeSnapshot):
    """Take a dump of a PostgreSQL database, and of the server's roles."""

    advice = "Look for a failing disk or memory"

    def __init__(
        self, database: PostgresDatabase, directory: DumpDirectory, keep: int, force: bool, lock_wait_s: float, clock: Clock
    ) -> None:
        super().__init__(database, directory, keep, force, lock_wait_s, clock)
        self.database = database
        self.unchanged: Optional[Snapshot] = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Make the folder and lock it, but not on a host that lacks what is needed."""
        require_driver()
        with super().exclusive():
            yield

    @property
    def where(self) -> str:
        """Return the database and its server."""
        return self.database.where

    def origin(self, source: Dict[str, Any]) -> str:
        """Return the database and the server that a dump is of."""
        return f"{source['database']} on {source['server']}"

    def source(self) -> Dict[str, Any]:
        """Return ``database`` and ``server``."""
        return {"database": self.database.database, "server": self.database.login.where}

    def take(self, identity: str) -> Dict[str, Any]:
        """Write dump and globals and flush them to the disk."""
        image, beside = self.directory.unfinished(identity), self.directory.unfinished(identity, GLOBALS)
        try:
            self.database.copy(image)
            self.database.copy_beside(beside)
            for path in (image, beside):
                with open(path, "rb") as stream:
                    os.fsync(stream.fileno())
            facts = self.database.facts(image)
            with open(beside, "rb") as stream:
                verifiers = b" PASSWORD '" in stream.read()
            facts["globals"] = {"bytes": os.stat(beside).st_size, "sha256": hash_file(beside), "verifiers": verifiers}
        except BaseException:
            self.directory.discard(identity)
            raise
        return facts

    def check(self, identity: str, facts: Dict[str, Any]) -> List[Check]:
        """Compare the dump with its facts by hash, and read all of it."""
        return check_image(self.directory.unfinished(identity), facts)

    def why_changed(self, newest: Snapshot) -> str:
        """Return why the newest good dump is not the database as it is, empty when it is."""
        if newest.description["fingerprint"] == self.fingerprint:
            return ""
        # Any commit in the server moves the fingerprint, one in another database too.
        if not self.database.is_as(newest.description["facts"]):
            return "the database was written since the newest snapshot"
        with open(self.directory.finished(newest.id, GLOBALS), "rb") as stream:
            if stream.read() != self.database.globals_sql():
                return "roles of the server were changed since the newest snapshot"
        self.unchanged = newest
        return ""

    def note(self) -> None:
        """Remember that the newest dump is still the database, so that the next run need not compare it again.

        The fingerprint was taken before the comparison: whatever was committed meanwhile has moved it.
        """
        if self.unchanged and not self.damaged:
            self.directory.describe_anew(self.unchanged, fingerprint=self.fingerprint)


class RestoreDump(Operation):
    """Make a database of a dump beside the live one, then exchange the names; the old one is kept.

    A journal in the folder of the dumps says what is being made, before it is made. Interrupted anywhere, the next run
    recognises by the databases' numbers whether the names were exchanged, and else removes the copy and begins again.
    """

    def __init__(self, target: PostgresTarget, directory: DumpDirectory, snapshot: str, lock_wait_s: float, clock: Clock) -> None:
        self.target = target
        self.directory = directory
        self.wanted = snapshot
        self.lock_wait_s = lock_wait_s
        self.clock = clock
        self.snapshot: Optional[Snapshot] = None
        self.reason = ""
        self.journal: Optional[Dict[str, Any]] = None
        """Of the restore that was carried out, or completed."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the folder of the dumps."""
        if not os.path.isdir(self.directory.path):
            raise PostgresError("there is no such folder of snapshots", self.directory.path, "Correct the directory")
        with self.directory.locked(self.lock_wait_s):
            yield

    def plan(self) -> Plan:
        """Choose the dump, see whether the database is it already, and if not, prove that it is good and can be restored here."""
        require_driver()
        database = self.target.database
        check_name(database)
        if database in (MAINTENANCE, "template0", "template1"):
            raise PostgresError(
                "this database belongs to the server itself and can't be exchanged", self.target.where, "Name another target"
            )
        snapshot = self.snapshot = self.directory.choose(self.wanted)
        facts = snapshot.description["facts"]
        journal, live = self._read_journal(), self.target.identity(database)
        plan = Plan("none")
        if journal is None:
            why = self._difference(facts)
            self.reason = f"{snapshot.id} is not in place: {why}" if why else f"the database is the snapshot {snapshot.id} already"
        else:
            why = self.reason = f"a restore of {journal['snapshot']} was interrupted"
            plan.action = "restored"
            if not _is_exchanged(journal, live):
                plan.add("roll back restore", self.target.where, self.reason)
            else:
                plan.add("complete restore", self.target.where, self.reason)
                why = "" if journal["snapshot"] == snapshot.id else self._difference(facts)
        if why:
            self._require_good(snapshot)
            roles = self.target.check(facts, True)
            plan.action = "restored"
            if roles:
                plan.add("make roles", ", ".join(roles), "they own objects or have rights, and the server does not have them")
            plan.add("load copy", self.target.where, f"{snapshot.id} is not in place", facts["database_bytes"])
            if live is not None:
                plan.add("set aside", self.target.where, "the database that is there is kept")
            plan.add("put in place", self.target.where, f"restore of {snapshot.id}")
        return plan

    def _difference(self, facts: Dict[str, Any]) -> str:
        try:
            return self.target.difference(facts)
        except OpskitError as error:
            # A damaged one is what a restore is for. What stands in the way of that, too, is found by target.check().
            return f"it can't be read ({error.what})"

    def _require_good(self, snapshot: Snapshot) -> None:
        bad = [f"{check.check}: {check.detail}" for check in check_image(snapshot.path, snapshot.description["facts"]) if not check.ok]
        if not bad and not self.directory.is_stored(snapshot):
            bad = ["its globals are not what was stored"]
        if bad:
            raise PostgresError(f"the snapshot is damaged ({'; '.join(bad)})", snapshot.path, "Choose another one; nothing was touched")

    def apply(self, plan: Plan) -> None:
        """Finish what was interrupted, then load, compare and exchange."""
        steps = {step.step for step in plan}
        journal = self._read_journal()
        if journal is not None and "complete restore" in steps:
            self.journal = journal
            self._close_journal()
        elif journal is not None:
            self._undo(journal)
        if "put in place" in steps:
            self._restore(present(self.snapshot))

    def _restore(self, snapshot: Snapshot) -> None:
        target, database = self.target, self.target.database
        label = f"{self.clock.now().strftime('%Y%m%dT%H%M%SZ')}-{self.clock.token()}"
        names, live = target.names(label), target.identity(database)
        journal: Dict[str, Any] = {
            "version": 1,
            "snapshot": snapshot.id,
            "database": database,
            "server": target.admin.where,
            "staged": names.staged,
            "aside": names.aside if live is not None else "",
            "live": live,
            "loaded": None,
        }
        publish_json(self.directory.restore_journal, journal)
        try:
            target.load(snapshot.path, self.directory.finished(snapshot.id, GLOBALS), snapshot.description["facts"], names.staged)
            loaded = present(target.identity(names.staged))
            journal["loaded"] = loaded
            publish_json(self.directory.restore_journal, journal)
            moves: List[Tuple[str, str, int]] = [(database, names.aside, live)] if live is not None else []
            target.rename([*moves, (names.staged, database, loaded)], journal["aside"])
        except BaseException:
            # Where that fails, too, the journal stays, and the next run does it.
            with suppress(OpskitError):
                if not _is_exchanged(journal, target.identity(database)):
                    self._undo(journal)
            raise
        self.journal = journal
        self._close_journal()

    def _undo(self, journal: Dict[str, Any]) -> None:
        self.target.drop(journal["staged"])
        if journal["live"] is not None and self.target.identity(self.target.database) == journal["live"]:
            self.target.open_again(self.target.database)
        self._close_journal()

    def _read_journal(self) -> Optional[Dict[str, Any]]:
        path = self.directory.restore_journal
        if not os.path.lexists(path):
            return None
        journal: Dict[str, Any] = read_json(path)
        here = (1, self.target.database, self.target.admin.where)
        if (journal.get("version"), journal.get("database"), journal.get("server")) != here:
            raise PostgresError(
                f"an interrupted restore into {journal.get('database')} on {journal.get('server')} is recorded here",
                path,
                "Finish that one first, with its own target and server",
            )
        return journal

    def _close_journal(self) -> None:
        os.unlink(self.directory.restore_journal)
        fsync_dir(self.directory.path)

    def verify(self) -> List[Check]:
        """See which database has the name now, and that it takes connections. Its content was compared before it got the name."""
        journal, target = present(self.journal), self.target
        checks = [Check("in place", target.identity(target.database) == journal["loaded"], target.where)]
        if journal["aside"]:
            checks.append(Check("old database kept", target.identity(journal["aside"]) == journal["live"], journal["aside"]))
        with target.admin.session(target.database) as connection:
            checks.append(Check("takes connections", ask(connection, "SELECT 1") == [(1,)], target.where))
        return checks

    def result(self) -> Dict[str, Any]:
        """Return what was put in place, where the old database is, and how what was kept is removed."""
        return {
            "reason": self.reason,
            "snapshot": self.directory.summary(present(self.snapshot)),
            "aside": self.journal["aside"] if self.journal else "",
            "asides": [{"database": name, "drop": f"DROP DATABASE {quote(name)}"} for name in self.target.asides()],
        }


def require_driver() -> None:
    """Raise :class:`PostgresError` on a host whose Python can't speak to PostgreSQL."""
    if missing_driver():
        raise PostgresError("this Python can't speak to PostgreSQL", todo=f"Install it: apt-get install {missing_driver()}")


def _is_exchanged(journal: Dict[str, Any], live: Optional[int]) -> bool:
    return journal["loaded"] is not None and journal["loaded"] == live
