# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making sets: when one is made, what is refused, and what the store looks like afterwards."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._application.description import database_spec
from ansible_collections.opskit.runbooks.plugins.module_utils._backup import create, records
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.packing import Packer
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.source import Source
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.lock import flock
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite import database as sqlite_database
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import (
    BACKUP,
    NOBODY,
    App,
    FakeClock,
    add_rows,
    as_plain_user,
    flip_bit,
    folder_for,
    look_at,
    make_database,
    plan_of,
    rows_of,
    store_state,
)

ROOT = os.geteuid() == 0


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(str(tmp_path)).build()


def refused(app: App, words: str, **options: Any) -> None:
    """A run and a check are both refused, with the same words, and nothing anywhere is another than before."""
    before = look_at(app.top)
    for check in (True, False):
        with pytest.raises(OpskitError, match=words) as caught:
            app.backup(check=check, **options)
        assert caught.value.todo
        assert look_at(app.top) == before


# when a set is made -------------------------------------------------------------------------------


def test_check_run_check_run(app: App) -> None:
    app.backup()
    app.write("config/new", "x")
    add_rows(app.at("data/app.db"), 5)
    os.unlink(app.at("projects/b/link"))
    results = [app.backup(check=True), app.backup(), app.backup(check=True), app.backup()]
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert plan_of(results[0]) == plan_of(results[1]) != []
    assert plan_of(results[2]) == plan_of(results[3]) == []
    assert [result["action"] for result in results] == ["created", "created", "none", "none"]
    assert {step for step, target, reason in plan_of(results[0])} == {"store shard", "store database", "publish set"}
    assert len(app.info()["sets"]) == 2


def test_a_first_check_leaves_nothing(app: App) -> None:
    before = look_at(app.top)
    assert app.backup(check=True)["changed"]
    assert look_at(app.top) == before


def test_a_quiet_application(app: App) -> None:
    first = app.backup()
    time.sleep(2.1)
    # The times are old enough now to be relied on, which is noted once.
    assert app.backup()["changed"] is False
    before = store_state(app.store)
    for result in (app.backup(), app.backup(check=True)):
        assert (result["changed"], result["action"], result["plan"]) == (False, "none", [])
        assert result["set"]["id"] == first["set"]["id"]
    assert store_state(app.store) == before


def test_a_quiet_application_is_not_read_again(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    app.backup()
    time.sleep(2.1)
    app.backup()

    def read(path: str) -> str:
        raise AssertionError(f"{path} was read")

    for module in (records, sqlite_database):
        monkeypatch.setattr(module, "hash_file", read)
    assert app.backup()["changed"] is False
    shutil.rmtree(os.path.join(app.store, "cache"))
    with pytest.raises(AssertionError, match="was read"):
        app.backup()


def test_same_size_and_time_right_after_a_backup(app: App) -> None:
    """A change that metadata does not show is found by content for as long as the times can't be relied on."""
    path = app.at("data/uploads/1.txt")
    app.backup()
    state = os.stat(path)
    Path(path).write_bytes(b"X" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    result = app.backup()
    assert result["changed"]
    assert "content changed" in result["plan"][0]["reason"]
    app.destroy()
    app.restore()
    assert Path(path).read_bytes() == b"X" * state.st_size


def test_same_size_and_time_later(app: App) -> None:
    path = app.at("data/uploads/1.txt")
    app.backup()
    time.sleep(2.1)
    app.backup()
    state = os.stat(path)
    Path(path).write_bytes(b"X" * state.st_size)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert app.backup()["changed"]


@pytest.mark.parametrize("what", ["mode", "time", "xattr", "new folder", "gone", "kind", "mode of a database", "xattr of a database"])
def test_every_change_is_one(app: App, what: str) -> None:
    app.backup()
    path = app.at("config/gateway.toml")
    if what == "mode":
        os.chmod(path, 0o600)
    elif what == "time":
        os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1))
    elif what == "xattr":
        os.setxattr(path, "user.new", b"1")
    elif what == "mode of a database":
        os.chmod(app.at("data/app.db"), 0o600)
    elif what == "xattr of a database":
        os.setxattr(app.at("data/app.db"), "user.new", b"1")
    elif what == "new folder":
        os.mkdir(app.at("config/new"))
    elif what == "gone":
        shutil.rmtree(app.at("data/uploads/empty"))
    else:
        os.unlink(app.at("projects/b/link"))
        os.mkdir(app.at("projects/b/link"))
    assert app.backup()["changed"]
    assert not app.backup()["changed"]
    before = app.live()
    app.destroy()
    app.restore()
    assert app.live() == before


