# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must never happen to data: kills in the worst places, paths that lead elsewhere, records that lie, names that break."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.exchange import COMMITTED, ROLLED_BACK, Journal, Swap
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.staging import Staging
from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.files import make_dir
from ansible_collections.opskit.runbooks.plugins.module_utils._core.module import printable
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import (
    NOBODY,
    App,
    FakeClock,
    flip_bit,
    in_child,
    look_at,
    make_database,
    plan_of,
    rows_of,
)

ROOT = os.geteuid() == 0
# Access control list, version 2: owner rwx, user 1 r-x, group r-x, mask r-x, other --- (linux/posix_acl_xattr.h).
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, rights, who)
    for tag, rights, who in ((1, 7, 0xFFFFFFFF), (2, 5, 1), (4, 5, 0xFFFFFFFF), (16, 5, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
)


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App(str(tmp_path)).build()
    app.backup()
    return app


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> App:
    """One for all tests in which nothing must be touched."""
    return App(str(tmp_path_factory.mktemp("untouched"))).build()


def change(app: App) -> None:
    app.write("config/gateway.toml", "level = 2\n", 0o640)
    app.write("data/uploads/new.txt", "new")
    app.write(".env", "TOKEN=2\n", 0o600)
    os.unlink(app.at("projects/b/link"))


def newest(app: App) -> str:
    set_id: str = app.info()["sets"][0]["id"]
    return set_id


def killed_instead(owner: Any, name: str, number: int, work: Callable[[], Any]) -> None:
    """Run something in a child that kills itself in place of the n-th call of a function."""
    real = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    def child() -> None:
        setattr(owner, name, counted)
        work()

    assert in_child(child) == -signal.SIGKILL


@contextmanager
def held(path: str) -> Iterator[None]:
    """A process has a file open."""
    program = "import sys\nwith open(sys.argv[1], 'rb'):\n  print('open', flush=True)\n  sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"open\n"
        yield
        process.stdin.close()


def refused(work: Callable[[], Any], words: str) -> None:
    with pytest.raises(OpskitError, match=words) as caught:
        work()
    assert caught.value.todo


# a restore and what stays live --------------------------------------------------------------------


def test_a_link_on_the_way_to_what_stays(tmp_path: Path) -> None:
    """Moving what stays to its place in the staged tree would follow the link, out of the application."""
    app = App(str(tmp_path)).build()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    os.symlink(outside, app.at("data/cache"))
    app.backup()
    os.unlink(app.at("data/cache"))
    os.makedirs(app.at("data/cache/tmp"))
    app.write("data/cache/tmp/live", "live")
    app.params["volatile"].append(app.at("data/cache/tmp"))
    os.mkdir(app.state_dir)
    Path(app.state_dir, "restore.lock").touch()
    before = look_at(app.top)
    for check in (True, False):
        refused(lambda check=check: app.restore(check=check), "on the way to it is a symlink")  # type: ignore[misc]
    assert look_at(app.top) == before


def test_a_volatile_path_whose_folder_is_not_in_the_set(app: App) -> None:
    saved = app.live()
    os.makedirs(app.at("data/cache/tmp"))
    app.write("data/cache/tmp/live", "live")
    os.chmod(app.at("data/cache"), 0o2750)
    app.params["volatile"].append(app.at("data/cache/tmp"))
    change(app)
    assert app.restore()["changed"]
    assert Path(app.at("data/cache/tmp/live")).read_text() == "live"
    assert stat.S_IMODE(os.stat(app.at("data/cache")).st_mode) == 0o2750
    assert plan_of(app.restore(check=True)) == plan_of(app.restore()) == []
    shutil.rmtree(app.at("data/cache"))
    os.utime(app.at("data"), ns=(0, saved["data"][b""][3]))
    assert app.live() == saved


@pytest.mark.parametrize("then", [["restored"], ["restored", "restored"], ["rolled_back"]], ids=" ".join)
def test_logs_that_were_moved_when_the_run_died(app: App, then: List[str]) -> None:
    """The application starts with logs of its own before the restore is run again; purging does not take the old ones."""
    saved = app.live()
    change(app)
    app.write("data/logs/app.log", "the line that has to stay\n")
    # The second of four is that of data.
    killed_instead(Swap, "do", 2, app.restore)
    assert not os.path.exists(app.at("data/logs"))
    os.mkdir(app.at("data/logs"))
    app.write("data/logs/app.log", "the line after the kill\n")
    for number, state in enumerate(then):
        assert app.restore(state=state)["changed"] == (number == 0)
    if then[0] == "restored":
        assert app.live()["config"] == saved["config"]
    for _time in range(2):
        assert Path(app.at("data/logs/app.log")).read_text() == "the line after the kill\n"
        assert Path(app.at("data/logs.kept-1/app.log")).read_text() == "the line that has to stay\n"
        app.restore(state="purged")


# kills --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 20])
def test_killed_while_purging(app: App, number: int) -> None:
    """Half of a state is none to go back to."""
    change(app)
    app.restore()
    live = app.live()
    killed_instead(os, "unlink", number, lambda: app.restore(state="purged"))
    assert os.path.exists(app.at(".opskit-restore"))
    refused(lambda: app.restore(state="rolled_back"), "there is no restore to go back from")
    assert app.live() == live
    assert app.restore(state="purged")["changed"]
    assert not os.path.exists(app.at(".opskit-restore"))
    assert not app.restore(state="purged")["changed"]
    assert app.live() == live


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [(os, "unlink", 2), (Staging, "_extract", 1), (Staging, "_check", 1)],
    ids=["removing", "removed", "extracted"],
)
def test_killed_while_another_set_is_staged(app: App, owner: Any, name: str, number: int) -> None:
    """What is left of the first staged copy is never taken for the whole of it."""
    # The first folder that is removed: one file of it goes before the kill.
    for file in "abcd":
        app.write(f"config/{file}.toml", "x")
    app.backup()
    saved = app.live()
    old = newest(app)
    change(app)
    app.backup()
    app.restore(state="staged", set=old)
    killed_instead(owner, name, number, lambda: app.restore(state="staged"))
    app.restore(set=old)
    assert app.live() == saved
    assert plan_of(app.restore(set=old)) == []


