# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking many checks at once, again and again, and being done when the time is over."""

from __future__ import annotations

import queue
import threading
from typing import Any, Dict, List, NamedTuple, Optional, Union

from .._core.clock import Clock
from .._core.errors import OpskitError
from .._core.redact import redact
from .check import Check, build_checks, in_order, needed
from .net import explain
from .probe import PASS, WARN, Attempt, Outcome, ProbeFailure
from .reasons import HINTS
from .report import report


class Unhealthy(OpskitError):
    """The checks came to a result that the task does not accept.

    :param result: the whole result of the module
    """

    def __init__(self, what: str, where: str, todo: str, result: Dict[str, Any]) -> None:
        super().__init__(what, where, todo)
        self.result = result


class _Answer(NamedTuple):
    check: Check
    attempt: Attempt
    outcome: Union[Outcome, Exception]
    """An exception where something of ours is wrong."""


class Runner:
    """Runs the checks in daemon threads.

    Not in a ThreadPoolExecutor: its threads are joined when the process exits, so that one that hangs would hold the module.
    """

    def __init__(self, checks: List[Check], params: Dict[str, Any], clock: Clock) -> None:
        # So that a failure reaches everything behind it in one pass.
        self.checks = in_order(checks)
        self._by_id = {check.id: check for check in checks}
        self._until: bool = params["mode"] == "until"
        self._interval_s: float = params["interval"]
        self._deadline_s: float = params["deadline"]
        self._threads = min(params["concurrency"], len(checks))
        self._wanted = PASS if params["fail_on"] == "warn" else WARN
        self._needed = needed(params["quorum"], checks)
        self._clock = clock
        self._tasks: queue.SimpleQueue[Optional[Check]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self.deadline_hit = False
        self.elapsed_s = 0.0

    def run(self, started: float) -> None:
        """Return when every check is decided, or at the deadline, whatever the threads do.

        :param started: the clock's monotonic time from which the deadline counts
        """
        for _number in range(self._threads):
            threading.Thread(target=self._work, daemon=True).start()
        while True:
            self.elapsed_s = self._clock.monotonic() - started
            for check in self.checks:
                self._skip_or_queue(check)
            if self._over():
                break
            if self.elapsed_s >= self._deadline_s:
                self.deadline_hit = True
                break
            idle = [check for check in self.checks if not (check.settled or check.queued or self.failed_dependencies(check))]
            wait_s = min([check.next_at for check in idle] + [self._deadline_s]) - self.elapsed_s
            try:
                answer = self._answers.get(timeout=max(0.0, wait_s))
            except queue.Empty:
                continue
            self._take(answer, self._clock.monotonic() - started)
        for _number in range(self._threads):
            self._tasks.put(None)

    def failed_dependencies(self, check: Check) -> List[str]:
        """Return the checks that this one waits for."""
        return [name for name in check.depends_on if not (self._by_id[name].good or self._by_id[name].skipped)]

    def _skip_or_queue(self, check: Check) -> None:
        if check.settled or check.queued:
            return
        waits_for = self.failed_dependencies(check)
        if waits_for:
            # A dependency that is settled without being good never will be.
            check.settled = any(self._by_id[name].settled for name in waits_for)
        elif check.next_at <= self.elapsed_s:
            check.queued = True
            self._tasks.put(check)

    def _over(self) -> bool:
        if all(check.settled for check in self.checks):
            return True
        if not self._until:
            return False
        # Where a warning is not accepted, nothing but a pass of every check is.
        strict = self._wanted == PASS
        counted = [check for check in self.checks if not check.skipped and (check.required or strict)]
        count = len(counted) if strict else min(self._needed, len(counted))
        if sum(1 for check in counted if check.good or not check.settled) < count:
            return True
        tried = all(check.attempts or check.settled or self.failed_dependencies(check) for check in self.checks)
        return tried and sum(1 for check in counted if check.good) >= count

    def _take(self, answer: _Answer, at_s: float) -> None:
        check = answer.check
        if isinstance(answer.outcome, Exception):
            raise answer.outcome
        check.record(answer.outcome, answer.attempt, at_s, self._wanted)
        check.queued, check.running = False, None
        check.next_at = at_s + self._interval_s
        check.settled = answer.outcome.final or (not self._until and (check.good or not check.consecutive))

    def _work(self) -> None:
        while True:
            check = self._tasks.get()
            if check is None:
                return
            attempt = check.running = Attempt(check.timeout_s, self._clock)
            outcome: Union[Outcome, Exception]
            try:
                outcome = check.probe.ask(attempt)
            except ProbeFailure as failure:
                outcome = failure.outcome
            except Exception as error:
                outcome = explain(error, attempt, check.probe)
            attempt.phases_ms["total"] = round(attempt.elapsed() * 1000, 3)
            if isinstance(outcome, Outcome):
                outcome = outcome._replace(message=redact(outcome.message, check.probe.secrets))
            self._answers.put(_Answer(check, attempt, outcome))


def health_check(params: Dict[str, Any], check_mode: bool, clock: Clock) -> Dict[str, Any]:
    """Run the checks of the module's parameters and return its result.

    Raises :class:`OpskitError` for parameters that can't be meant, :class:`Unhealthy` for a result that is not accepted.
    """
    started = clock.monotonic()
    checks = build_checks(params, check_mode)
    runner = Runner(checks, params, clock)
    runner.run(started)
    conclusions = {check.id: check.conclusion(runner.failed_dependencies(check), runner.elapsed_s) for check in checks}
    result = report(checks, conclusions, needed(params["quorum"], checks), runner.elapsed_s, runner.deadline_hit, clock.now())
    accepted = {"fail": ("pass", "warn"), "warn": ("pass",), "never": ("pass", "warn", "fail", "unknown")}[params["fail_on"]]
    if result["status"] not in accepted:
        first = result["first_failure"]
        check = next(check for check in checks if check.id == first["id"])
        others = len(checks) - result["summary"]["pass"] - 1
        more = f" ({others} more not passing)" if others else ""
        where = f"check {check.id} ({check.type} {check.probe.target})"
        raise Unhealthy(f"{first['reason']}, {first['message']}{more}", where, HINTS[first["reason"]], result)
    return result
