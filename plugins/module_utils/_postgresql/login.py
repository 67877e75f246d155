# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How to log in to a server, and as whom."""

from __future__ import annotations

import os
import pwd
import stat
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple

from .._core.command import environment
from .._core.redact import redact
from .errors import PostgresError

try:
    import psycopg2
except ImportError:
    HAS_PSYCOPG2 = False  # said by missing_driver(), where an operator can act on it
else:
    HAS_PSYCOPG2 = True

SOCKET_DIRECTORY = "/var/run/postgresql"
"""Where Debian's servers and its libpq meet (debian/patches of postgresql-common); other builds of libpq look elsewhere."""

LIBPQ = "PG"
"""How the variables begin that libpq reads from the environment; none of the caller's own counts here."""

CONNECT_TIMEOUT_S = 10
IDENTIFIER_BYTES = 63
"""The longest name; a server cuts what is longer, so that it names something else (NAMEDATALEN less one)."""

# Whatever a server or role has set, values become the same text everywhere (what pg_dump sets, too, and the format of money,
# which it leaves), nothing is cut off by a time, and a role that reads by default may write where it is told to.
_SETTINGS = (
    "SET search_path = ''",
    "SET DateStyle = ISO",
    "SET IntervalStyle = postgres",
    "SET TimeZone = 'UTC'",
    "SET extra_float_digits = 3",
    "SET bytea_output = hex",
    "SET row_security = off",
    "SET statement_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET lc_monetary = 'C'",
    "SET standard_conforming_strings = on",
    "SET default_transaction_read_only = off",
    # Since version 17; a name that a server does not know is no row here, where SET would fail.
    "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'transaction_timeout'",
)


def missing_driver() -> str:
    """Return what to install when the Python that runs this can't speak to PostgreSQL; empty when it can."""
    return "" if HAS_PSYCOPG2 else "python3-psycopg2"


class Login(NamedTuple):
    """How a client reaches a server: the parameters of libpq. None of them is a secret."""

    host: str = ""
    """Name, address, or the folder of the server's socket; empty for :data:`SOCKET_DIRECTORY`."""
    port: int = 0
    """0 for libpq's own choice, which is 5432."""
    user: str = ""
    """The role; empty for the one that is named like the operating system's user."""
    passfile: str = ""
    """A file as libpq's ``.pgpass``."""
    service: str = ""
    """A section of ``pg_service.conf``, which says the rest."""
    os_user: str = ""
    """The operating system's user that the client runs as, for peer authentication; empty for this process's own."""

    @property
    def where(self) -> str:
        """Return the server as a person would name it."""
        if self.service:
            return f"the service {self.service}"
        return f"{self.host or SOCKET_DIRECTORY}:{self.port or 5432}"

    @property
    def is_local(self) -> bool:
        """True when the server is certainly on this host: it is met at a socket."""
        return not self.service and (not self.host or self.host.startswith("/"))

    def check(self) -> None:
        """Raise :class:`PostgresError` for what can't work. Connects to nothing."""
        if self.os_user:
            try:
                uid = pwd.getpwnam(self.os_user).pw_uid
            except KeyError:
                raise PostgresError(
                    f"this host has no user {self.os_user!r}", "os_user", "Name the user that owns the server, or use a passfile"
                ) from None
            if uid != os.geteuid() and os.geteuid() != 0:
                raise PostgresError(f"only root can act as {self.os_user}", "os_user", "Run with become, or use a passfile")
        if self.passfile:
            self._check_passfile()

    def _check_passfile(self) -> None:
        try:
            with acting_as(self.os_user), open(self.passfile, "rb") as stream:
                mode = os.fstat(stream.fileno()).st_mode
        except OSError as error:
            raise PostgresError(
                f"the passfile can't be read ({error.strerror})", self.passfile, "Make it, owned by who reads it and with mode 0600"
            ) from None
        if not stat.S_ISREG(mode) or mode & 0o077:
            # libpq ignores it and fails with "no password supplied" (libpq, 34.16).
            raise PostgresError("the passfile is open to others, so libpq ignores it", self.passfile, f"chmod 0600 {self.passfile}")

    def environment(self, database: str) -> Dict[str, str]:
        """Return the environment for a program of PostgreSQL's, secrets not in it."""
        env = {name: value for name, value in environment().items() if not name.startswith(LIBPQ)}
        for name, value in (("PGUSER", self.user), ("PGPASSFILE", self.passfile), ("PGSERVICE", self.service)):
            if value:
                env[name] = value
        if not self.service:
            env["PGHOST"] = self.host or SOCKET_DIRECTORY
        if self.port:
            env["PGPORT"] = str(self.port)
        env.update(PGDATABASE=database, PGAPPNAME="opskit", PGCONNECT_TIMEOUT=str(CONNECT_TIMEOUT_S))
        if self.os_user:
            env["HOME"] = pwd.getpwnam(self.os_user).pw_dir
        return env

    def as_user(self, argv: List[str]) -> List[str]:
        """Return the argument vector that runs a program as the operating system's user."""
        if not self.os_user or pwd.getpwnam(self.os_user).pw_uid == os.geteuid():
            return argv
        entry = pwd.getpwnam(self.os_user)
        # The kernel forgets the bond to this process when the user changes (prctl(2), PR_SET_PDEATHSIG): it is made again after that.
        return ["setpriv", "--pdeathsig=KILL", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups", "--", *argv]

    @contextmanager
    def session(self, database: str, password: str = "", lock_s: float = 0) -> Iterator[Any]:
        """Yield a connection of psycopg2, in autocommit, with settings that make values the same text everywhere.

        :param lock_s: seconds to wait for a lock, 0 for ever

        Not to be called while other threads work: the operating system's user is one for the whole process.
        Raises :class:`PostgresError` when the server refuses, also for what the block asks of it.
        """
        self.check()
        if missing_driver():
            raise PostgresError("this Python can't speak to PostgreSQL", self.where, f"Install it: apt-get install {missing_driver()}")
        parameters: Dict[str, Any] = {"dbname": database, "application_name": "opskit", "connect_timeout": CONNECT_TIMEOUT_S}
        # Python reads names as this, whatever the database's own encoding is.
        parameters["client_encoding"] = "UTF8"
        wanted = {"user": self.user, "passfile": self.passfile, "service": self.service, "port": self.port, "password": password}
        parameters.update({name: value for name, value in wanted.items() if value})
        if not self.service:
            parameters["host"] = self.host or SOCKET_DIRECTORY
        connection = None
        try:
            with _without_libpq_variables(), acting_as(self.os_user):
                connection = psycopg2.connect(**parameters)
            connection.autocommit = True
            with connection.cursor() as cursor:
                for setting in _SETTINGS:
                    cursor.execute(setting)
                cursor.execute("SET lock_timeout = %s", [int(lock_s * 1000)])
            yield connection
        except psycopg2.Error as error:
            text = redact(_one_line(_words_of(error)), [password])
            raise PostgresError(text, f"database {database} on {self.where}", _todo(text, self)) from None
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            raise PostgresError(
                f"a name in it can't be read or written as UTF-8 ({error.reason})",
                f"database {database} on {self.where}",
                "Rename it: no client can be sure what it is called",
            ) from None
        finally:
            if connection is not None:
                connection.close()


@contextmanager
def refused(explain: Callable[[str], PostgresError]) -> Iterator[None]:
    """Raise what is made of the server's words, where it refuses a statement of the block for what that says."""
    try:
        yield
    except (psycopg2.DataError, psycopg2.ProgrammingError) as error:
        raise explain(_one_line(_words_of(error))) from None


def encrypted(connection: Any, role: str, password: str) -> str:
    """Return the verifier of a password in the form that the server keeps (libpq, PQencryptPasswordConn)."""
    return str(psycopg2.extensions.encrypt_password(password, role, scope=connection))


@contextmanager
def acting_as(os_user: str) -> Iterator[None]:
    """Be another user of the operating system for a moment.

    A server that asks for peer authentication is told the effective user at the time of connect(2) (unix(7), SO_PEERCRED),
    and libpq reads passfile and ``~/.pg_service.conf`` as that user.
    """
    if not os_user or pwd.getpwnam(os_user).pw_uid == os.geteuid():
        yield
        return
    entry, home = pwd.getpwnam(os_user), os.environ.get("HOME")
    uid, gid, groups = os.geteuid(), os.getegid(), os.getgroups()
    os.environ["HOME"] = entry.pw_dir
    # A group can be what opens the socket's folder.
    os.setgroups(os.getgrouplist(os_user, entry.pw_gid))
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)
        if home is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = home


