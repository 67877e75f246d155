# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many checks become one result: again and again, in order, in time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict

import ansible
import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._health.reasons import HINTS
from ansible_collections.opskit.runbooks.plugins.module_utils._health.runner import Unhealthy
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._health import lab

OK, BAD = lab.reply(b"ok"), lab.reply(b"no", "503 Service Unavailable")
FAST: Dict[str, Any] = {"mode": "until", "interval": 0.02}


def refused(**options: Any) -> Dict[str, Any]:
    """Return a check that fails at once."""
    return {"id": "refused", "type": "tcp", "port": lab.free_port(), **options}


def passes(**options: Any) -> Dict[str, Any]:
    """Return a check that passes at once."""
    return {"id": "passes", "type": "command", "argv": ["true"], **options}


def warns(**options: Any) -> Dict[str, Any]:
    """Return a check that warns at once."""
    return {"id": "warns", "type": "command", "argv": ["sh", "-c", "exit 1"], **options}


def test_result_has_every_promised_key() -> None:
    result = lab.run(passes())
    assert list(result) == [
        *("changed", "status", "schema", "elapsed_s", "deadline_hit", "summary", "first_failure", "checks", "health_json", "prometheus")
    ]
    assert (result["changed"], result["schema"], result["first_failure"], result["deadline_hit"]) == (False, 1, None, False)
    assert result["summary"] == {"pass": 1, "warn": 0, "fail": 0, "unknown": 0}
    assert list(result["checks"][0]) == [
        *("id", "type", "target", "address", "status", "reason", "message", "attempts", "consecutive", "first_pass_s"),
        *("latency_ms", "phases_ms", "observed", "expected", "history"),
    ]
    assert list(result["checks"][0]["latency_ms"]) == ["n", "min", "p50", "p90", "p95", "p99", "max"]


def test_until_goes_on_to_the_threshold_and_starts_anew_after_a_failure() -> None:
    with lab.http(BAD, OK, OK, BAD, OK) as server:
        result = lab.run({"type": "http", "url": server.url()}, **FAST, deadline=20)
    row = result["checks"][0]
    assert result["status"] == "pass"
    assert [entry["status"] for entry in row["history"]] == ["fail", "pass", "pass", "fail", "pass", "pass", "pass"]
    assert (row["attempts"], row["consecutive"], server.connections) == (7, 3, 7)
    assert row["first_pass_s"] == row["history"][1]["at_s"]
    assert row["latency_ms"]["n"] == 7


def test_until_tells_the_cause_when_the_deadline_comes() -> None:
    with pytest.raises(Unhealthy) as caught:
        lab.run(refused(), **FAST, deadline=0.3)
    result = caught.value.result
    assert result["deadline_hit"]
    assert result["first_failure"]["reason"] == "connect_refused"
    assert result["checks"][0]["attempts"] > 3
    assert str(caught.value).startswith("check refused (tcp 127.0.0.1:")
    assert HINTS["connect_refused"] in str(caught.value)


def test_history_is_bounded() -> None:
    row = lab.run(refused(), mode="until", interval=0.001, deadline=0.5, fail_on="never")["checks"][0]
    assert row["attempts"] > 20
    assert len(row["history"]) == 20


def test_too_few_passes_in_a_row_are_not_a_pass() -> None:
    result = lab.run(passes(success_threshold=10000), **FAST, deadline=0.3, fail_on="never")
    assert (result["status"], result["first_failure"]["reason"]) == ("unknown", "threshold")


def test_once_asks_up_to_the_threshold_and_stops_at_the_first_failure() -> None:
    with lab.http(OK, OK, BAD) as server:
        check = {"type": "http", "url": server.url(), "success_threshold": 2}
        assert lab.run(check, interval=0.01)["checks"][0]["attempts"] == 2
        assert lab.run(check, interval=0.01, fail_on="never")["checks"][0]["attempts"] == 1


def hold(_connection: socket.socket, _number: int) -> None:
    time.sleep(3)


