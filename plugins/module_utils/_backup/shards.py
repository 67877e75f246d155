# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which file goes into which shard, and what of the shards that are there is still good.

A shard is never written again for the sake of a few members: what changed goes into a small shard of its own, and the copy in
the old one is stale from then on. An old shard is made anew once most of it is stale.
"""

from __future__ import annotations

import hashlib
import os
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from .manifest import STALE, Record, Shard, get_text
from .source import Entry, Root, Source

SHARD_BYTES = 64 << 20
PROJECT_BYTES = 8 << 20
"""A project from this size on has shards of its own; smaller ones share the buckets, and what changed of them the changes."""
BUCKETS = 32
RACY_NS = 2 * 10**9
"""A file touched this short before the look may be touched again without its times showing it (coarse clocks, NFS)."""
STALE_SHARE = 2
"""A shard is made anew when more than one byte in so many is stale: that stores no more than what made the rest stale."""
STALE_MEMBERS = 256
"""And when more members than this are: each is an argument of the command that extracts the others."""
SMALL_CHANGES = 1 << 20
"""Shards of changes below this size are made one with those of the next set."""
MOST_CHANGES = 100
"""When there are more of a root, the smaller half is made one with those of the next set."""
CHANGES = "-changes"
TREE = "-tree"

UNSETTLED = "-" * 16
"""The print of a member that could change without its times showing it."""


class Group(NamedTuple):
    """The members of one shard that is to be stored, as they are now."""

    id: str
    root: Root
    logs: bool
    entries: List[Entry]

    @property
    def bytes(self) -> int:
        """The members' bytes of content."""
        return sum(entry.size for entry in self.entries)


class Known(NamedTuple):
    """What a set says about one shard."""

    shard: Shard
    records: List[Record]
    """Of the members whose copy in it is the valid one, by path."""
    stale: List[Record]
    """Of the others."""


class Kept(NamedTuple):
    """A stored shard that the new set needs."""

    known: Known
    entries: List[Entry]
    """The members with a valid copy in it as lstat(2) saw them when they were stored, or found to be what is stored."""


class Judgement(NamedTuple):
    """What a look at the members of one known shard found."""

    lost: str = ""
    """Why nothing of it can be used any more; empty when it can."""
    changed: Sequence[str] = ()
    """The paths that are not what the shard holds."""
    hidden: int = 0
    """How many of them have the same metadata all the same."""


class Layout(NamedTuple):
    """Where everything of one root goes."""

    kept: List[Kept]
    groups: List[Group]
    """To be stored."""
    reasons: Dict[str, str]
    """Why, by the id of each group."""
    gone: int
    """Members that are nowhere any more."""


Judge = Callable[[Known, List[Entry]], Judgement]


def known_shards(shards: List[Shard], records: List[Record]) -> Dict[str, Known]:
    """Sort a file list by shard."""
    found = {shard.id: Known(shard, [], []) for shard in shards}
    for value in records:
        known = found[value["shard"]]
        (known.stale if STALE in value else known.records).append(value)
    return found


def arrange(
    source: Source, root: Root, entries: List[Entry], logs: bool, shards: Dict[str, Known], judge: Judge, late: bool = False
) -> Layout:
    """Decide for each entry of a root whether a known shard holds it already, and else which shard it is stored in.

    Folders, symlinks and empty files are one shard, which is extracted last. All names of an inode share a shard.

    :param shards: the known ones, also of other roots, by id
    :param late: it is about what changed in the last moments: old shards are left alone wherever that can be
    """
    kind = "logs" if logs else "files"
    shards = {key: known for key, known in shards.items() if known.shard.root == root.name and known.shard.logs == logs}
    tree = Group(f"{root.name}:{kind}{TREE}", root, logs, [entry for entry in entries if entry.type != "file" or not entry.size])
    layout = Layout([], [], {}, 0)
    known = shards.pop(tree.id, None)
    if tree.entries:
        tree.entries.sort()
        words = _why_tree(known, tree.entries, judge)
        if words:
            layout.groups.append(tree)
            layout.reasons[tree.id] = words
        elif known is not None:
            layout.kept.append(Kept(known, tree.entries))
    files = _Arrangement(source, root, logs, f"{root.name}:{kind}", shards)
    files.place([entry for entry in entries if entry.type == "file" and entry.size], judge, late)
    files.collect(late)
    files.distribute()
    return Layout(
        layout.kept + [Kept(shelf.known, list(shelf.entries.values())) for shelf in files.shelves.values()],
        layout.groups + [group for group in files.groups.values() if group.entries],
        {**layout.reasons, **files.reasons},
        files.gone,
    )


