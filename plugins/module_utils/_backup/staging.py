# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting a set beside the live state: files extracted, databases placed or loaded, every hash checked there."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, Tuple

from .._core.errors import present
from .._core.files import fsync_file, make_dir, remove_tree, sync_filesystem
from . import archive, images
from .comparison import own_xattrs
from .errors import BackupError
from .manifest import Record, Shard, get_text
from .placement import Placed, Placement, Served, Target
from .records import read_xattrs
from .script import restore_order
from .shards import is_tree
from .source import is_below, look
from .store import Store
from .verify import ImageCheckers

EXTRACT_S = 24 * 3600
"""Seconds that one shard may take to extract."""
MOST_LEFT_OUT = 1000
"""Members that tar is told to leave out; their names are arguments, and those have a limit (execve(2))."""


class Staging:
    """Fills the staging folders of a placement.

    :param environment: what the environment file shall hold; empty for what the set has
    :param durable: whether it has to outlive a crash of the host
    """

    def __init__(self, placement: Placement, store: Store, checkers: ImageCheckers, environment: bytes, durable: bool = True) -> None:
        self.placement = placement
        self.store = store
        self.checkers = checkers
        self.environment = environment
        self.durable = durable

    def fill(self) -> None:
        """Stage and check everything. Raises :class:`OpskitError`, or :class:`OSError`."""
        for stage in self.placement.stages:
            make_dir(os.path.dirname(os.path.dirname(stage)))
            make_dir(os.path.dirname(stage))
            make_dir(stage)
        self._extract()
        self._check()
        for stage in self.placement.stages if self.durable else []:
            sync_filesystem(stage)
        for served in self.placement.served:
            self._load(served)

    def _extract(self) -> None:
        targets = {target.name: target for target in self.placement.targets}
        for target in self.placement.targets:
            for path, value in self.placement.wanted(target, logs=True):
                if value["type"] == "dir":
                    # Made here, so that two archives never race for a folder; modes and times come last.
                    os.makedirs(os.path.join(target.base, path), 0o700, exist_ok=True)

        def extract(shard: Shard) -> None:
            stale, only = self.placement.stale.get(shard.id, []), []
            if len(stale) > MOST_LEFT_OUT:
                only = [get_text(value, "path") for value in self.placement.records if value["shard"] == shard.id]
            base, by_id = targets[shard.root].base, self.placement.owners.policy == "id"
            archive.extract(self.store.whole_object(shard.object), base, by_id, EXTRACT_S, stale, only)

        ordered = restore_order(self.placement.manifest.shards)
        trees = [shard for shard in ordered if is_tree(shard.id)]
        files = sorted((shard for shard in ordered if shard not in trees), key=lambda shard: -shard.stored_bytes)
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            jobs = [pool.submit(extract, shard) for shard in files]
            jobs.extend(pool.submit(self._place_image, placed) for placed in self.placement.placed)
            try:
                for job in jobs:
                    job.result()
            finally:
                # A failure does not wait for the work that is still queued.
                for job in jobs:
                    job.cancel()
        for shard in trees:
            extract(shard)
        for target in self.placement.targets:
            if self.environment and present(self.placement.environment).record["root"] == target.name:
                self._rewrite(target, present(self.placement.environment).record)
            saved = [path for path, value in self.placement.wanted(target, logs=True)]
            if target.is_file and get_text(self.placement.manifest.roots[target.name], "path"):
                stored = os.path.basename(get_text(self.placement.manifest.roots[target.name], "path"))
                if stored not in saved:
                    os.rename(os.path.join(target.stage, stored), target.staged)
            for kept in self.placement.kept(target):
                remove_tree(os.path.join(target.staged, os.path.relpath(kept, target.live)))
            set_folder_times(self.placement, target)

    def _rewrite(self, target: Target, value: Record) -> None:
        """Give the staged environment file the content that was settled, with the rights and time it has."""
        path = os.path.join(target.base, get_text(value, "path"))
        with open(path, "r+b") as stream:
            stream.truncate()
            stream.write(self.environment)
        os.utime(path, ns=(value["mtime_ns"], value["mtime_ns"]))

    def _place_image(self, placed: Placed) -> None:
        os.makedirs(os.path.dirname(placed.staged), 0o700, exist_ok=True)
        images.unpack_whole(self.store, placed.image, placed.staged, self.placement.stage_of(placed))
        wrong = [x for x in self.checkers[placed.image.engine](placed.staged, placed.image.facts) if not x.ok]
        if wrong:
            raise BackupError(f"database {placed.image.name}: {wrong[0].check}: {wrong[0].detail}", self.store.path, "Name another set")
        value = placed.image.file
        if os.geteuid() == 0:
            os.chown(placed.staged, *self.placement.owners.ids(value))
        os.chmod(placed.staged, value["mode"])
        _set_xattrs(placed.staged, own_xattrs(value.get("xattrs", {})))
        os.utime(placed.staged, ns=(value["mtime_ns"], value["mtime_ns"]))
        fsync_file(placed.staged)

    def _load(self, served: Served) -> None:
        """Load one database beside the live one, from plain files in the store, which has the room."""
        with self.store.scratch("tmp") as folder:
            plain, beside = os.path.join(folder, "image"), ""
            images.unpack_whole(self.store, served.image, plain, folder)
            if served.image.beside:
                beside = os.path.join(folder, "globals.sql")
                archive.decompress(self.store.object_path(served.image.beside), beside)
            wrong = [x for x in self.checkers[served.image.engine](plain, served.image.facts) if not x.ok]
            if wrong:
                raise BackupError(f"database {served.image.name}: {wrong[0].check}: {wrong[0].detail}", self.store.path, "Name another set")
            served.target.load(plain, beside, served.image.facts, served.names.staged)

    def _check(self) -> None:
        """Read every staged file back from the disk and compare it with the file list."""
        work: List[Tuple[Target, str, Record, Dict[str, Record]]] = []
        for target in self.placement.targets:
            kept = [os.path.relpath(path, target.live) for path in self.placement.kept(target)]
            wanted = {
                path: value
                for path, value in self.placement.wanted(target, logs=True)
                if not any(path == name or is_below(path, name) for name in kept)
            }
            work.extend((target, path, value, wanted) for path, value in wanted.items())

        def check(item: Tuple[Target, str, Record, Dict[str, Record]]) -> str:
            target, path, value, wanted = item
            wrong = self.placement.wrong(target.base, path, value, look(target.base, path), wanted, True)
            return f"{os.path.join(target.name, path)}: {wrong}" if wrong else ""

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            wrong = [reason for reason in pool.map(check, work, chunksize=64) if reason]
        for placed in self.placement.placed:
            entry = look("/", placed.staged)
            reason = self.placement.wrong_rights(placed.staged, placed.image.file, entry, True) if entry else "it is missing"
            if reason:
                wrong.append(f"database {placed.image.name}: {reason}")
        if wrong:
            raise BackupError(
                f"{len(wrong)} staged paths are not what set {self.placement.manifest.id} says, first {wrong[0]}",
                self.store.path,
                "The live state is untouched; name another set, or mend what the message names",
            )


def set_folder_times(placement: Placement, target: Target) -> None:
    """Give the folders of a staged copy the times that putting things into them took away."""
    for path, value in placement.wanted(target, logs=True):
        full = os.path.join(target.base, path)
        if value["type"] == "dir" and os.path.isdir(full) and not os.path.islink(full):
            os.utime(full, ns=(value["mtime_ns"], value["mtime_ns"]))


def _set_xattrs(path: str, values: Dict[str, str]) -> None:
    """Give a file these extended attributes and no others: it may have inherited an ACL from its folder."""
    for name in set(own_xattrs(read_xattrs(path) or {})) - set(values):
        os.removexattr(path, name)
    for name, value in values.items():
        os.setxattr(path, name, base64.b64decode(value))
