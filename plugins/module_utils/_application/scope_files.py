# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a scope: which of a set belong to it, how they differ from what is live, and how they get there one by one."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import Dict, Iterator, List, NamedTuple, Sequence, Set, Tuple

from .._backup.errors import BackupError
from .._backup.exchange import Swap, inode
from .._backup.manifest import STALE, Manifest, Record, get_text
from .._backup.placement import Placement, Target, parents
from .._backup.source import Source, is_below, look
from .._core.rows import FAIL, REPLACE, some


class Part(NamedTuple):
    """What of a set belongs to a scope."""

    manifest: Manifest
    """With nothing in it but that, so that staging it stages no more."""
    members: List[Record]
    """Of its archives; what does not belong to the scope is marked as stale, and so left out."""
    paths: Dict[str, List[str]]
    """By root, what the scope names of it, relative to its base; ``.`` for all of it."""
    found: int
    """Entries of the set that lie there."""


def part_of(manifest: Manifest, members: Sequence[Record], source: Source, wanted: Sequence[str]) -> Part:
    """Return what lies at some paths of a set, and below. Raises :class:`BackupError` for a path that is not saved.

    :param wanted: absolute paths, as the application knows them
    """
    roots = source.outermost()
    paths: Dict[str, List[str]] = {}
    for path in wanted:
        name, inner = _inside(path, roots)
        real = os.path.normpath(os.path.join(roots[name], inner))
        for kind, others in (("logs", source.logs), ("volatile", source.volatile)):
            if any(real == other or is_below(real, other) for other in others):
                raise BackupError(f"the scope names a path that lies in {kind}, which never go back", path, "Correct the scope")
        paths.setdefault(name, []).append(inner)
    logs = {shard.id for shard in manifest.shards if shard.logs}
    held = {name: places for name, places in paths.items() if name in manifest.roots}
    chosen: Dict[Tuple[str, str], Record] = {}
    above: Set[Tuple[str, str]] = {(name, parent) for name, places in held.items() for place in places for parent in [".", *parents(place)]}
    ways: List[Record] = []
    valid = {(value["root"], get_text(value, "path")): value for value in members if STALE not in value}
    for (name, path), value in valid.items():
        if name in held and value["shard"] not in logs:
            if manifest.roots[name]["type"] == "file" or _is_named(path, held[name]):
                chosen[name, path] = value
            elif (name, path) in above and value["type"] == "dir":
                ways.append(value)
    # The first name of an inode has the content, wherever it lies.
    firsts = [valid[value["root"], get_text(value, "link")] for value in chosen.values() if get_text(value, "link")]
    keep = {id(value) for value in [*chosen.values(), *ways, *firsts]}
    used = {value["shard"] for value in members if id(value) in keep}
    part = manifest._replace(
        roots={name: manifest.roots[name] for name in held},
        shards=[shard for shard in manifest.shards if shard.id in used],
        databases=[],
    )
    inside = [value if id(value) in keep else {**value, STALE: True} for value in members if value["shard"] in used]
    return Part(part, inside, held, len(chosen))


def _inside(path: str, roots: Dict[str, str]) -> Tuple[str, str]:
    """Return the root that a path lies in, and the way from its base. Only links above the root are followed."""
    for folder in ["/", *("/" + parent for parent in parents(path[1:])), path]:
        for name, base in roots.items():
            if os.path.realpath(folder) == base:
                return name, os.path.relpath(path, folder)
    raise BackupError("the scope names a path that is not among what is saved", path, "Correct the scope, or save it (paths)")


class FileChange(NamedTuple):
    """A path that is put in place, with all that lies below it where nothing is live there."""

    target: Target
    path: str
    """Relative to the target's base."""
    reason: str
    is_new: bool

    @property
    def live(self) -> str:
        """Return the path as the application knows it."""
        return os.path.normpath(os.path.join(live_base(self.target), self.path))

    @property
    def staged(self) -> str:
        """Return where it lies beside."""
        return os.path.normpath(os.path.join(self.target.base, self.path))


