# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults against operations, counted: after each trial what was good is still good, and the next run needs no help.

Small counts here; `make soak` takes those that the claims need and prints the table. Backup and restore with SIGKILL in
place of each of their changes are in test_backup_kill.py.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import time
from contextlib import nullcontext
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Set

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.faults import (
    KEEP,
    PowerCut,
    World,
    a_day_later,
    app_at,
    by_hand,
    can_mount,
    do_prune,
    edit,
    fill,
    identity,
    mounted,
    needed_by,
    next_set,
    pruned,
    require_mount,
    restored,
    row,
    seen,
    sets_of,
    small_disk,
    spread,
    unfill,
    whole,
)
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import (
    SOAK,
    App,
    count_changes,
    killed_at,
    look_at,
    number_of_changes,
)
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils.children import at_once, in_child, killed_after

SEED = 20261124
FLIPS = 500 if SOAK else 6
CUTS = 100 if SOAK else 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for all trials, which work on copies."""
    return World(str(tmp_path_factory.mktemp("faults") / "world"))


@pytest.fixture(name="tmp_path")
def _in_memory(tmp_path: Path) -> Iterator[Path]:
    """Where that can be had, in memory: what is waited for otherwise is the disk of the machine, and all that others write to it."""
    with mounted(str(tmp_path), "-t", "tmpfs", "-o", "size=512m,mode=700", "tmpfs") if can_mount("tmpfs") else nullcontext():
        yield tmp_path


def operation_of(name: str, world: World) -> Callable[[App], Any]:
    calls: Dict[str, Callable[[App], Any]] = {
        "backup": lambda app: app.backup(),
        "verify": lambda app: app.verify(set="all"),
        "prune": do_prune,
        # The oldest, so that everything is another one afterwards.
        "restore": lambda app: app.restore(set=world.ids[0]),
    }
    return calls[name]


def kept_by(name: str, world: World) -> Dict[str, Any]:
    """What an operation must leave as it was."""
    ids = world.ids[-KEEP:] if name == "prune" else world.ids
    return {set_id: world.saved[set_id] for set_id in ids}


class Trial:
    """What has to hold around a fault."""

    def __init__(self, world: World, app: App, operation: str) -> None:
        self.world = world
        self.app = app
        self.operation = operation
        self.run = operation_of(operation, world)
        self.kept = kept_by(operation, world)
        self.live = seen(app)
        self.identity = identity(app)

    def half(self) -> None:
        """Right after the fault: what was good is good, and the live state is all old, or each root of a restore all new."""
        whole(self.app, self.kept, really_all=SOAK)
        # Nor is a good one held for a bad one.
        standing = {one["id"]: one["verified"] for one in self.app.info()["sets"]}
        assert {standing[set_id] for set_id in self.kept} == {"content"}
        for set_id in set(sets_of(self.app)) - set(self.kept):
            # Where a set was being pruned it is all there or not a set any more; a new one is whole or was never verified.
            failure = self.app.verify(check=True, set=set_id)["failure"]
            assert failure == "" or (set_id not in self.world.saved and self.app.info(set_id)["sets"][0]["verified"] != "content")
        if self.operation != "restore":
            assert identity(self.app) == self.identity
            return
        new = self.world.saved[self.world.ids[0]]
        now = seen(self.app)
        for name, root in now.items():
            assert root in (self.live[name], new[name]), name

    def untouched(self) -> None:
        """An operation that says that it failed has not changed the live state."""
        assert identity(self.app) == self.identity

    def again(self) -> None:
        """The next run of the same, and then a backup, unaided."""
        app = self.app
        self.run(app)
        if self.operation == "prune":
            pruned(app, list(self.kept))
        if self.operation == "restore":
            assert seen(app) == self.world.saved[self.world.ids[0]]
            app.clock.forward(days=1)  # type: ignore[attr-defined]
            edit(app, 9)
        if self.operation == "backup":
            newest = app.info()["sets"][0]
            assert newest["id"] not in self.world.saved
            assert newest["verified"] == "content"
            assert app.leftovers() == []
            restored(app, {newest["id"]: self.live})
        else:
            with a_day_later():
                next_set(app)
            assert [name for name in os.listdir(os.path.join(app.store, "cache")) if name.startswith("verify-")] == []
        whole(app, self.kept)


def trial(world: World, tmp_path: Path, operation: str) -> Trial:
    top = tmp_path / "trial"
    shutil.rmtree(top, ignore_errors=True)
    return Trial(world, world.copy(str(top)), operation)


# killed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["verify", "prune"])
def test_killed_in_place_of_each_change(world: World, tmp_path: Path, operation: str) -> None:
    counted = trial(world, tmp_path, operation)
    total = number_of_changes(lambda: counted.run(counted.app))
    with row("SIGKILL in place of a change", operation) as one:
        for number in spread(total, total if SOAK else 2):
            with one.trial(f"change {number} of {total}"):
                it = trial(world, tmp_path, operation)
                assert killed_at(number, lambda it=it: it.run(it.app))  # type: ignore[misc]
                it.half()
                it.again()


@pytest.mark.parametrize("operation", ["backup", "verify", "prune", "restore"])
def test_killed_at_any_moment(world: World, tmp_path: Path, operation: str) -> None:
    dice = random.Random(SEED)
    it = trial(world, tmp_path, operation)
    started = time.monotonic()
    assert in_child(lambda: it.run(it.app)) == 0
    lasted = time.monotonic() - started
    hit = 0
    with row("SIGKILL at any moment, children too", operation) as one:
        for number in range(100 if SOAK else 2):
            # In a pattern over the whole course, and a bit off it each time.
            moment = lasted * ((number * 0.618) % 1 * 0.9 + dice.random() * 0.1)
            with one.trial(f"{moment:.4f} of {lasted:.4f} s"):
                it = trial(world, tmp_path, operation)
                hit += killed_after(moment, lambda it=it: it.run(it.app))  # type: ignore[misc]
                it.half()
                it.again()
    assert hit


# a full disk --------------------------------------------------------------------------------------


def small_world(world: World, tmp_path: Path, operation: str) -> Trial:
    """The store on a disk that is soon full; for a restore the application, with the record of restores, instead."""
    disk, top = tmp_path / "disk", tmp_path / "top"
    for folder in (disk, top):
        for path in folder.iterdir() if folder.exists() else []:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    app = world.copy(str(disk), str(top)) if operation == "restore" else world.copy(str(top), str(disk))
    return Trial(world, app, operation)


def full(call: Callable[[], Any]) -> bool:
    """True when a call fails as a full disk makes it: with words for an operator, or what the system said, which becomes some."""
    try:
        call()
    except OpskitError:
        return True
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return True
    return False


@pytest.mark.parametrize("operation", ["backup", "verify", "prune", "restore"])
def test_a_disk_with_little_space(world: World, tmp_path: Path, operation: str) -> None:
    require_mount("tmpfs")
    # Renaming takes no space, so pruning has nothing that could fail.
    steps = range(0, 2000, 4) if SOAK else [0, 2000]
    failed = went = 0
    with small_disk(str(tmp_path / "disk")), row("ENOSPC: k KiB are free", operation) as one:
        for free in steps:
            with one.trial(f"{free} KiB"):
                it = small_world(world, tmp_path, operation)
                fill(str(tmp_path / "disk"), free * 1024)
                ended = full(lambda it=it: it.run(it.app))  # type: ignore[misc]
                failed += ended
                went += not ended
                if ended:
                    it.untouched()
                newest = world.ids[-1]
                by_hand(it.app, newest, world.saved[newest])
                unfill(str(tmp_path / "disk"))
                it.half()
                it.again()
            if went == (3 if SOAK else 1):
                break
    assert failed or operation == "prune"
    assert went


@pytest.mark.parametrize("operation", ["backup", "verify", "prune", "restore"])
def test_a_disk_that_is_full_from_one_moment_on(world: World, tmp_path: Path, operation: str) -> None:
    require_mount("tmpfs")
    disk = str(tmp_path / "disk")
    ends: List[int] = []
    with small_disk(disk), row("ENOSPC from the n-th change on", operation) as one:
        counted = small_world(world, tmp_path, operation)
        total = number_of_changes(lambda: counted.run(counted.app))
        for number in spread(total, total if SOAK else 2):
            with one.trial(f"change {number} of {total}"):
                it = small_world(world, tmp_path, operation)

                def work(it: Trial = it, number: int = number) -> None:
                    count_changes(lambda seen: fill(disk, 0) if seen == number else None)
                    if full(lambda: it.run(it.app)):
                        os._exit(3)

                ends.append(in_child(work))
                assert ends[-1] in (0, 3)
                if ends[-1]:
                    it.untouched()
                newest = world.ids[-1]
                by_hand(it.app, newest, world.saved[newest])
                unfill(disk)
                it.half()
                it.again()
    assert 3 in ends or operation == "prune"


# damage -------------------------------------------------------------------------------------------


def flipped(path: str, dice: random.Random) -> str:
    offset = dice.randrange(os.path.getsize(path))
    state = os.stat(path)
    with open(path, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        bit = dice.randrange(8)
        stream.seek(offset)
        stream.write(bytes([byte ^ (1 << bit)]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    return f"bit {bit} of byte {offset}"


def cut_off(path: str, dice: random.Random) -> str:
    size = dice.randrange(os.path.getsize(path))
    os.truncate(path, size)
    return f"cut to {size} bytes"


def deleted(path: str, _dice: random.Random) -> str:
    os.unlink(path)
    return "deleted"


DAMAGES = (("a bit flipped", flipped, FLIPS), ("truncated", cut_off, CUTS), ("deleted", deleted, 20 if SOAK else 1))


def words_of(call: Callable[[], Any]) -> str:
    """What a call found or why it was refused; empty where all is well."""
    try:
        result = call()
        return str(result.get("failure", ""))
    except OpskitError as error:
        return str(error)


def damaged(world: World, tmp_path: Path, name: str, dice: random.Random) -> Any:
    """Copy the store and return the path of an artifact in it, the newest set that needs it, and those that do not."""
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    subprocess.run(["cp", "-a", world.app.store, str(tmp_path / "store")], check=True)
    app = app_at(str(tmp_path / "top"), str(tmp_path), world.moment)
    app.state_dir = str(tmp_path / "state")
    if name in OWN:
        hit = dice.choice(world.ids)
        return app, app.set_file(hit, name), hit, [other for other in world.ids if other != hit]
    path = dice.choice([path for path in app.objects() if path.endswith(name)])
    users = [set_id for set_id in world.ids if os.path.basename(path) in needed_by(app, set_id)]
    return app, path, users[-1], [other for other in world.ids if other not in users]


OWN = ("manifest.json", "files.jsonl.zst", "SHA256SUMS", "restore.sh")


def damage_rows(world: World, tmp_path: Path, kinds: Iterable[str]) -> None:
    """All rows are counted, also after one that did not hold."""
    world.copy(str(tmp_path / "top"))
    failed = []
    for kind in kinds:
        dice = random.Random(f"{SEED} {kind}")
        for fault, damage, count in DAMAGES:
            try:
                with row(fault, kind if kind in OWN else f"object *{kind}") as one:
                    for number in range(count):
                        with one.trial(number):
                            # Most bits do the same to the sets after them.
                            damage_trial(world, tmp_path, kind, damage, dice, number % (10 if SOAK else 6) == 0)
            except AssertionError as error:
                failed.append(str(error))
    assert not failed, failed[0]


def damage_trial(
    world: World, tmp_path: Path, kind: str, damage: Callable[[str, random.Random], str], dice: random.Random, to_the_end: bool
) -> None:
    app, path, hit, others = damaged(world, tmp_path, kind, dice)
    what = damage(path, dice)
    named = os.path.basename(path) if kind not in OWN else hit
    live = identity(app)
    # Looking at it finds it, before it is known ...
    assert named in words_of(lambda: app.verify(check=True, set=hit)), what
    # ... and so does whoever wants it back.
    assert words_of(lambda: app.restore(set=hit)), what
    assert identity(app) == live, what
    # By hand too; but the list of sums and the list of files may be wrong where all that is restored is right, and a script that
    # was damaged itself can do anything.
    if kind != "restore.sh" and os.path.exists(app.set_file(hit, "restore.sh")):
        assert not by_hand(app, hit, world.saved[hit], refusal_is_fine=True) or kind == "SHA256SUMS", what
    if kind == "manifest.json" and "can't be read" in words_of(lambda: app.verify(check=True, set=hit)):
        # Nobody knows what the set needs, so the message asks a person to decide.
        refusal = words_of(app.backup)
        assert hit in refusal, what
        assert "Move the folder of this set out of the store and run again" in refusal, what
        os.rename(os.path.dirname(path), str(tmp_path / "moved away"))
        shutil.rmtree(tmp_path / "moved away")
    for other in others:
        assert app.verify(check=True, set=other)["failure"] == "", (what, other)
    if not to_the_end:
        return
    words_of(lambda: app.verify(set="all"))
    next_set(app)
    if others:
        whole(app, {other: world.saved[other] for other in others})


@pytest.mark.parametrize("kind", OWN)
def test_damage_of_a_sets_own_file(world: World, tmp_path: Path, kind: str) -> None:
    damage_rows(world, tmp_path, [kind])


def test_damage_of_an_object(world: World, tmp_path: Path) -> None:
    """Of each kind that there is: shards, images, and whatever else a set is made of."""
    kinds = sorted({os.path.basename(path).partition(".")[2] for path in world.app.objects()})
    assert {"tar.zst", "dump.zst"} <= set(kinds)
    damage_rows(world, tmp_path, ["." + kind for kind in kinds])


def test_an_object_that_rots_before_the_next_set_names_it(world: World, tmp_path: Path) -> None:
    """Size and presence are all that a backup looks at, so the next set takes it over; reading finds it, the set after heals it."""
    dice = random.Random(SEED)
    with row("rots, then named by the next set", "backup") as one:
        shared = set.intersection(*(needed_by(world.app, set_id) for set_id in world.ids))
        assert shared
        for number in range(100 if SOAK else 2):
            with one.trial(number):
                it = trial(world, tmp_path, "backup")
                app = it.app
                name = dice.choice(sorted(shared))
                (path,) = [path for path in app.objects() if os.path.basename(path) == name]
                what = flipped(path, dice)
                made = app.backup()["set"]["id"]
                named = name in needed_by(app, made)
                assert name in app.verify(set="all")["failure"], what
                if named:
                    assert words_of(lambda made=made, app=app: app.restore(set=made)), what  # type: ignore[misc]
                    it.untouched()
                else:
                    # What a new delta would have to be made against is read, and a full was made instead.
                    restored(app, {made: it.live})
                # Nothing changed but that.
                app.clock.forward(hours=1)  # type: ignore[attr-defined]
                next_set(app)
                if named:
                    assert any(one.startswith(name) for one in os.listdir(os.path.join(app.store, "bad")))
                    # The same content is the same object again, so that it heals all who name it.
                    assert app.verify(set="all")["failure"] == ""
                    whole(app, world.saved)


# at once ------------------------------------------------------------------------------------------

BUSY = "another run is at work here"


@pytest.mark.parametrize(
    "pair", [("backup", "backup"), ("backup", "prune"), ("prune", "prune"), ("backup", "verify"), ("restore", "backup")]
)
def test_two_runs_at_once(world: World, tmp_path: Path, pair: Any) -> None:
    with row("two runs at once", " + ".join(pair)) as one:
        for number in range(50 if SOAK else 1):
            with one.trial(number):
                it = trial(world, tmp_path, "prune" if "prune" in pair else pair[0])
                if "prune" in pair and "backup" in pair:
                    # The new set takes a day of the policy, when it comes first.
                    del it.kept[world.ids[-KEEP]]
                said = at_once([partial(operation_of(name, world), it.app) for name in pair])
                assert [text for text in said if text and BUSY not in text] == []
                assert said.count("") >= 1
                if "restore" not in pair:
                    it.untouched()
                whole(it.app, it.kept)
                seqs = [one["seq"] for one in it.app.info()["sets"]]
                assert sorted(set(seqs), reverse=True) == seqs
                if "restore" in pair:
                    it.run(it.app)
                    assert seen(it.app) == world.saved[world.ids[0]]
                do_prune(it.app)
                assert len(sets_of(it.app)) == KEEP
                it.app.clock.forward(days=1)  # type: ignore[attr-defined]
                edit(it.app, 9)
                next_set(it.app)


def test_pruning_beside_a_long_restore(world: World, tmp_path: Path) -> None:
    """The set that is being restored is one that the policy lets go."""
    programs = tmp_path / "bin"
    programs.mkdir()
    real, begun = shutil.which("zstd"), tmp_path / "begun"
    (programs / "zstd").write_text(f'#!/bin/sh\ntouch {begun}\nsleep 0.3\nexec {real} "$@"\n')
    (programs / "zstd").chmod(0o755)
    with row("beside a long restore", "prune") as one:
        for number in range(10 if SOAK else 1):
            with one.trial(number):
                it = trial(world, tmp_path, "restore")
                begun.unlink() if begun.exists() else None

                def slowly(it: Trial = it) -> None:
                    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
                    it.run(it.app)

                def beside(it: Trial = it) -> None:
                    while not begun.exists():
                        time.sleep(0.01)
                    do_prune(it.app)

                said = at_once([slowly, beside])
                assert said[0] == ""
                assert said[1] == "" or BUSY in said[1]
                assert seen(it.app) == world.saved[world.ids[0]]
                do_prune(it.app)
                pruned(it.app, world.ids[-KEEP:])
                whole(it.app, kept_by("prune", world))


# power cut ----------------------------------------------------------------------------------------


def cut_at(disk: PowerCut, number: int, work: Callable[[], Any]) -> Any:
    return disk.cut(lambda: killed_at(number, work))


@pytest.mark.parametrize("operation", ["backup", "verify", "prune"])
def test_power_cut_of_the_store(world: World, tmp_path: Path, operation: str) -> None:
    require_mount("loop")
    top = str(tmp_path / "top")
    folder = str(tmp_path / "disk")
    disk = PowerCut(str(tmp_path), lambda folder: world.copy(top, folder))
    with disk.cut(lambda: None):
        total = number_of_changes(lambda: operation_of(operation, world)(app_at(top, folder, world.moment)))
    with row("power cut, store", operation) as one:
        # The last one is a cut after everything was done, and said to be.
        for number in spread(total + 1, total + 1 if SOAK else 3):
            with one.trial(f"change {number} of {total}"):
                app = app_at(top, folder, world.moment)
                with disk.cut(lambda app=app, number=number: killed_at(number, lambda: operation_of(operation, world)(app))):  # type: ignore[misc]
                    it = Trial(world, app, operation)
                    if number > total and operation == "backup":
                        assert app.info()["sets"][0]["verified"] == "content"
                        assert len(sets_of(app)) == len(world.ids) + 1
                    it.half()
                    it.again()


@pytest.mark.parametrize("record", ["on the same disk", "on another disk"])
def test_power_cut_of_the_application(world: World, tmp_path: Path, record: str) -> None:
    """Where the record of restores lies on another disk, that one has lost nothing: each order of the two was flushed."""
    require_mount("loop")
    folder, top = str(tmp_path / "disk"), str(tmp_path / "top")
    disk = PowerCut(str(tmp_path), lambda folder: world.copy(folder, top))

    def app_of() -> App:
        app = app_at(folder, top, world.moment)
        if record == "on another disk":
            app.state_dir = str(tmp_path / "state")
            shutil.rmtree(app.state_dir, ignore_errors=True)
        return app

    with disk.cut(lambda: None):
        live = seen(app_of())
        total = number_of_changes(lambda: app_of().restore(set=world.ids[0]))
    wanted = world.saved[world.ids[0]]
    with row("power cut, application", f"restore, record on {record[3:]}") as one:
        for number in spread(total + 1, total + 1 if SOAK else 3):
            with one.trial(f"change {number} of {total}"):
                app = app_of()
                with disk.cut(lambda app=app, number=number: killed_at(number, lambda: app.restore(set=world.ids[0]))):  # type: ignore[misc]
                    now = seen(app)
                    for name, root in now.items():
                        assert root in (live[name], wanted[name]), name
                    if number > total:
                        assert now == wanted
                    app.restore(set=world.ids[0])
                    assert seen(app) == wanted
                    assert app.verify(check=True, set="all")["failure"] == ""
                    app.restore(state="purged")
                    assert not os.path.exists(app.at(".opskit-restore"))


# clocks -------------------------------------------------------------------------------------------


def must_stay(app: App, now: datetime) -> List[str]:
    """The sets that the policy of one a day keeps, counted by other means than the engine's: the newest of each day."""
    stay: List[str] = []
    days: Set[date] = set()
    for one in app.info()["sets"]:
        moment = datetime.strptime(one["time"], "%Y-%m-%dT%H:%M:%S%z")
        if moment > now + timedelta(minutes=5):
            stay.append(one["id"])
        elif moment.date() not in days and len(days) < KEEP:
            days.add(moment.date())
            stay.append(one["id"])
    return stay


