# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs as root on a host and prints all that can be seen of one application there, by other means than the modules'.

    python3 - '{"root": "/opt/ledger", "store": "...", "state": "...", "unit": "ledger@blue.service", "database": "ledger"}'

lstat, hashlib, pg_dump and psql, sqlite3, systemctl. An empty database is the SQLite file of the application.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
from typing import Any

SAVED = ("config", "data", ".env", "projects")
LIVE = ("logs", "cache", "run")  # below data, and not saved


def output(*argv: str) -> str:
    return subprocess.run(argv, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout.decode()


def as_postgres(*argv: str) -> str:
    return output("runuser", "--user", "postgres", "--", *argv)


def files(root: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}

    def add(path: str) -> None:
        state, content = os.lstat(path), ""
        if stat.S_ISREG(state.st_mode):
            with open(path, "rb") as stream:
                content = hashlib.sha256(stream.read()).hexdigest()
        elif stat.S_ISLNK(state.st_mode):
            content = os.readlink(path)
        name = os.path.relpath(path, root)
        # The running application makes and removes files in its data folder.
        found[name] = [state.st_mode, state.st_uid, state.st_gid, 0 if name == "data" else state.st_mtime_ns, content]

    for top in (os.path.join(root, name) for name in SAVED):
        if os.path.lexists(top):
            add(top)
        for folder, folders, names in os.walk(top):
            if folder == os.path.join(root, "data"):
                folders[:] = [name for name in folders if name not in LIVE]
                names = [name for name in names if not name.startswith("gateway.db")]
            for name in folders + names:
                add(os.path.join(folder, name))
    return found


def rows(root: str, database: str) -> list[str]:
    if database:
        # Without the random key that newer clients write (psql, \restrict).
        return [line for line in as_postgres("pg_dump", database).splitlines() if not re.match(r"\\(un)?restrict ", line)]
    with sqlite3.connect(f"file:{root}/data/gateway.db?mode=ro", uri=True) as connection:
        return list(connection.iterdump())


def databases(database: str) -> list[list[str]]:
    """Name, number and whether it takes connections, of the database and all beside it."""
    query = f"SELECT datname, oid, datallowconn FROM pg_database WHERE datname ~ '^{database}(_[nb]_[0-9a-f]{{12}})?$' ORDER BY 1"
    return [line.split("|") for line in as_postgres("psql", "-XAtc", query).splitlines()] if database else []


def listing(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def content(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def main() -> None:
    what = json.loads(sys.argv[1])
    root, store, state, database = what["root"], what["store"], what["state"], what["database"]
    there = [name for name, _oid, _open in databases(database)]
    sqlite_there = not database and os.path.exists(f"{root}/data/gateway.db")
    staged = os.path.join(root, ".opskit-restore")
    unit = dict(line.split("=", 1) for line in output("systemctl", "show", "-p", "MainPID,ActiveState", what["unit"]).splitlines())
    found = {
        "files": files(root),
        "rows": rows(root, database) if database in there or sqlite_there else [],
        "databases": databases(database),
        "inodes": [os.lstat(os.path.join(root, name)).st_ino for name in SAVED if os.path.lexists(os.path.join(root, name))],
        "password": as_postgres("psql", "-XAtc", f"SELECT rolpassword FROM pg_authid WHERE rolname = '{database}'") if database else "",
        "beside": [f"{name}/{below}" for name in listing(staged) for below in listing(os.path.join(staged, name))],
        "sets": listing(f"{store}/sets"),
        "half": listing(f"{store}/tmp"),
        "journal": [json.loads(line) for line in content(f"{state}/journal.jsonl").splitlines()],
        "restore": json.loads(content(f"{state}/restore.json") or "{}"),
        "lease": content(f"{state}/lease.json"),
        "unit": unit,
    }
    print(json.dumps(found))


main()
