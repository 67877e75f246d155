# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run of checks came to, in the three shapes that are read: the module's result, health+json and Prometheus text."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Optional

from .._core.clock import rfc3339
from .check import Check
from .probe import FAIL, PASS, UNKNOWN, WARN, Outcome
from .reasons import HINTS

SCHEMA = 1
P99_MIN = 100
"""Values below which a 99th percentile is only the maximum under another name."""


def percentile(ordered: List[float], percent: int) -> float:
    """Return the nearest-rank percentile: the smallest value that at least this share of the values does not exceed.

    :param ordered: one value or more, in ascending order
    :param percent: 1 to 100
    """
    # The ceiling of a division of integers.
    return ordered[-(-percent * len(ordered) // 100) - 1]


def latency(values_ms: List[float]) -> Dict[str, Any]:
    """Return n, min, p50, p90, p95, p99, max in milliseconds; None where there are too few values."""
    ordered = sorted(values_ms)
    n = len(ordered)
    stats: Dict[str, Any] = {"n": n, "min": ordered[0] if n else None}
    for percent in (50, 90, 95, 99):
        enough = n >= (P99_MIN if percent == 99 else 1)
        stats[f"p{percent}"] = percentile(ordered, percent) if enough else None
    stats["max"] = ordered[-1] if n else None
    return stats


def report(
    checks: List[Check], conclusions: Dict[str, Outcome], needed: int, elapsed_s: float, deadline_hit: bool, now: datetime
) -> Dict[str, Any]:
    """Return the module's result.

    :param conclusions: what each check came to, by id
    :param needed: how many of the required checks must be good
    """
    rows = [_row(check, conclusions[check.id]) for check in checks]
    status = verdict(checks, conclusions, needed)
    return {
        "changed": False,
        "status": status,
        "schema": SCHEMA,
        "elapsed_s": round(elapsed_s, 3),
        "deadline_hit": deadline_hit,
        "summary": {name: sum(1 for row in rows if row["status"] == name) for name in (PASS, WARN, FAIL, UNKNOWN)},
        "first_failure": _first_failure(rows),
        "checks": rows,
        "health_json": health_json(rows, status, now),
        "prometheus": prometheus(rows),
    }


def verdict(checks: List[Check], conclusions: Dict[str, Outcome], needed: int) -> str:
    """Return the status of the whole.

    ``pass`` when all pass, ``warn`` when enough of the required ones pass or warn; otherwise ``fail``, or ``unknown``
    when nothing failed and too little is known. What check mode left out does not count.
    """
    counted = [check for check in checks if not check.skipped]
    states = [conclusions[check.id].status for check in counted]
    required = [conclusions[check.id].status for check in counted if check.required]
    good = sum(1 for state in required if state in (PASS, WARN))
    if good >= min(needed, len(required)):
        return PASS if all(state == PASS for state in states) else WARN
    return FAIL if FAIL in required else UNKNOWN


def _row(check: Check, outcome: Outcome) -> Dict[str, Any]:
    attempt = check.last_attempt or check.running
    return {
        "id": check.id,
        "type": check.type,
        "target": check.probe.target,
        "address": attempt.address if attempt else "",
        "status": outcome.status,
        "reason": outcome.reason,
        "message": outcome.message,
        "attempts": check.attempts,
        "consecutive": check.consecutive,
        "first_pass_s": check.first_pass_s,
        "latency_ms": latency(check.latencies_ms),
        # A copy: the thread of an attempt that hangs may still write.
        "phases_ms": dict(attempt.phases_ms) if attempt else {},
        "observed": outcome.observed,
        "expected": check.probe.expected,
        "history": list(check.history),
    }


def _first_failure(rows: List[Dict[str, Any]]) -> Optional[Dict[str, str]]:
    for status in (FAIL, UNKNOWN, WARN):
        # What only follows from another check, or from check mode, is no root cause.
        for row in rows:
            if row["status"] == status and row["reason"] not in ("dependency", "check_mode"):
                reason = row["reason"]
                return {"id": row["id"], "reason": reason, "message": row["message"], "hint": HINTS[reason]}
    return None


def health_json(rows: List[Dict[str, Any]], status: str, now: datetime) -> Dict[str, Any]:
    """Return the shape of draft-inadarei-api-health-check-06; it has no ``unknown``, so that becomes ``fail``."""
    known = {PASS: PASS, WARN: WARN}
    checks: Dict[str, List[Dict[str, Any]]] = {}
    for row in rows:
        entry: Dict[str, Any] = {"componentType": row["type"], "status": known.get(row["status"], FAIL), "time": rfc3339(now)}
        if row["history"] and row["history"][-1]["latency_ms"] is not None:
            entry.update(observedValue=row["history"][-1]["latency_ms"], observedUnit="ms")
        if row["status"] != PASS:
            entry["output"] = f"{row['reason']}: {row['message']}"
        checks[f"{row['id']}:responseTime"] = [entry]
    return {"status": known.get(status, FAIL), "checks": checks}


def prometheus(rows: List[Dict[str, Any]]) -> str:
    """Return the results in Prometheus' text format 0.0.4, fit for node_exporter's textfile collector."""
    lines = [
        "# HELP opskit_health_check_status Status of the check: 1 for the one it has.",
        "# TYPE opskit_health_check_status gauge",
    ]
    for row in rows:
        for status in (PASS, WARN, FAIL, UNKNOWN):
            # Ids and types have no character that would have to be escaped.
            labels = f'id="{row["id"]}",type="{row["type"]}",status="{status}"'
            lines.append(f"opskit_health_check_status{{{labels}}} {int(row['status'] == status)}")
    lines += [
        "# HELP opskit_health_check_latency_seconds Time to the whole answer.",
        "# TYPE opskit_health_check_latency_seconds gauge",
    ]
    for row in rows:
        for name in ("min", "p50", "p90", "p95", "p99", "max"):
            value = row["latency_ms"][name]
            if value is not None:
                labels = f'id="{row["id"]}",type="{row["type"]}",stat="{name}"'
                lines.append(f"opskit_health_check_latency_seconds{{{labels}}} {value / 1000:.6f}")
    return "\n".join(lines) + "\n"
