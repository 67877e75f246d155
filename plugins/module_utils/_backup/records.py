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
from typing import Dict, List, Optional, Tuple

from .._core.files import hash_file
from . import archive
from .errors import BackupError
from .manifest import STALE, Record, get_text, record
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


def read_xattrs(path: str) -> Optional[Dict[str, str]]:
    """Return a path's extended attributes, ACLs among them, base64 by name; None where nothing is."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return {name: base64.b64encode(os.getxattr(path, name, follow_symlinks=False)).decode("ascii") for name in sorted(names)}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS):
            raise
        return {}  # This file system has none.


def make_records(root: Root, entries: List[Entry], contents: Dict[str, Tuple[int, str, str, str]]) -> List[Record]:
    """Return the file list's lines for some entries; one that is gone by now has none.

    :param contents: by path: size, SHA-256, symlink target, and the earlier path that a hard link names
    """
    records = []
    names: Dict[str, str] = {}
    for entry in entries:
        xattrs = read_xattrs(os.path.join(root.base, entry.path))
        if xattrs is not None:
            size, sha256, target, link = contents.get(entry.path, (0, "", "", ""))
            owner = _owner(entry, names)
            records.append(record(root.name, entry.path, entry.type, size, entry.mode, owner, entry.mtime_ns, sha256, target, xattrs, link))
    return records


def stored_records(group: Group, entries: List[Entry], members: List[archive.Member]) -> Tuple[List[Record], List[Record], List[Entry]]:
    """Pair what was stored with what lstat(2) said before, and find out to what something was done meanwhile.

    Returns the lines of what was left in peace, the lines of what is in the archive in vain, and the entries of all that was not left
    in peace.
    """
    by_path = {member.path: member for member in members}
    contents: Dict[str, Tuple[int, str, str, str]] = {}
    for entry in entries:
        member = by_path.get(entry.path)
        if member is not None and member.type == entry.type and (group.logs or entry.type != "file" or member.size == entry.size):
            content = ("", member.target, "") if entry.type == "symlink" else (member.sha256, "", member.target)
            contents[entry.path] = (member.size, *content)
    records = make_records(group.root, [entry for entry in entries if entry.path in contents], contents)
    good = {get_text(value, "path"): value for value in records}
    moved = [entry for entry in entries if entry.path not in good or not _in_peace(group, entry)]
    for entry in moved:
        good.pop(entry.path, None)
    stale = []
    for entry in moved:
        member = by_path.get(entry.path)
        if member is not None:
            link, target = ("", member.target) if member.type == "symlink" else (member.target, "")
            value = record(group.root.name, entry.path, member.type, member.size, 0, (0, 0, "", ""), 0, member.sha256, target, None, link)
            stale.append({**value, STALE: True})
    return list(good.values()), stale, moved


def _in_peace(group: Group, entry: Entry) -> bool:
    now = look(group.root.base, entry.path)
    if entry.type == "dir":
        # What comes and goes in a folder changes its times, which a restore takes from here.
        return now is not None and (entry.type, entry.mode, entry.uid, entry.gid) == (now.type, now.mode, now.uid, now.gid)
    return group.logs or (now is not None and entry.same_file(now))


def read_records(root: Root, entries: List[Entry]) -> List[Record]:
    """Return the lines that members of one shard would have now, reading their content; one that is gone by now has none."""
    firsts: Dict[Tuple[int, int], str] = {}
    contents: Dict[str, Tuple[int, str, str, str]] = {}
    try:
        for entry in entries:
            path = os.path.join(root.base, entry.path)
            try:
                if entry.type == "symlink":
                    contents[entry.path] = (0, "", os.readlink(path), "")
                elif entry.type == "file":
                    # As tar does, which names the first member that is the same inode.
                    first = firsts.setdefault((entry.device, entry.inode), entry.path)
                    contents[entry.path] = (entry.size, hash_file(path), "", first if first != entry.path else "")
            except (FileNotFoundError, NotADirectoryError):
                continue
        return make_records(root, [entry for entry in entries if entry.type == "dir" or entry.path in contents], contents)
    except PermissionError as error:
        raise BackupError("this file can't be read", error.filename, "Run as a user who may read it (become)") from None
