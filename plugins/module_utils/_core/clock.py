# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Time and randomness as something that is passed in, so that a test can be in 2031."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Dict, Iterator


class Clock:
    """The machine's clock and random source."""

    def now(self) -> datetime:
        """Return the time in UTC, with the zone."""
        return datetime.now(timezone.utc)

    def monotonic(self) -> float:
        """Return seconds that never run backwards, for durations and deadlines."""
        return time.monotonic()

    @contextmanager
    def timed(self, phases: Dict[str, float], name: str) -> Iterator[None]:
        """Write down how many seconds the block took, when it ends well."""
        started = self.monotonic()
        yield
        phases[name] = round(self.monotonic() - started, 3)

    def token(self) -> str:
        """Return four random hexadecimal digits."""
        return os.urandom(2).hex()


def rfc3339(moment: datetime) -> str:
    """Write a moment as ``2026-11-23T02:00:00Z`` (RFC 3339, UTC, whole seconds)."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_rfc3339(text: str) -> datetime:
    """Read what :func:`rfc3339` wrote. Raises :class:`ValueError` on anything else."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
