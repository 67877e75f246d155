# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.lock import flock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import carry_out
from ansible_collections.opskit.runbooks.plugins.module_utils._core.snapshots import Snapshot, surplus
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.database import SqliteDatabase
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.errors import SqliteError
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.snapshots import (
    SnapshotDirectory,
    TakeSnapshot,
    default_name,
    require_path,
)
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._sqlite.databases import (
    count_rows,
    each_kill,
    flip_bit,
    listing,
    make_database,
)

CLOCK = Clock()


class Place:
    """A database and its folder of snapshots."""

    def __init__(self, root: Path) -> None:
        (root / "data").mkdir(parents=True)
        self.path = str(root / "data" / "app.db")
        self.directory = str(root / "backup" / "sqlite")
        make_database(self.path, 20, "wal")

    def take(self, check_mode: bool = False, keep: int = 7, force: bool = False, clock: Clock = CLOCK) -> Dict[str, Any]:
        database = SqliteDatabase("app", self.path, 1)
        directory = SnapshotDirectory(self.directory, "app")
        return carry_out(TakeSnapshot(database, directory, keep, force, 0, clock), check_mode, clock)

    def write(self) -> None:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("INSERT INTO ledger (half) VALUES (1)")
            connection.commit()

    def good(self) -> List[Snapshot]:
        """Return the snapshots that are found good by hash and by SQLite."""
        database = SqliteDatabase("app", self.path, 1)
        return [
            one
            for one in SnapshotDirectory(self.directory, "app").snapshots()
            if not one.damage and all(check.ok for check in database.check_image(one.path, one.description["facts"]))
        ]


@pytest.fixture(name="place")
def fixture_place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def steps(result: Dict[str, Any]) -> List[Tuple[str, str, str]]:
    return [(step["step"], step["target"], step["reason"]) for step in result["plan"]]


def test_check_run_check_run(place: Place) -> None:
    first_check = place.take(check_mode=True)
    assert not os.path.exists(os.path.dirname(place.directory))
    assert listing(os.path.dirname(place.path)) == ["app.db"]
    first = place.take()
    names = listing(place.directory)
    second_check = place.take(check_mode=True)
    second = place.take()
    assert [one["changed"] for one in (first_check, first, second_check, second)] == [True, True, False, False]
    assert steps(first_check) == steps(first) == [("take snapshot", "<new>", "there is no snapshot yet")]
    assert steps(second_check) == steps(second) == []
    assert first["plan"][0]["bytes"] >= first["snapshot"]["bytes"]
    assert first_check["snapshot"] == {}
    assert second["snapshot"] == first["snapshot"]
    assert first["snapshot"]["id"] in second["reason"]
    assert listing(place.directory) == names == [".app.lock", f"{first['snapshot']['id']}.json", f"{first['snapshot']['id']}.sqlite"]
    assert os.stat(place.directory).st_mode & 0o777 == 0o700
    assert all(os.stat(os.path.join(place.directory, name)).st_mode & 0o777 == 0o600 for name in names)
    assert first["snapshot"]["rows"] == {"ledger": 20}
    assert count_rows(first["snapshot"]["path"]) == 20
    assert first["checks"]
    assert all(check["ok"] for check in first["checks"])


def test_a_commit_or_force_makes_a_new_one(place: Place) -> None:
    place.take()
    place.write()
    written = place.take()
    assert written["changed"]
    assert written["snapshot"]["rows"] == {"ledger": 21}
    assert not place.take()["changed"]
    assert place.take(force=True)["changed"]
    assert len(place.good()) == 3