@pytest.mark.parametrize("state", ["restored", "rolled_back"])
def test_a_process_holds_what_the_interrupted_restore_left(app: App, state: str) -> None:
    saved = app.live()
    change(app)
    changed = app.live()
    # The first two of four are exchanged.
    killed_instead(Swap, "do", 3, app.restore)
    now = app.live()
    with held(app.at("data/uploads/1.txt")):
        refused(lambda: app.restore(state=state), "processes have files open here.*")
        assert app.live() == now
    app.restore(state=state)
    assert app.live() == (saved if state == "restored" else changed)


def test_going_back_twice_from_an_interrupted_exchange(app: App) -> None:
    change(app)
    changed = app.live()
    killed_instead(Swap, "do", 3, app.restore)
    assert app.live() != changed
    assert app.restore(state="rolled_back")["changed"]
    assert app.live() == changed
    for check in (True, False):
        assert not app.restore(check=check, state="rolled_back")["changed"]
    assert app.live() == changed


# ways back ----------------------------------------------------------------------------------------


def test_a_restore_that_fails_its_verification(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something damages the restored state right after the exchange: the state before comes back by itself."""
    change(app)
    changed = app.live()
    write = Journal.write

    def disturbed(journal: Journal, phase: str) -> None:
        write(journal, phase)
        if phase == COMMITTED:
            with open(app.at("config/gateway.toml"), "a", encoding="utf-8") as stream:
                stream.write("disturbed")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", disturbed)
        refused(app.restore, "config is that of the set: gateway.toml: it has .*the state before was put back")
    assert app.live() == changed
    assert json.loads(Path(app.state_dir, "restore.json").read_text())["phase"] == ROLLED_BACK
    assert Path(app.at("data/logs/app.log")).read_text() == "started\n"
    assert not app.restore(state="rolled_back")["changed"]
    assert app.restore()["changed"]


def test_the_way_back_outlives_what_is_staged_later(app: App) -> None:
    old = newest(app)
    app.write("config/gateway.toml", "level = 2\n", 0o640)
    app.backup()
    change(app)
    changed = app.live()
    aside = app.restore(set=old)["aside"]
    assert len(aside) == 4
    assert app.restore(state="staged")["aside"] == aside
    assert app.restore(check=True, state="rolled_back")["changed"]
    assert app.restore(state="rolled_back")["changed"]
    assert app.live() == changed
    assert not app.restore(state="rolled_back")["changed"]
    app.restore(state="purged")
    assert not os.path.exists(app.at(".opskit-restore"))


def test_two_applications_with_one_record_of_restores(app: App, tmp_path: Path) -> None:
    other = App(str(tmp_path / "other"))
    os.mkdir(other.top)
    other.build()
    other.backup()
    other.state_dir = app.state_dir
    change(app)
    changed = app.live()
    app.restore()
    change(other)
    before = other.live()
    for state in ("staged", "restored", "rolled_back", "purged"):
        for check in (True, False):
            refused(lambda s=state, c=check: other.restore(check=c, state=s), "another store.*a state_dir of its own")  # type: ignore[misc]
    assert other.live() == before
    assert not os.path.exists(other.at(".opskit-restore"))
    app.restore(state="rolled_back")
    assert app.live() == changed


# databases ----------------------------------------------------------------------------------------


def test_a_named_path_that_is_a_database(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    make_database(app.at("ledger.sqlite"), 3)
    app.paths["ledger"] = app.at("ledger.sqlite")
    for check in (True, False):
        refused(lambda check=check: app.backup(check=check), "ledger is an SQLite database.*Name it under databases")  # type: ignore[misc]
    assert not os.path.exists(app.store)


def test_rights_of_a_database(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    path = app.at("data/app.db")
    os.chmod(path, 0o640)
    os.setxattr(path, "user.note", b"\x00kept")
    os.setxattr(path, "system.posix_acl_access", ACL)
    if ROOT:
        os.chown(path, NOBODY, NOBODY)
    state = os.stat(path)
    app.backup()
    saved = app.live()
    changes: List[Callable[[], None]] = [
        lambda: os.unlink(path),
        lambda: os.chmod(path, 0o600),
        lambda: os.setxattr(path, "user.more", b"x"),
        lambda: os.removexattr(path, "system.posix_acl_access"),
    ]
    if ROOT:
        changes.append(lambda: os.chown(path, NOBODY, 0))
    for work in changes:
        work()
        assert app.restore()["changed"]
        assert plan_of(app.restore()) == []
        assert app.live() == saved
        now = os.stat(path)
        assert (now.st_mode, now.st_uid, now.st_gid) == (state.st_mode, state.st_uid, state.st_gid)
        assert sorted(os.listxattr(path)) == ["system.posix_acl_access", "user.note"]
        assert os.getxattr(path, "system.posix_acl_access") == ACL


def test_a_folder_that_gives_rights_to_what_is_made_in_it(app: App, tmp_path: Path) -> None:
    os.mkdir(tmp_path / "db")
    outside = str(tmp_path / "db/outside.db")
    make_database(outside, 9)
    app.params["databases"].append({"name": "outside", "engine": "sqlite", "path": outside})
    app.backup()
    saved, mode = app.live(), os.stat(outside).st_mode
    for folder in (app.root, str(tmp_path / "db")):
        os.setxattr(folder, "system.posix_acl_default", ACL)
    app.destroy()
    os.unlink(outside)
    app.restore()
    assert app.live() == saved
    assert os.listxattr(outside) == []
    assert os.stat(outside).st_mode == mode
    assert rows_of(outside) == 9
    assert plan_of(app.restore()) == []


# sets that are damaged ----------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["own file", "own file for a while", "logs"])
def test_a_last_set_that_can_not_be_relied_on(tmp_path: Path, damage: str) -> None:
    """The next backup makes a whole one, also when nothing of the application changed."""
    clock = FakeClock(Clock().now())
    app = App(str(tmp_path), clock).build()
    app.backup()
    saved = app.live()
    bad = newest(app)
    manifest = json.loads(Path(app.set_file(bad, "manifest.json")).read_text())
    path = app.set_file(bad, "restore.sh")
    if damage == "logs":
        shard = next(shard for shard in manifest["shards"] if shard["logs"] and shard["bytes"])
        path = os.path.join(app.store, "objects", shard["object"][:2], shard["object"])
    flip_bit(path)
    assert app.verify()["failure"]
    if damage == "own file for a while":
        flip_bit(path)
    refused(app.restore, "there is no verified set")
    clock.forward(seconds=2)
    assert app.backup(check=True)["changed"]
    assert app.backup()["set"]["id"] != bad
    assert newest(app) != bad
    assert app.verify()["failure"] == ""
    assert not app.backup()["changed"]
    app.destroy()
    app.restore()
    assert app.live() == saved
    assert Path(app.at("data/logs/app.log")).read_text() == "started\n"


def test_a_rehearsed_verification_beside_a_backup(app: App) -> None:
    """A check takes no lock, so a backup that begins meanwhile must not sweep away what it reads."""
    operation = wiring.backup_verify({**app.params, "set": "latest", "level": "content"}, app.clock)
    real, seen = operation.checkers["sqlite"], []

    def checker(path: str, facts: Dict[str, Any]) -> Any:
        assert app.leftovers() == []
        app.write("config/gateway.toml", "level = 9\n", 0o640)
        assert app.backup()["changed"]
        seen.append(path)
        return real(path, facts)

    operation.checkers = {"sqlite": checker}
    operation.plan()
    assert len(seen) == 1
    assert operation.failure() == ""
    assert not os.path.exists(seen[0])


# refused descriptions and options -----------------------------------------------------------------


def nested_path(app: App) -> None:
    app.paths["uploads"] = app.at("data/nothing")


def logs_are_a_path(app: App) -> None:
    app.params["logs"].append(app.at("config"))


def path_in_logs(app: App) -> None:
    app.params["logs"].append(app.at("projects"))
    app.paths["one"] = app.at("projects/a")


def volatile_is_a_path(app: App) -> None:
    app.params["volatile"].append(app.at("projects"))


def one_file_two_databases(app: App) -> None:
    os.symlink("app.db", app.at("data/other.db"))
    app.params["databases"].append({"name": "other", "engine": "sqlite", "path": app.at("data/other.db")})


def path_is_a_database(app: App) -> None:
    app.paths["rows"] = app.at("data/app.db")


def volatile_database(app: App) -> None:
    app.params["volatile"].append(app.at("data"))


def database_in_volatile(app: App) -> None:
    os.rename(app.at("data/app.db"), app.at("data/run/app.db"))
    app.params["databases"][0]["path"] = app.at("data/run/app.db")


@pytest.mark.parametrize(
    ("describe", "words"),
    [
        (logs_are_a_path, "config lies in a path that is named under logs too"),
        (path_in_logs, "lies in a path that is named under logs too"),
        (volatile_is_a_path, "projects lies in a path that is named under volatile too"),
        (one_file_two_databases, "app and other are the same database"),
        (path_is_a_database, "rows is a database"),
        (volatile_database, "the database app lies in a volatile path"),
        (database_in_volatile, "the database app lies in a volatile path"),
    ],
)
def test_what_could_be_saved_but_not_restored(tmp_path: Path, describe: Callable[[App], None], words: str) -> None:
    app = App(str(tmp_path)).build()
    describe(app)
    before = look_at(app.top)
    for work in (app.backup, app.restore):
        for check in (True, False):
            refused(lambda w=work, c=check: w(check=c), words)  # type: ignore[misc]
    assert look_at(app.top) == before


def test_a_missing_path_inside_of_another(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    nested_path(app)
    before = look_at(app.top)
    for check in (True, False):
        refused(lambda check=check: app.backup(check=check), "uploads is not there")  # type: ignore[misc]
    assert look_at(app.top) == before


@pytest.mark.parametrize("name", ["data", "config"])
def test_the_record_of_restores_is_a_path(untouched: App, name: str) -> None:
    before = look_at(untouched.top)
    for check in (True, False):
        options = {"check": check, "state_dir": untouched.paths[name]}
        refused(lambda options=options: untouched.restore(**options), f"lies inside {name}, which a restore")  # type: ignore[misc]
    assert look_at(untouched.top) == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("compression_level", 0),
        ("compression_level", 20),
        ("compression_level", -1),
        ("shrink_limit", 101),
        ("shrink_limit", -1),
        ("unchanged_interval", -1),
        ("lock_timeout", -1),
        ("database_timeout", -1),
        ("store", "store"),
        ("store", "/tmp/a\0b"),
        ("state_dir", "state"),
        ("state_dir", "/tmp/a\0b"),
        ("paths", {"data": "data"}),
        ("paths", {"data": "/tmp/a\0b"}),
        ("paths", {"data": 1}),
        ("logs", ["data/logs"]),
        ("volatile", ["/tmp/a\0b"]),
        ("projects", "projects"),
        ("databases", [{"name": "app", "engine": "sqlite", "path": "app.db"}]),
        ("databases", [{"name": "app", "engine": "sqlite", "path": "/tmp/a\0b"}]),
    ],
)
def test_options_out_of_range(untouched: App, monkeypatch: pytest.MonkeyPatch, option: str, value: Any) -> None:
    app = untouched
    # A relative path would be taken from here.
    monkeypatch.chdir(app.root)
    before = look_at(app.top)
    work = app.restore if option == "state_dir" else app.backup
    words = (
        "is not a path but 1" if value == {"data": 1} else f"{option} is {value}, but has to be" if isinstance(value, int) else "absolute"
    )
    for check in (True, False):
        refused(lambda c=check: work(check=c, **{option: value}), words)  # type: ignore[misc]
    assert look_at(app.top) == before


def test_tar_is_not_installed(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = os.path.join(app.top, "bin")
    os.mkdir(programs)
    for name in ("zstd", "gzip", "setpriv", "flock"):
        found = shutil.which(name)
        if found:
            os.symlink(found, os.path.join(programs, name))
    change(app)
    before = app.live()
    monkeypatch.setenv("PATH", programs)
    for work in (app.backup, app.restore):
        for check in (True, False):
            refused(lambda w=work, c=check: w(check=c), "tar is not installed.*apt-get install tar")  # type: ignore[misc]
    assert app.live() == before
    assert not os.path.exists(app.at(".opskit-restore"))


# records of a wrong shape -------------------------------------------------------------------------

WRONG: Tuple[Any, ...] = (None, 7, "x", [], [7], {}, {"x": 7}, True)


def mutations(value: Any) -> Iterator[Any]:
    """Yield a JSON value with each part of it taken out or replaced by something of another shape."""
    if isinstance(value, dict):
        for key in value:
            yield {other: value[other] for other in value if other != key}
            for one in mutations(value[key]):
                yield {**value, key: one}
        yield {**value, "unknown": 1}
    elif isinstance(value, list) and value:
        # All items have one shape.
        for one in mutations(value[0]):
            yield [one, *value[1:]]
    for wrong in WRONG:
        if type(wrong) is not type(value) or wrong == []:
            yield wrong


def survive(path: str, works: Sequence[Callable[[], Any]]) -> List[str]:
    """Try something with every mutation of a file; returns what was raised that is no error for an operator."""
    text = Path(path).read_text()
    strange = []
    count = 0
    for value in mutations(json.loads(text)):
        count += 1
        Path(path).write_text(json.dumps(value))
        for number, work in enumerate(works):
            try:
                work()
            except OpskitError:
                pass
            except Exception as error:
                strange.append(f"{number} {error!r} with {json.dumps(value)}")
    assert count > 8
    Path(path).write_text(text)
    return strange


@pytest.mark.parametrize("state", ["restored", "staged"])
def test_a_record_of_the_restore_of_a_wrong_shape(app: App, state: str) -> None:
    change(app)
    app.restore()
    if state == "staged":
        app.write("config/gateway.toml", "level = 3\n", 0o640)
        app.backup()
        app.restore(state="staged", set=app.info()["sets"][1]["id"])
    works = [partial(app.restore, check=True, state=other) for other in ("purged", "rolled_back")]
    live = app.live()
    assert survive(os.path.join(app.state_dir, "restore.json"), works) == []
    assert app.live() == live
    app.restore(state="rolled_back")


def test_a_proof_of_a_wrong_shape(app: App) -> None:
    folder = os.path.join(app.store, "proofs", newest(app))
    (name,) = os.listdir(folder)
    works = [app.info, lambda: app.restore(check=True), lambda: app.backup(check=True)]
    assert survive(os.path.join(folder, name), works) == []


def test_a_cache_of_a_wrong_shape(app: App) -> None:
    """It costs time, and an image of each database: only the cache tells that one in WAL mode is that of the set."""
    path = os.path.join(app.store, "cache/fingerprints.json")
    value = json.loads(Path(path).read_text())
    some = dict(list(value.items())[:2])
    for wrong in [*mutations(some), "no json"]:
        Path(path).write_text(wrong if wrong == "no json" else json.dumps(wrong))
        assert {step["step"] for step in app.backup(check=True)["plan"]} <= {"store database", "publish set"}


def test_a_manifest_of_a_wrong_shape(app: App) -> None:
    set_id = newest(app)

    def all_readers() -> None:
        app.opened().sets()
        # Only what passes for a manifest gets further.
        app.info()
        assert app.verify(check=True)["failure"]
        for work in (app.restore, app.backup):
            try:
                work(check=True)
            except OpskitError:
                continue

    assert survive(app.set_file(set_id, "manifest.json"), [all_readers]) == []


# names, links and holes ---------------------------------------------------------------------------


def run_module(app: App, name: str, **options: Any) -> Dict[str, Any]:
    """Run a module as Ansible does, in a process of its own, and return what it prints."""
    root = Path(wiring.__file__).parents[5]
    assert root.name == "ansible_collections"
    args = Path(app.top, "args.json")
    keep = ("store", "application", "paths", "logs", "volatile", "databases")
    values = {key: app.params[key] for key in keep}
    args.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": {**values, **options}}))
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root.parent), *filter(None, sys.path)]), LC_ALL="C.UTF-8")
    argv = [sys.executable, "-m", f"ansible_collections.opskit.runbooks.plugins.modules.{name}", str(args)]
    done = subprocess.run(argv, capture_output=True, env=env, cwd=app.top, check=False)
    assert done.stderr == b""
    result: Dict[str, Any] = json.loads(done.stdout.decode("utf-8", "strict"))
    # How it was called is repeated by Ansible itself.
    json.dumps({**result, "invocation": None}, ensure_ascii=False).encode("utf-8", "strict")
    assert (done.returncode == 0) == (not result.get("failed"))
    return result


def test_names_that_are_not_utf8_in_a_result(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    odd = os.fsdecode(b"odd \xff\xfe")
    make_database(app.at(f"data/{odd}.sqlite"), 5)
    folder = os.open(app.at("data"), os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/{odd}.sock")
        result = run_module(app, "backup_set")
    os.close(folder)
    assert not result.get("failed"), result
    # Newer versions of ansible-core wrap each warning.
    warnings = [text if isinstance(text, str) else text["event"]["msg"] for text in result["warnings"]]
    for ending in ("sqlite", "sock"):
        assert any(f"odd \\udcff\\udcfe.{ending}" in text for text in warnings)
    # Also in what a module fails with.
    wrong = run_module(app, "backup_set", paths={"data": app.at("data"), "config": app.at(odd)})
    assert wrong["where"].endswith("/odd \\udcff\\udcfe")
    assert "config is not there" in wrong["msg"]


def test_a_result_holds_only_what_can_be_sent() -> None:
    value = {"\udcff": ["a\udcfeb", ("\u00e4", 7, None)], "x": {"y": True}}
    assert printable(value) == {"\\udcff": ["a\\udcfeb", ["\u00e4", 7, None]], "x": {"y": True}}


def test_a_symlink_with_two_names(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    os.link(app.at("projects/b/link"), app.at("projects/b/second"), follow_symlinks=False)
    assert os.lstat(app.at("projects/b/link")).st_nlink == 2
    app.backup()
    saved = app.live()
    assert not app.backup()["changed"]
    assert app.verify()["failure"] == ""
    app.destroy()
    app.restore()
    assert app.live() == saved
    assert os.readlink(app.at("projects/b/second")) == "note.txt"
    assert plan_of(app.restore()) == []


def test_a_file_with_names_in_two_paths(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    os.link(app.at("data/uploads/1.txt"), app.at("projects/a/files/far.txt"))
    os.link(app.at("data/uploads/2.txt"), app.at("data/uploads/near.txt"))
    os.link(app.at("data/uploads/3.txt"), app.at("data/logs/saved apart"))
    warnings = [text for text in app.backup()["warnings_"] if "another name" in text]
    assert len(warnings) == 2
    assert any("projects/a/files/far.txt has another name in data" in text for text in warnings)
    assert any("data/logs/saved apart" in text for text in warnings)


def test_a_sparse_file_of_many_pieces(tmp_path: Path) -> None:
    """Its map of pieces is longer than a block, so that a number in it lies across two of them."""
    app = App(str(tmp_path)).build()
    path = app.at("data/sparse")
    with open(path, "wb") as stream:
        for number in range(3000):
            stream.seek(number * 12288 + 4096)
            stream.write(b"%d" % number)
        stream.truncate(3000 * 12288 + 777)
    state = os.stat(path)
    if state.st_blocks * 512 > state.st_size // 2:
        pytest.skip("this file system fills holes")
    app.backup()
    saved = app.live()
    assert app.verify()["failure"] == ""
    app.destroy()
    app.restore()
    assert app.live() == saved
    assert os.stat(path).st_blocks * 512 < state.st_size // 2


def test_folders_made_by_many_at_once(tmp_path: Path) -> None:
    errors: List[BaseException] = []
    for number in range(40):
        path = str(tmp_path / str(number) / "a" / "b" / "c")
        barrier = threading.Barrier(8)

        def make(path: str = path, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                make_dir(path)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=make) for dummy in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert os.path.isdir(path)
    assert errors == []
    (tmp_path / "file").touch()
    with pytest.raises(OpskitError, match="something else has this name"):
        make_dir(str(tmp_path / "file"))
