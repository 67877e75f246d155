# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.database import SqliteDatabase
from ansible_collections.opskit.runbooks.plugins.module_utils._sqlite.errors import SqliteError
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._sqlite.databases import (
    add_rows_without_checkpoint,
    count_rows,
    flip_bit,
    in_child,
    listing,
    make_database,
)

# Two rows a transaction, and a line for each transaction once it is committed.
WRITER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
while True:
    connection.execute("BEGIN IMMEDIATE")
    for half in (1, 2):
        last = connection.execute("INSERT INTO ledger (half) VALUES (?)", (half,)).lastrowid
    connection.execute("COMMIT")
    print(last, flush=True)
    time.sleep(0.01)
"""


def failed(database: SqliteDatabase, path: str, facts: Dict[str, Any]) -> List[str]:
    return [check.check for check in database.check_image(path, facts) if not check.ok]


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_image_of_a_quiet_database(tmp_path: Path, journal_mode: str) -> None:
    path, target = str(tmp_path / "app.db"), str(tmp_path / "image")
    make_database(path, 300, journal_mode)
    database = SqliteDatabase("app", path, 1)
    before = database.fingerprint()
    old_umask = os.umask(0)
    try:
        facts = database.image(target)
    finally:
        os.umask(old_umask)
    assert facts["rows"] == {"ledger": 300}
    assert facts["journal_mode"] == ("wal" if journal_mode == "wal" else "rollback")
    assert facts["bytes"] == os.stat(target).st_size <= database.size()
    assert os.stat(target).st_mode & 0o777 == 0o600
    assert failed(database, target, facts) == []
    assert database.fingerprint() == before
    assert [name for name in listing(str(tmp_path)) if name.startswith("image")] == ["image"]
    # Header bytes 18 and 19 keep the journal mode.
    assert Path(target).read_bytes()[18:20] == (b"\2\2" if journal_mode == "wal" else b"\1\1")


def test_image_holds_what_is_only_in_the_wal(tmp_path: Path) -> None:
    path = str(tmp_path / "app.db")
    make_database(path, 10, "wal")
    add_rows_without_checkpoint(path, 500)
    os.unlink(path + "-shm")
    facts = SqliteDatabase("app", path, 1).image(str(tmp_path / "image"))
    assert facts["rows"]["ledger"] == 510
    assert count_rows(str(tmp_path / "image")) == 510


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_images_under_writes_lose_nothing_and_tear_nothing(tmp_path: Path, journal_mode: str) -> None:
    path = str(tmp_path / "app.db")
    make_database(path, 3000, journal_mode)
    database = SqliteDatabase("app", path, 10)
    log = tmp_path / "committed"
    with log.open("wb") as stream:
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=stream)
    try:
        while not log.read_bytes():
            time.sleep(0.01)
        for number in range(8):
            target = str(tmp_path / f"image{number}")
            # The last whole line: what the writer knows to be committed before the image is begun.
            committed = int(log.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2])
            facts = database.image(target)
            assert failed(database, target, facts) == []
            with closing(sqlite3.connect(target)) as image:
                ids = [row[0] for row in image.execute("SELECT id FROM ledger ORDER BY id")]
                halves = image.execute("SELECT half, count(*) FROM ledger WHERE id > 3000 GROUP BY half").fetchall()
            assert ids == list(range(1, ids[-1] + 1))
            assert ids[-1] >= committed
            assert halves[0][1] == halves[1][1]
            time.sleep(0.05)
        assert writer.poll() is None
        assert committed > 3010
    finally:
        writer.kill()
        writer.wait()


def test_locked_database_is_given_up_after_the_deadline(tmp_path: Path) -> None:
    path = str(tmp_path / "app.db")
    make_database(path, 10, "delete")
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        with pytest.raises(SqliteError, match=r"locked by another process for longer than 0\.5 s"):
            SqliteDatabase("app", path, 0.5).image(str(tmp_path / "image"))
        assert 0.4 < time.monotonic() - started < 3
    assert not [name for name in listing(str(tmp_path)) if name.startswith("image")]


def test_exclusive_wal_database_is_given_up_after_the_deadline(tmp_path: Path) -> None:
    path = str(tmp_path / "app.db")
    make_database(path, 10, "wal")
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA locking_mode=EXCLUSIVE")
        writer.execute("INSERT INTO ledger (half) VALUES (1)")
        with pytest.raises(SqliteError, match="locked by another process"):
            SqliteDatabase("app", path, 0.3).image(str(tmp_path / "image"))
    assert not (tmp_path / "image").exists()


def test_hot_journal_is_named_and_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "app.db")
    make_database(path, 10, "delete")

    def cut_off() -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO ledger (half, text) VALUES (1, ?)", [("y" * 9000,)] * 50)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(cut_off) == -signal.SIGKILL
    journal = Path(path + "-journal").read_bytes()
    with pytest.raises(SqliteError, match="rollback journal is still to be played back"):
        SqliteDatabase("app", path, 1).image(str(tmp_path / "image"))
    assert Path(path + "-journal").read_bytes() == journal
    assert not (tmp_path / "image").exists()


def test_folder_that_another_user_can_not_write(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    path = str(tmp_path / "app.db")
    make_database(path, 10, "wal")
    target = tmp_path / "other"
    target.mkdir()
    os.chown(str(target), 65534, 65534)
    folder = tmp_path
    while folder != folder.parent and folder.stat().st_uid == 0 and folder.stat().st_mode & 0o5 != 0o5:
        folder.chmod(0o755)
        folder = folder.parent

    def as_other_user() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        with pytest.raises(SqliteError, match="-wal and -shm"):
            SqliteDatabase("app", path, 1).image(str(target / "image"))
        assert listing(str(target)) == []

    assert in_child(as_other_user) == 0


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "app.db")
    make_database(path, 5000, "wal")

    def limited() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(SqliteError):
            SqliteDatabase("app", path, 1).image(str(tmp_path / "image"))

    assert in_child(limited) == 0
    assert not [name for name in listing(str(tmp_path)) if name.startswith("image")]
    assert count_rows(path) == 5000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "the file is empty"),
        (b"SQLite format 3\0", "not a SQLite database"),
        (b"x" * 4096, "not a SQLite database"),
    ],
)
def test_what_is_no_database_is_refused_and_not_made(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "app.db"
    if content is not None:
        path.write_bytes(content)
    before = listing(str(tmp_path))
    database = SqliteDatabase("app", str(path), 1)
    with pytest.raises(SqliteError, match=message):
        database.require()
    with pytest.raises(SqliteError, match=message):
        database.image(str(tmp_path / "image"))
    assert failed(database, str(path), {}) == ["header"]
    assert listing(str(tmp_path)) == before


def test_fifo_and_folder_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(str(tmp_path / "fifo"))
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(SqliteError, match="not a regular file"):
            SqliteDatabase("app", str(path), 1).require()


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_fingerprint_moves_with_each_commit_and_only_then(tmp_path: Path, journal_mode: str) -> None:
    path = str(tmp_path / "app.db")
    make_database(path, 10, journal_mode)
    database = SqliteDatabase("app", path, 1)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT * FROM ledger").fetchall()
        seen = [database.fingerprint(), database.fingerprint()]
        assert seen[0] == seen[1]
        for number in range(3):
            # The same row over and over, so that no size changes.
            connection.execute("UPDATE ledger SET half=? WHERE id=1", (number + 5,))
            connection.commit()
            assert database.fingerprint() not in seen
            seen.append(database.fingerprint())


def test_fingerprint_tells_commits_in_one_tick_apart(tmp_path: Path) -> None:
    """The worst case: a -wal written over from its start keeps its size, and the clock's tick its time."""
    path = str(tmp_path / "app.db")
    make_database(path, 10, "wal")
    database = SqliteDatabase("app", path, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executemany("UPDATE ledger SET half=? WHERE id=1", [(number,) for number in range(50)])
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        for number in range(100, 104):
            connection.execute("UPDATE ledger SET half=? WHERE id=1", (number,))
            before, size = database.fingerprint(), os.stat(path + "-wal").st_size
            connection.execute("UPDATE ledger SET half=? WHERE id=1", (-number,))
            assert os.stat(path + "-wal").st_size == size
            assert database.fingerprint() != before


def test_empty_wal_counts_as_none(tmp_path: Path) -> None:
    path = str(tmp_path / "app.db")
    make_database(path, 10, "wal")
    database = SqliteDatabase("app", path, 1)
    before = database.fingerprint()
    Path(path + "-wal").touch()
    assert database.fingerprint() == before


def test_any_flipped_bit_in_an_image_is_found(tmp_path: Path) -> None:
    path, target = str(tmp_path / "app.db"), str(tmp_path / "image")
    make_database(path, 500, "wal")
    database = SqliteDatabase("app", path, 1)
    facts = database.image(target)
    for offset in range(0, facts["bytes"], 211):
        flip_bit(target, offset)
        assert failed(database, target, facts) != [], offset
        flip_bit(target, offset)
    assert failed(database, target, facts) == []


def test_facts_that_differ_are_told_even_where_the_hash_agrees(tmp_path: Path) -> None:
    path, target = str(tmp_path / "app.db"), str(tmp_path / "image")
    make_database(path, 5, "wal")
    database = SqliteDatabase("app", path, 1)
    facts = database.image(target)
    checks = database.check_image(target, {**facts, "rows": {"ledger": 6, "gone": 1}, "schema": "0"})
    bad = {check.check: check.detail for check in checks if not check.ok}
    assert set(bad) == {"rows", "schema"}
    assert bad["rows"] == "gone: None, 1 recorded; ledger: 5, 6 recorded"


def test_index_that_misses_a_row_is_found_though_everything_else_agrees(tmp_path: Path) -> None:
    path, target = str(tmp_path / "app.db"), str(tmp_path / "image")
    make_database(path, 50, "delete")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE INDEX by_text ON ledger (text)")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql='CREATE INDEX by_text ON ledger (half)' WHERE name='by_text'")
    database = SqliteDatabase("app", path, 1)
    facts = database.image(target)
    assert failed(database, target, facts) == ["integrity_check"]


