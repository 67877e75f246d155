# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing a database back: loaded beside the live one under another name, compared, then the names change in one transaction."""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from .._core.command import last_words, start
from .._core.environment import with_line_of
from .._core.files import human_size
from .._core.protocols import Names
from .._core.rows import quote
from .clients import client, major_of, version_text
from .contents import apply_properties, ask, beside_values, difference
from .credentials import Url, read_url
from .database import READ_S, PostgresDatabase, conninfo, end
from .errors import PostgresError
from .login import Login, encrypted

MAINTENANCE = "postgres"
"""The database that work on other databases is done from; initdb makes it for that."""

POLL_S = 0.2

_NOTHING_BESIDE = ("--no-owner", "--no-privileges", "--no-tablespaces", "--no-publications", "--no-subscriptions")
"""What keeps a copy of a dump from naming roles and from having others connected to it."""

_RIGHTS = """
    SELECT rolname, rolsuper, rolcreatedb,
           rolsuper OR pg_catalog.pg_has_role('pg_signal_backend', 'USAGE')
    FROM pg_catalog.pg_roles WHERE rolname = current_user
"""

# Autovacuum has no role, and gives way by itself. What kind of process it is, an ordinary role is not told of the sessions of others.
_SESSIONS = """
    SELECT pid, usename, coalesce(application_name, '') FROM pg_catalog.pg_stat_activity
    WHERE datname = %s AND pid <> pg_catalog.pg_backend_pid() AND usesysid IS NOT NULL ORDER BY 1
"""


def names_for(database: str, label: str) -> Names:
    """Return names for one restore of a database, each at most 63 bytes.

    :param label: what tells this restore from all others
    """
    short = hashlib.sha256(os.fsencode(f"{database}\0{label}")).hexdigest()[:12]
    # Cut between characters: 36 bytes of the name, 15 for what follows.
    head = os.fsencode(database)[:36].decode("utf-8", errors="ignore")
    return Names(f"{head}_n_{short}", f"{head}_b_{short}")