def _why_tree(known: Optional[Known], entries: List[Entry], judge: Judge) -> str:
    if known is None:
        return "new"
    there = {get_text(value, "path") for value in known.records}
    verdict = judge(known, [entry for entry in entries if entry.path in there])
    new = sum(entry.path not in there for entry in entries)
    return verdict.lost or words(new, len(verdict.changed), len(there) + new - len(entries), verdict.hidden)


class _Shelf:
    """One known shard while it is decided what becomes of it."""

    def __init__(self, known: Known) -> None:
        self.shard = known.shard
        self.entries: Dict[str, Entry] = {}
        self.valid = {get_text(value, "path"): value for value in known.records}
        self.stale = list(known.stale)
        self.links: Dict[str, List[str]] = {}
        for path, value in self.valid.items():
            link = get_text(value, "link")
            if link:
                self.links.setdefault(link, []).append(path)

    @property
    def known(self) -> Known:
        """What the new set says about it."""
        records = list(self.valid.values())
        size = sum(value.get("size", 0) for value in records)
        return Known(self.shard._replace(files=len(records), bytes=size), records, self.stale)

    def is_worn(self, late: bool) -> bool:
        """True when too much of it is stale."""
        stale = sum(value.get("size", 0) for value in self.stale)
        valid = sum(value.get("size", 0) for value in self.valid.values())
        worn = not self.valid or len(self.stale) > STALE_MEMBERS
        return worn or (not late and stale * STALE_SHARE > stale + valid)

    def give_up(self, paths: Iterable[str]) -> List[Entry]:
        """Have the copies of some members count no more; returns the entries that need another one."""
        moved: List[Entry] = []
        queue = list(paths)
        while queue:
            path = queue.pop()
            value = self.valid.pop(path, None)
            if value is None:
                continue
            self.stale.append({**value, STALE: True})
            if path in self.entries:
                moved.append(self.entries.pop(path))
            # In the archive they are only names of the one that is left out.
            queue.extend(self.links.get(path, ()))
        return moved


