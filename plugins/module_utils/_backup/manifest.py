# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a set says about itself: its manifest, and its list of files."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from datetime import datetime
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple, TypeVar, get_type_hints

from .._core.clock import parse_rfc3339, rfc3339
from .errors import BackupError

VERSION = 1
"""Of the whole store's format."""

Record = Dict[str, Any]
"""One line of the file list, see :func:`record`."""

STALE = "stale"
"""True in the line of a member whose valid copy is in another shard, or that was gone when the set was made. It serves verification alone."""


class Shard(NamedTuple):
    """One archive of files."""

    id: str
    root: str
    object: str
    """``<sha256>.tar.zst``: the name of the object that holds it."""
    tree: str
    """SHA-256 over paths, metadata and content of all members: equal trees are the same object."""
    files: int
    """Members whose copy in it is the valid one, and their bytes."""
    bytes: int
    stored_bytes: int
    logs: bool


class Image(NamedTuple):
    """One database as of one moment."""

    name: str
    engine: str
    root: str
    """The root it lies in, empty for one that lies outside all of them."""
    file: Record
    """Its main file as a line of the file list; the path is absolute where it lies in no root. Empty for one in a server."""
    object: str
    stored_bytes: int
    facts: Dict[str, Any]
    """What the engine wrote down when it made the image: bytes, sha256, and what it knows of the content."""
    declared: bool
    beside: str = ""
    """The object with what belongs to the whole server (the SQL of its roles); empty where there is none."""
    beside_bytes: int = 0
    """As stored."""
    full_at: str = ""
    """When the object, or the one it is a delta against, was made of a whole image (RFC 3339, UTC)."""
    base: str = ""
    """The object with the whole image that this one is a delta against; empty for a whole one."""
    base_bytes: int = 0
    """As stored."""
    base_image_bytes: int = 0
    """Bytes of the base's plain image."""
    restore_memory: int = 0
    """Bytes of memory that decompressing it takes, where that is worth a thought: zstd holds both images."""

    @property
    def stored(self) -> Tuple[Tuple[str, int], ...]:
        """Return name and stored bytes of each object that the image needs."""
        objects = ((self.object, self.stored_bytes), (self.beside, self.beside_bytes), (self.base, self.base_bytes))
        return tuple((name, size) for name, size in objects if name)


class Manifest(NamedTuple):
    """One set."""

    id: str
    seq: int
    time: datetime
    """When its first byte was read, UTC."""
    application: str
    store: str
    collection: str
    """Version of the collection that wrote it."""
    roots: Dict[str, Dict[str, Any]]
    """By name: ``type`` (dir or file), ``path``, ``files``, ``bytes``."""
    shards: List[Shard]
    databases: List[Image]
    files: str
    """SHA-256 of the file list, compressed as it is stored."""
    new_bytes: int
    """Bytes of the objects that this set was the first to need."""
    guarantee: str
    """``paused`` or ``stopped``: everything is of one moment, in which the application held its writes or did not run.
    ``none``: databases and files are each consistent, but of different moments."""
    pause_s: float = 0.0
    """Seconds from the beginning of the pause to its end; 0 where none was asked for."""
    keys: Dict[str, str] = {}
    """By variable of the environment file, the fingerprint of a key that data of the set may be encrypted or signed with."""

    @property
    def objects(self) -> Dict[str, int]:
        """Return the stored bytes of every object that the set needs, by name."""
        sizes = {shard.object: shard.stored_bytes for shard in self.shards}
        for image in self.databases:
            sizes.update(image.stored)
        return sizes

    def as_json(self) -> Dict[str, Any]:
        """Return what is written to ``manifest.json``."""
        value = self._asdict()
        value.update(
            format=VERSION,
            time=rfc3339(self.time),
            shards=[shard._asdict() for shard in self.shards],
            databases=[image._asdict() for image in self.databases],
        )
        return value

    @classmethod
    def from_json(cls, value: Dict[str, Any], path: str) -> Manifest:
        """Read what :meth:`as_json` wrote. Raises :class:`BackupError` for another version or a broken one."""
        if not isinstance(value, dict):
            raise BackupError("this is no manifest", path)
        value = dict(value)
        version = value.pop("format", None)
        if version != VERSION:
            raise BackupError(f"the set is of format {version}, this collection reads {VERSION}", path, "Use the collection that wrote it")
        try:
            value.update(
                time=parse_rfc3339(value["time"]),
                shards=[_checked(Shard(**shard)) for shard in value["shards"]],
                databases=[_checked(Image(**image)) for image in value["databases"]],
            )
            manifest = _checked(cls(**value))
            # What every reader of a manifest takes for granted.
            numbers = [root[key] for root in manifest.roots.values() for key in ("files", "bytes")]
            for image in manifest.databases:
                numbers.append(image.facts["bytes"])
                image.facts["sha256"]
                if image.file:
                    numbers += [image.file["mode"], image.file["mtime_ns"]]
                    get_text(image.file, "path")
            if not all(isinstance(number, int) for number in numbers):
                raise TypeError("a size or count is no number")
            if not all(root["type"] in ("dir", "file") and get_text(root, "path") for root in manifest.roots.values()):
                raise ValueError("a path is neither a folder nor a file")
            return manifest
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BackupError(f"this is no manifest ({error})", path) from None