@contextmanager
def _without_libpq_variables() -> Iterator[None]:
    """Take the variables away that lead a client elsewhere or log it in as somebody else (libpq, 34.15)."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(LIBPQ)}
    try:
        yield
    finally:
        os.environ.update(taken)


def _words_of(error: psycopg2.Error) -> str:
    """Return what the server said, without the statement it said it of: that can hold the verifier of a password.

    And without values of rows: they stand in the details about a constraint, and in what is said of a value that does not do.
    """
    if isinstance(error, psycopg2.IntegrityError):
        return error.diag.message_primary or type(error).__name__
    if isinstance(error, psycopg2.DataError) and error.pgcode not in (None, "22023"):  # 22023: of a setting or an option
        return f"a value does not do there ({type(error).__name__}, SQLSTATE {error.pgcode})"
    said = [error.diag.message_primary, error.diag.message_detail]
    return "\n".join(part for part in said if part) or str(error)


def _one_line(text: str) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[:3] if line.strip()) or "the server said nothing"


# Parts of the English messages of libpq and the server; another language only costs the advice.
_ADVICE = (
    ("password authentication failed", "Mend the password in the passfile, or the role's: ALTER ROLE … PASSWORD"),
    ("no password supplied", "Give a passfile that has a line for this server, database and role"),
    ("Peer authentication failed", "Set os_user to the user that pg_hba.conf maps to this role, or use a passfile"),
    ("no pg_hba.conf entry", "Add a line for this role and database to pg_hba.conf, and reload the server"),
    ("does not exist", "Correct the name in the description"),
    ("Connection refused", "Start the server, or correct host and port"),
    ("No such file or directory", "Start the server, or correct host and port"),
    ("not currently accepting connections", "Allow connections again: ALTER DATABASE … ALLOW_CONNECTIONS true"),
    ("permission denied", "Grant the role what it needs, or use the role that owns the database"),
    ("lock timeout", "Wait until what holds the lock has ended (pg_locks, pg_stat_activity), or give more time"),
    ("too many", "Wait until there are fewer sessions, or raise max_connections"),
    ("No space left", "Free space on the server's disk"),
)


def _todo(text: str, login: Login) -> str:
    for part, advice in _ADVICE:
        if part in text:
            return advice
    return "Look into the server's log" if login.is_local else "Try it with psql, with the same parameters"