def test_deadline_is_kept_although_a_server_hangs() -> None:
    with lab.Server(hold) as server:
        begun = time.monotonic()
        result = lab.run({"type": "http", "url": server.url(), "timeout": 3}, passes(), deadline=0.5, fail_on="never")
        took = time.monotonic() - begun
    assert 0.5 <= took < 1
    assert result["deadline_hit"]
    assert [row["status"] for row in result["checks"]] == ["unknown", "pass"]
    assert result["checks"][0]["reason"] == "deadline"
    assert result["checks"][0]["message"].endswith("it was at: ttfb")


def test_deadline_is_kept_although_the_resolver_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hangs(host: str, *_args: Any, **_options: Any) -> Any:
        asked.append(host)
        time.sleep(5)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    begun = time.monotonic()
    checks = [{"id": f"c{n}", "type": "tcp", "host": "hung.example.com", "port": 80, "timeout": 0.1} for n in range(5)]
    result = lab.run(*checks, **FAST, deadline=0.6, fail_on="never")
    assert 0.6 <= time.monotonic() - begun < 1.1
    assert {row["reason"] for row in result["checks"]} == {"dns_timeout"}
    assert all(row["attempts"] > 1 for row in result["checks"])
    # Not one more hanging thread with every attempt.
    assert asked == ["hung.example.com"]


