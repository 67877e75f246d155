# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where everything of a set goes on this host, and how what lies there differs from the set."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from .._core.errors import present
from .._core.files import hash_file
from .._core.protocols import DatabaseSource, Names, ServerTarget
from .comparison import OnDisk, Owners, content_differences, metadata_differences, rights_differences
from .errors import BackupError
from .exchange import Servers, inode
from .manifest import STALE, Image, Manifest, Record, get_text, stale_members
from .source import ENVIRONMENT, STAGE_FOLDER, Entry, Root, Source, is_below, look
from .store import Store


class Target(NamedTuple):
    """One root of the set and where it goes."""

    name: str
    is_file: bool
    live: str
    """The path that the application uses; it may be missing."""
    stage: str
    """The folder beside it that the set's copy is extracted into."""

    @property
    def staged(self) -> str:
        """Where the copy of :attr:`live` lies."""
        return os.path.join(self.stage, os.path.basename(self.live))

    @property
    def base(self) -> str:
        """The folder that the set's paths are relative to."""
        return self.stage if self.is_file else self.staged


class Placed(NamedTuple):
    """One database of the set and where it goes."""

    image: Image
    live: str
    staged: str
    stage: str
    """The folder of its own that it is staged in; empty when it lies in a target's."""


class Served(NamedTuple):
    """One database of the set that goes into a server."""

    image: Image
    target: ServerTarget
    names: Names


class Environment(NamedTuple):
    """The application's environment file in a set: a path of its own, or a file in one of the others."""

    live: str
    staged: str
    record: Record
    """Its line of the file list."""


