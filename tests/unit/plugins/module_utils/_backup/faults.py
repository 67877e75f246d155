# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the fault matrix is made of: disks that get full or lose their power, a store with a past, and rows that count."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
import tempfile
import time
import traceback
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set

import pytest

from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import App, FakeClock, add_rows, look_at

TABLE = os.environ.get("OPSKIT_FAULT_MATRIX", "")
"""Where the rows of the table go; each is added when it is done, so that tests in processes of their own fill one table."""


class Row:
    """One line of the table: a fault, what it hit, how often it was tried, and how often all held that has to."""

    def __init__(self, fault: str, operation: str) -> None:
        self.fault = fault
        self.operation = operation
        self.trials = 0
        self.failures: List[str] = []

    @contextmanager
    def trial(self, name: object) -> Iterator[None]:
        """One try; what fails in it is kept for the end, so that the row says how often."""
        self.trials += 1
        try:
            yield
        except Exception:
            self.failures.append(f"{self.fault}, {self.operation}, {name}:\n{traceback.format_exc()}")


@contextmanager
def row(fault: str, operation: str) -> Iterator[Row]:
    """Count the trials of the block, write the line, and fail when one of them did."""
    one = Row(fault, operation)
    started = time.monotonic()
    yield one
    held = one.trials - len(one.failures)
    if TABLE:
        with open(TABLE, "a", encoding="utf-8") as stream:
            if stream.tell() == 0:
                stream.write(f"{'fault':42} {'operation':34} {'trials':>6} {'held':>6} {'seconds':>8}\n")
            stream.write(f"{fault:42} {operation:34} {one.trials:6} {held:6} {time.monotonic() - started:8.1f}\n")
    assert one.trials
    assert not one.failures, f"{held} of {one.trials} held; the first that did not: {one.failures[0]}"


def spread(total: int, count: int) -> List[int]:
    """Return so many of the numbers from 1 to the total, evenly, the first and the last among them."""
    if total <= count:
        return list(range(1, total + 1))
    return sorted({1 + round(number * (total - 1) / (count - 1)) for number in range(count)})


# a store with a past ------------------------------------------------------------------------------

FIRST_DAY = datetime(2026, 3, 2, 2, tzinfo=timezone.utc)
DAYS = 3
KEEP = 2
POLICY: Dict[str, Any] = {"daily": KEEP, "weekly": 0, "monthly": 0, "delete_more_than_half": True}


class World:
    """An application with a set of each of some days, the first one pruned already, and changes that no set holds yet."""

    def __init__(self, top: str) -> None:
        self.top = top
        os.makedirs(top)
        clock = FakeClock(FIRST_DAY)
        self.app = App(top, clock).build(rows=60)
        self.saved: Dict[str, Any] = {}
        """What each set has to bring back, oldest first."""
        for day in range(DAYS + 1):
            edit(self.app, day)
            made = self.app.backup()["set"]["id"]
            if day:
                self.saved[made] = seen(self.app)
            clock.forward(days=1)
        self.app.prune(daily=DAYS, weekly=0, monthly=0)
        edit(self.app, DAYS + 1)
        self.moment = clock.moment

    @property
    def ids(self) -> List[str]:
        """The sets, oldest first."""
        return list(self.saved)

    def copy(self, top: str, store_top: Optional[str] = None) -> App:
        """Return the same in places of its own; the store may lie elsewhere than the application."""
        os.makedirs(top, exist_ok=True)
        subprocess.run(["cp", "-a", self.app.root, os.path.join(top, "app")], check=True)
        if store_top is not None:
            os.makedirs(store_top, exist_ok=True)
        subprocess.run(["cp", "-a", self.app.store, os.path.join(store_top or top, "store")], check=True)
        return app_at(top, store_top or top, self.moment)


def app_at(top: str, store_top: str, moment: datetime) -> App:
    """Return an application whose store may lie elsewhere."""
    app = App(top, FakeClock(moment))
    app.store = app.params["store"] = os.path.join(store_top, "store")
    return app


