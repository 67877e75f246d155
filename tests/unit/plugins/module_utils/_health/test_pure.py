# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts that decide without asking anybody."""

from __future__ import annotations

import json
import re
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._health import jsonpath
from ansible_collections.opskit.runbooks.plugins.module_utils._health.command_probe import parse_output
from ansible_collections.opskit.runbooks.plugins.module_utils._health.probe import ProbeFailure, clean
from ansible_collections.opskit.runbooks.plugins.module_utils._health.reasons import HINTS
from ansible_collections.opskit.runbooks.plugins.module_utils._health.report import latency, percentile
from ansible_collections.opskit.runbooks.plugins.module_utils._health.systemd_probe import SystemdProbe, parse_show
from ansible_collections.opskit.runbooks.plugins.modules.health_check import RETURN

# What `systemctl show` of systemd 252 (Debian 12) writes for these properties.
RUNNING = """\
NRestarts=0
Result=success
LoadState=loaded
ActiveState=active
SubState=running
ActiveEnterTimestampMonotonic=7340185
"""
MISSING = """\
NRestarts=0
Result=success
LoadState=not-found
ActiveState=inactive
SubState=dead
ActiveEnterTimestampMonotonic=0
"""


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.integers(1, 100))
def test_percentile_is_the_smallest_value_that_covers_its_share(values: List[float], percent: int) -> None:
    found = percentile(sorted(values), percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)


@given(st.lists(st.floats(0, 1e6), max_size=150))
def test_latency_is_ordered_and_says_no_more_than_it_knows(values: List[float]) -> None:
    stats = latency(values)
    assert stats["n"] == len(values)
    assert (stats["p99"] is not None) == (len(values) >= 100)
    known = [stats[name] for name in ("min", "p50", "p90", "p95", "p99", "max") if stats[name] is not None]
    assert known == sorted(known)
    assert bool(known) == bool(values)


def test_percentiles_of_known_values() -> None:
    stats = latency([float(n) for n in range(1, 101)])
    assert [stats[name] for name in ("min", "p50", "p90", "p95", "p99", "max")] == [1, 50, 90, 95, 99, 100]


DOCUMENT = {"status": "ok", "n": 3, "ready": True, "none": None, "checks": [{"db main": {"lag": 1.5}}]}


@pytest.mark.parametrize(
    ("path", "op", "value"),
    [
        ("$.status", "eq", "ok"),
        ("$['status']", "ne", "bad"),
        ("$.n", "eq", 3.0),
        ("$.n", "ne", "3"),
        ("$.ready", "ne", 1),
        ("$.ready", "eq", True),
        ("$.none", "eq", None),
        ("$.none", "exists", None),
        ('$.checks[0]["db main"].lag', "lt", 2),
        ("$.checks[-1]['db main'].lag", "ge", 1.5),
        ("$", "eq", DOCUMENT),
    ],
)
def test_condition_holds(path: str, op: str, value: Any) -> None:
    assert jsonpath.Condition(path, op, value).failure(DOCUMENT) == ""


@pytest.mark.parametrize(
    ("path", "op", "value", "message"),
    [
        ("$.status", "eq", "bad", '$.status is "ok", expected eq "bad"'),
        ("$.n", "eq", "3", '$.n is 3, expected eq "3"'),
        ("$.ready", "eq", 1, "$.ready is true, expected eq 1"),
        ("$.n", "gt", "2", '$.n is 3, expected gt "2"'),
        ("$.ready", "gt", False, "$.ready is true, expected gt false"),
        ("$.checks[1]", "exists", None, "$.checks[1] is not there"),
        ("$.checks.status", "exists", None, "$.checks.status is not there"),
        ("$.status[0]", "exists", None, "$.status[0] is not there"),
    ],
)
def test_condition_fails(path: str, op: str, value: Any, message: str) -> None:
    assert jsonpath.Condition(path, op, value).failure(DOCUMENT) == message


