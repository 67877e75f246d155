# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a database, in a form that two databases can be compared by, and what a dump of one leaves out."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Dict, List, Sequence, Tuple

from .._core.command import run
from .clients import client, major_of
from .errors import PostgresError
from .login import Login

SCHEMA_S = 3600
"""Seconds that a dump of the definitions alone may take."""

# A setting that holds a list of names is stored with its quotes and has to be given name by name
# (variable_is_guc_list_quote in src/bin/pg_dump/dumputils.c).
_LISTS = ("local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries", "temp_tablespaces")

_THIS = "(SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"

# What a dump holds rows of. Members of an extension come with the extension.
_TABLES = """
    SELECT n.nspname, c.relname, c.relkind = 'r'
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND c.relispopulated
      AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                      WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY 1, 2
"""

_SEQUENCES = "SELECT schemaname, sequencename, last_value FROM pg_catalog.pg_sequences ORDER BY 1, 2"

# Owners, grantees and whose settings are kept for this database.
_ROLES = f"""
    SELECT r.rolname FROM pg_catalog.pg_roles r JOIN pg_catalog.pg_shdepend d
      ON d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.refobjid = r.oid
    WHERE d.dbid = {_THIS} OR (d.dbid = 0 AND d.classid = 'pg_catalog.pg_database'::pg_catalog.regclass AND d.objid = {_THIS})
    UNION
    SELECT r.rolname FROM pg_catalog.pg_roles r JOIN pg_catalog.pg_db_role_setting s ON s.setrole = r.oid
    WHERE s.setdatabase = {_THIS}
    UNION
    SELECT pg_catalog.pg_get_userbyid(datdba) FROM pg_catalog.pg_database WHERE oid = {_THIS}
    ORDER BY 1
"""

_PROPERTIES = """
    SELECT pg_catalog.pg_get_userbyid(datdba), pg_catalog.pg_encoding_to_char(encoding), datcollate, datctype, {provider}, {locale},
           datconnlimit, pg_catalog.shobj_description(oid, 'pg_database')
    FROM pg_catalog.pg_database WHERE datname = %s
"""

_ACL = """
    SELECT DISTINCT CASE a.grantee WHEN 0 THEN '' ELSE pg_catalog.pg_get_userbyid(a.grantee) END, a.privilege_type, a.is_grantable
    FROM pg_catalog.pg_database d, pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a
    WHERE d.datname = %s ORDER BY 1, 2, 3
"""

_DATABASE_SETTINGS = """
    SELECT CASE s.setrole WHEN 0 THEN '' ELSE pg_catalog.pg_get_userbyid(s.setrole) END, c.setting
    FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase,
         pg_catalog.unnest(s.setconfig) WITH ORDINALITY AS c(setting, position)
    WHERE d.datname = %s ORDER BY 1, c.position
"""

PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}
"""``pg_database.datlocprovider`` and what CREATE DATABASE calls it."""


def quote(name: str) -> str:
    """Return a name as an SQL identifier (PostgreSQL, 4.1.1)."""
    return '"' + name.replace('"', '""') + '"'


def ask(connection: Any, statement: str, values: Sequence[Any] = ()) -> List[Tuple[Any, ...]]:
    """Return the rows that a statement gives; none for a statement that gives none."""
    with connection.cursor() as cursor:
        # Without values, a % is a % (psycopg2, "Passing parameters to SQL queries").
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description is not None else []


def rows_of(connection: Any) -> Dict[str, Dict[str, Any]]:
    """Return for each table ``rows`` and ``sum``, by ``schema.name``.

    ``sum`` is the sum of a hash of each row's text: it does not depend on the order of rows, which a restore changes.
    It is null for a materialized view, which a restore computes anew. The large objects are ``(large objects)``, if they
    may be read.
    """
    found: Dict[str, Dict[str, Any]] = {}
    for schema, name, is_table in ask(connection, _TABLES):
        total = "sum(pg_catalog.hashtextextended(t::text, 0))" if is_table else "NULL"
        count, value = ask(connection, f"SELECT count(*), {total} FROM ONLY {quote(schema)}.{quote(name)} AS t")[0]
        found[f"{schema}.{name}"] = {"rows": count, "sum": None if value is None else str(value)}
    if ask(connection, "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_largeobject', 'SELECT')")[0][0]:
        pages = "sum(pg_catalog.hashtextextended(loid || ' ' || pageno || ' ' || pg_catalog.encode(data, 'hex'), 0))"
        count, value = ask(connection, f"SELECT count(DISTINCT loid), {pages} FROM pg_catalog.pg_largeobject")[0]
        if count:
            found["(large objects)"] = {"rows": count, "sum": str(value)}
    return found


def sequences_of(connection: Any) -> Dict[str, Any]:
    """Return the last value of each sequence by ``schema.name``; null where none was taken yet."""
    return {f"{schema}.{name}": value for schema, name, value in ask(connection, _SEQUENCES)}


def roles_of(connection: Any) -> List[str]:
    """Return the roles that own something in the database, have rights or settings in it, or own the database."""
    return [name for (name,) in ask(connection, _ROLES)]


