# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from ansible_collections.opskit.runbooks.plugins.module_utils._core.processes import holders

HOLD = "import os, sys; handle = os.open(sys.argv[1], os.O_RDONLY); print(1, flush=True); sys.stdin.read()"


@contextmanager
def holding(path: str) -> Iterator[int]:
    """Let another process have a path open; yields its pid."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.communicate()


def test_holder_of_a_file(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("free", "held\n\udcff", "absent")]
    for path in paths[:2]:
        Path(path).touch()
    assert holders(paths) == []
    with holding(paths[1]) as pid:
        found = holders(paths)
        assert [(one.pid, one.path) for one in found] == [(pid, paths[1])]
        assert found[0].command == Path(f"/proc/{pid}/comm").read_text().strip()
        assert str(pid) in str(found[0])
        assert holders(paths[:1]) == []
    assert holders(paths) == []


def test_another_name_does_not_hide_a_holder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.link(str(tmp_path / "file"), str(tmp_path / "other"))
    with holding(str(tmp_path / "other")) as pid:
        assert [one.pid for one in holders([str(tmp_path / "file")])] == [pid]


def test_holders_below_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    inside, outside = tmp_path / "data" / "deep" / "file", tmp_path / "outside"
    inside.touch()
    outside.touch()
    (tmp_path / "data" / "link").symlink_to(outside)
    folder = str(tmp_path / "data")
    with holding(str(outside)):
        assert holders(below=[folder]) == []
    for path in (inside, inside.parent):
        with holding(str(path)) as pid:
            assert [(one.pid, one.path) for one in holders(below=[folder])] == [(pid, str(path))]


def test_own_process_is_no_holder(tmp_path: Path) -> None:
    with open(str(tmp_path / "file"), "wb"):
        assert holders([str(tmp_path / "file")]) == []
    assert holders([]) == []
