# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths to one value of a JSON document."""

from __future__ import annotations

import json
import operator
import re
from typing import Any, Callable, Dict, List, NamedTuple, Union

from .._core.errors import OpskitError

_SEGMENT = re.compile(
    r"\.(?P<name>[A-Za-z_\u0080-\U0010ffff][\w\u0080-\U0010ffff]*)"
    r"|\[(?P<index>-?[0-9]+)\]"
    r"|\['(?P<single>[^'\\]*)'\]"
    r"|\[\"(?P<double>[^\"\\]*)\"\]"
)
_COMPARE: Dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
OPERATORS = ("eq", "ne", "lt", "le", "gt", "ge", "exists")


def parse(path: str) -> List[Union[str, int]]:
    """Return the names and indexes of a singular query of RFC 9535, 2.3.5.1: ``$.checks[0]['db main'].status``.

    Raises :class:`OpskitError`. Backslashes in quoted names are refused rather than interpreted.
    """
    if path.startswith("$"):
        segments: List[Union[str, int]] = []
        position = 1
        while position < len(path):
            match = _SEGMENT.match(path, position)
            if match is None:
                break
            index = match.group("index")
            segments.append(int(index) if index is not None else next(t for t in match.groups() if t is not None))
            position = match.end()
        else:
            return segments
    raise OpskitError("this is no path to one JSON value", path, "Write it as $.name[0]['other name']")


class Condition(NamedTuple):
    """What one value has to be."""

    path: str
    op: str
    value: Any

    def failure(self, document: Any) -> str:
        """Return what is wrong with the document, or an empty text."""
        found = document
        for step in parse(self.path):
            if isinstance(step, str) and isinstance(found, dict) and step in found:
                found = found[step]
            elif isinstance(step, int) and isinstance(found, list) and -len(found) <= step < len(found):
                found = found[step]
            else:
                return f"{self.path} is not there"
        if self.op == "exists" or self._holds(found):
            return ""
        return f"{self.path} is {json.dumps(found)}, expected {self.op} {json.dumps(self.value)}"

    def _holds(self, found: Any) -> bool:
        if self.op in ("eq", "ne"):
            # In Python true equals 1, in JSON it does not.
            return (found == self.value and _kind(found) == _kind(self.value)) == (self.op == "eq")
        if _kind(found) != _kind(self.value) or _kind(found) not in ("number", "string"):
            return False
        return bool(_COMPARE[self.op](found, self.value))


def _kind(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    return "string" if isinstance(value, str) else type(value).__name__