def properties_of(connection: Any, database: str) -> Dict[str, Any]:
    """Return what belongs to a database and is not in a dump of it without ``--create``.

    ``owner``, ``encoding``, ``collate``, ``ctype``, ``provider`` (libc, icu or builtin), ``locale`` (of icu or builtin),
    ``connection_limit`` (-1: none), ``comment``, ``acl`` (a list of grantee, privilege and grantable; the grantee "" is
    PUBLIC), ``settings`` (a list of role, name and value; the role "" is every one).
    """
    version = connection.server_version
    columns = {
        "provider": "datlocprovider" if version >= 150000 else "'c'",
        "locale": "datlocale" if version >= 170000 else "daticulocale" if version >= 150000 else "NULL",
    }
    found = ask(connection, _PROPERTIES.format(**columns), [database])
    if not found:
        raise PostgresError(f"the server has no database {database!r}", todo="Correct the name in the description, or restore it")
    owner, encoding, collate, ctype, provider, locale, limit, comment = found[0]
    settings = [(role, *setting.split("=", 1)) for role, setting in ask(connection, _DATABASE_SETTINGS, [database])]
    return {
        "owner": owner,
        "encoding": encoding,
        "collate": collate,
        "ctype": ctype,
        "provider": PROVIDERS[provider],
        "locale": locale,
        "connection_limit": limit,
        "comment": comment,
        "acl": [list(item) for item in ask(connection, _ACL, [database])],
        "settings": [list(item) for item in settings],
    }


def apply_properties(connection: Any, database: str, properties: Dict[str, Any]) -> None:
    """Give a new database, which has none yet, the comment, rights, settings and limit that another one had."""
    name = quote(database)
    ask(connection, f"COMMENT ON DATABASE {name} IS %s", [properties["comment"]])
    ask(connection, f"ALTER DATABASE {name} CONNECTION LIMIT {int(properties['connection_limit'])}")
    for grantee in ("", properties["owner"]):
        ask(connection, f"REVOKE ALL ON DATABASE {name} FROM {_grantee(grantee)}")
    for grantee, privilege, grantable in properties["acl"]:
        if privilege not in ("CONNECT", "CREATE", "TEMPORARY"):
            raise PostgresError(f"the right {privilege!r} on a database is not known here", database, "Use a newer collection")
        option = " WITH GRANT OPTION" if grantable else ""
        ask(connection, f"GRANT {privilege} ON DATABASE {name} TO {_grantee(grantee)}{option}")
    for role, setting, value in properties["settings"]:
        target = f"ROLE {quote(role)} IN DATABASE {name}" if role else f"DATABASE {name}"
        values = _split_names(value) if setting.lower() in _LISTS else [value]
        parts = ".".join(quote(part) for part in setting.split("."))
        ask(connection, f"ALTER {target} SET {parts} TO {', '.join(['%s'] * len(values))}", values)


def _grantee(role: str) -> str:
    return quote(role) if role else "PUBLIC"


def _split_names(value: str) -> List[str]:
    """Return the names of a list as the server stores it: quoted where that is needed, with commas between."""
    names = re.findall(r'"((?:[^"]|"")*)"|([^,"\s]+)', value)
    return [quoted.replace('""', '"') if quoted else plain for quoted, plain in names] or [""]


def schema_of(login: Login, database: str, server_version: int, snapshot: str = "") -> str:
    """Return the SHA-256 of all definitions, owners and rights in a database, as pg_dump writes them.

    :param snapshot: of an open transaction (pg_export_snapshot), empty for now
    """
    argv = [client("pg_dump", major_of(server_version)), "--schema-only", "--no-password"]
    if snapshot:
        argv.append(f"--snapshot={snapshot}")
    text = run(login.as_user(argv), SCHEMA_S, env=login.environment(database)).stdout
    digest = hashlib.sha256()
    for line in text.splitlines(keepends=True):
        # Versions of server and client, and a random key (psql, \restrict), are not the database's.
        if not re.match(rb"-- Dumped |\\(un)?restrict ", line):
            digest.update(line)
    return digest.hexdigest()


def contents_of(connection: Any, login: Login, database: str, snapshot: str = "") -> Dict[str, Any]:
    """Return all that two databases are compared by: ``tables``, ``sequences``, ``schema`` and ``properties``."""
    return {
        "properties": properties_of(connection, database),
        "sequences": sequences_of(connection),
        "tables": rows_of(connection),
        "schema": schema_of(login, database, connection.server_version, snapshot),
    }


def difference(connection: Any, login: Login, database: str, facts: Dict[str, Any]) -> str:
    """Say in what a database differs from what was recorded of one; empty when it does not.

    What is cheap is compared first, and the first that differs ends it.
    """
    properties = properties_of(connection, database)
    wrong = [name for name in sorted(facts["properties"]) if properties.get(name) != facts["properties"][name]]
    if wrong:
        return f"its {', '.join(wrong)} is {'; '.join(repr(properties.get(name)) for name in wrong)}, not as recorded"
    sequences = sequences_of(connection)
    wrong = _unequal(sequences, facts["sequences"])
    if wrong:
        return f"the sequence {wrong[0]} is at {sequences.get(wrong[0])}, {facts['sequences'].get(wrong[0])} recorded"
    if schema_of(login, database, connection.server_version) != facts["schema"]:
        return "its definitions, owners or rights differ"
    tables = rows_of(connection)
    wrong = _unequal(tables, facts["tables"])
    if not wrong:
        return ""
    here, there = tables.get(wrong[0], {}).get("rows"), facts["tables"].get(wrong[0], {}).get("rows")
    return f"{len(wrong)} tables differ, first {wrong[0]}: " + (f"{here} rows, {there} recorded" if here != there else "other content")


def _unequal(found: Dict[str, Any], recorded: Dict[str, Any]) -> List[str]:
    return sorted(name for name in {*found, *recorded} if found.get(name) != recorded.get(name))
