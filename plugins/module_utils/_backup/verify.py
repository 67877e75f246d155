# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading sets back: every object's stored bytes, and what they decompress to."""

from __future__ import annotations

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple

from .._core.clock import Clock
from .._core.errors import OpskitError
from .._core.files import free_bytes, hash_file, human_size
from .._core.operation import Check, Operation
from .._core.plan import Plan
from . import archive, images
from .errors import BackupError
from .manifest import Image, Manifest, Record, Shard, get_text
from .store import LEVELS, Store, stands

ImageCheckers = Mapping[str, Callable[[str, Dict[str, Any]], List[Check]]]
"""By engine: looks at the image at a path with the engine's own means and compares it with its facts."""

Failure = Dict[str, str]
"""``object`` (empty where it is the set itself) and ``reason``."""


def verify_objects(
    store: Store, manifest: Manifest, level: str, checkers: ImageCheckers, only: Optional[Set[str]] = None
) -> Tuple[List[Failure], int]:
    """Verify a set and return what is wrong with it, and how many objects were read.

    :param level: ``stored``: the bytes of every object are those that were written; ``content``: they also decompress to
        the files and databases that were saved
    :param only: read these objects alone; of the others only presence and size are looked at
    """
    failures: List[Failure] = []
    try:
        by_shard: Dict[str, List[Record]] = {}
        for value in store.members(manifest):
            by_shard.setdefault(value["shard"], []).append(value)
    except BackupError as error:
        return [{"object": "", "reason": f"file list: {error}"}], 0
    damage = store.set_damage(manifest)
    if damage:
        # What it says of its objects is nothing to measure them by.
        return [{"object": "", "reason": reason} for reason in damage], 0
    wanted = {name for name in manifest.objects if only is None or name in only}
    for name, size in sorted(manifest.objects.items()):
        if not store.has_object(name, size):
            there = os.path.exists(store.object_path(name))
            failures.append({"object": name, "reason": f"object {name} {'has another size' if there else 'is missing'}"})
            wanted.discard(name)

    def check(name: str, content: Optional[Callable[[], List[str]]]) -> List[Failure]:
        try:
            if hash_file(store.object_path(name)) != name.split(".")[0]:
                return [{"object": name, "reason": f"object {name} is damaged (its hash is not its name)"}]
            found = content() if content else []
        except BackupError as error:
            found = [str(error)]
        except OSError as error:
            # A disk that can't be read is damage. A full one, missing rights or a missing program say nothing about the object.
            if error.errno != errno.EIO:
                raise
            found = [str(error)]
        return [{"object": name, "reason": reason} for reason in found]

    work: List[Tuple[str, Optional[Callable[[], List[str]]]]] = []
    for shard in manifest.shards:
        if shard.object in wanted:
            records = by_shard.get(shard.id, [])
            work.append((shard.object, _shard_check(store, shard, records) if level == "content" else None))
    for image in manifest.databases:
        if image.base in wanted:
            work.append((image.base, None))
        if image.object in wanted:
            # Without its base there is nothing to read it by; that the base is missing was said above.
            readable = not image.base or store.has_object(image.base, image.base_bytes)
            work.append((image.object, _image_check(store, image, checkers) if level == "content" and readable else None))
        if image.beside in wanted:
            work.append((image.beside, _beside_check(store, image) if level == "content" else None))
    work.sort(key=lambda item: -manifest.objects[item[0]])
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for found in pool.map(lambda item: check(*item), work):
            failures.extend(found)
    return failures, len(wanted)


def _shard_check(store: Store, shard: Shard, records: List[Record]) -> Callable[[], List[str]]:
    def run() -> List[str]:
        wrong = compare_members(list(archive.members_of(store.object_path(shard.object))), records)
        return [f"shard {shard.id}: {reason}" for reason in wrong[:3]]

    return run


def compare_members(members: List[archive.Member], records: List[Record]) -> List[str]:
    """Say how an archive's members differ from the file list's lines; empty when they don't."""
    wrong = []
    listed = {get_text(value, "path"): value for value in records}
    for member in members:
        value = listed.pop(member.path, None)
        if value is None:
            wrong.append(f"{member.path!r} is not in the file list")
        elif member.type != value["type"]:
            wrong.append(f"{member.path!r} is a {member.type}, the file list says {value['type']}")
        elif member.type == "file" and (member.sha256 != value["sha256"] or member.size != value["size"]):
            wrong.append(f"{member.path!r} has other content than the file list says")
        elif member.type == "symlink" and member.target != get_text(value, "target"):
            wrong.append(f"{member.path!r} points elsewhere than the file list says")
    wrong.extend(f"{path!r} is missing" for path in listed)
    return wrong


