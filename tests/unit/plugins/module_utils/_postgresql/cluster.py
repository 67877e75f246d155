# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real server with what the tests of the room ask it for."""

from __future__ import annotations

import os
import subprocess
from typing import Any, Dict, List, Tuple

from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.database import PostgresDatabase
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.login import Login
from ansible_collections.opskit.runbooks.plugins.module_utils._postgresql.restore import PostgresTarget
from ansible_collections.opskit.runbooks.tests.shared import postgres

PASSWORD = "canary-7Qx"


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class Cluster:
    """A running server; names of databases and roles of a test begin as it likes."""

    def __init__(self, server: postgres.Server, folder: str) -> None:
        self.server = server
        self.folder = folder
        self.sql = server.run
        self._files = 0
        self.admin = Login(host=server.host, port=server.port, user=server.superuser)

    def empty(self) -> None:
        self.sql("RESET ALL; SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        for line in self.sql(
            "SELECT quote_ident(datname) FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1')"
        ).splitlines():
            self.sql(f"DROP DATABASE {line} WITH (FORCE)")
        for line in self.sql("SELECT quote_ident(rolname) FROM pg_roles WHERE oid >= 16384").splitlines():
            self.sql(f"DROP OWNED BY {line}; DROP ROLE {line}")

    def file(self, content: str = "", mode: int = 0o600) -> str:
        """The path of a new file with this content, of a file that does not exist for none."""
        self._files += 1
        path = os.path.join(self.folder, str(self._files))
        if content:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, mode), "w", encoding="utf-8") as stream:
                stream.write(content)
            os.chmod(path, mode)
        return path

    def login(self, role: str, password: str = PASSWORD) -> Login:
        """Log in as a role by a passfile."""
        return self.admin._replace(user=role, passfile=self.file(f"*:*:*:*:{password}\n"))

    def make(self, database: str = "app", sql: str = "", options: str = "") -> PostgresDatabase:
        self.sql(f"CREATE DATABASE {quoted(database)} {options}")
        if sql:
            self.sql(sql, conninfo(database))
        return self.database(database)

    def database(self, database: str = "app", login: Login | None = None, **options: Any) -> PostgresDatabase:
        return PostgresDatabase(database, database, login or self.admin, 2, **options)

    def target(self, database: str = "app", login: Login | None = None, deadline_s: float = 5) -> PostgresTarget:
        return PostgresTarget(self.database(database), login or self.admin, deadline_s)

    def dump(self, database: PostgresDatabase) -> Tuple[str, Dict[str, Any]]:
        image = self.file()
        database.copy(image)
        return image, database.facts(image)

    def databases(self) -> List[str]:
        return self.sql("SELECT datname FROM pg_database WHERE oid > 16383 ORDER BY 1").splitlines()

    def text(self, database: str, *options: str) -> List[str]:
        """What pg_dump says of a database, as sorted lines: another look than the room's own."""
        argv = [str(self.server.bin / "pg_dump"), "-h", self.server.host, "-p", str(self.server.port), "-U", self.server.superuser]
        done = subprocess.run([*argv, *options, "-d", conninfo(database)], stdout=subprocess.PIPE, check=True, cwd="/")
        lines = done.stdout.decode("utf-8", errors="surrogateescape").splitlines()
        return sorted(line for line in lines if not line.startswith(("\\restrict", "\\unrestrict")))


def conninfo(database: str) -> str:
    """A name with an equals sign in it would be taken for a connection string."""
    return "dbname='{}'".format(database.replace("\\", "\\\\").replace("'", "\\'"))
