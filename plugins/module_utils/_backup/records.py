# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines of a set's file list, from what lies on disk."""

from __future__ import annotations

import base64
import errno
import grp
import os
import pwd
from typing import Dict, List, Tuple

from .._core.files import hash_file
from . import archive
from .errors import BackupError
from .manifest import Record, record
from .shards import Group
from .source import Entry, Root, look


def _owner(entry: Entry, names: Dict[str, str]) -> Tuple[int, int, str, str]:
    user, group = f"u{entry.uid}", f"g{entry.gid}"
    if user not in names:
        try:
            names[user] = pwd.getpwuid(entry.uid).pw_name
        except KeyError:
            names[user] = ""
    if group not in names:
        try:
            names[group] = grp.getgrgid(entry.gid).gr_name
        except KeyError:
            names[group] = ""
    return entry.uid, entry.gid, names[user], names[group]


def read_xattrs(path: str) -> Dict[str, str]:
    """Return a path's extended attributes, ACLs among them, base64 by name."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return {name: base64.b64encode(os.getxattr(path, name, follow_symlinks=False)).decode("ascii") for name in sorted(names)}
    except (FileNotFoundError, NotADirectoryError):
        raise archive.Changed(f"{path} went") from None
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS):
            raise
        return {}  # This file system has none.


def make_records(root: Root, entries: List[Entry], contents: Dict[str, Tuple[int, str, str, str]]) -> List[Record]:
    """Return the file list's lines for some entries.

    :param contents: by path: size, SHA-256, symlink target, and the earlier path that a hard link names
    """
    records = []
    names: Dict[str, str] = {}
    for entry in entries:
        size, sha256, target, link = contents.get(entry.path, (0, "", "", ""))
        records.append(
            record(
                root.name,
                entry.path,
                entry.type,
                size,
                entry.mode,
                _owner(entry, names),
                entry.mtime_ns,
                sha256,
                target,
                read_xattrs(os.path.join(root.base, entry.path)),
                link,
            )
        )
    return records


def stored_records(group: Group, entries: List[Entry], members: List[archive.Member]) -> List[Record]:
    """Pair what was stored with what lstat(2) said before, and make sure that nothing was done to it meanwhile."""
    by_path = {member.path: member for member in members}
    contents: Dict[str, Tuple[int, str, str, str]] = {}
    for entry in entries:
        member = by_path.get(entry.path)
        if member is None or member.type != entry.type:
            raise archive.Changed(f"{entry.path} is not in the archive as what it was")
        if entry.type == "symlink":
            contents[entry.path] = (0, "", member.target, "")
        elif entry.type == "file":
            contents[entry.path] = (member.size, member.sha256, "", member.target)
            if member.size != entry.size and not group.logs:
                raise archive.Changed(f"{entry.path} changed")
    records = make_records(group.root, entries, contents)
    for entry in entries:
        now = look(group.root.base, entry.path)
        if entry.type == "dir":
            # What comes and goes in a folder changes its times, which a restore takes from here.
            same = now is not None and (entry.mode, entry.uid, entry.gid) == (now.mode, now.uid, now.gid)
        else:
            same = group.logs or (now is not None and entry.same_file(now))
        if not same:
            raise archive.Changed(f"{entry.path} changed")
    return records


def read_records(root: Root, entries: List[Entry]) -> List[Record]:
    """Return the lines that members of one shard would have now, reading their content."""
    firsts: Dict[Tuple[int, int], str] = {}
    contents: Dict[str, Tuple[int, str, str, str]] = {}
    try:
        for entry in entries:
            path = os.path.join(root.base, entry.path)
            if entry.type == "symlink":
                contents[entry.path] = (0, "", os.readlink(path), "")
            elif entry.type == "file":
                # As tar does, which names the first member that is the same inode.
                first = firsts.setdefault((entry.device, entry.inode), entry.path)
                contents[entry.path] = (entry.size, hash_file(path), "", first if first != entry.path else "")
        return make_records(root, entries, contents)
    except (FileNotFoundError, archive.Changed):
        # Gone since the scan: certainly not what the last set holds.
        return []
    except PermissionError as error:
        raise BackupError("this file can't be read", error.filename, "Run as a user who may read it (become)") from None
