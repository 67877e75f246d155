# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs as root on a host of the lab: puts the content of the bench's application into one that is installed there.

python3 fill.py <root of the application> <its database, owner and user> <scale>
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[5]))  # what holds ansible_collections
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared"))  # and postgres

from ansible_collections.opskit.runbooks.tests.bench.application import PROJECTS, TABLE, Application, Size, write_files


class HostServer:
    """The server of the host, as its superuser."""

    def run(self, sql: str, database: str = "postgres") -> str:
        argv = ["runuser", "--user", "postgres", "--", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"]
        return subprocess.run(argv, cwd="/", input=sql, text=True, stdout=subprocess.PIPE, check=True).stdout.strip()


def main() -> None:
    root, name, size = Path(sys.argv[1]), sys.argv[2], Size(float(sys.argv[3]))
    server = HostServer()
    # Beside what the installed one has by this name, and loaded in one go, because memory is not what is measured here.
    server.run(f"SET ROLE {name}; {TABLE.replace('usage', 'bench_usage', 1)}", name)
    app = Application(root, size, server)  # type: ignore[arg-type]  # it can run SQL, and writing rows asks for no more
    app.database = name
    app.copy_all("bench_usage")
    server.run("VACUUM ANALYZE bench_usage", name)
    folders = [root / f"projects/bench-{number:02d}/files" for number in range(PROJECTS)]
    write_files(root, size, folders)
    for path in (*root.glob("projects/bench-*"), *(root / "data/uploads").iterdir()):
        for one in (path, *path.rglob("*")):
            shutil.chown(one, name, name)
    print(int(server.run(f"SELECT pg_database_size('{name}')")))


main()
