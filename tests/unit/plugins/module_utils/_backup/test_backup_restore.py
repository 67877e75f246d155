# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing sets back, going back from that, and what is refused before anything is touched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._backup import exchange, restore
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.exchange import Journal, Swap, inode
from ansible_collections.opskit.runbooks.plugins.module_utils._core import files
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import (
    SOAK,
    App,
    add_rows,
    flip_bit,
    killed_at,
    look_at,
    make_database,
    number_of_changes,
    plan_of,
    rows_of,
)


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App(str(tmp_path)).build()
    app.backup()
    return app


def change(app: App) -> None:
    """Something of every kind is another than in the set."""
    app.write("config/gateway.toml", "level = 2\n", 0o640)
    app.write("data/uploads/new.txt", "new")
    os.unlink(app.at("projects/b/link"))
    app.write(".env", "TOKEN=2\n", 0o600)
    add_rows(app.at("data/app.db"), 10)


def refused(app: App, words: str, **options: Any) -> None:
    """A run and a check are both refused, and nothing anywhere is another than before."""
    os.makedirs(app.state_dir, exist_ok=True)
    for name in ("restore.lock",):
        Path(app.state_dir, name).touch()
    before = look_at(app.top)
    for check in (True, False):
        with pytest.raises(OpskitError, match=words) as caught:
            app.restore(check=check, **options)
        assert caught.value.todo
        assert look_at(app.top) == before


def asides(app: App) -> List[str]:
    return [os.path.join(folder, name) for folder, dirs, dummy in os.walk(app.at(".opskit-restore")) for name in dirs]


# the states ---------------------------------------------------------------------------------------


def test_check_run_check_run(app: App) -> None:
    saved = app.live()
    change(app)
    results = [app.restore(check=True), app.restore(), app.restore(check=True), app.restore()]
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert plan_of(results[0]) == plan_of(results[1]) != []
    assert plan_of(results[2]) == plan_of(results[3]) == []
    assert [result["action"] for result in results] == ["restored", "restored", "none", "none"]
    assert app.live() == saved
    assert all(check["ok"] for check in results[1]["checks"])
    assert len(results[1]["aside"]) == 4


def test_a_check_touches_nothing(app: App) -> None:
    change(app)
    before = look_at(app.top)
    for state in ("staged", "restored", "purged"):
        app.restore(check=True, state=state)
    assert look_at(app.top) == before


def test_there_and_back(app: App) -> None:
    saved = app.live()
    change(app)
    changed = app.live()
    app.restore()
    results = [app.restore(check=c, state="rolled_back") for c in (True, False, True, False)]
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert plan_of(results[0]) == plan_of(results[1]) != []
    assert app.live() == changed
    assert rows_of(app.at("data/app.db")) == 210
    app.restore()
    assert app.live() == saved
    results = [app.restore(check=c, state="purged") for c in (True, False, True, False)]
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert not os.path.exists(app.at(".opskit-restore"))
    assert app.live() == saved
    with pytest.raises(OpskitError, match="there is no restore to go back from"):
        app.restore(state="rolled_back")


def test_staged_first(app: App) -> None:
    saved = app.live()
    change(app)
    changed = app.live()
    results = [app.restore(check=c, state="staged") for c in (True, False, True, False)]
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert plan_of(results[0]) == plan_of(results[1]) != []
    assert app.live() == changed
    refused(app, "there is no restore to go back from", state="rolled_back")
    result = app.restore()
    assert {step["step"] for step in result["plan"]} == {"exchange", "keep"}
    assert app.live() == saved
    app.restore(state="rolled_back")
    assert app.live() == changed


def test_another_set_is_staged_over_the_first(app: App) -> None:
    first = app.live()
    old = app.info()["sets"][0]["id"]
    change(app)
    app.backup()
    second = app.live()
    app.restore(state="staged", set=old)
    app.restore(state="staged")
    assert [path for path in asides(app) if os.path.basename(path).startswith(old)] == []
    app.restore(set=old)
    assert app.live() == first
    app.restore()
    assert app.live() == second
    app.restore(state="rolled_back")
    assert app.live() == first


