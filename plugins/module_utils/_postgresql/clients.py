# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The programs that fit a server: pg_dump refuses a server that is newer than itself."""

from __future__ import annotations

import glob
import os
import re
import shutil
from typing import Dict, Tuple

from .._core.command import run
from .errors import PostgresError

DEBIAN = "/usr/lib/postgresql"
"""Below it each major version has its folder (postgresql-common, README.Debian); PATH holds a wrapper that chooses another."""

PROGRAM_S = 30


def installed(program: str) -> Dict[int, str]:
    """Return the paths of a program by major version."""
    found = {
        int(match.group(1)): path
        for path in glob.glob(os.path.join(DEBIAN, "*", "bin", program))
        for match in [re.search(r"/(\d+)/bin/", path)]
        if match and os.access(path, os.X_OK)
    }
    other = shutil.which(program)
    if not found and other:
        # Another system than Debian, with one version.
        words = run([other, "--version"], PROGRAM_S).stdout.decode("utf-8", errors="replace")
        match = re.search(r"\) (\d+)", words)
        if match:
            found[int(match.group(1))] = other
    return found


def client(program: str, server_major: int) -> str:
    """Return the program of the server's major version, else the oldest newer one. Raises :class:`PostgresError`."""
    found = installed(program)
    fitting = sorted(major for major in found if major >= server_major)
    if not fitting:
        newest = f"the newest installed is {max(found)}" if found else "none is installed"
        raise PostgresError(
            f"the server is PostgreSQL {server_major} and needs {program} of at least that version; {newest}",
            todo=f"Install it: apt-get install postgresql-client-{server_major}",
        )
    return found[fitting[0]]


def newest_client(program: str) -> str:
    """Return the program of the newest major version, which reads the archives of all. Raises :class:`PostgresError`."""
    found = installed(program)
    if not found:
        raise PostgresError(f"the program {program} is not installed", todo="Install it: apt-get install postgresql-client")
    return found[max(found)]


def major_of(version_num: int) -> int:
    """Return the major version of a ``server_version_num``: 150018 is 15."""
    return version_num // 10000


def version_text(version_num: int) -> str:
    """Return a ``server_version_num`` as people write it: 150018 is 15.18."""
    parts: Tuple[int, int] = divmod(version_num, 10000)
    return f"{parts[0]}.{parts[1]}"
