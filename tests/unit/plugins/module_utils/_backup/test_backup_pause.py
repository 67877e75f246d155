# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set of one moment, made of an application that writes all the time but for a pause."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._application import wiring
from ansible_collections.opskit.runbooks.plugins.module_utils._backup import source
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.create import BackupSet
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.plugins.module_utils._core.operation import carry_out
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import BACKUP, App, make_database

WRITER = """
import hashlib, os, sqlite3, sys, time
root, mode = sys.argv[1:]
hold, held = root + "/hold", root + "/held"
database = sqlite3.connect(root + "/data/app.db", timeout=10)
number, stop = 0, time.time() + 120
while time.time() < stop and not os.path.exists(root + "/stop"):
    if os.path.exists(hold) and mode != "deaf":
        if not os.path.exists(held):
            open(held, "w").close()
        time.sleep(0.001)
        continue
    if os.path.exists(held):
        os.unlink(held)
    number += 1
    # A row and the file that it speaks of, in two steps, as applications write; every few steps one is replaced or goes.
    name = f"upload{number % 40}"
    content = f"{number} " * 400
    path = f"{root}/data/uploads/{name}"
    with open(path + ".part", "w") as stream:
        stream.write(content)
    os.rename(path + ".part", path)
    digest = hashlib.sha256(content.encode()).hexdigest()
    database.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?)", (name, digest))
    if number % 7 == 0:
        database.execute("DELETE FROM uploads WHERE name = ?", (name,))
        os.unlink(path)
    database.commit()
    time.sleep(0.004)
"""


class Hold:
    """The application's own pause: it holds its writes while a file is there. What goes wrong is told by ``fault``."""

    guarantee = "paused"

    def __init__(self, app: App, fault: str = "") -> None:
        self.app = app
        self.fault = fault
        self.calls: List[str] = []

    def recover(self) -> str:
        self.calls.append("recover")
        return "a pause that an earlier run left behind was ended" if self.fault == "left" else ""

    def begin(self) -> None:
        self.calls.append("begin")
        if self.fault == "begin":
            raise OpskitError("the hook failed", "pause")
        Path(self.app.at("hold")).touch()
        stop = time.time() + 10
        while not os.path.exists(self.app.at("held")):
            assert time.time() < stop
            time.sleep(0.001)

    def lost(self) -> str:
        self.calls.append("lost")
        return "it expired" if self.fault == "lost" else ""

    def end(self) -> None:
        self.calls.append("end")
        os.unlink(self.app.at("hold"))
        if self.fault == "end":
            raise OpskitError("the application does not answer", "resume")


@pytest.fixture(params=["wal", "rollback"])
def app(tmp_path: Path, request: pytest.FixtureRequest) -> App:
    app = App(str(tmp_path)).build()
    os.unlink(app.at("data/app.db"))
    make_database(app.at("data/app.db"), 50, {"wal": "wal", "rollback": "delete"}[request.param])
    with closing(sqlite3.connect(app.at("data/app.db"))) as connection:
        connection.execute("CREATE TABLE uploads (name TEXT PRIMARY KEY, digest TEXT)")
        connection.commit()
    for number in range(300):
        app.write(f"data/uploads/still{number}", "content\n" * 500)
    return app


@contextmanager
def writing(app: App) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", WRITER, app.root, "obedient"]) as process:
        time.sleep(0.5)
        try:
            yield
        finally:
            Path(app.at("stop")).touch()
            assert process.wait(20) == 0
            os.unlink(app.at("stop"))


def operation(app: App, pause: Optional[Hold], **options: Any) -> BackupSet:
    made = wiring.backup_set({**app.params, **BACKUP, "unchanged_interval": 0, "databases": databases(app)}, app.clock)
    made.pause = pause
    made.options = made.options._replace(**options)
    return made


def databases(app: App) -> List[Dict[str, Any]]:
    from ansible_collections.opskit.runbooks.plugins.module_utils._application.description import database_spec

    unset = dict.fromkeys(database_spec()["options"])
    return [{**unset, **item} for item in app.params["databases"]]


