# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operation is going to do, decided before anything is touched."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, NamedTuple, Optional


class Step(NamedTuple):
    """One thing to do.

    Two plans are equal when their steps agree in (step, target, reason); the size does not count.
    """

    step: str
    """What is done, a verb and a noun: ``store shard``."""
    target: str
    """What it is done to; an id that does not exist yet is written ``<new>``."""
    reason: str
    """Why it is needed."""
    size: Optional[int] = None
    """Upper bound of the bytes written, where known."""

    def as_dict(self) -> Dict[str, Any]:
        """Return the step as it stands in a module's result."""
        step: Dict[str, Any] = {"step": self.step, "target": self.target, "reason": self.reason}
        if self.size is not None:
            step["bytes"] = self.size
        return step


class Plan:
    """The steps, in the order in which they are carried out. No steps: nothing changes."""

    def __init__(self, action: str) -> None:
        self.action = action
        """One word for the whole: ``created``, ``restored``, ``none``."""
        self.steps: List[Step] = []

    def add(self, step: str, target: str, reason: str, size: Optional[int] = None) -> None:
        """Append a step."""
        self.steps.append(Step(step, target, reason, size))

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @property
    def changes(self) -> bool:
        """True when there is something to do."""
        return bool(self.steps)

    @property
    def size(self) -> int:
        """Upper bound of the bytes that all steps write."""
        return sum(step.size or 0 for step in self.steps)
