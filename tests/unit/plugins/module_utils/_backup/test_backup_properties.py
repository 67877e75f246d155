# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for all inputs of the parts that decide, and of what is written down.

Retention's own properties are in test_backup_retention.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tempfile
import zlib
from datetime import datetime, timezone
from typing import Any, Dict, List, Set, Tuple, Union

from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.opskit.runbooks.plugins.module_utils._backup import archive, shards
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.exchange import PHASES, Carry, Journal, Swap
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.manifest import (
    STALE,
    Image,
    Manifest,
    Record,
    Shard,
    dump_records,
    get_text,
    load_records,
    put_text,
    record,
    tree_hash,
)
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.source import Entry, Root, Source
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.tarstream import Member, read_members
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import SOAK

EXAMPLES = 2000 if SOAK else 50
REAL = 300 if SOAK else 12
"""Examples of what takes real files."""

# A name is any bytes but the two that end it; Python holds those that are not UTF-8 as surrogates (PEP 383).
RAW_NAMES = st.one_of(
    st.binary(min_size=1, max_size=20),
    st.text(min_size=1, max_size=12).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"a b", b"\n", b"-rf", b"*?[", b"\xff\xfe", b"\xc3", "\u00e4\u2028\u0085".encode(), b'"\\', b"#", b"%s", b"x" * 120]),
).filter(lambda name: b"\0" not in name and b"/" not in name and name not in (b".", b".."))
NAMES = RAW_NAMES.map(os.fsdecode)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
NUMBERS = st.integers(0, 2**63)
STAMPS = st.integers(-(2**62), 2**62)


# fingerprints -------------------------------------------------------------------------------------

ENTRIES = st.builds(
    Entry,
    PATHS,
    st.sampled_from(["file", "dir", "symlink"]),
    NUMBERS,
    st.integers(0, 0o7777),
    NUMBERS,
    NUMBERS,
    STAMPS,
    STAMPS,
    NUMBERS,
    NUMBERS,
    st.integers(1, 9),
)
SEEN = 9
"""So many of an entry's fields count: neither device nor number of links does."""


def counted(entries: List[Entry]) -> List[Tuple[Any, ...]]:
    return [entry[:SEEN] for entry in entries]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(ENTRIES, max_size=5), st.lists(ENTRIES, max_size=5))
def test_fingerprints_are_equal_when_all_that_counts_is(one: List[Entry], other: List[Entry]) -> None:
    same = counted(one) == counted(other)
    assert (shards.fingerprint(one) == shards.fingerprint(other)) == same
    again = [entry._replace(device=entry.device + 1, links=entry.links + 1) for entry in one]
    assert shards.fingerprint(again) == shards.fingerprint(one)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(ENTRIES, min_size=1, max_size=4), st.data())
def test_any_change_is_another_fingerprint(entries: List[Entry], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(entries) - 1))
    field = data.draw(st.sampled_from(Entry._fields[:SEEN]))
    other = data.draw(ENTRIES.map(lambda entry: getattr(entry, field)).filter(lambda value: value != getattr(entries[place], field)))
    changed = [*entries[:place], entries[place]._replace(**{field: other}), *entries[place + 1 :]]
    assert shards.fingerprint(changed) != shards.fingerprint(entries)
    # One more, one less, and another order are changes too.
    assert shards.fingerprint(entries[:-1]) != shards.fingerprint(entries)
    if len(entries) > 1 and counted(entries) != counted(entries[::-1]):
        assert shards.fingerprint(entries[::-1]) != shards.fingerprint(entries)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(ENTRIES, max_size=4), STAMPS)
def test_what_was_touched_just_now_is_not_settled(entries: List[Entry], scanned: int) -> None:
    printed, width = shards.prints(entries, scanned), len(shards.UNSETTLED)
    assert len(printed) == width * len(entries)
    for index, entry in enumerate(entries):
        late = entry.ctime_ns >= scanned - 2 * 10**9
        assert shards.is_settled(entry, scanned) == (not late)
        mine = printed[width * index : width * index + width]
        assert mine == (shards.UNSETTLED if late else shards.member_print(entry))
        assert shards.member_print(entry) != shards.UNSETTLED


# the file list and the manifest -------------------------------------------------------------------