def _image_check(store: Store, image: Image, checkers: ImageCheckers) -> Callable[[], List[str]]:
    def run() -> List[str]:
        images.require_memory(image)
        need, free = images.disk_to_unpack(image), free_bytes(store.at("cache"))
        if need > free:
            raise OpskitError(
                f"reading the database {image.name} back needs {human_size(need)} here, {human_size(free)} are free",
                store.at("cache"),
                "Free space and verify again",
            )
        # In the store, which has the room.
        with store.scratch("cache") as folder:
            plain = os.path.join(folder, "image")
            images.unpack(store, image, plain, folder)
            checks = checkers[image.engine](plain, image.facts)
        return [f"database {image.name}: {check.check}: {check.detail}" for check in checks if not check.ok]

    return run


def _beside_check(store: Store, image: Image) -> Callable[[], List[str]]:
    def run() -> List[str]:
        with archive.open_object(store.object_path(image.beside)) as stream:
            digest = hashlib.sha256(stream.read()).hexdigest()
        same = digest == image.facts["beside"]["sha256"]
        return [] if same else [f"database {image.name}: the definitions of roles have other content than was recorded"]

    return run


class Verdict(NamedTuple):
    """What was found about one set."""

    manifest: Manifest
    failures: List[Failure]
    read: int


class VerifySets(Operation):
    """Verify sets and record a proof for each.

    The plan is the verification itself, which changes nothing; a step is a set whose standing changes by it.

    :param which: a set's id, ``latest`` (the newest set), or ``all``
    """

    def __init__(self, store: Store, which: str, level: str, clock: Clock, checkers: ImageCheckers, lock_timeout_s: float) -> None:
        self.store = store
        self.which = which
        self.level = level
        self.clock = clock
        self.checkers = checkers
        self.lock_timeout_s = lock_timeout_s
        self.verdicts: List[Verdict] = []
        self.recorded = False
        self.warnings: List[str] = []
        self.is_real = False
        """Not a rehearsal."""

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.store.open()
        self.store.require_locks()
        self.store.require_owner()
        self.is_real = True
        with self.store.swept():
            yield

    def plan(self) -> Plan:
        self.store.open()
        self.store.require_locks()
        plan = Plan("verified")
        for manifest in self._chosen():
            # One after the other, so that the others can be pruned meanwhile.
            with self.store.reading(manifest.id, self.lock_timeout_s, make=self.is_real) as there:
                if there:
                    self._verify_one(manifest, plan)
                elif self.which != "all":
                    raise BackupError(f"set {manifest.id} was pruned just now", self.store.path, "List the sets with backup_set_info")
        return plan

    def _verify_one(self, manifest: Manifest, plan: Plan) -> None:
        failures, read = verify_objects(self.store, manifest, self.level, self.checkers)
        self.verdicts.append(Verdict(manifest, failures, read))
        before = self.store.proof(manifest.id)
        if failures and before.ok:
            plan.add("record proof", manifest.id, f"failed: {failures[0]['reason']}")
        elif stands(before, self.level, failures):
            if not before.ok:
                self.warnings.append(f"set {manifest.id} is whole, but failed a drill, and counts again only when it passes one")
        elif not failures and (not before.ok or LEVELS.index(before.level) < LEVELS.index(self.level)):
            plan.add("record proof", manifest.id, f"{self.level} verified, before: {before.level if before.ok else 'failed'}")

    def _chosen(self) -> List[Manifest]:
        if self.which not in ("all", "latest"):
            return [self.store.manifest(self.which)]
        sets = self.store.sets()
        if not sets:
            raise BackupError("there is no set in this store", self.store.path, "Make a backup first")
        return sets if self.which == "all" else sets[-1:]

    def apply(self, plan: Plan) -> None:
        for manifest, failures, read in self.verdicts:
            with self.store.reading(manifest.id, self.lock_timeout_s) as there:
                # What was pruned since needs no proof.
                if there:
                    self.store.write_proof(manifest.id, self.level, failures, self.clock, read)
        self.recorded = True

    def verify(self) -> List[Check]:
        checks = []
        for manifest, failures, _read in self.verdicts:
            with self.store.reading(manifest.id, self.lock_timeout_s) as there:
                if there:
                    now = self.store.proof(manifest.id)
                    recorded = now.ok == (not failures) or stands(now, self.level, failures)
                    checks.append(Check("proof recorded", recorded, manifest.id))
        return checks

    def note(self) -> None:
        # How long ago a set was last read is worth knowing too.
        if not self.recorded:
            self.apply(Plan("none"))

    def failure(self) -> str:
        bad = [item for item in self.verdicts if item.failures]
        if not bad:
            return ""
        first = bad[0].failures[0]["reason"]
        return (
            f"{self.store.path}: {len(bad)} of {len(self.verdicts)} sets failed, {bad[0].manifest.id} first: {first}. "
            "Make a new backup now; it stores again what was damaged."
        )

    def result(self) -> Dict[str, Any]:
        return {
            "sets": [
                {"id": item.manifest.id, "level": self.level, "ok": not item.failures, "failures": item.failures} for item in self.verdicts
            ],
            "warnings_": self.warnings,
        }