def test_a_clock_that_jumps(world: World, tmp_path: Path) -> None:
    dice = random.Random(SEED)
    with row("clock moved back and forward", "backup, prune") as one:
        for number in range(50 if SOAK else 1):
            with one.trial(number):
                it = trial(world, tmp_path, "backup")
                app, saved = it.app, dict(world.saved)
                for step in range(6):
                    app.clock.forward(hours=dice.choice([-2000, -49, -25, -1, 0, 1, 25, 49, 2000]))  # type: ignore[attr-defined]
                    edit(app, 10 + step)
                    seq = app.info()["sets"][0]["seq"]
                    now = seen(app)
                    made = app.backup()
                    assert made["changed"]
                    newest = app.info()["sets"][0]
                    assert (newest["id"], newest["seq"]) == (made["set"]["id"], seq + 1)
                    saved[newest["id"]] = now
                    stay = must_stay(app, app.clock.now())
                    assert newest["id"] in stay
                    refusal = words_of(lambda app=app: app.prune(daily=KEEP, weekly=0, monthly=0))  # type: ignore[misc]
                    assert not refusal or "days that have a verified set" in refusal
                    left = sets_of(app)
                    assert set(stay) <= set(left)
                    saved = {set_id: saved[set_id] for set_id in left}
                whole(app, saved)
                edit(app, 20)
                next_set(app)


