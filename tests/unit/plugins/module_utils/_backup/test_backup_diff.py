# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Comparing a set with what is live, and with another set: both ways have to say the same."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._backup import comparison
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import (
    App,
    add_rows,
    as_plain_user,
    flip_bit,
    folder_for,
    look_at,
    make_database,
    store_state,
)

ROOT = os.geteuid() == 0


@pytest.fixture
def app(tmp_path: Path) -> App:
    made = App(str(tmp_path)).build()
    made.write("projects/a/one", "one")
    os.link(made.at("projects/a/one"), made.at("projects/a/two"))
    os.link(made.at("projects/a/one"), made.at("projects/b/three"))
    Path(made.at("projects/b/\udcff\n$(x)")).write_text("strange")
    with open(made.at("data/uploads/sparse"), "wb") as stream:
        stream.truncate(8 << 20)
        stream.seek(4 << 20)
        stream.write(b"data")
    os.setxattr(made.at("projects/b/note.txt"), "user.note", b"one")
    made.backup()
    return made


def back_up(app: App) -> str:
    return str(app.backup(unchanged_interval=0, shrink_limit=0)["set"]["id"])


def said(result: Dict[str, Any], app: App) -> Tuple[Dict[str, List[str]], Set[str], Set[str]]:
    """What is changed, and in what; what was removed, and added; by the paths in the application."""

    def inner(kind: str) -> Dict[str, List[str]]:
        return {os.path.relpath(entry["path"], app.root): entry.get("what", []) for entry in result["paths"][kind]}

    counts = {kind: len(result["paths"][kind]) for kind in ("added", "removed", "changed")}
    assert counts.items() <= result["counts"].items()
    return inner("changed"), set(inner("removed")), set(inner("added"))


def database(result: Dict[str, Any]) -> Tuple[str, List[str], List[Tuple[Any, ...]]]:
    (found,) = result["databases"]
    return found["state"], found["what"], [(table["rows"], table["other_rows"], table["content"]) for table in found["tables"]]


def rewrite(path: str, text: str) -> None:
    """Other content in the same inode, of the same size and with the same time."""
    state = os.stat(path)
    with open(path, "r+", encoding="utf-8") as stream:
        stream.write(text)
    assert os.stat(path).st_size == state.st_size
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def replace_by_folder(app: App) -> None:
    os.unlink(app.at("projects/b/note.txt"))
    os.makedirs(app.at("projects/b/note.txt/inside"))


def relink(app: App) -> None:
    """Another file of the same content, owner and time."""
    state = os.stat(app.at("projects/a/two"))
    os.unlink(app.at("projects/a/two"))
    app.write("projects/a/two", "one")
    os.utime(app.at("projects/a/two"), ns=(state.st_atime_ns, state.st_mtime_ns))


def link_anew(app: App) -> None:
    """Two files of before become one."""
    shutil.copy2(app.at("projects/a/files/0.txt"), app.at("projects/a/files/1.txt"))
    back_up(app)
    os.unlink(app.at("projects/a/files/1.txt"))
    os.link(app.at("projects/a/files/0.txt"), app.at("projects/a/files/1.txt"))


def set_target(app: App) -> None:
    state = os.lstat(app.at("projects/b/link"))
    os.unlink(app.at("projects/b/link"))
    os.symlink("gone.txt", app.at("projects/b/link"))
    os.utime(app.at("projects/b/link"), ns=(state.st_atime_ns, state.st_mtime_ns), follow_symlinks=False)


def change_modes(app: App) -> None:
    os.chmod(app.at(".env"), 0o640)
    os.chmod(app.at("projects/a"), 0o700)


def change_strange_names(app: App) -> None:
    rewrite(app.at("projects/b/\udcff\n$(x)"), "STRANGE")
    app.write("projects/\udcfe", "")


def pass_through(app: App) -> None:
    app.write("projects/b/passing", "x")
    os.unlink(app.at("projects/b/passing"))
    app.write("data/logs/app.log", "other")
    app.write("data/run/pid", "2")