XATTRS = st.dictionaries(st.sampled_from(["user.a", "security.x"]), st.just("AA=="), max_size=2)
OWNERS = st.tuples(NUMBERS, NUMBERS, st.text(max_size=5), st.text(max_size=5))
RECORDS: st.SearchStrategy[Record] = st.builds(
    record,
    st.sampled_from(["data", "config"]),
    PATHS,
    st.sampled_from(["file", "dir", "symlink"]),
    NUMBERS,
    st.integers(0, 0o7777),
    OWNERS,
    STAMPS,
    HASHES,
    st.one_of(st.just(""), PATHS),
    XATTRS,
    st.one_of(st.just(""), PATHS),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(RECORDS, max_size=6))
def test_a_file_list_is_read_as_it_was_written(records: List[Record]) -> None:
    data = dump_records(records)
    assert load_records(data, "list") == records
    # One line each, in ASCII: what a rescue shell shows.
    assert data.decode("ascii").count("\n") == len(records)
    assert tree_hash(load_records(data, "list")) == tree_hash(records)


@settings(max_examples=EXAMPLES, deadline=None)
@given(RAW_NAMES)
def test_a_name_is_written_without_loss(raw: bytes) -> None:
    value: Record = {}
    put_text(value, "path", os.fsdecode(raw))
    keys = list(value)
    read = json.loads(json.dumps(value))
    assert os.fsencode(get_text(read, "path")) == raw
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        assert keys == ["path_b64"]
    else:
        assert keys == ["path"]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=4), st.data())
def test_the_hash_of_a_tree_leaves_out_the_shard_alone(records: List[Record], data: st.DataObject) -> None:
    moved = [{**value, "shard": "elsewhere"} for value in records]
    assert tree_hash(moved) == tree_hash(records)
    place = data.draw(st.integers(0, len(records) - 1))
    other = data.draw(RECORDS.filter(lambda value: value != records[place]))
    assert tree_hash([*records[:place], other, *records[place + 1 :]]) != tree_hash(records)


def root_of(kind: str, path: str, files: int, size: int) -> Dict[str, Any]:
    value: Dict[str, Any] = {"type": kind, "files": files, "bytes": size}
    put_text(value, "path", path)
    return value


ROOTS = st.dictionaries(
    st.sampled_from(["data", "config", ".env"]), st.builds(root_of, st.sampled_from(["dir", "file"]), PATHS, NUMBERS, NUMBERS), max_size=3
)
SHARDS = st.builds(
    Shard,
    id=st.text(max_size=8),
    root=st.text(max_size=8),
    object=HASHES.map("{}.tar.zst".format),
    tree=HASHES,
    files=NUMBERS,
    bytes=NUMBERS,
    stored_bytes=NUMBERS,
    logs=st.booleans(),
)
FACTS = st.fixed_dictionaries({"bytes": NUMBERS, "sha256": HASHES, "tables": st.dictionaries(st.text(max_size=5), NUMBERS, max_size=3)})
IMAGES = st.builds(
    Image,
    name=st.text(max_size=8),
    engine=st.sampled_from(["sqlite", "postgresql"]),
    root=st.sampled_from(["", "data"]),
    file=st.one_of(st.just({}), RECORDS),
    object=HASHES.map("{}.dump.zst".format),
    stored_bytes=NUMBERS,
    facts=FACTS,
    declared=st.booleans(),
    beside=st.one_of(st.just(""), HASHES.map("{}.sql.zst".format)),
    beside_bytes=NUMBERS,
)
MANIFESTS = st.builds(
    Manifest,
    id=st.just("20261123T020000Z-7f3a"),
    seq=NUMBERS,
    time=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda time: time.replace(microsecond=0, tzinfo=timezone.utc)),
    application=st.text(max_size=8),
    store=st.text(max_size=8),
    collection=st.text(max_size=8),
    roots=ROOTS,
    shards=st.lists(SHARDS, max_size=4),
    databases=st.lists(IMAGES, max_size=2),
    files=HASHES,
    new_bytes=NUMBERS,
    guarantee=st.sampled_from(["none", "paused", "stopped"]),
    pause_s=st.floats(0, 3600),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(MANIFESTS)
def test_a_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    written = json.dumps(manifest.as_json(), sort_keys=True)
    read = Manifest.from_json(json.loads(written), "manifest.json")
    assert read == manifest
    assert read.objects == manifest.objects
    assert json.dumps(read.as_json(), sort_keys=True) == written
    images = {name for one in manifest.databases for name in (one.object, one.beside, one.base)}
    assert set(manifest.objects) == {one.object for one in manifest.shards} | images - {""}


# shards -------------------------------------------------------------------------------------------


def entry_of(path: str, kind: str, size: int, inode: int) -> Entry:
    return Entry(path, kind, size if kind == "file" else 0, 0o644, 0, 0, 0, 0, inode, 1, 2 if inode < 4 else 1)