@pytest.mark.parametrize("path", ["", "status", "$.", "$..a", "$.a[", "$.a[*]", "$.a[x]", "$.a b", "$['a\\'b']", "$.a[0:2]"])
def test_bad_path_is_refused(path: str) -> None:
    with pytest.raises(OpskitError, match="no path to one JSON value"):
        jsonpath.parse(path)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_every_document_equals_itself(document: Any) -> None:
    assert jsonpath.Condition("$", "eq", json.loads(json.dumps(document))).failure(document) == ""


def test_clean_leaves_nothing_that_plays_with_a_terminal() -> None:
    assert clean(" a\x1b[31m\nb\ud800\x00 ") == "a\ufffd[31m b\ufffd\ufffd"


def test_reasons_are_a_closed_list_that_is_documented() -> None:
    paragraph = RETURN.rsplit("    reason:\n", maxsplit=1)[-1].split("returned:")[0]
    assert set(re.findall(r"V\((\w+)\)", paragraph)) == set(HINTS)
    with pytest.raises(ValueError, match="closed list"):
        raise ProbeFailure("something_else", "x")


def test_perfdata() -> None:
    text, found = parse_output("DISK OK | /=2643MB;5948;5958;0;5968 'a b'=U load=0.5;~:10;@5\nlong text | 'more''s'=12%;80;90\n")
    assert text == "DISK OK"
    assert found == {
        "/": {"value": 2643.0, "unit": "MB", "warn": "5948", "crit": "5958", "min": "0", "max": "5968"},
        "a b": {"value": None, "unit": ""},
        "load": {"value": 0.5, "unit": "", "warn": "~:10", "crit": "@5"},
        "more's": {"value": 12.0, "unit": "%", "warn": "80", "crit": "90"},
    }


@given(st.text())
def test_no_output_breaks_the_parser(output: str) -> None:
    parse_output(output)


def unit(min_uptime: float = 0.0) -> SystemdProbe:
    return SystemdProbe({"unit": "gateway.service", "min_uptime": min_uptime})


def judged(probe: SystemdProbe, show: str, monotonic_s: float = 100.0) -> str:
    try:
        return probe.judge(parse_show(show), monotonic_s).status
    except ProbeFailure as failure:
        return failure.outcome.reason


def test_unit_states() -> None:
    assert judged(unit(), RUNNING) == "pass"
    assert judged(unit(), MISSING) == "unit_not_found"
    assert judged(unit(), RUNNING.replace("=active", "=failed").replace("running", "failed")) == "unit_inactive"
    assert judged(unit(), RUNNING.replace("=active", "=activating").replace("running", "auto-restart")) == "unit_crashloop"
    assert judged(unit(), RUNNING.replace("NRestarts=0\n", "")) == "pass"
    assert judged(unit(), "") == "systemd_unavailable"


def test_uptime_is_measured_from_the_activation() -> None:
    outcome = unit().judge(parse_show(RUNNING), 17.340185)
    assert outcome.observed == {"ActiveState": "active", "SubState": "running", "Result": "success", "NRestarts": 0, "uptime_s": 10.0}
    assert judged(unit(min_uptime=10), RUNNING, 17.3) == "unit_uptime"
    assert judged(unit(min_uptime=10), RUNNING, 17.4) == "pass"


def test_restarts_are_counted_from_one_attempt_to_the_next() -> None:
    probe = unit()
    assert judged(probe, RUNNING.replace("NRestarts=0", "NRestarts=7")) == "pass"
    assert judged(probe, RUNNING.replace("NRestarts=0", "NRestarts=8")) == "unit_crashloop"
    assert judged(probe, RUNNING.replace("NRestarts=0", "NRestarts=8")) == "pass"


@pytest.mark.parametrize("name", ["", "-x", "a b", "*.service", "a\nb"])
def test_bad_unit_name_is_refused(name: str) -> None:
    with pytest.raises(OpskitError, match="no name of a unit"):
        SystemdProbe({"unit": name, "min_uptime": 0.0})
