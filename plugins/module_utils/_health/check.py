# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of one run: their options, refused before anything is asked when they make no sense, and how far each has come."""

from __future__ import annotations

import re
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Set

from .._core.errors import OpskitError
from .command_probe import CommandProbe
from .http_probe import HttpProbe
from .net import TlsContexts
from .probe import FAIL, PASS, UNKNOWN, WARN, Attempt, Outcome, Probe
from .systemd_probe import SystemdProbe
from .tcp_probe import TcpProbe

GOOD = (PASS, WARN)
HISTORY = 20
"""Attempts that stand in a result one by one."""
# Options that have no default and that only these types know; elsewhere they would be passed over in silence.
_ONLY = {
    "url": ("http",),
    "headers": ("http",),
    "token_file": ("http",),
    "host_header": ("http",),
    "server_name": ("http",),
    "connect_to": ("http",),
    "body_regex": ("http",),
    "json": ("http",),
    "ca_file": ("http",),
    "port": ("tcp",),
    "send": ("tcp",),
    "expect_regex": ("tcp",),
    "unit": ("systemd",),
    "argv": ("command",),
}


class Check:
    """One check: its options and its state."""

    def __init__(self, options: Dict[str, Any], mode: str, contexts: TlsContexts, check_mode: bool) -> None:
        self.id: str = options["id"]
        self.type: str = options["type"]
        self.required: bool = options["required"]
        self.depends_on: List[str] = options["depends_on"]
        self.timeout_s: float = options["timeout"]
        self.latency_warn_ms: Optional[float] = options["latency_warn_ms"]
        self.latency_fail_ms: Optional[float] = options["latency_fail_ms"]
        threshold: Optional[int] = options["success_threshold"]
        self.threshold = (3 if mode == "until" else 1) if threshold is None else threshold
        self._refuse(options)
        self.probe = _probe(options, contexts, check_mode)
        for name in ("latency_warn_ms", "latency_fail_ms"):
            if options[name] is not None:
                self.probe.expected[name] = options[name]

        self.running: Optional[Attempt] = None
        self.queued = False
        self.settled = False
        """True when it will not be asked again."""
        self.next_at = 0.0
        self.last: Optional[Outcome] = None
        self.last_attempt: Optional[Attempt] = None
        self.attempts = 0
        self.consecutive = 0
        self.first_pass_s: Optional[float] = None
        self.latencies_ms: List[float] = []
        self.history: Deque[Dict[str, Any]] = deque(maxlen=HISTORY)

    def _refuse(self, options: Dict[str, Any]) -> None:
        where = f"check {self.id}"
        for name, types in _ONLY.items():
            if options[name] is not None and self.type not in types:
                raise OpskitError(f"{name} means nothing to a check of type {self.type}", where, f"Take {name} out")
        if self.timeout_s <= 0:
            raise OpskitError("timeout is not more than 0", where, "Set timeout to a number of seconds")
        if self.threshold < 1:
            raise OpskitError("success_threshold is less than 1", where, "Set success_threshold to 1 or more")
        limits = [limit for limit in (self.latency_warn_ms, self.latency_fail_ms) if limit is not None]
        if any(limit <= 0 for limit in limits) or limits != sorted(limits):
            raise OpskitError(
                "the latency limits are not more than 0, or fail comes before warn", where, "Set latency_warn_ms below latency_fail_ms"
            )

    @property
    def good(self) -> bool:
        """True while it has passed often enough in a row."""
        return self.consecutive >= self.threshold

    @property
    def skipped(self) -> bool:
        """True when it takes no part in the verdict, because check mode forbids to ask."""
        return self.last is not None and self.last.reason == "check_mode"

    def record(self, outcome: Outcome, attempt: Attempt, at_s: float, wanted: str) -> None:
        """Take in what an attempt came to.

        :param at_s: seconds from the start of the run to the end of the attempt
        :param wanted: ``warn`` when a warning counts as a success, ``pass`` when it does not
        """
        latency_ms = None
        if outcome.answered:
            latency_ms = attempt.phases_ms["total"]
            self.latencies_ms.append(latency_ms)
            outcome = self._limited(outcome, latency_ms)
        self.last, self.last_attempt = outcome, attempt
        self.attempts += 1
        if outcome.status in GOOD and self.first_pass_s is None:
            self.first_pass_s = round(at_s, 3)
        if outcome.status == PASS or (outcome.status == WARN and wanted == WARN):
            self.consecutive += 1
        else:
            self.consecutive = 0
        self.history.append({"at_s": round(at_s, 3), "status": outcome.status, "reason": outcome.reason, "latency_ms": latency_ms})

    def _limited(self, outcome: Outcome, latency_ms: float) -> Outcome:
        for status, limit in ((FAIL, self.latency_fail_ms), (WARN, self.latency_warn_ms)):
            if limit is not None and latency_ms > limit and outcome.status == PASS:
                message = f"took {latency_ms:.1f} ms, expected {limit:g} ms or less"
                return outcome._replace(status=status, reason="latency", message=message)
        return outcome

    def conclusion(self, failed_dependencies: List[str], elapsed_s: float) -> Outcome:
        """Return what is known when the run is over; a check that is not required is at worst a warning."""
        outcome = self.last
        if outcome is None:
            if failed_dependencies:
                outcome = Outcome(UNKNOWN, "dependency", f"not asked, because it depends on {', '.join(failed_dependencies)}")
            elif self.running is not None:
                message = f"no answer when the run ended after {elapsed_s:.1f} s, it was at: {self.running.phase}"
                outcome = Outcome(UNKNOWN, "deadline", message)
            else:
                outcome = Outcome(UNKNOWN, "deadline", f"not asked before the run ended after {elapsed_s:.1f} s")
        elif 0 < self.consecutive < self.threshold:
            message = f"passed {self.consecutive} times in a row, expected {self.threshold}"
            outcome = outcome._replace(status=UNKNOWN, reason="threshold", message=message)
        if outcome.status in (FAIL, UNKNOWN) and not self.required and not self.skipped:
            outcome = outcome._replace(status=WARN)
        return outcome