def test_restored_twice_keeps_every_old_state(app: App) -> None:
    """Each restore of a set keeps what was live before it; only purging removes that."""
    lives = []
    for number in range(3):
        app.write("config/gateway.toml", f"edited {number}\n", 0o640)
        lives.append(app.live()["config"])
        app.restore()
    kept = [look_at(os.path.join(path, "config")) for path in asides(app) if os.path.isdir(os.path.join(path, "config"))]
    for config in lives:
        assert config in kept
    app.restore(state="purged")
    assert not os.path.exists(app.at(".opskit-restore"))


def test_nothing_is_there_any_more(app: App) -> None:
    saved = app.live()
    logs = look_at(app.at("data/logs"))
    app.destroy()
    result = app.restore()
    assert app.live() == saved
    # The set's logs come back where there are none.
    assert look_at(app.at("data/logs")) == logs
    assert "it is missing" in {step["reason"] for step in result["plan"]}
    app.restore(state="rolled_back")
    assert not any(os.path.lexists(path) for path in app.paths.values())
    app.restore()
    assert app.live() == saved


def test_a_file_where_a_folder_was_and_the_other_way(app: App) -> None:
    saved = app.live()
    shutil.rmtree(app.at("config"))
    Path(app.at("config")).write_text("no folder")
    os.unlink(app.at(".env"))
    os.mkdir(app.at(".env"))
    app.restore()
    assert app.live() == saved
    app.restore(state="rolled_back")
    assert os.path.isfile(app.at("config"))
    assert os.path.isdir(app.at(".env"))


def test_live_logs_and_volatile_paths_stay(app: App) -> None:
    app.write("data/logs/app.log", "much later\n")
    app.write("data/run/pid", "77\n")
    number = os.stat(app.at("data/logs/app.log")).st_ino
    logs, run = look_at(app.at("data/logs")), look_at(app.at("data/run"))
    change(app)
    app.restore()
    assert look_at(app.at("data/logs")) == logs
    assert look_at(app.at("data/run")) == run
    assert os.stat(app.at("data/logs/app.log")).st_ino == number
    app.write("data/logs/app.log", "after the restore\n")
    app.restore(state="rolled_back")
    assert Path(app.at("data/logs/app.log")).read_text() == "after the restore\n"
    assert look_at(app.at("data/run")) == run


def test_logs_that_are_declared_only_now(app: App) -> None:
    """An older set holds as plain files what is a log or volatile by now: the live ones stay, and that is no difference."""
    app.write("data/uploads/audit.txt", "saved\n")
    app.backup()
    app.params["logs"].append(app.at("data/uploads/audit.txt"))
    app.params["volatile"].append(app.at("projects/b"))
    app.write("data/uploads/audit.txt", "live\n")
    app.write("projects/b/note.txt", "live\n")
    app.write("config/gateway.toml", "x")
    assert app.restore()["changed"]
    assert Path(app.at("data/uploads/audit.txt")).read_text() == "live\n"
    assert Path(app.at("projects/b/note.txt")).read_text() == "live\n"
    assert Path(app.at("config/gateway.toml")).read_text() == "level = 1\n"
    assert plan_of(app.restore()) == []


