# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a set: scan, compare with the last set, store what is new, publish, read back.

With a pause of writes most is stored before it, and what changed since is copied in it, unpacked; everything that takes long is done
before and after.
"""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .._core.clock import Clock, rfc3339
from .._core.command import find_program
from .._core.errors import OpskitError, present
from .._core.files import free_bytes, hash_file, human_size, is_out_of_space
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .._core.protocols import DatabaseSource, Pause
from . import archive, images, shards
from .errors import BackupError
from .manifest import Image, Manifest, Record, Shard, get_text, put_text, stale_members, tree_hash
from .records import make_records, read_records, stored_records
from .script import restore_script
from .source import Entry, Root, Scan, Source, is_below, look
from .store import Store
from .verify import ImageCheckers, verify_objects

DAMAGED = "its object is damaged or missing"
OF_SET = "set"
"""The key under which the cache says which set it is of."""
ATTEMPTS = 5
"""How often a shard whose files change meanwhile is read before the backup gives up on it."""

WORKERS = (os.cpu_count() or 1) + 2
"""Shards that are stored at a time: more than cores, because each waits for the disk at its end."""


class Options(NamedTuple):
    """How a set is made."""

    unchanged_interval_s: int = 72000
    """A new set is made of unchanged data when the newest one is older than this."""
    shrink_limit: int = 50
    """Percent by which a saved path may shrink (files or bytes) before the backup is refused; 0: any."""
    compression_level: int = 3
    verify: str = "content"
    lock_timeout_s: float = 0.0
    collection: str = ""
    """Version of the collection, written into the set."""
    require_pause: bool = False
    """Make no set where the pause of writes can't be had or does not hold."""


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


class Packed(NamedTuple):
    """An archive in tmp/."""

    path: str
    entries: List[Entry]
    """Its members as they were when it was written."""
    records: List[Record]


