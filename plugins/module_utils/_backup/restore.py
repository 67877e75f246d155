# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing a set back: staged beside the target, every hash checked there, then exchanged for the live state."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from .._core.clock import Clock
from .._core.command import find_program
from .._core.errors import present
from .._core.files import free_bytes, fsync_dir, human_size, is_out_of_space, make_dir, remove_tree
from .._core.lock import flock
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .._core.processes import holders
from .._core.protocols import DatabaseSource
from . import images
from .create import summary
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
    kept_logs,
    remove_stage,
    server_of,
)
from .placement import Placement, parents
from .settings import Settings
from .source import STAGE_FOLDER, Root, Source, is_below, look
from .staging import Staging, set_folder_times
from .store import Store
from .verify import ImageCheckers


class Options(NamedTuple):
    """What is restored, and how."""

    which: str
    """An id, ``latest`` or ``before <time>``."""
    state: str
    """``staged``, ``restored``, ``rolled_back`` or ``purged``."""
    state_dir: str
    """Folder of the record of what was exchanged."""
    owner: str
    """Give files the owner with the stored ``name`` (the stored id where there is no such name), or ``id``."""
    credentials: str
    """See :class:`Settings`."""
    lock_timeout_s: float


class Restore(Operation):
    """Bring a set back, go back to what was before, or remove what was kept aside.

    :param checkers: by engine, looks at a database image
    :param servers: where databases in servers are brought back to
    :param adopt: returns the database of a file, by name and path
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        options: Options,
        clock: Clock,
        checkers: ImageCheckers,
        servers: Servers,
        adopt: Callable[[str, str], DatabaseSource],
    ) -> None:
        self.store = store
        self.source = source
        self.options = options
        self.state = options.state
        self.state_dir = options.state_dir
        self.clock = clock
        self.checkers = checkers
        self.servers = servers
        self.adopt = adopt
        self.journal_path = os.path.join(self.state_dir, "restore.json")
        self.journal: Optional[Journal] = None
        self.placement: Optional[Placement] = None
        self.settings = Settings(store, options.credentials)
        self.recovered = ""
        self.held = ""
        """The set that nobody may delete meanwhile."""
        self.warnings: List[str] = []
        self.phases: Dict[str, float] = {}
        for name, path in source.targets.items():
            if os.path.realpath(self.state_dir) == path or is_below(os.path.realpath(self.state_dir), path):
                raise BackupError(
                    f"the folder for the record of restores lies inside {name}, which a restore exchanges",
                    self.state_dir,
                    "Name a state_dir outside of what is saved",
                )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.store.open()
        self.store.require_locks()
        self.store.require_owner()
        make_dir(self.state_dir)
        with ExitStack() as locks:
            locks.enter_context(flock(os.path.join(self.state_dir, "restore.lock"), wait_s=self.options.lock_timeout_s))
            journal = Journal.read(self.journal_path, self.store.uuid, self.servers)
            if self.state != "staged" or (journal is not None and journal.is_interrupted):
                # A backup must not look at what is being exchanged.
                locks.enter_context(self.store.writer(self.options.lock_timeout_s))
            if self.state in ("staged", "restored"):
                self.held = self.store.held(self.options.which, self.options.lock_timeout_s, locks).id
            with self.store.swept():
                yield

    # plan -----------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        self.store.open()
        self.store.require_locks()
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
        manifest = self.store.find(self.held or self.options.which)
        self.store.require_restorable(manifest)
        find_program("tar", "tar")
        journal = self.journal
        reuse = journal is not None and journal.phase == STAGED and journal.set_id == manifest.id
        label = journal.label if journal is not None and reuse else f"{manifest.id}.{self.clock.token()}"
        members = self.store.members(manifest)
        placement = Placement(self.store, self.source, manifest, members, label, self.options.owner, self.servers, self.adopt)
        self.placement = placement
        self.warnings += placement.check()
        passwords = Plan(self.state)
        self.settings.review(placement, passwords)
        unknown = sorted(set(self.source.outermost()) - set(manifest.roots))
        unknown += [f"database {name}" for name in sorted(set(self.servers) - {served.image.name for served in placement.served})]
        if unknown:
            self.warnings.append(f"set {manifest.id} does not hold {', '.join(unknown)}; left as it is")
        is_staged = reuse and placement.is_staged
        if self.state == "staged":
            if not is_staged:
                self._plan_staging(plan, placement)
            return
        plan.steps += passwords
        differences = {target.name: placement.difference(target) for target in placement.targets}
        wrong = {placed.live: placement.database_difference(placed) for placed in placement.placed}
        wrong.update((served.image.name, placement.server_difference(served)) for served in placement.served)
        if not any(differences.values()) and not any(wrong.values()) and not plan.changes:
            return
        if not is_staged:
            self._plan_staging(plan, placement)
        for target in placement.targets:
            for kept in placement.kept(target):
                plan.add("keep", kept, "logs and volatile paths stay as they are")
            plan.add("exchange", target.live, differences[target.name] or "equal, exchanged with the others")
        for placed in placement.placed:
            if placed.stage:
                plan.add("exchange", placed.live, wrong[placed.live] or "equal, exchanged with the others")
        for served in placement.served:
            plan.add("exchange", f"database {served.target.database}", wrong[served.image.name] or "equal, exchanged with the others")

    def _plan_staging(self, plan: Plan, placement: Placement) -> None:
        reason = f"set {placement.manifest.id}"
        for image in placement.manifest.databases:
            images.require_memory(image)
        for served in placement.served:
            facts = served.image.facts
            if not served.target.missing():
                for role in served.target.check(facts, bool(served.image.beside)):
                    plan.add("make role", role, f"database {served.target.database} needs it and the server does not have it")
            plan.add("stage", f"database {served.target.database}", reason, facts["database_bytes"])
        need: Dict[str, int] = {}
        if placement.served:
            # One after the other lies plain in the store while it is loaded.
            need[self.store.path] = max(images.disk_to_unpack(served.image) for served in placement.served)
        for target in placement.targets:
            size = sum(x.get("size", 0) for x in placement.records if x["root"] == target.name)
            size += sum(images.disk_to_unpack(x.image) for x in placement.placed if not x.stage and is_below(x.staged, target.staged))
            plan.add("stage", target.live, reason, size)
            need[os.path.dirname(target.live)] = need.get(os.path.dirname(target.live), 0) + size
        for placed in placement.placed:
            if placed.stage:
                parent, size = os.path.dirname(placed.live), images.disk_to_unpack(placed.image)
                plan.add("stage", placed.live, reason, size)
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
                with self.clock.timed(self.phases, "stage_s"):
                    self._stage()
                self.settings.confirm()
            if any(step.step == "exchange" for step in plan):
                with self.clock.timed(self.phases, "exchange_s"):
                    self._exchange()

    def _find_kept_logs(self) -> None:
        """Count what an undone exchange has put beside logs as logs: it stays live, whatever is restored or purged."""
        for log in list(self.source.logs):
            self.source.logs.extend(path for path in kept_logs(log) if path not in self.source.logs)

    def _recover(self, journal: Journal) -> None:
        self._require_unused()
        was = journal.phase
        journal.undo()
        self._find_kept_logs()
        journal.write(STAGED if was == EXCHANGING and self.state != "rolled_back" else ROLLED_BACK)
        self.recovered = "the interrupted exchange was undone" if was == EXCHANGING else "the interrupted way back was finished"

    def _stage(self) -> None:
        placement, last = present(self.placement), self.journal
        discarded = last if last is not None and last.phase in (STAGING, STAGED) else None
        previous = discarded.previous if discarded is not None else last.as_json() if last is not None else None
        beside = self._kept_databases()
        # From here on a copy that is being filled, or removed, never counts as one.
        set_id, stages = placement.manifest.id, placement.stages
        self.journal = Journal(self.journal_path, self.store.uuid, placement.label, set_id, stages, previous, self.servers)
        self.journal.beside = beside + [Kept(served.image.name, name) for served in placement.served for name in served.names]
        self.journal.write(STAGING)
        try:
            if discarded is not None:
                self._discard(discarded)
            Staging(placement, self.store, self.checkers, self.settings.content).fill()
        except BaseException as error:
            for stage in stages:
                remove_tree(stage)
            if isinstance(error, OSError) and is_out_of_space(error):
                raise BackupError(
                    "the disk became full while the set was staged; the live state is untouched",
                    os.path.dirname(placement.targets[0].live),
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

    def _exchange(self) -> None:
        self._require_unused()
        journal, placement = present(self.journal), present(self.placement)
        steps: List[Step] = []
        # First, because sessions that do not end are the likeliest of all failures.
        for served in placement.served:
            loaded = present(served.target.identity(served.names.staged))
            steps.append(Rename(served.target, *served.names, served.target.identity(served.target.database), loaded))
        for one in self.settings.passwords:
            environment = present(placement.environment)
            # Undone last, when the file from before is in place again.
            steps.insert(0, Password.planned(one, environment.live, environment.staged))
        for target in placement.targets:
            for kept in placement.kept(target):
                rest = os.path.relpath(kept, target.live)
                for parent in parents(rest):
                    _make_like(os.path.join(target.staged, parent), os.path.join(target.live, parent))
                inner = os.path.join(target.staged, rest)
                # Where the live one appeared only after staging, the set's copy of it gives way.
                remove_tree(inner)
                steps.append(Carry(kept, inner, kept in self.source.logs))
            set_folder_times(placement, target)
            steps.append(Swap.planned(target.live, target.staged))
        for placed in placement.placed:
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
            remove_stage(stage)

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
        placement = present(self.placement)
        for target in placement.targets:
            base = os.path.dirname(target.live) if target.is_file else target.live
            wanted = dict(placement.wanted(target, logs=False))
            wrong = [
                f"{path}: {reason}"
                for path, value in wanted.items()
                for reason in [placement.wrong(base, path, value, look(base, path), wanted, False)]
                if reason
            ]
            checks.append(Check(f"{target.name} is that of the set", not wrong, "; ".join(wrong[:3])))
        for placed in placement.placed:
            reason = placement.database_difference(placed)
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
            "set": summary(self.store, self.placement.manifest) if self.placement else None,
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


def _make_like(folder: str, model: str) -> None:
    """Make a folder that is missing, with the rights of another one."""
    if not os.path.lexists(folder):
        state = os.stat(model)
        os.mkdir(folder, 0o700)
        if os.geteuid() == 0:
            os.chown(folder, state.st_uid, state.st_gid)
        os.chmod(folder, stat.S_IMODE(state.st_mode))