def test_retention_keeps_the_newest_good_ones(place: Place) -> None:
    ids = [place.take(keep=3, force=True)["snapshot"]["id"] for _number in range(5)]
    assert [one.id for one in place.good()] == ids[-3:]
    planned = place.take(keep=1, check_mode=True)
    done = place.take(keep=1)
    assert planned["deleted"] == done["deleted"] == ids[2:4]
    assert done["action"] == "deleted"
    assert done["changed"]
    assert listing(place.directory) == [".app.lock", f"{ids[4]}.json", f"{ids[4]}.sqlite"]
    assert place.take(keep=1, force=True)["deleted"] == [ids[4]]
    with pytest.raises(SqliteError, match="keep is 0"):
        place.take(keep=0)


def test_clock_that_went_back_does_not_make_the_old_the_newest(place: Place) -> None:
    class Past(Clock):
        def now(self) -> datetime:
            return datetime(2020, 1, 1, tzinfo=timezone.utc)

    place.take()
    place.write()
    newest = place.take(keep=1, clock=Past())["snapshot"]["id"]
    assert newest.startswith("app-20200101T000000Z-")
    assert [one.id for one in place.good()] == [newest]
    assert not place.take(keep=1)["changed"]


def test_flipped_bit_is_noticed_and_a_good_one_taken(place: Place) -> None:
    first = place.take(keep=1)["snapshot"]
    flip_bit(first["path"], 5000)
    planned = place.take(check_mode=True, keep=1)
    done = place.take(keep=1)
    assert steps(planned) == steps(done)
    assert steps(done)[:2] == [
        ("mark damaged", first["id"], "its image is not what was stored"),
        ("take snapshot", "<new>", f"the newest snapshot {first['id']} is damaged"),
    ]
    assert [one.id for one in place.good()] == [done["snapshot"]["id"]]
    assert not place.take(keep=1)["changed"]


def test_damaged_ones_do_not_count_as_kept(place: Place) -> None:
    ids = [place.take(force=True)["snapshot"]["id"] for _number in range(3)]
    with open(os.path.join(place.directory, f"{ids[1]}.sqlite"), "ab") as stream:
        stream.write(b"x")
    result = place.take(keep=2)
    assert result["deleted"] == []
    assert [one["id"] for one in result["damaged"]] == [ids[1]]
    assert [one.id for one in place.good()] == [ids[0], ids[2]]


def test_image_without_description_is_reported_and_left(place: Place) -> None:
    first = place.take()["snapshot"]
    os.unlink(first["path"].replace(".sqlite", ".json"))
    result = place.take(keep=1)
    assert result["changed"]
    assert result["orphans"] == [first["path"]]
    assert place.take(keep=1, force=True)["orphans"] == [first["path"]]
    assert count_rows(first["path"]) == 20


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 9}', '{"version": 1, "seq": 1, "facts": {"bytes": 1}}', "\xff"])
def test_unreadable_description_is_reported_and_nothing_deleted(place: Place, text: str) -> None:
    first = place.take()["snapshot"]
    Path(first["path"].replace(".sqlite", ".json")).write_bytes(text.encode("latin-1"))
    result = place.take(keep=1)
    assert result["changed"]
    assert [one["id"] for one in result["damaged"]] == [first["id"]]
    assert os.path.exists(first["path"])


def test_snapshots_of_another_database_are_not_touched(place: Place, tmp_path: Path) -> None:
    place.take()
    other = Place(tmp_path / "other")
    other.directory = place.directory
    with pytest.raises(SqliteError, match=r"the snapshots named app are of .*data/app.db.*another name"):
        other.take()
    assert len(place.good()) == 1


def test_names_that_begin_alike_share_a_folder(place: Place) -> None:
    place.take()
    database = SqliteDatabase("app", place.path, 1)
    longer = SnapshotDirectory(place.directory, "app-20200101T000000Z-0000")
    carry_out(TakeSnapshot(database, longer, 7, False, 0, Clock()), False, Clock())
    assert len(place.good()) == 1
    assert len(longer.snapshots()) == 1


