# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A throw-away server for one restore: made in a folder, reached by a socket in it, and gone with it."""

from __future__ import annotations

import os
import pwd
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, List, NamedTuple

from .._core.command import run
from .._core.environment import value_of, with_value
from .._core.errors import OpskitError
from .clients import client, installed, major_of, version_text
from .contents import ask, definitions_difference, quote, rows_difference
from .credentials import Url, moved_url, read_url
from .database import READ_S, PostgresDatabase, conninfo
from .errors import PostgresError
from .login import SOCKET_DIRECTORY, Login
from .restore import MAINTENANCE, PostgresTarget

SUPERUSER = "postgres"
"""As Debian's servers call it: what it owns in a dump belongs to it here, too."""

PORT = 5432
HOST = "127.0.0.1"
HERE = ("", "localhost", "127.0.0.1", "::1", "/run/postgresql", SOCKET_DIRECTORY)
"""How an application names a server that it shares a host with."""

SOCKET_BYTES = 107
"""The longest path of a socket (unix(7), sun_path less one)."""

POLL_S = 0.05

# What the rows themselves are at fault for, of all that keeps a dump from being loaded. Everything else is the server's.
_DATA_AT_FAULT = re.compile(r"could not create unique index|violates .* constraint|is violated by some row|duplicate key value")

_BROKEN = re.compile(r"^(?:heap table|btree index|.*relation) \"([^\"]+)\"(.*):$")


class Limits(NamedTuple):
    """What the server may take of the host."""

    memory: int
    """Bytes."""
    cores: int


