# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may be at work in a store at the same time: other processes that are held in the middle of their work, or killed there."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import threading
import traceback
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._backup import locks, store
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.exchange import Swap
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.locks import READER
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.prune import IN_USE, Prune
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.staging import Staging
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.store import Store
from ansible_collections.opskit.runbooks.plugins.module_utils._core import lock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.database import SqliteDatabase
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import (
    App,
    FakeClock,
    look_at,
    plan_of,
)

KEEP_ONE: Dict[str, Any] = {"daily": 1, "weekly": 0, "monthly": 0, "delete_more_than_half": True}
BUSY = "another run is at work here.*fuser"


def build(tmp_path: Path, lock_dir: str = "", count: int = 3) -> App:
    """A store with a set of each of the last days, each with an object of its own."""
    clock = FakeClock(datetime(2026, 3, 2, 2, tzinfo=timezone.utc))
    app = App(str(tmp_path), clock).build(rows=10)
    app.params["lock_dir"] = lock_dir
    for number in range(count):
        app.write("config/gateway.toml", f"{number}\n")
        app.backup()
        clock.forward(hours=24)
    return app


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused here is held by a process that is there, and not by what a killed one left for a moment."""
    for module in (lock, locks):
        monkeypatch.setattr(module, "GRACE_S", 0.3)


@pytest.fixture(params=["in the store", "in a folder"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> App:
    return build(tmp_path, str(tmp_path / "locks") if request.param == "in a folder" else "")


def ids(app: App) -> List[str]:
    return [one["id"] for one in app.info()["sets"]]


def opened(app: App) -> Store:
    store = Store(app.store, "gateway", app.params["lock_dir"])
    store.open()
    return store


@contextmanager
def stopped_in(owner: Any, name: str, work: Callable[[], Any], kill: bool = False) -> Iterator[None]:
    """Another process does something, and waits before its first call of a function until the block has ended.

    :param kill: it is killed then, in place of going on
    """
    reached, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        real, is_first = getattr(owner, name), [True]

        def waiting(*args: Any, **options: Any) -> Any:
            if is_first:
                is_first.clear()
                os.write(reached[1], b"x")
                os.read(go_on[0], 1)
            return real(*args, **options)

        code = 0
        try:
            setattr(owner, name, waiting)
            work()
        except BaseException:
            traceback.print_exc()
            code = 70
        os._exit(code)
    os.close(reached[1])
    try:
        assert os.read(reached[0], 1) == b"x", "it never came there"
        yield
    finally:
        if kill:
            os.kill(child, signal.SIGKILL)
        os.write(go_on[1], b"x")
        status = os.waitpid(child, 0)[1]
        for handle in (reached[0], *go_on):
            os.close(handle)
    assert status == (signal.SIGKILL if kill else 0)


def verifying(app: App, **options: Any) -> Any:
    """Another process reads a set, and has one of its images decompressed."""

    def work() -> None:
        assert app.verify(**options)["failure"] == ""

    return stopped_in(SqliteDatabase, "check_image", work)


def staging(app: App, **options: Any) -> Any:
    """Another process stages a set, and has yet to compare it."""
    return stopped_in(Staging, "_check", lambda: app.restore(state="staged", **options))


def scratches(app: App) -> List[str]:
    """What readers have for a while, the locks of it included."""
    return [name for _folder, dirs, files in os.walk(app.top) for name in [*dirs, *files] if name.startswith(READER)]


def refused(work: Callable[[], Any], words: str) -> None:
    with pytest.raises(OpskitError, match=words) as caught:
        work()
    assert caught.value.todo


# readers beside writers ---------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [verifying, staging])
def test_pruning_beside_a_reader(app: App, reader: Callable[..., Any]) -> None:
    newest, middle, oldest = ids(app)
    needed = {opened(app).object_path(name) for name in opened(app).manifest(oldest).objects}
    with reader(app, set=oldest):
        results = [app.prune(check=check, **KEEP_ONE) for check in (True, False, True, False)]
        assert plan_of(results[0]) == plan_of(results[1]) != []
        assert plan_of(results[2]) == plan_of(results[3]) == []
        for result in results:
            assert {one["id"]: one["reasons"] for one in result["kept"]}[oldest] == [IN_USE]
        assert [one["id"] for one in results[1]["deleted"]] == [middle]
        assert ids(app) == [newest, oldest]
        assert needed <= set(app.objects())
    # What was read was whole to the end, and it goes with the next run.
    assert [one["id"] for one in app.prune(**KEEP_ONE)["deleted"]] == [oldest]
    assert ids(app) == [newest]
    assert not needed <= set(app.objects())
    assert app.verify(set="all")["failure"] == ""
    assert not [name for _folder, _dirs, names in os.walk(app.top) for name in names if oldest in name and name.endswith(".lock")]


def test_a_reader_that_comes_between_the_plan_and_the_pruning(app: App) -> None:
    newest, middle, oldest = ids(app)

    def work() -> None:
        result = app.prune(**KEEP_ONE)
        assert [one["id"] for one in result["deleted"]] == [middle]
        assert result["kept"][-1] == {"id": oldest, "reasons": [IN_USE]}
        assert oldest not in [target for _step, target, _reason in plan_of(result)]

    with ExitStack() as stack:
        with stopped_in(Prune, "apply", work):
            stack.enter_context(verifying(app, set=oldest))
        assert ids(app) == [newest, oldest]
    assert app.verify(set="all", check=True)["failure"] == ""


@pytest.mark.parametrize("which", ["id", "all", "restore"])
def test_a_reader_that_waited_while_its_set_was_pruned(app: App, which: str) -> None:
    newest, _middle, oldest = ids(app)
    seen: List[Any] = []

    def read() -> None:
        try:
            if which == "restore":
                seen.append(app.restore(state="staged", set=oldest, lock_timeout=20))
            else:
                seen.append(app.verify(set=oldest if which == "id" else "all", lock_timeout=20))
        except OpskitError as error:
            seen.append(str(error))

    # It has the lock of the oldest one, which it is about to move.
    with stopped_in(Prune, "_delete_set", lambda: app.prune(**KEEP_ONE)):
        refused(lambda: app.verify(set=oldest), BUSY)
        waiting = threading.Thread(target=read)
        waiting.start()
        waiting.join(0.5)
        assert seen == []
    waiting.join()
    (found,) = seen
    if which == "all":
        # Whoever comes first to the middle one has it.
        assert [one["id"] for one in reversed(found["sets"])] in ([newest], ids(app))
        assert found["failure"] == ""
    else:
        assert ("there is no set" if which == "restore" else "was pruned just now") in found
        assert ids(app) == [newest]
    assert oldest not in ids(app)
    assert sorted(os.listdir(os.path.join(app.store, "proofs")), reverse=True) == ids(app)


def test_a_backup_beside_a_verification(app: App) -> None:
    (read, *_others) = ids(app)
    with verifying(app):
        assert len(scratches(app)) == (2 if app.params["lock_dir"] else 1)
        app.write("config/gateway.toml", "beside\n")
        assert app.backup()["changed"]
        assert app.verify(set=read)["failure"] == ""
        app.restore(set=read)
        # Sweeping has left the image alone, and there is none of the second one any more.
        assert len(scratches(app)) == (2 if app.params["lock_dir"] else 1)
    assert scratches(app) == []
    # One by the backup, and one by each of the two.
    assert len(os.listdir(os.path.join(app.store, "proofs", read))) == 3


def test_readers_beside_a_backup(app: App) -> None:
    app.write("config/gateway.toml", "beside\n")
    (read, *_others) = ids(app)
    with stopped_in(Store, "publish_set", app.backup):
        assert app.verify(set="all")["failure"] == ""
        assert app.restore(state="staged")["set"]["id"] == read
        for work in (app.backup, app.prune):
            refused(work, BUSY)
        for state in ("restored", "rolled_back", "purged"):
            refused(partial(app.restore, state=state), BUSY)
    assert ids(app)[0] != read
    assert app.restore(set=read)["changed"]


def test_an_exchange_keeps_writers_away(app: App) -> None:
    app.write("config/gateway.toml", "changed\n")
    with stopped_in(Swap, "do", app.restore):
        for work in (app.backup, app.prune):
            refused(work, BUSY)
        assert app.verify(set="all")["failure"] == ""
    assert app.backup()["reason"].startswith("nothing changed")


def test_staging_after_an_interrupted_exchange_keeps_writers_away(app: App) -> None:
    """It first brings back the state before, which a backup must not see half of."""
    app.write("config/gateway.toml", "changed\n")
    with opened(app).writer(0):
        app.restore(state="staged")
    with stopped_in(Swap, "do", app.restore, kill=True):
        pass
    with opened(app).writer(0):
        refused(lambda: app.restore(state="staged"), BUSY)
    assert app.restore(state="staged")["recovered"]


# proofs -------------------------------------------------------------------------------------------


def test_two_verifications_at_once(app: App) -> None:
    (newest, *_others) = ids(app)
    before = os.listdir(os.path.join(app.store, "proofs", newest))
    with verifying(app):
        assert app.verify()["failure"] == ""
    assert len(os.listdir(os.path.join(app.store, "proofs", newest))) == len(before) + 2


def test_two_proofs_at_once(app: App) -> None:
    """None takes the name of the other, though both are of one moment."""
    (newest, *_others) = ids(app)
    folder = os.path.join(app.store, "proofs", newest)

    def write() -> None:
        opened(app).write_proof(newest, "content", [], app.clock, 1)

    # It has looked which names there are, and has yet to take one.
    with stopped_in(store, "publish_json", write):
        waiting = threading.Thread(target=write)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
    waiting.join()
    names = sorted(os.listdir(folder))
    assert [int(name[:6]) for name in names] == [1, 2, 3]
    # What a killed process left goes, and the number of a proof that was removed is not given again to an older one.
    Path(folder, "000004-x.json.tmp.1").touch()
    os.unlink(os.path.join(folder, names[0]))
    app.verify()
    assert sorted(os.listdir(folder))[:-1] == names[1:]
    # A weaker look that finds nothing takes nothing away.
    app.verify(level="stored")
    assert app.info()["newest_verified"] == newest


# readers that are killed --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["verify", "backup", "prune", "restore"])
def test_a_killed_reader_leaves_nothing(app: App, name: str) -> None:
    """Neither what it had nor what it held outlives the next run, whichever that is."""
    app.write("config/gateway.toml", "changed\n")
    (_newest, _middle, oldest) = ids(app)

    def work() -> None:
        with opened(app).scratch("tmp"):
            app.verify(set=oldest)

    with stopped_in(SqliteDatabase, "check_image", work, kill=True):
        before = scratches(app)
    assert before == scratches(app) != []
    if name == "prune":
        assert len(app.prune(**KEEP_ONE)["deleted"]) == 2
    else:
        getattr(app, name)()
    assert scratches(app) == []
    assert app.leftovers() == []


def test_what_a_reader_has_in_tmp_is_not_swept(app: App) -> None:
    def work() -> None:
        with opened(app).scratch("tmp") as folder:
            Path(folder, "image").touch()
            opened(app).set_damage(opened(app).sets()[0])
            assert Path(folder, "image").exists()

    app.write("config/gateway.toml", "changed\n")
    with stopped_in(Store, "set_damage", work):
        Path(app.store, "tmp", "left by a killed writer").touch()
        assert app.backup()["changed"]
        assert app.prune(**KEEP_ONE)["changed"]
        (left,) = app.leftovers()
        assert left.startswith(READER)
    assert scratches(app) == app.leftovers() == []


# file systems -------------------------------------------------------------------------------------


@contextmanager
def fuse_mount(source: Path, target: Path, *options: str) -> Iterator[None]:
    """Have one folder at another place by FUSE, as somebody may have who mounts a folder of another machine by it."""
    for path in (source, target):
        path.mkdir()
    try:
        done = subprocess.run(["bindfs", *options, str(source), str(target)], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("bindfs is not installed, so there is no file system of FUSE to test with")
    if done.returncode:
        pytest.skip(f"bindfs can't mount anything here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        program = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*program, str(target)], check=True)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    with fuse_mount(tmp_path / "far", tmp_path / "mounted"):
        yield tmp_path / "mounted"


def modules(app: App, check: bool) -> List[Callable[[], Any]]:
    return [partial(work, check=check) for work in (app.backup, app.verify, app.restore, partial(app.prune, **KEEP_ONE))]


def test_a_store_on_another_machine(tmp_path: Path, mounted: Path) -> None:
    words = r"the store lies on a file system \(fuse\) whose locks can't be relied on.*local disk.*\(lock_dir\)"
    app = App(str(tmp_path)).build(rows=10)
    app.store = app.params["store"] = str(mounted / "below" / "store")
    for check in (True, False):
        refused(partial(app.backup, check=check), words)
    assert os.listdir(mounted) == []
    app.params["lock_dir"] = str(tmp_path / "locks")
    app.backup(check=True)
    assert not os.path.exists(app.params["lock_dir"])
    app.backup()
    app.write("config/gateway.toml", "changed\n")
    # Each of them is refused without the folder, and does its work with it.
    app.params["lock_dir"] = ""
    before = look_at(str(mounted))
    for check in (True, False):
        for work in modules(app, check):
            refused(work, words)
    assert look_at(str(mounted)) == before
    assert len(app.info()["sets"]) == 1
    app.params["lock_dir"] = str(tmp_path / "locks")
    with stopped_in(Store, "publish_set", app.backup):
        refused(app.backup, BUSY)
        assert app.verify()["failure"] == ""
    for check in (True, False):
        for work in modules(app, check):
            work()
    assert not os.path.exists(os.path.join(app.store, "lock"))
    assert scratches(app) == []


def test_why_a_store_on_another_machine_is_refused(tmp_path: Path, mounted: Path) -> None:
    """Who comes by another way does not see the lock, and nobody who comes by the same way can tell."""
    Path(mounted, "file").touch()
    with lock.flock(str(mounted / "file")):
        assert lock.is_effective(str(mounted / "file"))
        assert not lock.is_effective(str(tmp_path / "far" / "file"))


def test_locks_on_another_machine(tmp_path: Path, mounted: Path) -> None:
    app = App(str(tmp_path)).build(rows=10)
    app.backup()
    app.write("config/gateway.toml", "changed\n")
    before = look_at(app.top)
    for folder, words in (
        (str(mounted / "locks"), r"the folder for locks lies on a file system \(fuse\).*another folder on a local disk"),
        (os.path.join(app.store, "locks"), "the folder for locks lies inside the store"),
        (app.at("config/gateway.toml"), "the folder for locks is no folder"),
    ):
        app.params["lock_dir"] = folder
        for check in (True, False):
            for work in modules(app, check):
                refused(work, words)
    assert look_at(app.top) == before
    for folder in ("locks", "/tmp/a\0b"):
        app.params["lock_dir"] = folder
        refused(app.backup, "absolute")


def test_the_type_of_a_file_system(tmp_path: Path, mounted: Path) -> None:
    assert lock.remote_type(str(tmp_path)) == lock.remote_type("/nothing/here") == lock.remote_type("/proc/self/status/x") == ""
    os.symlink(mounted, tmp_path / "link")
    (mounted / "a b").mkdir()
    for path in (mounted, mounted / "a b", mounted / "nothing/here", tmp_path / "link", tmp_path / "link/x"):
        assert lock.remote_type(str(path)) == "fuse"
    with fuse_mount(tmp_path / "other", tmp_path / "by name - here", "-o", "subtype=sshfs"):
        assert lock.remote_type(str(tmp_path / "by name - here")) == "fuse.sshfs"
    if os.geteuid() == 0:
        # A disk below it is none of its files, and hides what is mounted there before.
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(mounted / "a b")], check=True)
        try:
            assert lock.remote_type(str(mounted / "a b/x")) == ""
        finally:
            subprocess.run(["umount", str(mounted / "a b")], check=True)


@pytest.mark.parametrize("how", ["nothing is locked", "no locks"])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """What flock(2) does on one is what is replaced here; the second process is a real one."""
    real, local = fcntl.flock, tmp_path / "locks"
    words = "a lock on this file system does not keep another process out" if how == "nothing is locked" else "there are no locks"

    def flock(handle: int, kind: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").startswith((str(local), str(tmp_path / "state"))):
            real(handle, kind)
        elif how == "no locks":
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    app = build(tmp_path, count=2)
    app.write("config/gateway.toml", "changed\n")
    monkeypatch.setattr(lock.fcntl, "flock", flock)
    for work in modules(app, False):
        refused(work, rf"{words}.*Name a folder on a local disk.*\(lock_dir\)")
    refused(partial(app.restore, state="staged"), words)
    assert len(ids(app)) == 2
    app.params["lock_dir"] = str(tmp_path / "elsewhere")
    for work in modules(app, False):
        refused(work, f"{words}.*Name another folder on a local disk")
    app.params["lock_dir"] = str(local)
    for work in modules(app, False):
        work()
    assert len(ids(app)) == 1


def test_stores_that_share_a_folder_for_locks(tmp_path: Path) -> None:
    shared = str(tmp_path / "locks")
    apps = []
    for name in ("one", "other"):
        os.mkdir(tmp_path / name)
        apps.append(build(tmp_path / name, shared, count=1))
    one, other = apps
    for app in apps:
        app.write("config/gateway.toml", "changed\n")
    os.symlink(one.store, tmp_path / "link")
    with opened(one).writer(0):
        refused(one.backup, BUSY)
        refused(partial(one.backup, store=str(tmp_path / "link")), BUSY)
        assert other.backup()["changed"]
    assert len(os.listdir(shared)) == 2


def test_the_name_of_a_store_in_a_folder_for_locks() -> None:
    """The role lease writes it down too, and a test of the roles has the same one."""
    assert locks.Locks("/mnt/gateway", "/locks").folder == "/locks/gateway-0fe88c2eb50a60e3"
    long = locks.Locks("/mnt/" + "\u00e4" * 120, "/locks").folder
    assert len(os.fsencode(os.path.basename(long))) < 255


def test_a_lock_that_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "lock")
    with lock.flock(path):
        assert lock.is_effective(path)
    assert not lock.is_effective(path)
    with pytest.raises(OpskitError, match="flock"):
        lock.is_effective(str(tmp_path / "nothing" / "lock"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OpskitError, match="util-linux"):
        lock.is_effective(path)
