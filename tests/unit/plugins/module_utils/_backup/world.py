# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An application on disk, a look at it that shares nothing with the engine, and processes that are really killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._application.description import database_spec
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.store import Store
from ansible_collections.opskit.runbooks.plugins.module_utils._core.clock import Clock
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import carry_out
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils.children import in_child

SOAK = os.environ.get("OPSKIT_TEST_SIZE") == "soak"
NOBODY = 54321
"""A user id that has no name on any machine that a test runs on."""


BACKUP: Dict[str, Any] = {
    "unchanged_interval": 72000,
    "shrink_limit": 50,
    "compression_level": 1,
    "verify": "content",
    "pause": None,
    "require_pause": False,
    "state_dir": None,
    "key_variables": [],
}
"""The options that only backup_set has."""


class FakeClock(Clock):
    """A clock that stands still until it is told."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def now(self) -> datetime:
        return self.moment

    def forward(self, **by: float) -> None:
        self.moment += timedelta(**by)


class App:
    """An application, its store beside it, and the five modules as calls."""

    def __init__(self, top: str, clock: Optional[Clock] = None) -> None:
        self.top = top
        self.root = os.path.join(top, "app")
        self.store = os.path.join(top, "store")
        self.state_dir = os.path.join(top, "state")
        self.clock = clock or Clock()
        self.paths = {
            "data": self.at("data"),
            "environment": self.at(".env"),
            "config": self.at("config"),
            "projects": self.at("projects"),
        }
        self.params: Dict[str, Any] = {
            "store": self.store,
            "application": "gateway",
            "paths": self.paths,
            "projects": None,
            "logs": [self.at("data/logs")],
            "volatile": [self.at("data/run")],
            "databases": [{"name": "app", "engine": "sqlite", "path": self.at("data/app.db")}],
            "database_timeout": 1,
            "lock_timeout": 0,
        }

    def at(self, path: str) -> str:
        return os.path.join(self.root, path)

    def build(self, rows: int = 200) -> App:
        for folder in ("data/logs", "data/run", "data/uploads/empty", "config", "projects/a/files", "projects/b"):
            os.makedirs(self.at(folder))
        self.write(".env", "TOKEN=1\n", 0o600)
        self.write("config/gateway.toml", "level = 1\n", 0o640)
        self.write("data/run/pid", "1\n")
        self.write("data/logs/app.log", "started\n")
        for number in range(8):
            self.write(f"data/uploads/{number}.txt", f"upload {number}\n" * 20)
            self.write(f"projects/a/files/{number}.txt", f"a {number}\n" * (number + 1))
        self.write("projects/b/note.txt", "b\n")
        os.symlink("note.txt", self.at("projects/b/link"))
        make_database(self.at("data/app.db"), rows)
        return self

    def write(self, path: str, text: str, mode: int = 0o644) -> str:
        full = self.at(path)
        with open(full, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(full, mode)
        return full

    def backup(self, check: bool = False, **options: Any) -> Dict[str, Any]:
        return self._carry_out(wiring.backup_set, {**self.params, **BACKUP, **options}, check)

    def restore(self, check: bool = False, **options: Any) -> Dict[str, Any]:
        params = {"set": "latest", "state": "restored", "state_dir": self.state_dir, "owner": "name", "credentials": "fail"}
        return self._carry_out(wiring.backup_restore, {**self.params, **params, **options}, check)

    def restore_scope(self, scope: str, value: str = "", check: bool = False, **options: Any) -> Dict[str, Any]:
        params = {"set": "latest", "state_dir": self.state_dir, "owner": "name", "policy": "fail", "key_variables": []}
        return self._carry_out(wiring.backup_restore_scope, {**self.params, **params, "scope": scope, "value": value, **options}, check)

    def verify(self, check: bool = False, **options: Any) -> Dict[str, Any]:
        """The result; ``failure`` is what the module would fail with."""
        params = {**self.params, "set": "latest", "level": "content", **options}
        operation = wiring.backup_verify(params, self.clock)
        result = carry_out(operation, check, self.clock)
        result["failure"] = operation.failure()
        return result

    def info(self, which: str = "", **options: Any) -> Dict[str, Any]:
        unset: Dict[str, Any] = {"contents": False, "projects": None, "path": None, "table": None, "limit": 1000, "scopes": {}}
        return self._carry_out(wiring.backup_set_info, {**self.params, **unset, "set": which, **options}, False)

    def diff(self, which: str = "latest", other: str = "live", check: bool = False, **options: Any) -> Dict[str, Any]:
        unset = {"path": None, "content": False, "limit": 1000}
        return self._carry_out(wiring.backup_diff, {**self.params, **unset, "set": which, "other": other, **options}, check)

    def prune(self, check: bool = False, **options: Any) -> Dict[str, Any]:
        params = {"daily": 7, "weekly": 4, "monthly": 3, "delete_more_than_half": False}
        return self._carry_out(wiring.backup_prune, {**self.params, **params, **options}, check)

    def _carry_out(self, build: Callable[..., Any], params: Dict[str, Any], check: bool) -> Dict[str, Any]:
        unset = dict.fromkeys(database_spec()["options"])
        params = {**params, "databases": [{**unset, **item} for item in params["databases"]]}
        return carry_out(build(params, self.clock), check, self.clock)

    def opened(self) -> Store:
        store = Store(self.store, "gateway")
        store.open()
        return store

    def set_file(self, set_id: str, name: str) -> str:
        return os.path.join(self.store, "sets", set_id, name)

    def objects(self, kind: str = "") -> List[str]:
        return sorted(
            os.path.join(folder, name)
            for folder, dummy, names in os.walk(os.path.join(self.store, "objects"))
            for name in names
            if kind in name
        )

    def leftovers(self) -> List[str]:
        return os.listdir(os.path.join(self.store, "tmp"))

    def live(self) -> Dict[str, Dict[bytes, Any]]:
        """What is saved, as it is now: without logs and what is volatile. A database counts by its rows."""
        seen = {}
        for name, path in self.paths.items():
            # A relative name of nothing but the entry itself stays comparable between a file and a folder.
            seen[name] = look_at(path, skip=[*self.params["logs"], *self.params["volatile"]])
        return seen

    def destroy(self) -> None:
        for path in self.paths.values():
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.lexists(path):
                os.unlink(path)


def make_database(path: str, rows: int, journal_mode: str = "wal") -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal_mode}")
        connection.execute("CREATE TABLE ledger (id INTEGER PRIMARY KEY, text TEXT)")
        connection.executemany("INSERT INTO ledger VALUES (?, ?)", [(number, "x" * 50) for number in range(rows)])
        connection.commit()


def add_rows(path: str, rows: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany("INSERT INTO ledger (text) VALUES (?)", [("y",)] * rows)
        connection.commit()


def rows_of(path: str) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
        found: int = connection.execute("SELECT count(*) FROM ledger").fetchone()[0]
        return found


def dump_of(path: str) -> str:
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
        return hashlib.sha256("\n".join(connection.iterdump()).encode()).hexdigest()


def look_at(top: str, skip: Sequence[str] = (), times: bool = True) -> Dict[bytes, Any]:
    """Return everything below a path that a restore has to bring back, by path; empty where nothing is.

    Which names share an inode counts, its number does not.
    """
    skipped = {os.fsencode(path) for path in skip}
    start = os.fsencode(top)
    found: Dict[bytes, Any] = {}
    inodes: Dict[Tuple[int, int], List[bytes]] = {}
    queue = [start]
    while queue:
        path = queue.pop()
        if path in skipped or os.path.basename(path) == b".opskit-restore" or path.endswith((b"-wal", b"-shm")):
            continue
        try:
            state = os.lstat(path)
        except FileNotFoundError:
            continue
        name = path[len(start) :]
        content: Any = None
        kind = state.st_mode & 0o170000
        if kind == 0o100000 and path.endswith(b".db"):
            # An image is the same database in its own bytes.
            content = dump_of(os.fsdecode(path))
        elif kind == 0o100000:
            with open(path, "rb") as stream:
                content = hashlib.sha256(stream.read()).hexdigest() if state.st_size < 1 << 28 else state.st_size
            inodes.setdefault((state.st_dev, state.st_ino), []).append(name)
        elif kind == 0o120000:
            content = os.readlink(path)
        elif kind == 0o040000:
            queue.extend(os.path.join(path, child) for child in os.listdir(path))
        attributes = {
            attribute: os.getxattr(path, attribute, follow_symlinks=False) for attribute in os.listxattr(path, follow_symlinks=False)
        }
        stamp = state.st_mtime_ns if times else 0
        size = state.st_size if kind == 0o100000 and not path.endswith(b".db") else 0
        found[name] = [state.st_mode, state.st_uid, state.st_gid, stamp, size, content, attributes]
    for names in inodes.values():
        for name in names:
            found[name].append(sorted(names))
    return found


def store_state(store: str) -> Dict[str, Tuple[int, int, int]]:
    """Return inode, size and time of everything in a store but its cache."""
    seen = {}
    for folder, dirs, files in os.walk(store):
        for name in [*dirs, *files, "."]:
            path = os.path.join(folder, name)
            if "/cache" not in path[len(store) :]:
                state = os.lstat(path)
                seen[path] = (state.st_ino, state.st_size, state.st_mtime_ns)
    return seen


def plan_of(result: Dict[str, Any]) -> List[Tuple[str, str, str]]:
    return [(step["step"], step["target"], step["reason"]) for step in result["plan"]]


def flip_bit(path: str, offset: Optional[int] = None) -> None:
    """Change one bit of a file (in its middle) and nothing else of it, its time included."""
    state = os.stat(path)
    with open(path, "r+b") as stream:
        stream.seek(state.st_size // 2 if offset is None else offset)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@contextmanager
def folder_for(user: int) -> Iterator[str]:
    """Make a folder that a user without rights may work in; a test's usual one lies below one of root's."""
    top = tempfile.mkdtemp(prefix="opskit-test-")
    try:
        if os.geteuid() == 0:
            os.chown(top, user, user)
        yield top
    finally:
        for folder, dirs, _files in os.walk(top):
            for name in dirs:
                if not os.path.islink(os.path.join(folder, name)):
                    os.chmod(os.path.join(folder, name), 0o700)
        shutil.rmtree(top)


def as_plain_user(work: Callable[[], Any], user: int = NOBODY) -> Any:
    """Run something as a user without rights and return what it returned (JSON), or ``{"error": text}`` for what it raised.

    Not root already: this very process is such a user, but a child keeps what it changes to itself.
    """
    reader, writer = os.pipe()

    def child() -> None:
        if os.geteuid() == 0:
            # What is imported on first use is imported now: the interpreter may lie where only root may read.
            with tempfile.TemporaryDirectory() as top:
                app = App(top).build()
                app.live()
                app.backup()
                app.destroy()
                app.restore()
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        try:
            value = work()
        except Exception as error:
            value = {"error": str(error), "kind": type(error).__name__}
        with os.fdopen(writer, "w") as stream:
            json.dump(value, stream)

    code = in_child(child)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    assert code == 0
    return json.loads(text)


CHANGES = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.chown",
    "os.utime",
    "subprocess.Popen",
    "sqlite3.connect",
)
"""What changes the world, by the names of Python's audit events (https://docs.python.org/3/library/audit_events.html)."""


