# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What comes back is what was there, seen by other eyes than the engine's."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._backup import archive, shards
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.errors import BackupError
from ansible_collections.opskit.runbooks.plugins.module_utils._backup.tarstream import read_members
from ansible_collections.opskit.runbooks.tests.unit.plugins.module_utils._backup.world import (
    NOBODY,
    App,
    as_plain_user,
    folder_for,
    look_at,
    make_database,
    rows_of,
)

ROOT = os.geteuid() == 0
NAMES = [
    b"new\nline",
    b"not utf-8 \xff\xfe",
    b"-leading dash",
    b"--version",
    b"back\\slash",
    b"back\\nslash\\101",
    b"two  spaces ",
    b" ",
    b"*?[glob]",
    b"quote'\"$(true)`",
    b"@file",
    b"\xc3\xa4\xe2\x82\xac",
    b"tab\tbell\a",
    b"n" * 255,
    b"\xf0" * 255,
]
# Access control list, version 2: owner rw-, user 1 r--, group r--, mask r--, other --- (linux/posix_acl_xattr.h).
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, rights, who)
    for tag, rights, who in (
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 4, 1),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 4, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    )
)


def has_xattrs(folder: str) -> bool:
    try:
        os.setxattr(folder, "user.probe", b"")
        os.setxattr(folder, "system.posix_acl_access", ACL)
        os.removexattr(folder, "system.posix_acl_access")
        os.removexattr(folder, "user.probe")
        return True
    except OSError:
        return False