Checked = TypeVar("Checked", Shard, Image, Manifest)
_HINTS = {kind: get_type_hints(kind) for kind in (Shard, Image, Manifest)}


def _checked(value: Checked) -> Checked:
    """Return a value each of whose fields is of the type that it is declared with. Raises :class:`TypeError`."""
    for field, kind in _HINTS[type(value)].items():
        if not isinstance(getattr(value, field), getattr(kind, "__origin__", kind)):
            raise TypeError(f"{field} is {getattr(value, field)!r}")
    return value


def record(
    root: str,
    path: str,
    kind: str,
    size: int,
    mode: int,
    owner: Tuple[int, int, str, str],
    mtime_ns: int,
    sha256: str = "",
    target: str = "",
    xattrs: Optional[Dict[str, str]] = None,
    link: str = "",
) -> Record:
    """Return one line of the file list.

    :param owner: user id, group id, user name, group name
    :param target: where a symlink points
    :param xattrs: extended attributes by name, base64
    :param link: the earlier path that is another name of the same inode
    Fields that say nothing are left out; a text that is not UTF-8 is written as ``<field>_b64``.
    """
    value: Record = {"root": root, "type": kind, "mode": mode, "mtime_ns": mtime_ns}
    value["uid"], value["gid"], value["user"], value["group"] = owner
    put_text(value, "path", path)
    if kind == "file":
        value["size"] = size
        value["sha256"] = sha256
    if target:
        put_text(value, "target", target)
    if link:
        put_text(value, "link", link)
    if xattrs:
        value["xattrs"] = xattrs
    return value


def put_text(value: Record, field: str, text: str) -> None:
    """Write a path into a record: as text, or as base64 where its bytes are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        value[field + "_b64"] = base64.b64encode(os.fsencode(text)).decode("ascii")
    else:
        value[field] = text


def get_text(value: Record, field: str) -> str:
    """Read what :func:`put_text` wrote; empty when there is none. Raises what a wrong shape raises."""
    if field + "_b64" in value:
        return os.fsdecode(base64.b64decode(value[field + "_b64"]))
    text = value.get(field, "")
    if not isinstance(text, str):
        raise TypeError(f"{field} is {text!r}")
    return text


def tree_hash(records: Iterable[Record]) -> str:
    """Return the hash of what some records say, but for the shard they lie in and whether that is their valid copy."""
    digest = hashlib.sha256()
    for value in records:
        digest.update(_dump({key: value[key] for key in value if key not in ("shard", STALE)}))
    return digest.hexdigest()


def stale_members(records: Iterable[Record]) -> Dict[str, List[str]]:
    """Return by shard the members that are left out when it is extracted."""
    found: Dict[str, List[str]] = {}
    for value in records:
        if STALE in value:
            found.setdefault(value["shard"], []).append(get_text(value, "path"))
    return found


def dump_records(records: Iterable[Record]) -> bytes:
    """Return the file list's plain bytes."""
    return b"".join(map(_dump, records))


def load_records(data: bytes, path: str) -> List[Record]:
    """Read the file list's plain bytes. Raises :class:`BackupError`."""
    try:
        # One document is read several times faster than a line at a time.
        return list(json.loads(b"[" + b",".join(data.splitlines()) + b"]"))
    except ValueError as error:
        raise BackupError(f"this is no file list ({error})", path) from None


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _dump(value: Record) -> bytes:
    return _encode(value).encode("ascii") + b"\n"
