# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing one named part of an application back from a set, while the rest of it goes on.

Files and rows change together: the renames are made while the database's transaction is open, and the journal says by which rows it is
told after a kill whether that was committed. If it was, the renames are finished, else they are undone.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional

from .._backup import images
from .._backup.create import summary
from .._backup.errors import BackupError
from .._backup.exchange import interrupted_set, paths_as_json, paths_from_json, remove_stage
from .._backup.manifest import Image, Manifest
from .._backup.placement import Placement
from .._backup.source import ENVIRONMENT, Source, is_below
from .._backup.staging import Staging
from .._backup.store import Store
from .._backup.verify import ImageCheckers
from .._core.clock import Clock
from .._core.command import find_program
from .._core.environment import fingerprint
from .._core.errors import OpskitError, present
from .._core.files import free_bytes, fsync_dir, human_size, is_out_of_space, make_dir, publish_json, read_json
from .._core.lock import flock
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .._core.protocols import DatabaseSource, RowTarget
from .._core.rows import Mark, RowMerge, TableChange, some
from .scope_files import Files, FileStep, Part, part_of
from .scopes import Scope

STAGING = "staging"
"""Files are put beside the live ones, or what was put aside is removed: what is there is worth nothing."""
WRITING = "writing"
"""Renames may be done, and the transaction may be committed."""


class Options(NamedTuple):
    """What comes back, and how."""

    which: str
    """An id, ``latest`` or ``before <time>``."""
    value: str
    """Which one of the scope's: a project's name, say. Empty where the scope takes none."""
    policy: str
    """One of :data:`POLICIES`."""
    state_dir: str
    """Folder of the record of what is being changed."""
    owner: str
    """Give files the owner with the stored ``name`` (the stored id where there is no such name), or ``id``."""
    key_variables: List[str]
    """Variables of the environment file whose values rows are encrypted or signed with."""
    lock_timeout_s: float


class Record:
    """The file that says what is being changed, for whoever comes after a kill."""

    def __init__(self, path: str, store: str, set_id: str, scope: str, stages: List[str]) -> None:
        self.path = path
        self.store = store
        self.set_id = set_id
        self.scope = scope
        self.stages = stages
        self.phase = STAGING
        self.database = ""
        self.steps: List[FileStep] = []
        self.marks: List[Mark] = []

    @classmethod
    def read(cls, path: str, store: str) -> Optional[Record]:
        """Return what a run left, None where none did. Raises :class:`BackupError` for a damaged one or another store's."""
        try:
            value = read_json(path)
            record = cls(path, value["store"], value["set"], value["scope"], paths_from_json(value["stages"]))
            record.phase = [STAGING, WRITING][[STAGING, WRITING].index(value["phase"])]
            record.database = value["database"]
            record.steps = [FileStep.from_json(step) for step in value["steps"]]
            record.marks = [Mark(**mark) for mark in value["marks"]]
        except FileNotFoundError:
            return None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BackupError(
                f"the record of an interrupted partial restore is damaged ({error!r})",
                path,
                "See that the live state is whole, move this file away, and run again",
            ) from None
        if record.store != store:
            raise BackupError(
                "the partial restore recorded here was from another store", path, "Give each application a state_dir of its own"
            )
        return record

    def write(self, phase: str) -> None:
        """Record a phase, durably."""
        self.phase = phase
        publish_json(
            self.path,
            {
                "store": self.store,
                "set": self.set_id,
                "scope": self.scope,
                "phase": phase,
                "stages": paths_as_json(self.stages),
                "database": self.database,
                "steps": [step.as_json() for step in self.steps],
                "marks": [mark._asdict() for mark in self.marks],
            },
        )

    def close(self) -> None:
        """Remove what was staged or put aside, then the record. Nothing has to be finished or undone any more."""
        if self.phase == WRITING:
            self.write(STAGING)
        for stage in self.stages:
            remove_stage(stage)
        os.unlink(self.path)
        fsync_dir(os.path.dirname(self.path))