def test_failure_deletes_nothing_and_leaves_nothing(place: Place) -> None:
    place.take()
    with closing(sqlite3.connect(place.path)) as connection:
        connection.execute("CREATE INDEX by_text ON ledger (text)")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql='CREATE INDEX by_text ON ledger (half)' WHERE name='by_text'")
        connection.commit()
    before = listing(place.directory)
    with pytest.raises(SqliteError, match=r"the snapshot that was taken is not good .*integrity_check"):
        place.take(keep=1)
    assert listing(place.directory) == before
    assert len(place.good()) == 1


def test_missing_database_makes_nothing(place: Place) -> None:
    os.unlink(place.path)
    for check_mode in (True, False):
        with pytest.raises(SqliteError, match="there is no such file"):
            place.take(check_mode=check_mode)
    assert listing(os.path.dirname(place.path)) == []
    assert not os.path.exists(os.path.dirname(place.directory))


def test_two_runs_at_once(place: Place) -> None:
    place.take()
    with flock(os.path.join(place.directory, ".app.lock")):
        with pytest.raises(OpskitError, match="another run is at work here"):
            place.take(force=True)
        assert not place.take(check_mode=True)["changed"]


def test_killed_anywhere(place: Place, tmp_path: Path) -> None:
    """Three good ones, the oldest of which goes: whatever happens, three good ones, and the next run mends it."""
    for _number in range(3):
        place.take(force=True)
    first = {one.id for one in place.good()}
    shutil.copytree(place.directory, str(tmp_path / "copy"))

    def prepare() -> None:
        shutil.rmtree(place.directory)
        shutil.copytree(str(tmp_path / "copy"), place.directory)

    kills = 0
    for _number in each_kill(lambda: place.take(keep=3, force=True), prepare):
        kills += 1
        assert len(place.good()) >= 3
        assert len(first & {one.id for one in place.good()}) >= 2
        place.take(keep=3, force=True)
        assert len(place.good()) == 3
        left = [name for name in listing(place.directory) if name.startswith(".") or ".tmp" in name]
        assert left == [".app.lock"]
    assert kills > 8


def test_surplus() -> None:
    def snapshots(*marks: str) -> List[Snapshot]:
        return [
            Snapshot(f"{mark}{number}", "", None if mark == "?" else number, "" if mark == "g" else "bad", {})
            for number, mark in enumerate(marks, 1)
        ]

    assert [one.id for one in surplus(snapshots("g", "g", "g"), 2)] == ["g1"]
    assert surplus(snapshots("g", "g"), 3) == []
    assert [one.id for one in surplus(snapshots("b", "g", "b", "g"), 1)] == ["b1", "g2", "b3"]
    assert [one.id for one in surplus(snapshots("?", "g", "g", "b"), 1)] == ["g2"]
    assert surplus(snapshots("b", "b"), 1) == []
    assert [one.id for one in surplus(snapshots("?", "g", "b"), 0)] == ["g2", "b3"]


def test_names_and_paths() -> None:
    assert default_name("/a/my app?#.db") == "my_app__.db"
    assert default_name("/a/.hidden") == "hidden"
    assert default_name("/a/...") == "database"
    for name in ("", "../x", "a/b", "-x", "a\nb"):
        with pytest.raises(SqliteError, match="can't be the name"):
            SnapshotDirectory("/tmp", name)
    with pytest.raises(SqliteError, match="not UTF-8"):
        require_path("/a/\udcff", "path")
    for path in ("a.db", "/a\0b", ""):
        with pytest.raises(SqliteError, match="not an absolute path"):
            require_path(path, "path")
    require_path("/a b\n?#%25", "path")


def test_description_is_plain_json(place: Place) -> None:
    taken = place.take()["snapshot"]
    with open(taken["path"].replace(".sqlite", ".json"), encoding="utf-8") as stream:
        description = json.load(stream)
    assert set(description) == {"version", "seq", "time", "source", "fingerprint", "facts"}
    assert description["source"]["path"] == place.path
    assert description["source"]["mode"] == f"{os.stat(place.path).st_mode & 0o7777:04o}"