class _Arrangement:
    """The files of one root."""

    def __init__(self, source: Source, root: Root, logs: bool, name: str, shards: Dict[str, Known]) -> None:
        self.source = source
        self.root = root
        self.logs = logs
        self.name = name
        self.shelves = {key: _Shelf(known) for key, known in shards.items()}
        self.shards = shards
        self.newest: Dict[str, int] = {}
        for key in shards:
            label, number = _split(key)
            self.newest[label] = max(self.newest.get(label, 0), number)
        self.groups: Dict[str, Group] = {}
        self.reasons: Dict[str, str] = {}
        self.pending: List[Entry] = []
        self.gone = self.new = self.changed = self.hidden = 0

    def place(self, entries: List[Entry], judge: Judge, late: bool) -> None:
        """See what of the known shards is still good."""
        homes = {path: shelf for shelf in self.shelves.values() for path in shelf.valid}
        for entry in entries:
            shelf = homes.get(entry.path)
            if shelf is None:
                self.pending.append(entry)
            else:
                shelf.entries[entry.path] = entry
        self.new = len(self.pending)
        for key, shelf in list(self.shelves.items()):
            members = list(shelf.entries.values())
            verdict = judge(self.shards[key], members)
            if verdict.lost:
                self._make_anew(key, members, verdict.lost)
                continue
            gone = [path for path in shelf.valid if path not in shelf.entries]
            self.gone += len(gone)
            reason = words(0, len(verdict.changed), len(gone), verdict.hidden)
            if not self._give_up(key, [*verdict.changed, *gone], reason, late):
                self.changed += len(verdict.changed)
                self.hidden += verdict.hidden

    def collect(self, late: bool) -> None:
        """Take small changes of before along, and other names of what is stored now."""
        changes = [key for key in self.shelves if _split(key)[0] == self.name + CHANGES]
        if self.pending and not late:
            changes.sort(key=lambda key: self.shelves[key].known.shard.bytes)
            surplus = len(changes) // 2 if len(changes) > MOST_CHANGES else 0
            for rank, key in enumerate(changes):
                if rank < surplus or self.shelves[key].known.shard.bytes < SMALL_CHANGES:
                    self._dissolve(key)
        names = self._names_elsewhere()
        while names:
            for key, paths in names.items():
                self._give_up(key, paths, f"{len(paths)} with other names elsewhere", late)
            # What was made one with others for that has other names, too.
            names = self._names_elsewhere()
        for key in [key for key, shelf in self.shelves.items() if not shelf.valid]:
            del self.shelves[key]

    def distribute(self) -> None:
        """Give everything that needs a shard one: small changes share one, all else goes where its kind is."""
        inodes: Dict[Tuple[int, int], str] = {}
        filled: Dict[str, int] = {}
        latest: Dict[str, str] = {}
        for group in self.groups.values():
            strays = {
                entry for entry in group.entries if entry.links > 1 and inodes.setdefault((entry.device, entry.inode), group.id) != group.id
            }
            if strays:
                self.pending.extend(strays)
                group.entries[:] = [entry for entry in group.entries if entry not in strays]
            latest[_split(group.id)[0]] = group.id
            filled[group.id] = group.bytes
        labels = _labels(self.source, self.root, self.pending)
        sizes: Dict[str, int] = {}
        for entry in self.pending:
            label = labels.get(entry.path, "")
            sizes[label] = sizes.get(label, 0) + entry.size
        for entry in sorted(self.pending):
            target = inodes.get((entry.device, entry.inode), "") if entry.links > 1 else ""
            if not target:
                label = labels.get(entry.path, "")
                is_small = bool(self.shards) and sizes[label] < PROJECT_BYTES
                label = self.name + label
                if is_small and label not in latest:
                    label = self.name + CHANGES
                target = latest.get(label, "")
                if not target or (filled[target] and filled[target] + entry.size > SHARD_BYTES):
                    target = latest[label] = self._open(label)
                    filled[target] = 0
            self.groups[target].entries.append(entry)
            filled[target] += entry.size
            if entry.links > 1:
                inodes[entry.device, entry.inode] = target
        for group in self.groups.values():
            group.entries.sort()

    def _names_elsewhere(self) -> Dict[str, List[str]]:
        """Return by known shard the names of files that have other names in what is stored now, or in another shard."""
        homes: Dict[Tuple[int, int], str] = {}
        for entry in [*self.pending, *(entry for group in self.groups.values() for entry in group.entries)]:
            if entry.links > 1:
                homes[entry.device, entry.inode] = ""
        linked = [(key, entry) for key, shelf in self.shelves.items() for entry in shelf.entries.values() if entry.links > 1]
        for key, entry in linked:
            # Two files of the same content and times may have become one since, which changes neither of them.
            if homes.setdefault((entry.device, entry.inode), key) != key:
                homes[entry.device, entry.inode] = ""
        found: Dict[str, List[str]] = {}
        for key, entry in linked:
            if not homes[entry.device, entry.inode]:
                found.setdefault(key, []).append(entry.path)
        return found

    def _give_up(self, key: str, paths: List[str], reason: str, late: bool) -> bool:
        """Have some members of a known shard stored elsewhere, or all of it anew where too much of it would be stale: then it is True."""
        shelf = self.shelves[key]
        members = list(shelf.entries.values())
        moved = shelf.give_up(paths)
        if paths and shelf.is_worn(late):
            if not late and _split(key)[0] != self.name + CHANGES:
                self._make_anew(key, members, reason)
                return True
            self._dissolve(key)
        self.pending.extend(moved)
        return False

    def _open(self, label: str) -> str:
        """Begin a new shard; returns its id."""
        number = self.newest[label] = self.newest.get(label, -1) + 1
        key = f"{label}.{number}"
        self.groups[key] = Group(key, self.root, self.logs, [])
        self.reasons[key] = words(self.new, self.changed, 0, self.hidden) or "made one with others" if self.shards else "new"
        return key

    def _make_anew(self, key: str, members: List[Entry], reason: str) -> None:
        del self.shelves[key]
        if members:
            self.groups[key] = Group(key, self.root, self.logs, members)
            self.reasons[key] = reason

    def _dissolve(self, key: str) -> None:
        self.pending.extend(self.shelves.pop(key).entries.values())


