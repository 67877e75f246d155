# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of what was run on a host: one JSON object a line, only ever added to."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from typing import Any, Dict, List

from .._core.clock import Clock, rfc3339
from .._core.errors import OpskitError
from .._core.files import fsync_dir, make_dir
from .._core.operation import Check, Operation
from .._core.plan import Plan
from .._core.redact import HIDDEN, redact


class JournalEntry(Operation):
    """Appends one line.

    A line is whole or not there: it is written under a lock and taken back when it could not be written to its end; what
    an interrupted writer left without a newline keeps its own line.

    :param path: absolute path of the journal; its folder is made where it is missing (mode 0700)
    :param entry: plain JSON; ``time`` is added, and whatever looks like a secret is replaced by asterisks
    """

    def __init__(self, path: str, entry: Dict[str, Any], clock: Clock) -> None:
        if not os.path.isabs(path):
            raise OpskitError("this is not an absolute path", path, "Name the journal by its absolute path")
        self._path = path
        self._entry: Dict[str, Any] = {"time": rfc3339(clock.now())}
        self._entry.update(without_secrets(entry))
        # ensure_ascii keeps undecodable names (surrogates) and U+2028 from breaking a line or a reader.
        self._line = json.dumps(self._entry, sort_keys=False).encode("ascii") + b"\n"
        self._offset = 0

    def plan(self) -> Plan:
        """One line, always: a journal records runs, and every run is a new one."""
        plan = Plan("appended")
        self._require_file()
        plan.add("append line", self._path, "every run is recorded", len(self._line))
        return plan

    def _require_file(self) -> None:
        try:
            mode = os.lstat(self._path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            raise OpskitError("the journal must be a regular file", self._path, "Move away what is there and run the same command again")

    def apply(self, plan: Plan) -> None:
        """Append the line, durable when this returns."""
        for step in plan:
            self._append(step.target)

    def _append(self, path: str) -> None:
        folder = os.path.dirname(path)
        make_dir(folder)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            os.fchmod(handle, 0o600)
            before = os.fstat(handle).st_size
            torn = before > 0 and os.pread(handle, 1, before - 1) != b"\n"
            try:
                _write_all(handle, b"\n" + self._line if torn else self._line)
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, before)
                raise
            self._offset = before + int(torn)
        finally:
            os.close(handle)
        fsync_dir(folder)

    def verify(self) -> List[Check]:
        """Read the line back where it was written."""
        with open(self._path, "rb") as stream:
            stream.seek(self._offset)
            found = stream.read(len(self._line))
        return [Check("line read back", found == self._line, f"{len(found)} bytes at {self._offset}")]

    def result(self) -> Dict[str, Any]:
        """Return the entry as it stands in the journal."""
        return {"path": self._path, "entry": self._entry}


def journal_entry(params: Dict[str, Any], clock: Clock) -> JournalEntry:
    """Build the operation from the module's parameters; options that are empty are left out of the line."""
    entry = {name: value for name, value in params.items() if name != "path" and value not in (None, "", {})}
    return JournalEntry(params["path"], entry, clock)


def without_secrets(value: Any, name: str = "") -> Any:
    """Return a copy with everything that is, or stands under the name of, a secret replaced by asterisks.

    :param name: the key that the value stands under, if any
    """
    if isinstance(value, dict):
        return {key: without_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [without_secrets(item, name) for item in value]
    if name and value not in (None, "") and not isinstance(value, bool) and redact(f"{name}=x") != f"{name}=x":
        return HIDDEN
    return redact(value) if isinstance(value, str) else value


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
