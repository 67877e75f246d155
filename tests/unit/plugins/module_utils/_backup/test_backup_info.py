# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking into sets: what one holds, and which one still has the good version of something."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.opskit.runbooks.plugins.module_utils._backup.manifest import Manifest
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.versions import Seen, Version, joined
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import printable
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import App, add_rows, flip_bit, look_at, store_state


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(str(tmp_path)).build()


def back_up(app: App, **options: Any) -> str:
    return str(app.backup(unchanged_interval=0, shrink_limit=0, **options)["set"]["id"])


def versions(app: App, path: str) -> List[Tuple[Any, ...]]:
    """Type, size and the sets of each version."""
    found = app.info(path=app.at(path))["versions"]
    return [(one["type"], one.get("size"), one["count"], one["first_set"], one["last_set"], one["verified_set"]) for one in found]


def sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# what one set holds -------------------------------------------------------------------------------


def test_contents(app: App) -> None:
    os.makedirs(app.at("projects/empty/folder"))
    app.write("projects/loose", "in no project")
    back_up(app)
    before = store_state(app.store), look_at(app.top)
    found = app.info("latest", contents=True)["contents"]
    assert found == {
        "paths": [
            {"name": "config", "path": app.at("config"), "type": "dir", "files": 1, "bytes": 10},
            {"name": "data", "path": app.at("data"), "type": "dir", "files": 8, "bytes": 1440},
            {"name": "environment", "path": app.at(".env"), "type": "file", "files": 1, "bytes": 8},
            {"name": "projects", "path": app.at("projects"), "type": "dir", "files": 10, "bytes": 159},
        ],
        "projects": [
            {"name": "a", "files": 8, "bytes": 144},
            {"name": "b", "files": 1, "bytes": 2},
            {"name": "empty", "files": 0, "bytes": 0},
        ],
        "logs": {"files": 1, "bytes": 8},
        "databases": [
            {
                "name": "app",
                "engine": "sqlite",
                "path": app.at("data/app.db"),
                "bytes": os.path.getsize(app.at("data/app.db")),
                "schema_version": "",
                "tables": [{"name": "ledger", "rows": 200}],
            }
        ],
        "scopes": [],
    }
    assert (store_state(app.store), look_at(app.top)) == before


def test_projects_inside_another_path(app: App) -> None:
    os.rename(app.at("projects"), app.at("data/projects"))
    app.paths["projects"] = app.at("data/projects")
    back_up(app)
    assert app.info("latest", contents=True)["contents"]["projects"] == []
    found = app.info("latest", contents=True, projects=app.at("data/projects"))["contents"]
    assert [(project["name"], project["files"]) for project in found["projects"]] == [("a", 8), ("b", 1)]


def test_entries(app: App) -> None:
    os.chmod(app.at("projects/b/note.txt"), 0o640)
    os.utime(app.at("projects/b/note.txt"), (1_000_000_000, 1_000_000_000))
    back_up(app)
    result = app.info("latest", path=app.at("projects/b"))
    assert [(entry["path"], entry["type"], entry["target"]) for entry in result["entries"]] == [
        (app.at("projects/b"), "dir", ""),
        (app.at("projects/b/link"), "symlink", "note.txt"),
        (app.at("projects/b/note.txt"), "file", ""),
    ]
    note = result["entries"][2]
    assert (note["size"], note["mode"], note["mtime"]) == (2, "0640", "2001-09-09T01:46:40Z")
    assert note["sha256"] == sha256(app.at("projects/b/note.txt"))
    assert (result["entries_total"], result["truncated"]) == (3, False)
    few = app.info("latest", path=app.at("projects"), limit=2)
    assert (len(few["entries"]), few["entries_total"], few["truncated"]) == (2, 14, True)
    assert few["versions"][0]["files"] == 9
    # A database is listed as what it is; logs are listed where they are meant.
    listed = [(os.path.basename(entry["path"]), entry["type"]) for entry in app.info("latest", path=app.at("data"))["entries"]]
    assert ("app.db", "database") in listed
    assert "app.log" not in dict(listed)
    assert [entry["type"] for entry in app.info("latest", path=app.at("data/logs"))["entries"]] == ["dir", "file"]
    gone = app.info("latest", path=app.at("projects/b/gone"))
    assert (gone["entries"], gone["versions"][0]["type"]) == ([], "missing")


# which set has the good one -----------------------------------------------------------------------