# Few inodes, so that some files have several names; sizes from empty to more than a shard or a small project.
TREES = st.dictionaries(
    st.one_of(PATHS, st.tuples(st.sampled_from(["projects/a", "projects/b", "projects/a/x"]), NAMES).map("/".join)),
    st.tuples(
        st.sampled_from(["file", "file", "file", "dir", "symlink"]),
        st.one_of(st.integers(0, 3), st.sampled_from([1 << 20, 9 << 20, 40 << 20, 70 << 20])),
        st.integers(1, 3),
    ),
    max_size=12,
)


def entries_of(tree: Dict[str, Tuple[str, int, int]]) -> List[Entry]:
    entries = []
    for path in sorted(tree):
        kind, size, group = tree[path]
        # Names of one inode are one file: the same size, and all of them files.
        own = 10 + zlib.crc32(os.fsencode(path))
        entries.append(entry_of(path, kind, size, group if kind == "file" and size == 1 else own))
    links = [entry for entry in entries if entry.links > 1]
    names: Dict[int, int] = {}
    for entry in links:
        names[entry.inode] = names.get(entry.inode, 0) + 1
    return [entry._replace(links=names.get(entry.inode, 1)) for entry in entries]


SOURCE = Source({"data": "/nowhere/data"}, projects="/nowhere/data/projects")
ROOT = Root("data", "/nowhere/data", False)
Stored = Dict[str, shards.Kept]


def stored(layout: shards.Layout) -> Stored:
    """Return what a set holds once everything of a layout is stored."""
    found = {kept.known.shard.id: kept for kept in layout.kept}
    for group in layout.groups:
        firsts: Dict[int, str] = {}
        records = []
        for entry in group.entries:
            first = firsts.setdefault(entry.inode, entry.path) if entry.type == "file" else entry.path
            link = first if first != entry.path else ""
            records.append(record("data", entry.path, entry.type, entry.size, 0, (0, 0, "", ""), 0, link=link))
        shard = Shard(group.id, group.root.name, "x", "x", len(records), group.bytes, 0, group.logs)
        found[group.id] = shards.Kept(shards.Known(shard, records, []), group.entries)
    return found


def arrange(entries: List[Entry], before: Stored, logs: bool = False, late: bool = False) -> shards.Layout:
    def judge(known: shards.Known, members: List[Entry]) -> shards.Judgement:
        then = {entry.path: entry for entry in before[known.shard.id].entries}
        return shards.Judgement("", [entry.path for entry in members if entry[:9] != then[entry.path][:9]])

    return shards.arrange(SOURCE, ROOT, entries, logs, {key: kept.known for key, kept in before.items()}, judge, late)


def check_layout(layout: shards.Layout, entries: List[Entry], before: Stored, late: bool = False) -> None:
    # Each entry in exactly one of them, none of them empty, and no two of the same name.
    places = {kept.known.shard.id: kept.entries for kept in layout.kept}
    assert len(places) == len(layout.kept)
    assert not set(places) & {group.id for group in layout.groups}
    places.update((group.id, group.entries) for group in layout.groups)
    assert len(places) == len(layout.kept) + len(layout.groups)
    assert sorted(entry for members in places.values() for entry in members) == sorted(entries)
    assert all(places.values())
    assert set(layout.reasons) == {group.id for group in layout.groups}
    assert all(layout.reasons.values())
    inodes: Dict[int, Set[str]] = {}
    for key, members in places.items():
        assert members == sorted(members)
        for entry in members:
            assert (entry.type != "file" or entry.size == 0) == shards.is_tree(key)
            if entry.type == "file" and entry.size:
                inodes.setdefault(entry.inode, set()).add(key)
    assert all(len(found) == 1 for found in inodes.values())
    for kept in layout.kept:
        # All members of the archive are accounted for, and those that count can be extracted without the others.
        known = kept.known
        valid, stale = [{get_text(value, "path") for value in records} for records in (known.records, known.stale)]
        then = before[known.shard.id].known
        assert valid == {entry.path for entry in kept.entries}
        assert not valid & stale
        assert len(valid) + len(stale) == len(then.records) + len(then.stale)
        assert all(value[STALE] is True for value in known.stale)
        assert not {get_text(value, "link") for value in known.records} & stale
        assert (known.shard.files, known.shard.bytes) == (len(valid), sum(value.get("size", 0) for value in known.records))
        waste = sum(value.get("size", 0) for value in known.stale)
        if stale and not late and len(stale) > len(then.stale):
            assert waste * shards.STALE_SHARE <= waste + known.shard.bytes