def edit(app: App, number: int) -> None:
    """A day's work: new and changed files, a file that goes, rows, log lines."""
    app.write("config/gateway.toml", f"level = {number + 2}\n", 0o640)
    with open(app.at(f"data/uploads/day-{number}"), "wb") as stream:
        stream.write(os.urandom(5000))
    if os.path.exists(app.at(f"data/uploads/day-{number - 2}")):
        os.unlink(app.at(f"data/uploads/day-{number - 2}"))
    with open(app.at("data/logs/app.log"), "a", encoding="utf-8") as log:
        log.write(f"day {number}\n")
    add_rows(app.at("data/app.db"), 7)


def seen(app: App) -> Dict[str, Any]:
    """What is saved. The time of the folder with the logs and the database changes when those come and go."""
    found = app.live()
    if b"" in found["data"]:
        found["data"][b""][3] = 0
    return found


def identity(app: App) -> Dict[str, Any]:
    """Everything of the application to the inode, but for what only looking at a database leaves."""
    found: Dict[str, Any] = {}
    for folder, dirs, names in os.walk(app.root):
        if ".opskit-restore" in dirs:
            dirs.remove(".opskit-restore")
        for name in [*dirs, *names]:
            path = os.path.join(folder, name)
            if not name.endswith(("-wal", "-shm")):
                state = os.lstat(path)
                time_ns = 0 if path == app.at("data") else state.st_mtime_ns
                size = 0 if name in dirs else state.st_size
                found[path] = (state.st_ino, state.st_mode, state.st_uid, size, time_ns)
    return found


@contextmanager
def a_day_later() -> Iterator[None]:
    """The machine's clock says that what was put into the trash has been there for a day."""
    real = time.time
    time.time = lambda: real() + 25 * 3600  # type: ignore[method-assign,unused-ignore]
    try:
        yield
    finally:
        time.time = real


def do_prune(app: App) -> Any:
    with a_day_later():
        return app.prune(**POLICY)


def needed_by(app: App, set_id: str) -> Set[str]:
    """The objects that a set says it needs, by its own list of sums."""
    with open(app.set_file(set_id, "SHA256SUMS"), encoding="utf-8") as stream:
        return {os.path.basename(line.split()[1]) for line in stream if "/objects/" in line}


def sets_of(app: App) -> List[str]:
    """The sets, oldest first."""
    return [one["id"] for one in reversed(app.info()["sets"])]


def by_hand(app: App, set_id: str, wanted: Dict[str, Any], refusal_is_fine: bool = False) -> bool:
    """The set's own script brings back what it holds. False: it has refused to."""
    with tempfile.TemporaryDirectory() as top:
        target = os.path.join(top, "here")
        done = subprocess.run(["sh", app.set_file(set_id, "restore.sh"), target], capture_output=True, check=False)
        if refusal_is_fine and done.returncode != 0:
            return False
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        for name, path in app.paths.items():
            end = os.path.basename(path) if wanted[name][b""][0] & 0o170000 == 0o100000 else ""
            base = os.path.join(target, name, end).rstrip("/")
            found = look_at(base, skip=[os.path.join(base, "logs")])
            if name == "data":
                found[b""][3] = 0
            assert found == wanted[name], name
    return True


