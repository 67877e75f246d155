# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a path differs from what a set says of it: as it lies on disk, or as another set has it."""

from __future__ import annotations

import grp
import os
import pwd
from typing import Dict, Iterator, NamedTuple, Optional, Protocol, Tuple

from .._core.files import hash_file
from .manifest import Record, get_text
from .records import read_xattrs
from .source import Entry

SIZE, MTIME, MODE, OWNER, XATTRS, TARGET, CONTENT, TYPE, LINK = (
    "size",
    "mtime",
    "mode",
    "owner",
    "xattrs",
    "target",
    "content",
    "type",
    "link",
)
"""What can differ. ``link``: it is, or is no longer, another name of the same file."""


class Owners:
    """Whom the entries of a set belong to on this host.

    :param policy: the owner with the stored ``name`` (the stored id where there is no such name), or ``id``
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self._ids: Dict[str, int] = {}

    def ids(self, value: Record) -> Tuple[int, int]:
        """Return user and group of a line of the file list."""
        return self._id("user", value["user"], value["uid"]), self._id("group", value["group"], value["gid"])

    def _id(self, kind: str, name: str, number: int) -> int:
        if self.policy == "id" or not name:
            return number
        key = f"{kind} {name}"
        if key not in self._ids:
            try:
                self._ids[key] = pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
            except KeyError:
                self._ids[key] = -1
        return number if self._ids[key] < 0 else self._ids[key]


class Item(Protocol):
    """A path that is compared with a line of a file list. What takes reading is read when it is asked for."""

    type: str
    size: int
    mode: int
    mtime_ns: int
    owner: Tuple[int, int]

    def xattrs(self) -> Dict[str, str]:
        """Return the extended attributes, base64 by name."""

    def target(self) -> str:
        """Return where a symlink points."""

    def sha256(self) -> str:
        """Return the hash of a file's content."""


class OnDisk:
    """A path as it lies on disk.

    :param known: the hash of its content, where that is known without reading it
    """

    def __init__(self, full: str, entry: Entry, known: str = "") -> None:
        self.full = full
        self.known = known
        self.type, self.size, self.mode, self.mtime_ns = entry.type, entry.size, entry.mode, entry.mtime_ns
        self.owner = (entry.uid, entry.gid)

    def xattrs(self) -> Dict[str, str]:
        return read_xattrs(self.full) or {}

    def target(self) -> str:
        return os.readlink(self.full)

    def sha256(self) -> str:
        return self.known or hash_file(self.full)


class InSet:
    """A path as a set has it."""

    def __init__(self, value: Record, owners: Owners) -> None:
        self.value = value
        self.type, self.size, self.mode, self.mtime_ns = value["type"], value.get("size", 0), value["mode"], value["mtime_ns"]
        self.owner = owners.ids(value)

    def xattrs(self) -> Dict[str, str]:
        return dict(self.value.get("xattrs", {}))

    def target(self) -> str:
        return get_text(self.value, "target")

    def sha256(self) -> str:
        return str(self.value["sha256"])


class Difference(NamedTuple):
    """One thing in which a path is not what a set says."""

    what: str
    words: str


def metadata_differences(value: Record, now: Item, owners: Optional[Owners], times: bool, deep: bool) -> Iterator[Difference]:
    """Yield in what the metadata of a path differs. A path of another type differs in nothing else.

    :param owners: None where owners do not count
    :param times: whether the time counts
    :param deep: read extended attributes too
    """
    if now.type != value["type"]:
        yield Difference(TYPE, f"it is a {now.type}, not a {value['type']}")
        return
    if now.type == "file" and now.size != value["size"]:
        yield Difference(SIZE, f"it has {now.size} bytes, not {value['size']}")
    if times and now.mtime_ns != value["mtime_ns"]:
        yield Difference(MTIME, f"it was modified at {now.mtime_ns} ns, not at {value['mtime_ns']} ns")
    yield from rights_differences(value, now, owners, deep)


def rights_differences(value: Record, now: Item, owners: Optional[Owners], deep: bool) -> Iterator[Difference]:
    """Yield in what mode, owner and, where it is deep, extended attributes differ."""
    if now.mode != value["mode"] and now.type != "symlink":
        yield Difference(MODE, f"it has mode {now.mode:04o}, not {value['mode']:04o}")
    if owners is not None and now.owner != owners.ids(value):
        yield Difference(OWNER, f"it belongs to {now.owner[0]}:{now.owner[1]}, not to {owners.ids(value)}")
    if deep and own_xattrs(now.xattrs()) != own_xattrs(value.get("xattrs", {})):
        yield Difference(XATTRS, "it has other extended attributes")


def content_differences(value: Record, now: Item) -> Iterator[Difference]:
    """Yield in what the content of a path of the same type differs. A file of another size is not read."""
    if now.type == "symlink" and now.target() != get_text(value, "target"):
        yield Difference(TARGET, "it points elsewhere")
    if now.type == "file" and (now.size != value["size"] or now.sha256() != value["sha256"]):
        yield Difference(CONTENT, "it has other content")


def own_xattrs(values: Dict[str, str]) -> Dict[str, str]:
    """Return those extended attributes that this process may set (xattr(7))."""
    return {name: value for name, value in values.items() if os.geteuid() == 0 or name.startswith(("user.", "system."))}