@settings(max_examples=EXAMPLES, deadline=None)
@given(TREES, st.booleans())
def test_every_entry_has_one_shard(tree: Dict[str, Tuple[str, int, int]], logs: bool) -> None:
    entries = entries_of(tree)
    layout = arrange(entries, {}, logs)
    check_layout(layout, entries, {})
    for group in layout.groups:
        # Only what is larger than a shard alone makes a larger one; names of one inode stay together whatever they have.
        assert group.bytes <= shards.SHARD_BYTES or len(group.entries) == 1 or any(entry.links > 1 for entry in group.entries)
    # Stored once, nothing of it is stored again.
    again = arrange(entries, stored(layout), logs)
    check_layout(again, entries, stored(layout))
    assert (again.groups, again.gone) == ([], 0)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(TREES, st.booleans()), min_size=2, max_size=5))
def test_day_after_day(days: List[Tuple[Dict[str, Tuple[str, int, int]], bool]]) -> None:
    """Whatever comes, changes, goes or becomes another kind, also in the last moments before a pause."""
    before: Stored = {}
    tree: Dict[str, Tuple[str, int, int]] = {}
    for number, (new, late) in enumerate(days):
        # Every other file of before goes.
        tree = {**dict(sorted(tree.items())[number % 2 :: 2]), **new}
        entries = entries_of(tree)
        layout = arrange(entries, before, late=late)
        check_layout(layout, entries, before, late)
        before = stored(layout)


# the record of a restore --------------------------------------------------------------------------

INODES = st.one_of(st.none(), st.integers(1, 2**63))
STEPS: st.SearchStrategy[Union[Swap, Carry]] = st.one_of(
    st.builds(Swap, PATHS, PATHS, INODES, INODES), st.builds(Carry, PATHS, PATHS, st.booleans())
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(STEPS, max_size=4), st.sampled_from(PHASES), st.lists(PATHS, max_size=2), st.booleans())
def test_the_record_of_a_restore_is_read_as_it_was_written(steps: List[Any], phase: str, stages: List[str], again: bool) -> None:
    journal = Journal("restore.json", "store", "label", "set", stages, None, {})
    journal.steps, journal.phase = steps, phase
    if again:
        later = Journal("restore.json", "store", "later", "set", stages, journal.as_json(), {})
        later.steps = steps
        journal = later
    written = json.dumps(journal.as_json(), sort_keys=True)
    read = Journal.from_json("restore.json", json.loads(written), {})
    assert json.dumps(read.as_json(), sort_keys=True) == written
    assert [type(step) for step in read.steps] == [type(step) for step in steps]
    assert read.is_interrupted == journal.is_interrupted
    before = read.before()
    assert (before is not None) == again


def state_of(top: str) -> Dict[str, Any]:
    """Every path below a folder with its inode and what it holds."""
    found: Dict[str, Any] = {}
    for folder, dirs, names in os.walk(top):
        for name in dirs + names:
            path = os.path.join(folder, name)
            content = os.readlink(path) if os.path.islink(path) else ""
            if not content and name in names:
                with open(path, encoding="utf-8") as stream:
                    content = stream.read()
            found[path] = (os.lstat(path).st_ino, content)
    return found


THINGS = ("nothing", "file", "folder", "link")


def put(path: str, what: str, text: str) -> None:
    if what == "file":
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
    elif what == "folder":
        os.mkdir(path)
        put(os.path.join(path, "inside"), "file", text)
    elif what == "link":
        os.symlink(text, path)


