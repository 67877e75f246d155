# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of databases as what differs from a whole one: when, against what, and all the ways back."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._backup import archive, images
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.manifest import Image
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import App, FakeClock, dump_of, flip_bit

MONDAY = datetime(2026, 6, 15, 2, tzinfo=timezone.utc)


@pytest.fixture
def app(tmp_path: Path) -> App:
    """Make an application with a database of words that compress badly, on a Monday."""
    app = App(str(tmp_path), FakeClock(MONDAY)).build()
    chance = random.Random(3)
    with closing(sqlite3.connect(app.at("data/app.db"))) as connection:
        connection.executemany("INSERT INTO ledger (text) VALUES (?)", [(f"{chance.getrandbits(400):x}",) for _row in range(3000)])
        connection.commit()
    return app


def day(app: App, rows: int = 5, **by: float) -> Dict[str, Any]:
    app.clock.forward(**(by or {"days": 1}))  # type: ignore[attr-defined]
    chance = random.Random(str(app.clock.now()))
    with closing(sqlite3.connect(app.at("data/app.db"))) as connection:
        values = [(f"{chance.getrandbits(400):x}", chance.randrange(1, 3000)) for _row in range(rows)]
        connection.executemany("UPDATE ledger SET text = ? WHERE id = ?", values)
        connection.commit()
    return app.backup()


def newest(app: App) -> Image:
    return app.opened().sets()[-1].databases[0]


def test_a_week(app: App) -> None:
    """Whole on Monday, deltas against that until Sunday, whole again; each set comes back, by hand too, and needs its base."""
    first = app.backup()
    base = newest(app)
    assert base.base == ""
    dumps = {first["set"]["id"]: dump_of(app.at("data/app.db"))}
    for _day in range(6):
        result = day(app)
        image = newest(app)
        assert (image.base, image.base_bytes, image.full_at) == (base.object, base.stored_bytes, base.full_at)
        assert image.object.endswith(".delta.zst")
        assert image.stored_bytes * 10 < base.stored_bytes
        assert result["set"]["new_bytes"] < base.stored_bytes // 2
        assert image.restore_memory > image.facts["bytes"]
        assert result["set"]["verified"] == "content"
        dumps[result["set"]["id"]] = dump_of(app.at("data/app.db"))
    sunday = result["set"]["id"]
    day(app)
    assert newest(app).base == ""
    assert newest(app).object != base.object
    assert app.verify(set="all")["failure"] == ""
    for set_id in (first["set"]["id"], sunday):
        target = os.path.join(app.top, f"by hand {set_id}")
        subprocess.run(["sh", app.set_file(set_id, "restore.sh"), target], check=True, stdout=subprocess.DEVNULL, timeout=60)
        assert dump_of(target + "/data/app.db") == dumps[set_id]
        assert not [name for name in os.listdir(target + "/data") if "base" in name]
        app.restore(set=set_id)
        assert dump_of(app.at("data/app.db")) == dumps[set_id]
        app.restore(state="purged")
    # The Monday goes, its image stays: the Sunday needs it.
    pruned = app.prune(daily=2, weekly=0, monthly=0, delete_more_than_half=True)
    assert first["set"]["id"] in [one["id"] for one in pruned["deleted"]]
    assert app.opened().has_object(base.object, base.stored_bytes)
    app.restore(set=sunday)
    assert dump_of(app.at("data/app.db")) == dumps[sunday]


def test_a_new_month_in_a_week(app: App) -> None:
    app.clock.moment = datetime(2026, 6, 29, 2, tzinfo=timezone.utc)  # type: ignore[attr-defined]
    app.backup()
    day(app)
    assert newest(app).base
    day(app)
    assert newest(app).base == ""


def test_unchanged_over_the_week_end(app: App) -> None:
    """The whole one of last week is kept as it is, and the first change of this week makes a new one."""
    app.backup()
    base = newest(app)
    app.clock.forward(days=7)  # type: ignore[attr-defined]
    app.backup()
    assert newest(app).object == base.object
    day(app, hours=5)
    assert newest(app).base == ""


def test_a_delta_that_is_hardly_smaller(app: App) -> None:
    app.backup()
    base = newest(app)
    day(app, rows=2900)
    assert newest(app).base == ""
    # The new whole one is what the next is made against.
    day(app)
    assert newest(app).base not in ("", base.object)


