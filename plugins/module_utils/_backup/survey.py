# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything of an application as it is now, compared with the last set."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .._core.errors import present
from .._core.protocols import DatabaseSource
from . import shards
from .errors import BackupError
from .manifest import Record, get_text, tree_hash
from .past import Past, is_whole
from .records import make_records, read_records
from .source import Entry, Root, Scan, Source, is_below, look
from .store import Store

DAMAGED = "its object is damaged or missing"


class Live(NamedTuple):
    """A database as it is now."""

    database: DatabaseSource
    declared: bool
    root: str
    """The root it lies in, or empty."""
    file: Record
    """Its main file as a line of the file list; empty for one in a server."""
    fingerprint: str
    """Empty where the tools to ask for it are not installed yet."""


class Survey(NamedTuple):
    """Everything as it is now, compared with the last set."""

    scanned_ns: int
    roots: List[Root]
    totals: Dict[str, Tuple[int, int]]
    """Files and bytes by root."""
    kept: Dict[str, shards.Kept]
    """What the last set has stored already, by the id of the shard."""
    groups: List[shards.Group]
    """What has to be stored."""
    reasons: Dict[str, str]
    """Why, by the id of the group."""
    databases: List[Live]
    database_reasons: Dict[str, str]
    warnings: List[str]
    homes: Dict[Tuple[int, int], Tuple[str, bool]]
    """Where a file with several names was first met: the root, and whether among its logs."""
    gone: List[str]
    """For each root with files that are nowhere any more, how many."""


