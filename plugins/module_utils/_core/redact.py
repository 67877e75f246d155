# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking secrets out of text before anybody sees it."""

from __future__ import annotations

import re
from typing import Iterable

HIDDEN = "********"

# user:password@host in a URL, and what usually stands behind such a name in a tool's output.
_PATTERNS = (
    re.compile(r"(?P<keep>\b\w+://[^\s:/@]*:)[^\s@/]+(?=@)"),
    re.compile(r"(?i)(?P<keep>(?<![\w-])[\w-]*(?:password|passwd|secret|token|api[_-]?key)\b[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+"),
    re.compile(r"(?i)(?P<keep>\bauthorization:\s*\w+\s+)\S+"),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return the text with the given secrets, and whatever looks like one, replaced by asterisks."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda match: match.group("keep") + HIDDEN, text)
    return text
