# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan, apply, verify: the course of every module, the same in check mode and in the real run."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple

from .clock import Clock
from .errors import OpskitError
from .plan import Plan


class Check(NamedTuple):
    """One thing that was looked at after the change."""

    check: str
    """What was looked at."""
    ok: bool
    detail: str = ""
    """What was seen."""


class Operation:
    """One piece of work. A room's engine is a subclass.

    Nothing but :meth:`apply`, :meth:`note` and :meth:`exclusive` may write, beside what :meth:`looking` makes and removes again;
    :meth:`plan` must come to the same steps in check mode and in the real run.
    """

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock that the real run needs from before the plan to after the verification."""
        yield

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Hold what the plan looks with and the run goes on with (a copy to compare with, say); entered in check mode, too."""
        yield

    def plan(self) -> Plan:
        """Read the state, refuse what can't be done, and return the steps."""
        raise NotImplementedError

    def apply(self, plan: Plan) -> None:
        """Carry out the steps."""
        raise NotImplementedError

    def verify(self) -> List[Check]:
        """Look at the world again, by another way than the one that changed it."""
        raise NotImplementedError

    def note(self) -> None:
        """Write down what was learned and is no change (a cache, the time of a proof); last in every real run."""

    def failure(self) -> str:
        """Return a message when the work was done but what it found is a failure; empty otherwise."""
        return ""

    def difference(self) -> str:
        """Return what ``--diff`` shows in place of the plan, lines without contents; empty: the plan."""
        return ""

    def result(self) -> Dict[str, Any]:
        """Return what the module's RETURN documents beyond the common part."""
        return {}


def carry_out(operation: Operation, check_mode: bool, clock: Clock) -> Dict[str, Any]:
    """Run an operation and return the module's result.

    The common part of every result: ``changed``, ``action``, ``plan`` (a list of step, target, reason, bytes),
    ``checks`` (a list of check, ok, detail) and ``duration_s``. Raises :class:`OpskitError` when a check fails.
    """
    started = clock.monotonic()
    checks: List[Check] = []
    if check_mode:
        with operation.looking():
            plan = operation.plan()
    else:
        with operation.exclusive(), operation.looking():
            plan = operation.plan()
            if plan.changes:
                operation.apply(plan)
                checks = operation.verify()
            operation.note()
    failed = [check for check in checks if not check.ok]
    if failed:
        raise OpskitError(
            "; ".join(f"{check.check}: {check.detail}" for check in failed[:5]),
            "verification after the change",
            "Do not rely on this result; mend the cause and run it again",
        )
    result: Dict[str, Any] = {
        "changed": plan.changes,
        "action": plan.action,
        "plan": [step.as_dict() for step in plan],
        "checks": [check._asdict() for check in checks],
    }
    result.update(operation.result())
    result["duration_s"] = round(clock.monotonic() - started, 3)
    return result
