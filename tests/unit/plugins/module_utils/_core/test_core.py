# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._core import command
from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock, parse_rfc3339, rfc3339
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.lock import GRACE_S, flock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import Check, Operation, carry_out
from ansible_collections.opskit.runbooks.plugins.module_utils._core.plan import Plan
from ansible_collections.opskit.runbooks.plugins.module_utils._core.redact import HIDDEN, redact

# commands -----------------------------------------------------------------------------------------


def test_output_and_input() -> None:
    done = command.run(["sh", "-c", "cat; echo $LC_ALL $0 >&2", "a b"], 10, data=b"in\xff")
    assert (done.stdout, done.stderr) == (b"in\xff", b"C a b\n")
    assert command.run(["sh", "-c", "exit 3"], 10, ok=(0, 3)).returncode == 3
    assert command.run(["pwd"], 10, cwd="/").stdout == b"/\n"


def test_last_words_without_secrets() -> None:
    talk = "echo one >&2; echo two >&2; echo 'password=hunter2 failed' >&2; echo last >&2; exit 7"
    with pytest.raises(command.CommandError) as caught:
        command.run(["sh", "-c", talk], 10)
    assert str(caught.value) == f"sh: exit code 7: two | password={HIDDEN} failed | last."
    with pytest.raises(command.CommandError, match="it said nothing"):
        command.run(["false"], 10)


def test_a_deadline() -> None:
    started = time.monotonic()
    with pytest.raises(command.CommandError, match=r"sleep: still running after 0.3 s and killed"):
        command.run(["sleep", "30"], 0.3)
    assert time.monotonic() - started < 5


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(OpskitError, match=r"the program no-such is not installed. Install it: apt-get install pkg\."):
        command.find_program("no-such", "pkg")
    assert command.find_program("sh", "dash").endswith("/sh")