Case = Tuple[Callable[[App], Any], Dict[str, List[str]], Set[str], Set[str]]
CASES: Dict[str, Case] = {
    "nothing but logs, volatile paths and the time of a folder": (pass_through, {}, set(), set()),
    "content of another size": (
        lambda app: app.write("projects/b/note.txt", "longer\n"),
        {"projects/b/note.txt": ["size", "mtime", "content"]},
        set(),
        set(),
    ),
    "content of the same size and time": (
        lambda app: rewrite(app.at("config/gateway.toml"), "level = 2\n"),
        {"config/gateway.toml": ["content"]},
        set(),
        set(),
    ),
    "time alone": (lambda app: os.utime(app.at("config/gateway.toml"), (5, 5)), {"config/gateway.toml": ["mtime"]}, set(), set()),
    "mode of a file and of a folder": (
        change_modes,
        {".env": ["mode"], "projects/a": ["mode"]},
        set(),
        set(),
    ),
    "attributes": (
        lambda app: os.setxattr(app.at("projects/b/note.txt"), "user.note", b"two"),
        {"projects/b/note.txt": ["xattrs"]},
        set(),
        set(),
    ),
    "target of a link": (set_target, {"projects/b/link": ["target"]}, set(), set()),
    "a second name that is one no more": (relink, {"projects/a/two": ["link"]}, set(), set()),
    "two files that became one": (link_anew, {"projects/a/files/1.txt": ["link"]}, set(), set()),
    "a folder in place of a file": (
        replace_by_folder,
        {"projects/b/note.txt": ["type"]},
        set(),
        {"projects/b/note.txt/inside"},
    ),
    "the first of three names": (lambda app: os.unlink(app.at("projects/a/one")), {}, {"projects/a/one"}, set()),
    "names that are not UTF-8": (
        change_strange_names,
        {"projects/b/\udcff\n$(x)": ["content"]},
        set(),
        {"projects/\udcfe"},
    ),
    "in the middle of a sparse file": (
        lambda app: flip_bit(app.at("data/uploads/sparse"), 4 << 20),
        {"data/uploads/sparse": ["content"]},
        set(),
        set(),
    ),
    "a folder and what is in it": (
        lambda app: shutil.rmtree(app.at("projects/b")),
        {},
        {"projects/b", *(f"projects/b/{name}" for name in ("link", "note.txt", "three", "\udcff\n$(x)"))},
        set(),
    ),
}
if ROOT:
    CASES["owner"] = (lambda app: os.chown(app.at("config/gateway.toml"), 4321, 0), {"config/gateway.toml": ["owner"]}, set(), set())


@pytest.mark.parametrize("name", CASES)
def test_what_differs(app: App, name: str) -> None:
    change, *wanted = CASES[name]
    change(app)
    before, live = app.info()["newest_verified"], look_at(app.top)
    kept = store_state(app.store)
    result = app.diff(before)
    assert list(said(result, app)) == wanted
    assert result["is_equal"] == (not any(wanted))
    assert (result["changed"], app.diff(before, check=True)["counts"]) == (False, result["counts"])
    assert (look_at(app.top), store_state(app.store)) == (live, kept)
    # Two sets say the same, and from the other end the opposite; what is live is the new set.
    after = back_up(app)
    both = app.diff(before, after)
    assert (both["paths"], both["counts"]) == (result["paths"], result["counts"])
    changed, removed, added = said(app.diff(after, before), app)
    assert (changed, added, removed) == tuple(wanted)
    assert said(app.diff(), app) == ({}, set(), set())
    assert app.diff()["is_equal"]


