# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What changed is stored beside the shards that are there; their stale copies never come back."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._backup import shards
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.manifest import STALE
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import App, flip_bit, look_at


@pytest.fixture
def app(tmp_path: Path) -> App:
    """Make an application with enough files that a few of them are no half of a shard."""
    app = App(str(tmp_path)).build()
    for number in range(60):
        app.write(f"data/uploads/many{number:02d}.txt", f"content of {number}\n" * 300)
    return app


def come_back(app: App, wanted: Dict[str, Any], **options: Any) -> None:
    app.destroy()
    app.restore(**options)
    now = app.live()
    # A folder that logs or volatile paths left has another time.
    now["data"][b""][3] = wanted["data"][b""][3]
    assert now == wanted


def stale_of(app: App) -> List[str]:
    store = app.opened()
    return sorted(value["path"] for value in store.members(store.sets()[-1]) if STALE in value)


def by_hand(app: App, set_id: str, target: str) -> None:
    subprocess.run(["sh", app.set_file(set_id, "restore.sh"), target], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_a_few_changes_cost_their_own_bytes(app: App) -> None:
    first = app.backup()
    objects = set(app.objects())
    before = app.live()
    Path(app.at("data/uploads/many07.txt")).write_bytes(os.urandom(5000))
    Path(app.at("data/uploads/new.txt")).write_bytes(os.urandom(5000))
    os.unlink(app.at("data/uploads/many08.txt"))
    second = app.backup()
    assert ("store shard", "data:files-changes.0", "1 new, 1 changed") in [(x["step"], x["target"], x["reason"]) for x in second["plan"]]
    assert objects < set(app.objects())
    assert second["set"]["new_bytes"] < 13000
    assert second["set"]["files"] == first["set"]["files"]
    assert stale_of(app) == ["uploads/many07.txt", "uploads/many08.txt"]
    assert app.backup()["changed"] is False
    assert app.verify(set="all")["failure"] == ""
    after = app.live()
    target = os.path.join(app.top, "by hand")
    by_hand(app, second["set"]["id"], target)
    assert sorted(os.listdir(target + "/data/uploads")) == sorted(os.listdir(app.at("data/uploads")))
    assert Path(target, "data/uploads/many07.txt").read_bytes() == Path(app.at("data/uploads/many07.txt")).read_bytes()
    come_back(app, after)
    come_back(app, before, set=first["set"]["id"])


def test_only_a_deletion(app: App) -> None:
    app.backup()
    state = os.stat(app.at("data/uploads"))
    os.unlink(app.at("data/uploads/many08.txt"))
    os.utime(app.at("data/uploads"), ns=(state.st_atime_ns, state.st_mtime_ns))
    result = app.backup()
    assert "1 files of data are gone" in result["reason"]
    come_back(app, app.live())


def test_small_changes_are_made_one_and_worn_shards_anew(app: App) -> None:
    """Day after day something else changes: few shards of changes, and no shard that is mostly stale."""
    chance = random.Random(7)
    lives = {}
    for _day in range(12):
        for number in chance.sample(range(60), 3):
            app.write(f"data/uploads/many{number:02d}.txt", f"{chance.random()}\n" * 300)
        result = app.backup()
        lives[result["set"]["id"]] = app.live()
    store = app.opened()
    manifest = store.sets()[-1]
    changes = [shard for shard in manifest.shards if shard.id.startswith("data:files-changes")]
    assert len(changes) == 1
    members = store.members(manifest)
    for shard in manifest.shards:
        sizes = [(value.get("size", 0), STALE in value) for value in members if value["shard"] == shard.id]
        assert sum(size for size, stale in sizes if stale) * shards.STALE_SHARE <= sum(size for size, _stale in sizes), shard.id
    assert app.verify(set="all")["failure"] == ""
    for set_id in chance.sample(sorted(lives), 4):
        come_back(app, lives[set_id], set=set_id)


def test_too_many_shards_of_changes(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SMALL_CHANGES", 1)
    monkeypatch.setattr(shards, "MOST_CHANGES", 3)
    for day in range(6):
        app.write(f"data/uploads/day{day}.txt", f"{day}\n")
        app.backup()
    changes = [shard.id for shard in app.opened().sets()[-1].shards if shard.id.startswith("data:files-changes")]
    assert 0 < len(changes) <= 4
    come_back(app, app.live())


def test_a_stale_member_becomes_something_else(app: App) -> None:
    """A file becomes a folder, a link, empty, or another name of a file; names of all kinds are left out of their shards."""
    odd = "data/uploads/odd [x]* \\n\n'q' $HOME \udcff"
    app.write(odd, "odd\n" * 50)
    app.write("data/uploads/-rf", "dash\n" * 50)
    app.backup()
    for name in ("many01", "many02", "many03", "many04"):
        os.unlink(app.at(f"data/uploads/{name}.txt"))
    os.mkdir(app.at("data/uploads/many01.txt"))
    app.write("data/uploads/many01.txt/inner", "inner\n")
    os.symlink("many05.txt", app.at("data/uploads/many02.txt"))
    app.write("data/uploads/many03.txt", "")
    os.link(app.at("data/uploads/many06.txt"), app.at("data/uploads/many04.txt"))
    app.write(odd, "new\n" * 60)
    os.unlink(app.at("data/uploads/-rf"))
    set_id = app.backup()["set"]["id"]
    assert app.backup()["changed"] is False
    wanted = app.live()
    target = os.path.join(app.top, "by hand")
    by_hand(app, set_id, target)
    assert look_at(target + "/data/uploads") == look_at(app.at("data/uploads"))
    come_back(app, wanted)


def test_other_names_of_a_stale_member(app: App) -> None:
    """In the archive two are only names of the first; when that is left out, so are they."""
    for name in ("link1", "link2"):
        os.link(app.at("data/uploads/many00.txt"), app.at(f"data/uploads/z{name}.txt"))
    app.backup()
    os.unlink(app.at("data/uploads/many00.txt"))
    app.backup()
    wanted = app.live()
    come_back(app, wanted)
    with open(app.at("data/uploads/zlink2.txt"), "a") as stream:
        stream.write("more")
    app.backup()
    come_back(app, app.live())
    assert os.stat(app.at("data/uploads/zlink1.txt")).st_nlink == 2


def test_two_files_become_one(app: App) -> None:
    """A tool that links equal files changes neither content nor times of them, wherever they are stored."""
    app.backup()
    one, two = app.at("data/uploads/many00.txt"), app.at("data/uploads/new.txt")
    shutil.copy2(one, two)
    app.backup()
    os.unlink(two)
    os.link(one, two)
    app.backup()
    assert app.backup()["changed"] is False
    come_back(app, app.live())
    assert os.stat(one).st_nlink == 2


def test_two_files_of_worn_shards_become_one(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both shards are made anew, and the two names go into one of them."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 20000)
    one, two = app.write("config/a1", "same\n"), app.at("config/b2")
    app.write("config/a2", "a" * 15000)
    app.write("config/b1", "b" * 15000)
    shutil.copy2(one, two)
    app.backup()
    homes = {value["path"]: value["shard"] for value in app.opened().members(app.opened().sets()[-1])}
    assert homes["a1"] == homes["a2"] != homes["b1"] == homes["b2"]
    app.write("config/a2", "c" * 15000)
    app.write("config/b1", "d" * 15000)
    os.unlink(two)
    os.link(one, two)
    app.backup()
    come_back(app, app.live())
    assert os.stat(one).st_nlink == 2


def test_many_files_get_second_names(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out of a shard is named in one command, which has room for so many names only."""
    monkeypatch.setattr(shards, "STALE_MEMBERS", 10)
    app.backup()
    os.mkdir(app.at("data/copy"))
    for number in range(15):
        os.link(app.at(f"data/uploads/many{number:02d}.txt"), app.at(f"data/copy/{number}"))
    app.backup()
    assert len(stale_of(app)) <= 10
    come_back(app, app.live())
    assert os.stat(app.at("data/copy/7")).st_nlink == 2


def test_damage_of_a_stale_member_is_found_and_mended(app: App) -> None:
    """Nobody needs that copy any more, but the object is not what it was: it fails, and the next set stores its good members again."""
    app.backup()
    app.write("data/uploads/many09.txt", "new\n" * 100)
    app.backup()
    manifest = app.opened().sets()[-1]
    worn = next(shard for shard in manifest.shards if shard.id == "data:files.0")
    flip_bit(os.path.join(app.store, "objects", worn.object[:2], worn.object))
    assert worn.object in app.verify()["failure"]
    healed = app.backup()
    assert "damaged" in str(healed["plan"])
    assert healed["set"]["verified"] == "content"
    assert stale_of(app) == []
    come_back(app, app.live())


def test_a_lost_cache_stores_nothing_twice(app: App) -> None:
    app.backup()
    app.write("data/uploads/many09.txt", "new\n" * 100)
    app.backup()
    shutil.rmtree(os.path.join(app.store, "cache"))
    objects = app.objects()
    app.backup(unchanged_interval=0)
    assert app.objects() == objects


def test_the_cache_of_another_set_is_not_relied_on(app: App) -> None:
    app.backup()
    cache = Path(app.store, "cache/fingerprints.json")
    old = cache.read_bytes()
    app.write("data/uploads/many09.txt", "new\n" * 100)
    app.backup()
    cache.write_bytes(old)
    objects = app.objects()
    app.write("config/new", "x")
    app.backup()
    assert len(app.objects()) == len(objects) + 2
    come_back(app, app.live())
