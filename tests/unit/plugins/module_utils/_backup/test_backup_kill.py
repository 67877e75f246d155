# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGKILL in place of each change that a backup and a restore make; `make soak` tries all of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, List

import pytest

from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import (
    SOAK,
    App,
    add_rows,
    killed_at,
    number_of_changes,
    rows_of,
)


def points(total: int, least: int = 14) -> List[int]:
    """All points, or some that are spread over the run with the last ones among them."""
    assert total > least, "the hook saw next to nothing"
    if SOAK:
        return list(range(1, total + 1))
    return sorted({1 + round(number * (total - 1) / (least - 1)) for number in range(least)} | {total - 1})


def copy_of(app: App, top: Path) -> App:
    """Return the same application in a place of its own; the store moves along, as it may."""
    subprocess_copy(app.top, str(top))
    return App(str(top))


def subprocess_copy(source: str, target: str) -> None:
    import subprocess

    subprocess.run(["cp", "-a", source, target], check=True)


def edit(app: App) -> None:
    app.write("config/gateway.toml", "level = 2\n", 0o640)
    app.write("data/uploads/new.txt", "new\n" * 500)
    app.write("data/logs/app.log", "live\n")
    os.unlink(app.at("projects/b/link"))
    app.write(".env", "TOKEN=2\n", 0o600)
    add_rows(app.at("data/app.db"), 10)


def test_killed_backup(tmp_path: Path) -> None:
    first = App(str(tmp_path / "first"))
    os.mkdir(first.top)
    first.build()
    saved = first.live()
    old = first.backup()["set"]["id"]
    saved["data"][b""] = first.live()["data"][b""]
    edit(first)
    counted = copy_of(first, tmp_path / "counted")
    total = number_of_changes(counted.backup)
    unfinished = 0
    for number in points(total):
        app = copy_of(first, tmp_path / f"killed {number}")
        wanted = app.live()
        killed = killed_at(number, app.backup)
        sets = [one["id"] for one in app.info()["sets"]]
        assert sets[-1] == old
        assert app.verify(set=old, check=True)["failure"] == ""
        unfinished += len(sets) == 1
        again = app.backup()
        # One more run of the same call: a verified set of what is there now, nothing left over.
        assert app.leftovers() == []
        newest = app.info()["sets"][0]
        assert newest["verified"] == "content", (number, killed, again["reason"])
        assert newest["id"] != old
        assert app.verify(set="all", check=True)["failure"] == ""
        wanted["data"][b""] = app.live()["data"][b""]
        app.destroy()
        app.restore()
        assert app.live() == wanted
        assert rows_of(app.at("data/app.db")) == 210
        app.restore(set=old)
        saved["data"][b""] = app.live()["data"][b""]
        assert app.live() == saved
        shutil.rmtree(app.top)
    assert unfinished > 5


def test_killed_first_backup(tmp_path: Path) -> None:
    """Also a store that was being made is no obstacle."""
    first = App(str(tmp_path / "first"))
    os.mkdir(first.top)
    first.build()
    total = number_of_changes(copy_of(first, tmp_path / "counted").backup)
    chosen = points(total, 6) if not SOAK else points(total)
    # The first forty make the store itself.
    for number in sorted({*chosen, *range(1, 40, 1 if SOAK else 4)}):
        app = copy_of(first, tmp_path / f"killed {number}")
        killed_at(number, app.backup)
        app.backup()
        assert app.leftovers() == []
        assert app.info()["sets"][0]["verified"] == "content"
        shutil.rmtree(app.top)


@pytest.mark.parametrize("state", ["restored", "rolled_back"])
def test_killed_restore(tmp_path: Path, state: str) -> None:
    """Before the same call is made again each root is all of one state; after it all of them are the wanted one."""
    first = App(str(tmp_path / "first"))
    os.mkdir(first.top)
    first.build()
    first.backup()
    saved = first.live()
    edit(first)
    edited = first.live()
    if state == "rolled_back":
        first.restore()
    states = {"restored": saved, "rolled_back": edited}
    logs = Path(first.at("data/logs/app.log")).read_bytes()

    def call(app: App) -> Any:
        return app.restore(state=state)

    counted = copy_of(first, tmp_path / "counted")
    rebase(counted)
    total = number_of_changes(lambda: call(counted))
    half = 0
    for number in points(total):
        app = copy_of(first, tmp_path / f"killed {number}")
        rebase(app)
        killed_at(number, lambda app=app: call(app))  # type: ignore[misc]
        now = app.live()
        for name in now:
            # Where the file system exchanges, a root is never in between. A folder that a log left has another time.
            for known in states.values():
                known["data"][b""][3] = now["data"].get(b"", [0] * 4)[3]
            assert now[name] in [known[name] for known in states.values()], (number, name)
        half += now not in list(states.values())
        call(app)
        after = app.live()
        states[state]["data"][b""][3] = after["data"][b""][3]
        assert after == states[state], number
        assert Path(app.at("data/logs/app.log")).read_bytes() == logs
        assert not call(app)["changed"]
        app.restore(state="purged")
        assert not os.path.exists(app.at(".opskit-restore"))
        assert app.leftovers() == []
        shutil.rmtree(app.top)


def rebase(app: App) -> None:
    """Make the record of a restore name the copy's own paths and inodes, as if it had been made there."""
    import json

    path = os.path.join(app.state_dir, "restore.json")
    if not os.path.exists(path):
        return
    value = json.loads(Path(path).read_text())
    first = os.path.join(os.path.dirname(app.top), "first")
    for one in [*value["stages"], *value["steps"]]:
        for key in ("path", "live", "staged"):
            if key in one:
                one[key] = one[key].replace(first, app.top)
        if "live_inode" in one:
            # The record holds what was there before; now it is the other way round.
            one["live_inode"], one["staged_inode"] = os.lstat(one["staged"]).st_ino, os.lstat(one["live"]).st_ino
    Path(path).write_text(json.dumps(value))
