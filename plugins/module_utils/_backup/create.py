# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a set: scan, compare with the last set, store what is new, publish, read back."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .._core.clock import Clock, rfc3339
from .._core.command import find_program
from .._core.errors import present
from .._core.files import free_bytes, hash_file, human_size, is_out_of_space
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .._core.protocols import DatabaseSource
from . import archive, shards
from .errors import BackupError
from .manifest import Image, Manifest, Record, Shard, get_text, put_text, tree_hash
from .records import make_records, read_records, stored_records
from .script import restore_script
from .source import Entry, Root, Scan, Source, is_below, look
from .store import Store
from .verify import ImageCheckers, verify_objects

DAMAGED = "its object is damaged or missing"
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
    groups: List[shards.Group]
    reasons: Dict[str, str]
    """Why a shard has to be stored, by id; not in here: it is the last set's one."""
    prints: Dict[str, str]
    """Fingerprint by shard, of those that were seen to equal the last set's."""
    databases: List[Live]
    database_reasons: Dict[str, str]
    warnings: List[str]
    homes: Dict[Tuple[int, int], Tuple[str, bool]]
    """Where a file with several names was first met: the root, and whether among its logs."""


class BackupSet(Operation):
    """Make a set of an application in its store, if there is something new.

    :param adopt: returns the database of an undeclared file, by name and path
    :param checkers: by engine, looks at a database image
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        options: Options,
        clock: Clock,
        adopt: Callable[[str, str], DatabaseSource],
        checkers: ImageCheckers,
    ) -> None:
        self.store = store
        self.source = source
        self.options = options
        self.clock = clock
        self.adopt = adopt
        self.checkers = checkers
        self.last: Optional[Manifest] = None
        self.previous: Dict[str, shards.Previous] = {}
        self.cache: Dict[str, Dict[str, str]] = {}
        self.suspects: Set[str] = set()
        self.damage = ""
        """What is wrong with the last set's own files."""
        self.survey: Optional[Survey] = None
        self.reason = ""
        self.made: Optional[Manifest] = None
        self.fresh: Set[str] = set()
        self.phases: Dict[str, float] = {}

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        # The paths are looked at first, so that a wrong one does not leave an empty store behind.
        self.source.roots()
        self._check_place()
        with self.store.writer(self.options.lock_timeout_s):
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
        self.store.require_locks()
        for database in self.source.databases:
            database.require()

    def _read_store(self) -> None:
        if not self.store.exists():
            return
        self.store.open()
        sets = self.store.sets()
        self.cache = self.store.read_cache()
        self.suspects = self.store.suspects()
        if sets:
            self.last = sets[-1]
            damage = self.store.set_damage(self.last)
            if damage:
                # Everything is read and stored again, so that one damaged file does not end all backups.
                self.damage = f"set {self.last.id} is damaged, so nothing of it is relied on: {damage[0]}"
            else:
                self.previous = shards.previous_shards(self.last.shards, self.store.file_list(self.last))

    def _look(self) -> Survey:
        scanned_ns = time.time_ns()
        roots = self.source.roots()
        survey = Survey(scanned_ns, roots, {}, [], {}, {}, [], {}, [], {})
        known = [] if self.last is None else self._known_undeclared(roots)
        undeclared: List[str] = []
        for root in roots:
            scan = self.source.scan(root, known)
            if scan.undeclared:
                known = [*known, *scan.undeclared]
                scan = self.source.scan(root, known)
            undeclared.extend(path for path in known if is_below(path, root.path) and path not in undeclared)
            self._add_root(survey, scan)
        for database in self.source.databases:
            survey.databases.append(self._live(database, True, survey.roots))
        for path in undeclared:
            name = "undeclared-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
            survey.databases.append(self._live(self.adopt(name, path), False, survey.roots))
            survey.warnings.append(f"{path} is a database that the description does not name; saved as an image")
        for live in survey.databases:
            reason = self._database_reason(live)
            if reason:
                survey.database_reasons[live.database.name] = reason
        self._guard(survey)
        return survey

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
        survey.totals[root.name] = (
            sum(entry.type == "file" for entry in scan.saved),
            sum(entry.size for entry in scan.saved),
        )
        if scan.skipped:
            survey.warnings.append(f"{len(scan.skipped)} sockets, FIFOs or devices can't be saved, the first is {scan.skipped[0]}")
        for entries, logs in ((scan.saved, False), (scan.logs, True)):
            self._look_for_far_links(survey, root, entries, logs)
            for group in shards.assign(self.source, root, entries, logs, self.previous):
                survey.groups.append(group)
                printed = shards.fingerprint(group.entries)
                reason = self._shard_reason(group, printed)
                if reason:
                    _require_readable(group)
                    survey.reasons[group.id] = reason
                elif shards.is_settled(group.entries, survey.scanned_ns):
                    survey.prints[group.id] = printed

    def _look_for_far_links(self, survey: Survey, root: Root, entries: List[Entry], logs: bool) -> None:
        """Warn of files with names in two saved paths: an archive holds one path, so they come back as two files."""
        for entry in entries:
            if entry.links > 1 and entry.type == "file":
                home = survey.homes.setdefault((entry.device, entry.inode), (root.name, logs))
                if home != (root.name, logs):
                    path = os.path.join(root.base, entry.path)
                    survey.warnings.append(f"{path} has another name in {home[0]}; a restore makes two files of them")

    def _shard_reason(self, group: shards.Group, printed: str) -> str:
        """Say why a shard has to be stored; empty when the last set's object is good for it."""
        known = self.previous.get(group.id)
        if known is None:
            return "new"
        if known.shard.object in self.suspects or not self.store.has_object(known.shard.object, known.shard.stored_bytes):
            return DAMAGED
        cached = self.cache.get(group.id, {})
        if cached.get("tree") == known.shard.tree and cached.get("fingerprint") == printed:
            return ""
        reason = shards.difference(group.entries, known.records)
        if reason is None and tree_hash(read_records(group)) != known.shard.tree:
            reason = "content changed while size and time stayed"
        return reason or ""

    def _live(self, database: DatabaseSource, declared: bool, roots: List[Root]) -> Live:
        database.require()
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
        for name, size in ((known.object, known.stored_bytes), (known.beside, known.beside_bytes)):
            if name and (name in self.suspects or not self.store.has_object(name, size)):
                return DAMAGED
        if (known.root, get_text(known.file, "path")) != (live.root, get_text(live.file, "path")):
            return "it lies in another place now"
        cached = self.cache.get(f"database {live.database.name}", {})
        if cached.get("object") == known.object and cached.get("fingerprint") == live.fingerprint:
            return ""
        return "" if live.database.is_as(known.facts) else "changed"

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
        ids = {group.id for group in survey.groups}
        gone = [shard.id for shard in self.last.shards if shard.id not in ids and not shard.logs]
        names = {live.database.name for live in survey.databases}
        gone.extend(image.name for image in self.last.databases if image.name not in names)
        if changed:
            parts.append(f"{changed} shards changed")
        if survey.database_reasons:
            parts.append(f"{len(survey.database_reasons)} databases changed")
        if gone:
            parts.append(f"{len(gone)} shards or databases are gone")
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
            # Databases first: a file without its row does no harm, a row without its file does.
            survey = present(self.survey)
            images: Dict[str, Tuple[Live, str]] = {}
            while True:
                missing = [
                    live for live in survey.databases if live.database.name in survey.database_reasons and live.database.name not in images
                ]
                if not missing:
                    break
                images.update((live.database.name, self._copy(live)) for live in missing)
                survey = self._look()
            image_jobs = {
                name: pool.submit(self._store_image, live, plain, codec)
                for name, (live, plain) in sorted(images.items(), key=lambda item: -os.path.getsize(item[1][1]))
            }
            dirty = [group for group in survey.groups if group.id in survey.reasons]
            shard_jobs = {group.id: pool.submit(self._store_shard, group, codec) for group in sorted(dirty, key=lambda group: -group.bytes)}
            jobs.extend([*image_jobs.values(), *shard_jobs.values()])
            stored_images = {name: job.result() for name, job in image_jobs.items()}
            stored_shards = {shard_id: job.result() for shard_id, job in shard_jobs.items()}
        self._publish(survey, begun, codec, images, stored_images, stored_shards)

    def _copy(self, live: Live) -> Tuple[Live, str]:
        plain = self.store.at("tmp", f"{live.database.name}.image")
        # Looked at again: what was committed since the plan is in the image, and must not count as new next time.
        live = self._live(live.database, live.declared, present(self.survey).roots)
        live.database.copy(plain)
        live.database.copy_beside(_beside(plain))
        return live, plain

    def _store_image(self, live: Live, plain: str, codec: archive.Codec) -> Image:
        facts = live.database.facts(plain)
        name, stored = self._store_plain(plain, "dump", codec)
        image = Image(live.database.name, live.database.engine, live.root, live.file, name, stored, facts, live.declared)
        if os.path.lexists(_beside(plain)):
            facts["beside"] = {"bytes": os.path.getsize(_beside(plain)), "sha256": hash_file(_beside(plain))}
            name, stored = self._store_plain(_beside(plain), "sql", codec)
            image = image._replace(beside=name, beside_bytes=stored)
        known = self._last_image(live.database.name)
        self.fresh.update({image.object, image.beside} - ({known.object, known.beside} if known else set()) - {""})
        return image

    def _store_plain(self, plain: str, kind: str, codec: archive.Codec) -> Tuple[str, int]:
        """Compress a file of tmp/ into an object; returns its name and stored bytes. The plain file is gone then."""
        target = f"{plain}.{codec.ending}"
        archive.compress(plain, target, codec, self.options.compression_level)
        os.unlink(plain)
        stored = os.path.getsize(target)
        return self.store.adopt(target, f"{kind}.{codec.ending}", self.suspects), stored

    def _store_shard(self, group: shards.Group, codec: archive.Codec) -> Optional[Tuple[Shard, List[Record]]]:
        entries, words = group.entries, ""
        for attempt in range(ATTEMPTS):
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
                records = stored_records(group, entries, members)
                break
            except archive.Changed as error:
                words = str(error)
                os.unlink(target)
                time.sleep(0.1 * attempt)
                entries = [entry for entry in (look(group.root.base, old.path) for old in entries) if entry is not None]
                if not entries:
                    return None
        else:
            raise BackupError(
                f"a file changed each of the {ATTEMPTS} times that it was read ({words})",
                group.root.path,
                "Declare it under logs or volatile, or stop the application for the backup",
            )
        for value in records:
            value["shard"] = group.id
        tree = tree_hash(records)
        known = self.previous.get(group.id)
        if known is not None and known.shard.tree == tree and known.shard.object not in self.suspects:
            if self.store.has_object(known.shard.object, known.shard.stored_bytes):
                os.unlink(target)
                return known.shard, records
        stored = os.path.getsize(target)
        name = self.store.adopt(target, f"tar.{codec.ending}", self.suspects)
        self.fresh.add(name)
        size = sum(value.get("size", 0) for value in records)
        return Shard(group.id, group.root.name, name, tree, len(records), size, stored, group.logs), records

    def _publish(
        self,
        survey: Survey,
        begun: Any,
        codec: archive.Codec,
        images: Dict[str, Tuple[Live, str]],
        stored_images: Dict[str, Image],
        stored_shards: Dict[str, Optional[Tuple[Shard, List[Record]]]],
    ) -> None:
        all_shards: List[Shard] = []
        records: List[Record] = []
        cache: Dict[str, Dict[str, str]] = {}
        for group in survey.groups:
            if group.id in stored_shards:
                done = stored_shards[group.id]
                if done is None:
                    continue
                shard, members = done
                if shards.is_settled(group.entries, survey.scanned_ns) and len(members) == len(group.entries):
                    cache[group.id] = {"tree": shard.tree, "fingerprint": shards.fingerprint(group.entries)}
            else:
                shard, members = self.previous[group.id]
                if group.id in survey.prints:
                    cache[group.id] = {"tree": shard.tree, "fingerprint": survey.prints[group.id]}
            all_shards.append(shard)
            records.extend(members)
        databases: List[Image] = []
        for seen in survey.databases:
            name = seen.database.name
            image = stored_images.get(name) or present(self._last_image(name))
            databases.append(image)
            # Taken before the image was: a commit in between counts as new next time.
            live = images[name][0] if name in images else seen
            cache[f"database {name}"] = {"object": image.object, "fingerprint": live.fingerprint}
        roots = {
            root.name: {
                "type": "file" if root.is_file else "dir",
                "path": "",
                "files": survey.totals[root.name][0],
                "bytes": survey.totals[root.name][1],
            }
            for root in survey.roots
        }
        for root in survey.roots:
            del roots[root.name]["path"]
            put_text(roots[root.name], "path", root.path)
        manifest = Manifest(
            id=f"{begun.strftime('%Y%m%dT%H%M%SZ')}-{self.clock.token()}",
            seq=self.last.seq + 1 if self.last else 1,
            time=begun.replace(microsecond=0),
            application=self.store.application,
            store=self.store.uuid,
            collection=self.options.collection,
            roots=roots,
            shards=all_shards,
            databases=databases,
            files="",
            new_bytes=0,
            guarantee="none",
        )
        sizes = manifest.objects
        manifest = manifest._replace(new_bytes=sum(sizes[name] for name in self.fresh if name in sizes))
        self.made = self.store.publish_set(manifest, records, codec, restore_script(manifest))
        self.store.write_cache(cache)

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
            learned = dict(self.cache)
            for shard_id, printed in self.survey.prints.items():
                learned[shard_id] = {"tree": self.previous[shard_id].shard.tree, "fingerprint": printed}
            for live in self.survey.databases:
                known = self._last_image(live.database.name)
                if known is not None:
                    learned[f"database {known.name}"] = {"object": known.object, "fingerprint": live.fingerprint}
            if learned != self.cache:
                self.store.write_cache(learned)

    def result(self) -> Dict[str, Any]:
        shown = self.made or self.last
        return {
            "reason": self.reason,
            "set": summary(self.store, shown) if shown else None,
            "phases": self.phases,
            "warnings_": list(self.survey.warnings if self.survey else []) + self._same_disk() + [self.damage] * bool(self.damage),
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
        "paths": sorted(manifest.roots),
        "databases": [image.name for image in manifest.databases],
        "schema_versions": {
            image.name: str(image.facts["schema_version"]) for image in manifest.databases if image.facts.get("schema_version")
        },
        "verified": proof.level if proof.ok else "none",
        "verified_at": rfc3339(proof.time) if proof.ok and proof.time else "",
        "failed": "" if proof.ok else "; ".join(item["reason"] for item in proof.failures[:3]),
    }


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