def torn(app: App) -> List[str]:
    """Return the rows without their file and the files without their row, as they lie on disk."""
    folder = app.at("data/uploads")
    files = {name: hashlib.sha256(Path(folder, name).read_bytes()).hexdigest() for name in os.listdir(folder) if name.startswith("upload")}
    with closing(sqlite3.connect(f"file:{app.at('data/app.db')}?mode=ro&immutable=1", uri=True)) as connection:
        rows = dict(connection.execute("SELECT name, digest FROM uploads"))
    return sorted(name for name in {*files, *rows} if files.get(name) != rows.get(name))


def test_a_set_of_one_moment(app: App) -> None:
    """Four sets in a row while it writes: no row without its file, nor the other way round, in any of them."""
    made = []
    with writing(app):
        for _number in range(4):
            pause = Hold(app)
            result = carry_out(operation(app, pause, require_pause=True), False, app.clock)
            assert pause.calls == ["recover", "begin", "lost", "end"]
            assert result["set"]["guarantee"] == "paused"
            assert 0 < result["set"]["pause_s"] == result["phases"]["pause_s"] < 5
            assert result["set"]["verified"] == "content"
            made.append(result["set"]["id"])
    assert app.leftovers() == []
    assert app.verify(set="all")["failure"] == ""
    late = [shard.id for manifest in app.opened().sets() for shard in manifest.shards if "changes" in shard.id]
    assert late, "nothing was copied in the pause"
    for set_id in made:
        app.destroy()
        app.restore(set=set_id)
        assert torn(app) == []
        target = os.path.join(app.top, set_id)
        subprocess.run(["sh", app.set_file(set_id, "restore.sh"), target], check=True, stdout=subprocess.DEVNULL, timeout=60)
        assert sorted(os.listdir(target + "/data/uploads")) == sorted(os.listdir(app.at("data/uploads")))


def test_nothing_changed_pauses_nothing(app: App) -> None:
    carry_out(operation(app, Hold(app, "begin")), False, app.clock)
    pause = Hold(app)
    made = operation(app, pause, unchanged_interval_s=72000)
    assert carry_out(made, False, app.clock)["changed"] is False
    assert pause.calls == ["recover"]


def test_a_rehearsal_pauses_nothing(app: App) -> None:
    pause = Hold(app)
    plan = carry_out(operation(app, pause), True, app.clock)["plan"]
    assert pause.calls == []
    assert plan[-1]["step"] == "publish set"


@pytest.mark.parametrize("fault", ["begin", "lost"])
def test_without_the_pause(app: App, fault: str) -> None:
    """The set is made all the same and says what it is worth; where a pause is required there is none, and writes go on."""
    with writing(app):
        result = carry_out(operation(app, Hold(app, fault)), False, app.clock)
        assert result["set"]["guarantee"] == "none"
        assert any({"begin": "could not be paused", "lost": "did not hold"}[fault] in text for text in result["warnings_"])
        sets = len(app.info()["sets"])
        with pytest.raises(OpskitError, match=r"no set was made, because .*(could not be paused|did not hold)"):
            carry_out(operation(app, Hold(app, fault), require_pause=True), False, app.clock)
        assert len(app.info()["sets"]) == sets
        assert app.leftovers() == []
        assert not os.path.exists(app.at("hold"))


def test_the_application_does_not_write_again(app: App) -> None:
    with writing(app):
        made = operation(app, Hold(app, "end"))
        result = carry_out(made, False, app.clock)
    assert result["set"]["verified"] == "content"
    assert "does not write again: resume: the application does not answer" in made.failure()


def test_what_an_earlier_run_left(app: App) -> None:
    with writing(app):
        result = carry_out(operation(app, Hold(app, "left")), False, app.clock)
    assert "a pause that an earlier run left behind was ended" in result["warnings_"]