def test_a_restored_application_is_equal(app: App) -> None:
    app.destroy()
    result = app.diff()
    assert result["counts"]["same"] == 0
    assert database(result) == ("removed", [], [])
    assert ".env" in said(result, app)[1]
    app.restore()
    shutil.rmtree(os.path.join(app.store, "cache"))
    os.mkdir(os.path.join(app.store, "cache"))
    assert app.diff()["is_equal"]  # also by the bytes of the database alone
    back_up(app)
    assert app.diff(content=True)["is_equal"]


def test_only_below_a_path(app: App) -> None:
    app.write("projects/a/files/0.txt", "changed")
    app.write("projects/b/note.txt", "changed")
    add_rows(app.at("data/app.db"), 1)
    result = app.diff(path=app.at("projects/b"))
    assert (list(said(result, app)[0]), result["databases"], result["counts"]["same"]) == (["projects/b/note.txt"], [], 4)
    assert len(said(app.diff(path=app.at("projects")), app)[0]) == 2
    only = app.diff(path=app.at("data/app.db"))
    assert (database(only)[0], only["counts"]["same"], only["is_equal"]) == ("differs", 0, False)
    os.symlink(app.root, os.path.join(app.top, "other"))
    assert said(app.diff(path=os.path.join(app.top, "other/projects/b/note.txt")), app)[0] == said(result, app)[0]
    assert app.diff(path=app.at("projects/b/\\udcff\n$(x)"))["counts"]["same"] == 1


def test_lists_are_bounded_and_counts_are_not(app: App) -> None:
    for number in range(8):
        app.write(f"projects/a/files/{number}.txt", "x")
        app.write(f"projects/b/{number}", "x")
    result = app.diff(limit=3)
    assert [len(result["paths"][kind]) for kind in ("changed", "added", "removed")] == [3, 3, 0]
    assert (result["counts"]["changed"], result["counts"]["added"], result["truncated"]) == (8, 8, True)
    assert not app.diff(limit=8)["truncated"]