@settings(max_examples=REAL * 4, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(THINGS), st.sampled_from(THINGS)).filter(lambda pair: pair != ("nothing", "nothing")),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.tuples(st.sampled_from(THINGS[1:]), st.booleans()), max_size=3),
    st.data(),
)
def test_undoing_brings_back_the_state_before(swaps: List[Tuple[str, str]], carried: List[Tuple[str, bool]], data: st.DataObject) -> None:
    """From each prefix of the steps; what is kept live moves into the staged tree before that is exchanged."""
    with tempfile.TemporaryDirectory() as top:
        live, staged = os.path.join(top, "live"), os.path.join(top, "staged")
        for folder in (live, staged):
            os.mkdir(folder)
            os.mkdir(os.path.join(folder, "tree"))
            put(os.path.join(folder, "tree", "own"), "file", folder)
        steps: List[Union[Swap, Carry]] = []
        for number, (what, precious) in enumerate(carried):
            put(os.path.join(live, "tree", f"log {number}"), what, "log")
            steps.append(Carry(os.path.join(live, "tree", f"log {number}"), os.path.join(staged, "tree", f"log {number}"), precious))
        steps.append(Swap.planned(os.path.join(live, "tree"), os.path.join(staged, "tree")))
        for number, (one, other) in enumerate(swaps):
            put(os.path.join(live, str(number)), one, "old")
            put(os.path.join(staged, str(number)), other, "new")
            steps.append(Swap.planned(os.path.join(live, str(number)), os.path.join(staged, str(number))))
        before = state_of(top)
        done = data.draw(st.integers(0, len(steps)))
        for step in steps[:done]:
            step.do()
        if done == len(steps):
            assert state_of(top) != before
            assert all(step.is_done() for step in steps if isinstance(step, Swap))
        journal = Journal("restore.json", "store", "label", "set", [], None, {})
        journal.steps = list(steps)
        # As the process after the one that died reads it.
        journal = Journal.from_json("restore.json", json.loads(json.dumps(journal.as_json())), {})
        undone = data.draw(st.integers(0, len(steps)))
        for old in journal.steps[::-1][:undone]:
            # And may die itself in the middle of it.
            old.undo()
        for _again in range(2):
            journal.undo()
            assert state_of(top) == before
        assert all(step.is_undone() for step in journal.steps)


# archives -----------------------------------------------------------------------------------------

CONTENTS = st.one_of(st.binary(max_size=1500), st.tuples(st.integers(0, 200_000), st.binary(min_size=1, max_size=10)), st.just(b""))
"""Or a hole of that length with bytes after it."""
NODES = st.recursive(
    st.one_of(
        st.tuples(st.just("file"), CONTENTS),
        st.tuples(st.just("symlink"), RAW_NAMES),
        st.tuples(st.just("hard link"), st.integers(0, 9)),
    ),
    lambda inner: st.tuples(st.just("dir"), st.dictionaries(RAW_NAMES, inner, max_size=4)),
    max_leaves=8,
)


def make(folder: bytes, nodes: Dict[bytes, Any], files: List[bytes]) -> None:
    for name, (kind, value) in nodes.items():
        path = os.path.join(folder, name)
        if kind == "dir":
            os.mkdir(path)
            make(path, value, files)
        elif kind == "symlink":
            os.symlink(value, path)
        elif kind == "hard link" and files:
            os.link(files[value % len(files)], path, follow_symlinks=False)
        elif kind == "file":
            with open(path, "wb") as stream:
                if isinstance(value, tuple):
                    stream.seek(value[0])
                    value = value[1]
                stream.write(value)
            files.append(path)


def tree_of(top: bytes) -> Dict[bytes, Any]:
    found: Dict[bytes, Any] = {}
    for folder, dirs, names in os.walk(top):
        for name in dirs + names:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                found[os.path.relpath(path, top)] = ("symlink", os.readlink(path))
            elif os.path.isdir(path):
                found[os.path.relpath(path, top)] = ("dir", None)
            else:
                with open(path, "rb") as stream:
                    found[os.path.relpath(path, top)] = ("file", stream.read())
    return found


@settings(max_examples=REAL, deadline=None)
@given(st.dictionaries(RAW_NAMES, NODES, min_size=1, max_size=5), st.integers(1, 1 << 16))
def test_the_reader_sees_what_tar_has_stored(nodes: Dict[bytes, Any], piece: int) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        top = os.fsencode(folder)
        make(top, nodes, [])
        tree = tree_of(top)
        if not tree:
            return
        codec = archive.writer_codec()
        target, again = os.path.join(other, f"archive.tar.{codec.ending}"), os.path.join(other, "again")
        members = archive.pack(folder, [os.fsdecode(path) for path in sorted(tree)], target, codec, 1, 0)
        with open(target, "rb") as packed:
            plain = subprocess.run(codec.decompress(), stdin=packed, stdout=subprocess.PIPE, check=True).stdout
        stream = io.BytesIO(plain)
        # In pieces of any size the same.
        assert list(read_members(lambda buffer: stream.readinto(buffer[:piece]))) == members
        assert [os.fsencode(member.path) for member in members] == sorted(tree)
        for member in members:
            check_member(member, *tree[os.fsencode(member.path)])
        # And what tar makes of it is the same tree again.
        os.mkdir(again)
        archive.extract(target, again, True, 60)
        assert tree_of(os.fsencode(again)) == tree


def check_member(member: Member, kind: str, value: Any) -> None:
    assert member.type == kind
    if kind == "file":
        assert (member.size, member.sha256) == (len(value), hashlib.sha256(value).hexdigest())
    elif kind == "symlink":
        assert os.fsencode(member.target) == value
