# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real databases, and processes that are really killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from contextlib import closing
from typing import Any, Callable, Iterator, List, Tuple

from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils.children import in_child

# What changes the file system, by the names of Python's audit events (https://docs.python.org/3/library/audit_events.html).
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.setxattr", "sqlite3.connect")


def make_database(path: str, rows: int, journal_mode: str) -> None:
    """Make a database whose table ``ledger`` holds the rows 1 to ``rows``."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal_mode}")
        connection.execute("CREATE TABLE ledger (id INTEGER PRIMARY KEY, half INTEGER NOT NULL, text TEXT)")
        connection.executemany("INSERT INTO ledger VALUES (?, 1, ?)", [(number, "x" * 50) for number in range(1, rows + 1)])
        connection.commit()


def add_rows_without_checkpoint(path: str, rows: int) -> None:
    """Commit rows to the -wal in a process that is killed, so that nothing is checkpointed."""

    def work() -> None:
        connection = sqlite3.connect(path)
        connection.executemany("INSERT INTO ledger (half) VALUES (?)", [(1,)] * rows)
        connection.commit()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL


def count_rows(path: str) -> int:
    """Count the ledger's rows as the application would."""
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute("SELECT count(*) FROM ledger").fetchone()[0]
        return found


def kill_before_change(number: int) -> None:
    """Make this process kill itself in place of its n-th change to the file system."""
    seen = 0

    def hook(event: str, args: Tuple[Any, ...]) -> None:
        nonlocal seen
        changes = event in CHANGES
        if event == "open":
            changes = isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        elif event == "ctypes.dlsym":
            changes = args[1] == "renameat2"
        if changes:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def each_kill(work: Callable[[], Any], prepare: Callable[[], Any]) -> Iterator[int]:
    """Prepare and run ``work`` again and again, killed one change later each time, until it comes to its end."""
    for number in range(1, 200):
        prepare()

        def killed(number: int = number) -> None:
            kill_before_change(number)
            work()

        code = in_child(killed)
        if code == 0:
            assert number > 5, "the hook saw next to nothing"
            return
        assert code == -signal.SIGKILL
        yield number
    raise AssertionError("it never came to its end")


def flip_bit(path: str, offset: int) -> None:
    """Change one bit of a file and nothing else of it, its time included."""
    state = os.stat(path)
    with open(path, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def listing(folder: str) -> List[str]:
    """Return the sorted names in a folder."""
    return sorted(os.listdir(folder))