def test_logs_are_no_change_and_saved_all_the_same(app: App) -> None:
    app.backup()
    app.write("data/logs/app.log", "started\nand more\n")
    app.write("data/logs/audit.log", "new\n")
    app.write("data/run/pid", "2")
    os.utime(app.at("data"), ns=(0, app.live()["data"][b""][3]))
    assert app.backup()["changed"] is False
    app.write("config/new", "x")
    app.backup()
    app.destroy()
    app.restore()
    assert Path(app.at("data/logs/app.log")).read_text() == "started\nand more\n"
    assert Path(app.at("data/logs/audit.log")).read_text() == "new\n"
    assert not os.path.exists(app.at("data/run"))


def test_an_unchanged_set_costs_its_manifest_alone(app: App) -> None:
    app.backup()
    objects = app.objects()
    result = app.backup(unchanged_interval=0)
    assert result["changed"]
    assert result["set"]["new_bytes"] == 0
    assert app.objects() == objects
    assert app.info()["sets"][0]["verified"] == "content"


def test_sets_of_the_future_never_say_that_it_was_done(tmp_path: Path) -> None:
    clock = FakeClock(datetime(2031, 1, 1, tzinfo=timezone.utc))
    app = App(str(tmp_path), clock).build()
    app.backup()
    clock.forward(hours=-5)
    result = app.backup()
    assert result["changed"]
    assert "dated in the future" in result["reason"]
    assert [one["seq"] for one in app.info()["sets"]] == [2, 1]


def test_the_interval(tmp_path: Path) -> None:
    clock = FakeClock(datetime(2026, 1, 1, tzinfo=timezone.utc))
    app = App(str(tmp_path), clock).build()
    app.backup()
    clock.forward(hours=19)
    assert not app.backup()["changed"]
    clock.forward(hours=1)
    assert app.backup()["changed"]


def test_a_set_that_nobody_verified_is_not_enough(app: App) -> None:
    app.backup(verify="none")
    assert app.info()["sets"][0]["verified"] == "none"
    assert app.backup(verify="none")["changed"] is False
    result = app.backup()
    assert "was never verified" in result["reason"]
    assert result["set"]["verified"] == "content"
    assert app.backup()["changed"] is False


def test_a_moved_application_is_not_stored_twice(app: App) -> None:
    first = app.backup()
    moved = app.at("") + "moved"
    for name in ("config", "projects"):
        shutil.copytree(app.paths[name], os.path.join(moved, name), symlinks=True)
        app.paths[name] = os.path.join(moved, name)
    for folder, _dirs, files in os.walk(moved):
        for path in [folder, *(os.path.join(folder, name) for name in files)]:
            old = app.at(os.path.relpath(path, moved))
            state = os.lstat(old)
            os.utime(path, ns=(0, state.st_mtime_ns), follow_symlinks=False)
    os.utime(app.at("projects/b/link"), ns=(0, 5), follow_symlinks=False)
    os.utime(os.path.join(moved, "projects/b/link"), ns=(0, 5), follow_symlinks=False)
    second = app.backup(unchanged_interval=0)
    assert second["set"]["new_bytes"] < 1500, second["plan"]
    assert first["set"]["files"] == second["set"]["files"]


def test_an_undeclared_database(app: App) -> None:
    path = app.at("projects/b/found.sqlite")
    make_database(path, 50)
    holder = sqlite3.connect(path)
    holder.execute("INSERT INTO ledger (text) VALUES ('in the -wal alone')")
    holder.commit()
    assert os.path.getsize(path + "-wal") > 0
    result = app.backup()
    holder.close()
    assert any("found.sqlite is a database that the description does not name" in text for text in result["warnings_"])
    assert len(result["set"]["databases"]) == 2
    app.destroy()
    app.restore()
    assert rows_of(path) == 51
    assert not os.path.exists(path + "-wal")
    assert not app.restore()["changed"]
    # Declared from now on: the same file, another name.
    app.params["databases"].append({"name": "found", "engine": "sqlite", "path": path})
    assert app.backup()["set"]["databases"] == ["app", "found"]
    add_rows(path, 1)
    app.restore()
    assert rows_of(path) == 51


