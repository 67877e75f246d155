# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is at work on an application.

What excludes work is the flock of each engine, which dies with its process. The lease spans the time between those: it
says who began what, and keeps another runbook away until that is done or the time limit is over.
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from .._core.clock import Clock, parse_rfc3339, rfc3339
from .._core.errors import OpskitError, present
from .._core.files import fsync_dir, make_dir, publish_json, read_json
from .._core.lock import flock
from .._core.operation import Check, Operation
from .._core.plan import Plan

POLL_S = 0.5
LOCK_S = 30.0
"""Each holds the lock of the lease only for a look and a write; probing the engines' locks takes a few seconds at most."""
SECONDS_END = 1 << 31
CLOCK_STEP_S = 60
"""A clock that is set back by less leaves a lease as it is."""


class Lease(NamedTuple):
    """What stands in the file."""

    runbook: str
    operator: str
    run: str
    """Names one run of ansible-playbook."""
    since: str
    """RFC 3339, UTC: when this run took it."""
    expires: str
    """RFC 3339, UTC: from when on another runbook may take it over."""
    seconds: int
    """The time limit that it was taken or renewed with."""
    controller: str
    """Name of the machine that ansible-playbook runs on; empty where it is not known."""

    @property
    def who(self) -> str:
        """A few words for people."""
        by = f" by {self.operator}" if self.operator else ""
        at = f" on {self.controller}" if self.controller else ""
        return f"{self.runbook}{by}{at}, since {self.since}"

    def is_expired(self, now: datetime) -> bool:
        """True also when it ends later than a lease that were taken now: then the clock was set back, and it must not last for ever."""
        end = parse_rfc3339(self.expires)
        return end <= now or end > now + timedelta(seconds=self.seconds + CLOCK_STEP_S)

    def shown(self) -> Dict[str, Any]:
        """Return what a module's result says of it."""
        return {name: value for name, value in self._asdict().items() if name not in ("run", "seconds")}


NO_LEASE: Dict[str, Any] = {}