def build_hard_tree(app: App) -> None:
    """Fill the application with everything that a file system can hold and a set has to."""
    data = os.fsencode(app.at("data"))
    for place in (b"names", b"names/as folders"):
        os.mkdir(os.path.join(data, place))
    for name in NAMES:
        Path(os.fsdecode(os.path.join(data, b"names", name))).write_bytes(name)
        os.mkdir(os.path.join(data, b"names/as folders", name))
        os.symlink(name, os.path.join(data, b"names", b"l" + name[1:] if len(name) == 255 else b"link " + name))
    deep = app.at("data")
    for number in range(12):
        deep = os.path.join(deep, f"{number:02d}" + "d" * 40)
        os.mkdir(deep)
        Path(deep, "f" * 60).write_text(deep)
    modes = [0o000, 0o400, 0o444, 0o640, 0o755, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777]
    if not ROOT:
        modes.remove(0)
    for mode in modes:
        path = app.write(f"data/mode {mode:04o}", f"{mode}")
        os.chmod(path, mode)
        os.mkdir(path + ".d")
        if mode & 0o400:
            Path(path + ".d", "inside").write_text("x")
        os.chmod(path + ".d", mode | (0 if ROOT else 0o700))
    Path(app.at("data/empty file")).touch()
    os.symlink("nowhere", app.at("data/dangling"))
    os.symlink(app.at("config"), app.at("data/absolute"))
    os.symlink("uploads", app.at("data/to a folder"))
    os.symlink("t" * 1000, app.at("data/long target"))
    os.symlink(b"\xff\n", data + b"/odd target")
    os.link(app.at("data/mode 0640"), app.at("data/hard 1"))
    os.link(app.at("data/mode 0640"), app.at("data/uploads/hard 2"))
    os.link(app.at("data/empty file"), app.at("data/hard empty"))
    os.mkdir(app.at("data/read-only"))
    Path(app.at("data/read-only/file")).write_text("in it")
    os.mkdir(app.at("data/read-only/folder"))
    with open(app.at("data/sparse"), "wb") as stream:
        stream.truncate(20 << 20)
        for offset in range(0, 18 << 20, 3 << 20):
            stream.seek(offset)
            stream.write(b"content" * 700)
    with open(app.at("data/only a hole"), "wb") as stream:
        stream.truncate(5 << 20)
    os.symlink("/", app.at("config/root"))
    if has_xattrs(app.at("config")):
        os.setxattr(app.at("config/gateway.toml"), "user.binary", b"\x00\xff\n=value")
        os.setxattr(app.at("data/uploads"), "user.on a folder", b"1")
        os.setxattr(app.at("config/gateway.toml"), "user.empty", b"")
        os.setxattr(app.at("config/gateway.toml"), "system.posix_acl_access", ACL)
        os.setxattr(app.at("data/uploads"), "system.posix_acl_default", ACL)
        os.setxattr(app.at("data/empty file"), "user.of an empty file", b"2")
    if ROOT:
        os.lchown(app.at("data/hard 1"), 1, 2)
        os.lchown(app.at("data/dangling"), NOBODY, NOBODY)
        os.chown(app.at("data/read-only/folder"), NOBODY, 0)
        os.setxattr(app.at("data/mode 0755"), "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
        os.setxattr(app.at("data/mode 0755"), "trusted.note", b"\xff")
    for number, path in enumerate([app.at("data/uploads/1.txt"), app.at("data/mode 0444"), app.at(".env")]):
        os.utime(path, ns=(1, 1_500_000_000_123_456_789 + number))
    os.utime(app.at("data/uploads/2.txt"), ns=(0, 0))
    os.utime(app.at("data/uploads/3.txt"), ns=(0, -1_000_000_001))
    os.utime(app.at("data/dangling"), ns=(1, 987_654_321), follow_symlinks=False)
    os.chmod(app.at("data/read-only"), 0o555)
    os.utime(app.at("data/read-only"), ns=(1, 1_400_000_000_000_000_001))


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
def test_everything_comes_back(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(str(tmp_path)).build()
    build_hard_tree(app)
    before = app.live()
    blocks = os.stat(app.at("data/sparse")).st_blocks
    if codec == "gzip":
        monkeypatch.setattr(archive, "writer_codec", lambda: archive.GZIP)
    made = app.backup()
    saved = app.live()
    # Reading a closed database in WAL mode makes SQLite touch the folder that it lies in, and nothing else.
    before["data"][b""] = saved["data"][b""]
    assert saved == before
    assert {name.rsplit(".", 1)[1] for name in app.objects()} == {"gz" if codec == "gzip" else "zst"}
    app.destroy()
    restored = app.restore()
    after = app.live()
    assert sorted(after) == sorted(before)
    for name, wanted in before.items():
        found = after[name]
        assert sorted(found) == sorted(wanted)
        assert {path: (found[path], wanted[path]) for path in wanted if found[path] != wanted[path]} == {}
    # The extended attributes of the data before it was read may have been elsewhere, so a little more is the same.
    assert os.stat(app.at("data/sparse")).st_blocks <= blocks + 16
    assert os.stat(app.at("data/only a hole")).st_blocks == 0
    assert made["set"]["verified"] == "content"
    assert restored["changed"]
    assert not app.restore()["changed"]
    assert not app.restore(check=True)["changed"]
    assert rows_of(app.at("data/app.db")) == 200


def test_by_hand_the_same_comes_back(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    build_hard_tree(app)
    outside = str(tmp_path / "outside.db")
    make_database(outside, 7)
    os.chmod(outside, 0o640)
    os.chmod(app.at("data/app.db"), 0o660)
    app.params["databases"].append({"name": "outside", "engine": "sqlite", "path": outside})
    set_id = app.backup()["set"]["id"]
    before = app.live()
    to = tmp_path / "by hand"
    subprocess.run(["sh", app.set_file(set_id, "restore.sh"), str(to)], check=True, stdout=subprocess.DEVNULL)
    for name, wanted in before.items():
        if name == "environment":
            assert look_at(str(to / name / ".env")) == {b"": wanted[b""]}
        else:
            found = look_at(str(to / name), skip=[str(to / "data/logs"), str(to / "data/run")])
            assert {path: (found.get(path), wanted[path]) for path in wanted if found.get(path) != wanted[path]} == {}
    assert rows_of(str(to / "databases/outside/outside.db")) == 7
    assert os.stat(str(to / "databases/outside/outside.db")).st_mode & 0o7777 == 0o640
    again = subprocess.run(["sh", app.set_file(set_id, "restore.sh"), str(to)], stderr=subprocess.PIPE, check=False)
    assert again.returncode != 0
    assert b"is not empty" in again.stderr


def test_hard_links_across_shards(tmp_path: Path) -> None:
    """The names of an inode share a shard, also when they come later, in another project, or part again."""
    app = App(str(tmp_path)).build()
    app.backup()
    os.link(app.at("projects/a/files/3.txt"), app.at("projects/b/linked"))
    os.unlink(app.at("projects/a/files/4.txt"))
    os.link(app.at("projects/b/note.txt"), app.at("projects/a/files/4.txt"))
    app.backup()
    before = app.live()
    app.destroy()
    app.restore()
    assert app.live() == before
    assert app.backup()["changed"] is False
    # Two files now, with the same content, mode and time.
    shutil.copy2(app.at("projects/b/linked"), app.at("projects/b/copy"))
    os.rename(app.at("projects/b/copy"), app.at("projects/b/linked"))
    os.utime(app.at("projects/b"), ns=(0, before["projects"][b"/b"][3]))
    before = app.live()
    assert app.backup()["changed"]
    app.destroy()
    app.restore()
    assert app.live() == before


def test_large_files_are_alone(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    with open(app.at("projects/a/large"), "wb") as stream:
        stream.write(b"start")
        stream.truncate(shards.SHARD_BYTES + 1)
    with open(app.at("projects/a/huge"), "wb") as stream:
        stream.truncate((8 << 30) + 4096)
        stream.seek(8 << 30)
        stream.write(b"behind eight GiB")
    digests = {}
    set_id = app.backup(verify="stored")["set"]["id"]
    store = app.opened()
    manifest = store.manifest(set_id)
    for value in store.file_list(manifest):
        digests[value["path"]] = (value["shard"], value.get("sha256"), value.get("size"))
    assert len({digests[name][0] for name in ("a/large", "a/huge", "a/files/1.txt")}) == 3
    assert digests["a/huge"][2] == (8 << 30) + 4096
    assert digests["a/large"][1] == hashlib.sha256(Path(app.at("projects/a/large")).read_bytes()).hexdigest()
    assert manifest.objects[next(x.object for x in manifest.shards if x.id == digests["a/huge"][0])] < 1 << 20


def test_sockets_and_fifos_are_reported(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    os.mkfifo(app.at("data/fifo"))
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(app.at("data"))
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        result = app.backup()
    assert any("2 sockets, FIFOs or devices" in text for text in result["warnings_"])
    assert app.info()["sets"][0]["verified"] == "content"


def test_as_a_user_without_rights_and_name() -> None:
    with folder_for(NOBODY) as top:

        def work() -> Any:
            os.umask(0o027)
            app = App(top).build()
            os.mkdir(app.at("config/read-only"))
            Path(app.at("config/read-only/file")).write_text("x")
            os.chmod(app.at("config/read-only"), 0o555)
            made = app.backup()
            before = app.live()
            for path in ("config", "projects"):
                os.rename(app.at(path), app.at(path) + ".lost")
            app.restore()
            same = app.live() == before
            again = app.restore()["changed"], app.backup()["changed"]
            app.restore(state="purged")
            return [made["set"]["verified"], same, again, os.path.exists(app.at(".opskit-restore"))]

        assert as_plain_user(work) == ["content", True, [False, False], False]


@pytest.mark.skipif(not ROOT, reason="only root may give files away")
def test_owner_by_id_and_by_name(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    os.chown(app.at("config/gateway.toml"), 1, 1)
    set_id = app.backup()["set"]["id"]
    app.destroy()
    app.restore(owner="id")
    assert os.stat(app.at("config/gateway.toml")).st_uid == 1
    # On another host the name has another id; here the list says so.
    store = app.opened()
    values = [x for x in store.file_list(store.manifest(set_id)) if x["path"] == "gateway.toml"]
    assert values[0]["user"] == "daemon"
    assert values[0]["uid"] == 1


def create(paths: List[bytes], folder: str) -> bytes:
    """What the engine's own tar says about some paths."""
    done = subprocess.run(
        [*archive._CREATE, f"--directory={folder}", "--files-from=-", "--file=-"],
        input=b"".join(path + b"\0" for path in paths),
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout


def test_the_reader_agrees_with_the_standard_librarys(tmp_path: Path) -> None:
    app = App(str(tmp_path)).build()
    build_hard_tree(app)
    top = os.fsencode(app.at("data"))
    found = [os.path.join(folder, name) for folder, dirs, files in os.walk(top) for name in dirs + files]
    paths = [b".", *sorted(os.path.relpath(path, top) for path in found if b".db-" not in path)]
    data = create(paths, app.at("data"))
    mine = list(read_members(io.BytesIO(data).readinto))
    assert [os.fsencode(member.path) for member in mine] == paths
    # Pieces of any size, also of one byte less than a block.
    stream = io.BytesIO(data)
    assert list(read_members(lambda buffer: stream.readinto(buffer[:511]))) == mine
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as other:
        theirs = other.getmembers()
        assert len(theirs) == len(mine)
        by_name: Dict[str, Any] = {}
        for member, info in zip(mine, theirs):
            assert member.path == info.name
            if info.islnk():
                assert (member.type, member.target) == ("file", info.linkname)
                assert (member.size, member.sha256) == by_name[info.linkname]
            elif info.isreg():
                content = other.extractfile(info)
                assert content is not None
                by_name[member.path] = (info.size, hashlib.sha256(content.read()).hexdigest())
                assert (member.type, (member.size, member.sha256)) == ("file", by_name[member.path])
            else:
                assert (member.type, member.target) == ("dir" if info.isdir() else "symlink", info.linkname)
    assert any(info.issparse() for info in theirs)
    assert any(info.islnk() for info in theirs)


@pytest.mark.parametrize("cut", [1, 511, 512, 700, 1024, 1600])
def test_a_cut_archive_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * 900)
    data = create([b"file"], str(tmp_path))
    with pytest.raises(BackupError, match="ends in the middle"):
        list(read_members(io.BytesIO(data[:cut]).readinto))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 900)
    os.mkfifo(tmp_path / "fifo")
    data = bytearray(create([b"file"], str(tmp_path)))
    for garbage, words in (
        (b"\1" * 1024, "header"),
        (bytes(data[:100]) + b"\1" + bytes(data[101:]), "checksum"),
        (create([b"fifo"], str(tmp_path)), "never holds"),
    ):
        with pytest.raises(BackupError, match=words):
            list(read_members(io.BytesIO(garbage).readinto))


def test_a_size_in_base_256() -> None:
    """Old GNU tar writes sizes from 8 GiB on so; a stream of that size is not needed to see that it is read right."""
    info = tarfile.TarInfo("huge")
    info.size = (8 << 30) + 5
    header = info.tobuf(tarfile.GNU_FORMAT)
    assert header[124] == 0x80
    with pytest.raises(BackupError, match="ends in the middle"):
        list(read_members(io.BytesIO(header + b"end").readinto))
    from ansible_collections.opskit.runbooks.plugins.module_utils._backup import tarstream

    assert tarstream._number(header[124:136]) == info.size


def test_a_store_with_both_compressors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App(str(tmp_path)).build()
    first = app.backup()["set"]["id"]
    monkeypatch.setattr(archive, "writer_codec", lambda: archive.GZIP)
    app.write("config/new", "x")
    assert app.backup()["set"]["verified"] == "content"
    monkeypatch.undo()
    assert {name.rsplit(".", 1)[1] for name in app.objects()} == {"gz", "zst"}
    before = app.live()
    app.destroy()
    app.restore()
    assert app.live() == before
    assert app.verify(set="all")["failure"] == ""
    app.restore(set=first)
    assert not os.path.exists(app.at("config/new"))


def test_a_new_codec_is_named() -> None:
    with pytest.raises(BackupError, match="names no compressor"):
        archive.codec_of("ab.tar.xz")
