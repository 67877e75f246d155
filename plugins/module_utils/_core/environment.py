# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An application's environment file of ``KEY=value`` lines. Its values never leave this process."""

from __future__ import annotations

import hashlib
import re
from typing import List, Optional

from .errors import present

ROUNDS = 200_000
"""Of PBKDF2: about a tenth of a second for each guess at a key."""


def _find(lines: List[bytes], variable: str) -> Optional[int]:
    """Return the number of the line that sets a variable: the last one, which wins wherever such files are read."""
    pattern = re.compile(rb"\s*(?:export\s+)?" + re.escape(variable.encode()) + rb"=")
    found = [number for number, line in enumerate(lines) if pattern.match(line)]
    return found[-1] if found else None


def value_of(content: bytes, variable: str) -> Optional[str]:
    """Return the value that an environment file of ``KEY=value`` lines gives a variable, None where it gives none."""
    lines = content.split(b"\n")
    number = _find(lines, variable)
    if number is None:
        return None
    value = lines[number].split(b"=", 1)[1].strip()
    if len(value) > 1 and value[:1] == value[-1:] and value[:1] in (b"'", b'"'):
        value = value[1:-1]
    return value.decode("utf-8", errors="replace")


def with_line_of(content: bytes, other: bytes, variable: str) -> bytes:
    """Return an environment file's content with the line of a variable as it stands in another one, which has it."""
    lines, others = content.split(b"\n"), other.split(b"\n")
    line, number = others[present(_find(others, variable))], _find(lines, variable)
    if number is not None:
        lines[number] = line
        return b"\n".join(lines)
    return content + (b"" if content.endswith(b"\n") or not content else b"\n") + line + b"\n"


def with_value(content: bytes, variable: str, value: str) -> bytes:
    """Return an environment file's content with another value of a variable; one that it does not set comes at its end."""
    plain = re.fullmatch(r"[A-Za-z0-9_@%+=:,./?&~-]*", value)
    written = value if plain else '"' + re.sub(r'([\\"$`])', r"\\\1", value) + '"'
    return with_line_of(content, f"{variable}={written}".encode(), variable)


def fingerprint(content: bytes, variable: str, salt: str) -> str:
    """Return what tells a variable's value from all others and is of no use for guessing it; empty where it is not set.

    :param salt: what keeps the same value from having the same fingerprint elsewhere
    """
    value = value_of(content, variable)
    if not value:
        return ""
    return hashlib.pbkdf2_hmac("sha256", value.encode("utf-8", "surrogatepass"), salt.encode("utf-8"), ROUNDS).hex()[:32]