class RestoreScope(Operation):
    """Bring the files and rows of one scope back.

    :param targets: by the name a database has in a set, where its rows come back to
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        scope: Scope,
        options: Options,
        clock: Clock,
        checkers: ImageCheckers,
        targets: Mapping[str, RowTarget],
        adopt: Callable[[str, str], DatabaseSource],
    ) -> None:
        self.store = store
        self.source = source
        self.scope = scope
        self.options = options
        self.clock = clock
        self.checkers = checkers
        self.targets = targets
        self.adopt = adopt
        self.record_path = os.path.join(options.state_dir, "restore_partial.json")
        self.left: Optional[Record] = None
        self.died = ""
        """The phase that the interrupted run was in."""
        self.manifest: Optional[Manifest] = None
        self.part: Optional[Part] = None
        self.files: Optional[Files] = None
        self.merge: Optional[RowMerge] = None
        self.marks: List[Mark] = []
        self.tables: List[TableChange] = []
        self.is_real = False
        self.recovered = ""
        self.warnings: List[str] = []
        self.phases: Dict[str, float] = {}
        state_dir = os.path.realpath(options.state_dir)
        for name, path in source.targets.items():
            if state_dir == path or is_below(state_dir, path):
                raise BackupError(
                    f"the folder for the record of what is changed lies inside {name}", options.state_dir, "Name a state_dir outside of it"
                )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.is_real = True
        self.store.open()
        self.store.require_locks()
        self.store.require_owner()
        make_dir(self.options.state_dir)
        # The same lock as that of a whole restore.
        with flock(os.path.join(self.options.state_dir, "restore.lock"), wait_s=self.options.lock_timeout_s), self.store.swept():
            # Before anything else can refuse to go on: half of something is live.
            self._find_left()
            if self.left is not None:
                self._settle(self.left)
            yield

    def _find_left(self) -> None:
        """Look for what an interrupted run has left."""
        interrupted = interrupted_set(os.path.join(self.options.state_dir, "restore.json"))
        if interrupted:
            raise BackupError(f"a restore of set {interrupted} was interrupted", self.options.state_dir, "Finish that one first")
        self.left = Record.read(self.record_path, self.store.uuid)
        self.died = self.left.phase if self.left is not None else ""

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Hold the set, and its database beside the live one."""
        self.store.open()
        self.store.require_locks()
        if not self.is_real:
            self._find_left()
        with ExitStack() as stack:
            manifest = self.manifest = self.store.held(self.options.which, self.options.lock_timeout_s, stack, make=self.is_real)
            self.store.require_restorable(manifest)
            self._refuse_what_does_not_fit(manifest)
            if self.scope.rows:
                image = self._image(manifest)
                with self.clock.timed(self.phases, "load_s"):
                    self.merge = self._open_image(image, stack)
            yield

    # what is refused before anything is looked at ---------------------------------------------------

    def _refuse_what_does_not_fit(self, manifest: Manifest) -> None:
        if not self.scope.rows:
            return
        image = self._image(manifest)
        target = self._target()
        if target.missing():
            raise BackupError(
                f"the database {image.name} can't be asked anything",
                todo=f"Install what that needs: apt-get install {' '.join(target.missing())}",
            )
        live, saved = target.schema_version(), image.facts.get("schema_version") or ""
        if live != saved:
            raise BackupError(
                f"the schema of {image.name} is {saved or 'without a version'} in set {manifest.id}, and {live or 'without a version'} live",
                self.store.path,
                "Rows only fit the schema that they are from: name another set, or restore the whole set",
            )
        if self.scope.key_bound:
            self._refuse_other_keys(manifest)

    def _refuse_other_keys(self, manifest: Manifest) -> None:
        """Refuse rows that were written under another key of the application than the live one."""
        if not self.options.key_variables:
            return
        path = self.source.targets.get(ENVIRONMENT, "")
        if not path or not os.path.isfile(path):
            raise BackupError("there is no live environment file to compare the application's keys with", path, "Restore it first")
        with open(path, "rb") as stream:
            content = stream.read()
        advice = f"Set key_bound of the scope {self.scope.name} to false if its rows are readable without the key, or name another set"
        for variable in self.options.key_variables:
            saved = manifest.keys.get(variable, "")
            if not saved:
                raise BackupError(f"set {manifest.id} does not say under which {variable} its rows were written", self.store.path, advice)
            if saved != fingerprint(content, variable, self.store.uuid):
                raise BackupError(
                    f"the rows of set {manifest.id} were written under another {variable} than the live one, and could not be read",
                    path,
                    advice,
                )

    def _image(self, manifest: Manifest) -> Image:
        found = next((image for image in manifest.databases if image.name == self.scope.database), None)
        if found is None:
            raise BackupError(f"set {manifest.id} holds no database {self.scope.database}", self.store.path, "Name another set")
        return found

    def _target(self) -> RowTarget:
        return self.targets[self.scope.database]

    def _open_image(self, image: Image, stack: ExitStack) -> RowMerge:
        images.require_memory(image)
        need, free = images.disk_to_unpack(image), free_bytes(self.store.path)
        if need > free:
            raise BackupError(
                f"the set's database needs {human_size(need)} here for a while, {human_size(free)} are free",
                self.store.path,
                "Free space there, or move the store to a larger disk",
            )
        folder = stack.enter_context(self.store.scratch("tmp"))
        plain = os.path.join(folder, "image")
        images.unpack_whole(self.store, image, plain, folder)
        wrong = [check for check in self.checkers[image.engine](plain, image.facts) if not check.ok]
        if wrong:
            raise BackupError(f"database {image.name}: {wrong[0].check}: {wrong[0].detail}", self.store.path, "Name another set")
        return stack.enter_context(self._target().beside(plain, image.facts))

    # plan -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        manifest = present(self.manifest)
        find_program("tar", "tar")
        plan = Plan("restored")
        if self.left is not None:
            plan.add("settle interrupted restore", self.left.scope, f"a run died while {self.died}")
        # Before the rows, because it costs less.
        self.part = part_of(manifest, self.store.members(manifest), self.source, self.scope.placed(self.options.value))
        if self.merge is not None:
            value = self.options.value or None
            self.tables = self.merge.plan(self.scope.rows, value, self.options.policy)
        self._refuse_nothing(manifest)
        if self.died in ("", STAGING):
            self._compare_files()
            self._plan_files(plan)
        else:
            plan.add("restore files", self.scope.name, "what the interrupted run has changed is settled first")
        for change in self.tables:
            self._plan_rows(plan, change)
        if not plan.changes:
            plan.action = "none"
        return plan

    def _refuse_nothing(self, manifest: Manifest) -> None:
        found, rows = present(self.part).found, self.merge.staged_rows() if self.merge is not None else 0
        what = f"the {self.scope.name} {self.options.value!r}" if self.options.value else f"the scope {self.scope.name}"
        if not found and not rows:
            raise BackupError(f"set {manifest.id} holds nothing of {what}", self.store.path, "Correct the value, or name another set")
        if self.scope.paths and not found:
            self.warnings.append(f"set {manifest.id} holds no file of {what}; only rows come back")
        if self.scope.rows and not rows:
            self.warnings.append(f"set {manifest.id} holds no row of {what}; only files come back")
        if self.scope.value != "none" and not self.scope.rows and manifest.databases:
            self.warnings.append(f"the scope {self.scope.name} names no rows, so only files come back")

    def _compare_files(self) -> None:
        manifest, part = present(self.manifest), present(self.part)
        label = f"{manifest.id}.{self.clock.token()}-part"
        placement = Placement(self.store, self.source, part.manifest, part.members, label, self.options.owner, {}, self.adopt)
        self.files = Files(part, placement, self.options.policy)
        self.files.compare()
        self.files.require_one_disk()

    def _plan_files(self, plan: Plan) -> None:
        files = present(self.files)
        sizes: Dict[str, int] = {}
        for change in files.changes:
            plan.add("restore path" if change.is_new else "replace path", change.live, change.reason)
        if files.changes:
            for target in files.placement.targets:
                parent = os.path.dirname(target.live)
                sizes[parent] = sizes.get(parent, 0) + sum(x.get("size", 0) for x in files.placement.records if x["root"] == target.name)
        for parent, size in sizes.items():
            if size > free_bytes(parent):
                raise BackupError(
                    f"the files of the scope need {human_size(size)} here, {human_size(free_bytes(parent))} are free",
                    parent,
                    "Free space here and run again",
                )

    def _plan_rows(self, plan: Plan, change: TableChange) -> None:
        table = f"{self.scope.database}: {change.table}"
        if change.inserted:
            plan.add("insert rows", table, f"{len(change.inserted)} are missing: {some(change.inserted)}")
        if change.updated:
            columns = sorted({column for _key, differing in change.updated for column in differing})
            keys = some([key for key, _columns in change.updated])
            plan.add("update rows", table, f"{len(change.updated)} differ in {', '.join(columns)}: {keys}")

    # apply ----------------------------------------------------------------------------------------

    def apply(self, plan: Plan) -> None:
        if self.left is not None:
            # Where a run died in the middle of writing, they were not compared yet.
            self._compare_files()
        files = present(self.files)
        rows = any(change.changes for change in self.tables)
        if not files.changes and not rows:
            return
        stages = files.placement.stages if files.changes else []
        record = Record(self.record_path, self.store.uuid, present(self.manifest).id, self.scope.name, stages)
        record.write(STAGING)
        try:
            if files.changes:
                with self.clock.timed(self.phases, "stage_s"):
                    Staging(files.placement, self.store, self.checkers, b"").fill()
                record.steps = files.steps()
            # A backup must not look at what is being changed.
            with self.store.writer(self.options.lock_timeout_s), self.clock.timed(self.phases, "write_s"):
                self._write(record, rows)
        except BaseException as error:
            try:
                self._settle(record)
            except OpskitError as second:
                # It stays recorded.
                raise BackupError(
                    f"{error}. And what was begun could not be undone: {second.what}",
                    second.where,
                    "Mend that and run the same command again",
                ) from None
            if isinstance(error, OSError) and is_out_of_space(error):
                where = os.path.dirname(files.placement.targets[0].live) if stages else self.options.state_dir
                raise BackupError("the disk became full; nothing was changed", where, "Free space there and run again") from None
            raise
        record.close()

    def _write(self, record: Record, rows: bool) -> None:
        """Change files and rows together."""
        with ExitStack() as stack:
            if rows:
                record.database = self.scope.database
                record.marks = self.marks = stack.enter_context(present(self.merge).written(self.options.policy))
            record.write(WRITING)
            for step in record.steps:
                step.do()

    def _settle(self, record: Record) -> None:
        """Finish or undo what a run has begun."""
        if record.phase == WRITING:
            committed: Optional[bool] = False
            if record.marks:
                target = self.targets.get(record.database)
                if target is None:
                    raise BackupError(
                        f"rows of {record.database} were being restored here, and the description does not name it any more",
                        record.path,
                        f"Name {record.database} under databases again",
                    )
                with target.alone() as live:
                    committed = live.is_committed(record.marks)
            if committed is None:
                raise BackupError(
                    f"whether the interrupted restore of {record.scope} was committed can't be told any more, because all rows that it is told "
                    "by were changed since",
                    record.path,
                    "See by the rows whether the restored or the former files belong to them, put those in place, move this file away, and "
                    "run again",
                )
            for step in record.steps if committed else reversed(record.steps):
                (step.finish if committed else step.undo)()
            self.recovered = f"the interrupted restore of {record.scope} was {'finished' if committed else 'undone'}"
        record.close()

    # verify ---------------------------------------------------------------------------------------

    def verify(self) -> List[Check]:
        files = present(self.files)
        checks = []
        if files.changes:
            wrong = files.difference()
            checks.append(Check("the files are those of the set", not wrong, wrong or f"{len(files.changes)} paths put in place"))
        if self.marks:
            # All rows were compared in the transaction. From its end on the application may change them.
            with self._target().alone() as live:
                checks.append(Check("the rows were committed", live.is_committed(self.marks) is not False, self.scope.database))
        checks.append(Check("nothing is left aside", not os.path.lexists(self.record_path), self.record_path))
        return checks

    def result(self) -> Dict[str, Any]:
        files, part = self.files, present(self.part)
        return {
            "set": summary(self.store, present(self.manifest)),
            "scope": self.scope.name,
            "files": {
                "found": part.found,
                "changed": [change.live for change in files.changes] if files else [],
                "kept": files.kept if files else [],
                "same": files.same if files else 0,
            },
            "tables": [change.as_dict() for change in self.tables],
            "recovered": self.recovered,
            "phases": self.phases,
            "warnings_": self.warnings,
        }