def _probe(options: Dict[str, Any], contexts: TlsContexts, check_mode: bool) -> Probe:
    if options["type"] == "http":
        return HttpProbe(options, contexts)
    if options["type"] == "tcp":
        return TcpProbe(options)
    if options["type"] == "systemd":
        return SystemdProbe(options)
    return CommandProbe(options, check_mode)


def build_checks(params: Dict[str, Any], check_mode: bool) -> List[Check]:
    """Return the checks in the order given. Raises :class:`OpskitError` for input that can't be meant."""
    if not params["checks"]:
        raise OpskitError("there is nothing to check", "checks", "Give one check or more")
    for name in ("interval", "deadline"):
        if params[name] <= 0:
            raise OpskitError(f"{params[name]:g} is not more than 0", name, f"Set {name} to a number of seconds")
    if not 1 <= params["concurrency"] <= 256:
        raise OpskitError("this is not a number from 1 to 256", "concurrency", "Correct it")
    contexts = TlsContexts()
    checks: Dict[str, Check] = {}
    for options in params["checks"]:
        name = options["id"]
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise OpskitError("an id has letters, digits, dots, dashes and underscores only", f"check {name!r}", "Rename it")
        if name in checks:
            raise OpskitError("two checks have this id", f"check {name}", "Give each its own id")
        try:
            checks[name] = Check(options, params["mode"], contexts, check_mode)
        except OpskitError as error:
            where = error.where if error.where.startswith("check ") else f"check {name}, {error.where}"
            raise OpskitError(error.what, where, error.todo) from None
    in_order(list(checks.values()))
    needed(params["quorum"], list(checks.values()))
    return list(checks.values())


def in_order(checks: List[Check]) -> List[Check]:
    """Return the checks so that each comes after those it depends on. Raises :class:`OpskitError` where that can't be."""
    ids = {check.id for check in checks}
    for check in checks:
        for name in check.depends_on:
            if name not in ids:
                raise OpskitError(f"depends_on names {name}, which is no check of this task", f"check {check.id}", "Correct depends_on")
    ordered: List[Check] = []
    done: Set[str] = set()
    while len(ordered) < len(checks):
        free = [check for check in checks if check.id not in done and done.issuperset(check.depends_on)]
        if not free:
            raise OpskitError("checks depend on each other in a circle", ", ".join(sorted(ids - done)), "Take one depends_on out")
        ordered += free
        done.update(check.id for check in free)
    return ordered


def needed(quorum: str, checks: List[Check]) -> int:
    """Return how many of the required checks must be good. Raises :class:`OpskitError`."""
    required = sum(1 for check in checks if check.required)
    if quorum == "all":
        return required
    count = 1 if quorum == "any" else int(quorum) if re.fullmatch("[0-9]+", quorum) else 0
    if not 1 <= count <= required:
        raise OpskitError(
            f"{quorum} is neither all nor any nor a number from 1 to {required}, the number of required checks", "quorum", "Correct it"
        )
    return count