def test_no_child_outlives_us(tmp_path: Path) -> None:
    """The parent is killed, which runs no handler at all; the kernel ends its child."""
    pids = tmp_path / "pid"
    parent = os.fork()
    if parent == 0:
        child = command.start(["sleep", "60"])
        pids.write_text(str(child.pid))
        # The name changes once setpriv has set what it sets.
        while Path(f"/proc/{child.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    gone = time.monotonic() + 5
    while os.path.exists(f"/proc/{pids.read_text()}") and "Z" not in _state(pids.read_text()):
        assert time.monotonic() < gone
        time.sleep(0.05)


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


# locks --------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with flock(path):
        assert os.stat(path).st_mode & 0o7777 == 0o600
        started = time.monotonic()
        with pytest.raises(OpskitError, match=r"another run is at work here.*fuser -v"), flock(path):
            pass
        # As long as a child of a killed run could still be on its way to another program.
        assert GRACE_S <= time.monotonic() - started < GRACE_S + 1
        started = time.monotonic()
        with pytest.raises(OpskitError, match="another run"), flock(path, wait_s=GRACE_S + 0.5):
            pass
        assert time.monotonic() - started >= GRACE_S + 0.5
    order: List[str] = []

    def second() -> None:
        with flock(path, wait_s=5):
            order.append("second")

    with flock(path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_lock_dies_with_its_process_but_not_with_its_children(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    text = (
        "import fcntl, os, subprocess, sys\n"
        "handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(handle, fcntl.LOCK_EX)\n"
        "child = subprocess.Popen(['sleep', '30'])\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", text, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        with pytest.raises(OpskitError), flock(path):
            pass
        holder.kill()
        holder.wait()
        try:
            with flock(path, wait_s=5):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


# redaction ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("connect postgres://app:s3cret@db/x", "s3cret"),
        ('{"api_key": "abc123", "a": 1}', "abc123"),
        ("DB_PASSWORD=abc123 rest", "abc123"),
        ("Authorization: Bearer abc.def", "abc.def"),
        ("the token: abc123;", "abc123"),
    ],
)
def test_what_looks_like_a_secret(text: str, hidden: str) -> None:
    found = redact(text)
    assert hidden not in found
    assert HIDDEN in found


def test_given_secrets_longest_first() -> None:
    assert redact("x abcdef abc y", ["abc", "abcdef", ""]) == f"x {HIDDEN} {HIDDEN} y"
    for text in ("nothing here", "/a/path:with@signs", "12:30:01 token expired", "http://host:80/x"):
        assert redact(text) == text


# errors, time, plans --------------------------------------------------------------------------------


def test_an_error_says_what_where_and_what_next() -> None:
    assert str(OpskitError("it failed", "/a", "Mend it")) == "/a: it failed. Mend it."
    assert str(OpskitError("it failed")) == "it failed."
    assert OpskitError("it failed", "/a").where == "/a"


def test_times() -> None:
    moment = parse_rfc3339("2026-11-23T02:00:00Z")
    assert rfc3339(moment) == "2026-11-23T02:00:00Z"
    for text in ("2026-11-23", "2026-11-23T02:00:00+01:00", "now"):
        with pytest.raises(ValueError, match=r"match|remains"):
            parse_rfc3339(text)
    clock = Clock()
    assert clock.now().utcoffset().total_seconds() == 0  # type: ignore[union-attr]
    assert clock.monotonic() <= clock.monotonic()
    assert len({clock.token() for dummy in range(50)}) > 40
    assert all(len(clock.token()) == 4 for dummy in range(5))


def test_a_plan() -> None:
    assert not Plan("none").changes
    plan = Plan("none")
    assert plan.size == 0
    plan.add("store shard", "a", "new", 5)
    plan.add("publish set", "<new>", "first")
    assert plan.changes
    assert plan.size == 5
    assert [step.as_dict() for step in plan] == [
        {"step": "store shard", "target": "a", "reason": "new", "bytes": 5},
        {"step": "publish set", "target": "<new>", "reason": "first"},
    ]


class Recorded(Operation):
    """Writes down which parts of it were called."""

    def __init__(self, steps: int, good: bool = True) -> None:
        self.steps = steps
        self.good = good
        self.calls: List[str] = []

    def exclusive(self) -> Any:
        self.calls.append("exclusive")
        return super().exclusive()

    def plan(self) -> Plan:
        self.calls.append("plan")
        plan = Plan("made" if self.steps else "none")
        for number in range(self.steps):
            plan.add("make", str(number), "it is missing")
        return plan

    def apply(self, plan: Plan) -> None:
        self.calls.append(f"apply {len(plan.steps)}")

    def verify(self) -> List[Check]:
        self.calls.append("verify")
        return [Check("it is there", self.good, "seen")]

    def note(self) -> None:
        self.calls.append("note")

    def result(self) -> Dict[str, Any]:
        return {"more": 1}


@pytest.mark.parametrize(
    ("steps", "check_mode", "calls"),
    [
        (2, True, ["plan"]),
        (0, True, ["plan"]),
        (0, False, ["exclusive", "plan", "note"]),
        (2, False, ["exclusive", "plan", "apply 2", "verify", "note"]),
    ],
)
def test_the_course_of_an_operation(steps: int, check_mode: bool, calls: List[str]) -> None:
    operation = Recorded(steps)
    result = carry_out(operation, check_mode, Clock())
    assert operation.calls == calls
    assert result["changed"] == bool(steps)
    assert result["action"] == ("made" if steps else "none")
    assert len(result["plan"]) == steps
    assert result["checks"] == [{"check": "it is there", "ok": True, "detail": "seen"}] * ("verify" in calls)
    assert result["more"] == 1
    assert result["duration_s"] >= 0
    assert operation.failure() == ""


def test_a_check_that_fails_fails_the_operation() -> None:
    with pytest.raises(OpskitError, match=r"verification after the change: it is there: seen.*run it again"):
        carry_out(Recorded(1, good=False), False, Clock())
