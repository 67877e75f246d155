# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.files import hash_file
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import carry_out
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.database import SqliteDatabase
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.errors import SqliteError
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.restore import RestoreSnapshot
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.snapshots import SnapshotDirectory, TakeSnapshot
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._sqlite.databases import (
    add_rows_without_checkpoint,
    count_rows,
    each_kill,
    flip_bit,
    in_child,
    listing,
    make_database,
)

NEW_ROWS = 20
OLD_ROWS = 520


class Place:
    """A snapshot with 20 rows, and a database with 520 of which 500 are in the -wal alone."""

    def __init__(self, root: Path, name: str = "app.db") -> None:
        self.folder = str(root / "data")
        self.directory = str(root / "backup")
        os.mkdir(self.folder)
        self.path = os.path.join(self.folder, name)
        make_database(self.path, NEW_ROWS, "wal")
        os.chmod(self.path, 0o640)
        self.database = SqliteDatabase("app", self.path, 1)
        self.snapshots = SnapshotDirectory(self.directory, "app")
        taken = carry_out(TakeSnapshot(self.database, self.snapshots, 7, False, 0, Clock()), False, Clock())
        self.snapshot = taken["snapshot"]
        add_rows_without_checkpoint(self.path, OLD_ROWS - NEW_ROWS)
        Path(self.path + "-journal").touch()

    def restore(self, check_mode: bool = False, snapshot: str = "latest") -> Dict[str, Any]:
        operation = RestoreSnapshot(self.database, self.snapshots, snapshot, 0, Clock())
        return carry_out(operation, check_mode, Clock())

    def asides(self) -> List[str]:
        name = os.path.basename(self.path) + ".before-"
        return [os.path.join(self.folder, one) for one in listing(self.folder) if one.startswith(name)]

    def is_new(self) -> bool:
        names = [os.path.basename(self.path)] + [os.path.basename(one) for one in self.asides()]
        return listing(self.folder) == sorted(names) and hash_file(self.path) == self.snapshot["sha256"]


@pytest.fixture(name="place")
def fixture_place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def steps(result: Dict[str, Any]) -> List[Tuple[str, str, str]]:
    return [(step["step"], step["target"], step["reason"]) for step in result["plan"]]


def tree(folder: str) -> Dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_check_run_check_run(place: Place) -> None:
    before = tree(place.folder)
    first_check = place.restore(check_mode=True)
    assert tree(place.folder) == before
    first = place.restore()
    after = tree(place.folder)
    second_check = place.restore(check_mode=True)
    second = place.restore()
    assert [one["changed"] for one in (first_check, first, second_check, second)] == [True, True, False, False]
    assert steps(first_check) == steps(first)
    assert [step[0] for step in steps(first)] == ["stage snapshot", "set aside", "put in place"]
    assert steps(second_check) == steps(second) == []
    assert tree(place.folder) == after
    assert place.is_new()
    assert all(check["ok"] for check in first["checks"])
    assert count_rows(place.path) == NEW_ROWS
    assert stat.S_IMODE(os.stat(place.path).st_mode) == 0o640
    assert first["aside"] == place.asides()[0]
    assert count_rows(os.path.join(first["aside"], "app.db")) == OLD_ROWS


def test_stale_wal_would_have_undone_the_restore(place: Place) -> None:
    """What the room is there for: the same restore by a plain copy gives the old rows."""
    shutil.copyfile(place.snapshot["path"], place.path)
    assert count_rows(place.path) == OLD_ROWS


def test_identical_main_file_with_a_wal_is_not_in_place(place: Place) -> None:
    place.restore()
    add_rows_without_checkpoint(place.path, 5)
    assert hash_file(place.path) == place.snapshot["sha256"]
    assert place.restore()["changed"]
    assert count_rows(place.path) == NEW_ROWS


def test_missing_database_gets_the_ownership_of_the_snapshot(place: Place) -> None:
    for path in place.database.files():
        if os.path.exists(path):
            os.unlink(path)
    result = place.restore()
    assert [step[0] for step in steps(result)] == ["stage snapshot", "put in place"]
    assert result["aside"] == ""
    assert place.is_new()
    assert not place.asides()
    assert stat.S_IMODE(os.stat(place.path).st_mode) == 0o640


def test_stray_wal_of_a_missing_database_is_set_aside(place: Place) -> None:
    os.unlink(place.path)
    place.restore()
    assert count_rows(place.path) == NEW_ROWS
    assert "app.db-wal" in listing(place.asides()[0])