class Files:
    """The files of a scope beside the live ones.

    :param placement: of the part that :func:`part_of` returned
    """

    def __init__(self, part: Part, placement: Placement, policy: str) -> None:
        self.part = part
        self.placement = placement
        self.policy = policy
        self.changes: List[FileChange] = []
        self.kept: List[str] = []
        """Live paths that differ and stay."""
        self.same = 0

    def compare(self) -> None:
        """Settle what is put in place. Raises :class:`BackupError` for conflicts, and for a live path that can't be trusted."""
        self.changes, self.kept, self.same = [], [], 0
        for target in self.placement.targets:
            self._compare(target)
        if self.kept and self.policy == FAIL:
            raise BackupError(
                f"{len(self.kept)} live paths are not what the set has: {some(self.kept, ', ')}",
                todo="Choose the policy replace (the set's files count) or skip (the live files stay)",
            )

    def _compare(self, target: Target) -> None:
        base, places = live_base(target), self.part.paths[target.name]
        entries = {path: value for path, value in self.placement.wanted(target, logs=False) if target.is_file or _is_named(path, places)}
        settled: Set[str] = set()
        """Paths below which nothing is left to settle."""
        if inode(target.live) is None:
            if entries:
                self.changes.append(FileChange(target, os.path.basename(target.live) if target.is_file else ".", "it is missing", True))
            return
        for path in self._ways(places):
            if inode(os.path.join(base, path)) is not None and not _is_folder(os.path.join(base, path)):
                raise BackupError(
                    "a folder is expected here, and something else is there", os.path.join(base, path), "Mend that and run again"
                )
        for path in sorted(entries, key=lambda path: path.split("/")):
            if settled.intersection(parents(path)):
                continue
            value, entry = entries[path], look(base, path)
            if entry is not None and entry.type == "dir" and value["type"] == "dir":
                # What is live in it and not in the set stays, and so do its own rights.
                continue
            if entry is None:
                missing = next((parent for parent in self._ways(places) if is_below(path, parent) and look(base, parent) is None), path)
                settled.add(missing)
                self.changes.append(FileChange(target, missing, "it is missing", True))
                continue
            wrong = self.placement.wrong(base, path, value, entry, entries, True)
            if not wrong:
                self.same += 1
            elif entry.type == "dir":
                raise BackupError(
                    f"a folder is live where the set has a {value['type']}", os.path.join(base, path), "Move it away, then run again"
                )
            elif self.policy == REPLACE:
                settled.add(path)
                self.changes.append(FileChange(target, path, wrong, False))
            else:
                settled.add(path)
                self.kept.append(os.path.join(base, path))

    @staticmethod
    def _ways(places: Sequence[str]) -> List[str]:
        """Return the folders that lead to what the scope names, the outermost first."""
        return sorted({parent for place in places for parent in parents(place)}, key=lambda path: path.split("/"))

    def require_one_disk(self) -> None:
        """Refuse what could not be put in place by renaming. Raises :class:`BackupError`."""
        for change in self.changes:
            folder = os.path.dirname(change.live)
            while not os.path.lexists(folder):
                folder = os.path.dirname(folder)
            if os.lstat(folder).st_dev != os.stat(os.path.dirname(change.target.live)).st_dev:
                raise BackupError(
                    f"another file system is mounted below {change.target.name}, so nothing can be put in place here by renaming",
                    folder,
                    "Name a path below the mount point among those that are saved",
                )

    def steps(self) -> List[FileStep]:
        """Return how the staged paths get to their places."""
        return [FileStep.planned(change.live, change.staged) for change in self.changes]

    def difference(self) -> str:
        """Say what of the changes is not in place; empty when all are. Looks by names, and reads no content again."""
        for target in self.placement.targets:
            base, changed = live_base(target), {change.path for change in self.changes if change.target == target}
            for path, value in self.placement.wanted(target, logs=False):
                if changed.intersection([".", *parents(path), path]):
                    wrong = self.placement.wrong(base, path, value, look(base, path), {}, False)
                    # A folder's time moves on when something is put beside what the scope has in it.
                    if wrong and value["type"] != "dir":
                        return f"{os.path.join(base, path)}: {wrong}"
        return ""


class FileStep(Swap):
    """A swap in a folder that is held meanwhile, so that nobody can put a link in its way."""

    def do(self) -> None:
        """Rename. Raises :class:`OSError`, or :class:`BackupError` where another path is live by now."""
        with self._held() as swap:
            if not swap.is_undone():
                raise BackupError("this was changed by somebody else meanwhile", self.live, "Nothing was changed; run again")
            swap.do()

    def finish(self) -> None:
        """Rename where that was not done yet."""
        with self._held() as swap:
            if not swap.is_done():
                swap.undo()
                swap.do()

    def undo(self) -> None:
        """Rename back, from whatever point; nothing to do is fine."""
        with self._held() as swap:
            swap.undo()

    @contextmanager
    def _held(self) -> Iterator[Swap]:
        with held_folder(os.path.dirname(self.live)) as folder:
            yield Swap(os.path.join(folder, os.path.basename(self.live)), self.staged, self.live_inode, self.staged_inode)


@contextmanager
def held_folder(path: str) -> Iterator[str]:
    """Hold a folder and give a name for it that stays right whatever is renamed. Raises :class:`OSError` where a link is on the way.

    Its name is a link of proc(5) to what was opened, so renames in it reach this folder and no other.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    handle = os.open("/", flags)
    try:
        for part in filter(None, path.split("/")):
            inner = os.open(part, flags, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def _is_named(path: str, places: Sequence[str]) -> bool:
    return any(place in (".", path) or is_below(path, place) for place in places)


def live_base(target: Target) -> str:
    """Return the live folder that a target's paths are relative to."""
    return os.path.dirname(target.live) if target.is_file else target.live


def _is_folder(path: str) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)