def test_process_ends_with_threads_that_hang() -> None:
    script = (
        "import socket, time\n"
        "from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._health import lab\n"
        "socket.getaddrinfo = lambda *a, **k: time.sleep(60)\n"
        "result = lab.run({'type': 'tcp', 'host': 'hung.example.com', 'port': 1, 'timeout': 50},"
        " {'type': 'command', 'argv': ['sleep', '50'], 'timeout': 50}, deadline=0.3, fail_on='never')\n"
        "print(result['status'], [row['reason'] for row in result['checks']])\n"
    )
    # The folders that hold ansible_collections and ansible.
    roots = [str(Path(lab.__file__).parents[8]), str(Path(ansible.__file__).parents[1])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "unknown ['deadline', 'deadline']\n"
    assert time.monotonic() - begun < 10


def test_concurrency_is_a_limit() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def count(connection: socket.socket, _number: int) -> None:
        lab.read_request(connection)
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        connection.sendall(OK)

    with lab.Server(count) as server:
        checks = [{"id": f"c{n}", "type": "http", "url": server.url()} for n in range(6)]
        begun = time.monotonic()
        lab.run(*checks, concurrency=2)
        assert (most[0], time.monotonic() - begun >= 0.3) == (2, True)
        begun, most[0] = time.monotonic(), 0
        lab.run(*checks)
        assert most[0] > 2
        assert time.monotonic() - begun < 0.5


def test_what_depends_on_a_failure_is_not_asked() -> None:
    with lab.http(OK) as server:
        last = {"id": "last", "type": "http", "url": server.url(), "depends_on": ["middle"]}
        result = lab.run(last, passes(id="middle", depends_on=["refused"]), refused(), fail_on="never")
    assert [row["reason"] for row in result["checks"]] == ["dependency", "dependency", "connect_refused"]
    assert result["first_failure"]["id"] == "refused"
    assert server.connections == 0
    assert result["status"] == "fail"


def test_what_depends_is_asked_after_it() -> None:
    with lab.http(BAD, OK) as server:
        first = {"id": "first", "type": "http", "url": server.url(), "success_threshold": 2}
        result = lab.run(passes(depends_on=["first"], success_threshold=1), first, **FAST, deadline=20)
    dependent, row = result["checks"]
    assert result["status"] == "pass"
    # The third attempt is the second pass in a row.
    assert dependent["history"][0]["at_s"] > row["history"][2]["at_s"]


def test_not_required_is_at_worst_a_warning() -> None:
    result = lab.run(refused(required=False), passes())
    assert [row["status"] for row in result["checks"]] == ["warn", "pass"]
    assert result["status"] == "warn"
    assert result["first_failure"]["reason"] == "connect_refused"
    assert lab.run(refused(required=False), passes(), **FAST, deadline=20)["status"] == "warn"


@pytest.mark.parametrize("params", [{}, {**FAST, "deadline": 20}])
@pytest.mark.parametrize(("quorum", "status"), [("any", "warn"), ("1", "warn"), ("2", "warn"), ("all", "fail"), ("3", "fail")])
def test_quorum(quorum: str, status: str, params: Dict[str, Any]) -> None:
    if status == "fail" and params:
        params = {**params, "deadline": 0.5}
    good = [passes(id=name, success_threshold=1) for name in ("one", "two")]
    result = lab.run(refused(), *good, quorum=quorum, fail_on="never", **params)
    assert result["status"] == status
    assert result["deadline_hit"] == (status == "fail" and bool(params))
    assert [row["status"] for row in result["checks"]] == ["fail", "pass", "pass"]


@pytest.mark.parametrize(
    ("check", "accepted"),
    [(passes(), ["fail", "warn", "never"]), (warns(), ["fail", "never"]), (refused(), ["never"])],
)
def test_fail_on(check: Dict[str, Any], accepted: Any) -> None:
    for fail_on in ("fail", "warn", "never"):
        if fail_on in accepted:
            lab.run(check, fail_on=fail_on)
        else:
            with pytest.raises(Unhealthy):
                lab.run(check, fail_on=fail_on)


def test_until_waits_for_a_pass_where_a_warning_is_not_accepted() -> None:
    def slow_at_first(connection: socket.socket, number: int) -> None:
        lab.read_request(connection)
        time.sleep(0.3 if number < 2 else 0)
        connection.sendall(OK)

    for fail_on, attempts in (("fail", 1), ("warn", 3)):
        with lab.Server(slow_at_first) as server:
            check = {"type": "http", "url": server.url(), "latency_warn_ms": 250, "success_threshold": 1}
            row = lab.run(check, **FAST, deadline=20, fail_on=fail_on)["checks"][0]
        assert row["attempts"] == attempts
        assert row["history"][0]["reason"] == "latency"


def test_latency_limits() -> None:
    with lab.Server(lab.drip(OK, 0.002)) as server:
        check = {"type": "http", "url": server.url(), "latency_warn_ms": 20}
        warning = lab.run(check)
        failure = lab.run({**check, "latency_fail_ms": 30}, fail_on="never")
    assert (warning["status"], warning["first_failure"]["reason"]) == ("warn", "latency")
    assert (failure["status"], failure["first_failure"]["reason"]) == ("fail", "latency")
    assert failure["checks"][0]["expected"] == {"status_code": [200], "latency_warn_ms": 20.0, "latency_fail_ms": 30.0}


def test_message_names_the_first_and_counts_the_others() -> None:
    with pytest.raises(
        Unhealthy, match=r"^check refused \(tcp 127.0.0.1:[0-9]+\): connect_refused, .* \(1 more not passing\)\. Start the service"
    ):
        lab.run(passes(), warns(), refused())


def test_other_shapes() -> None:
    result = lab.run(passes(), warns(), refused(), {"type": "systemd", "unit": "x.service"}, fail_on="never")
    health = result["health_json"]
    assert health["status"] == "fail"
    assert [health["checks"][f"{name}:responseTime"][0]["status"] for name in ("passes", "warns", "refused", "systemd")] == [
        *("pass", "warn", "fail", "fail")
    ]
    assert health["checks"]["passes:responseTime"][0]["observedUnit"] == "ms"
    assert health["checks"]["refused:responseTime"][0]["output"].startswith("connect_refused: ")
    lines = result["prometheus"].splitlines()
    assert 'opskit_health_check_status{id="refused",type="tcp",status="fail"} 1' in lines
    assert 'opskit_health_check_status{id="refused",type="tcp",status="pass"} 0' in lines
    assert sum(line.startswith('opskit_health_check_latency_seconds{id="passes"') for line in lines) == 5
    assert result["prometheus"].endswith("\n")


def test_an_error_of_our_own_is_not_taken_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any, **_options: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(socket, "getaddrinfo", broken)
    with pytest.raises(ZeroDivisionError):
        lab.run({"type": "tcp", "port": 1})