@pytest.mark.parametrize("short", ["memory", "disk", "gzip", "size", "base is gone", "base is damaged"])
def test_without_what_a_delta_needs(app: App, short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app.backup()
    base = newest(app)
    path = app.opened().object_path(base.object)
    if short == "memory":
        monkeypatch.setattr(images, "available_memory", lambda: 3 * base.facts["bytes"])
    elif short == "disk":
        monkeypatch.setattr(images, "PATCH_MEMORY", 1e9)
    elif short == "size":
        monkeypatch.setattr(images, "PATCH_BYTES", 1000)
    elif short == "gzip":
        monkeypatch.setattr(archive, "writer_codec", lambda: archive.GZIP)
    elif short == "base is gone":
        os.unlink(path)
    else:
        flip_bit(path)
    result = day(app)
    assert newest(app).base == ""
    assert result["set"]["verified"] == "content"
    assert app.leftovers() == []


def test_damage(app: App) -> None:
    """A base that rots takes all its deltas with it: each fails, names it, and the next set is whole."""
    app.backup()
    base = newest(app)
    day(app)
    day(app)
    flip_bit(app.opened().object_path(base.object))
    failure = app.verify(set="all")
    assert base.object in failure["failure"]
    assert all(not one["ok"] and base.object in str(one["failures"]) for one in failure["sets"])
    with pytest.raises(OpskitError, match="failed its verification"):
        app.restore(set=failure["sets"][-1]["id"])
    result = day(app)
    assert newest(app).base == ""
    assert result["set"]["verified"] == "content"


def test_damage_of_a_delta(app: App) -> None:
    app.backup()
    day(app)
    delta = newest(app)
    flip_bit(app.opened().object_path(delta.object))
    assert delta.object in app.verify()["failure"]
    assert day(app)["set"]["verified"] == "content"


def test_too_little_memory_to_restore(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    app.backup()
    set_id = day(app)["set"]["id"]
    before = app.live()
    monkeypatch.setattr(images, "available_memory", lambda: 1000)
    app.write("config/new", "x")
    with pytest.raises(OpskitError, match=r"decompressing the database app takes .* of memory"):
        app.restore(set=set_id)
    os.unlink(app.at("config/new"))
    assert app.live().keys() == before.keys()


def image(full_at: str, base: str = "") -> Image:
    return Image(
        "app", "sqlite", "", {}, "o.dump.zst", 10, {"bytes": 100}, True, full_at=full_at, base=base, base_bytes=7, base_image_bytes=70
    )


@pytest.mark.parametrize(
    ("known", "moment", "wanted"),
    [
        (None, "2026-06-15", None),
        (image(""), "2026-06-15", None),
        (image("2026-06-15T02:00:00Z"), "2026-06-21", images.Base("o.dump.zst", 10, 100, "2026-06-15T02:00:00Z")),
        (image("2026-06-15T02:00:00Z", "b.dump.zst"), "2026-06-21", images.Base("b.dump.zst", 7, 70, "2026-06-15T02:00:00Z")),
        (image("2026-06-15T02:00:00Z"), "2026-06-22", None),
        (image("2026-06-29T02:00:00Z"), "2026-07-01", None),
        # The same week number and month of another year.
        (image("2025-06-16T02:00:00Z"), "2026-06-15", None),
        # An ISO week that begins in the old year.
        (image("2026-12-28T02:00:00Z"), "2027-01-03", None),
    ],
)
def test_what_a_delta_is_made_against(known: Optional[Image], moment: str, wanted: Optional[images.Base]) -> None:
    assert images.base_of(known, datetime.strptime(moment, "%Y-%m-%d").replace(tzinfo=timezone.utc)) == wanted


def test_room() -> None:
    base = images.Base("o.dump.zst", 10 << 20, 100 << 20, "")
    wanted: List[bool] = [True, False, False, False]
    asked = [
        (100 << 20, 351 << 20, 111 << 20),
        (100 << 20, 349 << 20, 111 << 20),
        (2 << 30, 1 << 40, 1 << 40),
        (100 << 20, 1 << 40, 109 << 20),
    ]
    assert [images.can_patch(base, *one) for one in asked] == wanted
    assert not images.can_patch(base._replace(object="o.dump.gz"), *asked[0])
    assert images.is_worth_it(base, 5 * (1 << 20) - 1)
    assert not images.is_worth_it(base, 5 * (1 << 20))


def test_a_file_beside_the_database_has_any_name(app: App) -> None:
    """What is needed to apply a delta takes no name that a saved file may have."""
    mine = Path(app.write("data/app.db.base", "mine\n"))
    app.backup()
    result = day(app)
    assert newest(app).base
    wanted = app.live()
    target = os.path.join(app.top, "by hand")
    subprocess.run(["sh", app.set_file(result["set"]["id"], "restore.sh"), target], check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert dump_of(target + "/data/app.db") == dump_of(app.at("data/app.db"))
    app.destroy()
    app.restore()
    assert mine.read_text(encoding="utf-8") == "mine\n"
    assert app.live()["config"] == wanted["config"]
    assert sorted(os.listdir(os.path.join(app.top, "app"))) == [".env", ".opskit-restore", "config", "data", "projects"]