class Cluster:
    """A server of its own in a folder. It is started by whoever keeps it apart from everything else.

    :param folder: as the clients see it
    :param inside: the same folder, as the server sees it
    :param os_user: who the server runs as; it refuses root
    """

    def __init__(self, folder: str, inside: str, os_user: str, major: int) -> None:
        self.folder = folder
        self.inside = inside
        self.os_user = os_user
        self.bin = os.path.dirname(client("pg_amcheck", major))
        self.login = Login(host=self.sockets, port=PORT, user=SUPERUSER)

    @property
    def sockets(self) -> str:
        """The folder of the server's socket."""
        return os.path.join(self.folder, "s")

    def prepare(self) -> None:
        """Write who may log in, and give the folder to the server's user."""
        owner = pwd.getpwnam(self.os_user)
        users = sorted({self.os_user, pwd.getpwuid(os.geteuid()).pw_name})
        settings = {
            # Nobody but those below the server's folder and namespace gets here; a password still has to be the right one.
            "pg_hba.conf": f"local all {SUPERUSER} peer map=drill\nlocal all all trust\nhost all all samehost md5\n",
            "pg_ident.conf": "".join(f'drill "{name}" {SUPERUSER}\n' for name in users),
        }
        os.mkdir(self.sockets, 0o755)
        for name, text in settings.items():
            with open(os.path.join(self.folder, name), "w", encoding="utf-8") as stream:
                stream.write(text)
        if os.geteuid() == 0:
            for path in (self.folder, self.sockets, *(os.path.join(self.folder, name) for name in settings)):
                os.chown(path, owner.pw_uid, owner.pw_gid)

    def make(self) -> List[str]:
        """Return the command that makes the empty cluster, for the server's user."""
        options = ["--auth=reject", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", f"--username={SUPERUSER}"]
        return [os.path.join(self.bin, "initdb"), f"--pgdata={self.inside}/data", *options]

    def serve(self, limits: Limits) -> List[str]:
        """Return the command of the server, in the foreground, for the server's user.

        Whatever it is given is lost with it, so it takes care of speed alone.
        """
        megabyte = 1 << 20
        shared = max(16, min(512, limits.memory // 8 // megabyte))
        settings = {
            "hba_file": f"{self.inside}/pg_hba.conf",
            "ident_file": f"{self.inside}/pg_ident.conf",
            "unix_socket_directories": f"{self.inside}/s",
            "listen_addresses": f"{HOST},::1",
            "port": str(PORT),
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "wal_level": "minimal",
            "archive_mode": "off",
            "max_wal_senders": "0",
            "max_wal_size": "8GB",
            "checkpoint_timeout": "1h",
            "autovacuum": "off",
            "jit": "off",
            "shared_buffers": f"{shared}MB",
            "maintenance_work_mem": f"{max(16, min(512, limits.memory // 8 // megabyte // limits.cores))}MB",
            "max_parallel_maintenance_workers": str(limits.cores - 1),
            "max_connections": "300",
            "max_prepared_transactions": "20",
            "lc_messages": "C",
            "log_statement": "none",
        }
        argv = [os.path.join(self.bin, "postgres"), "-D", f"{self.inside}/data"]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        return argv

    def require_answer(self, deadline_s: float, is_alive: Callable[[], None]) -> None:
        """Return once the server takes connections. Raises :class:`PostgresError` when it does not, or runs no more.

        :param is_alive: raises :class:`OpskitError` with the server's last words where it runs no more
        """
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                with self.login.session(MAINTENANCE):
                    return
            except PostgresError:
                is_alive()
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    def target(self, name: str, database: str, url_variable: str) -> PostgresTarget:
        """Return a database of the description as one that is brought back to this server."""
        return PostgresTarget(PostgresDatabase(name, database, self.login, 60), self.login, 60, url_variable)

    def load(self, target: PostgresTarget, image: str, globals_sql: str, facts: Dict[str, Any], cores: int) -> None:
        """Load a dump under the name that the application uses.

        :param globals_sql: path of the roles' definitions; empty where there are none
        Raises :class:`PostgresError` where it can't be loaded.
        """
        self._make_roles(facts, bool(globals_sql))
        target.make(image, globals_sql, facts, target.database, cores)

    def difference(self, target: PostgresTarget, facts: Dict[str, Any], cores: int) -> str:
        """Say in what a loaded database is not what was recorded, or is broken in itself; empty when nothing is wrong."""
        database = target.database
        with self.login.session(database) as connection:
            same = major_of(connection.server_version) == major_of(facts["server_version"])
            wrong = definitions_difference(connection, self.login, database, facts, "words" if same else "objects")
            if wrong:
                return wrong
            installed_before = ask(connection, "SELECT FROM pg_catalog.pg_extension WHERE extname = 'amcheck'")
            with ThreadPoolExecutor(max_workers=1) as pool:
                broken = pool.submit(self._broken, database, max(1, cores - 1))
                wrong = rows_difference(connection, facts) or broken.result()
            if not wrong and not installed_before:
                # The application gets its database as it was.
                ask(connection, "DROP EXTENSION amcheck")
            return wrong

    def _broken(self, database: str, jobs: int) -> str:
        """Have amcheck read every table and index, and say what it finds first; empty when it finds nothing."""
        argv = [os.path.join(self.bin, "pg_amcheck"), "--heapallindexed", f"--jobs={jobs}", "--no-password", "--install-missing"]
        done = run([*argv, conninfo(database)], READ_S, env=self.login.environment(database), cwd="/", ok=(0, 2))
        return first_broken(done.stdout.decode("utf-8", errors="replace")) if done.returncode else ""

    def _make_roles(self, facts: Dict[str, Any], globals_there: bool) -> None:
        """Make roles that nothing defines: a login that was no superuser could not save them."""
        if globals_there:
            return
        with self.login.session(MAINTENANCE) as connection:
            there = {name for (name,) in ask(connection, "SELECT rolname FROM pg_catalog.pg_roles")}
            for role in sorted({*facts["roles"], facts["properties"]["owner"]} - there):
                ask(connection, f"CREATE ROLE {quote(role)} LOGIN")

    def settle(self, target: PostgresTarget, settings: bytes, whose: str) -> bytes:
        """Return an environment file's content with which the application logs in here, changed only where that is needed.

        A URL that leads to another host, or to another port than this server's, is turned to this one. A role whose password
        was not saved, because the backup's login may not read it, gets the one of the URL.
        """
        variable = target.url_variable
        url = read_url(settings, variable, whose)
        if not is_here(url):
            settings = with_value(settings, variable, moved_url(value_of(settings, variable) or "", HOST, PORT))
        if url.password:
            with self.login.session(MAINTENANCE) as connection:
                saved = ask(connection, "SELECT FROM pg_catalog.pg_authid WHERE rolname = %s AND rolpassword IS NOT NULL", [url.login.user])
            if not saved:
                target.set_password(settings, whose)
        return settings


def is_here(url: Url) -> bool:
    """True for a URL that leads to a server on the application's own host, at the usual port."""
    return url.login.host in HERE and url.login.port in (0, PORT)


def is_at_fault(error: OpskitError) -> bool:
    """True when a dump can't be loaded because of what is in it."""
    return bool(_DATA_AT_FAULT.search(error.what))


def first_broken(report: str) -> str:
    """Return the first thing that pg_amcheck complains of, on one line."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        found = _BROKEN.match(line)
        if found:
            what = lines[number + 1] if number + 1 < len(lines) else "it is damaged"
            # Database, schema and name, of which the first is known.
            return f"amcheck: {found.group(1).partition('.')[2]}{found.group(2)}: {what}"
    return f"amcheck: {lines[0] if lines else 'it found damage and did not say where'}"


def check_host(os_user: str, server_version: int) -> int:
    """Return the major version of the server that a dump is loaded into here. Raises :class:`PostgresError` where none fits.

    :param server_version: of the server that the dump is from
    """
    major = major_of(server_version)
    servers = {number for number in installed("initdb") if number in installed("pg_amcheck")}
    fitting = sorted(number for number in servers if number >= major)
    if not fitting:
        there = f"this host has {', '.join(map(str, sorted(servers)))}" if servers else "this host has no server"
        raise PostgresError(
            f"the dump is of PostgreSQL {version_text(server_version)}, and {there}",
            todo=f"Install one that is at least as new (apt-get install postgresql-{major}), or drill on another host",
        )
    try:
        pwd.getpwnam(os_user)
    except KeyError:
        raise PostgresError(
            f"this host has no user {os_user!r}, whom the server could run as", todo="apt-get install postgresql-common"
        ) from None
    return fitting[0]


def require_socket(folder: str) -> None:
    """Raise :class:`PostgresError` for a folder in which a socket's path would be too long."""
    path = os.path.join(folder, f".s.PGSQL.{PORT}")
    if len(os.fsencode(path)) > SOCKET_BYTES:
        raise PostgresError("the path of the server's socket would be too long here", folder, "Name a folder with a shorter path")
