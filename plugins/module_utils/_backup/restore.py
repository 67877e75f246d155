# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing a set back: staged beside the target, every hash checked there, then exchanged for the live state."""

from __future__ import annotations

import base64
import grp
import hashlib
import os
import pwd
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .._core.clock import Clock
from .._core.command import find_program
from .._core.errors import present
from .._core.files import free_bytes, fsync_dir, hash_file, human_size, is_out_of_space, make_dir, remove_tree, sync_filesystem
from .._core.lock import flock
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .._core.processes import holders
from .._core.protocols import DatabaseSource, Names, ServerTarget
from . import archive
from .create import read_xattrs, restore_order, summary
from .errors import BackupError
from .exchange import (
    COMMITTED,
    EXCHANGING,
    ROLLED_BACK,
    ROLLING_BACK,
    STAGED,
    STAGING,
    Carry,
    Journal,
    Kept,
    Password,
    Rename,
    Servers,
    Step,
    Swap,
    inode,
    kept_logs,
    server_of,
)
from .manifest import Image, Manifest, Record, get_text
from .source import STAGE_FOLDER, Entry, Root, Source, is_below, look
from .store import Store
from .verify import ImageCheckers

ENVIRONMENT = "environment"
"""The name of the saved path that is the application's environment file."""

EXTRACT_S = 24 * 3600
"""Seconds that one shard may take to extract."""


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