class BackupSet(Operation):
    """Make a set of an application in its store, if there is something new.

    :param adopt: returns the database of an undeclared file, by name and path
    :param checkers: by engine, looks at a database image
    :param pause: keeps the application from writing for the moment that the set is of
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        options: Options,
        clock: Clock,
        adopt: Callable[[str, str], DatabaseSource],
        checkers: ImageCheckers,
        pause: Optional[Pause] = None,
    ) -> None:
        self.store = store
        self.source = source
        self.options = options
        self.clock = clock
        self.adopt = adopt
        self.checkers = checkers
        self.pause = pause
        self.last: Optional[Manifest] = None
        self.previous: Dict[str, shards.Known] = {}
        self.cache: Dict[str, Dict[str, str]] = {}
        self.suspects: Set[str] = set()
        self.damage = ""
        """What is wrong with the last set's own files."""
        self.survey: Optional[Survey] = None
        self.reason = ""
        self.made: Optional[Manifest] = None
        self.fresh: Set[str] = set()
        self.phases: Dict[str, float] = {}
        self.guarantee = "none"
        self.pause_s = 0.0
        self.notes: List[str] = []
        """What an operator is warned of."""
        self.still_paused = ""
        """Why the application does not write again."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        # The paths are looked at first, so that a wrong one does not leave an empty store behind.
        self.source.roots()
        self._check_place()
        with self.store.writer(self.options.lock_timeout_s):
            if self.pause is not None:
                left = self.pause.recover()
                self.notes += [left] if left else []
            if self.store.exists():
                self.store.open()
                self.store.create()
                self.store.sweep()
            yield

    # plan -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        started = self.clock.monotonic()
        self._check_place()
        find_program("tar", "tar")
        self._read_store()
        survey = self.survey = self._look()
        plan = Plan("created")
        for group in survey.groups:
            if group.id in survey.reasons:
                plan.add("store shard", group.id, survey.reasons[group.id], group.bytes)
        for live in survey.databases:
            if live.database.name in survey.database_reasons:
                # The plain image lies in tmp/ while it is compressed.
                size = None if live.database.missing() else 2 * live.database.size()
                plan.add("store database", live.database.name, survey.database_reasons[live.database.name], size)
        self.reason = self._why(survey)
        if self.reason:
            self._check_space(plan)
            plan.add("publish set", "<new>", self.reason)
        else:
            plan = Plan("none")
            self.reason = f"nothing changed since set {present(self.last).id}"
        self.phases["scan_s"] = round(self.clock.monotonic() - started, 3)
        return plan

    def _check_place(self) -> None:
        for path in self.source.targets.values():
            if self.store.path == path or is_below(self.store.path, path):
                raise BackupError(f"the store lies inside the saved path {path}", self.store.path, "Put the store somewhere else")
        if not os.path.lexists(self.store.path):
            parent = self.store.path
            while not os.path.lexists(parent):
                parent = os.path.dirname(parent)
            if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
                raise BackupError("the store can't be made here", self.store.path, f"Make it, or allow writing to {parent}")
        elif os.path.isdir(self.store.path) and not os.access(self.store.path, os.R_OK | os.W_OK | os.X_OK):
            raise BackupError("the store can't be written to", self.store.path, "Run as its owner, or mend its mode")
        elif self.store.exists():
            self.store.open()
        for database in self.source.databases:
            database.require()

    def _read_store(self) -> None:
        if not self.store.exists():
            return
        self.store.open()
        sets = self.store.sets()
        cache = self.store.read_cache()
        if sets and cache.get(OF_SET) == {"id": sets[-1].id}:
            self.cache = cache
        self.suspects = self.store.suspects()
        if sets:
            self.last = sets[-1]
            damage = self.store.set_damage(self.last)
            if damage:
                # Everything is read and stored again, so that one damaged file does not end all backups.
                self.damage = f"set {self.last.id} is damaged, so nothing of it is relied on: {damage[0]}"
            else:
                self.previous = shards.known_shards(self.last.shards, self.store.members(self.last))

    def _look(self) -> Survey:
        scanned_ns = time.time_ns()
        roots = self.source.roots()
        survey = Survey(scanned_ns, roots, {}, {}, [], {}, [], {}, [], {}, [])
        known = [] if self.last is None else self._known_undeclared(roots)
        undeclared: List[str] = []
        for root in roots:
            scan = self._scan(root, known, undeclared)
            known = [*known, *undeclared]
            self._add_root(survey, scan)
        for database in self.source.databases:
            survey.databases.append(self._live(database, True, survey.roots))
        for path in undeclared:
            survey.databases.append(self._live(self._adopted(path), False, survey.roots))
            survey.warnings.append(f"{path} is a database that the description does not name; saved as an image")
        for live in survey.databases:
            reason = self._database_reason(live)
            if reason:
                survey.database_reasons[live.database.name] = reason
        self._guard(survey)
        return survey

    def _scan(self, root: Root, known: List[str], undeclared: List[str]) -> Scan:
        """Walk one root, and add the databases below it that the description does not name to the undeclared ones."""
        scan = self.source.scan(root, known)
        if scan.undeclared:
            known = [*known, *scan.undeclared]
            scan = self.source.scan(root, known)
        undeclared.extend(path for path in known if is_below(path, root.path) and path not in undeclared)
        return scan

    def _adopted(self, path: str) -> DatabaseSource:
        return self.adopt("undeclared-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:12], path)

    def _known_undeclared(self, roots: List[Root]) -> List[str]:
        """Return the undeclared databases of the last set that are still there."""
        bases = {root.name: root.base for root in roots}
        paths = [
            os.path.join(bases[image.root], get_text(image.file, "path"))
            for image in present(self.last).databases
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
            layout = shards.arrange(self.source, root, entries, logs, self.previous, lambda *shard: self._judge(root, *shard))
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
        if shard.object in self.suspects or not self.store.has_object(shard.object, shard.stored_bytes):
            return shards.Judgement(DAMAGED)
        cached = self.cache.get(shard.id, {})
        if len(entries) == len(known.records) and cached.get("fingerprint") == shards.fingerprint(entries):
            return shards.Judgement()
        paths = [get_text(value, "path") for value in known.records]
        then = dict(zip(paths, known.records))
        width = len(shards.UNSETTLED)
        printed = {path: cached.get("prints", "")[width * index : width * index + width] for index, path in enumerate(paths)}
        changed = [entry.path for entry in entries if shards.differs(entry, then[entry.path])]
        seen = set(changed)
        doubtful = [entry for entry in entries if entry.path not in seen and printed[entry.path] != shards.member_print(entry)]
        now = {get_text(value, "path"): value for value in read_records(root, doubtful)}
        hidden = [entry.path for entry in doubtful if not same_record(now.get(entry.path), then[entry.path])]
        return shards.Judgement("", changed + hidden, len(hidden))

    def _live(self, database: DatabaseSource, declared: bool, roots: List[Root]) -> Live:
        database.require()
        return self._moment(database, declared, roots)

    def _moment(self, database: DatabaseSource, declared: bool, roots: List[Root]) -> Live:
        """Return a database that can be used as it is now."""
        printed = "" if database.missing() else database.fingerprint()
        if not database.files():
            return Live(database, declared, "", {}, printed)
        path = database.files()[0]
        home = next((root for root in roots if not root.is_file and is_below(path, root.path)), Root("", "/", False))
        # Below no root, the path is absolute; joined to the base that is what it stays.
        inner = os.path.relpath(path, home.base) if home.name else path
        entry = look(home.base, inner)
        if entry is None or entry.type != "file":
            raise BackupError("the database went while it was looked at", path, "Run again")
        return Live(database, declared, home.name, make_records(home, [entry], {})[0], printed)

    def _database_reason(self, live: Live) -> str:
        known = self._last_image(live.database.name)
        packages = live.database.missing()
        if packages:
            return f"{', '.join(packages)} has to be installed before it can be looked at"
        if known is None:
            return "new"
        if self._is_lost(known):
            return DAMAGED
        if (known.root, get_text(known.file, "path")) != (live.root, get_text(live.file, "path")):
            return "it lies in another place now"
        cached = self.cache.get(f"database {live.database.name}", {})
        if cached.get("object") == known.object and cached.get("fingerprint") == live.fingerprint:
            return ""
        return "" if live.database.is_as(known.facts) else "changed"

    def _is_lost(self, image: Image) -> bool:
        objects = ((image.object, image.stored_bytes), (image.beside, image.beside_bytes), (image.base, image.base_bytes))
        return any(name and (name in self.suspects or not self.store.has_object(name, size)) for name, size in objects)

    def _last_image(self, name: str) -> Optional[Image]:
        images = self.last.databases if self.last and not self.damage else []
        return next((image for image in images if image.name == name), None)

    def _why(self, survey: Survey) -> str:
        """Say why a new set is made; empty when none is."""
        if self.last is None:
            return "the first set"
        parts = []
        logs = {group.id for group in survey.groups if group.logs}
        changed = sum(shard_id not in logs or reason == DAMAGED for shard_id, reason in survey.reasons.items())
        names = {live.database.name for live in survey.databases}
        gone = [image.name for image in self.last.databases if image.name not in names]
        gone += sorted({shard.root for shard in self.last.shards} - {root.name for root in survey.roots})
        if changed:
            parts.append(f"{changed} shards changed")
        if survey.database_reasons:
            parts.append(f"{len(survey.database_reasons)} databases changed")
        if gone:
            parts.append(f"{', '.join(gone)} belongs to it no more")
        parts += survey.gone
        proof = self.store.proof(self.last.id)
        if not parts and not proof.ok:
            parts.append(f"set {self.last.id} failed its verification")
        elif not parts and self.options.verify != "none" and proof.time is None:
            # A run that was killed after it published, say. Such a set counts neither for retention nor as the latest.
            parts.append(f"set {self.last.id} was never verified")
        if not parts:
            # A set that is dated in the future never makes a run think that it was done already.
            age_s = (self.clock.now() - self.last.time).total_seconds()
            if not 0 <= age_s < self.options.unchanged_interval_s:
                parts.append(f"nothing changed, but set {self.last.id} is older than {self.options.unchanged_interval_s} s")
                if age_s < 0:
                    parts = [f"nothing changed, but set {self.last.id} is dated in the future"]
        return ", ".join(parts)

    def _guard(self, survey: Survey) -> None:
        """Refuse a saved path that lost most of what it held: an unmounted disk, a deletion that nobody has seen yet."""
        if self.last is None or not self.options.shrink_limit:
            return
        for name, then in self.last.roots.items():
            files, size = survey.totals.get(name, (0, 0))
            for what, now, before in (("files", files, then["files"]), ("bytes", size, then["bytes"])):
                if before and now < before * (100 - self.options.shrink_limit) / 100:
                    raise BackupError(
                        f"{name} has {now} {what}, the last set {self.last.id} has {before}: more than "
                        f"{self.options.shrink_limit} % are gone",
                        self.source.targets.get(name, name),
                        "Bring the data back (mount, restore); if it is meant to be so, run once with shrink_limit 0",
                    )

    def _check_space(self, plan: Plan) -> None:
        free = free_bytes(self.store.path)
        if plan.size > free:
            raise BackupError(
                f"a set needs up to {human_size(plan.size)} here, {human_size(free)} are free",
                self.store.path,
                "Free space, prune old sets, or move the store to a larger disk",
            )

    # apply ----------------------------------------------------------------------------------------

    def apply(self, plan: Plan) -> None:
        started = self.clock.monotonic()
        try:
            self._store_everything()
        except OSError as error:
            if is_out_of_space(error):
                raise BackupError(
                    "the disk of the store became full; nothing was published, earlier sets are as they were",
                    self.store.path,
                    "Free space, prune old sets, or move the store to a larger disk",
                ) from None
            raise
        finally:
            if self.store.exists_format():
                self.store.sweep()
        self.phases["store_s"] = round(self.clock.monotonic() - started, 3)

    def _store_everything(self) -> None:
        for live in present(self.survey).databases:
            if live.database.missing():
                raise BackupError(
                    f"the database {live.database.name} can't be asked anything",
                    todo=f"Install what that needs: apt-get install {' '.join(live.database.missing())}",
                )
        self.store.create()
        begun = self.clock.now()
        codec = archive.writer_codec()
        with ThreadPoolExecutor(max_workers=WORKERS) as pool, ExitStack() as stack:
            jobs: List[Any] = []
            # A failure must not wait for the work that is still queued.
            stack.callback(lambda: [job.cancel() for job in jobs])

            def at_once(work: Callable[[Any], Any], items: List[Any]) -> List[Any]:
                started = [pool.submit(work, item) for item in items]
                jobs.extend(started)
                return [job.result() for job in started]

            # Databases first: a file without its row does no harm, a row without its file does.
            if self.pause is None:
                plains = self._copy_databases()
                survey = present(self.survey)
                late: List[Tuple[shards.Group, Packed]] = []
            else:
                survey = self._before_pause(at_once, codec)
                plains, late = self._paused(self.pause, survey, at_once)
            copied = sorted(plains, key=lambda item: -os.path.getsize(item[1]))
            made = [pool.submit(self._store_image, live, plain, codec, begun) for live, plain in copied]
            jobs.extend(made)
            if self.pause is None:
                at_once(lambda group: self._keep(survey, group, self._store_shard(group, codec)), by_size(survey.groups))
            else:
                at_once(lambda item: self._keep(survey, item[0], self._compress(item[0], item[1], codec)), late)
            stored = {image.name: image for image in (job.result() for job in made)}
        self._publish(survey, begun, codec, {live.database.name: live for live, _plain in plains}, stored)

    def _copy_databases(self) -> List[Tuple[Live, str]]:
        """Write images of what changed of the databases, and look at everything again: the files are at least as new then."""
        copied: List[Tuple[Live, str]] = []
        while True:
            survey = present(self.survey)
            names = {live.database.name for live, _plain in copied}
            missing = [
                live for live in survey.databases if live.database.name in survey.database_reasons and live.database.name not in names
            ]
            if not missing:
                return copied
            for live in missing:
                # Looked at again: what was committed since the plan is in the image, and must not count as new next time.
                live = self._live(live.database, live.declared, survey.roots)
                plain = self._plain(live)
                with live.database.pinned(plain) as write:
                    write()
                live.database.copy_beside(_beside(plain))
                copied.append((live, plain))
            self.survey = self._look()

    def _plain(self, live: Live) -> str:
        return self.store.at("tmp", f"{live.database.name}.image")

    # with a pause ---------------------------------------------------------------------------------

    def _before_pause(self, at_once: Callable[..., List[Any]], codec: archive.Codec) -> Survey:
        """Store what is to be stored while the application writes; what does not stand still is left to the pause."""
        survey = present(self.survey)

        def store(group: shards.Group) -> None:
            try:
                self._keep(survey, group, self._store_shard(group, codec, attempts=2))
            except archive.Changed:
                return

        at_once(store, by_size(survey.groups))
        return survey

    def _paused(
        self, pause: Pause, survey: Survey, at_once: Callable[..., List[Any]]
    ) -> Tuple[List[Tuple[Live, str]], List[Tuple[shards.Group, Packed]]]:
        """Hold the databases and copy the files of one moment; then write the databases' images while the application goes on."""
        started = self.clock.monotonic()
        with ExitStack() as pinned:
            held = self._begin(pause)
            try:
                writers = self._pin(survey, pinned)
                late = self._copy_late(survey, writers, pinned, at_once)
                lost = pause.lost() if held else ""
            finally:
                if held:
                    self._end(pause)
            self.pause_s = self.phases["pause_s"] = round(self.clock.monotonic() - started, 3)
            if lost:
                self._no_pause(f"the pause of writes did not hold: {lost}")
            elif held:
                self.guarantee = pause.guarantee
            for _live, _plain, write in writers:
                write()
        for live, plain, _write in writers:
            live.database.copy_beside(_beside(plain))
        return [(live, plain) for live, plain, _write in writers], late

    def _begin(self, pause: Pause) -> bool:
        try:
            pause.begin()
        except OpskitError as error:
            self._no_pause(f"writes could not be paused: {error}")
            return False
        return True

    def _end(self, pause: Pause) -> None:
        try:
            pause.end()
        except OpskitError as error:
            self.still_paused = str(error)

    def _no_pause(self, reason: str) -> None:
        if self.options.require_pause:
            raise BackupError(
                f"no set was made, because {reason}",
                self.store.path,
                f"Mend that and run again, or make one without require_pause{self._stuck}",
            )
        self.notes.append(f"{reason}; files and databases of the set are each consistent, but of different moments")

    @property
    def _stuck(self) -> str:
        return f". The application does not write again: {self.still_paused}" if self.still_paused else ""

    def _pin(self, survey: Survey, stack: ExitStack) -> List[Tuple[Live, str, Callable[[], None]]]:
        """Hold each database that is not as it was in the last set."""
        writers = []
        for index, seen in enumerate(survey.databases):
            # Before it is held: a commit in between counts as new next time.
            live = survey.databases[index] = self._moment(seen.database, seen.declared, survey.roots)
            if live.database.name in survey.database_reasons or live.fingerprint != seen.fingerprint:
                writers.append(self._hold(live, stack))
        return writers

    def _hold(self, live: Live, stack: ExitStack) -> Tuple[Live, str, Callable[[], None]]:
        plain = self._plain(live)
        return live, plain, stack.enter_context(live.database.pinned(plain))

    def _copy_late(
        self,
        survey: Survey,
        writers: List[Tuple[Live, str, Callable[[], None]]],
        stack: ExitStack,
        at_once: Callable[..., List[Any]],
    ) -> List[Tuple[shards.Group, Packed]]:
        """Copy what changed since it was stored to tmp/, unpacked. What is in a set's logs is of no moment."""
        known = [live.database.files()[0] for live in survey.databases if not live.declared]
        groups: List[shards.Group] = []
        for root in survey.roots:
            undeclared: List[str] = []
            scan = self._scan(root, known, undeclared)
            for path in undeclared:
                if path not in known:
                    live = self._live(self._adopted(path), False, survey.roots)
                    survey.databases.append(live)
                    writers.append(self._hold(live, stack))
            survey.totals[root.name] = totals(scan)
            mine = {key: kept for key, kept in survey.kept.items() if kept.known.shard.root == root.name and not kept.known.shard.logs}
            there = {key: kept.known for key, kept in mine.items()}
            layout = shards.arrange(self.source, root, scan.saved, False, there, lambda *shard, mine=mine: unlike(mine, *shard), late=True)
            for key in mine:
                del survey.kept[key]
            survey.kept.update((kept.known.shard.id, kept) for kept in layout.kept)
            groups += layout.groups
        packed = at_once(lambda group: self._pack(group, None, ATTEMPTS), groups)
        return [(group, one) for group, one in zip(groups, packed) if one is not None]

    # objects --------------------------------------------------------------------------------------

    def _store_image(self, live: Live, plain: str, codec: archive.Codec, begun: datetime) -> Image:
        facts = live.database.facts(plain)
        image = Image(live.database.name, live.database.engine, live.root, live.file, "", 0, facts, live.declared)
        image = (
            self._store_same(image, plain) or self._store_patch(image, plain, codec, begun) or self._store_whole(image, plain, codec, begun)
        )
        if os.path.lexists(_beside(plain)):
            facts["beside"] = {"bytes": os.path.getsize(_beside(plain)), "sha256": hash_file(_beside(plain))}
            name, stored = self._store_plain(_beside(plain), "sql", codec)
            image = image._replace(beside=name, beside_bytes=stored)
        known = self._last_image(live.database.name)
        self.fresh.update({image.object, image.beside} - ({known.object, known.beside} if known else set()) - {""})
        return image

    def _store_same(self, image: Image, plain: str) -> Optional[Image]:
        """Take the last set's object for an image of the same bytes, which a lost cache, or a commit of nothing, makes."""
        known = self._last_image(image.name)
        if known is None or known.facts["sha256"] != image.facts["sha256"] or self._is_lost(known):
            return None
        os.unlink(plain)
        return known._replace(root=image.root, file=image.file, facts=image.facts, declared=image.declared, beside="", beside_bytes=0)

    def _store_whole(self, image: Image, plain: str, codec: archive.Codec, begun: datetime) -> Image:
        name, stored = self._store_plain(plain, "dump", codec)
        return image._replace(object=name, stored_bytes=stored, full_at=rfc3339(begun))

    def _store_patch(self, image: Image, plain: str, codec: archive.Codec, begun: datetime) -> Optional[Image]:
        """Store an image as what differs from a whole one; None where there is none, or no room, or it would be hardly smaller."""
        base = images.base_of(self._last_image(image.name), begun)
        size = os.path.getsize(plain)
        if (
            codec != archive.ZSTD
            or base is None
            or base.object in self.suspects
            or not self.store.has_object(base.object, base.stored_bytes)
        ):
            return None
        if not images.can_patch(base, size, images.available_memory(), free_bytes(self.store.at("tmp"))):
            return None
        whole, target = f"{plain}.base", f"{plain}.delta"
        try:
            archive.decompress(self.store.object_path(base.object), whole)
            archive.patch_from(whole, plain, target, self.options.compression_level)
        except BackupError as error:
            # Damage that no verification has met yet; a whole image needs nothing of it.
            self.notes.append(f"no delta was made against {base.object}: {error}")
            return None
        finally:
            if os.path.lexists(whole):
                os.unlink(whole)
        stored = os.path.getsize(target)
        if not images.is_worth_it(base, stored):
            os.unlink(target)
            return None
        os.unlink(plain)
        name = self.store.adopt(target, f"delta.{archive.ZSTD.ending}", self.suspects)
        memory = images.memory_to_apply(base, size)
        return image._replace(
            object=name,
            stored_bytes=stored,
            full_at=base.full_at,
            base=base.object,
            base_bytes=base.stored_bytes,
            base_image_bytes=base.image_bytes,
            restore_memory=memory,
        )

    def _store_plain(self, plain: str, kind: str, codec: archive.Codec) -> Tuple[str, int]:
        """Compress a file of tmp/ into an object; returns its name and stored bytes. The plain file is gone then."""
        target = f"{plain}.{codec.ending}"
        archive.compress(plain, target, codec, self.options.compression_level)
        os.unlink(plain)
        stored = os.path.getsize(target)
        return self.store.adopt(target, f"{kind}.{codec.ending}", self.suspects), stored

    def _store_shard(self, group: shards.Group, codec: archive.Codec, attempts: int = ATTEMPTS) -> Optional[shards.Kept]:
        packed = self._pack(group, codec, attempts)
        return self._adopt_shard(group, packed, codec) if packed is not None else None

    def _compress(self, group: shards.Group, packed: Packed, codec: archive.Codec) -> shards.Kept:
        """Make an object of what was copied plain."""
        target = f"{packed.path}.{codec.ending}"
        archive.compress(packed.path, target, codec, self.options.compression_level)
        os.unlink(packed.path)
        return self._adopt_shard(group, packed._replace(path=target), codec)

    def _pack(self, group: shards.Group, codec: Optional[archive.Codec], attempts: int) -> Optional[Packed]:
        """Write a shard's archive to tmp/, plain without a codec; None when all of its members are gone.

        Raises :class:`archive.Changed` when a member changed each time that it was read and fewer attempts were allowed than ever are,
        :class:`BackupError` after as many as ever.
        """
        entries, words = group.entries, ""
        for attempt in range(attempts):
            target = self.store.at("tmp", f"{hashlib.sha256(group.id.encode('utf-8')).hexdigest()[:16]}.{attempt}")
            try:
                members = archive.pack(
                    group.root.base,
                    [entry.path for entry in entries],
                    target,
                    codec,
                    self.options.compression_level,
                    group.bytes,
                    growing=group.logs,
                )
                return Packed(target, entries, stored_records(group, entries, members))
            except archive.Changed as error:
                words = str(error)
                os.unlink(target)
                time.sleep(0.1 * attempt)
                entries = [entry for entry in (look(group.root.base, old.path) for old in entries) if entry is not None]
                if not entries:
                    return None
        if attempts < ATTEMPTS:
            raise archive.Changed(words)
        raise BackupError(
            f"a file changed each of the {ATTEMPTS} times that it was read ({words})",
            group.root.path,
            "Declare it under logs or volatile, or stop the application for the backup",
        )

    def _adopt_shard(self, group: shards.Group, packed: Packed, codec: archive.Codec) -> shards.Kept:
        """Give an archive its place, unless the last set has one of the same members."""
        records = packed.records
        for value in records:
            value["shard"] = group.id
        tree = tree_hash(records)
        size = sum(value.get("size", 0) for value in records)
        known = self.previous.get(group.id)
        if known is not None and known.shard.tree == tree and known.shard.object not in self.suspects:
            if self.store.has_object(known.shard.object, known.shard.stored_bytes):
                os.unlink(packed.path)
                shard = known.shard._replace(files=len(records), bytes=size)
                return shards.Kept(shards.Known(shard, records, []), packed.entries)
        stored = os.path.getsize(packed.path)
        name = self.store.adopt(packed.path, f"tar.{codec.ending}", self.suspects)
        self.fresh.add(name)
        shard = Shard(group.id, group.root.name, name, tree, len(records), size, stored, group.logs)
        return shards.Kept(shards.Known(shard, records, []), packed.entries)

    @staticmethod
    def _keep(survey: Survey, group: shards.Group, kept: Optional[shards.Kept]) -> None:
        """Note that a group is stored; one whose members all went meanwhile is none."""
        if kept is not None:
            survey.kept[group.id] = kept

    def _publish(
        self, survey: Survey, begun: datetime, codec: archive.Codec, copied: Dict[str, Live], stored_images: Dict[str, Image]
    ) -> None:
        ordered = [survey.kept[key] for key in sorted(survey.kept)]
        records = [value for kept in ordered for value in (*kept.known.records, *kept.known.stale)]
        cache = self._cache_of(survey)
        databases: List[Image] = []
        for seen in survey.databases:
            name = seen.database.name
            image = stored_images.get(name) or present(self._last_image(name))
            databases.append(image)
            # Taken before the image was: a commit in between counts as new next time.
            cache[f"database {name}"] = {"object": image.object, "fingerprint": copied.get(name, seen).fingerprint}
        roots: Dict[str, Dict[str, Any]] = {}
        for root in survey.roots:
            files, size = survey.totals[root.name]
            roots[root.name] = {"type": "file" if root.is_file else "dir", "files": files, "bytes": size}
            put_text(roots[root.name], "path", root.path)
        manifest = Manifest(
            id=f"{begun.strftime('%Y%m%dT%H%M%SZ')}-{self.clock.token()}",
            seq=self.last.seq + 1 if self.last else 1,
            time=begun.replace(microsecond=0),
            application=self.store.application,
            store=self.store.uuid,
            collection=self.options.collection,
            roots=roots,
            shards=[kept.known.shard for kept in ordered],
            databases=databases,
            files="",
            new_bytes=0,
            guarantee=self.guarantee,
            pause_s=self.pause_s,
        )
        sizes = manifest.objects
        manifest = manifest._replace(new_bytes=sum(sizes[name] for name in self.fresh if name in sizes))
        self.made = self.store.publish_set(manifest, records, codec, restore_script(manifest, stale_members(records)))
        self.store.write_cache({**cache, OF_SET: {"id": self.made.id}})

    def _cache_of(self, survey: Survey) -> Dict[str, Dict[str, str]]:
        """Return what tells next time, without reading, that files are what is stored."""
        found = {}
        for key, kept in survey.kept.items():
            entries = kept.entries
            settled = all(shards.is_settled(entry, survey.scanned_ns) for entry in entries)
            found[key] = {
                "fingerprint": shards.fingerprint(entries) if settled else "",
                "prints": shards.prints(entries, survey.scanned_ns),
            }
        return found

    # verify ---------------------------------------------------------------------------------------

    def verify(self) -> List[Check]:
        made = present(self.made)
        if self.options.verify == "none":
            return []
        started = self.clock.monotonic()
        manifest = self.store.manifest(made.id)
        # An object that this set took over counts by the proof of the set that it was taken from.
        trusted = self.last is not None and self.store.verified(self.last.id)
        only = self.fresh if trusted else None
        failures, read = verify_objects(self.store, manifest, self.options.verify, self.checkers, only)
        self.store.write_proof(manifest.id, self.options.verify, failures, self.clock, read)
        self.phases["verify_s"] = round(self.clock.monotonic() - started, 3)
        if failures:
            return [Check(failure["object"] or manifest.id, False, failure["reason"]) for failure in failures]
        return [Check(f"{self.options.verify} of set {manifest.id}", True, f"{read} objects read back and compared")]

    def note(self) -> None:
        if self.made is None and self.survey is not None:
            learned = {**self._cache_of(self.survey), OF_SET: {"id": present(self.last).id}}
            for live in self.survey.databases:
                known = self._last_image(live.database.name)
                if known is not None:
                    learned[f"database {known.name}"] = {"object": known.object, "fingerprint": live.fingerprint}
            if learned != self.cache:
                self.store.write_cache(learned)

    def failure(self) -> str:
        if not self.still_paused:
            return ""
        return f"Set {present(self.made).id} was made, but the application does not write again: {self.still_paused}"

    def result(self) -> Dict[str, Any]:
        shown = self.made or self.last
        warnings = list(self.survey.warnings if self.survey else []) + self._same_disk() + self.notes
        return {
            "reason": self.reason,
            "set": summary(self.store, shown) if shown else None,
            "phases": self.phases,
            "warnings_": warnings + [self.damage] * bool(self.damage),
        }

    def _same_disk(self) -> List[str]:
        place = self.store.path
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        if any(os.stat(place).st_dev == os.stat(path).st_dev for path in self.source.targets.values() if os.path.exists(path)):
            return [f"the store {self.store.path} is on the same file system as the data; one failing disk takes both"]
        return []