def test_foreign_keys_that_are_violated_already_are_reported_and_no_failure(tmp_path: Path) -> None:
    path, target = str(tmp_path / "app.db"), str(tmp_path / "image")
    make_database(path, 5, "wal")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE child (parent INTEGER REFERENCES ledger (id))")
        connection.executemany("INSERT INTO child VALUES (?)", [(1,), (77,), (78,)])
        connection.commit()
    database = SqliteDatabase("app", path, 1)
    facts = database.image(target)
    assert facts["foreign_key_violations"] == 2
    assert failed(database, target, facts) == []
    assert failed(database, target, {**facts, "foreign_key_violations": 0}) == ["foreign_key_violations"]


def test_unusual_tables(tmp_path: Path) -> None:
    path, target = str(tmp_path / "app.db"), str(tmp_path / "image")
    make_database(path, 5, "wal")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute('CREATE TABLE "odd "" name" (a PRIMARY KEY) WITHOUT ROWID')
        connection.execute("CREATE VIRTUAL TABLE words USING fts4 (text)")
        connection.execute("INSERT INTO words VALUES ('some text')")
        connection.execute("CREATE TABLE orphan (a REFERENCES ledger (half))")
        connection.execute("INSERT INTO orphan VALUES (1)")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("INSERT INTO sqlite_master VALUES ('table', 'far', 'far', 0, 'CREATE VIRTUAL TABLE far USING nowhere(x)')")
        connection.commit()
    database = SqliteDatabase("app", path, 1)
    facts = database.image(target)
    assert facts["rows"]['odd " name'] == 0
    assert facts["rows"]["words"] == 1
    assert "far" not in facts["rows"]
    assert [note.split(":")[0] for note in facts["notes"]] == [
        "foreign keys not checked",
        "rows of the virtual table far not counted",
    ]
    assert facts["foreign_key_violations"] is None
    assert failed(database, target, facts) == []


