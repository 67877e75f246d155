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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .._core.clock import Clock, rfc3339
from .._core.command import find_program
from .._core.environment import fingerprint
from .._core.errors import OpskitError, present
from .._core.files import free_bytes, human_size, is_out_of_space
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .._core.protocols import DatabaseSource, Pause
from . import shards
from .errors import BackupError
from .manifest import STALE, Image, Manifest, Record, get_text, put_text, stale_members
from .packing import Packed, Packer, beside
from .past import OF_SET, Past, read_past
from .script import restore_script
from .source import ENVIRONMENT, Entry, Source, is_below
from .store import Store
from .survey import DAMAGED, Live, Survey, Surveyor, totals, unlike
from .verify import ImageCheckers, verify_objects

ATTEMPTS = 5
"""How often a file that changes meanwhile is read before the backup gives up on it."""
WORKERS = (os.cpu_count() or 1) + 2
"""Shards that are stored at a time: more than cores, because each waits for the disk at its end."""


AtOnce = Callable[[Callable[[Any], Any], List[Any]], List[Any]]
"""Calls a function with each of a list's items, several at a time, and returns what it returned."""


class Held(NamedTuple):
    """A database that is held as it was at one moment."""

    live: Live
    plain: str
    """Where its plain image goes."""
    write: Callable[[], None]
    """Writes that."""
    stack: ExitStack
    """Closing it lets go of the database."""


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
    key_variables: Tuple[str, ...] = ()
    """Variables of the environment file whose values data is encrypted or signed with."""


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
        self.past = Past(None, {}, {}, set(), "")
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
        self.past = read_past(self.store)
        survey = self.survey = self._surveyor.look()
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
            self.reason = f"nothing changed since set {present(self.past.last).id}"
        self.phases["scan_s"] = round(self.clock.monotonic() - started, 3)
        return plan

    @property
    def _surveyor(self) -> Surveyor:
        return Surveyor(self.store, self.past, self.source, self.adopt, self.options.shrink_limit)

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

    def _why(self, survey: Survey) -> str:
        """Say why a new set is made; empty when none is."""
        if self.past.last is None:
            return "the first set"
        parts = []
        logs = {group.id for group in survey.groups if group.logs}
        changed = sum(shard_id not in logs or reason == DAMAGED for shard_id, reason in survey.reasons.items())
        names = {live.database.name for live in survey.databases}
        gone = [image.name for image in self.past.last.databases if image.name not in names]
        gone += sorted({shard.root for shard in self.past.last.shards} - {root.name for root in survey.roots})
        if changed:
            parts.append(f"{changed} shards changed")
        if survey.database_reasons:
            parts.append(f"{len(survey.database_reasons)} databases changed")
        if gone:
            parts.append(f"{', '.join(gone)} belongs to it no more")
        parts += survey.gone
        proof = self.store.proof(self.past.last.id)
        if not parts and not proof.ok:
            parts.append(f"set {self.past.last.id} failed its verification")
        elif not parts and self.options.verify != "none" and proof.time is None:
            # A run that was killed after it published, say. Such a set counts neither for retention nor as the latest.
            parts.append(f"set {self.past.last.id} was never verified")
        if not parts:
            # A set that is dated in the future never makes a run think that it was done already.
            age_s = (self.clock.now() - self.past.last.time).total_seconds()
            if not 0 <= age_s < self.options.unchanged_interval_s:
                parts.append(f"nothing changed, but set {self.past.last.id} is older than {self.options.unchanged_interval_s} s")
                if age_s < 0:
                    parts = [f"nothing changed, but set {self.past.last.id} is dated in the future"]
        return ", ".join(parts)

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
        except OpskitError as error:
            if not self.still_paused:
                raise
            raise BackupError(
                f"{error.what}, and the application does not write again: {self.still_paused}", error.where, error.todo
            ) from None
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
        packer = Packer(self.store, self.past, self.options.compression_level, self.clock.now())
        # Images have a thread of their own: they are the largest, and would else wait behind all files.
        with ThreadPoolExecutor(WORKERS) as pool, ThreadPoolExecutor(1) as image_pool, ExitStack() as stack:
            jobs: List[Any] = []
            # A failure must not wait for the work that is still queued.
            stack.callback(lambda: [job.cancel() for job in jobs])

            def at_once(work: Callable[[Any], Any], items: List[Any]) -> List[Any]:
                started = [pool.submit(work, item) for item in items]
                jobs.extend(started)
                return [job.result() for job in started]

            if self.pause is None:
                held = self._hold_databases(packer, stack)
                survey = present(self.survey)
                files: Future[Any] = pool.submit(self._until_still, survey, survey.groups, packer.store_shard, at_once, ATTEMPTS)
            else:
                survey = present(self.survey)
                # What does not stand still is left to the pause.
                self._until_still(survey, survey.groups, packer.store_shard, at_once, 1)
                held, late = self._paused(self.pause, survey, packer, stack, at_once)
                files = pool.submit(self._keep_late, survey, late, packer, at_once)
            jobs.append(files)
            images = []
            for one in held:
                if files.done():
                    files.result()  # an error is not kept waiting
                one.write()
                one.stack.close()
                images.append(image_pool.submit(packer.store_image, one.live, one.plain))
            jobs.extend(images)
            files.result()
            stored = {image.name: image for image in (job.result() for job in images)}
        self._publish(survey, packer, {one.live.database.name: one.live for one in held}, stored)

    def _hold_databases(self, packer: Packer, stack: ExitStack) -> List[Held]:
        """Hold the databases that changed, then look at everything again: a file without its row does no harm, a row without its file does."""
        held: List[Held] = []
        while True:
            survey = present(self.survey)
            names = {one.live.database.name for one in held}
            new = [live for live in survey.databases if live.database.name in survey.database_reasons and live.database.name not in names]
            if not new:
                return held
            for live in new:
                # Looked at again: what was committed since the plan is in the image, and must not count as new next time.
                live = self._surveyor.live(live.database, live.declared, survey.roots)
                held.append(_hold(live, packer, stack))
                live.database.copy_beside(beside(held[-1].plain))
            self.survey = self._surveyor.look([one.live for one in held])

    def _until_still(
        self,
        survey: Survey,
        groups: List[shards.Group],
        store: Callable[[shards.Group], Tuple[Any, List[Entry]]],
        at_once: AtOnce,
        attempts: int,
    ) -> List[Tuple[shards.Group, Any]]:
        """Store groups, then what changed while it was read, which is less each time and read the sooner.

        Returns each group with what became of it. With one attempt the rest is left, with more of them it is an error.
        """
        done: List[Tuple[shards.Group, Any]] = []
        for attempt in range(attempts):
            groups = by_size(groups)
            found = at_once(store, groups)
            new = [(group, made) for group, (made, _moved) in zip(groups, found) if made is not None]
            done += new
            survey.kept.update((group.id, made) for group, made in new if isinstance(made, shards.Kept))
            moved = [(group, entries) for group, (_made, entries) in zip(groups, found)]
            groups = shards.groups_of_moved(moved, [*survey.kept, *(group.id for group, _made in done)])
            if not groups:
                return done
            time.sleep(0.1 * attempt)
        if attempts > 1:
            raise BackupError(
                f"a file changed each of the {attempts} times that it was read ({groups[0].entries[0].path})",
                groups[0].root.path,
                "Declare it under logs or volatile, or pause or stop the application for the backup",
            )
        return done

    # with a pause ---------------------------------------------------------------------------------

    def _paused(
        self, pause: Pause, survey: Survey, packer: Packer, stack: ExitStack, at_once: AtOnce
    ) -> Tuple[List[Held], List[Tuple[shards.Group, Packed]]]:
        """Hold the databases and copy the files of one moment, in which the application writes nothing."""
        started = self.clock.monotonic()
        paused = self._begin(pause)
        try:
            held = self._pin(survey, packer, stack)
            late = self._copy_late(survey, held, packer, stack, at_once)
            lost = pause.lost() if paused else ""
        finally:
            if paused:
                self._end(pause)
        self.pause_s = self.phases["pause_s"] = round(self.clock.monotonic() - started, 3)
        if lost:
            self._no_pause(f"the pause of writes did not hold: {lost}")
        elif paused:
            self.guarantee = pause.guarantee
        for one in held:
            one.live.database.copy_beside(beside(one.plain))
        return held, late

    @staticmethod
    def _keep_late(survey: Survey, late: List[Tuple[shards.Group, Packed]], packer: Packer, at_once: AtOnce) -> None:
        """Make objects of what was copied in the pause."""
        stored = at_once(lambda item: packer.compress(item[0], item[1]), late)
        survey.kept.update((kept.known.shard.id, kept) for kept in stored)

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
                "Mend that and run again, or make one without require_pause",
            )
        self.notes.append(f"{reason}; files and databases of the set are each consistent, but of different moments")

    def _pin(self, survey: Survey, packer: Packer, stack: ExitStack) -> List[Held]:
        """Hold each database that is not as it was in the last set."""
        held: List[Held] = []
        databases: List[Live] = []
        for seen in survey.databases:
            try:
                # Before it is held: a commit in between counts as new next time.
                live = self._surveyor.moment(seen.database, seen.declared, survey.roots)
                if live.database.name in survey.database_reasons or live.fingerprint != seen.fingerprint:
                    held.append(_hold(live, packer, stack))
            except OpskitError:
                if seen.declared:
                    raise
                # It went, or is a file like any other by now: that is seen with the files. If it is still a database, it fails there again.
                continue
            databases.append(live)
        survey.databases[:] = databases
        return held

    def _copy_late(
        self, survey: Survey, held: List[Held], packer: Packer, stack: ExitStack, at_once: AtOnce
    ) -> List[Tuple[shards.Group, Packed]]:
        """Copy what changed since it was stored to tmp/, unpacked. What is in a set's logs is of no moment."""
        known = [live.database.files()[0] for live in survey.databases if not live.declared]
        groups: List[shards.Group] = []
        surveyor = self._surveyor
        for root in survey.roots:
            undeclared: List[str] = []
            scan = surveyor.scan(root, known, undeclared)
            for path in undeclared:
                if path not in known:
                    live = surveyor.live(surveyor.adopted(path), False, survey.roots)
                    survey.databases.append(live)
                    held.append(_hold(live, packer, stack))
            survey.totals[root.name] = totals(scan)
            mine = {key: kept for key, kept in survey.kept.items() if kept.known.shard.root == root.name and not kept.known.shard.logs}
            there = {key: kept.known for key, kept in mine.items()}
            judge = partial(unlike, mine, survey.scanned_ns)
            layout = shards.arrange(self.source, root, scan.saved, False, there, judge, late=True)
            for key in mine:
                del survey.kept[key]
            survey.kept.update((kept.known.shard.id, kept) for kept in layout.kept)
            groups += layout.groups
        return self._until_still(survey, groups, lambda group: packer.pack(group, None), at_once, ATTEMPTS)

    # publish --------------------------------------------------------------------------------------

    def _publish(self, survey: Survey, packer: Packer, copied: Dict[str, Live], stored_images: Dict[str, Image]) -> None:
        ordered = [survey.kept[key] for key in sorted(survey.kept)]
        records = [value for kept in ordered for value in (*kept.known.records, *kept.known.stale)]
        cache = self._cache_of(survey)
        databases: List[Image] = []
        for seen in survey.databases:
            name = seen.database.name
            image = stored_images.get(name) or present(self.past.image(name))
            databases.append(image)
            # Taken before the image was: a commit in between counts as new next time.
            cache[f"database {name}"] = {"object": image.object, "fingerprint": copied.get(name, seen).fingerprint}
        roots: Dict[str, Dict[str, Any]] = {}
        for root in survey.roots:
            files, size = survey.totals[root.name]
            roots[root.name] = {"type": "file" if root.is_file else "dir", "files": files, "bytes": size}
            put_text(roots[root.name], "path", root.path)
        manifest = Manifest(
            id=f"{packer.begun.strftime('%Y%m%dT%H%M%SZ')}-{self.clock.token()}",
            seq=self.past.last.seq + 1 if self.past.last else 1,
            time=packer.begun.replace(microsecond=0),
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
            keys=self._keys(survey, records),
        )
        sizes = manifest.objects
        self.fresh = packer.fresh
        self.notes += packer.notes
        manifest = manifest._replace(new_bytes=sum(sizes[name] for name in packer.fresh if name in sizes))
        self.made = self.store.publish_set(manifest, records, packer.codec, restore_script(manifest, stale_members(records)))
        self.store.write_cache({**cache, OF_SET: {"id": self.made.id}})

    def _keys(self, survey: Survey, records: List[Record]) -> Dict[str, str]:
        """Return the fingerprints of the application's keys in the environment file as it is in the set."""
        path = self.source.targets.get(ENVIRONMENT, "")
        if not self.options.key_variables or not os.path.isfile(path):
            return {}
        with open(path, "rb") as stream:
            content = stream.read()
        digest, bases = hashlib.sha256(content).hexdigest(), {root.name: root.base for root in survey.roots}
        saved = [value for value in records if STALE not in value and os.path.join(bases[value["root"]], get_text(value, "path")) == path]
        if not saved or saved[0].get("sha256") != digest:
            self.notes.append(f"{path} changed while the set was made, so the set holds no fingerprints of the application's keys")
            return {}
        found = {variable: fingerprint(content, variable, self.store.uuid) for variable in self.options.key_variables}
        unset = [variable for variable, value in found.items() if not value]
        if unset:
            self.notes.append(f"{path} does not set {', '.join(unset)}, which is named under key_variables")
        return {variable: value for variable, value in found.items() if value}

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
        trusted = self.past.last is not None and self.store.verified(self.past.last.id)
        only = self.fresh if trusted else None
        failures, read = verify_objects(self.store, manifest, self.options.verify, self.checkers, only)
        self.store.write_proof(manifest.id, self.options.verify, failures, self.clock, read)
        self.phases["verify_s"] = round(self.clock.monotonic() - started, 3)
        if failures:
            return [Check(failure["object"] or manifest.id, False, failure["reason"]) for failure in failures]
        return [Check(f"{self.options.verify} of set {manifest.id}", True, f"{read} objects read back and compared")]

    def note(self) -> None:
        if self.made is None and self.survey is not None:
            learned = {**self._cache_of(self.survey), OF_SET: {"id": present(self.past.last).id}}
            for live in self.survey.databases:
                known = self.past.image(live.database.name)
                if known is not None:
                    learned[f"database {known.name}"] = {"object": known.object, "fingerprint": live.fingerprint}
            if learned != self.past.cache:
                self.store.write_cache(learned)

    def failure(self) -> str:
        if not self.still_paused:
            return ""
        return f"Set {present(self.made).id} was made, but the application does not write again: {self.still_paused}"

    def result(self) -> Dict[str, Any]:
        shown = self.made or self.past.last
        warnings = list(self.survey.warnings if self.survey else []) + self._same_disk() + self.notes
        return {
            "reason": self.reason,
            "set": summary(self.store, shown) if shown else None,
            "phases": self.phases,
            "warnings_": warnings + [self.past.damage] * bool(self.past.damage),
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


def _hold(live: Live, packer: Packer, stack: ExitStack) -> Held:
    plain = packer.plain(live)
    own = stack.enter_context(ExitStack())
    return Held(live, plain, own.enter_context(live.database.pinned(plain)), own)


def by_size(groups: List[shards.Group]) -> List[shards.Group]:
    """Return the largest first: alone at the end it would keep one core busy and the others idle."""
    return sorted(groups, key=lambda group: -group.bytes)