# places -------------------------------------------------------------------------------------------


def test_an_application_with_other_inodes(world: World, tmp_path: Path) -> None:
    with row("inodes renumbered (cp -a)", "backup") as one:
        for number in range(10 if SOAK else 1):
            with one.trial(number):
                it = trial(world, tmp_path, "backup")
                next_set(it.app)
                objects = it.app.objects()
                os.rename(it.app.root, it.app.root + " before")
                subprocess.run(["cp", "-a", it.app.root + " before", it.app.root], check=True)
                shutil.rmtree(it.app.root + " before")
                it.app.clock.forward(days=1)  # type: ignore[attr-defined]
                next_set(it.app)
                # All is read again; nothing but perhaps the image is stored twice.
                assert [path for path in it.app.objects("tar") if path not in objects] == []
                whole(it.app, world.saved)


def test_a_store_that_moved(world: World, tmp_path: Path) -> None:
    with row("store moved", "backup, restore") as one:
        for number in range(10 if SOAK else 1):
            with one.trial(number):
                it = trial(world, tmp_path, "backup")
                place = str(tmp_path / "trial" / "an other place")
                os.mkdir(place)
                os.rename(it.app.store, os.path.join(place, "store"))
                app = app_at(it.app.top, place, world.moment)
                whole(app, world.saved)
                next_set(app)
                app.restore(set=world.ids[1])
                assert seen(app) == world.saved[world.ids[1]]