def summary(store: Store, manifest: Manifest) -> Dict[str, Any]:
    """Return what results say about a set: metadata only."""
    proof = store.proof(manifest.id)
    return {
        "id": manifest.id,
        "seq": manifest.seq,
        "time": rfc3339(manifest.time),
        "files": sum(shard.files for shard in manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards) + sum(x.facts["bytes"] for x in manifest.databases),
        "stored_bytes": sum(manifest.objects.values()),
        "new_bytes": manifest.new_bytes,
        "guarantee": manifest.guarantee,
        "pause_s": manifest.pause_s,
        "paths": sorted(manifest.roots),
        "databases": [image.name for image in manifest.databases],
        "schema_versions": {
            image.name: str(image.facts["schema_version"]) for image in manifest.databases if image.facts.get("schema_version")
        },
        "verified": proof.level if proof.ok else "none",
        "verified_at": rfc3339(proof.time) if proof.ok and proof.time else "",
        "failed": "" if proof.ok else "; ".join(item["reason"] for item in proof.failures[:3]),
    }


def by_size(groups: List[shards.Group]) -> List[shards.Group]:
    """Return the largest first: alone at the end it would keep one core busy and the others idle."""
    return sorted(groups, key=lambda group: -group.bytes)


def totals(scan: Scan) -> Tuple[int, int]:
    """Return how many files a root has, without logs, and their bytes."""
    return sum(entry.type == "file" for entry in scan.saved), sum(entry.size for entry in scan.saved)


def unlike(stored: Dict[str, shards.Kept], known: shards.Known, entries: List[Entry]) -> shards.Judgement:
    """Find the members of a stored shard to which something was done since they were stored."""
    then = {entry.path: entry for entry in stored[known.shard.id].entries}
    return shards.Judgement("", [entry.path for entry in entries if not entry.same_file(then[entry.path])])


def same_record(one: Optional[Record], other: Record) -> bool:
    """True when two lines say the same about a member, wherever it is stored."""
    return one is not None and tree_hash([one]) == tree_hash([other])


def _require_readable(group: shards.Group) -> None:
    if os.geteuid() == 0:
        return
    for entry in group.entries:
        path = os.path.join(group.root.base, entry.path)
        if entry.type == "file" and os.path.lexists(path) and not os.access(path, os.R_OK):
            raise BackupError("this file can't be read", path, "Run as a user who may read it (become)")


def _beside(plain: str) -> str:
    """Return where what belongs with an image is written, beside it in tmp/."""
    return plain + ".beside"
