# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._application.lease import application_lease
from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import carry_out

LIMIT_S = 600


class At(Clock):
    """A clock that stands still."""

    def __init__(self, after_s: float = 0) -> None:
        self.time = datetime(2031, 2, 3, 4, 5, 6, tzinfo=timezone.utc) + timedelta(seconds=after_s)

    def now(self) -> datetime:
        return self.time


def lease(path: Path, after_s: float = 0, check: bool = False, **options: Any) -> Dict[str, Any]:
    """Run the module's operation as alice's backup "first" would, but for the options."""
    params = {
        "path": str(path),
        "runbook": "backup",
        "run": "first",
        "operator": "alice",
        "controller": "admin1",
        "state": "taken",
        "seconds": LIMIT_S,
        "wait": 0,
        "steal": False,
        "locks": [],
    }
    params.update(options)
    clock = At(after_s)
    return carry_out(application_lease(params, clock), check, clock)


def read(path: Path) -> Dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="ascii")))


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Let another process hold a lock."""
    script = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield
        assert holder.stdin is not None
        holder.stdin.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "lease.json"


def test_takes_what_nobody_holds(path: Path) -> None:
    before = os.umask(0)
    try:
        done = lease(path)
    finally:
        os.umask(before)
    assert read(path) == {
        "runbook": "backup",
        "operator": "alice",
        "run": "first",
        "since": "2031-02-03T04:05:06Z",
        "expires": "2031-02-03T04:15:06Z",
        "seconds": LIMIT_S,
        "controller": "admin1",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert (done["changed"], done["taken_over_from"], done["reason"]) == (True, {}, "nobody is at work")
    assert done["holder"] == {key: read(path)[key] for key in ("runbook", "operator", "since", "expires", "controller")}


def test_check_mode_plans_the_same_and_touches_nothing(path: Path) -> None:
    planned = lease(path, check=True)
    assert not path.parent.exists()
    assert planned["plan"] == lease(path)["plan"]
    before = {name: name.stat().st_mtime_ns for name in path.parent.iterdir()}
    content = path.read_bytes()
    for options in ({}, {"runbook": "restore", "run": "second", "steal": True}, {"state": "released"}):
        assert lease(path, check=True, **options)["changed"] is True
    assert ({name: name.stat().st_mtime_ns for name in path.parent.iterdir()}, path.read_bytes()) == (before, content)


@pytest.mark.parametrize("state", ["taken", "renewed"])
def test_the_same_run_renews(path: Path, state: str) -> None:
    lease(path)
    done = lease(path, after_s=LIMIT_S + 1, state=state, locks=[str(path)])
    assert done["plan"] == [{"step": "renew lease", "target": str(path), "reason": "it is held by this run"}]
    assert (read(path)["since"], read(path)["expires"]) == ("2031-02-03T04:05:06Z", "2031-02-03T04:25:07Z")
    assert done["taken_over_from"] == {}


def test_the_same_runbook_takes_over_at_once_and_says_from_whom(path: Path) -> None:
    lease(path)
    done = lease(path, after_s=1, run="second", operator="bob")
    assert (done["taken_over_from"]["operator"], done["holder"]["operator"]) == ("alice", "bob")
    assert done["reason"] == (
        "taken over from backup by alice on admin1, since 2031-02-03T04:05:06Z: the same runbook, and nothing of it is at work"
    )
    assert read(path)["run"] == "second"


def test_another_runbook_is_told_who_since_when_until_when_and_what_to_do(path: Path) -> None:
    lease(path)
    content = path.read_bytes()
    for check in (True, False):
        with pytest.raises(OpskitError) as error:
            lease(path, after_s=LIMIT_S - 1, runbook="restore", run="second", check=check)
        assert "backup by alice on admin1, since 2031-02-03T04:05:06Z, until 2031-02-03T04:15:06Z" in str(error.value)
        assert "-e opskit_lease_steal=true" in str(error.value)
    assert path.read_bytes() == content


def test_another_runbook_takes_over_what_is_stolen_or_over(path: Path) -> None:
    lease(path)
    stolen = lease(path, after_s=1, runbook="restore", run="second", steal=True)
    assert stolen["reason"].endswith("stolen, as was asked for")
    late = lease(path, after_s=1 + LIMIT_S, run="third")
    assert late["reason"].endswith("its time limit was over at 2031-02-03T04:15:07Z")
    assert late["taken_over_from"]["runbook"] == "restore"


@pytest.mark.parametrize(
    ("options", "after_s"), [({}, 1), ({"runbook": "restore", "steal": True}, 1), ({"runbook": "restore"}, LIMIT_S + 1)]
)
def test_nothing_is_taken_over_while_an_engine_is_at_work(path: Path, tmp_path: Path, options: Dict[str, Any], after_s: float) -> None:
    lease(path)
    free, lock, missing = (tmp_path / name for name in ("free", "lock", "missing"))
    free.touch()
    locks = [str(name) for name in (free, missing, lock)]
    with held(lock):
        with pytest.raises(OpskitError, match=f"^{lock}: its work still goes on: backup by alice"):
            lease(path, after_s=after_s, run="second", locks=locks, **options)
        assert read(path)["run"] == "first"
        lease(path, after_s=after_s, locks=locks)  # its own
    lease(path, after_s=after_s + LIMIT_S, run="second", locks=locks, **options)
    assert not missing.exists()
    with held(lock):  # which was not left held
        pass


def test_waits_for_its_release(path: Path) -> None:
    lease(path)
    timer = threading.Timer(1.2, lease, args=(path,), kwargs={"state": "released"})
    timer.start()
    started = time.monotonic()
    done = lease(path, runbook="restore", run="second", wait=20)
    assert 1 < time.monotonic() - started < 10
    assert done["reason"] == "nobody is at work"
    timer.join()
    with pytest.raises(OpskitError, match="another runbook is at work"):
        lease(path, wait=1)


def test_the_one_waited_for_can_renew(path: Path) -> None:
    lease(path)
    found: List[str] = []

    def wait() -> None:
        with pytest.raises(OpskitError) as error:
            lease(path, runbook="restore", run="second", wait=2)
        found.append(error.value.what)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    started = time.monotonic()
    lease(path, after_s=30, state="renewed")
    assert time.monotonic() - started < 1.5
    thread.join()
    assert "until 2031-02-03T04:15:36Z" in found[0]


def test_renewing_what_was_taken_over_fails(path: Path) -> None:
    lease(path)
    lease(path, run="second", operator="bob")
    with pytest.raises(OpskitError, match="taken the lease over meanwhile: backup by bob"):
        lease(path, state="renewed", wait=60)
    lease(path, run="second", state="released")
    with pytest.raises(OpskitError, match="taken over and released by somebody else"):
        lease(path, state="renewed")
    assert not path.exists()


def test_releases_its_own_alone(path: Path) -> None:
    lease(path)
    lease(path, run="second", operator="bob")
    content = path.read_bytes()
    late = lease(path, state="released")
    assert (late["changed"], late["reason"]) == (False, "it was taken over meanwhile: backup by bob on admin1, since 2031-02-03T04:05:06Z")
    assert path.read_bytes() == content
    done = lease(path, run="second", state="released")
    assert (done["changed"], done["holder"], path.exists()) == (True, {}, False)
    again = lease(path, run="second", state="released")
    assert (again["changed"], again["reason"]) == (False, "there is none")


@pytest.mark.parametrize(("back_s", "is_over"), [(30, False), (120, True), (10 * 365 * 86400, True)])
def test_a_clock_that_is_set_back_makes_no_lease_last(path: Path, back_s: int, is_over: bool) -> None:
    lease(path)
    if is_over:
        assert lease(path, after_s=-back_s, runbook="restore", run="second")["taken_over_from"]["operator"] == "alice"
    else:
        with pytest.raises(OpskitError, match="another runbook is at work"):
            lease(path, after_s=-back_s, runbook="restore", run="second")


DAMAGED = {
    "empty": b"",
    "no text": b"\xff\xfe",
    "cut off": b'{"runbook": "backup", "oper',
    "list": b"[]",
    "field missing": b'{"runbook": "backup"}',
    "no time": b'{"runbook": "a", "operator": "", "run": "x", "since": "today", "expires": "never", "seconds": 5, "controller": ""}',
    "no number": b'{"runbook": "a", "operator": "", "run": "x", "since": "", "expires": "", "seconds": true, "controller": ""}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_what_is_damaged_is_said_and_taken_only_when_it_is_old_or_stolen(path: Path, content: bytes) -> None:
    path.parent.mkdir()

    def write(after_s: float) -> None:
        path.write_bytes(content)
        moment = At(after_s).now().timestamp()
        os.utime(path, (moment, moment))

    write(0)
    with pytest.raises(OpskitError, match=r"the lease is damaged \(.+\), so nobody can tell who is at work"):
        lease(path, after_s=LIMIT_S - 1)
    assert path.read_bytes() == content
    with pytest.raises(OpskitError, match="the lease is damaged"):
        lease(path, state="renewed")
    assert lease(path, state="released")["reason"].startswith("what is there now is damaged")
    assert path.read_bytes() == content

    done = lease(path, steal=True)
    assert done["warnings_"] == [f"{path}: {done['reason']}"]
    assert done["reason"].startswith("the lease was damaged (")
    for written_s in (-LIMIT_S, 10 * LIMIT_S):
        write(written_s)
        assert lease(path)["holder"]["operator"] == "alice"


def test_what_is_damaged_is_not_taken_while_an_engine_is_at_work(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    lock = tmp_path / "lock"
    with held(lock), pytest.raises(OpskitError, match=f"^{lock}: the lease is damaged"):
        lease(path, steal=True, locks=[str(lock)])
    assert lease(path, steal=True, locks=[str(lock)])["holder"]["operator"] == "alice"


def test_of_many_takers_one_wins(path: Path) -> None:
    """Each is another runbook, in a process of its own."""
    script = (
        "import sys\n"
        "from ansible_collections.opskit.runbooks.plugins.module_utils._application.lease import application_lease\n"
        "from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock\n"
        "from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError\n"
        "from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import carry_out\n"
        "name = sys.argv[2]\n"
        "params = dict(path=sys.argv[1], runbook=name, run=name, operator='', controller='', state='taken', seconds=60, wait=0,\n"
        "              steal=False, locks=[])\n"
        "sys.stdin.read()\n"
        "try:\n"
        "    carry_out(application_lease(params, Clock()), False, Clock())\n"
        "except OpskitError as error:\n"
        "    sys.exit(3 if 'another runbook is at work' in error.what else str(error))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    takers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), f"runbook-{number}"], stdin=subprocess.PIPE, env=env)
        for number in range(8)
    ]
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.close()
    results = [taker.wait(60) for taker in takers]
    assert sorted(results) == [0, 3, 3, 3, 3, 3, 3, 3]
    assert read(path)["run"] == f"runbook-{results.index(0)}"


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_refuses_what_is_not_a_file(path: Path, kind: str) -> None:
    path.parent.mkdir()
    target = path.parent / "target"
    target.write_text("untouched")
    if kind == "link":
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(OpskitError, match="regular file"):
        lease(path, steal=True)
    assert target.read_text() == "untouched"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"locks": ["lock"]}, "absolute"),
        ({"seconds": 0}, "no time limit"),
        ({"seconds": 1 << 31}, "no time limit"),
        ({"run": ""}, "need a name"),
        ({"runbook": ""}, "need a name"),
    ],
)
def test_refuses_bad_options(path: Path, options: Dict[str, Any], says: str) -> None:
    with pytest.raises(OpskitError, match=says):
        lease(path, **options)
    assert not path.parent.exists()


def test_refuses_a_relative_path() -> None:
    with pytest.raises(OpskitError, match="absolute"):
        lease(Path("lease.json"))
