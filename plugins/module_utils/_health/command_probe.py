# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A program that speaks the language of Nagios plugins."""

from __future__ import annotations

import re
import shutil
from typing import Any, Dict, List, Tuple

from .._core.command import CommandTimeout, run
from .._core.errors import OpskitError
from .._core.redact import redact
from .probe import FAIL, PASS, UNKNOWN, WARN, Attempt, Outcome, Probe, ProbeFailure, clean, excerpt

# Monitoring Plugins Development Guidelines, "Plugin Return Codes" and "Performance data".
STATUS = {0: PASS, 1: WARN, 2: FAIL, 3: UNKNOWN}
MAX_OUTPUT = 8192
"""Characters of output that are read, as many as Nagios reads."""
_PERFDATA = re.compile(
    r"(?<!\S)(?:'(?P<quoted>(?:[^'=]|'')+)'|(?P<plain>[^\s'=]+))=(?P<value>-?[0-9.]+|U)(?P<unit>[^\s;0-9.-]*)"
    r"(?:;(?P<warn>[^\s;]*))?(?:;(?P<crit>[^\s;]*))?(?:;(?P<min>[^\s;]*))?(?:;(?P<max>[^\s;]*))?(?=\s|$)"
)


def parse_output(output: str) -> Tuple[str, Dict[str, Dict[str, Any]]]:
    """Return the first line's text, and the performance data by label: value (None for U), unit, warn, crit, min, max."""
    first, _newline, rest = output.partition("\n")
    text, _bar, performance = first.partition("|")
    performance += " " + rest.partition("|")[2]
    found: Dict[str, Dict[str, Any]] = {}
    for match in _PERFDATA.finditer(performance):
        try:
            value = None if match.group("value") == "U" else float(match.group("value"))
        except ValueError:
            continue
        label = (match.group("quoted") or match.group("plain")).replace("''", "'")
        found[clean(label)] = {"value": value, "unit": match.group("unit")}
        found[clean(label)].update({key: match.group(key) for key in ("warn", "crit", "min", "max") if match.group(key)})
    return text.strip(), found


class CommandProbe(Probe):
    """Runs a program without a shell."""

    timeout_reason = "command_timeout"

    def __init__(self, options: Dict[str, Any], check_mode: bool) -> None:
        self._argv: List[str] = options["argv"]
        if not self._argv or not self._argv[0] or any("\0" in word for word in self._argv):
            raise OpskitError("argv does not name a program", "argv", "Write it as [program, argument, ...]")
        # Arguments are known to everybody on the host, but the result goes further than that.
        super().__init__(redact(clean(" ".join(self._argv))))
        self._skip = check_mode and not options["check_safe"]
        self.expected["exit_code"] = 0

    def ask(self, attempt: Attempt) -> Outcome:
        """Run it and take its exit code for the answer."""
        if self._skip:
            message = "not run in check mode, because check_safe is not set"
            raise ProbeFailure("check_mode", message, status=UNKNOWN, final=True)
        if shutil.which(self._argv[0]) is None:
            raise ProbeFailure("command_not_found", "this program is not there, or may not be executed")
        with attempt.timed("command"):
            try:
                done = run(self._argv, attempt.remaining(), ok=range(-64, 256))
            except CommandTimeout:
                raise TimeoutError from None
        text, performance = parse_output(redact(done.stdout.decode("utf-8", errors="replace")[:MAX_OUTPUT]))
        words = excerpt(text)
        observed: Dict[str, Any] = {"exit_code": done.returncode, "output": words}
        if performance:
            observed["perfdata"] = performance
        status = STATUS.get(done.returncode, FAIL)
        if status == PASS:
            return Outcome(PASS, observed=observed, answered=True)
        if not words:
            words = excerpt(done.stderr.decode("utf-8", errors="replace"))
        said = f": {words}" if words else ""
        raise ProbeFailure("command_exit", f"exit code {done.returncode}{said}", observed, status=status, answered=True)
