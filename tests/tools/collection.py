#!/usr/bin/env python
# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy what git tracks, or would track, to build/ansible_collections/opskit/runbooks.

Python and Ansible find a collection only below a folder of that name. Files that are unchanged stay as they are, files
that are gone are removed; tests/output, where ansible-test keeps its results, is left alone. The copy is a git tree of its
own because ansible-test asks git for the files to check, and the outer tree ignores build/.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPY = ROOT / "build/ansible_collections/opskit/runbooks"


def main() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    wanted = {name for name in os.fsdecode(listing.stdout).split("\0") if name and os.path.lexists(ROOT / name)}

    for folder, folders, files in os.walk(COPY, topdown=False):
        here = Path(folder).relative_to(COPY)
        if here.parts[:1] == (".git",) or here.parts[:2] == ("tests", "output"):
            continue
        for name in files + [name for name in folders if (COPY / here / name).is_symlink()]:
            if str(here / name) not in wanted:
                (COPY / here / name).unlink()
        if not os.listdir(folder):
            os.rmdir(folder)

    if not (COPY / ".git").is_dir():
        subprocess.run(["git", "init", "--quiet", "--initial-branch=main", COPY], check=True)

    for name in sorted(wanted):
        source, target = ROOT / name, COPY / name
        state = source.lstat()
        if os.path.lexists(target):
            copied = target.lstat()
            if (copied.st_mtime_ns, copied.st_size, copied.st_mode) == (state.st_mtime_ns, state.st_size, state.st_mode):
                continue
            target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)


if __name__ == "__main__":
    main()