@pytest.mark.parametrize("name", [b"with space", b"new\nline", b"what?x=1", b"a#b", b"50%25%", b"not \xff utf-8", b"'quote\""])
def test_odd_names(tmp_path: Path, name: bytes) -> None:
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/" + name)
    make_database(path, 5, "wal")
    add_rows_without_checkpoint(path, 2)
    database = SqliteDatabase("app", path, 1)
    facts = database.image(path + ".image")
    assert facts["rows"] == {"ledger": 7}
    assert failed(database, path + ".image", facts) == []
    assert sorted(os.listdir(os.fsencode(str(tmp_path)))) == sorted([name, name + b"-shm", name + b"-wal", name + b".image"])


def test_link_is_resolved_as_sqlite_does(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    path = str(tmp_path / "real" / "app.db")
    make_database(path, 5, "wal")
    add_rows_without_checkpoint(path, 2)
    (tmp_path / "link.db").symlink_to(path)
    database = SqliteDatabase("app", str(tmp_path / "link.db"), 1)
    assert database.files() == [path, path + "-wal", path + "-shm", path + "-journal"]
    assert database.image(str(tmp_path / "image"))["rows"] == {"ledger": 7}


def test_existing_target_is_never_written_over(tmp_path: Path) -> None:
    path = str(tmp_path / "app.db")
    make_database(path, 5, "wal")
    (tmp_path / "image").write_text("precious")
    with pytest.raises(FileExistsError):
        SqliteDatabase("app", path, 1).image(str(tmp_path / "image"))
    assert (tmp_path / "image").read_text() == "precious"


def test_who_closes_last_does_not_change_what_is_held(tmp_path: Path) -> None:
    """The last connection that closes puts all commits into the main file, unless somebody holds a lock on that."""
    path, target = str(tmp_path / "app.db"), str(tmp_path / "image")
    make_database(path, 300, "wal")
    other = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=5)
connection.execute("UPDATE ledger SET half = 7")
connection.commit()
connection.close()
"""
    with SqliteDatabase("app", path, 1).pinned(target) as write:
        subprocess.run([sys.executable, "-c", other, path], check=True, timeout=60)
        write()
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM ledger WHERE half = 7").fetchone() == (0,)
