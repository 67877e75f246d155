# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every probe is: something that is asked once, within a time, and says what it saw."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional

from .._core.clock import Clock
from .._core.errors import OpskitError
from .._core.redact import HIDDEN, redact
from .reasons import HINTS

PASS, WARN, FAIL, UNKNOWN = "pass", "warn", "fail", "unknown"
EXCERPT = 200
"""Characters of a foreign text that stand in a result."""


class Outcome(NamedTuple):
    """What one attempt came to."""

    status: str
    """``pass``, ``warn``, ``fail`` or ``unknown``."""
    reason: str = ""
    """A key of :data:`HINTS`; empty for a pass."""
    message: str = ""
    """One clause without a full stop."""
    observed: Dict[str, Any] = {}
    answered: bool = False
    """True when the target gave its whole answer, so that the time it took is a latency."""
    final: bool = False
    """True when another attempt can't come to anything else."""


class ProbeFailure(Exception):
    """An attempt that did not pass, with the outcome."""

    def __init__(
        self,
        reason: str,
        message: str,
        observed: Optional[Dict[str, Any]] = None,
        status: str = FAIL,
        answered: bool = False,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.outcome = Outcome(status, reason, message, observed or {}, answered, final)
        if reason not in HINTS:
            raise ValueError(f"{reason} is not in the closed list of reasons")


class Attempt:
    """One attempt while it runs: how much time it has left, and where it is.

    :param timeout_s: seconds for the whole attempt, whatever its parts do
    """

    def __init__(self, timeout_s: float, clock: Clock) -> None:
        self._clock = clock
        self.timeout_s = timeout_s
        self.started = clock.monotonic()
        self.phase = "start"
        self.address = ""
        self.phases_ms: Dict[str, float] = {}

    def elapsed(self) -> float:
        """Return the seconds since it began."""
        return self._clock.monotonic() - self.started

    def remaining(self) -> float:
        """Return the seconds that are left. Raises :class:`TimeoutError` when there are none."""
        left = self.timeout_s - self.elapsed()
        if left <= 0:
            raise TimeoutError
        return left

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time of the block as this phase, in milliseconds; a phase that comes again adds up."""
        self.phase = phase
        begun = self._clock.monotonic()
        try:
            yield
        finally:
            spent = (self._clock.monotonic() - begun) * 1000
            self.phases_ms[phase] = round(self.phases_ms.get(phase, 0.0) + spent, 3)


class Probe:
    """One kind of question. A subclass checks its options when it is made and raises OpskitError before anything is asked."""

    timeout_reason = "probe_error"
    """The reason when the time is over outside the phases that have their own."""

    def __init__(self, target: str) -> None:
        self.target = target
        """What is asked, for people."""
        self.expected: Dict[str, Any] = {}
        self.secrets: List[str] = []
        """What must never be seen in a result."""

    def ask(self, attempt: Attempt) -> Outcome:
        """Ask once. Raises :class:`ProbeFailure`, or :class:`OSError` for what the network or the system says.

        It runs in a thread, only once at a time for each probe.
        """
        raise NotImplementedError


def clean(text: str) -> str:
    """Return foreign text on one line: what can't be printed is replaced, so that it can't play with a terminal."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text).strip()


def excerpt(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the beginning of a foreign text, on one line, printable and without the secrets or what looks like one."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    # Looking for what looks like a secret takes its time; ten times the length leaves room for what it takes out.
    shown = clean(redact(text[: 10 * EXCERPT]))
    return shown if len(shown) <= EXCERPT else shown[:EXCERPT] + "..."


def compile_regex(pattern: str, where: str) -> re.Pattern[str]:
    """Return the pattern. Raises :class:`OpskitError`."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise OpskitError(f"this is no regular expression ({error})", where, "Correct the pattern") from None