def test_a_renamed_folder(world: World, tmp_path: Path) -> None:
    with row("folder renamed", "backup, restore") as one:
        for old, new in (("projects/a", "projects/c"), ("data/uploads", "data/uploaded"), ("projects/b", "projects/a/b"))[
            : 3 if SOAK else 2
        ]:
            with one.trial(old):
                it = trial(world, tmp_path, "backup")
                next_set(it.app)
                os.rename(it.app.at(old), it.app.at(new))
                it.app.clock.forward(days=1)  # type: ignore[attr-defined]
                next_set(it.app)
                whole(it.app, world.saved)
                it.app.restore(set=world.ids[-1])
                assert seen(it.app) == world.saved[world.ids[-1]]


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mount_point_inside_of_a_saved_path(world: World, tmp_path: Path, kind: str) -> None:
    require_mount("tmpfs")
    outside = tmp_path / "outside"
    outside.mkdir()
    options = ["-t", "tmpfs", "tmpfs"] if kind == "tmpfs" else ["--bind", str(outside)]
    with row(f"mount point inside ({kind})", "backup, restore") as one:
        for number in range(10 if SOAK else 1):
            with one.trial(number):
                it = trial(world, tmp_path, "backup")
                app = it.app
                with mounted(app.at("data/uploads/mounted"), *options):
                    Path(app.at("data/uploads/mounted/file")).write_text("on another disk\n")
                    os.makedirs(app.at("data/uploads/mounted/sub/empty"), exist_ok=True)
                    saved = seen(app)
                    assert b"/uploads/mounted/sub/empty" in saved["data"]
                    made = next_set(app)
                    live = identity(app)
                    # It can't change its place with another folder.
                    refusal = words_of(lambda app=app: app.restore(set=world.ids[0]))  # type: ignore[misc]
                    assert "a mount point lies in the way of the exchange" in refusal
                    assert identity(app) == live
                # Gone: the next set has it no more, the one before still does.
                app.clock.forward(days=1)  # type: ignore[attr-defined]
                next_set(app)
                whole(app, {**world.saved, made: saved})
                app.restore(set=made)
                assert seen(app) == saved