def test_a_held_database_stays_what_it_was(app: App) -> None:
    """Everything is looked at again while databases are held; whoever is the last to close one meanwhile changes nothing of its image."""
    other = """
import sqlite3, sys
for path in sys.argv[1:]:
    connection = sqlite3.connect(path, timeout=5)
    connection.execute("UPDATE ledger SET text = 'later'")
    connection.commit()
    connection.close()
"""
    make_database(app.at("data/undeclared.db"), 300)
    databases = [{**dict.fromkeys(database_spec()["options"]), **app.params["databases"][0]}]
    made = wiring.backup_set({**app.params, **BACKUP, "databases": databases}, app.clock)
    with made.exclusive(), ExitStack() as stack:
        made.plan()
        made.store.create()
        held = made._hold_databases(Packer(made.store, made.past, 1, app.clock.now()), stack)
        assert len(held) == 2
        subprocess.run([sys.executable, "-c", other, *(one.live.database.files()[0] for one in held)], check=True, timeout=60)
        for one in held:
            one.write()
            with closing(sqlite3.connect(one.plain)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert connection.execute("SELECT count(*) FROM ledger WHERE text = 'later'").fetchone() == (0,)


def test_a_database_is_saved_while_it_is_written(app: App) -> None:
    path = app.at("data/app.db")
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("INSERT INTO ledger (text) VALUES ('committed')")
        writer.commit()
        writer.execute("INSERT INTO ledger (text) VALUES ('not committed')")
        app.backup()
        writer.rollback()
    app.destroy()
    app.restore()
    assert rows_of(path) == 201


# what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config", ".env", "data"])
def test_a_missing_path(app: App, name: str) -> None:
    app.backup()
    os.rename(app.at(name), app.at("away"))
    refused(app, f"{name}: .*is not there|there is no such file" if name != "data" else "there is no such file|is not there")


def test_a_missing_path_before_the_first_set(app: App) -> None:
    shutil.rmtree(app.at("config"))
    refused(app, "config: config is not there. Mend the description")
    assert not os.path.exists(app.store)


def test_a_missing_database_is_never_made(app: App) -> None:
    os.unlink(app.at("data/app.db"))
    refused(app, "there is no such file.*never made here")


@pytest.mark.parametrize("what", ["fifo", "relative", "twice", "none", "database twice"])
def test_a_wrong_description(app: App, what: str) -> None:
    words = {
        "fifo": "neither a folder nor a file",
        "relative": "not absolute",
        "twice": "are the same path",
        "none": "no path is named",
        "database twice": "two databases are named app",
    }
    if what == "fifo":
        os.mkfifo(app.at("config/fifo"))
        app.paths["config"] = app.at("config/fifo")
    elif what == "relative":
        app.paths["config"] = "config"
    elif what == "twice":
        app.paths["other"] = app.at("config/../config")
    elif what == "none":
        app.paths.clear()
    else:
        app.params["databases"] *= 2
    refused(app, words[what])


@pytest.mark.parametrize("place", ["data/store", "data", "config/.env/../deep/store"])
def test_a_store_inside_of_what_is_saved(app: App, place: str) -> None:
    app.params["store"] = app.at(place)
    refused(app, "the store lies inside the saved path")


def test_a_store_that_is_a_file(app: App) -> None:
    Path(app.store).write_text("x")
    refused(app, "the store has to be a folder")
    app.params["store"] = os.path.join(app.store, "below")
    refused(app, "the store can't be made here")


def test_a_folder_that_is_no_store(app: App) -> None:
    for name in ("letters.txt", "objects/mine", "sets/20260101T000000Z-0000/manifest.json"):
        path = Path(app.store, name)
        path.parent.mkdir(parents=True)
        path.write_text("x")
        refused(app, "not empty and holds no backup store")
        shutil.rmtree(app.store)


def test_a_store_that_was_not_made_to_its_end(app: App) -> None:
    for names in (["lock"], ["lock", "objects/", "sets/"], ["tmp/", "README.txt", "FORMAT.tmp.123"]):
        os.mkdir(app.store)
        for name in names:
            if name.endswith("/"):
                os.mkdir(os.path.join(app.store, name))
            else:
                Path(app.store, name).touch()
        assert app.backup()["changed"]
        shutil.rmtree(app.store)


def rewrite_format(app: App, **values: Any) -> None:
    path = os.path.join(app.store, "FORMAT")
    value = json.loads(Path(path).read_text())
    value.update(values)
    Path(path).write_text(json.dumps(value))


def test_a_newer_format(app: App) -> None:
    app.backup()
    rewrite_format(app, version=2)
    refused(app, "the store is of format 2, this collection reads 1. Use the version of the collection")
    for call in (app.info, app.verify, app.prune, app.restore):
        with pytest.raises(OpskitError, match="format 2"):
            call()


def test_another_application(app: App) -> None:
    app.backup()
    app.params["application"] = "other"
    refused(app, "the store belongs to the application gateway, not to other")
    for call in (app.info, app.verify, app.prune, app.restore):
        with pytest.raises(OpskitError, match="belongs to the application gateway"):
            call()


@pytest.mark.parametrize("values", [{"format": "other"}, {"uuid": ""}])
def test_what_is_not_the_format_of_a_store(app: App, values: Dict[str, str]) -> None:
    app.backup()
    rewrite_format(app, **values)
    refused(app, "FORMAT is not that of a backup store")


def test_a_full_disk_is_seen_before(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    app.backup()
    app.write("data/uploads/new", "x" * 100_000)
    monkeypatch.setattr(create, "free_bytes", lambda _path: 50_000)
    refused(app, "a set needs up to .* KiB here, 48.8 KiB are free. Free space")


@contextmanager
def small_disk(path: str, size: str) -> Iterator[None]:
    os.makedirs(path, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def can_mount() -> bool:
    probe = "mkdir -p /tmp/.opskit-probe && mount -t tmpfs tmpfs /tmp/.opskit-probe"
    return ROOT and subprocess.run(["unshare", "--mount", "sh", "-c", probe], check=False, stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="only root may mount a small disk, and a container may forbid it")
def test_a_disk_that_gets_full_meanwhile(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(app.store, "4m"):
        assert all("file system" not in text for text in app.backup()["warnings_"])
        first = app.info()["newest_verified"]
        objects = app.objects()
        Path(app.at("data/uploads/large")).write_bytes(os.urandom(6 << 20))
        refused(app, "a set needs up to 6.0 MiB here, .* MiB are free")
        # As if somebody else took the space between the look and the writing.
        monkeypatch.setattr(create, "free_bytes", lambda _path: 1 << 40)
        with pytest.raises(OpskitError, match=r"[Ff]ree space"):
            app.backup()
        assert app.leftovers() == []
        assert os.listdir(os.path.join(app.store, "sets")) == [first]
        assert app.verify()["failure"] == ""
        # What was finished before lies there without a set, for the next run to take over or for pruning.
        app.prune()
        assert app.objects() == objects
        os.unlink(app.at("data/uploads/large"))
        app.write("config/new", "x")
        assert app.backup()["changed"]


def test_what_a_plain_user_may_not_read() -> None:
    with folder_for(NOBODY) as top:

        def work() -> Any:
            app = App(top).build()
            said = []
            for path, mode in (("data/uploads", 0o000), ("data/uploads/1.txt", 0o000), ("data/app.db", 0o200)):
                os.chmod(app.at(path), mode)
                for check in (True, False):
                    try:
                        app.backup(check=check)
                    except OpskitError as error:
                        said.append([str(error).replace(app.root, ""), bool(os.path.isdir(os.path.join(app.store, "sets")))])
                os.chmod(app.at(path), 0o700)
            os.makedirs(app.store, exist_ok=True)
            os.chmod(app.store, 0o500)
            try:
                app.backup()
            except OpskitError as error:
                said.append([str(error), False])
            os.chmod(app.store, 0o700)
            return said

        said = as_plain_user(work)
        assert isinstance(said, list), said
        texts = [text for text, made in said]
        assert texts[0] == texts[1] == "/data/uploads: this folder can't be read. Run as a user who may read it (become)."
        assert texts[2] == texts[3] == "/data/uploads/1.txt: this file can't be read. Run as a user who may read it (become)."
        assert texts[4] == texts[5]
        assert "/data/app.db: the file can't be read" in texts[4]
        assert "the store can't be written to" in texts[6]
        assert not any(made for text, made in said)


@pytest.mark.skipif(not ROOT, reason="only root can make a store that belongs to somebody else")
def test_the_store_of_another_user() -> None:
    with folder_for(NOBODY) as top:
        App(top).build()
        os.mkdir(os.path.join(top, "store"))
        os.chmod(os.path.join(top, "store"), 0o777)
        subprocess.run(["chown", "-R", str(NOBODY), os.path.join(top, "app")], check=True)
        said = as_plain_user(lambda: App(top).backup())
        assert "the store belongs to another user" in said["error"]


@pytest.mark.parametrize("lost", ["everything", "most files", "most bytes"])
def test_data_that_is_suddenly_gone(app: App, lost: str) -> None:
    Path(app.at("projects/a/large")).write_bytes(b"x" * 100_000)
    app.backup()
    if lost == "everything":
        shutil.rmtree(app.at("projects"))
        os.mkdir(app.at("projects"))
    elif lost == "most files":
        shutil.rmtree(app.at("projects/a/files"))
    else:
        os.unlink(app.at("projects/a/large"))
    refused(app, "projects has .*the last set .* has .*more than 50 % are gone.*shrink_limit 0")
    assert app.backup(shrink_limit=0)["changed"]
    assert not app.backup()["changed"]


def test_a_locked_database(app: App) -> None:
    """A writer in rollback-journal mode keeps readers out; after the deadline the backup says so and leaves nothing."""
    path = app.at("data/legacy.db")
    make_database(path, 10, "delete")
    app.params["databases"].append({"name": "legacy", "engine": "sqlite", "path": path})
    app.backup()
    add_rows(path, 1)
    sets = len(app.info()["sets"])
    hold = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN EXCLUSIVE'); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        started = time.monotonic()
        with pytest.raises(OpskitError, match=r"legacy.db: locked by another process for longer than 1 s.*fuser"):
            app.backup()
        assert 0.9 < time.monotonic() - started < 10
        assert app.leftovers() == []
        assert len(app.info()["sets"]) == sets
        holder.communicate()
    assert app.backup()["changed"]


# side by side -------------------------------------------------------------------------------------


def test_two_runs_at_once(app: App) -> None:
    app.backup()
    app.write("config/new", "x")
    with flock(os.path.join(app.store, "lock")):
        for call in (app.backup, app.prune):
            with pytest.raises(OpskitError, match=r"another run is at work here.*fuser"):
                call()
        with pytest.raises(OpskitError, match="another run is at work here"):
            app.restore()
        # Looking needs no lock, and reading one of its own.
        assert app.verify()["failure"] == ""
        assert app.backup(check=True)["changed"]
        assert len(app.info()["sets"]) == 1
    done: List[Dict[str, Any]] = []
    with flock(os.path.join(app.store, "lock")):
        waiting = threading.Thread(target=lambda: done.append(app.backup(lock_timeout=10)))
        waiting.start()
        time.sleep(0.3)
        assert done == []
    waiting.join()
    assert done[0]["changed"]


def test_files_that_change_while_they_are_read(app: App) -> None:
    """Uploads that come, grow, go and are replaced meanwhile: the set is what some moment of each file was."""
    busy = """
import os, random, sys, time
top, stop = sys.argv[1], time.time() + 60
number = 0
while os.path.exists(top + "/config/go") and time.time() < stop:
    number += 1
    path = f"{top}/data/uploads/busy{number % 50}"
    with open(path, "a") as stream:
        stream.write("x" * random.randint(1, 3000))
    if number % 7 == 0:
        os.unlink(path)
    if number % 5 == 0:
        with open(path + ".tmp", "w") as stream:
            stream.write("new")
        os.rename(path + ".tmp", path)
    with open(top + "/data/logs/app.log", "a") as stream:
        stream.write("line\\n" * 50)
    with open(top + "/data/logs/rotated.log", "w") as stream:
        stream.write("l" * random.randint(0, 5000))
    # Bursts with rests between, as applications write: without a rest no backup would ever end.
    time.sleep(0.002 if number % 60 else 1)
"""
    for number in range(200):
        app.write(f"data/uploads/still{number}", "content\n" * 2000)
    app.write("config/go", "")
    with subprocess.Popen([sys.executable, "-c", busy, app.root]) as process:
        try:
            made, gave_up = [], []
            for _number in range(4):
                try:
                    made.append(app.backup(unchanged_interval=0))
                except OpskitError as error:
                    gave_up.append(str(error))
        finally:
            os.unlink(app.at("config/go"))
            process.wait(20)
    assert all("changed each of the 5 times" in text for text in gave_up)
    assert made, gave_up
    assert app.leftovers() == []
    assert app.verify(set="all")["failure"] == ""
    app.destroy()
    for result in made:
        # What the list says is checked against the disk here, logs too.
        app.restore(set=result["set"]["id"])
        app.destroy()


def test_a_file_that_never_stands_still(app: App) -> None:
    grow = "import sys\nwith open(sys.argv[1], 'a', buffering=1) as f:\n  print(1, flush=True)\n  for n in range(4000000): f.write('x\\n')"
    with subprocess.Popen([sys.executable, "-c", grow, app.at("config/busy")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            with pytest.raises(OpskitError, match=r"config: a file changed each of the 5 times.*Declare it under logs or volatile"):
                app.backup()
        finally:
            process.kill()
    assert app.leftovers() == []
    assert os.listdir(os.path.join(app.store, "sets")) == []


# the source ---------------------------------------------------------------------------------------


def test_paths_inside_each_other_are_saved_once(tmp_path: Path) -> None:
    source = Source({"all": str(tmp_path), "inner": str(tmp_path / "inner"), "unset": str(tmp_path) + "2"})
    assert sorted(source.outermost()) == ["all", "unset"]


def test_projects_keep_their_shards(app: App) -> None:
    """A change in one project leaves the objects of the others as they are."""
    for number in range(6):
        os.mkdir(app.at(f"projects/p{number}"))
        Path(app.at(f"projects/p{number}/large")).write_bytes(os.urandom(9 << 20))
    app.backup(verify="none")
    objects = set(app.objects())
    Path(app.at("projects/p3/large")).write_bytes(os.urandom(9 << 20))
    result = app.backup(verify="none")
    assert len(set(app.objects()) - objects) == 1
    assert result["set"]["new_bytes"] < 10 << 20


def test_the_store_is_private(app: App) -> None:
    app.backup()
    for folder, dirs, files in os.walk(app.store):
        for name in [*dirs, *files]:
            assert os.stat(os.path.join(folder, name)).st_mode & 0o077 == 0, name


def test_damage_heals_with_the_next_set(app: App) -> None:
    first = app.backup()["set"]["id"]
    good = app.live()
    (path,) = list(app.objects("dump"))
    flip_bit(path)
    assert app.backup()["changed"] is False, "nobody has looked yet"
    failure = app.verify()["failure"]
    assert os.path.basename(path) in failure
    assert "Make a new backup now" in failure
    assert app.info()["sets"][0]["verified"] == "none"
    time.sleep(1.1)
    result = app.backup()
    assert next(step["reason"] for step in result["plan"]) == "its object is damaged or missing"
    assert result["set"]["verified"] == "content"
    assert len(os.listdir(os.path.join(app.store, "bad"))) == 1
    assert app.backup()["changed"] is False
    # The same bytes have the same name, so the earlier set is whole again too.
    assert app.verify(set=first)["failure"] == ""
    app.destroy()
    app.restore(set=first)
    assert app.live() == good


def test_a_missing_object_is_stored_again(app: App) -> None:
    app.backup()
    path = app.objects("tar")[0]
    os.unlink(path)
    result = app.backup()
    assert "its object is damaged or missing" in [step["reason"] for step in result["plan"]]
    assert os.path.exists(path)


def test_a_damaged_file_list_does_not_end_all_backups(app: App) -> None:
    first = app.backup()["set"]["id"]
    flip_bit(app.opened().list_path(first))
    app.write("config/new", "x")
    result = app.backup()
    assert any(f"set {first} is damaged, so nothing of it is relied on" in text for text in result["warnings_"])
    assert result["set"]["verified"] == "content"
    assert app.backup()["changed"] is False
    app.restore()
    assert Path(app.at("config/new")).read_text() == "x"


def test_a_time_that_is_not_one(app: App) -> None:
    app.backup()
    for call in (app.info, lambda which: app.restore(set=which)):
        # A local time, and one that says how far it is from UTC, are no UTC times either.
        for text in ("yesterday", "2026-11-23T02:00:00", "2026-11-23 02:00:00Z", "2026-11-23T02:00:00+01:00", "2026-11-31T02:00:00Z"):
            with pytest.raises(OpskitError, match=r"is no UTC time. Write it as 2026-11-23T02:00:00Z"):
                call(f"before {text}")
        # What is left of it where a space has ended the value.
        with pytest.raises(OpskitError, match=r"before: no time stands behind it.*as JSON"):
            call("before")
        with pytest.raises(OpskitError, match="there is no verified set before 2020-01-01T00:00:00Z"):
            call("before 2020-01-01T00:00:00Z")
        for name in ("20200101T000000Z-abcd", "../../etc"):
            with pytest.raises(OpskitError, match=r"there is no set .*backup_set_info"):
                call(name)
    soon = (datetime.now(timezone.utc) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert len(app.info("before " + soon)["sets"]) == 1