class ApplicationLease(Operation):
    """Takes, renews or releases a lease.

    :param path: absolute path of the file; its folder is made where it is missing (mode 0700)
    :param wanted: the lease as it is to be, without its times
    :param state: ``taken``, ``renewed`` or ``released``
    :param wait_s: seconds to wait for somebody else
    :param locks: lock files of engines; while one of them is held, nobody's lease is taken over
    """

    def __init__(self, path: str, wanted: Lease, state: str, wait_s: float, steal: bool, locks: List[str], clock: Clock) -> None:
        for name in [path, *locks]:
            if not os.path.isabs(name):
                raise OpskitError("this is not an absolute path", name, "Name the lease and the locks by their absolute paths")
        if not 0 < wanted.seconds < SECONDS_END:
            raise OpskitError(f"{wanted.seconds} s is no time limit", path, "Give 1 second or more, and less than 68 years")
        if "" in (wanted.run, wanted.runbook):
            raise OpskitError("the runbook and the run need a name", path, "Give both")
        self._path = path
        self._wanted = wanted
        self._state = state
        self._wait_s = wait_s if state == "taken" else 0.0
        self._steal = steal
        self._locks = locks
        self._clock = clock
        self._is_exclusive = False
        self._in_the_way: Optional[OpskitError] = None
        self._found: Optional[Lease] = None
        self._damage = ""
        self._was_damaged = False
        self._reason = ""
        self._taken_over: Optional[Lease] = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Close the race of two takers. Who waits does it without the lock, so that who is at work can renew and release."""
        make_dir(os.path.dirname(self._path))
        deadline = self._clock.monotonic() + self._wait_s
        while True:
            with flock(self._path + ".lock", wait_s=LOCK_S):
                obstacle = self._obstacle()
                if not obstacle or self._clock.monotonic() >= deadline:
                    self._is_exclusive, self._in_the_way = True, obstacle
                    yield
                    return
            time.sleep(POLL_S)

    def plan(self) -> Plan:
        """Raise :class:`OpskitError` when somebody else is at work, after the time to wait."""
        if not self._is_exclusive:
            deadline = self._clock.monotonic() + self._wait_s
            self._in_the_way = self._obstacle()
            while self._in_the_way and self._clock.monotonic() < deadline:
                time.sleep(POLL_S)
                self._in_the_way = self._obstacle()
        if self._in_the_way:
            raise self._in_the_way
        if self._state == "released":
            return self._plan_release()
        plan = Plan(self._state)
        plan.add("renew lease" if self._is_own else "take lease", self._path, self._why_it_may())
        return plan

    def _plan_release(self) -> Plan:
        if self._is_own:
            plan = Plan("released")
            self._reason = "this run is at its end"
            plan.add("release lease", self._path, self._reason)
            return plan
        if self._found is not None:
            self._reason = f"it was taken over meanwhile: {self._found.who}"
        else:
            self._reason = f"what is there now is damaged ({self._damage})" if self._damage else "there is none"
        return Plan("none")

    def _why_it_may(self) -> str:
        found = self._found
        if self._damage:
            self._was_damaged = True
            self._reason = f"the lease was damaged ({self._damage}), so nobody can tell who was at work"
        elif found is None:
            self._reason = "nobody is at work"
        elif self._is_own:
            self._reason = "it is held by this run"
        else:
            self._taken_over = found
            if found.runbook == self._wanted.runbook:
                why = "the same runbook, and nothing of it is at work"
            elif found.is_expired(self._clock.now()):
                why = f"its time limit was over at {found.expires}"
            else:
                why = "stolen, as was asked for"
            self._reason = f"taken over from {found.who}: {why}"
        return self._reason

    @property
    def _is_own(self) -> bool:
        return self._found is not None and self._found.run == self._wanted.run

    def _obstacle(self) -> Optional[OpskitError]:
        """Look at the lease and return what keeps it from being taken or renewed, if anything does."""
        self._look()
        if self._state == "released" or self._is_own:
            return None
        if self._state == "renewed":
            return self._lost()
        return self._somebody_else()

    def _lost(self) -> OpskitError:
        if self._found is not None:
            what = f"somebody else has taken the lease over meanwhile: {self._found.who}"
        else:
            what = (
                f"the lease is damaged ({self._damage})"
                if self._damage
                else "the lease was taken over and released by somebody else meanwhile"
            )
        return OpskitError(what, self._path, "This run stops here. Find out what the other one does, and then run the same command again")

    def _somebody_else(self) -> Optional[OpskitError]:
        found = self._found
        if found is None and not self._damage:
            return None
        if found is not None:
            may = self._steal or found.runbook == self._wanted.runbook or found.is_expired(self._clock.now())
            what = f"another runbook is at work: {found.who}, until {found.expires} at most"
        else:
            may = self._steal or self._is_old()
            what = f"the lease is damaged ({self._damage}), so nobody can tell who is at work"
        if not may:
            return OpskitError(
                what,
                self._path,
                "Wait for it to end. If it is known to be dead, take the lease over with -e opskit_lease_steal=true",
            )
        held = [lock for lock in self._locks if _is_held(lock)]
        if not held:
            return None
        at_work = f"its work still goes on: {found.who}" if found is not None else f"{what}, but somebody is"
        return OpskitError(at_work, held[0], f"Wait for it to end, or look for it with: fuser -v {held[0]}")

    def _is_old(self) -> bool:
        """True when the damaged file was written longer ago than a time limit, or in the future, by a clock that was set back."""
        written = datetime.fromtimestamp(os.lstat(self._path).st_mtime, timezone.utc)
        age = (self._clock.now() - written).total_seconds()
        return not -CLOCK_STEP_S <= age < self._wanted.seconds

    def _look(self) -> None:
        self._found, self._damage = None, ""
        try:
            mode = os.lstat(self._path).st_mode
            if not stat.S_ISREG(mode):
                raise OpskitError("the lease must be a regular file", self._path, "Move away what is there and run the same command again")
            self._found = _lease(read_json(self._path))
        except FileNotFoundError:
            return
        except ValueError as error:
            self._damage = str(error)
        except OpskitError as error:
            if error.todo:
                raise
            self._damage = error.what

    def apply(self, plan: Plan) -> None:
        """Write the file, or remove it; durable when this returns."""
        for step in plan:
            if step.step == "release lease":
                os.unlink(step.target)
                fsync_dir(os.path.dirname(step.target))
            else:
                publish_json(step.target, self._fresh()._asdict())

    def _fresh(self) -> Lease:
        now = self._clock.now()
        since = present(self._found).since if self._is_own else rfc3339(now)
        return self._wanted._replace(since=since, expires=rfc3339(now + timedelta(seconds=self._wanted.seconds)))

    def verify(self) -> List[Check]:
        """Read the file back, or see that it is gone."""
        self._look()
        if self._state == "released":
            return [Check("lease released", self._found is None and not self._damage, self._path)]
        return [Check("lease read back", self._is_own, self._damage or self._path)]

    def result(self) -> Dict[str, Any]:
        """Return who holds it now, and from whom it was taken over."""
        return {
            "holder": self._found.shown() if self._found is not None else NO_LEASE,
            "taken_over_from": self._taken_over.shown() if self._taken_over is not None else NO_LEASE,
            "reason": self._reason,
            "warnings_": [f"{self._path}: {self._reason}"] if self._was_damaged else [],
        }


def application_lease(params: Dict[str, Any], clock: Clock) -> ApplicationLease:
    """Build the operation from the module's parameters."""
    wanted = Lease(
        runbook=params["runbook"],
        operator=params["operator"],
        run=params["run"],
        since="",
        expires="",
        seconds=params["seconds"],
        controller=params["controller"],
    )
    return ApplicationLease(params["path"], wanted, params["state"], params["wait"], params["steal"], params["locks"], clock)


def _lease(value: Any) -> Lease:
    """Check what was read. Raises :class:`ValueError` that says what is wrong with it."""
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    for name in ("runbook", "operator", "run", "since", "expires", "controller"):
        if not isinstance(value.get(name), str):
            raise ValueError(f"its {name} is missing or no text")
    seconds = value.get("seconds")
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds < SECONDS_END:
        raise ValueError("its seconds are missing or no number")
    for name in ("since", "expires"):
        parse_rfc3339(value[name])
    return Lease(**{name: value[name] for name in Lease._fields})


def _is_held(path: str) -> bool:
    # Not made where it is not there: this may be a rehearsal, and a lock that nobody has made nobody holds.
    if not os.path.exists(path):
        return False
    try:
        with flock(path):
            return False
    except OpskitError:
        return True