class Placement:
    """One set on one host.

    :param members: the set's list of files, the stale members among them
    :param label: what the names of what is staged begin with
    :param owner: give files the owner with the stored ``name`` (the stored id where there is no such name), or ``id``
    :param servers: where databases in servers are brought back to
    :param adopt: returns the database of a file, by name and path
    Raises :class:`BackupError` for what the description names no place for.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        manifest: Manifest,
        members: List[Record],
        label: str,
        owner: str,
        servers: Servers,
        adopt: Callable[[str, str], DatabaseSource],
    ) -> None:
        self.store = store
        self.source = source
        self.manifest = manifest
        self.records = [value for value in members if STALE not in value]
        self.stale = stale_members(members)
        self.label = label
        self.owners = Owners(owner)
        self.adopt = adopt
        self.log_shards = {shard.id for shard in manifest.shards if shard.logs}
        paths = source.outermost()
        self.targets: List[Target] = []
        self.placed: List[Placed] = []
        self.served: List[Served] = []
        for name, root in sorted(manifest.roots.items()):
            if name not in paths:
                raise BackupError(
                    f"set {manifest.id} holds {name}, for which the description names no place",
                    get_text(root, "path"),
                    f"Name {name} under paths",
                )
            live = paths[name]
            stage = os.path.join(os.path.dirname(live), STAGE_FOLDER, self.store.uuid, f"{label}-{name}")
            self.targets.append(Target(name, root["type"] == "file", live, stage))
        declared = {database.name: database.files()[0] for database in self.source.databases if database.files()}
        targets = {target.name: target for target in self.targets}
        for image in manifest.databases:
            if not image.file:
                self.served.append(self._serve(image, servers))
                continue
            inner = get_text(image.file, "path")
            if image.root:
                live = declared.get(image.name, os.path.join(targets[image.root].live, inner))
            elif image.name in declared:
                live = declared[image.name]
            else:
                raise BackupError(
                    f"set {manifest.id} holds the database {image.name}, for which the description names no place",
                    inner,
                    f"Name {image.name} under databases",
                )
            home = next((x for x in self.targets if not x.is_file and is_below(live, x.live)), None)
            if home is not None:
                staged = os.path.join(home.staged, os.path.relpath(live, home.live))
                self.placed.append(Placed(image, live, staged, ""))
            else:
                stage = os.path.join(os.path.dirname(live), STAGE_FOLDER, self.store.uuid, f"{label}-database-{image.name}")
                self.placed.append(Placed(image, live, os.path.join(stage, os.path.basename(live)), stage))
        self.environment = self._find_environment()

    def _serve(self, image: Image, servers: Servers) -> Served:
        target = servers.get(image.name)
        if target is None:
            raise BackupError(
                f"set {self.manifest.id} holds the {image.engine} database {image.name}, for which the description names no server",
                self.store.path,
                f"Name {image.name} under databases, with the engine {image.engine}",
            )
        return Served(image, target, target.names(f"{self.store.uuid}/{self.label}"))

    def _find_environment(self) -> Optional[Environment]:
        """Return the environment file, None where the set holds none."""
        live = self.source.targets.get(ENVIRONMENT, "")
        target = next((target for target in self.targets if live == target.live or is_below(live, target.live)), None)
        if target is None or target.is_file != (live == target.live):
            return None
        path = "" if target.is_file else os.path.relpath(live, target.live)
        for value in self.records:
            if value["root"] == target.name and value["type"] == "file" and path in ("", get_text(value, "path")):
                return Environment(live, os.path.join(target.staged, path) if path else target.staged, value)
        return None

    def settle_environment(self, content: bytes) -> None:
        """Have the environment file hold this instead of what the set has: from here on it is right when it does."""
        before = present(self.environment).record
        after = {**before, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        self.records = [after if value is before else value for value in self.records]
        self.environment = present(self.environment)._replace(record=after)

    @property
    def stages(self) -> List[str]:
        """The folders that hold the staged copy, and after the exchange the old state."""
        return [target.stage for target in self.targets] + [placed.stage for placed in self.placed if placed.stage]

    def stage_of(self, placed: Placed) -> str:
        """Return the staging folder that a database is staged in: its own, or that of the target it lies in."""
        return placed.stage or next(target.stage for target in self.targets if is_below(placed.staged, target.stage))

    @property
    def is_staged(self) -> bool:
        """True when everything that belongs to the staged copy is there, the environment file with the content that is wanted now."""
        environment = self.environment
        return (
            all(os.path.lexists(target.staged) for target in self.targets)
            and all(os.path.lexists(placed.staged) for placed in self.placed)
            and all(served.target.identity(served.names.staged) is not None for served in self.served)
            and (environment is None or hash_file(environment.staged) == environment.record["sha256"])
        )

    def check(self) -> List[str]:
        """Return warnings. Raises :class:`BackupError` for a place that nothing can be put into or taken from."""
        mounts = _mount_points()
        lives = [target.live for target in self.targets] + [placed.live for placed in self.placed if placed.stage]
        for live in lives:
            parent = os.path.dirname(live)
            if not os.path.isdir(parent):
                raise BackupError("the folder that this belongs into is missing", live, f"Install the application, or make {parent}")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise BackupError("nothing can be put beside this path", live, f"Run as a user who may write to {parent}")
            inside = [mount for mount in mounts if mount == live or is_below(mount, live)]
            if inside:
                raise BackupError(
                    "a mount point lies in the way of the exchange",
                    inside[0],
                    "Unmount it for the restore, or name paths below the mount point in the description",
                )
        for target in self.targets:
            types = {path: value["type"] for path, value in self.wanted(target, logs=True)}
            for kept in self.kept(target):
                for parent in parents(os.path.relpath(kept, target.live)):
                    if types.get(parent, "dir") != "dir":
                        raise BackupError(
                            f"this stays through a restore, but in set {self.manifest.id} {parent!r} on the way to it is a {types[parent]}",
                            kept,
                            "Take it out of logs and volatile for this restore, or name another set",
                        )
        foreign = sum(value["uid"] != os.geteuid() for value in self.records) if os.geteuid() != 0 else 0
        return [f"{foreign} entries belong to other users; without root they become yours"] if foreign else []

    def wanted(self, target: Target, logs: bool) -> Iterator[Tuple[str, Record]]:
        """Yield the file list's lines for a target, by path relative to its base."""
        spared = [*self.source.logs, *self.source.volatile]
        for value in self.records:
            if value["root"] == target.name and (logs or value["shard"] not in self.log_shards):
                path = get_text(value, "path")
                full = os.path.join(target.live, path)
                if not logs and any(full == other or is_below(full, other) for other in spared):
                    # Declared as such only after the set was made.
                    continue
                # A single file may have another name here than where it was saved.
                yield (os.path.basename(target.live) if target.is_file else path), value

    def difference(self, target: Target) -> str:
        """Say how the live state differs from the set; empty when it does not. Logs do not count."""
        if not os.path.lexists(target.live):
            return "it is missing"
        if stat.S_ISREG(os.stat(target.live).st_mode) != target.is_file:
            return "it is of another kind"
        base, live = os.path.dirname(target.live) if target.is_file else target.live, self.found(target)
        wanted = dict(self.wanted(target, logs=False))
        gone, extra = set(wanted) - set(live), set(live) - set(wanted)
        if gone or extra:
            return f"{len(gone)} paths of the set are missing, {len(extra)} are not in the set"
        wrong = [path for path in sorted(wanted) if self.wrong(base, path, wanted[path], live[path], wanted, False)]
        if not wrong:
            wrong = [path for path in sorted(wanted) if self.wrong(base, path, wanted[path], live[path], wanted, True)]
        return f"{len(wrong)} paths differ" if wrong else ""

    def found(self, target: Target) -> Dict[str, Entry]:
        """Return what is live in the place of a target that is there, by path as in :meth:`wanted` without logs: no databases of the
        set, and no folder that is there for the sake of what is not restored."""
        others = [placed.live for placed in self.placed if not placed.stage]
        is_file = stat.S_ISREG(os.stat(target.live).st_mode)
        live = {entry.path: entry for entry in self.source.scan(Root(target.name, target.live, is_file), others).saved}
        wanted = {path for path, _value in self.wanted(target, logs=False)}
        for kept in self.kept(target):
            for parent in parents(os.path.relpath(kept, target.live)):
                if parent not in wanted:
                    live.pop(parent, None)
        return live

    def wrong(self, base: str, path: str, value: Record, entry: Optional[Entry], wanted: Dict[str, Record], deep: bool) -> str:
        """Say what is wrong with a path on disk; empty when it is what the file list says.

        :param deep: read its content and extended attributes too
        """
        if entry is None:
            return "it is missing"
        now = OnDisk(os.path.join(base, path), entry)
        # A log that was written to while it was read has the time of that moment.
        for found in metadata_differences(value, now, self._owners_that_count, value["shard"] not in self.log_shards, deep):
            return found.words
        link = get_text(value, "link")
        if link and link in wanted and inode(os.path.join(base, link)) != entry.inode:
            return f"it is not another name of {link!r}"
        for found in content_differences(value, now) if deep and not link else ():
            return found.words
        return ""

    def wrong_rights(self, full: str, value: Record, entry: Entry, deep: bool) -> str:
        for found in rights_differences(value, OnDisk(full, entry), self._owners_that_count, deep):
            return found.words
        return ""

    @property
    def _owners_that_count(self) -> Optional[Owners]:
        # Without root, what is restored belongs to who restores it.
        return self.owners if os.geteuid() == 0 else None

    def database_difference(self, placed: Placed) -> str:
        """Say how a live database differs from the set's image; empty when it does not."""
        entry = look("/", placed.live)
        if entry is None or not self.adopt(placed.image.name, placed.live).is_as(placed.image.facts):
            return "the database is not that of the set"
        return self.wrong_rights(placed.live, placed.image.file, entry, True)

    @staticmethod
    def server_difference(served: Served) -> str:
        packages = served.target.missing()
        if packages:
            return f"{', '.join(packages)} has to be installed before it can be looked at"
        return served.target.difference(served.image.facts)

    def kept(self, target: Target) -> List[str]:
        """Return the live paths below a target that stay through the restore: logs that are there, and what is volatile."""
        kept = []
        for path in [*self.source.logs, *self.source.volatile]:
            if target.is_file or not is_below(path, target.live) or not os.path.lexists(path):
                continue
            if path in self.source.logs and os.path.isdir(path) and not os.listdir(path):
                continue
            kept.append(path)
        # One inside another goes with it.
        return [path for path in kept if not any(is_below(path, other) for other in kept)]


def parents(path: str) -> List[str]:
    """Return the folders above a relative path, the outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _mount_points() -> List[str]:
    """Return the mount points of this process (proc(5), mountinfo: fifth field, with octal escapes)."""
    with open("/proc/self/mountinfo", "rb") as stream:
        fields = [line.split(b" ")[4] for line in stream]
    return [os.fsdecode(field.decode("unicode_escape").encode("latin-1")) for field in fields]
