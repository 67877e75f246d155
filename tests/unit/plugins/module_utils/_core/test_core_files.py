# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ansible_collections.opskit.runbooks.plugins.module_utils._core import files
from ansible_collections.opskit.runbooks.plugins.module_utils._core.errors import OpskitError


def test_publish_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with files.publish(str(path), 0o640) as stream:
        stream.write(b"old")
        assert not path.exists()
    assert path.read_bytes() == b"old"
    assert path.stat().st_mode & 0o7777 == 0o640
    number = path.stat().st_ino
    handle = os.open(path, os.O_RDONLY)
    with pytest.raises(TypeError), files.publish(str(path)) as stream:
        stream.writelines([b"half", None])  # type: ignore[list-item]
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"
    assert path.stat().st_ino == number
    with files.publish(str(path)) as stream:
        stream.write(b"new")
    # Who had the old one open still reads it.
    assert os.read(handle, 10) == b"old"
    os.close(handle)
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (b"new", 0o600)


def test_publish_is_private_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        files.publish_json(str(tmp_path / "a"), {"b": 1, "a": "ä"})
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o600
    assert json.loads((tmp_path / "a").read_text()) == files.read_json(str(tmp_path / "a")) == {"b": 1, "a": "ä"}
    assert (tmp_path / "a").read_text().index('"a"') < (tmp_path / "a").read_text().index('"b"')


def test_publish_follows_no_link_that_somebody_put_there(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f"file.tmp.{os.getpid()}").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic links"), files.publish(str(tmp_path / "file")):
        pass
    assert (tmp_path / "victim").read_text() == "mine"


def test_what_is_no_json(tmp_path: Path) -> None:
    for data in (b"{", b"\xff"):
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(OpskitError, match="file: this is not the JSON that was written here"):
            files.read_json(str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError):
        files.read_json(str(tmp_path / "none"))


def test_make_dir(tmp_path: Path) -> None:
    files.make_dir(str(tmp_path / "a/b/c"))
    assert [(tmp_path / path).stat().st_mode & 0o777 for path in ("a", "a/b", "a/b/c")] == [0o755, 0o755, 0o700]
    os.chmod(tmp_path / "a/b/c", 0o750)
    files.make_dir(str(tmp_path / "a/b/c"))
    assert (tmp_path / "a/b/c").stat().st_mode & 0o777 == 0o750
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        with pytest.raises(OpskitError, match="file: a folder is needed here, but something else has this name"):
            files.make_dir(str(tmp_path / path))


def test_exchange_and_move(tmp_path: Path) -> None:
    one, two, three = (str(tmp_path / name) for name in ("one\n", "two\udcff", "three"))
    os.mkdir(one)
    Path(two).write_text("a file")
    files.exchange(one, two)
    assert Path(one).read_text() == "a file"
    assert os.path.isdir(two)
    with pytest.raises(OSError, match="exists"):
        files.move_new(one, two)
    files.move_new(one, three)
    assert Path(three).read_text() == "a file"
    with pytest.raises(FileNotFoundError):
        files.exchange(one, two)
    files.sync_filesystem(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        files.sync_filesystem(one)


def test_remove_tree(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").touch()
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/file").touch()
    (top / "link").symlink_to("../outside")
    (top / "dangling").symlink_to("nowhere")
    for folder in ("a/b", "a"):
        os.chmod(top / folder, 0o500)
    files.remove_tree(str(top))
    files.remove_tree(str(top))
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert os.listdir(tmp_path / "outside") == ["file"]
    (tmp_path / "link").symlink_to("outside")
    files.remove_tree(str(tmp_path / "link"))
    files.remove_tree(str(tmp_path / "outside/file"))
    assert os.listdir(tmp_path / "outside") == []


def test_free_bytes_of_what_is_not_there_yet(tmp_path: Path) -> None:
    state = os.statvfs(tmp_path)
    free = files.free_bytes(str(tmp_path / "not/yet/there"))
    assert abs(free - (state.f_bfree if os.geteuid() == 0 else state.f_bavail) * state.f_frsize) < 1 << 30


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (12_900_000, "12.3 MiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_human_size(count: int, text: str) -> None:
    assert files.human_size(count) == text


def test_a_full_disk() -> None:
    import errno

    assert files.is_out_of_space(OSError(errno.ENOSPC, ""))
    assert files.is_out_of_space(OSError(errno.EDQUOT, ""))
    assert not files.is_out_of_space(OSError(errno.EFBIG, ""))