class Surveyor:
    """Looks at an application, and reads what may have changed without its metadata showing it.

    :param adopt: returns the database of an undeclared file, by name and path
    :param shrink_limit: percent by which a saved path may shrink; 0: any
    """

    def __init__(self, store: Store, past: Past, source: Source, adopt: Callable[[str, str], DatabaseSource], shrink_limit: int) -> None:
        self.store = store
        self.past = past
        self.source = source
        self.adopt = adopt
        self.shrink_limit = shrink_limit

    def look(self, held: Sequence[Live] = ()) -> Survey:
        """Look at everything. Raises :class:`BackupError` for what can't be read, or has suddenly gone.

        :param held: databases that are held as they were at one moment: their files are not opened, which would let go of them
        """
        scanned_ns = time.time_ns()
        roots = self.source.roots()
        survey = Survey(scanned_ns, roots, {}, {}, [], {}, [], {}, [], {}, [])
        taken = {live.database.name: live for live in held}
        known = [live.database.files()[0] for live in held if not live.declared]
        if self.past.last is not None:
            known += [path for path in self._known_undeclared(roots) if path not in known]
        undeclared: List[str] = []
        for root in roots:
            scan = self.scan(root, known, undeclared)
            known = [*known, *undeclared]
            self._add_root(survey, scan)
        for database in self.source.databases:
            survey.databases.append(taken.get(database.name) or self.live(database, True, survey.roots))
        for path in undeclared:
            adopted = self.adopted(path)
            survey.databases.append(taken.get(adopted.name) or self.live(adopted, False, survey.roots))
            survey.warnings.append(f"{path} is a database that the description does not name; saved as an image")
        for live in survey.databases:
            reason = "" if live.database.name in taken else self._database_reason(live)
            if reason:
                survey.database_reasons[live.database.name] = reason
        self._guard(survey)
        return survey

    def scan(self, root: Root, known: List[str], undeclared: List[str]) -> Scan:
        """Walk one root, and add the databases below it that the description does not name to the undeclared ones."""
        scan = self.source.scan(root, known)
        if scan.undeclared:
            known = [*known, *scan.undeclared]
            scan = self.source.scan(root, known)
        undeclared.extend(path for path in known if is_below(path, root.path) and path not in undeclared)
        return scan

    def adopted(self, path: str) -> DatabaseSource:
        """Return the database of a file that the description does not name."""
        return self.adopt("undeclared-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:12], path)

    def _known_undeclared(self, roots: List[Root]) -> List[str]:
        """Return the undeclared databases of the last set that are still there."""
        bases = {root.name: root.base for root in roots}
        paths = [
            os.path.join(bases[image.root], get_text(image.file, "path"))
            for image in present(self.past.last).databases
            if image.file and not image.declared and image.root in bases
        ]
        declared = {path for database in self.source.databases for path in database.files()}
        return [path for path in paths if os.path.isfile(path) and path not in declared]

    def _add_root(self, survey: Survey, scan: Scan) -> None:
        root = scan.root
        survey.totals[root.name] = totals(scan)
        if scan.skipped:
            survey.warnings.append(f"{len(scan.skipped)} sockets, FIFOs or devices can't be saved, the first is {scan.skipped[0]}")
        for entries, logs in ((scan.saved, False), (scan.logs, True)):
            self._look_for_far_links(survey, root, entries, logs)
            layout = shards.arrange(self.source, root, entries, logs, self.past.shards, lambda *shard: self._judge(root, *shard))
            for group in layout.groups:
                _require_readable(group)
            survey.kept.update((kept.known.shard.id, kept) for kept in layout.kept)
            survey.groups.extend(layout.groups)
            survey.reasons.update(layout.reasons)
            if layout.gone and not logs:
                survey.gone.append(f"{layout.gone} files of {root.name} are gone")

    def _look_for_far_links(self, survey: Survey, root: Root, entries: List[Entry], logs: bool) -> None:
        """Warn of files with names in two saved paths: an archive holds one path, so they come back as two files."""
        for entry in entries:
            if entry.links > 1 and entry.type == "file":
                home = survey.homes.setdefault((entry.device, entry.inode), (root.name, logs))
                if home != (root.name, logs):
                    path = os.path.join(root.base, entry.path)
                    survey.warnings.append(f"{path} has another name in {home[0]}; a restore makes two files of them")

    def _judge(self, root: Root, known: shards.Known, entries: List[Entry]) -> shards.Judgement:
        """Look whether the members that the last set has in a shard are what they were. Reads those that may have changed unseen."""
        shard = known.shard
        if not is_whole(self.store, self.past, (shard.object, shard.stored_bytes)):
            return shards.Judgement(DAMAGED)
        cached = self.past.cache.get(shard.id, {})
        if len(entries) == len(known.records) and cached.get("fingerprint") == shards.fingerprint(entries):
            return shards.Judgement()
        paths = [get_text(value, "path") for value in known.records]
        then = dict(zip(paths, known.records))
        printed = shards.printed(known, cached.get("prints", ""))
        changed = [entry.path for entry in entries if shards.differs(entry, then[entry.path])]
        seen = set(changed)
        doubtful = [entry for entry in entries if entry.path not in seen and printed[entry.path] != shards.member_print(entry)]
        now = {get_text(value, "path"): value for value in read_records(root, doubtful)}
        hidden = [entry.path for entry in doubtful if not same_record(now.get(entry.path), then[entry.path])]
        return shards.Judgement("", changed + hidden, len(hidden))

    def live(self, database: DatabaseSource, declared: bool, roots: List[Root]) -> Live:
        """Return a database as it is now. Raises :class:`OpskitError` when it can't be used."""
        database.require()
        return self.moment(database, declared, roots)

    def moment(self, database: DatabaseSource, declared: bool, roots: List[Root]) -> Live:
        """Return a database that can be used as it is now."""
        printed = "" if database.missing() else database.fingerprint()
        if not database.files():
            return Live(database, declared, "", {}, printed)
        path = database.files()[0]
        home = next((root for root in roots if not root.is_file and is_below(path, root.path)), Root("", "/", False))
        # Below no root, the path is absolute; joined to the base that is what it stays.
        inner = os.path.relpath(path, home.base) if home.name else path
        entry = look(home.base, inner)
        records = make_records(home, [entry], {}) if entry is not None and entry.type == "file" else []
        if not records:
            raise BackupError("the database went while it was looked at", path, "Run again")
        return Live(database, declared, home.name, records[0], printed)

    def _database_reason(self, live: Live) -> str:
        known = self.past.image(live.database.name)
        packages = live.database.missing()
        if packages:
            return f"{', '.join(packages)} has to be installed before it can be looked at"
        if known is None:
            return "new"
        if not is_whole(self.store, self.past, *known.stored):
            return DAMAGED
        if (known.root, get_text(known.file, "path")) != (live.root, get_text(live.file, "path")):
            return "it lies in another place now"
        if _rights(known.file) != _rights(live.file):
            return "its owner, mode or attributes changed"
        cached = self.past.cache.get(f"database {live.database.name}", {})
        if cached.get("object") == known.object and cached.get("fingerprint") == live.fingerprint:
            return ""
        return "" if live.database.is_as(known.facts) else "changed"

    def _guard(self, survey: Survey) -> None:
        """Refuse a saved path that lost most of what it held: an unmounted disk, a deletion that nobody has seen yet."""
        last = self.past.last
        if last is None or not self.shrink_limit:
            return
        for name, then in last.roots.items():
            files, size = survey.totals.get(name, (0, 0))
            for what, now, before in (("files", files, then["files"]), ("bytes", size, then["bytes"])):
                if before and now < before * (100 - self.shrink_limit) / 100:
                    raise BackupError(
                        f"{name} has {now} {what}, the last set {last.id} has {before}: more than {self.shrink_limit} % are gone",
                        self.source.targets.get(name, name),
                        "Bring the data back (mount, restore); if it is meant to be so, run once with shrink_limit 0",
                    )


def totals(scan: Scan) -> Tuple[int, int]:
    """Return how many files a root has, without logs, and their bytes."""
    return sum(entry.type == "file" for entry in scan.saved), sum(entry.size for entry in scan.saved)


def unlike(stored: Dict[str, shards.Kept], scanned_ns: int, known: shards.Known, entries: List[Entry]) -> shards.Judgement:
    """Find the members of a stored shard to which something was done since they were stored, or may have been without a trace.

    :param scanned_ns: when they were looked at first; what was written that shortly before may be written again at the same time
    """
    then = {entry.path: entry for entry in stored[known.shard.id].entries}

    def is_sure(entry: Entry) -> bool:
        has_content = entry.size or entry.type == "symlink"
        return entry.same_file(then[entry.path]) and (not has_content or shards.is_settled(entry, scanned_ns))

    return shards.Judgement("", [entry.path for entry in entries if not is_sure(entry)])


def same_record(one: Optional[Record], other: Record) -> bool:
    """True when two lines say the same about a member, wherever it is stored."""
    return one is not None and tree_hash([one]) == tree_hash([other])


def _rights(file: Record) -> List[object]:
    """Return what a restore gives to a database's main file beside its content."""
    return [file.get(key) for key in ("mode", "uid", "gid", "xattrs")]


def _require_readable(group: shards.Group) -> None:
    if os.geteuid() == 0:
        return
    for entry in group.entries:
        path = os.path.join(group.root.base, entry.path)
        if entry.type == "file" and os.path.lexists(path) and not os.access(path, os.R_OK):
            raise BackupError("this file can't be read", path, "Run as a user who may read it (become)")