class Restore(Operation):
    """Bring a set back, go back to what was before, or remove what was kept aside.

    :param state: ``staged``, ``restored``, ``rolled_back`` or ``purged``
    :param owner: give files the owner with the stored ``name`` (the stored id where there is no such name), or ``id``
    :param servers: where databases in servers are brought back to
    :param adopt: returns the database of a file, by name and path
    :param credentials: what happens when the set's environment file can't log in to the server: ``fail``, ``keep_live`` (the
        live file's URL stays), ``set_role`` (the role gets the set's password)
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        which: str,
        state: str,
        state_dir: str,
        owner: str,
        clock: Clock,
        checkers: ImageCheckers,
        lock_timeout_s: float,
        servers: Servers,
        adopt: Callable[[str, str], DatabaseSource],
        credentials: str,
    ) -> None:
        self.credentials = credentials
        self.settings = b""
        """The environment file's content as it will be restored, where a database's URL stands in it."""
        self.passwords: List[ServerTarget] = []
        """Whose role gets the set's password."""
        self.servers = servers
        self.adopt = adopt
        self.store = store
        self.source = source
        self.which = which
        self.state = state
        self.state_dir = state_dir
        self.owner = owner
        self.clock = clock
        self.checkers = checkers
        self.lock_timeout_s = lock_timeout_s
        self.journal_path = os.path.join(state_dir, "restore.json")
        self.journal: Optional[Journal] = None
        self.manifest: Optional[Manifest] = None
        self.records: List[Record] = []
        self.targets: List[Target] = []
        self.placed: List[Placed] = []
        self.served: List[Served] = []
        self.log_shards: Set[str] = set()
        self.label = ""
        self.recovered = ""
        self.warnings: List[str] = []
        self.phases: Dict[str, float] = {}
        self._ids: Dict[str, int] = {}
        for name, path in source.targets.items():
            if os.path.realpath(state_dir) == path or is_below(os.path.realpath(state_dir), path):
                raise BackupError(
                    f"the folder for the record of restores lies inside {name}, which a restore exchanges",
                    state_dir,
                    "Name a state_dir outside of what is saved",
                )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.store.open()
        make_dir(self.state_dir)
        with flock(os.path.join(self.state_dir, "restore.lock"), wait_s=self.lock_timeout_s):
            with self.store.writer(self.lock_timeout_s):
                yield

    # plan -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        self.store.open()
        self.journal = Journal.read(self.journal_path, self.store.uuid, self.servers)
        self._find_kept_logs()
        plan = Plan(self.state)
        if self.journal is not None and self.journal.is_interrupted:
            plan.add("undo interrupted exchange", self.journal.set_id, f"a run died while {self.journal.phase}")
        if self.state == "rolled_back":
            self._plan_rollback(plan)
        elif self.state == "purged":
            self._plan_purge(plan)
        else:
            self._plan_restore(plan)
        if not plan.changes:
            plan.action = "none"
        return plan

    def _plan_rollback(self, plan: Plan) -> None:
        journal = self.journal
        if journal is not None and journal.phase in (STAGING, STAGED):
            # What was only staged does not take the way back from the restore before it.
            journal = self.journal = journal.before()
        if journal is None:
            raise BackupError("there is no restore to go back from", self.state_dir, "Nothing has to be done")
        if journal.phase == COMMITTED:
            for step in journal.steps:
                if isinstance(step, (Swap, Rename)):
                    if not step.is_done():
                        raise BackupError(
                            "what is here is not what the restore left, or the old state is gone from aside",
                            step.live,
                            "Going back is not safe any more; restore another set instead",
                        )
                    plan.add("put back", step.live, f"the state before set {journal.set_id} was restored")

    def _plan_purge(self, plan: Plan) -> None:
        for stage in self._stages():
            if os.path.lexists(stage):
                plan.add("remove", stage, "staged or kept aside by a restore")
        for kept in self._kept_databases():
            plan.add("remove", f"database {kept.name}", f"staged or kept aside by a restore of {kept.database}")

    def _kept_databases(self) -> List[Kept]:
        """Return the databases that lie beside live ones, of earlier restores too."""
        beside = self.journal.beside if self.journal is not None else []
        return [kept for kept in beside if server_of(self.servers, kept.database).identity(kept.name) is not None]

    def _stages(self) -> List[str]:
        """Return all folders with staged or old state beside the targets, of earlier restores too."""
        found: Set[str] = set()
        journal = self.journal
        while journal is not None:
            found.update(journal.stages)
            journal = journal.before()
        parents = {os.path.dirname(path) for path in self.source.outermost().values()}
        parents.update(os.path.dirname(database.files()[0]) for database in self.source.databases if database.files())
        for parent in parents:
            # Named after the store: several applications may have paths side by side.
            folder = os.path.join(parent, STAGE_FOLDER, self.store.uuid)
            if os.path.isdir(folder):
                found.update(os.path.join(folder, name) for name in os.listdir(folder))
        return sorted(found)

    def _plan_restore(self, plan: Plan) -> None:
        manifest = self.manifest = self.store.find(self.which)
        proof = self.store.proof(manifest.id)
        if not proof.ok:
            reason = proof.failures[0]["reason"] if proof.failures else "no reason was recorded"
            raise BackupError(f"set {manifest.id} failed its verification: {reason}", self.store.path, "Name another set")
        for name, size in manifest.objects.items():
            if not self.store.has_object(name, size):
                raise BackupError(
                    f"set {manifest.id} needs object {name}, which is missing or has another size",
                    self.store.path,
                    "Name another set",
                )
        self.log_shards = {shard.id for shard in manifest.shards if shard.logs}
        damage = self.store.set_damage(manifest)
        if damage:
            raise BackupError(f"set {manifest.id} is damaged: {damage[0]}", self.store.path, "Name another set")
        find_program("tar", "tar")
        self.records = self.store.file_list(manifest)
        journal = self.journal
        reuse = journal is not None and journal.phase == STAGED and journal.set_id == manifest.id
        label = journal.label if journal is not None and reuse else f"{manifest.id}.{self.clock.token()}"
        self._place(manifest, label)
        self._check_targets()
        self._review_settings(plan)
        unknown = sorted(set(self.source.outermost()) - set(manifest.roots))
        if unknown:
            self.warnings.append(f"set {manifest.id} does not hold {', '.join(unknown)}; left as it is")
        if self.state == "staged":
            if not self._is_staged(reuse):
                self._plan_staging(plan, manifest)
            return
        differences = {target.name: self._difference(target) for target in self.targets}
        wrong = {placed.live: self._database_difference(placed) for placed in self.placed}
        wrong.update((served.image.name, self._server_difference(served)) for served in self.served)
        if not any(differences.values()) and not any(wrong.values()) and not plan.changes:
            return
        if not self._is_staged(reuse):
            self._plan_staging(plan, manifest)
        for target in self.targets:
            for kept in self._kept(target):
                plan.add("keep", kept, "logs and volatile paths stay as they are")
            plan.add("exchange", target.live, differences[target.name] or "equal, exchanged with the others")
        for placed in self.placed:
            if placed.stage:
                plan.add("exchange", placed.live, wrong[placed.live] or "equal, exchanged with the others")
        for served in self.served:
            plan.add("exchange", f"database {served.target.database}", wrong[served.image.name] or "equal, exchanged with the others")

    def _review_settings(self, plan: Plan) -> None:
        """See before anything stops whether the restored application can log in to its servers."""
        asking = [served for served in self.served if served.target.url_variable and not served.target.missing()]
        target = next((one for one in self.targets if one.name == ENVIRONMENT and one.is_file), None)
        if not asking or target is None:
            return
        value = next(value for value in self.records if value["root"] == ENVIRONMENT)
        path = get_text(value, "path")
        shard = next(shard for shard in self._set().shards if shard.id == value["shard"])
        self.settings = archive.member(self.store.object_path(shard.object), path, EXTRACT_S)
        live = _read(target.live) if os.path.lexists(target.live) else None
        for served in asking:
            self._review_credentials(served, live)
        for one in self.passwords:
            role = one.check_set_password(self.settings, "the set's environment file")
            if self.state == "restored":
                plan.add("set password", role, f"the one in set {self._set().id} is not the role's")
        # From here on the file is right when it holds this.
        changed = {**value, "size": len(self.settings), "sha256": hashlib.sha256(self.settings).hexdigest()}
        self.records = [changed if one is value else one for one in self.records]

    def _review_credentials(self, served: Served, live: Optional[bytes]) -> None:
        if self.credentials == "keep_live":
            if live is None:
                raise BackupError(
                    "there is no live environment file whose URL could be kept",
                    served.target.url_variable,
                    "Choose fail or set_role for the credentials",
                )
            self.settings = served.target.with_live_url(self.settings, live)
        if served.target.check(served.image.facts, bool(served.image.beside)):
            return  # Its roles are made from the set, with the passwords of then.
        refusal = served.target.refusal(self.settings, f"the environment file of set {self._set().id}")
        if not refusal:
            return
        if self.credentials != "set_role":
            raise BackupError(
                f"the restored application could not log in to its database {served.target.database}: {refusal}",
                served.target.url_variable,
                "Restore with credentials keep_live (the live URL stays) or set_role (the role gets the set's password)",
            )
        self.passwords.append(served.target)

    @staticmethod
    def _server_difference(served: Served) -> str:
        packages = served.target.missing()
        if packages:
            return f"{', '.join(packages)} has to be installed before it can be looked at"
        return served.target.difference(served.image.facts)

    def _place(self, manifest: Manifest, label: str) -> None:
        """Decide where everything goes.

        :param label: what the staging folders' names begin with
        """
        self.label = label
        paths = self.source.outermost()
        self.targets, self.placed, self.served = [], [], []
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
                self.served.append(self._serve(manifest, image, label))
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

    def _serve(self, manifest: Manifest, image: Image, label: str) -> Served:
        target = self.servers.get(image.name)
        if target is None:
            raise BackupError(
                f"set {manifest.id} holds the {image.engine} database {image.name}, for which the description names no server",
                self.store.path,
                f"Name {image.name} under databases, with the engine {image.engine}",
            )
        return Served(image, target, target.names(f"{self.store.uuid}/{label}"))

    def _check_targets(self) -> None:
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
            types = {path: value["type"] for path, value in self._wanted(target, logs=True)}
            for kept in self._kept(target):
                for parent in _parents(os.path.relpath(kept, target.live)):
                    if types.get(parent, "dir") != "dir":
                        raise BackupError(
                            f"this stays through a restore, but in set {self._set().id} {parent!r} on the way to it is a {types[parent]}",
                            kept,
                            "Take it out of logs and volatile for this restore, or name another set",
                        )
        if os.geteuid() != 0:
            foreign = sum(value["uid"] != os.geteuid() for value in self.records)
            if foreign:
                self.warnings.append(f"{foreign} entries belong to other users; without root they become yours")

    def _plan_staging(self, plan: Plan, manifest: Manifest) -> None:
        for served in self.served:
            facts = served.image.facts
            if not served.target.missing():
                for role in served.target.check(facts, bool(served.image.beside)):
                    plan.add("make role", role, f"database {served.target.database} needs it and the server does not have it")
            plan.add("stage", f"database {served.target.database}", f"set {manifest.id}", facts["database_bytes"])
        need: Dict[str, int] = {}
        for target in self.targets:
            size = sum(x.get("size", 0) for x in self.records if x["root"] == target.name)
            size += sum(x.image.facts["bytes"] for x in self.placed if not x.stage and is_below(x.staged, target.staged))
            plan.add("stage", target.live, f"set {manifest.id}", size)
            need[os.path.dirname(target.live)] = need.get(os.path.dirname(target.live), 0) + size
        for placed in self.placed:
            if placed.stage:
                parent, size = os.path.dirname(placed.live), placed.image.facts["bytes"]
                plan.add("stage", placed.live, f"set {manifest.id}", size)
                need[parent] = need.get(parent, 0) + size
        devices: Dict[int, Tuple[str, int]] = {}
        for parent, size in need.items():
            device = os.stat(parent).st_dev
            devices[device] = (parent, devices.get(device, ("", 0))[1] + size)
        for parent, size in devices.values():
            free = free_bytes(parent)
            if size > free:
                raise BackupError(
                    f"the set and the old state are both kept here; that needs {human_size(size)}, {human_size(free)} are free",
                    parent,
                    "Free space here, or remove what an earlier restore kept aside (state purged)",
                )

    def _is_staged(self, reuse: bool) -> bool:
        return (
            reuse
            and all(os.path.lexists(target.staged) for target in self.targets)
            and all(os.path.lexists(placed.staged) for placed in self.placed)
            and all(served.target.identity(served.names.staged) is not None for served in self.served)
        )

    # comparing with what is live --------------------------------------------------------------------

    def _wanted(self, target: Target, logs: bool) -> Iterator[Tuple[str, Record]]:
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

    def _set(self) -> Manifest:
        return present(self.manifest)

    def _difference(self, target: Target) -> str:
        """Say how the live state differs from the set; empty when it does not. Logs do not count."""
        if not os.path.lexists(target.live):
            return "it is missing"
        is_file = stat.S_ISREG(os.stat(target.live).st_mode)
        if is_file != target.is_file:
            return "it is of another kind"
        root = Root(target.name, target.live, is_file)
        others = [placed.live for placed in self.placed if not placed.stage]
        live = {entry.path: entry for entry in self.source.scan(root, others).saved}
        wanted = dict(self._wanted(target, logs=False))
        gone, extra = set(wanted) - set(live), set(live) - set(wanted)
        for kept in self._kept(target):
            # A folder that is there for the sake of what is not restored.
            extra.difference_update(_parents(os.path.relpath(kept, target.live)))
        if gone or extra:
            return f"{len(gone)} paths of the set are missing, {len(extra)} are not in the set"
        wrong = [path for path in sorted(wanted) if self._wrong(root.base, path, wanted[path], live[path], wanted, False)]
        if not wrong:
            wrong = [path for path in sorted(wanted) if self._wrong(root.base, path, wanted[path], live[path], wanted, True)]
        return f"{len(wrong)} paths differ" if wrong else ""

    def _wrong(self, base: str, path: str, value: Record, entry: Optional[Entry], wanted: Dict[str, Record], deep: bool) -> str:
        """Say what is wrong with a path on disk; empty when it is what the file list says.

        :param deep: read its content and extended attributes too
        """
        if entry is None:
            return "it is missing"
        if entry.type != value["type"]:
            return f"it is a {entry.type}, not a {value['type']}"
        if entry.type == "file" and entry.size != value["size"]:
            return f"it has {entry.size} bytes, not {value['size']}"
        # A log that was written to while it was read has the time of that moment.
        if entry.mtime_ns != value["mtime_ns"] and value["shard"] not in self.log_shards:
            return f"it was modified at {entry.mtime_ns} ns, not at {value['mtime_ns']} ns"
        rights = self._wrong_rights(os.path.join(base, path), value, entry, deep)
        if rights:
            return rights
        link = get_text(value, "link")
        if link and link in wanted and inode(os.path.join(base, link)) != entry.inode:
            return f"it is not another name of {link!r}"
        if not deep:
            return ""
        full = os.path.join(base, path)
        if entry.type == "symlink" and os.readlink(full) != get_text(value, "target"):
            return "it points elsewhere"
        if entry.type == "file" and not link and hash_file(full) != value["sha256"]:
            return "it has other content"
        return ""

    def _wrong_rights(self, full: str, value: Record, entry: Entry, deep: bool) -> str:
        if entry.mode != value["mode"] and entry.type != "symlink":
            return f"it has mode {entry.mode:04o}, not {value['mode']:04o}"
        if os.geteuid() == 0 and (entry.uid, entry.gid) != self._owner_ids(value):
            return f"it belongs to {entry.uid}:{entry.gid}, not to {self._owner_ids(value)}"
        if deep and _own_xattrs(read_xattrs(full)) != _own_xattrs(value.get("xattrs", {})):
            return "it has other extended attributes"
        return ""

    def _database_difference(self, placed: Placed) -> str:
        """Say how a live database differs from the set's image; empty when it does not."""
        entry = look("/", placed.live)
        if entry is None or not self.adopt(placed.image.name, placed.live).is_as(placed.image.facts):
            return "the database is not that of the set"
        return self._wrong_rights(placed.live, placed.image.file, entry, True)

    def _owner_ids(self, value: Record) -> Tuple[int, int]:
        return self._id("user", value["user"], value["uid"]), self._id("group", value["group"], value["gid"])

    def _id(self, kind: str, name: str, number: int) -> int:
        if self.owner == "id" or not name:
            return number
        key = f"{kind} {name}"
        if key not in self._ids:
            try:
                self._ids[key] = pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
            except KeyError:
                self._ids[key] = -1
        return number if self._ids[key] < 0 else self._ids[key]

    def _kept(self, target: Target) -> List[str]:
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

    # apply ----------------------------------------------------------------------------------------

    def apply(self, plan: Plan) -> None:
        if self.journal is not None and self.journal.is_interrupted:
            self._recover(self.journal)
        if self.state == "rolled_back":
            self._roll_back()
        elif self.state == "purged":
            self._purge()
        else:
            if any(step.step == "stage" for step in plan):
                self._timed("stage_s", self._stage)
            if any(step.step == "exchange" for step in plan):
                self._timed("exchange_s", self._exchange)

    def _find_kept_logs(self) -> None:
        """Count what an undone exchange has put beside logs as logs: it stays live, whatever is restored or purged."""
        for log in list(self.source.logs):
            self.source.logs.extend(path for path in kept_logs(log) if path not in self.source.logs)

    def _timed(self, name: str, work: Any) -> None:
        started = self.clock.monotonic()
        work()
        self.phases[name] = round(self.clock.monotonic() - started, 3)

    def _recover(self, journal: Journal) -> None:
        self._require_unused()
        was = journal.phase
        journal.undo()
        self._find_kept_logs()
        journal.write(STAGED if was == EXCHANGING and self.state != "rolled_back" else ROLLED_BACK)
        self.recovered = "the interrupted exchange was undone" if was == EXCHANGING else "the interrupted way back was finished"

    def _stage(self) -> None:
        manifest, last = self._set(), self.journal
        stages = self._stage_folders()
        discarded = last if last is not None and last.phase in (STAGING, STAGED) else None
        previous = discarded.previous if discarded is not None else last.as_json() if last is not None else None
        beside = self._kept_databases()
        # From here on a copy that is being filled, or removed, never counts as one.
        self.journal = Journal(self.journal_path, self.store.uuid, self.label, manifest.id, stages, previous, self.servers)
        self.journal.beside = beside + [Kept(served.image.name, name) for served in self.served for name in served.names]
        self.journal.write(STAGING)
        try:
            if discarded is not None:
                self._discard(discarded)
            for stage in stages:
                make_dir(os.path.dirname(os.path.dirname(stage)))
                make_dir(os.path.dirname(stage))
                make_dir(stage)
            self._extract(manifest)
            self._check_staged()
            for stage in stages:
                sync_filesystem(stage)
            for served in self.served:
                self._load(served)
        except BaseException as error:
            for stage in stages:
                remove_tree(stage)
            if isinstance(error, OSError) and is_out_of_space(error):
                raise BackupError(
                    "the disk became full while the set was staged; the live state is untouched",
                    os.path.dirname(self.targets[0].live),
                    "Free space there and run again",
                ) from None
            raise
        self.journal.write(STAGED)

    def _discard(self, discarded: Journal) -> None:
        """Remove what was staged and cut off, or is not wanted any more."""
        for stage in discarded.stages:
            remove_tree(stage)
        for kept in discarded.beside:
            target = server_of(self.servers, kept.database)
            if kept.name == target.names(f"{self.store.uuid}/{discarded.label}").staged:
                target.drop(kept.name)

    def _load(self, served: Served) -> None:
        """Load one database beside the live one, from plain files in the store, which has the room."""
        with tempfile.TemporaryDirectory(dir=self.store.at("tmp")) as folder:
            plain, beside = os.path.join(folder, "image"), ""
            archive.decompress(self.store.object_path(served.image.object), plain)
            if served.image.beside:
                beside = os.path.join(folder, "globals.sql")
                archive.decompress(self.store.object_path(served.image.beside), beside)
            wrong = [x for x in self.checkers[served.image.engine](plain, served.image.facts) if not x.ok]
            if wrong:
                raise BackupError(f"database {served.image.name}: {wrong[0].check}: {wrong[0].detail}", self.store.path, "Name another set")
            served.target.load(plain, beside, served.image.facts, served.names.staged)

    def _stage_folders(self) -> List[str]:
        return [target.stage for target in self.targets] + [placed.stage for placed in self.placed if placed.stage]

    def _extract(self, manifest: Manifest) -> None:
        targets = {target.name: target for target in self.targets}
        for target in self.targets:
            for path, value in self._wanted(target, logs=True):
                if value["type"] == "dir":
                    # Made here, so that two archives never race for a folder; modes and times come last.
                    os.makedirs(os.path.join(target.base, path), 0o700, exist_ok=True)

        def extract(name: str, root: str) -> None:
            path = self.store.object_path(name)
            if hash_file(path) != name.split(".")[0]:
                raise BackupError(f"object {name} is damaged (its hash is not its name)", self.store.path, "Name another set")
            archive.extract(path, targets[root].base, self.owner == "id", EXTRACT_S)

        ordered = restore_order(manifest.shards)
        trees = [shard for shard in ordered if shard.id.endswith("-tree")]
        files = sorted((shard for shard in ordered if shard not in trees), key=lambda shard: -shard.stored_bytes)
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            jobs = [pool.submit(extract, shard.object, shard.root) for shard in files]
            jobs.extend(pool.submit(self._place_image, placed) for placed in self.placed)
            try:
                for job in jobs:
                    job.result()
            finally:
                # A failure does not wait for the work that is still queued.
                for job in jobs:
                    job.cancel()
        for shard in trees:
            extract(shard.object, shard.root)
        for target in self.targets:
            if target.name == ENVIRONMENT and self.settings:
                self._rewrite(target)
            saved = [path for path, value in self._wanted(target, logs=True)]
            if target.is_file and get_text(manifest.roots[target.name], "path"):
                stored = os.path.basename(get_text(manifest.roots[target.name], "path"))
                if stored not in saved:
                    os.rename(os.path.join(target.stage, stored), target.staged)
            for kept in self._kept(target):
                remove_tree(os.path.join(target.staged, os.path.relpath(kept, target.live)))
            self._set_folder_times(target)

    def _rewrite(self, target: Target) -> None:
        """Give the staged environment file the content that was settled, with the rights and time it has."""
        value = next(value for value in self.records if value["root"] == ENVIRONMENT)
        path = os.path.join(target.stage, os.path.basename(get_text(value, "path")))
        with open(path, "r+b") as stream:
            stream.truncate()
            stream.write(self.settings)
        os.utime(path, ns=(value["mtime_ns"], value["mtime_ns"]))

    def _place_image(self, placed: Placed) -> None:
        name = placed.image.object
        os.makedirs(os.path.dirname(placed.staged), 0o700, exist_ok=True)
        archive.decompress(self.store.object_path(name), placed.staged)
        wrong = [x for x in self.checkers[placed.image.engine](placed.staged, placed.image.facts) if not x.ok]
        if wrong:
            raise BackupError(f"database {placed.image.name}: {wrong[0].check}: {wrong[0].detail}", self.store.path, "Name another set")
        value = placed.image.file
        if os.geteuid() == 0:
            os.chown(placed.staged, *self._owner_ids(value))
        os.chmod(placed.staged, value["mode"])
        _set_xattrs(placed.staged, _own_xattrs(value.get("xattrs", {})))
        os.utime(placed.staged, ns=(value["mtime_ns"], value["mtime_ns"]))
        handle = os.open(placed.staged, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _set_folder_times(self, target: Target) -> None:
        """Give the folders of a staged copy the times that putting things into them took away."""
        for path, value in self._wanted(target, logs=True):
            full = os.path.join(target.base, path)
            if value["type"] == "dir" and os.path.isdir(full) and not os.path.islink(full):
                os.utime(full, ns=(value["mtime_ns"], value["mtime_ns"]))

    def _check_staged(self) -> None:
        """Read every staged file back from the disk and compare it with the file list."""
        work: List[Tuple[Target, str, Record, Dict[str, Record]]] = []
        for target in self.targets:
            kept = [os.path.relpath(path, target.live) for path in self._kept(target)]
            wanted = {
                path: value
                for path, value in self._wanted(target, logs=True)
                if not any(path == name or is_below(path, name) for name in kept)
            }
            work.extend((target, path, value, wanted) for path, value in wanted.items())

        def check(item: Tuple[Target, str, Record, Dict[str, Record]]) -> str:
            target, path, value, wanted = item
            wrong = self._wrong(target.base, path, value, look(target.base, path), wanted, True)
            return f"{os.path.join(target.name, path)}: {wrong}" if wrong else ""

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            wrong = [reason for reason in pool.map(check, work, chunksize=64) if reason]
        for placed in self.placed:
            entry = look("/", placed.staged)
            reason = self._wrong_rights(placed.staged, placed.image.file, entry, True) if entry else "it is missing"
            if reason:
                wrong.append(f"database {placed.image.name}: {reason}")
        if wrong:
            raise BackupError(
                f"{len(wrong)} staged paths are not what set {self._set().id} says, first {wrong[0]}",
                self.store.path,
                "The live state is untouched; name another set, or mend what the message names",
            )

    def _exchange(self) -> None:
        self._require_unused()
        journal = present(self.journal)
        steps: List[Step] = []
        # First, because sessions that do not end are the likeliest of all failures.
        for served in self.served:
            loaded = present(served.target.identity(served.names.staged))
            steps.append(Rename(served.target, *served.names, served.target.identity(served.target.database), loaded))
        for one in self.passwords:
            environment = next(target for target in self.targets if target.name == ENVIRONMENT)
            steps.insert(0, Password(one, environment.live, environment.staged))
        for target in self.targets:
            for kept in self._kept(target):
                rest = os.path.relpath(kept, target.live)
                for parent in _parents(rest):
                    _make_like(os.path.join(target.staged, parent), os.path.join(target.live, parent))
                inner = os.path.join(target.staged, rest)
                # Where the live one appeared only after staging, the set's copy of it gives way.
                remove_tree(inner)
                steps.append(Carry(kept, inner, kept in self.source.logs))
            self._set_folder_times(target)
            steps.append(Swap.planned(target.live, target.staged))
        for placed in self.placed:
            if placed.stage:
                for ending in ("-wal", "-shm", "-journal"):
                    if os.path.lexists(placed.live + ending):
                        steps.append(Swap.planned(placed.live + ending, placed.staged + ending))
                steps.append(Swap.planned(placed.live, placed.staged))
        journal.steps = steps
        journal.write(EXCHANGING)
        try:
            for step in steps:
                step.do()
        except BaseException:
            journal.undo()
            journal.write(STAGED)
            raise
        journal.previous = None
        journal.write(COMMITTED)

    def _require_unused(self) -> None:
        """Refuse to exchange what a process has open: it would go on writing to the old state."""
        files: List[str] = []
        for name, path in self.source.outermost().items():
            if os.path.lexists(path):
                root = Root(name, path, stat.S_ISREG(os.stat(path).st_mode))
                scan = self.source.scan(root)
                files.extend(os.path.join(root.base, entry.path) for entry in scan.saved if entry.type == "file")
                files.extend(scan.undeclared)
        for database in self.source.databases:
            files.extend(database.files())
        found = holders(paths=files)
        if found:
            raise BackupError(
                f"{len(found)} processes have files open here: {', '.join(str(holder) for holder in found[:3])}",
                todo="Stop the application and run again",
            )

    def _roll_back(self) -> None:
        journal = present(self.journal)
        if journal.phase == COMMITTED:
            self._require_unused()
            journal.write(ROLLING_BACK)
            journal.undo()
            journal.write(ROLLED_BACK)

    def _purge(self) -> None:
        stages, databases = self._stages(), self._kept_databases()
        # Only the record knows the databases' names, so they go before it; a name that is gone is no state to go back to.
        for kept in databases:
            server_of(self.servers, kept.database).drop(kept.name)
        # Then the record: from then on nobody takes what is being removed for a state to go back to.
        if os.path.exists(self.journal_path):
            os.unlink(self.journal_path)
            fsync_dir(self.state_dir)
        self.journal = None
        for stage in stages:
            remove_tree(stage)
            for folder in (os.path.dirname(stage), os.path.dirname(os.path.dirname(stage))):
                if os.path.isdir(folder) and not os.listdir(folder):
                    os.rmdir(folder)

    # verify ---------------------------------------------------------------------------------------

    def verify(self) -> List[Check]:
        journal = Journal.read(self.journal_path, self.store.uuid, self.servers)
        if self.state == "purged":
            left = [stage for stage in self._stages() if os.path.lexists(stage)]
            return [Check("nothing is kept aside", not left, ", ".join(left))]
        journal = present(journal)
        if self.state == "rolled_back":
            wrong = [step.live for step in journal.steps if not step.is_undone()]
            return [Check("the state before the restore is live", not wrong, ", ".join(wrong))]
        if self.state == "staged":
            return [Check("the staged copy was read back", journal.phase == STAGED, journal.set_id)]
        checks = []
        for target in self.targets:
            base = os.path.dirname(target.live) if target.is_file else target.live
            wanted = dict(self._wanted(target, logs=False))
            wrong = [
                f"{path}: {reason}"
                for path, value in wanted.items()
                for reason in [self._wrong(base, path, value, look(base, path), wanted, False)]
                if reason
            ]
            checks.append(Check(f"{target.name} is that of the set", not wrong, "; ".join(wrong[:3])))
        for placed in self.placed:
            reason = self._database_difference(placed)
            checks.append(Check(f"database {placed.image.name} is that of the set", not reason, reason or placed.live))
        # What was loaded was compared row by row before; here the names count.
        checks.extend(
            Check(f"database {step.live} is that of the set", step.is_done(), step.live)
            for step in journal.steps
            if isinstance(step, Rename)
        )
        if not all(check.ok for check in checks):
            # Nothing has used it yet, so the state before is as good as it was.
            journal.write(ROLLING_BACK)
            journal.undo()
            journal.write(ROLLED_BACK)
            checks.append(Check("the live state", False, "the state before was put back"))
        return checks

    def result(self) -> Dict[str, Any]:
        journal = Journal.read(self.journal_path, self.store.uuid, self.servers)
        if journal is not None and journal.phase in (STAGING, STAGED):
            journal = journal.before()
        is_kept = journal is not None and journal.phase in (COMMITTED, ROLLED_BACK)
        aside = [stage for stage in present(journal).stages if os.path.lexists(stage)] + _beside_live(present(journal)) if is_kept else []
        return {
            "set": summary(self.store, self.manifest) if self.manifest else None,
            "aside": aside,
            "recovered": self.recovered,
            "phases": self.phases,
            "warnings_": self.warnings,
        }


def _beside_live(journal: Journal) -> List[str]:
    """Return the databases that a restore has put aside, or has taken back, as a person would name them."""
    steps = [step for step in journal.steps if isinstance(step, Rename)]
    names = [(step.target, step.aside if journal.phase == COMMITTED else step.staged) for step in steps]
    return [f"database {name}" for target, name in names if target.identity(name) is not None]


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _parents(path: str) -> List[str]:
    """Return the folders above a relative path, the outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def _make_like(folder: str, model: str) -> None:
    """Make a folder that is missing, with the rights of another one."""
    if not os.path.lexists(folder):
        state = os.stat(model)
        os.mkdir(folder, 0o700)
        if os.geteuid() == 0:
            os.chown(folder, state.st_uid, state.st_gid)
        os.chmod(folder, stat.S_IMODE(state.st_mode))


def _own_xattrs(values: Dict[str, str]) -> Dict[str, str]:
    """Return those extended attributes that this process may set (xattr(7))."""
    return {name: value for name, value in values.items() if os.geteuid() == 0 or name.startswith(("user.", "system."))}


def _set_xattrs(path: str, values: Dict[str, str]) -> None:
    """Give a file these extended attributes and no others: it may have inherited an ACL from its folder."""
    for name in set(_own_xattrs(read_xattrs(path))) - set(values):
        os.removexattr(path, name)
    for name, value in values.items():
        os.setxattr(path, name, base64.b64decode(value))


def _mount_points() -> List[str]:
    """Return the mount points of this process (proc(5), mountinfo: fifth field, with octal escapes)."""
    with open("/proc/self/mountinfo", "rb") as stream:
        fields = [line.split(b" ")[4] for line in stream]
    return [os.fsdecode(field.decode("unicode_escape").encode("latin-1")) for field in fields]