class PostgresTarget:
    """Where a database is brought back to. Implements ``ServerTarget``.

    :param admin: a login that may make databases, own this one's objects and end sessions
    :param deadline_s: seconds in which the sessions of others have to end
    :param url_variable: the variable in the application's environment file with the URL that it logs in with; empty where
        there is none
    """

    def __init__(self, database: PostgresDatabase, admin: Login, deadline_s: float, url_variable: str = "") -> None:
        self.url_variable = url_variable
        self.name = database.name
        self.database = database.database
        self.admin = admin
        self.deadline_s = deadline_s
        self._missing = database.missing

    @property
    def where(self) -> str:
        """Return the database as a person would name it."""
        return f"{self.database} on {self.admin.where}"

    def missing(self) -> List[str]:
        """Return the Debian packages without which the server can't be asked anything."""
        return self._missing()

    def names(self, label: str) -> Names:
        """Return the names beside the live one."""
        return names_for(self.database, label)

    # looking ----------------------------------------------------------------------------------------

    def identity(self, name: str) -> Optional[int]:
        """Return the number that a database keeps when it is renamed, None where no database has this name."""
        with self.admin.session(MAINTENANCE) as connection:
            return _oid(connection, name)

    def _is_open(self, name: str) -> bool:
        """True for a database that takes connections."""
        with self.admin.session(MAINTENANCE) as connection:
            return bool(ask(connection, "SELECT FROM pg_catalog.pg_database WHERE datname = %s AND datallowconn", [name]))

    def difference(self, facts: Dict[str, Any], name: str = "") -> str:
        """Say how a database differs from what was recorded; empty when it does not.

        :param name: by default the live one
        """
        name = name or self.database
        if self.identity(name) is None:
            return "it is missing"
        if not self._is_open(name):
            return "it takes no connections"
        with self.admin.session(name) as connection:
            # Another version of server or client words the definitions in its own way.
            same = major_of(connection.server_version) == major_of(facts["server_version"])
            return difference(connection, self.admin, name, facts, "words" if same and name == self.database else "objects")

    def asides(self) -> List[str]:
        """Return the names of what earlier restores of this database have kept aside, which takes no connections."""
        stem = re.escape(self.names("").aside[: -len("_b_") - 12])
        with self.admin.session(MAINTENANCE) as connection:
            closed = ask(connection, "SELECT datname FROM pg_catalog.pg_database WHERE NOT datallowconn ORDER BY oid")
        return [name for (name,) in closed if re.fullmatch(stem + "_b_[0-9a-f]{12}", name)]

    def check(self, facts: Dict[str, Any], globals_there: bool) -> List[str]:
        """Return the roles that have to be made first. Raises :class:`PostgresError` for what can't be restored here.

        :param globals_there: the image brings the definitions of roles
        """
        with self.admin.session(MAINTENANCE) as connection:
            version = connection.server_version
            client("pg_restore", max(major_of(version), major_of(facts["server_version"])))
            if major_of(version) < major_of(facts["server_version"]):
                raise PostgresError(
                    f"the dump is of PostgreSQL {version_text(facts['server_version'])}, the server is {version_text(version)}",
                    self.where,
                    "Restore into a server that is at least as new",
                )
            missing = self._check_rights(connection, facts)
            if missing and not (globals_there and self._is_superuser(connection)):
                raise PostgresError(
                    f"the roles {', '.join(missing)} own objects or have rights, and this server does not have them",
                    self.where,
                    "Make them (CREATE ROLE), or restore as a superuser, who makes them as they were",
                )
            self._check_tablespaces(connection, facts)
            if _oid(connection, self.database) is not None:
                self._check_live(connection)
            self._check_space(connection, facts)
        return missing

    @staticmethod
    def _is_superuser(connection: Any) -> bool:
        return bool(ask(connection, _RIGHTS)[0][1])

    def _check_rights(self, connection: Any, facts: Dict[str, Any]) -> List[str]:
        me, is_superuser, may_create, may_signal = ask(connection, _RIGHTS)[0]
        wanted = [*facts["roles"], facts["properties"]["owner"]]
        there = {name for (name,) in ask(connection, "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY(%s)", [wanted])}
        missing = sorted(set(wanted) - there)
        if is_superuser:
            return missing
        if not may_create:
            raise PostgresError(
                f"the role {me} may not make databases", self.where, f"ALTER ROLE {quote(me)} CREATEDB, or name another admin"
            )
        for role in sorted(there & {*facts["owners"], facts["properties"]["owner"]}):
            if not _may_act_as(connection, role):
                raise PostgresError(
                    f"the role {me} can't give objects to {role}", self.where, f"GRANT {quote(role)} TO {quote(me)}, or name another admin"
                )
        live = ask(connection, "SELECT pg_catalog.pg_get_userbyid(datdba) FROM pg_catalog.pg_database WHERE datname = %s", [self.database])
        if live and not _may_act_as(connection, live[0][0]):
            raise PostgresError(
                f"the role {me} may not rename the live database, which belongs to {live[0][0]}",
                self.where,
                f"GRANT {quote(live[0][0])} TO {quote(me)}, or name another admin",
            )
        if live and not may_signal:
            raise PostgresError(
                f"the role {me} may not end the sessions of others",
                self.where,
                f"GRANT pg_signal_backend TO {quote(me)}, or name another admin",
            )
        return missing

    def _check_tablespaces(self, connection: Any, facts: Dict[str, Any]) -> None:
        there = {name for (name,) in ask(connection, "SELECT spcname FROM pg_catalog.pg_tablespace")}
        missing = sorted(set(facts["tablespaces"]) - there)
        if missing:
            raise PostgresError(
                f"the dump needs the tablespaces {', '.join(missing)}, and this server does not have them",
                self.where,
                "Make them: CREATE TABLESPACE … LOCATION …",
            )

    def _check_live(self, connection: Any) -> None:
        """Refuse what no ending of sessions helps against: a prepared transaction, a subscription's slot."""
        prepared = ask(connection, "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = %s ORDER BY prepared", [self.database])
        if prepared:
            raise PostgresError(
                f"{len(prepared)} prepared transactions hold the database, first {prepared[0][0]!r}",
                self.where,
                "End each with COMMIT PREPARED or ROLLBACK PREPARED",
            )
        slots = ask(connection, "SELECT slot_name FROM pg_catalog.pg_replication_slots WHERE database = %s ORDER BY 1", [self.database])
        if slots:
            raise PostgresError(
                f"logical replication slots hold the database, first {slots[0][0]!r}",
                self.where,
                "Drop the subscription, or the slot with pg_drop_replication_slot()",
            )

    def _check_space(self, connection: Any, facts: Dict[str, Any]) -> None:
        """Refuse a copy that the server's disk has no room for, where that disk can be seen from here."""
        rows = ask(
            connection,
            "SELECT CASE WHEN pg_catalog.pg_has_role('pg_read_all_settings', 'MEMBER') THEN current_setting('data_directory') END",
        )
        folder = rows[0][0]
        if not folder or not self.admin.is_local or not os.path.isdir(folder):
            return
        disk = os.statvfs(folder)
        free = disk.f_bavail * disk.f_frsize
        if facts["database_bytes"] > free:
            raise PostgresError(
                f"the restored and the live database are both kept; that needs {human_size(facts['database_bytes'])}, {human_size(free)} are free",
                folder,
                "Free space there, or remove what an earlier restore kept aside (state purged)",
            )

    # credentials ------------------------------------------------------------------------------------

    def refusal(self, settings: bytes, whose: str, made: Sequence[str]) -> str:
        """Say why the application can't log in with an environment file's URL; empty when it can.

        Where there is no live database to log in to, or a run that was cut off has closed it, another one of the server has to
        do, or the server's word that it is only that: it says so only after it has accepted role and password.

        :param made: roles that will be made; nothing is asked for one of them
        """
        url = read_url(settings, self.url_variable, whose)
        if url.login.user in made:
            return ""
        refused = _try(url, url.database)
        if refused and not self._is_open(url.database):
            closed = (f'database "{url.database}" does not exist', f'database "{url.database}" is not currently accepting connections')
            return "" if any(words in refused for words in closed) or not _try(url, MAINTENANCE) else refused
        return refused

    def with_live_url(self, settings: bytes, live: bytes) -> bytes:
        """Return an environment file's content with the URL of the live one. Raises :class:`PostgresError` where that has none."""
        read_url(live, self.url_variable, "the live environment file")
        return with_line_of(settings, live, self.url_variable)

    def set_password(self, settings: bytes, whose: str) -> None:
        """Give the role of an environment file's URL the password that stands there.

        What the server is sent, and may log, is the verifier (RFC 5803) and not the password.
        """
        url = read_url(settings, self.url_variable, whose)
        with self.admin.session(MAINTENANCE) as connection:
            verifier = encrypted(connection, url.login.user, url.password)
            ask(connection, f"ALTER ROLE {beside_values(quote(url.login.user))} PASSWORD %s", [verifier])

    def check_set_password(self, settings: bytes, whose: str) -> str:
        """Return the role that :meth:`set_password` would change. Raises :class:`PostgresError` for what keeps it from doing so."""
        url = read_url(settings, self.url_variable, whose)
        if not url.login.user or not url.password:
            raise PostgresError(
                f"{self.url_variable} in {whose} names no role or no password", todo="Choose another way for the credentials"
            )
        with self.admin.session(MAINTENANCE) as connection:
            me, is_superuser = ask(connection, _RIGHTS)[0][:2]
            if not is_superuser:
                raise PostgresError(
                    f"the role {me} may not set the password of {url.login.user}",
                    self.where,
                    "Name a superuser as the admin for the restore",
                )
        return url.login.user

    # making -----------------------------------------------------------------------------------------

    def load(self, image: str, globals_sql: str, facts: Dict[str, Any], name: str) -> None:
        """Make a new database of a dump, as it was, and compare it with the facts. Nothing else is touched.

        :param globals_sql: path of the roles' definitions; empty where there are none
        :param name: what the new database is called; one of this name that a cut-off run left is removed first
        Raises :class:`PostgresError`; then there is no such database.
        """
        self.drop(name)
        try:
            self.make(image, globals_sql, facts, name)
            wrong = self.difference(facts, name)
            if wrong:
                raise PostgresError(f"the restored copy is not what was dumped: {wrong}", self.where, "Name another set")
        except BaseException:
            self.drop(name)
            raise

    def make(self, image: str, globals_sql: str, facts: Dict[str, Any], name: str, jobs: int = 1) -> None:
        """Make a new database of a dump, as it was. A failure leaves it half made.

        :param jobs: how many tables and indexes are loaded at once
        """
        properties = facts["properties"]
        with self.admin.session(MAINTENANCE) as connection:
            missing = self._check_rights(connection, facts)
            if missing and globals_sql:
                self._make_roles(connection, missing, globals_sql)
            ask(connection, _create(name, properties, connection.server_version))
            # It may take a while until it is whole; nobody else has business in it.
            ask(connection, f"REVOKE ALL ON DATABASE {quote(name)} FROM PUBLIC")
            program = client("pg_restore", max(major_of(connection.server_version), major_of(facts["server_version"])))
        self._fill(program, image, name, jobs)
        with self.admin.session(name) as connection:
            # Before version 18 a dump holds no statistics; without any the first queries are slow.
            ask(connection, "ANALYZE")
            apply_properties(connection, properties)

    @contextmanager
    def scratch(self, image: str, facts: Dict[str, Any], name: str) -> Iterator[None]:
        """Have a database made of a dump while the block runs: definitions and rows, and no owners, rights or subscriptions.

        No role is made for it, and nobody else may connect. What a killed run has left is removed first.
        Raises :class:`PostgresError`; also where another run is at work on one of this name.
        """
        with self.admin.session(MAINTENANCE) as connection:
            self._check_maker(connection, facts)
            # It is given up with the session, whatever ends that.
            lock = int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big", signed=True)
            if not ask(connection, "SELECT pg_catalog.pg_try_advisory_lock(%s)", [lock])[0][0]:
                raise PostgresError("another run is at work with this database", f"{name} on {self.admin.where}", "Wait for it to end")
            self.drop(name)
            try:
                me = ask(connection, "SELECT current_user::text")[0][0]
                properties = {**facts["properties"], "owner": me, "tablespace": "pg_default"}
                ask(connection, _create(name, properties, connection.server_version))
                ask(connection, f"REVOKE ALL ON DATABASE {quote(name)} FROM PUBLIC")
                program = client("pg_restore", max(major_of(connection.server_version), major_of(facts["server_version"])))
                self._fill(program, image, name, 1, _NOTHING_BESIDE)
                yield
            finally:
                self.drop(name)

    def _check_maker(self, connection: Any, facts: Dict[str, Any]) -> None:
        """Refuse a server that can't take a copy of a dump, or a role that may not make one."""
        version = connection.server_version
        if major_of(version) < major_of(facts["server_version"]):
            raise PostgresError(
                f"the dump is of PostgreSQL {version_text(facts['server_version'])}, the server is {version_text(version)}",
                self.where,
                "Use a server that is at least as new",
            )
        me, is_superuser, may_create, _may_signal = ask(connection, _RIGHTS)[0]
        if not is_superuser and not may_create:
            raise PostgresError(
                f"the role {me} may not make databases", self.where, f"ALTER ROLE {quote(me)} CREATEDB, or name another admin"
            )
        if _oid(connection, self.database) is None:
            raise PostgresError("there is no such database", self.where, "Restore the whole set first")
        self._check_space(connection, facts)

    def _fill(self, program: str, image: str, name: str, jobs: int, options: Sequence[str] = ()) -> None:
        argv = [program, "--exit-on-error", "--no-password", *options, "--dbname", conninfo(name)]
        # Several at once read the archive here and there, for which it has to have a name.
        argv += [f"--jobs={jobs}", image] if jobs > 1 else []
        with open(image, "rb") as stream:
            # A role can be one that only reads unless told otherwise.
            env = {**self.admin.environment(name), "PGOPTIONS": "-c default_transaction_read_only=off"}
            process = start(self.admin.as_user(argv), stdin=stream.fileno(), env=env, cwd="/")
        try:
            _out, err = process.communicate(timeout=READ_S)
        finally:
            end(process)
        if process.returncode != 0:
            raise PostgresError(
                f"pg_restore failed: {_first_error(err)}",
                self.where,
                "Mend what it names (a missing extension or right, a full disk) and run again",
            )

    def _make_roles(self, connection: Any, missing: List[str], globals_sql: str) -> None:
        """Make roles as they were, with those that they are members of, and their memberships among roles that are there."""
        with open(globals_sql, encoding="utf-8") as stream:
            statements = _statements(stream.read())
        definitions: Dict[str, List[str]] = {}
        grants: List[Tuple[str, str, str]] = []
        for statement in statements:
            own = re.match(rf"(?:CREATE|ALTER|COMMENT ON) ROLE {_NAME}[ ;]", statement)
            member = re.match(rf"(GRANT {_NAME} TO {_NAME}.*?)(?: GRANTED BY {_NAME})?;$", statement)
            if own:
                definitions.setdefault(_plain(own.group(1)), []).append(statement)
            elif member:
                # Who granted it may not be there; it counts for nothing but the right to take it back.
                grants.append((_plain(member.group(2)), _plain(member.group(3)), member.group(1)))
        there = {name for (name,) in ask(connection, "SELECT rolname FROM pg_catalog.pg_roles")}
        made: Set[str] = set()
        wanted = list(missing)
        # The statements hold verifiers of passwords, which a server that logs statements would write down.
        for setting in ("log_statement = none", "log_min_duration_statement = -1", "log_min_error_statement = panic"):
            ask(connection, f"SET {setting}")
        while wanted:
            role = wanted.pop()
            if role in there or role in made:
                continue
            if role not in definitions:
                raise PostgresError(f"the set does not define the role {role}", self.where, f"CREATE ROLE {quote(role)}, and run again")
            for statement in definitions[role]:
                ask(connection, statement)
            made.add(role)
            wanted.extend(group for group, member_name, _grant in grants if member_name == role)
        for group, member_name, grant in grants:
            if {group, member_name} & made and {group, member_name} <= there | made:
                ask(connection, grant)

    def drop(self, name: str) -> None:
        """Remove a database that is not the live one; none of this name is fine."""
        if name == self.database:
            raise PostgresError("the live database is never removed", self.where)
        with self.admin.session(MAINTENANCE) as connection:
            if _oid(connection, name) is not None:
                ask(connection, f"ALTER DATABASE {quote(name)} ALLOW_CONNECTIONS false")
                self._end_sessions(connection, name)
                ask(connection, f"DROP DATABASE {quote(name)}")

    # exchanging -------------------------------------------------------------------------------------

    def rename(self, moves: List[Tuple[str, str, int]], closed: str) -> None:
        """Give databases other names, all in one transaction or none.

        :param moves: present name, new name, and identity, in an order in which no name is taken
        :param closed: the new name that takes no connections afterwards; all others do. Empty: all do
        The sessions in them are ended; when they do not end in time, nothing is renamed and all take connections again.
        """
        renames = [(old, new) for old, new, _identity in moves]
        names = [old for old, _new in renames]
        with self.admin.session(MAINTENANCE) as connection:
            for old, _new, oid in moves:
                if _oid(connection, old) != oid:
                    raise PostgresError("another database has this name by now, so nothing was renamed", f"{old} on {self.admin.where}")
            try:
                for name in names:
                    ask(connection, f"ALTER DATABASE {quote(name)} ALLOW_CONNECTIONS false")
                for name in names:
                    self._end_sessions(connection, name)
                connection.autocommit = False
                for old, new in renames:
                    ask(connection, f"ALTER DATABASE {quote(old)} RENAME TO {quote(new)}")
                for _old, new in renames:
                    if new != closed:
                        ask(connection, f"ALTER DATABASE {quote(new)} ALLOW_CONNECTIONS true")
                connection.commit()
            except BaseException:
                connection.rollback()
                connection.autocommit = True
                for name in names:
                    ask(connection, f"ALTER DATABASE {quote(name)} ALLOW_CONNECTIONS true")
                raise

    def open_again(self, name: str) -> None:
        """Let a database take connections, which a run that was cut off has closed."""
        with self.admin.session(MAINTENANCE) as connection:
            ask(connection, f"ALTER DATABASE {quote(name)} ALLOW_CONNECTIONS true")

    def _end_sessions(self, connection: Any, name: str) -> None:
        deadline = time.monotonic() + self.deadline_s
        while True:
            sessions = ask(connection, _SESSIONS, [name])
            if not sessions:
                return
            if time.monotonic() >= deadline:
                pid, role, program = sessions[0]
                raise PostgresError(
                    f"{len(sessions)} sessions did not end within {self.deadline_s:g} s, first process {pid} of {role} ({program or 'no name'})",
                    f"{name} on {self.admin.where}",
                    "End it by hand, or give it more time",
                )
            for pid, _role, _program in sessions:
                ask(connection, "SELECT pg_catalog.pg_terminate_backend(%s)", [pid])
            time.sleep(POLL_S)