def words(new: int, changed: int, gone: int, hidden: int) -> str:
    """Say what became of members; empty when they are as they were."""
    counts = ((new, "new"), (changed - hidden, "changed"), (hidden, "with content changed while size and time stayed"), (gone, "gone"))
    return ", ".join(f"{count} {word}" for count, word in counts if count)


def is_tree(shard_id: str) -> bool:
    """True for a shard of folders, symlinks and empty files."""
    return shard_id.endswith(TREE)


def groups_of_moved(moved: List[Tuple[Group, List[Entry]]], taken: Iterable[str]) -> List[Group]:
    """Return the groups in which what changed while it was read is stored again.

    :param moved: for each group its members that changed
    :param taken: the ids of all other shards
    """
    numbers: Dict[str, int] = {}
    for key in taken:
        label, number = _split(key) if not is_tree(key) else (key, 0)
        numbers[label] = max(numbers.get(label, 0), number)
    groups: Dict[str, Group] = {}
    for group, entries in moved:
        if is_tree(group.id):
            groups[group.id] = group._replace(entries=entries)
        elif entries:
            label = f"{group.root.name}:{'logs' if group.logs else 'files'}{CHANGES}"
            if label not in groups:
                groups[label] = Group(f"{label}.{numbers.get(label, -1) + 1}", group.root, group.logs, [])
            groups[label].entries.extend(entries)
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


def _seen(entry: Entry) -> bytes:
    # Link counts and devices change when a host is restarted or a file gets a second name elsewhere.
    return os.fsencode("\0".join(map(str, entry[:9])) + "\0")


def fingerprint(entries: Iterable[Entry]) -> str:
    """Return a digest of everything that lstat(2) says about a shard's members."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(_seen(entry))
    return digest.hexdigest()


def member_print(entry: Entry) -> str:
    """Return a short digest of what lstat(2) says about one member."""
    return hashlib.sha256(_seen(entry)).hexdigest()[: len(UNSETTLED)]


def prints(entries: Iterable[Entry], scanned_ns: int) -> str:
    """Return the prints of members, one after the other."""
    return "".join(member_print(entry) if is_settled(entry, scanned_ns) else UNSETTLED for entry in entries)


def printed(known: Known, cached: str) -> Dict[str, str]:
    """Return by path the prints that :func:`prints` wrote of a known shard's members; empty where they are lost."""
    width = len(UNSETTLED)
    return {get_text(value, "path"): cached[width * index : width * index + width] for index, value in enumerate(known.records)}


def is_settled(entry: Entry, scanned_ns: int) -> bool:
    """True when a member was not touched so shortly before the look that a later touch could go unseen."""
    return entry.ctime_ns < scanned_ns - RACY_NS


def differs(entry: Entry, value: Record) -> bool:
    """True when a member's metadata is not what was recorded of it."""
    return (
        entry.type != value["type"]
        or entry.mode != value["mode"]
        or entry.mtime_ns != value["mtime_ns"]
        or (entry.uid, entry.gid) != (value["uid"], value["gid"])
        or (entry.type == "file" and entry.size != value["size"])
    )