def test_logs_that_grow_while_they_are_saved(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    grow = "import sys, time\nend = time.time() + 30\nwhile time.time() < end:\n  open(sys.argv[1], 'a').write('x' * 900)"
    with subprocess.Popen([sys.executable, "-c", grow, app.at("data/logs/app.log")]) as process:
        time.sleep(0.2)
        app.backup()
        process.kill()
    app.destroy()
    app.restore()
    assert set(Path(app.at("data/logs/app.log")).read_text()[-900:]) == {"x"}


def test_a_database_outside_of_all_paths(app: App, tmp_path: Path) -> None:
    os.mkdir(tmp_path / "db")
    path = str(tmp_path / "db/outside.db")
    make_database(path, 9)
    os.chmod(path, 0o640)
    app.params["databases"].append({"name": "outside", "engine": "sqlite", "path": path})
    app.backup()
    add_rows(path, 4)
    Path(path + "-journal").touch()
    Path(path + "-wal").write_bytes(b"")
    app.restore()
    assert rows_of(path) == 9
    assert os.stat(path).st_mode & 0o7777 == 0o640
    assert not os.path.exists(path + "-journal")
    app.restore(state="rolled_back")
    assert rows_of(path) == 13
    assert os.path.exists(path + "-journal")
    app.restore()
    app.restore(state="purged")
    assert os.listdir(tmp_path / "db") == ["outside.db"]
    os.unlink(path)
    app.restore()
    assert rows_of(path) == 9
    app.params["databases"].pop()
    refused(app, "holds the database outside, for which the description names no place.*Name outside under databases")


def test_other_places_than_before(app: App) -> None:
    """A set may go where the description says now; a file also under another name."""
    saved = app.live()
    os.rename(app.at("config"), app.at("settings"))
    app.paths["config"] = app.at("settings")
    app.paths["environment"] = app.at("environment")
    app.restore()
    assert look_at(app.at("settings")) == saved["config"]
    assert look_at(app.at("environment")) == saved["environment"]
    assert plan_of(app.restore()) == []


def test_before_a_moment(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    ids = []
    for number in range(3):
        app.write("config/gateway.toml", f"{number}")
        ids.append(app.backup())
        time.sleep(1.1)
    app.restore(set=f"before {ids[2]['set']['time']}")
    assert Path(app.at("config/gateway.toml")).read_text() == "1"
    app.restore(set=ids[0]["set"]["id"])
    assert Path(app.at("config/gateway.toml")).read_text() == "0"
    app.restore()
    assert Path(app.at("config/gateway.toml")).read_text() == "2"


# what is refused ----------------------------------------------------------------------------------


def test_an_unknown_set_a_bad_time_and_no_store(app: App) -> None:
    refused(app, "there is no set 20200101T000000Z-aaaa.*List the sets", set="20200101T000000Z-aaaa")
    refused(app, "is no UTC time. Write it as", set="before noon")
    shutil.rmtree(app.store)
    refused(app, "there is no backup store here. Mend the path")


def test_a_set_that_nobody_verified(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    set_id = app.backup(verify="none")["set"]["id"]
    app.write("config/gateway.toml", "x")
    refused(app, "there is no verified set.*backup_verify")
    assert app.restore(set=set_id)["changed"]


@pytest.mark.parametrize("kind", ["tar", "dump"])
@pytest.mark.parametrize("seen", [True, False], ids=["verified", "not verified since"])
def test_a_set_that_fails_its_hashes(app: App, kind: str, seen: bool) -> None:
    set_id = app.info()["sets"][0]["id"]
    (path, *_others) = app.objects(kind)
    change(app)
    changed = app.live()
    flip_bit(path)
    if seen:
        assert os.path.basename(path) in app.verify()["failure"]
        refused(app, "there is no verified set")
        refused(app, "failed its verification: object .* is damaged", set=set_id)
    else:
        with pytest.raises(OpskitError, match=r"damaged|decompress|sha256"):
            app.restore()
    assert app.live() == changed
    assert asides(app) == [] or all(".partial" not in path for path in asides(app))
    os.unlink(path)
    refused(app, "needs object .*, which is missing|there is no verified set|failed its verification")


@pytest.mark.parametrize("name", ["manifest.json", "restore.sh", "SHA256SUMS", "files.jsonl.zst"])
def test_one_bit_in_a_sets_own_files(app: App, name: str) -> None:
    set_id = app.info()["sets"][0]["id"]
    size = os.path.getsize(app.set_file(set_id, name))
    for offset in (size // 3, size // 2, size - 2):
        path = app.set_file(set_id, name)
        good = Path(path).read_bytes()
        flip_bit(path, offset)
        for call in (lambda: app.restore(set=set_id, check=True), lambda: app.verify(check=True)):
            try:
                found = call().get("failure", "")
            except OpskitError as error:
                found = str(error)
            assert set_id in found, (offset, good[offset - 5 : offset + 5])
        Path(path).write_bytes(good)
    assert app.verify()["failure"] == ""


def test_one_bit_in_any_place_of_the_format(app: App) -> None:
    path = os.path.join(app.store, "FORMAT")
    good = Path(path).read_bytes()
    for offset in range(len(good)):
        flip_bit(path, offset)
        try:
            found = app.verify(check=True)["failure"]
        except OpskitError as error:
            found = str(error)
        if json.loads(good) != _json(path):
            assert found, offset
        Path(path).write_bytes(good)


def _json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError:
        return None


def test_one_bit_in_any_place_of_a_manifest(app: App) -> None:
    """Whatever bit it is: each call says so or works, and none ends in a traceback."""
    set_id = app.info()["sets"][0]["id"]
    path = app.set_file(set_id, "manifest.json")
    good = Path(path).read_bytes()
    for offset in range(0, len(good), 1 if SOAK else 37):
        flip_bit(path, offset)
        for call in (lambda: app.verify(check=True)["failure"], lambda: app.restore(check=True, set=set_id)):
            assert set_id in said_by(call), offset
        said_by(lambda: app.backup(check=True))
        Path(path).write_bytes(good)


def said_by(call: Callable[[], Any]) -> str:
    """What a call returned, or how it was refused."""
    try:
        return str(call())
    except OpskitError as error:
        return str(error)


def test_an_object_that_is_whole_but_holds_something_else(app: App) -> None:
    """A wrong list with a right hash, say by an error of our own: reading the content finds it."""
    store = app.opened()
    manifest = store.sets()[-1]
    shard = next(one for one in manifest.shards if one.id.endswith(":bucket-00.0") or one.files > 3)
    records = store.file_list(manifest)
    value = next(one for one in records if one["shard"] == shard.id and one["type"] == "file")
    for field, wrong in (("sha256", "0" * 64), ("size", 1), ("path", "elsewhere"), ("type", "symlink")):
        broken = [dict(one, **{field: wrong}) if one is value else one for one in records]
        from ansible_collections.opskit.runbooks.plugins.module_utils._backup import archive, verify

        members = list(archive.members_of(store.object_path(shard.object)))
        mine = [one for one in broken if one["shard"] == shard.id]
        assert verify.compare_members(members, mine) != []
    assert verify.compare_members(members, [one for one in records if one["shard"] == shard.id]) == []


def test_a_disk_or_program_that_fails_is_no_damage(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the machine must not be written down as what is wrong with the sets."""
    from ansible_collections.opskit.runbooks.plugins.module_utils._backup import verify

    monkeypatch.setattr(verify, "free_bytes", lambda _path: 5)
    with pytest.raises(OpskitError, match=r"reading the database app back needs .* 5 B are free. Free space"):
        app.verify()
    monkeypatch.undo()
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *rest, **more: None if name == "zstd" else which(name, *rest, **more))
    with pytest.raises(OpskitError, match=r"the program zstd is not installed. Install it: apt-get install zstd"):
        app.verify()
    monkeypatch.undo()
    assert app.info()["sets"][0]["verified"] == "content"
    assert not app.backup()["changed"]


def test_stored_is_less_than_content(app: App) -> None:
    results = [app.verify(check=c, level="stored") for c in (True, False)]
    assert [result["changed"] for result in results] == [False, False]
    assert app.info()["sets"][0]["verified"] == "content"
    app.backup(unchanged_interval=0, verify="none")
    results = [app.verify(check=c, level="stored") for c in (True, False, True, False)]
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert plan_of(results[0]) == plan_of(results[1]) != []
    assert app.info()["sets"][0]["verified"] == "stored"
    assert app.info()["newest_verified"] == app.info()["sets"][1]["id"]
    results = [app.verify(check=c, set="all") for c in (True, False, True, False)]
    assert [result["changed"] for result in results] == [True, True, False, False]
    assert app.info()["newest_verified"] == app.info()["sets"][0]["id"]
    assert [one["ok"] for one in results[1]["sets"]] == [True, True]


def test_a_place_that_the_description_does_not_name(app: App) -> None:
    del app.paths["config"]
    refused(app, "holds config, for which the description names no place.*Name config under paths")
    app.paths["config"] = app.at("config")
    app.paths["more"] = app.at("more")
    os.mkdir(app.at("more"))
    change(app)
    assert any("does not hold more" in text for text in app.restore()["warnings_"])


def test_the_folder_above_is_missing(app: App) -> None:
    app.paths["config"] = app.at("other/config")
    refused(app, "the folder that this belongs into is missing.*make ")


def test_no_space_for_both(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    change(app)
    monkeypatch.setattr(restore, "free_bytes", lambda _path: 1000)
    refused(app, "that needs .* KiB, 1000 B are free.*purged")


def test_records_inside_of_what_is_saved(app: App) -> None:
    app.state_dir = app.at("data/state")
    before = look_at(app.top)
    with pytest.raises(OpskitError, match="lies inside data"):
        app.restore()
    assert look_at(app.top) == before


@pytest.mark.parametrize("path", ["data/uploads/1.txt", "data/app.db", ".env"])
def test_processes_that_hold_files(app: App, path: str) -> None:
    change(app)
    changed = app.live()
    hold = "import sys; f = open(sys.argv[1]); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, app.at(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(OpskitError, match=rf"1 processes have files open here: .*\(pid {holder.pid}\).*Stop the application"):
            app.restore()
        assert app.live() == changed
        holder.communicate()
    app.restore()
    assert app.live() != changed
    with subprocess.Popen([sys.executable, "-c", hold, app.at(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(OpskitError, match="1 processes have files open"):
            app.restore(state="rolled_back")
        holder.communicate()
    app.restore(state="rolled_back")
    assert app.live() == changed


def test_going_back_when_the_old_state_is_gone(app: App) -> None:
    change(app)
    app.restore()
    shutil.rmtree(app.at(".opskit-restore"))
    refused(app, "the old state is gone from aside.*Going back is not safe", state="rolled_back")


def test_a_damaged_record_of_the_restore(app: App) -> None:
    change(app)
    app.restore()
    path = os.path.join(app.state_dir, "restore.json")
    for text in ("{", "{}", '{"set": 1, "phase": "committed", "stages": [{}], "steps": [{}]}'):
        Path(path).write_text(text)
        with pytest.raises(OpskitError, match=r"restore.json"):
            app.restore()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_mount_point_in_the_way(app: App) -> None:
    change(app)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", app.at("data/run")], check=False).returncode:
        pytest.skip("this container forbids mount(2)")
    try:
        refused(app, "a mount point lies in the way of the exchange. Unmount it")
    finally:
        subprocess.run(["umount", app.at("data/run")], check=True)


# where a file system knows no exchange -----------------------------------------------------------------


def no_exchange(patch: Callable[[Any, str, Any], None]) -> None:
    """As on a file system that takes rename(2) without flags alone, which NFS is."""

    def refuse(one: str, _other: str, _flags: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), one)

    patch(files, "_renameat2", refuse)


def test_a_file_system_without_exchange(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    no_exchange(monkeypatch.setattr)
    saved = app.live()
    change(app)
    shutil.rmtree(app.at("projects"))
    changed = app.live()
    app.restore()
    assert app.live() == saved
    app.restore(state="rolled_back")
    assert app.live() == changed


def test_a_move_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    for again in (False, True):
        if again:
            no_exchange(monkeypatch.setattr)
        with pytest.raises(OSError, match="exists"):
            files.move_new(str(tmp_path / "one"), str(tmp_path / "two"))
        assert (tmp_path / "two").read_text() == "two"


@pytest.mark.parametrize("way", ["there", "back"])
def test_killed_within_the_three_renames(tmp_path: Path, way: str) -> None:
    """Undoing ends with the old state live and the new one beside it, from each point of both ways."""

    def build(top: str) -> Swap:
        for name in ("live", "staged"):
            os.mkdir(os.path.join(top, name))
            Path(top, name, name).touch()
        return Swap.planned(os.path.join(top, "live"), os.path.join(top, "staged"))

    def work(swap: Swap) -> None:
        no_exchange(setattr)
        if way == "back":
            swap.undo()
        else:
            swap.do()

    def work_again(swap: Swap) -> None:
        no_exchange(setattr)
        swap.undo()

    for number in range(1, 20):
        top = str(tmp_path / str(number))
        os.mkdir(top)
        swap = build(top)
        if way == "back":
            swap.do()
        killed = killed_at(number, lambda swap=swap: work(swap))  # type: ignore[misc]
        # A second kill, in the middle of mending the first.
        again = killed_at(2, lambda swap=swap: work_again(swap))  # type: ignore[misc]
        swap.undo()
        assert os.listdir(swap.live) == ["live"], (number, again)
        assert os.listdir(swap.staged) == ["staged"]
        assert inode(swap.spare) is None
        if not killed:
            break
    assert number > 3


def test_something_else_came_in_between(tmp_path: Path) -> None:
    for name in ("live", "staged"):
        (tmp_path / name).mkdir()
    swap = Swap.planned(str(tmp_path / "live"), str(tmp_path / "staged"))
    swap.do()
    (tmp_path / "live").rename(tmp_path / "elsewhere")
    (tmp_path / "live").mkdir()
    with pytest.raises(OpskitError, match="neither the old nor the restored state, so it was left alone"):
        swap.undo()


def test_a_step_that_fails_is_undone(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    change(app)
    changed = app.live()
    done: List[str] = []

    def third_fails(one: str, other: str) -> None:
        done.append(one)
        if len(done) == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO), one)
        real(one, other)

    real = exchange.exchange
    monkeypatch.setattr(exchange, "exchange", third_fails)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        app.restore()
    assert app.live() == changed
    journal = Journal.read(os.path.join(app.state_dir, "restore.json"), app.opened().uuid, {})
    assert journal is not None
    assert not journal.is_interrupted


def test_an_interrupted_exchange_is_undone_by_going_back(app: App) -> None:
    change(app)
    changed = app.live()
    app.restore(state="staged")
    total = number_of_changes(app.restore)
    app.restore(state="rolled_back")
    found: Dict[str, int] = {}
    # The last changes are the renames and the record of them; those before come from the locks.
    for number in sorted({1, *range(3, total + 1, 1 if SOAK else 4), total - 1, total}):
        app.restore(state="staged")
        killed_at(number, app.restore)
        journal = Journal.read(os.path.join(app.state_dir, "restore.json"), app.opened().uuid, {})
        assert journal is not None
        found[journal.phase] = found.get(journal.phase, 0) + 1
        if journal.phase != "staged":
            result = app.restore(state="rolled_back")
            assert result["changed"]
        after = app.live()
        # A folder from which a log was taken out and put back has another time, nothing else.
        after["data"][b""][3] = changed["data"][b""][3]
        assert after == changed
        app.restore(state="purged")
    assert set(found) == {"staged", "exchanging", "committed"}