def test_versions_of_a_file_and_its_folder(app: App) -> None:
    path = "projects/a/files/1.txt"
    good = sha256(app.at(path))
    ids = [back_up(app), back_up(app)]
    app.write(path, "bad")
    ids.append(back_up(app, verify="none"))
    os.unlink(app.at(path))
    ids.append(back_up(app))
    before = store_state(app.store), look_at(app.top)
    assert versions(app, path) == [
        ("missing", None, 1, ids[3], ids[3], ids[3]),
        ("file", 3, 1, ids[2], ids[2], ""),
        ("file", 8, 2, ids[0], ids[1], ids[1]),
    ]
    assert app.info(path=app.at(path))["versions"][2]["sha256"] == good
    assert [(one[0], *one[2:5]) for one in versions(app, "projects/a")] == [
        ("dir", 1, ids[3], ids[3]),
        ("dir", 1, ids[2], ids[2]),
        ("dir", 2, ids[0], ids[1]),
    ]
    assert [one["files"] for one in app.info(path=app.at("projects"))["versions"]] == [8, 9, 9]
    assert [one[2:5] for one in versions(app, "projects/b")] == [(4, ids[0], ids[3])]
    # The folder above all of them, and one set alone.
    assert len(versions(app, ".")) == 3
    assert app.info(ids[2], path=app.at(path))["versions"][0]["sha256"] == hashlib.sha256(b"bad").hexdigest()
    assert (store_state(app.store), look_at(app.top)) == before


def test_what_makes_another_version(app: App) -> None:
    path, folder = "projects/a/files/1.txt", "projects/a"
    changes = [
        lambda: None,
        lambda: os.chmod(app.at(path), 0o600),
        lambda: os.setxattr(app.at(path), "user.note", b"x"),
        lambda: os.utime(app.at(path), (5, 5)),
        # It comes back.
        lambda: app.write(path, "a 1\n" * 2),
    ]
    for change in changes:
        change()
        back_up(app)
    assert [one[2] for one in versions(app, path)] == [1] * 5
    assert [one[2] for one in versions(app, folder)] == [1] * 5
    # What passes through a folder is no change of it, nor is a log, a database, or a second name of a file elsewhere.
    app.write("projects/a/passing", "x")
    os.unlink(app.at("projects/a/passing"))
    app.write("data/logs/app.log", "more\n" * 9)
    add_rows(app.at("data/app.db"), 1)
    back_up(app)
    os.link(app.at(path), app.at("projects/b/second"))
    back_up(app)
    assert versions(app, folder)[0][2] == 3
    assert len(versions(app, "data")) == 1
    assert len(versions(app, "data/logs")) == 2
    assert [one[:3] for one in versions(app, "data/app.db")] == [
        ("database", os.path.getsize(app.at("data/app.db")), 2),
        ("database", os.path.getsize(app.at("data/app.db")), 5),
    ]
    assert [one[0] for one in versions(app, "projects/b/link")] == ["symlink"]


def test_versions_of_a_table(app: App) -> None:
    ids = [back_up(app), back_up(app)]
    add_rows(app.at("data/app.db"), 3)
    ids.append(back_up(app))
    app.params["databases"] = []
    os.unlink(app.at("data/app.db"))
    ids.append(back_up(app))
    found = app.info(table="app.ledger")["versions"]
    assert [(one["type"], one.get("rows"), one["count"], one["last_set"]) for one in found] == [
        ("missing", None, 1, ids[3]),
        ("table", 203, 1, ids[2]),
        ("table", 200, 2, ids[1]),
    ]
    assert found[1]["sum"] is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_joined_versions_are_all_sets_in_order(seen: List[Tuple[str, bool]]) -> None:
    moment = datetime(2026, 11, 23, tzinfo=timezone.utc)
    sets = [Manifest(str(seq), seq, moment, "", "", "", {}, [], [], "", 0, "none") for seq in range(len(seen))]
    found = joined([Seen(one, verified, Version(name, {"type": name})) for one, (name, verified) in zip(sets, seen)])
    again = [name for one in reversed(found) for name in [one["type"]] * one["count"]]
    assert again == [name for name, _verified in seen]
    assert all(one["type"] != other["type"] for one, other in zip(found, found[1:]))
    number = 0
    for one in reversed(found):
        run = list(range(number, number + one["count"]))
        assert (one["first_set"], one["last_set"]) == (str(run[0]), str(run[-1]))
        assert one["verified_set"] == next((str(seq) for seq in reversed(run) if seen[seq][1]), "")
        number += one["count"]


# names --------------------------------------------------------------------------------------------


def test_every_name_that_a_file_can_have(app: App) -> None:
    names = [b"new\nline", b"\xff\xfe not utf-8", b"-dash", b"$HOME ~ {{ x }}", b"back\\udcffslash", "\u00e4".encode()]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(app.at("projects/b")), name))).write_bytes(name)
    back_up(app)
    for name in names:
        path = os.path.join(app.at("projects/b"), os.fsdecode(name))
        wanted = hashlib.sha256(name).hexdigest()
        assert app.info(path=path)["versions"][0]["sha256"] == wanted
        # As a result prints it, which is what an operator can paste.
        assert app.info(path=printable(path))["versions"][0]["sha256"] == wanted
    (entry,) = app.info("latest", path=app.at("projects/b/\udcff\udcfe not utf-8"))["entries"]
    assert entry["path"] == app.at("projects/b/\udcff\udcfe not utf-8")


