# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which file goes into which shard, and whether a shard has to be read again."""

from __future__ import annotations

import hashlib
import os
from typing import Dict, List, NamedTuple, Optional, Tuple

from .manifest import Record, Shard, get_text
from .source import Entry, Root, Source

SHARD_BYTES = 64 << 20
PROJECT_BYTES = 8 << 20
"""A project from this size on has shards of its own; smaller ones share the buckets."""
BUCKETS = 32
RACY_NS = 2 * 10**9
"""A file touched this short before the look may be touched again without its times showing it (coarse clocks, NFS)."""


class Group(NamedTuple):
    """The members of one shard as they are now."""

    id: str
    root: Root
    logs: bool
    entries: List[Entry]

    @property
    def bytes(self) -> int:
        """The members' bytes of content."""
        return sum(entry.size for entry in self.entries)


class Previous(NamedTuple):
    """What the last set says about one shard."""

    shard: Shard
    records: List[Record]


def previous_shards(shards: List[Shard], records: List[Record]) -> Dict[str, Previous]:
    """Sort a file list by shard."""
    found = {shard.id: Previous(shard, []) for shard in shards}
    for value in records:
        found[value["shard"]].records.append(value)
    return found


def assign(source: Source, root: Root, entries: List[Entry], logs: bool, previous: Dict[str, Previous]) -> List[Group]:
    """Sort a root's entries into shards.

    A file stays in the shard it was in; a new one joins its group's last shard while that has room. Folders, symlinks and
    empty files are one shard, which is extracted last. All names of an inode share a shard.
    """
    kind = "logs" if logs else "files"
    tree = Group(f"{root.name}:{kind}-tree", root, logs, [])
    groups: Dict[str, Group] = {tree.id: tree}
    before = {
        get_text(value, "path"): shard_id
        for shard_id, known in previous.items()
        if known.shard.root == root.name and known.shard.logs == logs and shard_id != tree.id
        for value in known.records
    }
    inodes: Dict[Tuple[int, int], str] = {}
    sizes: Dict[str, int] = {}
    newest: Dict[str, int] = {}
    fresh: List[Entry] = []

    def put(shard_id: str, entry: Entry) -> None:
        group = groups.get(shard_id)
        if group is None:
            group = groups[shard_id] = Group(shard_id, root, logs, [])
        group.entries.append(entry)
        sizes[shard_id] = sizes.get(shard_id, 0) + entry.size
        label, number = _split(shard_id)
        newest[label] = max(newest.get(label, 0), number)
        if entry.links > 1:
            inodes[entry.device, entry.inode] = shard_id

    for entry in entries:
        if entry.type != "file" or entry.size == 0:
            tree.entries.append(entry)
        elif entry.path in before and (entry.device, entry.inode) not in inodes:
            put(before[entry.path], entry)
        else:
            fresh.append(entry)
    labels = _labels(source, root, fresh)
    for entry in fresh:
        linked = inodes.get((entry.device, entry.inode)) if entry.links > 1 else None
        if linked is None:
            label = f"{root.name}:{kind}{labels.get(entry.path, '')}"
            number = newest.get(label, 0)
            taken = sizes.get(f"{label}.{number}", 0)
            if taken and taken + entry.size > SHARD_BYTES:
                number += 1
            linked = f"{label}.{number}"
        put(linked, entry)
    for group in groups.values():
        group.entries.sort()
    return [group for group in groups.values() if group.entries]


def _split(shard_id: str) -> Tuple[str, int]:
    label, _dot, number = shard_id.rpartition(".")
    return label, int(number)


def _labels(source: Source, root: Root, entries: List[Entry]) -> Dict[str, str]:
    """Return the project's part of the group's name, for those entries that lie in a project."""
    projects: Dict[str, List[Entry]] = {}
    for entry in entries:
        project = source.project_of(os.path.join(root.base, entry.path))
        if project is not None:
            projects.setdefault(project, []).append(entry)
    labels: Dict[str, str] = {}
    for project, members in projects.items():
        # Names may hold anything, so the shard is named by their hash.
        digest = hashlib.sha256(os.fsencode(project)).hexdigest()
        small = sum(entry.size for entry in members) < PROJECT_BYTES
        label = f":bucket-{int(digest[:8], 16) % BUCKETS:02d}" if small else f":project-{digest[:16]}"
        labels.update((entry.path, label) for entry in members)
    return labels


def fingerprint(entries: List[Entry]) -> str:
    """Return a digest of everything that lstat(2) says about a shard's members."""
    digest = hashlib.sha256()
    for entry in entries:
        # Link counts and devices change when a host is restarted or a file gets a second name elsewhere.
        digest.update(os.fsencode("\0".join(map(str, entry[:9])) + "\0"))
    return digest.hexdigest()


def is_settled(entries: List[Entry], scanned_ns: int) -> bool:
    """True when no member was touched so shortly before the look that a later touch could go unseen."""
    return all(entry.ctime_ns < scanned_ns - RACY_NS for entry in entries)


def difference(entries: List[Entry], records: List[Record]) -> Optional[str]:
    """Say in a few words how the members differ from what the last set holds, by metadata alone; None: not at all."""
    then = {get_text(value, "path"): value for value in records}
    new = changed = 0
    for entry in entries:
        value = then.pop(entry.path, None)
        if value is None:
            new += 1
        elif (
            entry.type != value["type"]
            or entry.mode != value["mode"]
            or entry.mtime_ns != value["mtime_ns"]
            or (entry.uid, entry.gid) != (value["uid"], value["gid"])
            or (entry.type == "file" and entry.size != value["size"])
        ):
            changed += 1
    if not (new or changed or then):
        return None
    return ", ".join(f"{count} {word}" for count, word in ((new, "new"), (changed, "changed"), (len(then), "gone")) if count)