def test_only_what_may_have_changed_is_read(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    read: List[str] = []
    hash_file = comparison.hash_file

    def reading(path: str) -> str:
        read.append(os.path.relpath(path, app.root))
        return hash_file(path)

    monkeypatch.setattr(comparison, "hash_file", reading)
    time.sleep(2.1)
    back_up(app)  # everything is old enough by now for its times to be trusted
    first = app.info()["sets"][-1]["id"]
    os.utime(app.at("config/gateway.toml"), (5, 5))
    app.write("projects/b/note.txt", "of another size")
    for which in ("latest", first):
        read.clear()
        app.diff(which)
        assert read == ["config/gateway.toml"]
    read.clear()
    result = app.diff(content=True)
    assert len(set(read)) == result["counts"]["same"] + 1 - folders_and_links(app)
    os.unlink(os.path.join(app.store, "cache/fingerprints.json"))
    read.clear()
    assert said(app.diff(), app)[0].keys() == {"config/gateway.toml", "projects/b/note.txt"}
    assert len(read) > 10


def folders_and_links(app: App) -> int:
    count = 0
    for path in app.live().values():
        count += sum(value[0] & 0o170000 != 0o100000 for value in path.values())
    return count


def test_saved_paths_that_came_and_went(app: App) -> None:
    """One that is of another kind, one that the set does not know, one that is a file of another name."""
    first = app.info()["newest_verified"]
    shutil.rmtree(app.at("config"))
    app.write("config", "now a file")
    os.makedirs(app.at("plugins/one"))
    app.write("license", "a file")
    app.paths.update(plugins=app.at("plugins"), license=app.at("license"))
    changed, removed, added = said(app.diff(), app)
    assert (changed, removed) == ({"config": ["type"]}, {"config/gateway.toml"})
    assert added == {"plugins", "plugins/one", "license"}
    second = back_up(app)
    assert said(app.diff(first, second), app) == (changed, removed, added)
    del app.paths["plugins"]
    with pytest.raises(OpskitError, match=r"holds plugins, for which the description names no place. Name plugins under paths"):
        app.diff()


def test_paths_that_became_logs_or_volatile_since(app: App) -> None:
    app.write("data/uploads/0.txt", "changed")
    app.write("projects/b/note.txt", "changed")
    app.params["logs"] = [*app.params["logs"], app.at("data/uploads")]
    app.params["volatile"] = [*app.params["volatile"], app.at("projects/b")]
    assert app.diff()["counts"].items() >= {"added": 0, "removed": 0, "changed": 0}.items()


# databases ----------------------------------------------------------------------------------------


def update(path: str, statement: str = "UPDATE ledger SET text = 'z' WHERE id = 1") -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_databases(tmp_path: Path, journal_mode: str) -> None:
    app = App(str(tmp_path)).build()
    path = app.at("data/app.db")
    os.unlink(path)
    make_database(path, 10, journal_mode)

    def diff(which: str = "latest", other: str = "live", **options: Any) -> Any:
        files = sorted(os.listdir(app.at("data")))
        found = database(app.diff(which, other, **options))
        assert sorted(os.listdir(app.at("data"))) == files
        return found

    ids = [back_up(app)]
    for suffix in ("-wal", "-shm"):
        # As an application leaves it that has ended.
        Path(path + suffix).unlink(missing_ok=True)
    assert diff() == ("same", [], [])
    update(path)
    # As many rows in other bytes: nobody can say.
    assert diff() == ("unknown", [], [(10, 10, "unknown")])
    assert not app.diff()["is_equal"]
    ids.append(back_up(app))
    assert diff(ids[0], ids[1]) == ("unknown", [], [(10, 10, "unknown")])
    # What is live is what the last set holds, as its cache knows.
    for content in (False, True):
        assert diff(content=content) == ("same", [], [])
    os.unlink(os.path.join(app.store, "cache/fingerprints.json"))
    assert diff() == ("unknown", [], [(10, 10, "unknown")])
    add_rows(path, 2)
    update(path, "CREATE TABLE other (id)")
    assert diff() == ("differs", ["schema"], [(10, 12, "differs"), (None, 0, "differs")])
    ids.append(back_up(app))
    assert diff(ids[1], ids[2]) == ("differs", ["schema"], [(10, 12, "differs"), (None, 0, "differs")])
    os.chmod(path, 0o600)
    assert diff() == ("differs", ["mode"], [])
    os.unlink(path)
    assert diff() == ("removed", [], [])


def test_a_database_that_came_and_one_that_nobody_named(app: App) -> None:
    first = app.info()["newest_verified"]
    make_database(app.at("data/other.db"), 1)
    app.params["databases"].append({"name": "other", "engine": "sqlite", "path": app.at("data/other.db")})
    assert [(one["name"], one["state"]) for one in app.diff()["databases"]] == [("app", "same"), ("other", "added")]
    make_database(app.at("projects/found.db"), 2)
    second = back_up(app)
    add_rows(app.at("projects/found.db"), 1)
    states = {one["path"]: one["state"] for one in app.diff()["databases"]}
    assert states == {app.at("data/app.db"): "same", app.at("data/other.db"): "same", app.at("projects/found.db"): "differs"}
    assert [one["state"] for one in app.diff(second, first)["databases"]] == ["same", "removed", "removed"]


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA wal_autocheckpoint=0")
connection.execute("BEGIN IMMEDIATE")
connection.execute("INSERT INTO ledger (text) VALUES ('held')")
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
print(connection.execute("SELECT count(*) FROM ledger").fetchone()[0], flush=True)
sys.stdin.readline()
"""


@contextmanager
def holding(path: str) -> Iterator[subprocess.Popen[str]]:
    """An application that has begun to write, commits when it is told, and stays."""
    argv = [sys.executable, "-c", HOLDER, path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def say(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_a_database_that_is_written_meanwhile(app: App) -> None:
    path = app.at("data/app.db")
    with holding(path) as process:
        # Nothing of it is committed; the bytes of the main file are still those of the set.
        assert database(app.diff(content=True))[0] in ("same", "unknown")
        assert say(process) == "201"
        assert database(app.diff()) == ("differs", [], [(200, 201, "differs")])
    # It died, and what it has committed is still to be played back.
    assert os.path.getsize(path + "-wal") > 0
    assert database(app.diff()) == ("differs", [], [(200, 201, "differs")])
    os.unlink(path + "-shm")
    result = app.diff()
    assert database(result) == ("unknown", [], [])
    assert "its -wal is still to be played back" in result["databases"][0]["error"]
    assert any("database app could not be compared" in text for text in result["warnings_"])
    assert not os.path.exists(path + "-shm")
    assert said(result, app) == ({}, set(), set())


# what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"which": "20200101T000000Z-abcd"}, "there is no set 20200101T000000Z-abcd"),
        ({"other": "yesterday"}, "there is no set yesterday"),
        ({"which": "before 2020-01-01T00:00:00Z"}, "there is no verified set before 2020-01-01T00:00:00Z"),
        ({"other": "before 2026-11-23T02:00:00"}, "is no UTC time. Write it as 2026-11-23T02:00:00Z"),
        ({"path": "/etc"}, "this path lies outside of what is saved"),
        ({"path": "data"}, "this path is not absolute"),
        ({"limit": 0}, "limit is 0"),
        ({"paths": {}}, "no path is named"),
    ],
)
def test_refusals(app: App, options: Dict[str, Any], words: str) -> None:
    with pytest.raises(OpskitError) as caught:
        app.diff(**options)
    assert words in str(caught.value)
    assert caught.value.todo


def test_a_path_that_nobody_compares(app: App) -> None:
    for path in ("data/logs/app.log", "data/run", "data/gone"):
        for other in ("live", "latest"):
            with pytest.raises(OpskitError, match="neither side has anything here that is compared"):
                app.diff(other=other, path=app.at(path))


def test_a_damaged_file_list(app: App) -> None:
    first, second = app.info()["newest_verified"], back_up(app)
    flip_bit(app.opened().list_path(first))
    for which, other in ((first, "live"), (first, second), (second, first)):
        with pytest.raises(OpskitError, match=f"set {first} is damaged: files.jsonl.zst is not what was written. Name another set"):
            app.diff(which, other)
    assert app.diff(second)["is_equal"]


def test_both_sets_are_held(app: App) -> None:
    first, second = app.info()["newest_verified"], back_up(app)
    for held in (first, second):
        with app.opened().claim(held), pytest.raises(OpskitError, match="another run is at work here"):
            app.diff(first, second)


def test_without_root() -> None:
    with folder_for(54321) as top:

        def work() -> List[Any]:
            app = App(top).build()
            app.backup()
            equal = app.diff()["is_equal"]
            os.chmod(app.at("projects/b/note.txt"), 0)
            os.utime(app.at("projects/b/note.txt"), (5, 5))
            try:
                app.diff()
            except OpskitError as error:
                return [equal, str(error)]
            return [equal, ""]

        equal, error = as_plain_user(work)
    assert equal
    assert error.endswith("projects/b/note.txt: this file can't be read. Run as a user who may read it (become).")


def test_what_diff_mode_shows(app: App) -> None:
    app.write(".env", "TOKEN=2\n", 0o600)
    app.write("config/new", "secret")
    os.unlink(app.at("projects/b/note.txt"))
    add_rows(app.at("data/app.db"), 1)
    params = {**app.params, "set": "latest", "other": "live", "path": None, "content": False, "limit": 10}
    params["databases"] = [{**dict.fromkeys(wiring.source_spec()["databases"]["options"]), **item} for item in params["databases"]]
    operation = wiring.backup_diff(params, app.clock)
    operation.plan()
    assert operation.difference().splitlines() == [
        f"{app.at('.env')}: mtime, content",
        f"{app.at('config/new')}: added",
        f"{app.at('projects/b/note.txt')}: removed",
        "database app: differs",
    ]