def test_a_path_by_way_of_links(app: App) -> None:
    os.symlink("a", app.at("projects/current"))
    os.symlink(app.root, os.path.join(app.top, "other name"))
    back_up(app)
    other = os.path.join(app.top, "other name")
    assert app.info(path=os.path.join(other, "projects/a/files/1.txt"))["versions"][0]["type"] == "file"
    assert app.info(path=app.at("projects/current"))["versions"][0]["type"] == "symlink"
    assert app.info(path=app.at("projects/current/files/1.txt"))["versions"][0]["type"] == "file"
    assert app.info(path="/" + app.at("projects//a/./files/../files/1.txt") + "/")["versions"][0]["type"] == "file"


def test_an_application_that_has_moved(app: App) -> None:
    ids = [back_up(app)]
    moved = App(app.top)
    moved.root = os.path.join(app.top, "moved")
    os.rename(app.root, moved.root)
    os.rename(moved.at(".env"), moved.at("settings"))
    moved.params["paths"] = {**{name: moved.at(name) for name in ("data", "config", "projects")}, "environment": moved.at("settings")}
    moved.params.update(logs=[moved.at("data/logs")], volatile=[moved.at("data/run")])
    moved.params["databases"] = [{"name": "app", "engine": "sqlite", "path": moved.at("data/app.db")}]
    ids.append(back_up(moved))
    for path in ("projects/a", "data/app.db", "settings", "config/gateway.toml"):
        assert [one[2:5] for one in versions(moved, path)] == [(2, *ids)], path
    assert moved.info(ids[0], path=moved.at("projects/b"))["entries"][0]["path"] == moved.at("projects/b")


# what can't be told -------------------------------------------------------------------------------


def test_a_damaged_set_hides_no_other(app: App) -> None:
    ids = [back_up(app), back_up(app), back_up(app)]
    flip_bit(app.opened().list_path(ids[1]))
    result = app.info(path=app.at("projects/a"))
    assert [(one["type"], one["first_set"]) for one in result["versions"]] == [("dir", ids[2]), ("unreadable", ids[1]), ("dir", ids[0])]
    assert "files.jsonl.zst is not what was written" in result["versions"][1]["error"]
    assert any(ids[1] in text for text in result["warnings_"])
    for options in ({"path": app.at("projects/a")}, {"contents": True}):
        with pytest.raises(OpskitError, match=f"set {ids[1]} is damaged: files.jsonl.zst is not what was written. Name another set"):
            app.info(ids[1], **options)


def test_a_set_of_another_store(app: App) -> None:
    back_up(app)
    other = App(os.path.join(app.top, "other"))
    os.mkdir(other.top)
    other.build()
    foreign = back_up(other)
    shutil.copytree(os.path.dirname(other.set_file(foreign, "manifest.json")), os.path.dirname(app.set_file(foreign, "manifest.json")))
    with pytest.raises(OpskitError, match="it was made for another store"):
        app.info(foreign, contents=True)
    with pytest.raises(OpskitError, match="it was made for another store"):
        app.diff(foreign)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "/etc/passwd"}, "/etc/passwd: this path lies outside of what is saved. Name one in /"),
        ({"path": "projects/a"}, "projects/a: this path is not absolute"),
        ({"path": "/a\0b"}, "this path is not absolute"),
        ({"contents": True}, "contents are those of one set, and none is named"),
        ({"path": "/x", "table": "app.ledger"}, "path and table are two questions"),
        ({"table": "ledger"}, "ledger is no table of a database of these sets. Write <database>.<table>; the databases are app"),
        ({"table": "app.gone"}, "no set holds a table gone of the database app. The newest has ledger"),
        ({"limit": 0}, "limit is 0"),
        ({"which": "20200101T000000Z-abcd", "contents": True}, "there is no set 20200101T000000Z-abcd"),
        ({"which": "before 2026-11-23T02:00:00+01:00"}, "is no UTC time. Write it as 2026-11-23T02:00:00Z"),
        ({"which": "before 2026-11-23 02:00:00"}, "is no UTC time"),
    ],
)
def test_refusals(app: App, options: Dict[str, Any], words: str) -> None:
    back_up(app)
    with pytest.raises(OpskitError) as caught:
        app.info(**options)
    assert words in str(caught.value)
    assert caught.value.todo


def test_a_set_is_held_while_it_is_read(app: App) -> None:
    set_id = back_up(app)
    with app.opened().claim(set_id):
        assert len(app.info()["sets"]) == 1
        for options in ({"path": app.at("data")}, {"which": set_id, "contents": True}):
            began = time.monotonic()
            with pytest.raises(OpskitError, match="another run"):
                app.info(**options)
            assert time.monotonic() - began > 1
