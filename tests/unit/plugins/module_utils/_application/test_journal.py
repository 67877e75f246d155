# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._application import journal
from ansible_collections.opskit.runbooks.plugins.module_utils._application.journal import JournalEntry, journal_entry
from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import carry_out


class In2031(Clock):
    def now(self) -> datetime:
        return datetime(2031, 2, 3, 4, 5, 6, tzinfo=timezone.utc)


def lines(path: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def append(path: Path, **entry: Any) -> Dict[str, Any]:
    return carry_out(JournalEntry(str(path), entry, In2031()), False, In2031())


def test_appends_one_line_for_each_run(tmp_path: Path) -> None:
    path = tmp_path / "state" / "gateway" / "journal.jsonl"
    first = append(path, runbook="backup", outcome="ok")
    append(path, runbook="restore", outcome="failed")
    assert first["changed"] is True
    assert first["checks"] == [{"check": "line read back", "ok": True, "detail": "71 bytes at 0"}]
    assert lines(path) == [
        {"time": "2031-02-03T04:05:06Z", "runbook": "backup", "outcome": "ok"},
        {"time": "2031-02-03T04:05:06Z", "runbook": "restore", "outcome": "failed"},
    ]


def test_check_mode_plans_the_same_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    planned = carry_out(JournalEntry(str(path), {"runbook": "backup"}, In2031()), True, In2031())
    assert not path.exists()
    done = append(path, runbook="backup")
    assert planned["plan"] == done["plan"]
    assert planned["changed"] is done["changed"] is True


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "journal.jsonl"
    before = os.umask(0)
    try:
        append(path, a=1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    append(path, a=2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_line_that_was_torn_off_keeps_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"time": "2031-02-0')
    append(path, runbook="backup")
    torn, whole = path.read_text().splitlines()
    assert torn == '{"time": "2031-02-0'
    assert json.loads(whole)["runbook"] == "backup"


def test_line_that_could_not_be_written_to_its_end_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    append(path, runbook="backup")
    before = path.read_bytes()

    def half(handle: int, data: bytes) -> None:
        os.write(handle, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(journal, "_write_all", half)
    with pytest.raises(OSError, match="No space left"):
        append(path, runbook="restore")
    assert path.read_bytes() == before


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    threads = [threading.Thread(target=append, args=(path,), kwargs={"number": n, "pad": "x" * 9000}) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["number"] for line in lines(path)) == list(range(16))


def test_waits_for_another_writer(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append(path, number=0)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); "
            "print('held', flush=True); time.sleep(0.5); f.write('{\"number\": 1}\\n'); f.flush()",
            str(path),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    append(path, number=2)
    holder.stdout.close()
    holder.wait()
    assert [line["number"] for line in lines(path)] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_refuses_what_is_not_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "journal.jsonl"
    target = tmp_path / "target"
    target.write_text("untouched")
    if kind == "link":
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(OpskitError, match="regular file"):
        append(path, a=1)
    assert target.read_text() == "untouched"


def test_refuses_a_relative_path() -> None:
    with pytest.raises(OpskitError, match="absolute"):
        JournalEntry("journal.jsonl", {}, In2031())


def test_secrets_are_hidden_and_the_line_stays_json(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append(
        path,
        error='connect to postgresql://me:hunter2@db/x failed, password="hun ter3"',
        details={"api_key": 'hunter4" }', "db_password": 55555, "tokens": {"used": 7}, "list": [{"secret": ["hunter6"]}]},
    )
    text = path.read_text()
    for secret in ("hunter2", "hunter4", "55555", "hunter6"):
        assert secret not in text
    (entry,) = lines(path)
    assert entry["details"]["tokens"] == {"used": 7}


def test_names_that_are_not_text_stay_one_ascii_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    append(path, reason="caf\u00e9\u2028 \udcff\nnew line")
    assert path.read_bytes().count(b"\n") == 1
    assert lines(path)[0]["reason"] == "caf\u00e9\u2028 \udcff\nnew line"


def test_empty_options_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    params = {"path": str(path), "runbook": "backup", "operator": "", "details": {}, "error": ""}
    assert carry_out(journal_entry(params, In2031()), False, In2031())["entry"] == {
        "time": "2031-02-03T04:05:06Z",
        "runbook": "backup",
    }
