# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deleting what retention lets go: first to trash/, a day later from the disk."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Set

from .._core.clock import Clock
from .._core.errors import present
from .._core.files import fsync_dir, remove_tree
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .errors import BackupError
from .manifest import Manifest
from .retention import Candidate, Decision, Policy, days_lost, decide
from .store import Store

TRASH_S = 24 * 3600
IN_USE = "in use by a verification or restore"


class Prune(Operation):
    """Delete the sets that a policy lets go, and the objects that no set needs any more.

    :param delete_more_than_half: allow a run that takes away more than half of the days that have a verified set
    """

    def __init__(self, store: Store, policy: Policy, delete_more_than_half: bool, clock: Clock, lock_timeout_s: float) -> None:
        self.store = store
        self.policy = policy
        self.delete_more_than_half = delete_more_than_half
        self.clock = clock
        self.lock_timeout_s = lock_timeout_s
        self.decision: Optional[Decision] = None
        self.unneeded: Dict[str, int] = {}
        """Objects that no set needs any more, with their bytes."""
        self.deleted: Set[str] = set()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        self.store.open()
        with self.store.writer(self.lock_timeout_s), self.store.swept():
            yield

    def plan(self) -> Plan:
        self.store.open()
        self.store.require_locks()
        sets = self.store.sets()
        candidates = [Candidate(x.id, x.seq, x.time, self.store.verified(x.id)) for x in sets]
        decision = self.decision = decide(candidates, self.policy, self.clock.now())
        days, lost = days_lost(candidates, decision)
        if lost * 2 > days and not self.delete_more_than_half:
            raise BackupError(
                f"this policy would take away {lost} of the {days} days that have a verified set",
                self.store.path,
                "Look at the policy and the clock; if it is meant to be so, run once with delete_more_than_half",
            )
        plan = Plan("pruned")
        for set_id in list(decision.deleted):
            with self.store.claim(set_id, make=False) as is_free:
                if not is_free:
                    self._keep(set_id)
        kept = [x for x in sets if x.id in decision.kept]
        for manifest in sets:
            if manifest.id in decision.deleted:
                plan.add("delete set", manifest.id, decision.deleted[manifest.id])
        self.unneeded = self._unneeded(kept)
        for name in sorted(self.unneeded):
            plan.add("delete object", name, "no set needs it", None)
        for name in self._expired():
            plan.add("empty trash", name, f"deleted more than {TRASH_S // 3600} hours ago")
        if not plan.changes:
            plan.action = "none"
        return plan

    def _keep(self, set_id: str) -> None:
        decision = present(self.decision)
        del decision.deleted[set_id]
        decision.kept[set_id] = [IN_USE]

    def _unneeded(self, kept: List[Manifest]) -> Dict[str, int]:
        """Return the objects that no kept set needs, with their bytes: deletion is reachability over all manifests."""
        needed: Set[str] = set()
        for manifest in kept:
            needed.update(manifest.objects)
        found = {}
        for folder, _folders, names in os.walk(self.store.at("objects")):
            for name in names:
                if name not in needed:
                    found[name] = os.lstat(os.path.join(folder, name)).st_size
        return found

    def _expired(self) -> List[str]:
        # The machine's clock on both sides: ctime is what renaming to trash/ set.
        limit = time.time() - TRASH_S
        trash = self.store.at("trash")
        return sorted(name for name in os.listdir(trash) if os.lstat(os.path.join(trash, name)).st_ctime < limit)

    def apply(self, plan: Plan) -> None:
        # Sets first: an object goes only when nothing names it any more.
        for step in list(plan):
            if step.step == "delete set":
                with self.store.claim(step.target) as is_free:
                    if is_free:
                        self._delete_set(step.target)
                    else:
                        # Since the plan was made. It is said as it was done.
                        plan.steps.remove(step)
                        self._keep(step.target)
                        self._spare(self.store.manifest(step.target), plan)
        for step in plan:
            if step.step == "delete object":
                os.rename(self.store.object_path(step.target), self.store.at("trash", step.target))
                self.deleted.add(step.target)
            elif step.step == "empty trash":
                remove_tree(self.store.at("trash", step.target))
        fsync_dir(self.store.at("trash"))

    def _spare(self, manifest: Manifest, plan: Plan) -> None:
        """Leave the objects of a set where they are."""
        plan.steps = [step for step in plan if step.step != "delete object" or step.target not in manifest.objects]
        self.unneeded = {name: size for name, size in self.unneeded.items() if name not in manifest.objects}

    def _delete_set(self, set_id: str) -> None:
        os.rename(self.store.at("sets", set_id), self.store.at("trash", f"set-{set_id}"))
        fsync_dir(self.store.at("sets"))
        if os.path.isdir(self.store.at("proofs", set_id)):
            os.rename(self.store.at("proofs", set_id), self.store.at("trash", f"proofs-{set_id}"))

    def verify(self) -> List[Check]:
        lost = [f"{x.id} needs {name}" for x in self.store.sets() for name in x.objects if name in self.deleted]
        return [Check("no kept set needs a deleted object", not lost, ", ".join(lost[:3]))]

    def result(self) -> Dict[str, Any]:
        decision = present(self.decision)
        return {
            "kept": [{"id": key, "reasons": value} for key, value in sorted(decision.kept.items(), reverse=True)],
            "deleted": [{"id": key, "reason": value} for key, value in sorted(decision.deleted.items(), reverse=True)],
            "freed_bytes": sum(self.unneeded.values()),
        }