def test_an_error_in_the_pause_ends_it(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = Hold(app)
    with writing(app):
        made = operation(app, pause)

        def fail(*_arguments: Any) -> None:
            raise OpskitError("something broke")

        monkeypatch.setattr(made, "_copy_late", fail)
        with pytest.raises(OpskitError, match="something broke"):
            carry_out(made, False, app.clock)
        assert pause.calls[-1] == "end"
    assert app.leftovers() == []


def test_a_database_that_appears_before_the_pause(app: App) -> None:
    """Nobody has named it, and the plan did not know it; it is an image of the same moment all the same."""

    class Late(Hold):
        def begin(self) -> None:
            make_database(self.app.at("projects/b/late.sqlite"), 30)

        def end(self) -> None:
            pass

    app.backup()
    result = carry_out(operation(app, Late(app)), False, app.clock)
    assert len(result["set"]["databases"]) == 2
    assert result["set"]["verified"] == "content"
    app.destroy()
    app.restore()
    with closing(sqlite3.connect(app.at("projects/b/late.sqlite"))) as connection:
        assert connection.execute("SELECT count(*) FROM ledger").fetchone() == (30,)


@pytest.mark.parametrize("after", ["gone", "a text"])
def test_an_undeclared_database_that_is_none_any_more(app: App, after: str) -> None:
    """The plan has seen one that nobody has named; by the time of the pause it is gone, or a file like any other."""
    path = Path(app.at("projects/b/temporary.sqlite"))

    class Late(Hold):
        def begin(self) -> None:
            path.unlink()
            if after == "a text":
                path.write_text("text\n" * 50, encoding="utf-8")

        def end(self) -> None:
            pass

    make_database(str(path), 30)
    result = carry_out(operation(app, Late(app), require_pause=True), False, app.clock)
    assert result["set"]["databases"] == ["app"]
    wanted = app.live()
    app.destroy()
    app.restore()
    assert app.live()["projects"] == wanted["projects"]


def test_a_database_that_goes_before_the_pause(app: App) -> None:
    class Late(Hold):
        def begin(self) -> None:
            os.unlink(self.app.at("data/app.db"))

        def end(self) -> None:
            pass

    with pytest.raises(OpskitError, match="it went while it was looked at"):
        carry_out(operation(app, Late(app)), False, app.clock)
    assert app.leftovers() == []


def test_times_of_whole_seconds(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """On some file systems a file can be written twice at the same time; what the pause is of is the second content."""

    class Late(Hold):
        def begin(self) -> None:
            Path(self.app.at("data/uploads/hot")).write_bytes(b"B" * 1000)

        def end(self) -> None:
            pass

    fine = source._add

    def coarse(entries: List[source.Entry], path: str, state: os.stat_result) -> bool:
        if not fine(entries, path, state):
            return False
        entry = entries[-1]
        entries[-1] = entry._replace(mtime_ns=entry.mtime_ns // 10**9 * 10**9, ctime_ns=entry.ctime_ns // 10**9 * 10**9)
        return True

    monkeypatch.setattr(source, "_add", coarse)
    time.sleep(1.01 - time.time() % 1)
    Path(app.at("data/uploads/hot")).write_bytes(b"A" * 1000)
    carry_out(operation(app, Late(app), require_pause=True), False, app.clock)
    app.destroy()
    app.restore()
    assert Path(app.at("data/uploads/hot")).read_bytes() == b"B" * 1000


def test_most_of_a_shard_changes_before_the_pause(app: App) -> None:
    """More stale members than are left out one by one: the shard is given up, all of it is copied in the pause."""

    class Busy(Hold):
        def begin(self) -> None:
            for number in range(280):
                self.app.write(f"data/uploads/still{number}", "other\n" * 500)
            for number in range(5):
                os.unlink(self.app.at(f"data/uploads/still{290 + number}"))

        def end(self) -> None:
            pass

    result = carry_out(operation(app, Busy(app)), False, app.clock)
    assert result["set"]["verified"] == "content"
    manifest = app.opened().sets()[-1]
    assert "stale" not in json.dumps(app.opened().members(manifest))
    wanted = app.live()
    app.destroy()
    app.restore()
    wanted["data"][b""] = app.live()["data"][b""]
    assert app.live() == wanted