def _may_act_as(connection: Any, role: str) -> bool:
    # To give something to a role is one right, to use what it owns is another; until version 15 the first came with being a member.
    give = "SET" if connection.server_version >= 160000 else "MEMBER"
    may = "SELECT pg_catalog.pg_has_role(current_user, %s, %s) AND pg_catalog.pg_has_role(current_user, %s, 'USAGE')"
    return bool(ask(connection, may, [role, give, role])[0][0])


_STATEMENT = re.compile(r"""(?:--[^\n]*\n|\s)*((?:'[^']*'|"[^"]*"|[^;'"])*;)""")
_NAME = r'("(?:[^"]|"")+"|[^\s";]+)'


def _statements(sql: str) -> List[str]:
    """Return the statements of what pg_dumpall wrote: a name or a comment can hold a semicolon or a new line."""
    return _STATEMENT.findall(sql)


def _plain(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _first_error(err: bytes) -> str:
    """Return what pg_restore complained of first: of several at once, those that were ended by it complain, too."""
    lines = err[max(err.find(b"pg_restore: error: "), 0) :].splitlines()
    return last_words(b"\n".join(lines[:3]))


def _try(url: Url, database: str) -> str:
    """Say why a server refuses a URL's role and password for a database; empty when it does not."""
    try:
        with url.login.session(database, url.password):
            return ""
    except PostgresError as error:
        return error.what


def _oid(connection: Any, name: str) -> Optional[int]:
    rows = ask(connection, "SELECT oid FROM pg_catalog.pg_database WHERE datname = %s", [name])
    return int(rows[0][0]) if rows else None


def _create(name: str, properties: Dict[str, Any], version: int) -> str:
    """Return CREATE DATABASE with what can't be changed later."""

    def literal(text: str) -> str:
        return "'" + text.replace("'", "''") + "'"

    words = [
        f"CREATE DATABASE {quote(name)} TEMPLATE template0 OWNER {quote(properties['owner'])}",
        f"ENCODING {literal(properties['encoding'])}",
        f"LC_COLLATE {literal(properties['collate'])} LC_CTYPE {literal(properties['ctype'])}",
    ]
    if properties["tablespace"] != "pg_default":
        # Named, the usual one asks for a right that only superusers have.
        words.append(f"TABLESPACE {quote(properties['tablespace'])}")
    if version >= 150000:
        words.append(f"LOCALE_PROVIDER {properties['provider']}")
        if properties["provider"] == "icu":
            words.append(f"ICU_LOCALE {literal(properties['locale'])}")
        elif properties["provider"] == "builtin":
            words.append(f"BUILTIN_LOCALE {literal(properties['locale'])}")
        if properties["icu_rules"]:
            words.append(f"ICU_RULES {literal(properties['icu_rules'])}")
    return " ".join(words)
