# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sets are kept, and why each: a pure function."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Callable, Dict, List, NamedTuple, Sequence, Set, Tuple

UNVERIFIED_AGE = timedelta(days=30)
FUTURE = timedelta(minutes=5)
"""How far a set's time may lie ahead of the clock."""


class Policy(NamedTuple):
    """How many days, ISO weeks and months, in UTC, each keep their newest verified set."""

    daily: int = 7
    weekly: int = 4
    monthly: int = 3


class Candidate(NamedTuple):
    """A set as retention sees it."""

    id: str
    seq: int
    time: datetime
    verified: bool


class Decision(NamedTuple):
    """What to do with every set: each id is in exactly one of the two."""

    kept: Dict[str, List[str]]
    deleted: Dict[str, str]


_TIERS: Tuple[Tuple[str, Callable[[datetime], str]], ...] = (
    ("daily", lambda time: time.strftime("%Y-%m-%d")),
    ("weekly", lambda time: "{}-W{:02d}".format(*time.isocalendar()[:2])),
    ("monthly", lambda time: time.strftime("%Y-%m")),
)


def decide(candidates: Sequence[Candidate], policy: Policy, now: datetime) -> Decision:
    """Decide what is kept.

    A tier keeps the newest verified set of each of its last so many periods that have one (not of the last so many on the
    calendar: a backup that stopped a month ago must not lose its past). Newest goes by seq, periods go by UTC time.
    """
    kept: Dict[str, List[str]] = {}
    deleted: Dict[str, str] = {}
    ordered = sorted(candidates, key=lambda candidate: candidate.seq, reverse=True)
    future = [item for item in ordered if item.time > now + FUTURE]
    past = [item for item in ordered if item.time <= now + FUTURE]
    for item in future:
        kept[item.id] = ["dated in the future"]
    verified = [item for item in past if item.verified]
    if past and not past[0].verified:
        # After a failed backup the old sets are what there is.
        for item in past:
            kept[item.id] = ["the newest set is not verified, so nothing is deleted"]
        return Decision(kept, deleted)
    if verified:
        kept.setdefault(verified[0].id, []).append("newest verified")
    for name, period in _TIERS:
        seen: Set[str] = set()
        for item in verified:
            slot = period(item.time)
            if slot not in seen and len(seen) < getattr(policy, name):
                seen.add(slot)
                kept.setdefault(item.id, []).append(f"{name} {slot}")
    for item in past:
        if item.id in kept:
            continue
        if item.verified:
            deleted[item.id] = "a newer set fills each of its slots, or its periods are over"
        elif item.time > now - UNVERIFIED_AGE:
            kept[item.id] = [f"not verified, and not yet {UNVERIFIED_AGE.days} days old"]
        else:
            deleted[item.id] = f"not verified, older than {UNVERIFIED_AGE.days} days, and a newer verified set exists"
    return Decision(kept, deleted)


def days_lost(candidates: Sequence[Candidate], decision: Decision) -> Tuple[int, int]:
    """Return how many UTC days have a verified set now, and how many of them would have none any more."""
    days = {item.time.date() for item in candidates if item.verified}
    left = {item.time.date() for item in candidates if item.verified and item.id in decision.kept}
    return len(days), len(days - left)