def restored(app: App, saved: Dict[str, Any]) -> None:
    """Sets really restored, to another place, and compared with what was saved."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(app.top)) as top:
        other = App(top, app.clock)
        os.mkdir(other.root)
        other.params["store"] = app.store
        for set_id, wanted in saved.items():
            other.restore(set=set_id)
            assert seen(other) == wanted, set_id


_turn = itertools.count()


def whole(app: App, saved: Dict[str, Any], really_all: bool = False) -> None:
    """Sets are there, read back as what was saved, and are restored as that.

    :param really_all: restore all of them by the module, and one by hand; else one in turn, in one of the two ways in turn
    """
    assert set(saved) <= set(sets_of(app))
    for set_id in saved:
        assert app.verify(check=True, set=set_id)["failure"] == ""
    turn, ids = next(_turn), list(saved)
    one = ids[turn // 2 % len(ids)]
    if really_all or turn % 2:
        restored(app, saved if really_all else {one: saved[one]})
    if really_all or not turn % 2:
        by_hand(app, one, saved[one])


def next_set(app: App) -> str:
    """Back up what is there now, unaided: a verified set that brings it back, and nothing left over. Returns its id."""
    now = seen(app)
    made: str = app.backup()["set"]["id"]
    newest = app.info()["sets"][0]
    assert newest["id"] == made
    assert newest["verified"] == "content"
    assert app.leftovers() == []
    assert app.verify(check=True)["failure"] == ""
    restored(app, {made: now})
    return made


def pruned(app: App, kept: Sequence[str]) -> None:
    """Exactly these sets are left, and exactly the objects that they need."""
    assert sets_of(app) == list(kept)
    needed = set().union(*(needed_by(app, set_id) for set_id in kept))
    assert {os.path.basename(path) for path in app.objects()} == needed


# disks --------------------------------------------------------------------------------------------


def _works(*argv: str) -> bool:
    return subprocess.run(argv, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


@functools.lru_cache(maxsize=None)
def can_mount(kind: str) -> bool:
    """True where a ``tmpfs``, or an ext4 file system in a file (``loop``), can really be mounted."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as top:
        image, folder = os.path.join(top, "image"), os.path.join(top, "folder")
        os.mkdir(folder)
        if kind == "loop":
            if not shutil.which("mkfs.ext4"):
                return False
            make_image(image)
            mounted = _works("mount", "-o", "loop", image, folder)
        else:
            mounted = _works("mount", "-t", "tmpfs", "tmpfs", folder)
        if mounted:
            unmount(folder)
        return mounted


def require_mount(kind: str) -> None:
    """Skip the test where it can't have the disk that it needs: ``tmpfs`` or ``loop``."""
    if not can_mount(kind):
        pytest.skip(f"a {kind} file system can't be mounted here: it takes root, and a container may forbid it")


@contextmanager
def mounted(folder: str, *options: str) -> Iterator[None]:
    """Mount something for a block."""
    os.makedirs(folder, exist_ok=True)
    subprocess.run(["mount", *options, folder], check=True)
    try:
        yield
    finally:
        unmount(folder)


def unmount(folder: str) -> None:
    """Unmount; a program that was killed may be about to let go of its files."""
    for attempt in range(50):
        done = subprocess.run(["umount", folder], check=False, stderr=subprocess.PIPE)
        if done.returncode == 0:
            return
        time.sleep(0.02 * (attempt + 1))
    raise AssertionError(done.stderr.decode(errors="replace"))


def small_disk(folder: str) -> Any:
    """A disk that is soon full, in memory."""
    return mounted(folder, "-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs")


def fill(folder: str, leave: int) -> None:
    """Take the space of a disk but for so many bytes, in a file that :func:`unfill` removes."""
    state = os.statvfs(folder)
    size = state.f_bfree * state.f_frsize - leave
    if size > 0:
        handle = os.open(os.path.join(folder, "filler"), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(handle, 0, size)
        finally:
            os.close(handle)


def unfill(folder: str) -> None:
    """Give the space back."""
    path = os.path.join(folder, "filler")
    if os.path.exists(path):
        os.unlink(path)


def make_image(path: str) -> None:
    """Make a small ext4 file system in a file."""
    with open(path, "wb") as stream:
        stream.truncate(24 << 20)
    # Without the lazy parts nothing but what a test does is ever written to it.
    options = ["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-m", "0"]
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "1024", "-J", "size=4", *options, path], check=True)


class PowerCut:
    """A disk in a file. What the file holds is what was flushed; the rest is in memory and is lost with the power."""

    def __init__(self, top: str, fill_it: Callable[[str], Any]) -> None:
        self.folder = os.path.join(top, "disk")
        self.base, self.image, self.copy = (os.path.join(top, name) for name in ("base", "image", "copy"))
        make_image(self.base)
        with self._mounted(self.base):
            fill_it(self.folder)

    def _mounted(self, image: str) -> Any:
        # Nothing is flushed because of its age within a trial.
        return mounted(self.folder, "-o", "loop,commit=600", image)

    @contextmanager
    def cut(self, work: Callable[[], Any]) -> Iterator[None]:
        """Do something on the disk as it was made, cut its power, and switch it on again for the block."""
        for path in (self.image, self.copy):
            if os.path.exists(path):
                os.unlink(path)
        clone(self.base, self.image)
        with self._mounted(self.image):
            work()
            clone(self.image, self.copy)
        with self._mounted(self.copy):
            yield


def clone(source: str, target: str) -> None:
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)