def test_owner_and_extended_attributes_are_kept(place: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    os.chown(place.path, 1234, 4321)
    os.setxattr(place.path, "user.note", b"kept")
    place.restore()
    state = os.stat(place.path)
    assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (1234, 4321, 0o640)
    assert os.getxattr(place.path, "user.note") == b"kept"


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_database_in_use_is_refused(place: Place, suffix: str) -> None:
    before = tree(place.folder)
    code = "import sys; f = open(sys.argv[1], 'rb'); print(1, flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code, place.path + suffix], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline()
        planned = place.restore(check_mode=True)
        assert [(one["pid"], one["path"]) for one in planned["holders"]] == [(holder.pid, place.path + suffix)]
        with pytest.raises(SqliteError, match=f"in use: .*pid {holder.pid}.*nothing was touched"):
            place.restore()
        assert tree(place.folder) == before
    finally:
        holder.communicate()
    assert place.restore()["changed"]


def test_damaged_snapshot_is_refused_before_anything_is_touched(place: Place) -> None:
    before = tree(place.folder)
    flip_bit(place.snapshot["path"], 4321)
    for check_mode in (True, False):
        with pytest.raises(SqliteError, match=r"the snapshot is damaged .sha256.*nothing was touched"):
            place.restore(check_mode=check_mode)
    assert tree(place.folder) == before


def test_what_is_no_snapshot_is_refused(place: Place) -> None:
    before = tree(place.folder)
    with pytest.raises(SqliteError, match=f"there is no snapshot other.*{place.snapshot['id']}"):
        place.restore(snapshot="other")
    os.unlink(place.snapshot["path"].replace(".sqlite", ".json"))
    with pytest.raises(SqliteError, match="there is no whole snapshot named app"):
        place.restore()
    shutil.rmtree(place.directory)
    with pytest.raises(SqliteError, match="there is no such folder of snapshots"):
        place.restore()
    assert tree(place.folder) == before
    assert not os.path.exists(place.directory)


def test_earlier_snapshot_by_its_id(place: Place) -> None:
    carry_out(TakeSnapshot(place.database, place.snapshots, 7, False, 0, Clock()), False, Clock())
    assert count_rows(place.restore()["snapshot"]["path"]) == OLD_ROWS
    place.restore(snapshot=place.snapshot["id"])
    assert count_rows(place.path) == NEW_ROWS
    assert len(place.asides()) == 2


def test_killed_anywhere(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.folder, str(tmp_path / "copy"))

    def prepare() -> None:
        shutil.rmtree(place.folder)
        shutil.copytree(str(tmp_path / "copy"), place.folder)

    kills = interrupted = 0
    for _number in each_kill(place.restore, prepare):
        kills += 1
        interrupted += os.path.exists(place.snapshots.restore_journal)
        # Never the new database beside a file of the old one.
        if os.path.exists(place.path) and hash_file(place.path) == place.snapshot["sha256"]:
            assert [path for path in place.database.files()[1:] if os.path.exists(path)] == []
        # Never an old main file that has lost its -wal.
        elif os.path.exists(place.path):
            assert os.path.getsize(place.path + "-wal") > 0
        # Killed in the verification, when all was done.
        complete = place.is_new() and not os.path.exists(place.snapshots.restore_journal)
        planned = place.restore(check_mode=True)
        done = place.restore()
        assert steps(planned) == steps(done)
        assert done["changed"] != complete
        assert place.is_new()
        assert len(place.asides()) == 1
        assert count_rows(os.path.join(place.asides()[0], "app.db")) == OLD_ROWS
        assert not os.path.exists(place.snapshots.restore_journal)
        assert not place.restore()["changed"]
    assert kills > 8
    assert interrupted >= 5


def interrupt(place: Place, number: int) -> None:
    """Kill a restore once the old main file has left."""
    folder = place.folder + ".copy"
    shutil.copytree(place.folder, folder)

    def prepare() -> None:
        shutil.rmtree(place.folder)
        shutil.copytree(folder, place.folder)

    for _number in each_kill(place.restore, prepare):
        if os.path.exists(place.snapshots.restore_journal) and not os.path.exists(place.path):
            number -= 1
            if number == 0:
                return
    raise AssertionError("the main file never was away")


def test_lost_staged_file_rolls_back_and_restores_anew(place: Place) -> None:
    interrupt(place, 2)
    os.unlink(place.folder + "/.app.db.restoring")
    planned = place.restore(check_mode=True)
    result = place.restore()
    assert steps(planned) == steps(result)
    assert [step[0] for step in steps(result)] == ["roll back restore", "stage snapshot", "set aside", "put in place"]
    assert place.is_new()
    assert len(place.asides()) == 1
    assert count_rows(os.path.join(place.asides()[0], "app.db")) == OLD_ROWS


def test_lost_staged_file_and_lost_snapshot_keep_the_old_database_recoverable(place: Place) -> None:
    interrupt(place, 2)
    before = tree(place.folder)
    flip_bit(place.folder + "/.app.db.restoring", 100)
    flip_bit(place.snapshot["path"], 100)
    with pytest.raises(SqliteError, match="the snapshot is damaged"):
        place.restore()
    assert set(tree(place.folder)) == set(before)


def test_new_database_made_during_an_interruption_is_kept_aside(place: Place) -> None:
    interrupt(place, 4)
    make_database(place.path, 3, "delete")
    place.restore()
    assert place.is_new()
    aside = place.asides()[0]
    assert count_rows(os.path.join(aside, "app.db.1")) == 3
    assert count_rows(os.path.join(aside, "app.db")) == OLD_ROWS


def test_snapshot_during_an_interrupted_restore_is_refused(place: Place) -> None:
    interrupt(place, 1)
    make_database(place.path, 3, "delete")
    with pytest.raises(SqliteError, match=r"a restore of this database was interrupted.*state=restored"):
        carry_out(TakeSnapshot(place.database, place.snapshots, 7, True, 0, Clock()), False, Clock())


@pytest.mark.parametrize("name", ["with space.db", "new\nline.db", "what?x=1#y.db", "50%25%.db"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    place = Place(tmp_path, name)
    assert place.restore()["changed"]
    assert place.is_new()
    assert not place.restore()["changed"]


def test_folder_in_place_of_the_database_is_refused(place: Place) -> None:
    os.unlink(place.path)
    os.mkdir(place.path)
    with pytest.raises(SqliteError, match="not a regular file"):
        place.restore()


def test_full_disk_leaves_the_old_database(place: Place) -> None:
    before = tree(place.folder)

    def limited() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        with pytest.raises(OSError, match="File too large"):
            place.restore()

    assert in_child(limited) == 0
    assert tree(place.folder) == before
