# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back without this collection: the shell script that each set brings."""

from __future__ import annotations

import os
import shlex
from typing import List, Mapping, Sequence

from . import archive
from .manifest import Image, Manifest, Shard, get_text
from .shards import is_tree


def restore_script(manifest: Manifest, stale: Mapping[str, Sequence[str]]) -> str:
    """Return a shell script that restores the set with tar, zstd or gzip, and sha256sum alone.

    :param stale: by shard the members that are left out
    """

    lines = [
        "#!/bin/sh",
        f"# Restores set {manifest.id} into an empty folder: one folder in it for each saved path.",
        "# As root, owners are restored too. Nothing outside of that folder is touched.",
        "set -eu",
        "umask 077",
        "to=${1:?usage: sh restore.sh FOLDER}",
        'here=$(cd "$(dirname "$0")" && pwd)',
        'mkdir -p "$to"',
        'if [ -n "$(ls -A "$to")" ]; then echo "$to is not empty" >&2; exit 1; fi',
        'to=$(cd "$to" && pwd)',
        'cd "$here"',
        "sha256sum --quiet --strict --check SHA256SUMS",
        "unpack() {",
        "    root=$1",
        "    shift",
        f'    {shlex.join(archive.EXTRACT)} --directory="$to/$root" --file=- "$@"',
        "}",
    ]
    for name in sorted(manifest.roots):
        lines.append(f'mkdir -p "$to"/{shlex.quote(name)}')
    for image in manifest.databases:
        if not image.file:
            lines += _server_lines(image)
            continue
        path, file = get_text(image.file, "path"), image.file
        target = os.path.join(image.root, path) if image.root else os.path.join("databases", image.name, os.path.basename(path))
        quoted, second = f'"$to"/{shlex.quote(target)}', divmod(file["mtime_ns"], 10**9)
        lines.append(f'mkdir -p "$to"/{shlex.quote(os.path.dirname(target))}')
        lines += _image_lines(image, quoted)
        owners = [f"{file['user']}:{file['group']}"] * bool(file["user"] and file["group"]) + [f"{file['uid']}:{file['gid']}"]
        chown = " || ".join(f"chown {shlex.quote(owner)} {quoted} 2>/dev/null" for owner in owners)
        lines.append(f'if [ "$(id -u)" = 0 ]; then {chown}; fi')
        lines.append(f"chmod {file['mode']:04o} {quoted}")
        lines.append(f"touch --date=@{second[0]}.{second[1]:09d} {quoted}")
    # Last the shards of folders, which set their modes and times.
    for shard in restore_order(manifest.shards):
        lines.append(f"{_decompress(shard.object)} | unpack {shlex.join([shard.root, *archive.without(stale.get(shard.id, ()))])}")
    lines.append(f'echo "set {manifest.id} is in $to"')
    return "\n".join(lines) + "\n"


def _decompress(name: str) -> str:
    return f"{shlex.join(archive.known_codec(name).decompress())} <../../objects/{name[:2]}/{name}"


def _image_lines(image: Image, target: str) -> List[str]:
    """Return the lines that write an image to a path, quoted as it stands in the script."""
    if not image.base:
        return [f"{_decompress(image.object)} >{target}"]
    # Both images have to be in memory; the window is larger than what is allowed unasked. No saved path has a name with a dot first.
    return [
        f'{_decompress(image.base)} >"$to"/.base',
        f'{_decompress(image.object)} --long=31 --patch-from="$to"/.base >{target}',
        'rm "$to"/.base',
    ]


def _server_lines(image: Image) -> List[str]:
    """Return the lines that lay the dump of a database in a server ready, and say how a server takes it."""
    folder = f'"$to"/databases/{shlex.quote(image.name)}'
    lines = [f"mkdir -p {folder}", *_image_lines(image, f"{folder}/{image.engine}.dump")]
    if image.beside:
        lines.append(f"{_decompress(image.beside)} >{folder}/globals.sql")
    owner, database = image.facts["properties"]["owner"], image.facts["database"]
    words = [
        f"Database {database}, as a superuser of a server that is at least as new:",
        "  roles that are missing: their lines of globals.sql, with psql",
        f"  createdb --template=template0 --encoding={shlex.quote(image.facts['properties']['encoding'])} "
        f"--owner={shlex.quote(owner)} {shlex.quote(database)}",
        f"  pg_restore --exit-on-error --dbname={shlex.quote(database)} {image.engine}.dump",
        "  rights, settings and comment of the database itself: see databases, facts, properties in manifest.json",
    ]
    quoted = shlex.join(words)
    return [*lines, f"printf '%s\\n' {quoted} | tee {folder}/README.txt"]


def restore_order(items: Sequence[Shard]) -> List[Shard]:
    """Return shards in the order in which they are extracted: folders last, so that their modes and times stay."""
    return sorted(items, key=lambda shard: (is_tree(shard.id), shard.id))