def test_paths_that_are_links(world: World, tmp_path: Path) -> None:
    with row("paths are symlinks", "backup, restore") as one:
        for number in range(10 if SOAK else 1):
            with one.trial(number):
                it = trial(world, tmp_path, "backup")
                app = it.app
                elsewhere = os.path.join(app.top, "elsewhere")
                os.mkdir(elsewhere)
                for name in ("data", "config", ".env"):
                    os.rename(app.at(name), os.path.join(elsewhere, name))
                    os.symlink(os.path.join(elsewhere, name), app.at(name))
                whole(app, world.saved)
                saved = where_they_lead(app)
                made = app.backup()["set"]["id"]
                assert app.verify()["failure"] == ""
                shutil.rmtree(os.path.join(elsewhere, "config"))
                Path(elsewhere, ".env").write_text("TOKEN=9\n")
                edit_data(app)
                app.restore(set=made)
                assert where_they_lead(app) == saved
                assert all(os.path.islink(app.at(name)) for name in ("data", "config", ".env"))


def edit_data(app: App) -> None:
    app.write("data/uploads/0.txt", "other\n")


def where_they_lead(app: App) -> Dict[str, Any]:
    """What is saved, by way of links."""
    skip = [os.path.realpath(path) for path in [*app.params["logs"], *app.params["volatile"]]]
    found = {name: look_at(os.path.realpath(path), skip=skip) for name, path in app.paths.items()}
    found["data"][b""][3] = 0
    return found