def count_changes(then: Callable[[int], None]) -> None:
    """Call a function with the number of each change to the world that this process is about to make, fsync(2) included."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        then(seen)

    def hook(event: str, args: Tuple[Any, ...]) -> None:
        changes = event in CHANGES
        if event == "open":
            changes = isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        elif event == "ctypes.dlsym":
            changes = args[1] in ("renameat2", "syncfs")
        if changes:
            count()

    flush = os.fsync

    def fsync(fd: Any) -> None:
        count()
        flush(fd)

    os.fsync = fsync
    sys.addaudithook(hook)


def killed_at(number: int, work: Callable[[], Any]) -> bool:
    """Run something in a child that kills itself in place of its n-th change. False: it came to its end before that."""

    def kill(seen: int) -> None:
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        count_changes(kill)
        work()

    code = in_child(child)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def number_of_changes(work: Callable[[], Any]) -> int:
    """Run something in a child and return how many changes it makes."""
    reader, writer = os.pipe()

    def child() -> None:
        seen: List[int] = [0]
        count_changes(lambda number: seen.__setitem__(0, number))
        work()
        os.write(writer, str(seen[0]).encode())

    code = in_child(child)
    os.close(writer)
    with os.fdopen(reader) as stream:
        assert code == 0
        return int(stream.read())
