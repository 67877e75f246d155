# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of one systemd unit."""

from __future__ import annotations

import os
import re
import time
from typing import Any, Dict, Optional

from .._core.command import CommandError, run
from .._core.errors import OpskitError
from .probe import UNKNOWN, Attempt, Outcome, Probe, ProbeFailure, clean

PROPERTIES = ("LoadState", "ActiveState", "SubState", "Result", "NRestarts", "ActiveEnterTimestampMonotonic")
_BOOTED = "/run/systemd/system"


def parse_show(output: str) -> Dict[str, str]:
    """Return the properties that ``systemctl show`` wrote, one ``Name=value`` a line."""
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


class SystemdProbe(Probe):
    """Asks the system's service manager about a unit."""

    timeout_reason = "command_timeout"

    def __init__(self, options: Dict[str, Any]) -> None:
        unit: str = options["unit"]
        # systemd.unit(5), and no pattern: systemctl would answer for every unit that it fits.
        if not re.fullmatch(r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{0,254}", unit):
            raise OpskitError("this is no name of a unit", clean(unit), "Write it as nginx.service or app@web.service")
        super().__init__(unit)
        self._min_uptime_s: float = options["min_uptime"]
        if self._min_uptime_s < 0:
            raise OpskitError("min_uptime is less than 0", unit, "Set it to 0 or more seconds")
        self.expected["ActiveState"] = "active"
        if self._min_uptime_s:
            self.expected["min_uptime_s"] = self._min_uptime_s
        self._restarts: Optional[int] = None

    def ask(self, attempt: Attempt) -> Outcome:
        """Run ``systemctl show`` and judge what it says."""
        # sd_booted(3): this folder is there exactly when systemd is the init of this system.
        if not os.path.isdir(_BOOTED):
            raise ProbeFailure("systemd_unavailable", f"systemd does not run here: {_BOOTED} is missing", status=UNKNOWN, final=True)
        with attempt.timed("command"):
            try:
                # LC_ALL=C and TZ=UTC come from the command's environment.
                shown = run(
                    ["systemctl", "show", "--no-pager", f"--property={','.join(PROPERTIES)}", "--", self.target],
                    attempt.remaining(),
                )
            except CommandError as error:
                attempt.remaining()
                raise ProbeFailure("systemd_unavailable", f"systemctl show: {error.what}", status=UNKNOWN) from None
        return self.judge(parse_show(shown.stdout.decode("utf-8", errors="replace")), time.monotonic())

    def judge(self, properties: Dict[str, str], monotonic_s: float) -> Outcome:
        """Judge the properties of ``systemctl show``.

        :param monotonic_s: CLOCK_MONOTONIC in seconds, the clock of systemd's ``...TimestampMonotonic`` (in microseconds)
        """
        missing = [name for name in ("LoadState", "ActiveState", "SubState") if name not in properties]
        if missing:
            raise ProbeFailure("systemd_unavailable", f"systemctl show did not say {', '.join(missing)}", status=UNKNOWN)
        active, sub = properties["ActiveState"], properties["SubState"]
        entered_us = int(properties.get("ActiveEnterTimestampMonotonic") or 0)
        # Units that are no services have no NRestarts.
        restarts = int(properties["NRestarts"]) if properties.get("NRestarts", "").isdigit() else None
        observed: Dict[str, Any] = {"ActiveState": active, "SubState": sub, "Result": properties.get("Result", "")}
        if restarts is not None:
            observed["NRestarts"] = restarts
            if self._restarts is None:
                self._restarts = restarts
        if properties["LoadState"] != "loaded":
            observed["LoadState"] = properties["LoadState"]
            raise ProbeFailure("unit_not_found", f"the unit is {properties['LoadState']}", observed, answered=True)
        if sub == "auto-restart":
            raise ProbeFailure(
                "unit_crashloop", f"the unit ended ({observed['Result']}) and waits for its restart", observed, answered=True
            )
        if active != "active":
            raise ProbeFailure("unit_inactive", f"the unit is {active} ({sub})", observed, answered=True)
        uptime_s = max(0.0, round(monotonic_s - entered_us / 1e6, 3))
        observed["uptime_s"] = uptime_s
        if restarts is not None and self._restarts is not None and restarts > self._restarts:
            more, self._restarts = restarts - self._restarts, restarts
            raise ProbeFailure("unit_crashloop", f"the unit was restarted {more} times since the attempt before", observed, answered=True)
        if uptime_s < self._min_uptime_s:
            message = f"active for {uptime_s:.1f} s, expected {self._min_uptime_s:g} s or more"
            raise ProbeFailure("unit_uptime", message, observed, answered=True)
        return Outcome("pass", observed=observed, answered=True)
